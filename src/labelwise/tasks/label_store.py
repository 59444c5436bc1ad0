"""Masks of training images that change while a method learns, as files, so that no set is ever held in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes, voc_palette
from labelwise.datasets.images import encode_mask, read_labels
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, Problem, UserError
from labelwise.files import atomic_write
from labelwise.samples import Sample, Views
from labelwise.transforms import WeakView

BIASED = 254
"""The mask value of a pixel whose label was taken away and is to be completed; 255 is never learned from."""

_DONE = "done"


class LabelStore:
    """Versions of the masks of the training images, one PNG per image in `folder/<version>/`.

    A version is a number, such as the epoch after which it was written, and belongs into the checkpoint of whoever
    reads it: then a run that was killed goes on with the masks that it had. Masks may hold `BIASED` beside class
    numbers and 255.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the masks in a folder, which need not exist yet."""
        self.folder = folder

    def write(self, version: int, id: str, mask: Tensor) -> None:
        """Write the mask of an image atomically: [H, W] uint8."""
        path = self._file(version, id)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, encode_mask(mask, voc_palette()), durable=False)

    def read(self, version: int, id: str) -> tv_tensors.Mask:
        """The mask of an image: [H, W] uint8.

        Raises:
            BadFile: it is missing or damaged.
        """
        path = self._file(version, id)
        if not path.is_file():
            mend = "train into a new folder, since this run's own labels are gone"
            raise BadFile(Problem(path, f"the checkpoint's labels of '{id}' are missing", mend))
        return tv_tensors.Mask(torch.from_numpy(read_labels(path)[0].astype(np.uint8)))

    def finish(self, version: int) -> None:
        """Note that a version holds the masks of all images."""
        (self.folder / str(version)).mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / str(version) / _DONE, b"")

    def holds(self, version: int) -> bool:
        """Whether a version was finished."""
        return (self.folder / str(version) / _DONE).is_file()

    def prune(self, keep: Collection[int]) -> None:
        """Delete all versions but these."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in map(str, keep):
                    shutil.rmtree(path)

    def _file(self, version: int, id: str) -> Path:
        # An id may have separators.
        return self.folder / str(version) / f"{quote(id, safe=' ')}.png"


class StoredMaskView:
    """The weak view of a sample whose mask is another than the data set's; the data set's rides along.

    The view's targets hold the data set's own mask as `original`, [H, W] uint8, cut as the image is.
    """

    def __init__(self, weak: WeakView, current: Callable[[Sample], Tensor]) -> None:
        """Remember where masks come from.

        Args:
            weak: the geometric transform of image and masks.
            current: the mask to learn from now, [H, W] uint8.
        """
        self.weak, self.current = weak, current

    def __call__(self, sample: Sample) -> Views:
        """Transform the image with both masks."""
        assert sample.mask is not None
        both = torch.stack([self.current(sample).as_subclass(Tensor), sample.mask.as_subclass(Tensor)])
        views = self.weak(replace(sample, mask=tv_tensors.Mask(both)))
        assert views.sample.mask is not None
        mask, original = views.sample.mask.as_subclass(Tensor)
        return replace(views, sample=replace(views.sample, mask=tv_tensors.Mask(mask)), targets={"original": original})


class UsedVersions:
    """Which version of the labels is in use, and which ones the checkpoints that are still kept may need.

    Two checkpoints are kept, and a third while the newest is being written.
    """

    def __init__(self) -> None:
        self.current = 0
        self.saved: list[int] = []

    @property
    def needed(self) -> set[int]:
        """The versions that must not be deleted."""
        return {self.current, *self.saved}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Note the version in a checkpoint that is about to be written."""
        self.saved = [self.current, *self.saved[:2]]
        checkpoint["label_versions"] = list(self.saved)

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the version of a checkpoint."""
        self.saved = list(checkpoint["label_versions"])
        self.current = self.saved[0]


def require_room_for_biased(classes: Classes) -> None:
    """Refuse classes that leave no number for `BIASED`.

    Raises:
        UserError: there are more than 254.
    """
    if len(classes) > BIASED:
        raise UserError(
            f"--data: {len(classes)} classes, but no more than {BIASED} can be told from pixels to complete"
        )


def write_label_folder(folder: Path, classes: Classes, samples: Iterable[Sample]) -> None:
    """Leave images with their masks as an ordinary data set of the split `train`, in VOC's layout.

    Args:
        folder: a new folder, or one that an earlier call left unfinished.
        classes: of the masks.
        samples: each with an image and a mask.
    """
    dataset = VOC.create(folder, classes, durable=False)
    ids = []
    for sample in samples:
        dataset.write(Sample(id=sample.id, image=sample.image, mask=sample.mask))
        ids.append(sample.id)
    dataset.write_split("train", ids)
