"""What the writers of data sets share: names of files, images taken over, objects with all that is known of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from labelwise.datasets.derive import boxes_of_instances
from labelwise.datasets.images import IMAGE_SUFFIXES, is_turned, read_bytes, read_image, write_image
from labelwise.errors import BadFile, Problem, UserError
from labelwise.files import atomic_write
from labelwise.samples import Sample

_SAME = 0.5
"""The least overlap (IoU) of a box with the extent of the instance that it belongs to."""


@dataclass(frozen=True)
class Object:
    """One object of an image.

    Attributes:
        label: its class number.
        box: [4] float64 XYXY, half-open.
        difficult: whether it counts neither for nor against a detector.
        mask: [H, W] bool, or None where only the box is known.
    """

    label: int
    box: np.ndarray
    difficult: bool
    mask: np.ndarray | None


def objects_of(sample: Sample) -> list[Object]:
    """The objects of a sample: its boxes, each with the instance of its class that it fits, then the other instances.

    Boxes and instances come from files that know nothing of each other, so that they are matched: as a whole as well as
    possible, each pair with an IoU of at least a half.

    Raises:
        ValueError: boxes or instances come without their labels.
    """
    boxes, labels, difficult = _boxes(sample)
    masks, mask_labels = _instances(sample)
    extents = boxes_of_instances(masks).double().numpy() if masks is not None else np.zeros((0, 4))
    partner = _partners(boxes, labels, extents, mask_labels)
    pixels = [] if masks is None else list(masks.numpy())
    found = [
        Object(label, box, hard, pixels[partner[place]] if place in partner else None)
        for place, (label, box, hard) in enumerate(zip(labels.tolist(), boxes, difficult.tolist(), strict=True))
    ]
    left = [place for place in range(len(pixels)) if place not in partner.values()]
    return found + [Object(int(mask_labels[place]), extents[place], False, pixels[place]) for place in left]


def _boxes(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if sample.boxes is None:
        return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
    if sample.box_labels is None:
        raise ValueError(f"the boxes of '{sample.id}' come without their labels")
    boxes = sample.boxes.as_subclass(Tensor).double().cpu().numpy()
    height, width = sample.image.shape[-2:]
    low, high = boxes[:, :2], boxes[:, 2:]
    if not np.isfinite(boxes).all() or (high <= low).any() or (low >= (width, height)).any() or (high <= 0).any():
        raise ValueError(f"a box is inverted or outside the {width}x{height} image: {boxes.tolist()}")
    difficult = np.zeros(len(boxes), bool) if sample.difficult is None else sample.difficult.cpu().numpy()
    return boxes.clip(0, (width, height, width, height)), sample.box_labels.cpu().numpy(), difficult


def _instances(sample: Sample) -> tuple[Tensor | None, np.ndarray]:
    """The instances that have a pixel, and their classes."""
    if sample.instances is None:
        return None, np.zeros(0, np.int64)
    if sample.instance_labels is None:
        raise ValueError(f"the instances of '{sample.id}' come without their labels")
    masks = sample.instances.as_subclass(Tensor).cpu()
    shown = masks.flatten(1).any(dim=1)
    return masks[shown], sample.instance_labels.cpu()[shown].numpy()


def _partners(boxes: np.ndarray, labels: np.ndarray, extents: np.ndarray, mask_labels: np.ndarray) -> dict[int, int]:
    """For the boxes that have one, the place of their instance."""
    overlap = box_iou(Tensor(boxes).reshape(-1, 4), Tensor(extents).reshape(-1, 4)).numpy()
    overlap = np.where(labels[:, None] == mask_labels[None, :], overlap, 0)
    pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    return {int(box): int(mask) for box, mask in pairs if overlap[box, mask] >= _SAME}


def take_image(folder: Path, id: str, source: Path, durable: bool) -> str:
    """Take over an image file byte by byte; one that EXIF turns is stored upright, as labels would not tell.

    Returns:
        The new file's name.

    Raises:
        BadFile: the source is missing, damaged, or not an image's name.
        UserError: the id cannot be a file's name.
    """
    if source.suffix.lower() not in IMAGE_SUFFIXES:
        raise BadFile(Problem(source, "it does not end like an image", f"use one of {', '.join(IMAGE_SUFFIXES)}"))
    if is_turned(source):
        return put_image(folder, id, read_image(source))
    name = f"{file_name(id)}{source.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / name, read_bytes(source), durable=durable)
    return name


def put_image(folder: Path, id: str, image: Tensor) -> str:
    """Store an image as a JPEG of quality 95. [3, H, W] uint8 -> the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{file_name(id)}.jpg"
    write_image(folder / name, image)
    return name


def file_name(name: str) -> str:
    """The name, if it can be a file's on every system.

    Raises:
        UserError: it is empty, starts with a dot, or has a separator or a control character.
    """
    if not name or name.startswith(".") or any(char in "/\\:\0\n\r\t" for char in name) or len(os.fsencode(name)) > 240:
        raise UserError(f"'{name}' cannot be a file's name; use an id without /, \\ and : that starts with no dot")
    return name


def start_folder(root: Path, marker: str, content: str) -> None:
    """Start an empty data set with a file that says what it is, or go on with one that has the same.

    Args:
        root: a new or empty folder, or the folder of the started set.
        marker: the file's name.
        content: its text.

    Raises:
        UserError: the folder holds something else.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; name a new or empty folder")
    if root.is_dir() and any(root.iterdir()):
        file = root / marker
        if not file.is_file() or file.read_text("utf-8", errors="replace") != content:
            raise UserError(f"{root}: holds something else already; name a new or empty folder")
    root.mkdir(parents=True, exist_ok=True)
    atomic_write(root / marker, content)
