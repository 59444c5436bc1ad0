"""Where labels of a person go: the data set itself, or a copy of its images in VOC layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from labelwise import datasets
from labelwise.datasets.base import Classes, DataSet
from labelwise.datasets.images import IMAGE_SUFFIXES
from labelwise.datasets.listing import CLASSES_FILE, format_classes, read_classes, stems
from labelwise.datasets.voc import VOC
from labelwise.datasets.writing import file_name
from labelwise.errors import BadFile, UserError
from labelwise.files import atomic_write
from labelwise.runs import read_json
from labelwise.samples import IGNORE_INDEX

ORIGIN = "label.json"
"""What the images of a copied folder were taken from; the same call goes on with it."""

_BACKGROUND = "background"
_SPLIT = "train"
"""The split of a bare folder's images."""


def labelling_folder(data: Path, out: Path | None, names: Sequence[str] = (), background: bool = True) -> VOC:
    """The data set in VOC layout into which labels of these images go.

    Args:
        data: a data set, or a bare folder of images.
        out: the folder to copy images and labels to, if they are not to be labelled where they are.
        names: the classes, for images that have none yet.
        background: put the class `background` in front of the names, where it is not among them.

    Raises:
        UserError: no such folder, or `out` is needed or holds something else, or the classes are missing, wrong or
            known already.
        BadFile: a file that has to be copied is broken.
    """
    source = _opened(data)
    wanted = class_list(names, background) if names else None
    if isinstance(source, VOC) and out is None:
        return _with_classes(source, wanted)
    if out is None:
        what = f"is in the layout '{source.layout}'" if source else "is a bare folder of images"
        raise UserError(f"{data}: {what}, which cannot hold these labels; name a folder for a copy with --out DIR")
    known = _own_classes(source)
    if source is None or known is None:
        return _copied(data, _pictures(data, source), wanted, Path(out))
    _refuse_other_classes(known, wanted, data)
    from labelwise.verbs.convert import convert

    convert(data, to="voc", out=Path(out))
    return VOC(out)


def class_list(names: Sequence[str], background: bool) -> Classes:
    """Classes of names that a person gave.

    Raises:
        UserError: a name is empty, there twice or impossible, or there are too many.
    """
    own = [name.strip() for name in names]
    if background:
        # Class 0 is the background in all layouts, wherever it was named.
        own = [_BACKGROUND, *(name for name in own if name != _BACKGROUND)]
    for name in own:
        if own.count(name) > 1:
            raise UserError(f"--classes: '{name}' is there twice; name each class once")
        if name.startswith("#"):
            raise UserError(f"--classes: '{name}' would be a comment in {CLASSES_FILE}; use another name")
        try:
            # Lists of tags are files of these names.
            file_name(name)
        except UserError:
            raise UserError(f"--classes: '{name}' cannot be a class; use a name without /, \\ and :") from None
    if len(own) > IGNORE_INDEX:
        raise UserError(f"--classes: {len(own)} classes are too many; name at most {IGNORE_INDEX}")
    return Classes(tuple(own), 0 if background else None)


def _opened(data: Path) -> DataSet | None:
    """The data set; None for a bare folder of images."""
    try:
        return datasets.open(data)
    except BadFile:
        raise
    except UserError:
        if data.is_dir() and stems(data, IMAGE_SUFFIXES):
            return None
        raise


def _own_classes(source: DataSet | None) -> Classes | None:
    """The classes that a data set has by itself."""
    try:
        return source.classes if source else None
    except BadFile:
        raise
    except UserError:
        return None


def _with_classes(dataset: VOC, wanted: Classes | None) -> VOC:
    """A data set that is labelled where it is; images alone get their list of classes."""
    if wanted is None:
        return dataset
    labels = [folder for folder in dataset.label_folders() if folder.name not in ("JPEGImages", "Main", "Segmentation")]
    if (dataset.root / CLASSES_FILE).is_file() or any(folder.is_dir() and any(folder.iterdir()) for folder in labels):
        _refuse_other_classes(dataset.classes, wanted, dataset.root)
        return dataset
    atomic_write(dataset.root / CLASSES_FILE, format_classes(wanted))
    return VOC(dataset.root)


def _refuse_other_classes(known: Classes, wanted: Classes | None, data: Path) -> None:
    if wanted is not None and wanted.names != known.names:
        raise UserError(f"--classes: {data} has its own, {', '.join(known.names)}; leave it out")


def _pictures(data: Path, source: DataSet | None) -> dict[str, dict[str, Path]]:
    """The image files of each split by their ids."""
    if source is None:
        return {_SPLIT: {id: data / name for id, name in stems(data, IMAGE_SUFFIXES).items()}}
    return {split: {id: source.image_file(id) for id in source.ids(split)} for split in source.splits}


def _copied(data: Path, pictures: Mapping[str, Mapping[str, Path]], wanted: Classes | None, out: Path) -> VOC:
    """A copy of images without labels; those that are there already stay, new ones are added."""
    origin = {"data": str(data.resolve())}
    if out.is_dir() and any(out.iterdir()) and read_json(out / ORIGIN) != origin:
        raise UserError(f"--out {out}: holds something else than this call's images; name a new or empty folder")
    if wanted is None and (out / CLASSES_FILE).is_file():
        wanted = read_classes(out / CLASSES_FILE)
    if wanted is None:
        raise UserError(f"{data}: its classes are not known; name them with --classes cat,dog,...")
    if out.is_file():
        raise UserError(f"--out {out}: is a file; name a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / ORIGIN, json.dumps(origin))
    if not (out / CLASSES_FILE).is_file():
        atomic_write(out / CLASSES_FILE, format_classes(wanted))
    # Copies can be made again; labels, by whoever opens the folder then, cannot.
    copy = VOC.create(out, wanted, durable=False)
    there = stems(out / "JPEGImages", IMAGE_SUFFIXES)
    for split, files in pictures.items():
        for id, file in files.items():
            if id not in there:
                copy.copy_image(id, file)
        listed = copy.ids(split) if split in copy.splits and (out / "ImageSets").is_dir() else ()
        if listed != tuple(files):
            copy.write_split(split, tuple(files))
    return VOC(out)
