"""The text files of YOLO: one line per object, with numbers from 0 to 1 of the image's width and height."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.derive import points_of_mask, tags_of_labels
from labelwise.datasets.images import read_text, refuse
from labelwise.datasets.regions import joined, masks_of_runs, outlines, painted, runs_of_polygons
from labelwise.datasets.writing import Object
from labelwise.samples import IGNORE_INDEX, Kind

SIZE_LIMIT = 20_000_000
"""The most bytes of a label file."""

OBJECT_LIMIT = 10_000
"""The most objects of an image."""

_BOX = 5
_SHORTEST = 7
_TOLERANCE = 0.01
"""By how much of the image a number may leave 0..1: what rounding and hasty annotators do."""


@dataclass(frozen=True)
class Line:
    """One object as the file has it: its class from 0 on, and a box or the points of a polygon, from 0 to 1."""

    number: int
    values: np.ndarray

    @property
    def is_polygon(self) -> bool:
        """Whether it is an outline, not a box."""
        return len(self.values) >= _SHORTEST - 1


def read_lines(path: Path) -> list[Line]:
    """Read the objects of a label file; an empty file has none.

    Raises:
        BadFile: the file is missing or too large, or a line is neither ``class x y width height`` nor ``class x1 y1 x2
            y2 x3 y3 ...``, or has a number that is not from 0 to 1.
    """
    texts = [line.split() for line in read_text(path, SIZE_LIMIT).splitlines() if line.strip()]
    if len(texts) > OBJECT_LIMIT:
        refuse(path, f"it has {len(texts)} objects, more than {OBJECT_LIMIT:,}", "remove what are no objects")
    return [_line(path, place, words) for place, words in enumerate(texts, start=1)]


class Objects:
    """The objects of one image."""

    def __init__(self, path: Path, names: Sequence[str], classes: Classes, size: tuple[int, int]) -> None:
        """Read a label file.

        Args:
            path: the file.
            names: the names of YOLO's classes, from 0 on.
            classes: the data set's classes, which have these names.
            size: height and width of the image.

        Raises:
            BadFile: the file cannot be used.
        """
        self._path, self._classes, self._size = path, classes, size
        self._lines = read_lines(path)
        numbers = [classes.names.index(name) for name in names]
        for place, line in enumerate(self._lines, start=1):
            if line.number >= len(names):
                reason = f"line {place} has the class {line.number}, but there are {len(names)} classes"
                refuse(path, reason, f"use 0..{len(names) - 1}, or add its name")
        self._labels = torch.tensor([numbers[line.number] for line in self._lines], dtype=torch.int64)

    def read(self, kind: Kind) -> dict[str, object]:
        """The fields of `Sample` of one kind."""
        match kind:
            case Kind.BOXES:
                return {
                    "boxes": self._boxes,
                    "box_labels": self._labels,
                    "difficult": torch.zeros(len(self._lines), dtype=torch.bool),
                }
            case Kind.TAGS:
                return {"tags": tags_of_labels(self._labels, self._classes)}
            case Kind.MASKS:
                return {"mask": tv_tensors.Mask(self._mask)}
            case Kind.INSTANCES:
                shapes, labels = self._shapes
                return {"instances": tv_tensors.Mask(masks_of_runs(shapes, self._size)), "instance_labels": labels}
            case Kind.POINTS:
                points, labels = points_of_mask(self._mask)
                return {"points": tv_tensors.KeyPoints(points, canvas_size=self._size), "point_labels": labels}
            case Kind.CAPTIONS | Kind.MAPS:
                return {}

    @cached_property
    def _boxes(self) -> tv_tensors.BoundingBoxes:
        """The boxes and the extents of the polygons, clipped to the image, [N, 4] float32."""
        height, width = self._size
        limits = np.array([width, height, width, height])
        boxes = np.array([_box(line) for line in self._lines], dtype=np.float64).reshape(-1, 4) * limits
        clipped = boxes.clip(0, limits)
        empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
        if empty.any():
            _refuse_line(self._path, int(empty.argmax()) + 1, "no area within the image")
        return tv_tensors.BoundingBoxes(
            torch.from_numpy(clipped.astype(np.float32)),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=self._size,
        )

    @cached_property
    def _shapes(self) -> tuple[list[np.ndarray], Tensor]:
        """The run lengths of the polygons, the largest first, and their classes [N]; without those of no pixel."""
        places = [place for place, line in enumerate(self._lines) if line.is_polygon]
        shapes = [self._runs(place) for place in places]
        areas = np.array([runs[1::2].sum() for runs in shapes], dtype=np.int64)
        order = [place for place in np.argsort(-areas, kind="stable").tolist() if areas[place]]
        return [shapes[place] for place in order], self._labels[[places[place] for place in order]]

    @cached_property
    def _mask(self) -> Tensor:
        """[H, W] uint8: the polygons over the background; 255 where an object has a box only."""
        shapes, labels = self._shapes
        background = IGNORE_INDEX if self._classes.background is None else self._classes.background
        canvas = np.full(self._size, background, dtype=np.uint8)
        for line, box in zip(self._lines, self._boxes.tolist(), strict=True):
            if not line.is_polygon:
                left, top, right, bottom = box
                canvas[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = IGNORE_INDEX
        return torch.from_numpy(painted(canvas, shapes, labels.tolist()))

    def _runs(self, place: int) -> np.ndarray:
        points = self._lines[place].values.reshape(-1, 2) * self._size[::-1]
        try:
            return runs_of_polygons([points.ravel().tolist()], self._size)
        except ValueError as error:
            _refuse_line(self._path, place + 1, str(error))


def format_objects(objects: Sequence[Object], size: tuple[int, int], polygons: bool, first: int) -> str:
    """The text of a label file; `Objects` gives boxes and masks back.

    Args:
        objects: the objects.
        size: height and width of the image.
        polygons: write the outline of an object that has a mask; an object of several parts becomes one polygon.
        first: the class number that is YOLO's class 0.
    """
    lines = [_formatted(found, size, polygons, first) for found in objects]
    return "".join(f"{line}\n" for line in lines)


def _formatted(found: Object, size: tuple[int, int], polygons: bool, first: int) -> str:
    extent = np.array(size[::-1])
    if polygons and found.mask is not None:
        values = (joined(outlines(found.mask)) / extent).ravel()
    else:
        low, high = found.box[:2] / extent, found.box[2:] / extent
        values = np.concatenate([(low + high) / 2, high - low])
    return " ".join([str(found.label - first), *(f"{value:.8g}" for value in values.tolist())])


def _line(path: Path, place: int, words: list[str]) -> Line:
    try:
        number, values = float(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError:
        _refuse_line(path, place, "something that is no number")
    if not number.is_integer() or not 0 <= number < 2**31:
        _refuse_line(path, place, f"the class '{words[0]}', which is no whole number from 0 on")
    count = len(words)
    if count != _BOX and (count < _SHORTEST or count % 2 == 0):
        _refuse_line(
            path, place, f"{count} numbers instead of {_BOX} (a box) or an odd number from {_SHORTEST} on (a polygon)"
        )
    if not np.isfinite(values).all():
        _refuse_line(path, place, "a number that is not finite")
    if count == _BOX and (values[2:] <= 0).any():
        _refuse_line(path, place, f"a box of width {words[3]} and height {words[4]}")
    if (values < -_TOLERANCE).any() or (values > 1 + _TOLERANCE).any():
        strange = values[(values < -_TOLERANCE) | (values > 1 + _TOLERANCE)][0]
        _refuse_line(path, place, f"{strange:g}, which is not from 0 to 1", "divide by the image's width and height")
    return Line(int(number), values)


def _box(line: Line) -> list[float]:
    """The corners of a box, or of what is around a polygon, from 0 to 1."""
    if line.is_polygon:
        points = line.values.reshape(-1, 2)
        return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    x, y, width, height = line.values.tolist()
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _refuse_line(path: Path, place: int, fault: str, mend: str = "correct or remove the line") -> NoReturn:
    refuse(path, f"line {place} has {fault}", mend)
