"""Plain folders: images, and for some or all of them a mask of the same name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes, DataSet, naming, under
from labelwise.datasets.checks import require_size, require_told
from labelwise.datasets.derive import ORIGINS, points_of_mask, tags_of_mask
from labelwise.datasets.images import IMAGE_SUFFIXES, read_labels, read_mask, read_oriented, write_mask
from labelwise.datasets.listing import CLASSES_FILE, held_out, read_classes, stems
from labelwise.errors import BadFile, Problem, UserError
from labelwise.samples import IGNORE_INDEX, Kind, Sample


@dataclass(frozen=True)
class Pair:
    """A folder of images and the folder of their masks, relative to the root."""

    images: str
    masks: str


@dataclass(frozen=True)
class Files:
    """An image's split and files, relative to the root; the folder that its mask is in or would be written to."""

    split: str
    image: str
    mask: str | None
    mask_folder: str


class Folders(DataSet):
    """Images and masks in one of three arrangements; masks may be missing for some images, or altogether.

    - ``train/images``, ``train/masks``, ``val/images``, ``val/masks``
    - ``images/train``, ``masks/train``, ``images/val``, ``masks/val``
    - ``images``, ``masks``: a fifth of the images, chosen by their names, is ``val`` and the others are ``train``

    A mask is an index PNG with the stem of its image, which is also the image's id; where two splits have images of
    the same stem, all ids are ``<split>_<stem>``. The classes are those of ``classes.txt`` (see
    `listing.read_classes`). Without it they are called ``class_0`` (the background) to ``class_k``, and finding k
    means to read every mask once.
    """

    layout = "folders"

    def __init__(self, root: Path | str) -> None:
        """Open a folder.

        Raises:
            UserError: it has none of the arrangements.
        """
        self.root = Path(root)
        self._pairs = self._arrangement(self.root)
        if not self._pairs:
            raise UserError(f"{root}: has none of the folders images, train/images, images/train")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the folder has one of the arrangements."""
        return bool(cls._arrangement(path))

    @classmethod
    def _arrangement(cls, path: Path) -> dict[str, Pair]:
        """The folders of each split; the split "" is to be divided by the images' names."""
        names = ("train", "val", "test")
        by_split = {name: Pair(f"{name}/images", f"{name}/masks") for name in names}
        by_kind = {name: Pair(f"images/{name}", f"masks/{name}") for name in names}
        flat = {"": Pair("images", "masks")}
        for pairs in (by_split, by_kind, flat):
            found = {name: pair for name, pair in pairs.items() if (path / pair.images).is_dir()}
            if found:
                return found
        return {}

    @cached_property
    def classes(self) -> Classes:  # type: ignore[override]
        """The classes of `classes.txt`, or as many as the masks use.

        Raises:
            UserError: there is neither `classes.txt` nor a mask.
        """
        if (self.root / CLASSES_FILE).is_file():
            return read_classes(self.root / CLASSES_FILE)
        masks = [under(self.root, files.mask) for files in self._files.values() if files.mask]
        if not masks:
            raise UserError(
                f"{self.root}: it has no masks, so its classes are unknown; "
                f"add {self.root / CLASSES_FILE} with one class name per line, the background first"
            )
        most = max(_greatest(read_labels(path)[0]) for path in masks)
        return Classes(tuple(f"class_{number}" for number in range(most + 1)))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose folders exist; `train` and `val` where images are not sorted into splits."""
        return ("train", "val") if "" in self._pairs else tuple(self._pairs)

    def ids(self, split: str) -> tuple[str, ...]:
        """The images of a split, sorted by name."""
        self.require_split(split)
        return tuple(id for id, files in self._files.items() if files.split == split)

    def having(self, kind: Kind, ids: Collection[str]) -> frozenset[str]:
        """Those of the ids that have a mask, for the kinds that a mask gives."""
        if Kind.MASKS not in ORIGINS[kind]:
            return frozenset()
        return frozenset(id for id in ids if id in self._files and self._files[id].mask)

    def image_file(self, id: str) -> Path:
        """The image's path."""
        if id not in self._files:
            raise BadFile(Problem(self.root / id, "there is no such image", "use an id of one of the splits", id))
        return self._under(self._files[id].image, id)

    def label_files(self, id: str, kind: Kind) -> tuple[Path, ...]:
        """The mask, for the kinds that it gives."""
        mask = self._files[id].mask if id in self._files and Kind.MASKS in ORIGINS[kind] else None
        return () if mask is None else (self._under(mask, id),)

    def label_folders(self) -> tuple[Path, ...]:
        """The folders of images and masks of all splits."""
        return tuple(self.root / folder for pair in self._pairs.values() for folder in (pair.images, pair.masks))

    def read(self, id: str, kinds: Collection[Kind] = ()) -> Sample:
        """Read one image and, where a kind asked for comes from it, its mask."""
        with naming(id):
            image, orientation = read_oriented(self.image_file(id))
            files = {path for kind in kinds for path in self.label_files(id, kind)}
            if not files:
                return Sample(id=id, image=image)
            path = files.pop()
            mask = self._read_mask(path)
            size = (image.shape[1], image.shape[2])
            require_size(path, (mask.shape[0], mask.shape[1]), size)
            require_told(self.image_file(id), orientation, size, size)
        points, labels = points_of_mask(mask) if Kind.POINTS in kinds else (None, None)
        return Sample(
            id=id,
            image=image,
            mask=mask if Kind.MASKS in kinds else None,
            tags=tags_of_mask(mask, self.classes) if Kind.TAGS in kinds else None,
            points=None if points is None else tv_tensors.KeyPoints(points, canvas_size=size),
            point_labels=labels,
        )

    def write(self, sample: Sample) -> None:
        """Write the mask of an image that is there already.

        Raises:
            UserError: the image is not there, or the sample has no mask; VOC folders hold everything.
            ValueError: the mask has a label that no class has.
            OSError: the disk is full or may not be written to.
        """
        if sample.mask is None or sample.id not in self._files:
            raise UserError(
                f"{self.root}: plain folders take masks of their own images only; write a VOC folder instead"
            )
        folder = self.root / self._files[sample.id].mask_folder
        folder.mkdir(parents=True, exist_ok=True)
        stem = Path(self._files[sample.id].image).stem
        write_mask(folder / f"{stem}.png", sample.mask.as_subclass(Tensor), self.classes)
        self.__dict__.pop("_files")

    def _read_mask(self, path: Path) -> tv_tensors.Mask:
        return read_mask(path, self.classes)

    @cached_property
    def _files(self) -> dict[str, Files]:
        """Every image's files by its id; folders are listed once."""
        listed = {split: stems(self.root / pair.images, IMAGE_SUFFIXES) for split, pair in self._pairs.items()}
        count = Counter(stem for images in listed.values() for stem in images)
        repeated = any(number > 1 for number in count.values())
        files: dict[str, Files] = {}
        for split, images in listed.items():
            pair = self._pairs[split]
            masks = stems(self.root / pair.masks, (".png",))
            self._require_partners(images, masks, pair)
            for stem, name in images.items():
                place = split or ("val" if held_out(stem) else "train")
                mask = f"{pair.masks}/{masks[stem]}" if stem in masks else None
                id = f"{split}_{stem}" if repeated else stem
                files[id] = Files(place, f"{pair.images}/{name}", mask, pair.masks)
        return files

    def _require_partners(self, images: Collection[str], masks: dict[str, str], pair: Pair) -> None:
        """Refuse masks that were all named otherwise than the images, instead of finding no label."""
        if masks and images and not any(stem in masks for stem in images):
            raise UserError(
                f"{self.root / pair.masks}: no mask has the name of an image (there is {next(iter(masks.values()))}, "
                f"but the first image is {next(iter(images))}); name each mask like its image, with .png"
            )

    def _under(self, name: str, id: str) -> Path:
        try:
            return under(self.root, name)
        except UserError as error:
            reason = str(error).partition(";")[0]
            raise BadFile(Problem(self.root / name, reason, "copy the file into the folder", id)) from None


def _greatest(labels: np.ndarray) -> int:
    """The greatest class number in a mask; a mask that is ignored altogether has only the background."""
    return int(labels[labels != IGNORE_INDEX].max(initial=0))
