"""XML annotations changed by a person: what they hold beside the boxes stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from labelwise.datasets.base import Classes
from labelwise.datasets.voc_xml import format_annotation, parse_annotation, read_annotation

_SAME = 0.5
"""The least overlap (IoU) of a box with the one that it was before; and the most pixels by which it may differ from a
box of the file to be just that one, as files may have fractions of pixels."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of an image.

    Attributes:
        boxes: [N, 4] float64 XYXY, half-open.
        labels: [N] int64 class numbers.
        difficult: [N] bool.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def boxes_of(rows: Sequence[Mapping[str, Any]], classes: Classes) -> Boxes:
    """The boxes of an entry of the journal.

    Raises:
        UserError: a class is unknown.
    """
    return Boxes(
        np.array([row["box"] for row in rows], dtype=np.float64).reshape(-1, 4),
        np.array([classes.number(row["class"]) for row in rows], dtype=np.int64),
        np.array([row["difficult"] for row in rows], dtype=bool),
    )


def require_boxes(rows: Sequence[Mapping[str, Any]], size: tuple[int, int], classes: Classes) -> None:
    """Refuse boxes as the page sends them, if an annotation could not hold them.

    Args:
        rows: each with `box` (x1, y1, x2, y2) and `class` (a number).
        size: height and width of the image.
        classes: the classes.

    Raises:
        ValueError: a class is none of an object, or a box is inverted or outside the image.
    """
    for place, row in enumerate(rows, start=1):
        left, top, right, bottom = row["box"]
        if row["class"] not in classes.objects:
            raise ValueError(f"boxes: {row['class']} of box {place} is the number of no class that a box can have")
        if not all(map(math.isfinite, row["box"])) or left >= right or top >= bottom:
            raise ValueError(f"boxes: box {place} is inverted or empty: {row['box']}")
        if left >= size[1] or top >= size[0] or right <= 0 or bottom <= 0:
            raise ValueError(f"boxes: box {place} lies outside the {size[1]}x{size[0]} image: {row['box']}")


def format_boxes(name: str, size: tuple[int, int], boxes: Boxes, classes: Classes, *, segmented: bool) -> bytes:
    """A new annotation.

    Args:
        name: the image's file name.
        size: height and width of the upright image.
        boxes: its boxes.
        classes: the classes.
        segmented: whether the image has a mask.

    Raises:
        ValueError: a box is inverted or outside the image.
    """
    names = [classes.names[label] for label in boxes.labels.tolist()]
    return format_annotation(name, size, names, boxes.boxes, boxes.difficult, segmented=segmented)


def update_boxes(path: Path, size: tuple[int, int], boxes: Boxes, classes: Classes) -> bytes:
    """An annotation with other boxes.

    A box that the file has already keeps its element to the letter; one that was moved or resized keeps its pose and
    parts; everything else that the file says of the image stays.

    Args:
        path: the annotation.
        size: height and width of the upright image.
        boxes: the boxes that it is to have.
        classes: the classes.

    Raises:
        BadFile: the file cannot be read.
        ValueError: a box is inverted or outside the image.
    """
    annotation = read_annotation(path)
    root = parse_annotation(path)
    before = Boxes(
        annotation.boxes_within(*size).astype(np.float64), annotation.labels(classes), annotation.difficult.copy()
    )
    old = root.findall("object")
    fresh = ElementTree.fromstring(format_boxes("", size, boxes, classes, segmented=False))
    partners = _partners(boxes, before)
    for element in old:
        root.remove(element)
    for place, element in enumerate(fresh.findall("object")):
        partner = partners.get(place)
        if partner is None:
            root.append(element)
            continue
        moved = np.abs(boxes.boxes[place] - before.boxes[partner]).max() > _SAME
        root.append(_kept(old[partner], element, moved=bool(moved)))
    if annotation.size is None:
        _replace(root, fresh, "size")
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _partners(boxes: Boxes, before: Boxes) -> dict[int, int]:
    """For the boxes that were there before, the place that they had: of the same class, overlapping as well as can be.

    Of two boxes at the same place the one with the same flag is meant.
    """
    overlap = box_iou(Tensor(boxes.boxes).reshape(-1, 4), Tensor(before.boxes).reshape(-1, 4)).numpy()
    overlap = np.where(boxes.labels[:, None] == before.labels[None, :], overlap, 0)
    flags = (boxes.difficult[:, None] == before.difficult[None, :]) * 1e-3
    pairs = zip(*linear_sum_assignment(overlap + flags, maximize=True), strict=True)
    return {int(place): int(partner) for place, partner in pairs if overlap[place, partner] >= _SAME}


def _kept(old: ElementTree.Element, fresh: ElementTree.Element, *, moved: bool) -> ElementTree.Element:
    if moved:
        _replace(old, fresh, "bndbox")
    if (old.findtext("difficult") or "0").strip() != fresh.findtext("difficult"):
        _replace(old, fresh, "difficult")
    return old


def _replace(old: ElementTree.Element, fresh: ElementTree.Element, tag: str) -> None:
    """Put the child of another element in the place of one's own."""
    new = fresh.find(tag)
    assert new is not None
    own = old.find(tag)
    if own is None:
        old.append(new)
    else:
        old[list(old).index(own)] = new
