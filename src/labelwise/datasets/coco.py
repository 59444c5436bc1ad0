"""The layout of COCO: images in folders, and json files that hold the labels of a whole split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from labelwise.datasets.base import Classes, DataSet, naming, under, unique
from labelwise.datasets.checks import require_told
from labelwise.datasets.coco_file import Document
from labelwise.datasets.coco_labels import Objects, captions_of
from labelwise.datasets.coco_writer import CocoWriter
from labelwise.datasets.image_names import ids_of, images_below
from labelwise.datasets.images import read_oriented, refuse
from labelwise.datasets.listing import CLASSES_FILE, format_classes, read_classes
from labelwise.datasets.writing import start_folder
from labelwise.errors import BadFile, Problem, UserError
from labelwise.samples import IGNORE_INDEX, Kind, Sample

_ANNOTATIONS = "annotations"
_IMAGES = "images"
_ROBOFLOW = "_annotations.coco.json"
_USUAL_SPLITS = ("train", "val", "trainval", "test")
_SPLIT_FOLDER = re.compile(r"(train|val|test|unlabell?ed)\d*$")
_BACKGROUND = "background"
_NO_LABELS = "image_info"
_PARTS = ("instances", "captions", _NO_LABELS)


@dataclass(frozen=True)
class _Split:
    """Where a split's images and labels lie, relative to the root.

    Attributes:
        folder: the folder of its images.
        own: whether all images of that folder are the split's; otherwise the files list them.
        files: the json file of each part (`instances`, `captions`, `image_info`) that there is.
    """

    folder: str
    own: bool
    files: dict[str, str]


class COCO(DataSet):
    """A COCO folder.

    =============================================  ====================================================================
    ``annotations/instances_<split>.json``         boxes and instances; ``annotations/<split>.json`` does as well
    ``annotations/captions_<split>.json``          captions
    ``annotations/image_info_<split>.json``        a list of images without labels
    ``<split>/_annotations.coco.json``             boxes and instances beside their images; ``valid`` is the split `val`
    ``<split>/``, ``images/<split>/``              images; all of such a folder are the split's, labelled or not
    ``images/``, or the root                       images of several splits; then the json files say which are whose
    ``classes.txt``                                class names, see `listing.read_classes`; not needed
    =============================================  ====================================================================

    An image's id is its name without the ending (see `image_names.ids_of`), not its number in the file. Without
    ``classes.txt`` the classes are the background and the categories of all files, in the order of their ids, which
    need not be contiguous.

    Objects with ``iscrowd`` are difficult boxes, no instances, and 255 in masks; ``ignore`` marks difficult boxes too.
    Masks, tags and points follow from the objects. An image that a file of instances lists without any annotation has
    no object; one that it does not list is unlabelled.
    """

    layout = "COCO"

    def __init__(self, root: Path | str) -> None:
        """Open the folder that holds ``annotations``, or one folder per split.

        Raises:
            UserError: it has no json file of COCO.
        """
        self.root = Path(root)
        self._documents: dict[str, Document] = {}
        self._entries: dict[tuple[str, str], dict[str, int]] = {}
        self._writer: CocoWriter | None = None
        if not self.recognises(self.root) and not (self.root / _ANNOTATIONS).is_dir():
            raise UserError(f"{root}: not a COCO folder; it needs {_ANNOTATIONS}/instances_<split>.json")

    @classmethod
    def create(cls, root: Path | str, classes: Classes, durable: bool = True) -> COCO:
        """Start an empty data set, or go on with one that was started with the same classes.

        All images go to ``images``; `write` keeps labels in a file of its own, from which `write_split` makes json
        files, until `finish` removes it.

        Args:
            root: a new or empty folder, or the folder of the started set.
            classes: the classes, written to `classes.txt`.
            durable: bring each file to the disk before the next; False for labels that can be made again.

        Raises:
            UserError: the folder holds something else.
        """
        start_folder(Path(root), CLASSES_FILE, format_classes(classes))
        (Path(root) / _ANNOTATIONS).mkdir(exist_ok=True)
        dataset = cls(root)
        dataset._writer = CocoWriter(Path(root), classes, durable)
        return dataset

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the folder has a json file in COCO's place."""
        return any(split.files for split in _splits(path).values())

    @cached_property
    def classes(self) -> Classes:  # type: ignore[override]
        """The classes; opens every file of instances unless there is `classes.txt`.

        Raises:
            UserError: two files give a category id, or a name, two meanings; or there are too many.
        """
        if (self.root / CLASSES_FILE).is_file():
            return read_classes(self.root / CLASSES_FILE)
        names: dict[int, str] = {}
        for split in self._splits.values():
            if "instances" in split.files:
                document = self._document(split.files["instances"])
                _add_categories(names, document)
        objects = [names[key] for key in sorted(names) if names[key] != _BACKGROUND]
        if len(objects) >= IGNORE_INDEX:
            raise UserError(f"{self.root}: has {len(objects)} categories; at most {IGNORE_INDEX - 1} can be told apart")
        return Classes((_BACKGROUND, *objects))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, the usual ones first."""
        usual = [name for name in _USUAL_SPLITS if name in self._splits]
        return unique([*usual, *sorted(self._splits)])

    def ids(self, split: str) -> tuple[str, ...]:
        """The images of a split: sorted by name if they have a folder of their own, else in the order of its files."""
        return tuple(self._ids[path] for path in self._paths[self.require_split(split)])

    def having(self, kind: Kind, ids: Collection[str]) -> frozenset[str]:
        """Those of the ids that a file lists with such labels; opens the files of their splits."""
        return frozenset(id for id in ids if self._source(id, kind) is not None)

    def image_file(self, id: str) -> Path:
        """The image's path."""
        if id not in self._path_of:
            raise BadFile(Problem(self.root / id, "there is no such image", "use an id of one of the splits", id))
        name = self._path_of[id]
        try:
            return under(self.root, name)
        except UserError as error:
            reason = str(error).partition(";")[0]
            raise BadFile(Problem(self.root / name, reason, "copy the file into the folder", id)) from None

    def label_files(self, id: str, kind: Kind) -> tuple[Path, ...]:
        """The json file, which all images of the split share."""
        source = self._source(id, kind)
        return () if source is None else (Path(os.path.realpath(source[0].path)),)

    def label_folders(self) -> tuple[Path, ...]:
        """The folders in which images and json files lie."""
        files = [file for split in self._splits.values() for file in split.files.values()]
        folders = {file.rpartition("/")[0] for file in [*files, *self._path_of.values()]}
        return tuple(self.root / folder for folder in sorted(folders))

    def read(self, id: str, kinds: Collection[Kind] = ()) -> Sample:
        """Read one image and its labels; captions open no file of instances, and the other way round."""
        with naming(id):
            path = self.image_file(id)
            image, orientation = read_oriented(path)
            size = (image.shape[1], image.shape[2])
            fields: dict[str, object] = {}
            objects: Objects | None = None
            for kind in kinds:
                source = self._source(id, kind)
                if source is None:
                    continue
                document, place = source
                if kind is Kind.CAPTIONS:
                    fields["captions"] = captions_of(document, place)
                    continue
                if objects is None:
                    _require_fit(path, orientation, size, document, place)
                    objects = Objects(document, place, self.classes, size)
                fields |= objects.read(kind)
            return Sample(id=id, image=image, **fields)  # type: ignore[arg-type]

    def write(self, sample: Sample) -> None:
        """Keep a sample's boxes, instances and captions for `write_split`; store its image if there is none of that id.

        Raises:
            UserError: the id cannot be a file name, or the data set was not started by `create`.
            ValueError: a label is out of range, or a box is inverted or outside the image.
            OSError: the disk is full or may not be written to.
        """
        self._started.write(sample)

    def copy_image(self, id: str, source: Path) -> None:
        """Take over an image file byte by byte, so that it does not lose quality; store one that EXIF turns upright.

        Raises:
            BadFile: the source is missing, damaged, or not an image's name.
            UserError: the data set was not started by `create`.
        """
        self._started.copy_image(id, source)

    def write_split(self, name: str, ids: Sequence[str]) -> None:
        """Write a split's json files from what was written for its images.

        Args:
            name: the split.
            ids: its images, which must have been written.

        Raises:
            UserError: an image was not written, or the name cannot be a file name.
        """
        self._started.write_split(name, unique(ids))
        for cached in ("_splits", "_paths", "_ids", "_path_of", "_splits_of"):
            self.__dict__.pop(cached, None)
        self._documents.clear()
        self._entries.clear()

    def finish(self) -> None:
        """Remove what was kept to make json files from."""
        self._started.finish()

    @property
    def _started(self) -> CocoWriter:
        if self._writer is None:
            raise UserError(f"{self.root}: labels cannot be added to the files of COCO; write a new data set")
        return self._writer

    # ------------------------------------------------------------------ names

    @cached_property
    def _splits(self) -> dict[str, _Split]:
        return _splits(self.root)

    @cached_property
    def _paths(self) -> dict[str, tuple[str, ...]]:
        """The images of each split, relative to the root."""
        return {
            name: images_below(self.root, split.folder) if split.own else self._listed(split)
            for name, split in self._splits.items()
        }

    def _listed(self, split: _Split) -> tuple[str, ...]:
        """The images that the files of a split list; a list of images alone gives the order."""
        files = [split.files[part] for part in reversed(_PARTS) if part in split.files]
        return unique([path for file in files for path in self._found(split, self._document(file))])

    def _found(self, split: _Split, document: Document) -> list[str]:
        """Where the images that a file lists are, relative to the root.

        Raises:
            BadFile: some are missing, or outside the data set's folder.
        """
        start = f"{split.folder}/" if split.folder else ""
        places = [self._place(start, image.name) for image in document.images]
        missing = [image.name for image, place in zip(document.images, places, strict=True) if place is None]
        for name in missing:
            try:
                under(self.root / split.folder, name)
            except UserError as error:
                refuse(document.path, str(error).partition(";")[0], "use names below that folder only")
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            refuse(
                document.path,
                f"it lists {len(missing)} of {len(places)} images that {self.root / split.folder} lacks: {shown}",
                "add the images, or take them out of the file",
            )
        return [place for place in places if place is not None]

    def _place(self, start: str, name: str) -> str | None:
        """An image's path from the folder of its split, or from the root, as some tools write it."""
        return next((path for path in (start + name, name) if path in self._every), None)

    @cached_property
    def _every(self) -> frozenset[str]:
        """All images below the folders of the splits."""
        folders = {split.folder for split in self._splits.values()}
        return frozenset(path for folder in folders for path in images_below(self.root, folder))

    @cached_property
    def _ids(self) -> dict[str, str]:
        return ids_of(path for paths in self._paths.values() for path in paths)

    @cached_property
    def _path_of(self) -> dict[str, str]:
        return {id: path for path, id in self._ids.items()}

    @cached_property
    def _splits_of(self) -> dict[str, list[str]]:
        splits: dict[str, list[str]] = {}
        for name, paths in self._paths.items():
            for path in paths:
                splits.setdefault(self._ids[path], []).append(name)
        return splits

    # ----------------------------------------------------------------- labels

    def _document(self, file: str) -> Document:
        if file not in self._documents:
            try:
                path = under(self.root, file)
            except UserError as error:
                refuse(self.root / file, str(error).partition(";")[0], "copy the file into the folder")
            self._documents[file] = Document(path)
        return self._documents[file]

    def _source(self, id: str, kind: Kind) -> tuple[Document, int] | None:
        """The file that has labels of this kind for an image, and the image's place in it."""
        if kind is Kind.MAPS:
            return None
        part = "captions" if kind is Kind.CAPTIONS else "instances"
        for split in self._splits_of.get(id, ()):
            place = self._listing(split, part).get(id)
            if place is None:
                continue
            document = self._document(self._splits[split].files[part])
            if _has(document, place, kind):
                return document, place
        return None

    def _listing(self, split: str, part: str) -> dict[str, int]:
        """The places of a split's images in one of its files."""
        if (split, part) not in self._entries:
            file = self._splits[split].files.get(part)
            paths = [] if file is None else self._found(self._splits[split], self._document(file))
            self._entries[split, part] = {self._ids[path]: place for place, path in enumerate(paths)}
        return self._entries[split, part]


def _has(document: Document, place: int, kind: Kind) -> bool:
    match kind:
        case Kind.CAPTIONS:
            return document.count(place) > 0
        case Kind.BOXES | Kind.TAGS:
            return True
        case _:
            return document.segmented(place)


def _require_fit(path: Path, orientation: int, size: tuple[int, int], document: Document, place: int) -> None:
    """Refuse labels that were made for another image than the one at hand."""
    stated = document.images[place].size
    require_told(path, orientation, size, stated)
    if stated not in (None, size):
        shown = f"{stated[1]}x{stated[0]}" if stated else ""
        reason = f"it states {shown} pixels for '{document.images[place].name}', which has {size[1]}x{size[0]}"
        refuse(document.path, reason, "scale its annotations, or restore the image")


def _add_categories(names: dict[int, str], document: Document) -> None:
    """Add the categories of a file to those of the others."""
    for key, name in document.categories.items():
        other = next((other for other, known in names.items() if known == name), key)
        if names.get(key, name) != name or other != key:
            reason = f"category {key} is '{name}', but another file calls {other} '{names.get(key, name)}'"
            refuse(document.path, reason, "give each category one id in all files, or list the names in classes.txt")
        names[key] = name


def _splits(root: Path) -> dict[str, _Split]:
    """The splits by the names of files and folders."""
    files = _files(root)
    if not files:
        return {}
    shared = _IMAGES if (root / _IMAGES).is_dir() else ""
    own = {_split_name(folder): folder for folder in _split_folders(root, files)}
    return {name: _Split(own.get(name, shared), name in own, files.get(name, {})) for name in [*files, *own]}


def _split_name(folder: str) -> str:
    name = folder.rpartition("/")[2]
    return "val" if name == "valid" else name


def _split_folders(root: Path, files: Collection[str]) -> list[str]:
    """The folders that are a split's own: named like one with labels, or as splits of bare images usually are."""
    below = [path for above in (root / _IMAGES, root) if above.is_dir() for path in sorted(above.iterdir())]
    folders = [path.relative_to(root).as_posix() for path in below if path.is_dir()]
    return [folder for folder in folders if _split_name(folder) in files or _SPLIT_FOLDER.match(_split_name(folder))]


def _files(root: Path) -> dict[str, dict[str, str]]:
    """The json files of each split: split -> part -> path relative to the root."""
    found: dict[str, dict[str, str]] = {}
    names = sorted(path.stem for path in (root / _ANNOTATIONS).glob("*.json")) if root.is_dir() else []
    for name in names:
        for part in _PARTS:
            if name.startswith(f"{part}_"):
                found.setdefault(name.removeprefix(f"{part}_"), {})[part] = f"{_ANNOTATIONS}/{name}.json"
    for name in names:
        plain = name in _USUAL_SPLITS or any((root / folder).is_dir() for folder in (name, f"{_IMAGES}/{name}"))
        if plain:
            found.setdefault(name, {}).setdefault("instances", f"{_ANNOTATIONS}/{name}.json")
    for path in sorted(root.glob(f"*/{_ROBOFLOW}")) if root.is_dir() else []:
        folder = path.parent.name
        found.setdefault(_split_name(folder), {})["instances"] = f"{folder}/{_ROBOFLOW}"
    if (root / _ROBOFLOW).is_file():
        found.setdefault("train", {})["instances"] = _ROBOFLOW
    return found
