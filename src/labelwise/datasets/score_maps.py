"""Files of score maps: how much each pixel of an image speaks for each of its tags, as half-precision numbers."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from labelwise.datasets.base import Classes
from labelwise.datasets.checks import require_size
from labelwise.datasets.images import read_bytes, refuse
from labelwise.errors import did_you_mean
from labelwise.samples import ScoreMaps

COARSE_STRIDE = 4
"""Pixels of the image per pixel of a coarse map."""

_PARTS = ("classes", "fine", "coarse")
_MEND = "make the score maps anew with `labelwise annotate`"
_LIMIT = 2_000_000_000


def coarse_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the coarse maps of an image."""
    return -(-height // COARSE_STRIDE), -(-width // COARSE_STRIDE)


def read_score_maps(path: Path, classes: Classes, size: tuple[int, int]) -> ScoreMaps:
    """Read `ScoreMaps/<id>.npz`.

    It holds three arrays: `classes` [N] the names of the image's tags, `fine` [N, H, W] and `coarse`
    [N, ceil(H / 4), ceil(W / 4)] float16 from 0 to 1.

    Args:
        path: the file.
        classes: the data set's.
        size: height and width of the image.

    Raises:
        BadFile: the file is damaged or of another image, or names an unknown class.
    """
    content = read_bytes(path, _LIMIT)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            names, fine, coarse = (file[part] for part in _PARTS)
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        refuse(path, f"it is not a file of score maps ({type(error).__name__}: {error})", _MEND)
    known = {classes.names[number]: number for number in classes.objects}
    for name in map(str, names):
        if name not in known:
            refuse(path, f"it has maps of the unknown class '{name}'", f"correct the name{did_you_mean(name, known)}")
    for maps, expected in ((fine, size), (coarse, coarse_size(*size))):
        if maps.ndim != 3 or len(maps) != len(names):
            refuse(path, f"it has maps of shape {maps.shape} for {len(names)} tags", _MEND)
        require_size(path, maps.shape[1:], expected)
        if not np.isfinite(maps).all():
            refuse(path, "its maps hold a value that is no number", _MEND)
    return ScoreMaps(
        labels=torch.tensor([known[str(name)] for name in names], dtype=torch.int64),
        fine=torch.from_numpy(fine.astype(np.float32)),
        coarse=torch.from_numpy(coarse.astype(np.float32)),
    )


def encode_score_maps(maps: ScoreMaps, classes: Classes) -> bytes:
    """The content of `ScoreMaps/<id>.npz`; `read_score_maps` gives the maps back, rounded to half precision."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        classes=np.array([classes.names[label] for label in maps.labels.tolist()], dtype=np.str_),
        fine=maps.fine.cpu().numpy().astype(np.float16),
        coarse=maps.coarse.cpu().numpy().astype(np.float16),
    )
    return buffer.getvalue()
