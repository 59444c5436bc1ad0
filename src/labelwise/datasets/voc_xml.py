"""The XML annotations of VOC: a tolerant and safe reader, a strict writer.

On disk a box has inclusive pixel numbers that start at 1; in memory it is half-open and starts at 0. `read_annotation`
and `format_annotation` are the only places that convert between the two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from labelwise.datasets.base import Classes
from labelwise.datasets.images import REPLACE, read_bytes, refuse
from labelwise.errors import did_you_mean

SIZE_LIMIT = 1_000_000
"""The most bytes of an annotation."""

OBJECT_LIMIT = 10_000
"""The most objects of an annotation."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DECLARATION = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


@dataclass(frozen=True)
class Annotation:
    """The objects of one image as the file has them.

    Attributes:
        path: the file.
        size: height and width as the file states them, or None.
        names: one class name per object.
        boxes: [N, 4] float64, half-open: xmin - 1, ymin - 1, xmax, ymax; not yet clipped to the image.
        difficult: [N] bool.
    """

    path: Path
    size: tuple[int, int] | None
    names: tuple[str, ...]
    boxes: np.ndarray
    difficult: np.ndarray

    def labels(self, classes: Classes) -> np.ndarray:
        """The class numbers of the objects, [N] int64.

        Raises:
            BadFile: an object has a name that is no class's.
        """
        numbers = {name: number for number, name in enumerate(classes.names)}
        for place, name in enumerate(self.names, start=1):
            if name not in numbers:
                mend = "correct the name, or list all classes in classes.txt" + did_you_mean(name, classes.names)
                refuse(self.path, f"object {place} has the unknown class '{name}'", mend)
        return np.array([numbers[name] for name in self.names], dtype=np.int64)

    def boxes_within(self, height: int, width: int) -> np.ndarray:
        """The boxes clipped to the image, [N, 4] float32.

        Raises:
            BadFile: a box lies outside the image, or boxes were made for an image of another size.
        """
        limits = np.array([width, height, width, height])
        beyond = (self.boxes > limits + 1).any(axis=1)
        if beyond.any() and self.size not in (None, (height, width), (width, height)):
            stated = f"{self.size[1]}x{self.size[0]}" if self.size else ""
            reason = f"its boxes are for an image of {stated} pixels, but the image has {width}x{height}"
            refuse(self.path, reason, "scale the boxes, or restore the image")
        clipped = np.clip(self.boxes, 0, limits)
        empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
        if empty.any():
            place = int(empty.argmax())
            _refuse_object(self.path, place + 1, self.names[place], f"a box outside the {width}x{height} image")
        return clipped.astype(np.float32)


def read_annotation(path: Path) -> Annotation:
    """Read an annotation.

    Coordinates may be floats; `pose`, `truncated`, `difficult`, `size` may be missing; `filename` is not looked at.

    Raises:
        BadFile: the file is missing, damaged, too large, declares a document type or entities, or has an object
            without a name, or with a box that is missing, not numeric, or inverted.
    """
    root = parse_annotation(path)
    elements = root.findall("object")
    if len(elements) > OBJECT_LIMIT:
        refuse(path, f"it has {len(elements)} objects, more than {OBJECT_LIMIT:,}", REPLACE)
    names = tuple((element.findtext("name") or "").strip() for element in elements)
    corners = [_corners(path, place, names[place - 1], element) for place, element in enumerate(elements, start=1)]
    return Annotation(
        path=path,
        size=_size(root),
        names=names,
        boxes=np.array(corners, dtype=np.float64).reshape(-1, 4) - (1, 1, 0, 0),
        difficult=np.array([(element.findtext("difficult") or "").strip() == "1" for element in elements], dtype=bool),
    )


def format_annotation(
    filename: str,
    size: tuple[int, int],
    names: Sequence[str],
    boxes: np.ndarray,
    difficult: np.ndarray,
    *,
    segmented: bool,
) -> bytes:
    """The XML of an annotation, with every element that the VOC development kit writes.

    Args:
        filename: the image's file name.
        size: height and width of the image.
        names: one class name per object.
        boxes: [N, 4], half-open and starting at 0; rounded to whole pixels and clipped to the image.
        difficult: [N] bool.
        segmented: whether the image has a mask.

    Raises:
        ValueError: a box is inverted, outside the image, or not finite.
    """
    height, width = size
    corners = _inclusive(boxes, height, width)
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", filename)
    _add(ElementTree.SubElement(root, "source"), "database", "labelwise")
    extent = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(extent, tag, value)
    _add(root, "segmented", int(segmented))
    for name, corner, hard in zip(names, corners.tolist(), difficult.tolist(), strict=True):
        element = ElementTree.SubElement(root, "object")
        _add(element, "name", name)
        _add(element, "pose", "Unspecified")
        _add(element, "truncated", 0)
        _add(element, "difficult", int(hard))
        box = ElementTree.SubElement(element, "bndbox")
        for tag, value in zip(_CORNERS, corner, strict=True):
            _add(box, tag, value)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _inclusive(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-open boxes as whole, inclusive pixel numbers that start at 1, each at least one pixel wide."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, 2:]
    limits = np.array([width, height])
    if not np.isfinite(boxes).all() or (high <= low).any() or (low >= limits).any() or (high <= 0).any():
        raise ValueError(f"a box is inverted or outside the {width}x{height} image: {boxes.tolist()}")
    first = np.clip(np.round(low), 0, limits - 1)
    last = np.clip(np.round(high), first + 1, limits)
    return np.concatenate([first + 1, last], axis=1).astype(np.int64)


def parse_annotation(path: Path) -> ElementTree.Element:
    """The root of an annotation, with whatever it holds.

    Raises:
        BadFile: the file is missing, damaged, too large, or declares a document type or entities.
    """
    text = _decode(read_bytes(path, SIZE_LIMIT))
    declaration = _DECLARATION.search(text)
    if declaration:
        refuse(path, f"it holds {declaration[0]}, which annotations never need", "remove the declaration")
    try:
        # A str, unlike bytes, is parsed regardless of the encoding that the file claims to have: what was searched
        # above is what is parsed.
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        refuse(path, f"it is not well-formed XML ({error})", REPLACE)
    if root.tag != "annotation":
        refuse(path, f"it is a <{root.tag}>, not an <annotation>", "write it in the VOC format")
    return root


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """The stated size; tools that do not know it write nothing or zeros."""
    try:
        size = int(root.findtext("size/height") or 0), int(root.findtext("size/width") or 0)
    except ValueError:
        return None
    return size if min(size) > 0 else None


def _corners(path: Path, place: int, name: str, element: ElementTree.Element) -> list[float]:
    box = element.find("bndbox")
    if not name:
        _refuse_object(path, place, name, "no <name>")
    if box is None:
        _refuse_object(path, place, name, "no <bndbox>")
    texts = {child.tag: child.text for child in box}
    try:
        values = [float(texts[corner] or "") for corner in _CORNERS]
    except (KeyError, ValueError):
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        _refuse_corners(path, place, name, texts)
    if values[0] >= values[2] + 1 or values[1] >= values[3] + 1:
        shown = ", ".join(f"{corner} {value:g}" for corner, value in zip(_CORNERS, values, strict=True))
        _refuse_object(path, place, name, f"an inverted box ({shown})")
    return values


def _refuse_corners(path: Path, place: int, name: str, texts: Mapping[str, str | None]) -> NoReturn:
    """Refuse a box for the first of its corners that is no number."""
    corner = next(corner for corner in _CORNERS if not _is_number(texts.get(corner) or ""))
    text = (texts.get(corner) or "").strip()
    _refuse_object(path, place, name, f"'{text}' for {corner}" if text else f"no <{corner}>")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _refuse_object(path: Path, place: int, name: str, fault: str) -> NoReturn:
    refuse(path, f"object {place} ('{name}') has {fault}", "correct or remove the object")


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
