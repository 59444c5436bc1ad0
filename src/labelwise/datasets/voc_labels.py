"""The labels of one image of a VOC folder, each file opened once and only if it is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.checks import require_size, require_told
from labelwise.datasets.derive import (
    boxes_of_instances,
    instance_labels,
    points_of_mask,
    tags_of_labels,
    tags_of_mask,
)
from labelwise.datasets.images import AS_STORED, read_labels, read_mask, read_text, refuse
from labelwise.datasets.listing import read_lines
from labelwise.datasets.score_maps import read_score_maps
from labelwise.datasets.voc_xml import read_annotation
from labelwise.errors import did_you_mean
from labelwise.samples import IGNORE_INDEX, Kind, ScoreMaps

if TYPE_CHECKING:
    from labelwise.datasets.voc import VOC

POINTS_LIMIT = 10_000_000
"""The most bytes of a file of points."""

CAPTIONS_LIMIT = 1_000_000
"""The most bytes of a file of captions."""


class Fields(TypedDict, total=False):
    """Some of the label fields of a `Sample`."""

    mask: tv_tensors.Mask
    instances: tv_tensors.Mask
    instance_labels: Tensor
    boxes: tv_tensors.BoundingBoxes
    box_labels: Tensor
    difficult: Tensor
    tags: Tensor
    points: tv_tensors.KeyPoints
    point_labels: Tensor
    captions: tuple[str, ...]
    maps: ScoreMaps


class Labels:
    """Reads the labels of one image, deriving weaker kinds from the stronger ones that the folder has."""

    def __init__(self, dataset: VOC, id: str, size: tuple[int, int], orientation: int) -> None:
        """Prepare reading; opens nothing.

        Args:
            dataset: the folder.
            id: the image.
            size: height and width of the upright image.
            orientation: the EXIF orientation by which it was turned upright.
        """
        self._orientation = orientation
        self._dataset = dataset
        self._id = id
        self._size = size

    def read(self, kind: Kind) -> Fields:
        """The fields of one kind; empty if the image has no such labels."""
        origin = self._dataset.origin(self._id, kind)
        if origin is None:
            return {}
        match kind:
            case Kind.MASKS:
                return {"mask": self._mask}
            case Kind.INSTANCES:
                return self._instances
            case Kind.BOXES:
                return self._boxes(origin)
            case Kind.TAGS:
                return {"tags": self._tags(origin)}
            case Kind.POINTS:
                return self._points(origin)
            case Kind.CAPTIONS:
                return {"captions": read_captions(self._file(kind))}
            case Kind.MAPS:
                return {"maps": self._maps}

    def _file(self, kind: Kind) -> Path:
        return self._dataset.label_files(self._id, kind)[0]

    @cached_property
    def _maps(self) -> ScoreMaps:
        return read_score_maps(self._file(Kind.MAPS), self._classes, self._size)

    @property
    def _classes(self) -> Classes:
        return self._dataset.classes

    @cached_property
    def _mask(self) -> tv_tensors.Mask:
        path = self._file(Kind.MASKS)
        mask = read_mask(path, self._classes)
        require_size(path, (mask.shape[0], mask.shape[1]), self._size)
        self._require_told(self._size)
        return mask

    @cached_property
    def _instances(self) -> Fields:
        path = self._file(Kind.INSTANCES)
        objects = read_labels(path)[0]
        require_size(path, (objects.shape[0], objects.shape[1]), self._size)
        if objects.max(initial=0) > IGNORE_INDEX:
            refuse(path, f"it has object {objects.max()}", "number the objects of an image from 1 to 254")
        numbers, labels = instance_labels(objects, self._mask.numpy(), self._classes)
        if (labels < 0).any():
            reason = f"object {numbers[labels < 0][0]} has no class in {self._file(Kind.MASKS)}"
            refuse(path, reason, "give its pixels a class there, or remove it")
        return {
            "instances": tv_tensors.Mask(torch.from_numpy(objects[None] == numbers[:, None, None])),
            "instance_labels": torch.from_numpy(labels.astype(np.int64)),
        }

    @cached_property
    def _annotation(self) -> Fields:
        annotation = read_annotation(self._file(Kind.BOXES))
        self._require_told(annotation.size)
        boxes = torch.from_numpy(annotation.boxes_within(*self._size))
        return {
            "boxes": _as_boxes(boxes, self._size),
            "box_labels": torch.from_numpy(annotation.labels(self._classes)),
            "difficult": torch.from_numpy(annotation.difficult),
        }

    def _boxes(self, origin: Kind) -> Fields:
        if origin is Kind.BOXES:
            return self._annotation
        instances = self._instances
        return {
            "boxes": _as_boxes(boxes_of_instances(instances["instances"]), self._size),
            "box_labels": instances["instance_labels"],
            "difficult": torch.zeros(len(instances["instance_labels"]), dtype=torch.bool),
        }

    def _tags(self, origin: Kind) -> Tensor:
        match origin:
            case Kind.TAGS:
                return self._dataset.listed_tags(self._id)
            case Kind.BOXES:
                fields = self._annotation
                return tags_of_labels(fields["box_labels"], self._classes, fields["difficult"])
            case Kind.MASKS:
                return tags_of_mask(self._mask, self._classes)
            case Kind.MAPS:
                return tags_of_labels(self._maps.labels, self._classes)
            case _:
                return tags_of_labels(self._points(Kind.POINTS)["point_labels"], self._classes)

    def _points(self, origin: Kind) -> Fields:
        if origin is Kind.POINTS:
            path = self._file(Kind.POINTS)
            self._require_told(None if self._orientation == AS_STORED else stated_size(path))
            points, labels = read_points(path, self._classes, self._size)
        else:
            points, labels = points_of_mask(self._mask)
        return {"points": tv_tensors.KeyPoints(points, canvas_size=self._size), "point_labels": labels}

    def _require_told(self, size: tuple[int, int] | None) -> None:
        require_told(self._dataset.image_file(self._id), self._orientation, self._size, size)


def _as_boxes(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)


def read_points(path: Path, classes: Classes, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Read `Points/<id>.json`: ``{"image": id, "points": [{"x": 12, "y": 7, "class": "cat"}, ...]}``.

    `x` and `y` are the column and row of a pixel, from 0; the class may be the background. The file may state the
    ``height`` and ``width`` of the image that it means, which one that EXIF turns needs (`checks.require_told`).

    Returns:
        Points [P, 2] float32 (x, y) and their classes [P] int64.

    Raises:
        BadFile: the file is not of this form, or a point lies outside the image or has an unknown class.
    """
    mend = 'write {"image": ..., "points": [{"x": 12, "y": 7, "class": "cat"}]}'
    try:
        rows = [
            (point["x"], point["y"], point["class"]) for point in json.loads(read_text(path, POINTS_LIMIT))["points"]
        ]
        points = torch.tensor([[float(x), float(y)] for x, y, _ in rows]).reshape(-1, 2)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        refuse(path, f"it is not a file of points ({type(error).__name__}: {error})", mend)
    numbers = {name: number for number, name in enumerate(classes.names)}
    for place, (x, y, name) in enumerate(rows, start=1):
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            reason = f"point {place} at ({x:g}, {y:g}) lies outside the {size[1]}x{size[0]} image"
            refuse(path, reason, "move or remove it")
        if name not in numbers:
            known = did_you_mean(name, classes.names)
            refuse(path, f"point {place} has the unknown class '{name}'", f"correct the name{known}")
    points = torch.tensor([(x, y) for x, y, _ in rows], dtype=torch.float32).reshape(-1, 2)
    return points, torch.tensor([numbers[name] for *_, name in rows], dtype=torch.int64)


def stated_size(path: Path) -> tuple[int, int] | None:
    """Height and width of the image that a file of points states, or None.

    Raises:
        BadFile: the file is missing, too large, or no UTF-8 text.
    """
    try:
        content = json.loads(read_text(path, POINTS_LIMIT))
        return int(content["height"]), int(content["width"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def format_points(
    id: str, points: Tensor, labels: Tensor, classes: Classes, size: tuple[int, int] | None = None
) -> bytes:
    """The content of `Points/<id>.json`; `read_points` gives the points back.

    Args:
        id: the image.
        points: [P, 2] float32 (x, y).
        labels: [P] int64.
        classes: the classes.
        size: height and width of the upright image, to be stated where EXIF turns it.
    """
    rows = [
        {"x": int(x) if x == int(x) else x, "y": int(y) if y == int(y) else y, "class": classes.names[label]}
        for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True)
    ]
    listed = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    stated = "" if size is None else f', "height": {size[0]}, "width": {size[1]}'
    return f'{{"image": {json.dumps(id, ensure_ascii=False)}{stated}, "points": [\n{listed}\n]}}\n'.encode()


def read_captions(path: Path) -> tuple[str, ...]:
    """Read `Captions/<id>.txt`, one caption per line.

    Raises:
        BadFile: the file has no caption, or is no UTF-8 text.
    """
    captions = tuple(line.strip() for line in read_text(path, CAPTIONS_LIMIT).splitlines() if line.strip())
    if not captions:
        refuse(path, "it holds no caption", "write one caption per line, or remove the file")
    return captions


def read_tag_list(path: Path, ids: Sequence[str]) -> np.ndarray:
    """Read `ImageSets/Main/<class>_<split>.txt`, whose lines are an id and 1, -1 or 0 (only difficult objects).

    Returns:
        [len(ids)] uint8: 1 present, 0 absent, 255 only difficult objects.

    Raises:
        BadFile: a line has no such number, or an image is missing.
    """
    meanings = {"1": 1, "-1": 0, "0": IGNORE_INDEX}
    found: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        name, _, value = line.replace("\t", " ").rpartition(" ")
        if value not in meanings:
            refuse(path, f"line {number} is '{line}'", "write an image id and 1, -1 or 0")
        found[name.strip()] = meanings[value]
    missing = [id for id in ids if id not in found]
    if missing:
        refuse(path, f"it lacks the image '{missing[0]}' of its split", "add a line for it")
    return np.array([found[id] for id in ids], dtype=np.uint8)
