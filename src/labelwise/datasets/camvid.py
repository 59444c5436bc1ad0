"""CamVid as SegNet distributed it: road scenes with 11 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.folders import Folders, Pair
from labelwise.datasets.images import as_mask, read_labels
from labelwise.errors import UserError
from labelwise.samples import IGNORE_INDEX, Sample

_VOID = 11
_CLASSES = Classes(
    names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    background=None,
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)


class CamVid(Folders):
    """``train``, ``val`` and ``test`` with images, ``trainannot``, ``valannot`` and ``testannot`` with masks.

    The masks hold 0..10, and 11 for void, which is read as 255. There is no background: every class is a thing or stuff
    of its own.
    """

    layout = "CamVid"
    classes = _CLASSES

    @classmethod
    def _arrangement(cls, path: Path) -> dict[str, Pair]:
        pairs = {name: Pair(name, f"{name}annot") for name in ("train", "val", "test")}
        return {
            name: pair for name, pair in pairs.items() if (path / pair.images).is_dir() and (path / pair.masks).is_dir()
        }

    def write(self, sample: Sample) -> None:
        """Refuse: 255 and 11 would mix in one folder.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.root}: CamVid's folders are only read; write a VOC folder instead")

    def _read_mask(self, path: Path) -> tv_tensors.Mask:
        labels, palette = read_labels(path, self.classes)
        return as_mask(np.where(labels == _VOID, IGNORE_INDEX, labels), palette, self.classes, path)
