"""Where proposals come from: Selective Search, whose boxes are kept on the disk, or files that somebody made."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelwise.errors import BadFile, Problem, UserError, did_you_mean
from labelwise.files import atomic_write, cache_home
from labelwise.models.selective_search import Mode, selective_search_regions
from labelwise.samples import Sample

MODES: tuple[Mode, ...] = get_args(Mode)
VERSION = 1
"""Counts up whenever Selective Search would give other boxes."""

_UNREADABLE = (OSError, ValueError, TypeError, RuntimeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)
_MEND = "make the file anew, or use --proposals fast"


class ProposalSource:
    """Gives each image its proposals: [P, 4] float32 half-open boxes in the image's pixels, best first.

    Selective Search keeps what it found in the cache folder, under a name made from the image's pixels and the mode.
    A folder holds one file ID.npz per image: `boxes` [P, 4] in pixels, half-open, best first, and `size`, height and
    width of the image that they belong to.
    """

    def __init__(self, source: str) -> None:
        """Choose the source.

        Args:
            source: `fast`, `quality` or `single` (Selective Search in that mode), or a folder.

        Raises:
            UserError: it is neither.
        """
        self.source = source
        if source not in MODES and not Path(source).is_dir():
            reason = f"--proposals {source}: neither a mode of Selective Search nor a folder"
            raise UserError(reason + did_you_mean(source, MODES))

    def __call__(self, sample: Sample) -> Tensor:
        """The proposals of an image.

        Raises:
            BadFile: the folder has no usable file for the image.
        """
        for mode in MODES:
            if mode == self.source:
                pixels = sample.image.permute(1, 2, 0).cpu().contiguous().numpy()
                return torch.from_numpy(searched_boxes(pixels, mode))
        return torch.from_numpy(given_boxes(Path(self.source), sample))


def searched_boxes(image: NDArray[np.uint8], mode: Mode) -> NDArray[np.float32]:
    """The boxes [P, 4] of Selective Search for an image [H, W, 3], from the cache where it has them.

    A damaged file is made anew, and a cache that cannot be written to costs time only.
    """
    path = _cache_file(image, mode)
    with suppress(*_UNREADABLE):
        boxes, size = _read(path)
        if not _fault(boxes, size, image.shape[:2]):
            return boxes.astype(np.float32)
    boxes = selective_search_regions(image, mode).boxes
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, _encoded(boxes, image.shape[:2], mode), durable=False)
    return boxes


def given_boxes(folder: Path, sample: Sample) -> NDArray[np.float32]:
    """The boxes [P, 4] that a folder holds for an image.

    Raises:
        BadFile: there is no file, or it cannot be used.
    """
    path = folder / f"{sample.id}.npz"
    if not path.is_file():
        raise BadFile(Problem(path, "no proposals for this image", "add the file, or use --proposals fast", sample.id))
    try:
        boxes, size = _read(path)
    except _UNREADABLE:
        reason = "cannot be read as arrays named boxes and size"
        raise BadFile(Problem(path, reason, _MEND, sample.id)) from None
    fault = _fault(boxes, size, tuple(sample.image.shape[-2:]))
    if fault:
        raise BadFile(Problem(path, fault, _MEND, sample.id))
    return boxes.astype(np.float32)


def _read(path: Path) -> tuple[NDArray, NDArray]:
    with np.load(path, allow_pickle=False) as file:
        return file["boxes"], file["size"]


def _fault(boxes: NDArray, size: NDArray, image_size: tuple[int, ...]) -> str:
    """What is wrong with the boxes of a file; empty if they can be used."""
    if size.shape != (2,) or size.dtype.kind not in "iuf":
        return "size is not height and width"
    if tuple(size.tolist()) != image_size:
        found, wanted = (f"{height} x {width}" for height, width in (size.tolist(), image_size))
        return f"made for an image of {found} pixels, but this one has {wanted}"
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0 or boxes.dtype.kind not in "iuf":
        return f"boxes are not numbers [P, 4] but {boxes.dtype} {list(boxes.shape)}"
    height, width = image_size
    inside = (boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= (width, height))
    wrong = np.flatnonzero(~inside.all(axis=1))
    if len(wrong):
        corners = ", ".join(f"{value:g}" for value in boxes[wrong[0]])
        return f"box {wrong[0]} ({corners}) is not x1 < x2, y1 < y2 inside the image"
    return ""


def _cache_file(image: NDArray[np.uint8], mode: Mode) -> Path:
    digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16)
    digest.update(f"{image.shape} {mode} {VERSION}".encode())
    return cache_home() / "proposals" / f"{digest.hexdigest()}.npz"


def _encoded(boxes: NDArray[np.float32], size: tuple[int, ...], mode: Mode) -> bytes:
    buffer = io.BytesIO()
    made_by = np.array(f"labelwise selective search {mode} {VERSION}")
    np.savez_compressed(buffer, boxes=boxes, size=np.array(size), made_by=made_by)
    return buffer.getvalue()
