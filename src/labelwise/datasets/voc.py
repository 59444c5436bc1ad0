"""The folder layout of PASCAL VOC 2007 and 2012: the native format of this package."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labelwise.datasets.base import Classes, DataSet, naming, under, unique, voc_palette
from labelwise.datasets.derive import ORIGINS, mask_of_instances, top_instance
from labelwise.datasets.images import (
    IMAGE_SUFFIXES,
    checked_mask,
    encode_mask,
    read_oriented,
)
from labelwise.datasets.listing import (
    CLASSES_FILE,
    format_classes,
    held_out,
    listed_id,
    read_classes,
    read_lines,
    stems,
)
from labelwise.datasets.score_maps import encode_score_maps
from labelwise.datasets.voc_labels import Labels, format_points, read_tag_list
from labelwise.datasets.voc_xml import format_annotation, read_annotation
from labelwise.datasets.writing import file_name, put_image, take_image
from labelwise.errors import BadFile, Problem, UserError
from labelwise.files import atomic_write
from labelwise.samples import IGNORE_INDEX, Kind, Sample

VOC_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The background and the 20 classes of VOC."""

_IMAGES = "JPEGImages"
_ANNOTATIONS = "Annotations"
_MASKS = "SegmentationClass"
_MORE_MASKS = "SegmentationClassAug"
_OBJECTS = "SegmentationObject"
_POINTS = "Points"
_CAPTIONS = "Captions"
_MAPS = "ScoreMaps"
_LISTS = ("Segmentation", "Main")
_SUFFIXES: dict[str, Sequence[str]] = {
    _IMAGES: IMAGE_SUFFIXES,
    _ANNOTATIONS: (".xml",),
    _MASKS: (".png",),
    _MORE_MASKS: (".png",),
    _OBJECTS: (".png",),
    _POINTS: (".json",),
    _CAPTIONS: (".txt",),
    _MAPS: (".npz",),
    "ImageSets/Segmentation": (".txt",),
    "ImageSets/Main": (".txt",),
}
_USUAL_SPLITS = ("train", "val", "trainval", "test")
_PEEK = 8


class VOC(DataSet):
    """A VOC folder.

    ========================================  ======================================================================
    ``JPEGImages/<id>.jpg``                   images (any format of `images.FORMATS`, by any of its endings)
    ``SegmentationClass/<id>.png``            masks; ``SegmentationClassAug`` counts for ids that lack one here
    ``SegmentationObject/<id>.png``           instances; their classes are those of most of their pixels in the mask
    ``Annotations/<id>.xml``                  boxes
    ``ImageSets/Main/<class>_<split>.txt``    tags: ``<id> 1``, ``-1``, or ``0`` where all objects are difficult
    ``Points/<id>.json``                      points, see `voc_labels.read_points`
    ``Captions/<id>.txt``                     captions, one per line
    ``ScoreMaps/<id>.npz``                    score maps, see `score_maps.read_score_maps`
    ``ImageSets/{Segmentation,Main}``         id lists: the splits
    ``classes.txt``                           class names, see `listing.read_classes`
    ========================================  ======================================================================

    A plain split name means the list of ``Segmentation`` or, failing that, of ``Main``; ``Main/train`` names one of
    them. Without any list a fifth of the images, chosen by their ids, is ``val`` and the others are ``train``.

    Without ``classes.txt`` the classes are those of VOC, unless there is no mask and the first annotations name others:
    then they are the background and the names in all annotations, sorted.
    """

    layout = "VOC"

    def __init__(self, root: Path | str) -> None:
        """Open a year's folder, or a ``VOCdevkit`` with exactly one year in it.

        Raises:
            UserError: no VOC folder, or several.
        """
        years = _years(Path(root))
        if not years:
            raise UserError(f"{root}: not a VOC folder; it needs a folder {_IMAGES}, or a VOC20xx with one")
        if len(years) > 1:
            raise UserError(f"{root}: holds {', '.join(year.name for year in years)}; name one of them")
        self.root = years[0]
        self._listings: dict[str, dict[str, str]] = {}
        self._written_tags: dict[str, Tensor] = {}
        self._durable = True

    @classmethod
    def create(cls, root: Path | str, classes: Classes, durable: bool = True) -> VOC:
        """Start an empty data set, or go on with one that was started with the same classes.

        Args:
            root: a new or empty folder, or the folder of the started set.
            classes: the classes, written to `classes.txt`.
            durable: bring each file to the disk before the next; False for labels that can be made again.

        Raises:
            UserError: the folder holds something else.
        """
        root = Path(root)
        text = format_classes(classes)
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: is a file; name a new or empty folder")
        if root.is_dir() and any(root.iterdir()) and _text(root / CLASSES_FILE) != text:
            what = "a data set with other classes" if (root / _IMAGES).is_dir() else "something else"
            raise UserError(f"{root}: holds {what} already; name a new or empty folder")
        root.mkdir(parents=True, exist_ok=True)
        atomic_write(root / CLASSES_FILE, text.encode())
        (root / _IMAGES).mkdir(exist_ok=True)
        dataset = cls(root)
        dataset._durable = durable
        return dataset

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the folder has images in VOC's place, itself or in a year below it."""
        return bool(_years(path))

    @cached_property
    def classes(self) -> Classes:  # type: ignore[override]
        """The classes; annotations are looked at only where there is neither `classes.txt` nor a mask."""
        if (self.root / CLASSES_FILE).is_file():
            return read_classes(self.root / CLASSES_FILE)
        # Sorted names say nothing about the numbers in masks, so masks without a list of classes are VOC's.
        if self._names(_MASKS) or self._names(_MORE_MASKS) or self._names_of(_PEEK) <= set(VOC_NAMES):
            return Classes(VOC_NAMES)
        return Classes(("background", *sorted(self._names_of(None) - {"background"})))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the id lists, the usual ones first."""
        names = {name for kind in _LISTS for name in self._lists(kind)}
        usual = [name for name in _USUAL_SPLITS if name in names]
        return unique([*usual, *sorted(names)]) if names else ("train", "val")

    def ids(self, split: str) -> tuple[str, ...]:
        """The ids of a split's list; endings, further columns, blank lines and repetitions are passed over."""
        path = self._list_file(split)
        images = self._names(_IMAGES)
        if path is None:
            self.require_split(split)
            return tuple(id for id in images if held_out(id) == (split == "val"))
        ids = unique([listed_id(line, images) for line in read_lines(path)])
        missing = [id for id in ids if id not in images]
        for id in missing:
            self._under(id, path, self.root / _IMAGES)
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise UserError(
                f"{path}: split '{split}' names {len(missing)} of {len(ids)} images that {self.root / _IMAGES} lacks: "
                f"{shown}; add the images, or take the names out of the list"
            )
        return ids

    def having(self, kind: Kind, ids: Collection[str]) -> frozenset[str]:
        """Those of the ids with a file to read this kind from; looks at names only."""
        return frozenset(id for id in ids if self.origin(id, kind) is not None)

    def image_file(self, id: str) -> Path:
        """The image's path."""
        folder = self.root / _IMAGES
        name = self._names(_IMAGES).get(id)
        if name is not None:
            return self._under(f"{_IMAGES}/{name}", folder / name)
        path = self._under(id, folder, folder)
        raise BadFile(Problem(path, "there is no such image", "add it, or take its id out of the split", id))

    def label_files(self, id: str, kind: Kind) -> tuple[Path, ...]:
        """The files that reading this kind opens for this image; tag lists are shared by a split."""
        origin = self.origin(id, kind)
        names = () if origin is None else self._stored(id, origin)
        return tuple(self._under(name, self.root) for name in names)

    def label_folders(self) -> tuple[Path, ...]:
        """The folders in which any file of an image or its labels can lie."""
        return tuple(self.root / folder for folder in _SUFFIXES)

    def origin(self, id: str, kind: Kind) -> Kind | None:
        """The kind whose files give this kind for this image: itself, a stronger one, or None."""
        return next((origin for origin in ORIGINS[kind] if self._stored(id, origin)), None)

    def read(self, id: str, kinds: Collection[Kind] = ()) -> Sample:
        """Read one image and its labels; see `derive.ORIGINS` for what is derived from what."""
        with naming(id):
            image, orientation = read_oriented(self.image_file(id))
            labels = Labels(self, id, (image.shape[1], image.shape[2]), orientation)
            fields: dict[str, object] = {}
            for kind in kinds:
                fields |= labels.read(kind)
            return Sample(id=id, image=image, **fields)  # type: ignore[arg-type]

    def listed_tags(self, id: str) -> Tensor:
        """The tags of an image in the lists of its split. [C] uint8, as in `Sample`."""
        split = self._tag_splits[id]
        if split not in self._tag_tables:
            ids = [other for other, its_split in self._tag_splits.items() if its_split == split]
            table = np.zeros((len(ids), len(self.classes)), dtype=np.uint8)
            for number, name in zip(self.classes.objects, self._tag_lists(split), strict=True):
                table[:, number] = read_tag_list(self._under(name, self.root), ids)
            self._tag_tables[split] = dict(zip(ids, torch.from_numpy(table), strict=True))
        return self._tag_tables[split][id]

    def write(self, sample: Sample) -> None:
        """Write a sample's labels, and its image as a JPEG of quality 95 if there is none of that id.

        Tags have no file of their own in VOC's layout; they are kept and written with the lists of the splits.

        Raises:
            UserError: the id cannot be a file name.
            ValueError: a label is out of range, or a box is inverted or outside the image.
            OSError: the disk is full or may not be written to; no file is left in part.
        """
        id = file_name(sample.id)
        if id not in self._names(_IMAGES):
            self._names(_IMAGES)[id] = put_image(self.root / _IMAGES, id, sample.image)
        self._write_masks(sample)
        if sample.boxes is not None:
            self._put(_ANNOTATIONS, id, ".xml", self._annotation(sample))
        if sample.points is not None and sample.point_labels is not None:
            points = format_points(id, sample.points.as_subclass(Tensor), sample.point_labels, self.classes)
            self._put(_POINTS, id, ".json", points)
        if sample.captions is not None:
            captions = [" ".join(caption.split()) for caption in sample.captions]
            self._put(_CAPTIONS, id, ".txt", "".join(f"{caption}\n" for caption in captions).encode())
        if sample.maps is not None:
            self._put(_MAPS, id, ".npz", encode_score_maps(sample.maps, self.classes))
        if sample.tags is not None:
            self._written_tags[id] = sample.tags

    def copy_image(self, id: str, source: Path) -> None:
        """Take over an image file byte by byte, so that it does not lose quality; store one that EXIF turns upright.

        Raises:
            BadFile: the source is missing, damaged, or not an image's name.
        """
        self._names(_IMAGES)[id] = take_image(self.root / _IMAGES, id, source, self._durable)

    def write_split(self, name: str, ids: Sequence[str]) -> None:
        """Write a split's id lists, and its tag lists if tags were written for all of its images.

        Args:
            name: the split; ``Segmentation/<name>`` or ``Main/<name>`` writes one of the two lists alone.
            ids: its images, which must exist.

        Raises:
            UserError: an image is missing, or the name cannot be a file name.
        """
        missing = [id for id in ids if id not in self._names(_IMAGES)]
        if missing:
            raise UserError(f"split '{name}' names {len(missing)} images that {self.root} lacks: {missing[0]}, ...")
        folder, _, name = name.rpartition("/")
        content = "".join(f"{id}\n" for id in unique(ids)).encode()
        for kind in (folder,) if folder in _LISTS else _LISTS:
            self._put(f"ImageSets/{kind}", file_name(name), ".txt", content)
        if ids and all(id in self._written_tags for id in ids):
            self._write_tag_lists(name, unique(ids))
        self._forget_tag_lists()

    # ------------------------------------------------------------------ names

    def _names(self, folder: str) -> dict[str, str]:
        """The files of a folder, listed once: stem -> file name."""
        if folder not in self._listings:
            self._listings[folder] = stems(self.root / folder, _SUFFIXES[folder])
        return self._listings[folder]

    def _under(self, name: str, source: Path, folder: Path | None = None) -> Path:
        """A path below a folder (the root), or the problem of the file that named it."""
        try:
            return under(folder or self.root, name)
        except UserError as error:
            raise BadFile(Problem(source, str(error).partition(";")[0], "use names below that folder only")) from None

    def _stored(self, id: str, kind: Kind) -> tuple[str, ...]:
        """The files of this very kind, relative to the root; a mask comes with instances, for their classes."""
        match kind:
            case Kind.MASKS:
                return self._first(id, _MASKS, _MORE_MASKS)
            case Kind.INSTANCES:
                files = self._first(id, _OBJECTS) + self._first(id, _MASKS, _MORE_MASKS)
                return files if len(files) == 2 else ()
            case Kind.BOXES:
                return self._first(id, _ANNOTATIONS)
            case Kind.TAGS:
                return self._tag_lists(self._tag_splits[id]) if id in self._tag_splits else ()
            case Kind.POINTS:
                return self._first(id, _POINTS)
            case Kind.CAPTIONS:
                return self._first(id, _CAPTIONS)
            case Kind.MAPS:
                return self._first(id, _MAPS)

    def _first(self, id: str, *folders: str) -> tuple[str, ...]:
        found = (f"{folder}/{self._names(folder)[id]}" for folder in folders if id in self._names(folder))
        return tuple(islice(found, 1))

    def _names_of(self, count: int | None) -> set[str]:
        """The class names in the first annotations, or in all; damaged ones are left to whoever reads them."""
        names: set[str] = set()
        for name in islice(self._names(_ANNOTATIONS).values(), count):
            try:
                names.update(read_annotation(self.root / _ANNOTATIONS / name).names)
            except BadFile:
                continue
        return names

    # ----------------------------------------------------------------- splits

    def _lists(self, kind: str) -> list[str]:
        """The splits of ``ImageSets/<kind>``, without the tag lists ``<class>_<split>``."""
        names = self._names(f"ImageSets/{kind}")
        tagged = {name for name in names if name.rpartition("_")[2] in {*names, *_USUAL_SPLITS} - {name}}
        return [name for name in names if name not in tagged or name.rpartition("_")[0] not in self.classes.names]

    def _list_file(self, split: str) -> Path | None:
        """The id list of a split, or None where the folder has no lists at all."""
        folder, _, name = split.rpartition("/")
        kinds = (folder,) if folder in _LISTS else _LISTS
        for kind in kinds:
            if name in self._lists(kind):
                return self._under(f"ImageSets/{kind}/{self._names(f'ImageSets/{kind}')[name]}", self.root)
        if any(self._lists(kind) for kind in _LISTS):
            self.require_split(split)
            raise UserError(f"{self.root}: there is no list '{split}' in ImageSets")
        return None

    # ------------------------------------------------------------------- tags

    @cached_property
    def _tag_tables(self) -> dict[str, dict[str, Tensor]]:
        return {}

    @cached_property
    def _tag_splits(self) -> dict[str, str]:
        """The split in whose tag lists an image stands, for splits that have a list for every class."""
        splits: dict[str, str] = {}
        for split in self.splits:
            if self._tag_lists(split):
                for id in self.ids(f"Main/{split}"):
                    splits.setdefault(id, split)
        return splits

    def _tag_lists(self, split: str) -> tuple[str, ...]:
        names = self._names("ImageSets/Main")
        if not any(name.endswith(f"_{split}") for name in names) or split not in names:
            return ()
        lists = [names.get(f"{self.classes.names[number]}_{split}") for number in self.classes.objects]
        return tuple(f"ImageSets/Main/{name}" for name in lists if name) if all(lists) else ()

    def _write_tag_lists(self, split: str, ids: Sequence[str]) -> None:
        values = {1: " 1", 0: "-1", IGNORE_INDEX: " 0"}
        tags = torch.stack([self._written_tags[id] for id in ids])
        for number in self.classes.objects:
            lines = [f"{id} {values[tag]}\n" for id, tag in zip(ids, tags[:, number].tolist(), strict=True)]
            name = file_name(f"{self.classes.names[number]}_{split}")
            self._put("ImageSets/Main", name, ".txt", "".join(lines).encode())

    def _forget_tag_lists(self) -> None:
        for name in ("_tag_splits", "_tag_tables"):
            self.__dict__.pop(name, None)

    # ---------------------------------------------------------------- writing

    def _write_masks(self, sample: Sample) -> None:
        mask = None if sample.mask is None else sample.mask.as_subclass(Tensor)
        if sample.instances is not None and sample.instance_labels is not None:
            instances = sample.instances.as_subclass(Tensor)
            if len(instances) >= IGNORE_INDEX:
                raise ValueError(f"{len(instances)} objects in one image, but a VOC folder holds at most 254")
            if mask is None:
                mask = mask_of_instances(instances, sample.instance_labels, self.classes.background)
            objects = top_instance(instances).to(torch.uint8)
            self._put(_OBJECTS, sample.id, ".png", encode_mask(objects, voc_palette()))
        if mask is not None:
            self._put(_MASKS, sample.id, ".png", encode_mask(checked_mask(mask, self.classes), self.classes.palette))

    def _annotation(self, sample: Sample) -> bytes:
        if sample.boxes is None or sample.box_labels is None:
            raise ValueError(f"the boxes of '{sample.id}' come without their labels")
        boxes = sample.boxes.as_subclass(Tensor).cpu().numpy()
        difficult = torch.zeros(len(boxes), dtype=torch.bool) if sample.difficult is None else sample.difficult
        return format_annotation(
            self._names(_IMAGES)[sample.id],
            (sample.image.shape[1], sample.image.shape[2]),
            [self.classes.names[label] for label in sample.box_labels.tolist()],
            boxes,
            difficult.cpu().numpy(),
            segmented=sample.mask is not None or sample.instances is not None,
        )

    def _put(self, folder: str, id: str, suffix: str, content: bytes) -> None:
        atomic_write(self._room(folder) / f"{id}{suffix}", content, durable=self._durable)
        self._names(folder)[id] = f"{id}{suffix}"

    def _room(self, folder: str) -> Path:
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        return path


def _text(path: Path) -> str | None:
    return path.read_text("utf-8", errors="replace") if path.is_file() else None


def _years(path: Path) -> list[Path]:
    if (path / _IMAGES).is_dir():
        return [path]
    if not path.is_dir():
        return []
    return sorted(child for child in path.glob("VOC*") if (child / _IMAGES).is_dir())
