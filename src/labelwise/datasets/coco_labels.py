"""The labels of one image out of a json file of COCO."""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
from faster_coco_eval.core.mask import encode
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.coco_file import Document
from labelwise.datasets.derive import points_of_mask, tags_of_labels
from labelwise.datasets.images import refuse
from labelwise.datasets.regions import (
    is_number,
    masks_of_runs,
    painted,
    runs_of_encoding,
    runs_of_polygons,
)
from labelwise.samples import IGNORE_INDEX, Kind

OBJECT_LIMIT = 10_000
"""The most objects of an image."""

_CORRECT = "correct or remove the annotation"


class Objects:
    """The annotated objects of one image."""

    def __init__(self, document: Document, image: int, classes: Classes, size: tuple[int, int]) -> None:
        """Parse the annotations of an image.

        Args:
            document: the file.
            image: the image's place in it.
            classes: the classes; categories are found by their names.
            size: height and width of the upright image.

        Raises:
            BadFile: there are too many, or one has an unknown category or flags that are none.
        """
        self._document, self._image, self._classes, self._size = document, image, classes, size
        if document.count(image) > OBJECT_LIMIT:
            reason = f"'{document.images[image].name}' has {document.count(image)} objects, more than {OBJECT_LIMIT:,}"
            refuse(document.path, reason, "remove what are no objects")
        self._rows = document.annotations(image)
        known = {classes.names[number]: number for number in classes.objects}
        numbers = {key: known[name] for key, name in document.categories.items() if name in known}
        for place, row in enumerate(self._rows):
            key = row.get("category_id")
            if type(key) is not int or key not in numbers:
                mend = "correct it, or add it to 'categories' (and to classes.txt, if there is one)"
                self._refuse(place, f"the unknown category id {_shown(key)}", mend)
            if any(row.get(flag, 0) not in (0, 1) for flag in ("iscrowd", "ignore")):
                self._refuse(place, "an 'iscrowd' or 'ignore' that is neither 0 nor 1")
        self._labels = torch.tensor([numbers[row["category_id"]] for row in self._rows], dtype=torch.int64)
        self._crowd = np.array([bool(row.get("iscrowd", 0)) for row in self._rows], dtype=bool)

    def read(self, kind: Kind) -> dict[str, object]:
        """The fields of `Sample` of one kind."""
        match kind:
            case Kind.BOXES:
                return {"boxes": self._boxes, "box_labels": self._labels, "difficult": self._difficult}
            case Kind.TAGS:
                return {"tags": tags_of_labels(self._labels, self._classes, self._difficult)}
            case Kind.MASKS:
                return {"mask": tv_tensors.Mask(self._mask)}
            case Kind.INSTANCES:
                return {"instances": tv_tensors.Mask(self._instances), "instance_labels": self._shapes[1]}
            case Kind.POINTS:
                points, labels = points_of_mask(self._mask)
                return {"points": tv_tensors.KeyPoints(points, canvas_size=self._size), "point_labels": labels}
            case Kind.CAPTIONS | Kind.MAPS:
                return {}

    @cached_property
    def _difficult(self) -> Tensor:
        """[N] bool: crowds, and what other converters of VOC mark by `ignore`."""
        return torch.tensor(
            [bool(row.get("iscrowd", 0) or row.get("ignore", 0)) for row in self._rows], dtype=torch.bool
        )

    @cached_property
    def _boxes(self) -> tv_tensors.BoundingBoxes:
        """The boxes clipped to the image, [N, 4] float32."""
        height, width = self._size
        boxes = np.array([self._box(place) for place in range(len(self._rows))], dtype=np.float64).reshape(-1, 4)
        clipped = boxes.clip(0, (width, height, width, height))
        outside = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
        if outside.any():
            self._refuse(int(outside.argmax()), f"a box outside the {width}x{height} image")
        corners = torch.from_numpy(clipped.astype(np.float32))
        return tv_tensors.BoundingBoxes(corners, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=self._size)

    @cached_property
    def _shapes(self) -> tuple[list[np.ndarray], Tensor]:
        """The run lengths of the instances, the largest first, and their classes [N].

        Crowds are left out, and what covers no pixel. Where two instances overlap, a mask shows the later one: the
        smaller, which usually lies in front.
        """
        places = [place for place, row in enumerate(self._rows) if row.get("segmentation") and not self._crowd[place]]
        shapes = [self._runs(place) for place in places]
        areas = np.array([runs[1::2].sum() for runs in shapes], dtype=np.int64)
        order = [place for place in np.argsort(-areas, kind="stable").tolist() if areas[place]]
        return [shapes[place] for place in order], self._labels[[places[place] for place in order]]

    @cached_property
    def _instances(self) -> Tensor:
        """[N, H, W] bool."""
        try:
            return masks_of_runs(self._shapes[0], self._size)
        except ValueError as error:
            name = self._document.images[self._image].name
            refuse(self._document.path, f"'{name}' has {error}", "cut the image into tiles")

    @cached_property
    def _mask(self) -> Tensor:
        """[H, W] uint8: the instances over the background; 255 where a crowd is, or an object without outline."""
        shapes, labels = self._shapes
        background = IGNORE_INDEX if self._classes.background is None else self._classes.background
        canvas = np.full(self._size, background, dtype=np.uint8)
        for place, row in enumerate(self._rows):
            if not row.get("segmentation"):
                left, top, right, bottom = self._boxes[place].tolist()
                canvas[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = IGNORE_INDEX
        crowded = [place for place, row in enumerate(self._rows) if self._crowd[place] and row.get("segmentation")]
        under = [self._runs(place) for place in crowded]
        values = [IGNORE_INDEX] * len(under) + labels.tolist()
        return torch.from_numpy(painted(canvas, [*under, *shapes], values))

    def _box(self, place: int) -> list[float]:
        values = self._rows[place].get("bbox")
        if not isinstance(values, list) or len(values) != 4 or not all(is_number(value) for value in values):
            self._refuse(place, f"no box of four numbers (x, y, width, height) but {_shown(values)}")
        left, top, width, height = map(float, values)
        if width <= 0 or height <= 0:
            self._refuse(place, f"a box of width {width:g} and height {height:g}")
        return [left, top, left + width, top + height]

    def _runs(self, place: int) -> np.ndarray:
        segmentation = self._rows[place]["segmentation"]
        try:
            if isinstance(segmentation, list):
                return runs_of_polygons(segmentation, self._size)
            return runs_of_encoding(segmentation, self._size)
        except ValueError as error:
            self._refuse(place, str(error))

    def _refuse(self, place: int, fault: str, mend: str = _CORRECT) -> NoReturn:
        row = self._rows[place]
        key = row.get("category_id")
        name = self._document.categories.get(key) if isinstance(key, int) else None
        shown = f"object {place + 1} of '{self._document.images[self._image].name}'"
        shown += f" ('{name}', annotation id {row.get('id')})" if name else f" (annotation id {row.get('id')})"
        refuse(self._document.path, f"{shown} has {fault}", mend)


def captions_of(document: Document, image: int) -> tuple[str, ...]:
    """The captions of an image, each on one line.

    Raises:
        BadFile: a caption is no text, or empty.
    """
    found = [row.get("caption") for row in document.annotations(image)]
    for place, caption in enumerate(found, start=1):
        if not isinstance(caption, str) or not caption.strip():
            refuse(document.path, f"caption {place} of '{document.images[image].name}' is no text", _CORRECT)
    return tuple(" ".join(str(caption).split()) for caption in found)


def encode_rle(mask: Tensor) -> dict[str, object]:
    """A mask as COCO's compressed run lengths, ready for a json file.

    Args:
        mask: [H, W] bool.

    Returns:
        `size` (height, width) and `counts` (text); `regions.runs_of_encoding` reads them.
    """
    encoded = encode(np.asfortranarray(mask.cpu().numpy(), dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
