"""The layout of YOLO, as Ultralytics and Roboflow write it: a text file of objects beside each image."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from labelwise.datasets.base import Classes, DataSet, naming, under, unique
from labelwise.datasets.checks import require_told
from labelwise.datasets.image_names import ids_of, images_below, is_image
from labelwise.datasets.images import read_oriented, read_text, refuse
from labelwise.datasets.listing import held_out
from labelwise.datasets.listing import read_lines as read_names
from labelwise.datasets.writing import file_name, objects_of, put_image, start_folder, take_image
from labelwise.datasets.yolo_labels import Objects, format_objects, read_lines
from labelwise.errors import BadFile, Problem, UserError
from labelwise.files import atomic_write
from labelwise.samples import IGNORE_INDEX, Kind, Sample

_IMAGES = "images"
_LABELS = "labels"
_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names")
_USUAL_SPLITS = ("train", "val", "test")
_FOLDERS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_BACKGROUND = "background"
_YAML_LIMIT = 1_000_000
_PEEK = 20
_OTHER_KEYS = ("path", "names", "nc", "download")


@dataclass(frozen=True)
class _Image:
    """An image of the data set, and where the text file of its objects would be, relative to the root."""

    path: str
    label: str


class YOLO(DataSet):
    """A YOLO folder.

    ======================================  ===========================================================================
    ``data.yaml``                           ``names`` (a list, or by number) and folders or lists of images per split
    ``classes.txt``, ``obj.names``          the names where there is no ``data.yaml``, one per line
    ``images/<split>``, ``labels/<split>``  images, and text files of the same names; without ``data.yaml`` also
    ``<split>/images``, ``<split>/labels``  found by these names (``valid`` is the split `val`)
    ``images``, ``labels``                  images not sorted into splits: a fifth of them, by their names, is ``val``
    ======================================  ===========================================================================

    A line of a text file is an object: ``class x y width height`` or ``class x1 y1 x2 y2 ...``, see `yolo_labels`. An
    empty file says that there is no object; **an image without a file is unlabelled**, which YOLO's own trainers take
    for an image without objects. Class 0 of the files is class 1 here; 0 is the background.

    Polygons give instances and masks, boxes and tags. Whether a data set has polygons is judged by the first files. An
    object with a box among polygons is 255 in masks.

    `path` in ``data.yaml`` counts only if it is a folder below this one, as it usually names another machine's disk.
    """

    layout = "YOLO"

    def __init__(self, root: Path | str) -> None:
        """Open the folder that holds ``data.yaml`` or ``labels``.

        Raises:
            UserError: it has neither.
        """
        self.root = Path(root)
        self._polygons = False
        self._durable = True
        if not self.recognises(self.root):
            raise UserError(f"{root}: not a YOLO folder; it needs data.yaml, or the folders images and labels")

    @classmethod
    def create(cls, root: Path | str, classes: Classes, polygons: bool = False, durable: bool = True) -> YOLO:
        """Start an empty data set, or go on with one that was started with the same classes.

        Images go to ``images``, and `write_split` lists those of a split in ``<split>.txt``.

        Args:
            root: a new or empty folder, or the folder of the started set.
            classes: the classes; the background gets no number.
            polygons: write outlines of objects with a mask instead of their boxes.
            durable: bring each file to the disk before the next; False for labels that can be made again.

        Raises:
            UserError: the folder holds something else.
        """
        names = [classes.names[number] for number in classes.objects]
        start_folder(Path(root), _NAMES[0], "".join(f"{name}\n" for name in names))
        for folder in (_IMAGES, _LABELS):
            (Path(root) / folder).mkdir(exist_ok=True)
        _write_yaml(Path(root), names)
        dataset = cls(root)
        dataset._polygons, dataset._durable = polygons, durable
        return dataset

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the folder has YOLO's ``data.yaml``, or text files in the place of labels."""
        patterns = (f"{_LABELS}/*.txt", f"{_LABELS}/*/*.txt", f"*/{_LABELS}/*.txt")
        return _yaml_file(path) is not None or any(any(path.glob(pattern)) for pattern in patterns)

    @cached_property
    def classes(self) -> Classes:  # type: ignore[override]
        """The background and the names.

        Raises:
            UserError: there are no names.
            BadFile: the names are none, or a name stands there twice.
        """
        return Classes((_BACKGROUND, *(name for name in self._names if name != _BACKGROUND)))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose images exist, the usual ones first."""
        found = self._paths
        return unique([*(name for name in _USUAL_SPLITS if name in found), *sorted(found)])

    def ids(self, split: str) -> tuple[str, ...]:
        """The images of a split: sorted by name, or in the order of its list."""
        return tuple(self._ids[path] for path in self._paths[self.require_split(split)])

    def having(self, kind: Kind, ids: Collection[str]) -> frozenset[str]:
        """Those of the ids with a text file; for instances and masks only if the first files have polygons."""
        if kind in (Kind.CAPTIONS, Kind.MAPS) or (kind not in (Kind.BOXES, Kind.TAGS) and not self._has_polygons):
            return frozenset()
        return frozenset(id for id in ids if id in self._images and self._images[id].label in self._label_names)

    def image_file(self, id: str) -> Path:
        """The image's path."""
        if id not in self._images:
            raise BadFile(Problem(self.root / id, "there is no such image", "use an id of one of the splits", id))
        return self._under(self._images[id].path, id)

    def label_files(self, id: str, kind: Kind) -> tuple[Path, ...]:
        """The text file."""
        return (self._under(self._images[id].label, id),) if self.having(kind, [id]) else ()

    def label_folders(self) -> tuple[Path, ...]:
        """The folders in which images and text files lie."""
        files = [file for image in self._images.values() for file in (image.path, image.label)]
        return tuple(self.root / folder for folder in sorted({file.rpartition("/")[0] for file in files}))

    def read(self, id: str, kinds: Collection[Kind] = ()) -> Sample:
        """Read one image and, if a kind asked for comes from it, its text file."""
        with naming(id):
            path = self.image_file(id)
            image, orientation = read_oriented(path)
            size = (image.shape[1], image.shape[2])
            wanted = [kind for kind in kinds if self.having(kind, [id])]
            fields: dict[str, object] = {}
            if wanted:
                require_told(path, orientation, size, None)
                objects = Objects(self.label_files(id, wanted[0])[0], self._names, self.classes, size)
                for kind in wanted:
                    fields |= objects.read(kind)
            return Sample(id=id, image=image, **fields)  # type: ignore[arg-type]

    def write(self, sample: Sample) -> None:
        """Write a sample's objects, and its image as a JPEG of quality 95 if there is none of that id.

        A sample with neither boxes nor instances gets no text file: it stays unlabelled.

        Raises:
            UserError: the id cannot be a file name.
            ValueError: a label is out of range, or a box is inverted or outside the image.
            OSError: the disk is full or may not be written to; no file is left in part.
        """
        if file_name(sample.id) not in self._stored:
            self._stored[sample.id] = put_image(self.root / _IMAGES, sample.id, sample.image)
        if sample.boxes is None and sample.instances is None:
            return
        objects = objects_of(sample)
        strange = [found.label for found in objects if found.label not in self.classes.objects]
        if strange:
            raise ValueError(f"an object of class {strange[0]}, but the objects' classes are {self.classes.objects}")
        size = (sample.image.shape[1], sample.image.shape[2])
        text = format_objects(objects, size, self._polygons, self.classes.objects[0])
        atomic_write(self.root / _LABELS / f"{sample.id}.txt", text, durable=self._durable)

    def copy_image(self, id: str, source: Path) -> None:
        """Take over an image file byte by byte, so that it does not lose quality; store one that EXIF turns upright.

        Raises:
            BadFile: the source is missing, damaged, or not an image's name.
        """
        self._stored[id] = take_image(self.root / _IMAGES, id, source, self._durable)

    def write_split(self, name: str, ids: Sequence[str]) -> None:
        """Write the list of a split's images, and ``data.yaml`` with all splits.

        Raises:
            UserError: an image is missing, or the name cannot be a file name.
        """
        missing = [id for id in ids if id not in self._stored]
        if missing:
            raise UserError(f"split '{name}' names {len(missing)} images that {self.root} lacks: {missing[0]}, ...")
        lines = [f"./{_IMAGES}/{self._stored[id]}\n" for id in unique(ids)]
        atomic_write(self.root / f"{file_name(name)}.txt", "".join(lines), durable=self._durable)
        _write_yaml(self.root, self._names)
        for cached in ("_settings", "_paths", "_ids", "_images", "_label_names", "_has_polygons"):
            self.__dict__.pop(cached, None)

    # ------------------------------------------------------------------ names

    @cached_property
    def _stored(self) -> dict[str, str]:
        """The images in the folder to which images are written: id -> file name."""
        names = (path.name for path in (self.root / _IMAGES).iterdir())
        return {name.rpartition(".")[0]: name for name in names if is_image(name)}

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What ``data.yaml`` says; nothing where there is none."""
        path = _yaml_file(self.root)
        if path is None:
            return {}
        try:
            content = yaml.safe_load(read_text(path, _YAML_LIMIT))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            refuse(path, f"it is no YAML ({' '.join(str(error).split())[:120]})", "correct it")
        if not isinstance(content, dict):
            refuse(path, "it is not a list of settings", "write names, train and val")
        return content

    @cached_property
    def _names(self) -> list[str]:
        """YOLO's classes, from 0 on."""
        path = _yaml_file(self.root)
        if path is not None and "names" in self._settings:
            names = _listed_names(self._settings["names"], path)
        else:
            path = next((self.root / name for name in _NAMES if (self.root / name).is_file()), None)
            if path is None:
                raise UserError(
                    f"{self.root}: its classes have no names; add {self.root / _NAMES[0]} with one name per line"
                )
            names = read_names(path)
        if not names or len(set(names)) < len(names) or len(names) >= IGNORE_INDEX:
            refuse(path, f"it has {len(names)} names, {len(set(names))} of them different", "name each class once")
        if self._settings.get("nc", len(names)) != len(names):
            refuse(path, f"it has {len(names)} names, but nc is {self._settings['nc']}", "make them agree")
        return names

    @cached_property
    def _paths(self) -> dict[str, tuple[str, ...]]:
        """The images of each split, relative to the root."""
        told = {
            str(key): found
            for key, value in self._settings.items()
            if key not in _OTHER_KEYS and (found := self._told_places(value))
        }
        if told:
            return {
                split: unique([path for place in places for path in self._listed(place)])
                for split, places in told.items()
            }
        sorted_in = _split_folders(self.root)
        if sorted_in:
            return {split: images_below(self.root, folder) for split, folder in sorted_in.items()}
        every = images_below(self.root, _IMAGES)
        held = {path: held_out(path.rpartition("/")[2].rpartition(".")[0]) for path in every}
        return {
            "train": tuple(path for path in every if not held[path]),
            "val": tuple(path for path in every if held[path]),
        }

    def _told_places(self, value: object) -> list[str]:
        """The folders and lists of images, relative to the root, that a setting names and that exist."""
        values = value if isinstance(value, list) else [value]
        places = [self._told(text) for text in values if isinstance(text, str)]
        return [place for place in places if place is not None]

    def _told(self, text: str) -> str | None:
        """Where a path of ``data.yaml`` leads; the ``../`` with which Roboflow begins them is passed over."""
        inner = text
        while inner.startswith(("../", "./")):
            inner = inner.partition("/")[2]
        _refuse_leaving(self.root, inner, _yaml_file(self.root) or self.root)
        above = self._settings.get("path")
        below = isinstance(above, str) and not Path(above).is_absolute() and ".." not in Path(above).parts
        places = [f"{above}/{inner}", inner] if below else [inner]
        return next((Path(place).as_posix() for place in places if (self.root / place).exists()), None)

    def _listed(self, place: str) -> tuple[str, ...]:
        """The images in a folder, or in a list of images."""
        path = self.root / place
        if path.is_dir():
            return images_below(self.root, "" if place == "." else place)
        paths = [Path(line).as_posix() for line in read_names(self._under(place, None))]
        for name in paths:
            _refuse_leaving(self.root, name, path)
        missing = [name for name in paths if not (self.root / name).is_file()]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            refuse(path, f"it lists {len(missing)} of {len(paths)} images that are missing: {shown}", "add the images")
        return tuple(paths)

    @cached_property
    def _ids(self) -> dict[str, str]:
        return ids_of(path for paths in self._paths.values() for path in paths)

    @cached_property
    def _images(self) -> dict[str, _Image]:
        return {id: _Image(path, _label_of(path)) for path, id in self._ids.items()}

    @cached_property
    def _label_names(self) -> frozenset[str]:
        """The text files beside the images, relative to the root; each folder is listed once."""
        folders = {image.label.rpartition("/")[0] for image in self._images.values()}
        return frozenset(
            f"{folder}/{path.name}" if folder else path.name
            for folder in folders
            for path in (self.root / folder).glob("*.txt")
        )

    @cached_property
    def _has_polygons(self) -> bool:
        """Whether one of the first files that are not empty has a polygon."""
        files = (self.root / image.label for image in self._images.values() if image.label in self._label_names)
        return any(_peek(file) for file in islice((file for file in files if file.stat().st_size), _PEEK))

    def _under(self, name: str, id: str | None) -> Path:
        try:
            return under(self.root, name)
        except UserError as error:
            reason = str(error).partition(";")[0]
            raise BadFile(Problem(self.root / name, reason, "copy the file into the folder", id)) from None


def _refuse_leaving(root: Path, name: str, source: Path) -> None:
    """Refuse a path that a file names and that leads out of the data set's folder.

    Raises:
        BadFile: it does; the problem is the file's.
    """
    if Path(name).is_absolute():
        refuse(source, f"'{name}' is an absolute path", "name folders and images relative to the data set's folder")
    try:
        under(root, name)
    except UserError as error:
        refuse(source, str(error).partition(";")[0], "use names below that folder only")


def _peek(file: Path) -> bool:
    """Whether a text file has a polygon; a damaged one is left to whoever reads it."""
    try:
        return any(line.is_polygon for line in read_lines(file))
    except BadFile:
        return False


def _yaml_file(root: Path) -> Path | None:
    return next((root / name for name in _YAMLS if (root / name).is_file()), None)


def _split_folders(root: Path) -> dict[str, str]:
    """The folders of images per split, as they are named where no ``data.yaml`` tells."""
    found: dict[str, str] = {}
    for split, names in _FOLDERS.items():
        for name in names:
            for folder in (f"{name}/{_IMAGES}", f"{_IMAGES}/{name}"):
                if (root / folder).is_dir():
                    found.setdefault(split, folder)
    for labels in sorted(root.glob(f"{_LABELS}/*")):
        if labels.is_dir() and labels.name not in ("valid", *found) and (root / _IMAGES / labels.name).is_dir():
            found[labels.name] = f"{_IMAGES}/{labels.name}"
    return found


def _label_of(image: str) -> str:
    """Where YOLO looks for the objects of an image: in ``labels`` in place of the last ``images`` of its path."""
    parts = image.rpartition(".")[0].split("/")
    places = [place for place, part in enumerate(parts[:-1]) if part == _IMAGES]
    if places:
        parts[places[-1]] = _LABELS
    return "/".join(parts) + ".txt"


def _listed_names(names: object, path: Path) -> list[str]:
    """The names of ``data.yaml``: a list, or one for each number from 0 on."""
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            refuse(path, f"its names have the numbers {sorted(map(str, names))[:5]}", "number the classes from 0 on")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(type(name) in (str, int) for name in names):
        refuse(
            path, "its names are no list of words", "write names: [cat, dog], with quotes around yes, no, on and off"
        )
    return [str(name).strip() for name in names]


def _write_yaml(root: Path, names: Sequence[str]) -> None:
    lists = sorted(path.stem for path in root.glob("*.txt") if path.name not in _NAMES)
    usual = [name for name in _USUAL_SPLITS if name in lists]
    splits = {name: f"{name}.txt" for name in unique([*usual, *lists])}
    content = {**splits, "names": dict(enumerate(names))}
    atomic_write(root / _YAMLS[0], yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
