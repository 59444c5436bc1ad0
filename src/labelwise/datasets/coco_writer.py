"""Writes json files of COCO, without ever holding the labels of more than one image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from labelwise.datasets.base import Classes
from labelwise.datasets.image_names import is_image
from labelwise.datasets.regions import outlines
from labelwise.datasets.writing import Object, file_name, objects_of, put_image, take_image
from labelwise.errors import UserError
from labelwise.files import atomic_file
from labelwise.samples import Sample

JOURNAL = "unfinished.jsonl"
"""What was written so far, one image per line, until the json files are made of it."""

_PLACES = 4
"""The decimals of a box: a ten-thousandth of a pixel is more than any box is worth."""


class CocoWriter:
    """Takes labels image by image and makes json files of them.

    The labels go to a journal first, so that a call that was stopped goes on where it was.
    """

    def __init__(self, root: Path, classes: Classes, durable: bool) -> None:
        """Go on with what the folder has.

        Args:
            root: the data set's folder, with a folder `annotations`.
            classes: the classes.
            durable: bring each image to the disk before the next.
        """
        self._images, self._folder = root / "images", root / "annotations"
        self._classes, self._durable = classes, durable
        self._journal = self._folder / JOURNAL
        self._spans = _spans(self._journal)
        names = [path.name for path in self._images.glob("*")] if self._images.is_dir() else []
        self._names = {name.rpartition(".")[0]: name for name in names if is_image(name)}

    def copy_image(self, id: str, source: Path) -> None:
        """Take over an image file."""
        self._names[id] = take_image(self._images, id, source, self._durable)

    def write(self, sample: Sample) -> None:
        """Add a sample's labels to the journal, in place of earlier ones of the same id."""
        if file_name(sample.id) not in self._names:
            self._names[sample.id] = put_image(self._images, sample.id, sample.image)
        labeled = sample.boxes is not None or sample.instances is not None
        height, width = sample.image.shape[-2:]
        record = {
            "id": sample.id,
            "image": {"file_name": self._names[sample.id], "height": height, "width": width},
            "objects": [self._row(found) for found in objects_of(sample)] if labeled else None,
            "captions": None if sample.captions is None else list(sample.captions),
        }
        line = json.dumps(record).encode() + b"\n"
        with self._journal.open("ab") as file:
            self._spans[sample.id] = (file.tell(), len(line))
            file.write(line)

    def write_split(self, name: str, ids: Sequence[str]) -> None:
        """Make the json files of a split: those for which any of its images has labels.

        Where some images have no objects or captions read, `image_info_<split>.json` lists all of them.
        """
        file_name(name)
        missing = [id for id in ids if id not in self._spans]
        if missing:
            raise UserError(f"split '{name}' names {len(missing)} images that were not written: {missing[0]}, ...")
        spans = [self._spans[id] for id in ids]
        objects = sum(record["objects"] is not None for record in self._records(spans))
        captions = sum(record["captions"] is not None for record in self._records(spans))
        if objects:
            self._put(f"instances_{name}.json", spans, "objects")
        if captions:
            self._put(f"captions_{name}.json", spans, "captions")
        if max(objects, captions) < len(ids) or not ids:
            self._put(f"image_info_{name}.json", spans, None)

    def finish(self) -> None:
        """Remove the journal."""
        self._journal.unlink(missing_ok=True)
        self._spans.clear()

    def _row(self, found: Object) -> dict[str, Any]:
        """An annotation without its own number and that of its image."""
        left, top, right, bottom = found.box.tolist()
        polygons = [] if found.mask is None else [polygon.ravel().tolist() for polygon in outlines(found.mask)]
        area = (right - left) * (bottom - top) if found.mask is None else int(found.mask.sum())
        return {
            "category_id": self._category(found.label),
            "bbox": [_short(value) for value in (left, top, right - left, bottom - top)],
            "area": _short(area),
            "iscrowd": 0,
            "segmentation": polygons,
        } | ({"ignore": 1} if found.difficult else {})

    def _category(self, label: int) -> int:
        """The category id of a class: its number, but never 0, which many tools take for the background."""
        if label not in self._classes.objects:
            raise ValueError(f"an object of class {label}, but the objects' classes are {self._classes.objects}")
        return label + (self._classes.background is None)

    def _put(self, name: str, spans: Sequence[tuple[int, int]], part: str | None) -> None:
        """Write one json file, entry by entry."""
        kept = [
            span
            for span, record in zip(spans, self._records(spans), strict=True)
            if part is None or record[part] is not None
        ]
        categories = [
            {"id": self._category(number), "name": self._classes.names[number], "supercategory": "none"}
            for number in self._classes.objects
        ]
        lists: dict[str, Iterable[dict[str, Any]]] = {
            "images": ({"id": place, **record["image"]} for place, record in enumerate(self._records(kept), start=1)),
            "annotations": self._annotations_of(kept, part),
        }
        if part != "captions":
            lists["categories"] = categories
        with atomic_file(self._folder / name, self._durable) as file:
            file.write(b'{"info": {"description": "written by labelwise"}, "licenses": []')
            for key, entries in lists.items():
                file.write(f', "{key}": ['.encode())
                for place, entry in enumerate(entries):
                    file.write((",\n" if place else "\n").encode() + json.dumps(entry).encode())
                file.write(b"]")
            file.write(b"}\n")

    def _annotations_of(self, spans: Sequence[tuple[int, int]], part: str | None) -> Iterator[dict[str, Any]]:
        number = 0
        for image, record in enumerate(self._records(spans), start=1):
            for found in record[part] if part else ():
                number += 1
                content = {"caption": found} if part == "captions" else found
                yield {"id": number, "image_id": image, **content}

    def _records(self, spans: Iterable[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        """What was written for some images, read from the journal one by one."""
        if not self._journal.is_file():
            return
        with self._journal.open("rb") as file:
            for start, length in spans:
                file.seek(start)
                yield json.loads(file.read(length))


def _spans(journal: Path) -> dict[str, tuple[int, int]]:
    """Where the latest line of each image stands; a line that was cut off by a crash is taken away."""
    spans: dict[str, tuple[int, int]] = {}
    if not journal.is_file():
        return spans
    with journal.open("r+b") as file:
        start = 0
        for line in file:
            try:
                spans[json.loads(line)["id"]] = (start, len(line))
            except ValueError:
                break
            start += len(line)
        file.truncate(start)
    return spans


def _short(value: float) -> float:
    rounded = round(float(value), _PLACES)
    return int(rounded) if rounded == int(rounded) else rounded
