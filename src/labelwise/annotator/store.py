"""Labels of single images, read from and written to the files of a VOC folder.

A file is read before it is changed: what somebody has written into it by hand stays, and one that cannot be read is
never overwritten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import torch

from labelwise.annotator.annotations import Boxes, format_boxes, update_boxes
from labelwise.annotator.gallery import Header
from labelwise.annotator.label_files import FILE_KINDS, LabelFiles, Stamp
from labelwise.annotator.tags import TagLists
from labelwise.datasets.checks import require_size, require_told
from labelwise.datasets.images import AS_STORED, checked_mask, encode_mask, read_bytes, read_mask
from labelwise.datasets.voc import VOC
from labelwise.datasets.voc_labels import format_points, read_points, stated_size
from labelwise.datasets.voc_xml import read_annotation
from labelwise.errors import BadFile, Problem
from labelwise.samples import IGNORE_INDEX, Kind

Point = tuple[float, float, int]
"""Column, row and class number."""


class LabelStore:
    """The labels of a data set's images."""

    def __init__(self, dataset: VOC) -> None:
        """Open nothing yet."""
        self.dataset = dataset
        self.classes = dataset.classes
        self.files = LabelFiles(dataset.root)
        self.tags = TagLists(dataset.root)
        self._verdicts: dict[tuple[str, Kind], tuple[Stamp | None, Problem | None]] = {}

    # ----------------------------------------------------------------- points

    def points(self, id: str, header: Header) -> list[Point]:
        """The points of an image, in the order of the file.

        Raises:
            BadFile: the file cannot be read.
        """
        path = self.files.find(Kind.POINTS, id)
        if path is None:
            return []
        stated = None if header.orientation == AS_STORED else stated_size(path)
        require_told(self.dataset.image_file(id), header.orientation, header.size, stated)
        points, labels = read_points(path, self.classes, header.size)
        return [(x, y, label) for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True)]

    def label_at(self, id: str, header: Header, x: int, y: int) -> int | None:
        """The class of a pixel that has a point, or None.

        Raises:
            BadFile: the file cannot be read.
        """
        return next((label for *pixel, label in self.points(id, header) if _is_at(pixel, x, y)), None)

    def set_point(self, id: str, header: Header, x: int, y: int, label: int | None) -> None:
        """Give a pixel its point, in the place of one that it may have; with None, take that one away.

        Raises:
            BadFile: the file cannot be read, and is left as it is.
        """
        before = self.points(id, header)
        points = [point for point in before if not _is_at(point, x, y)]
        if label is not None:
            points.append((x, y, label))
        if points == before:
            return
        content = format_points(
            id,
            torch.tensor([(x, y) for x, y, _ in points], dtype=torch.float32).reshape(-1, 2),
            torch.tensor([label for *_, label in points], dtype=torch.int64),
            self.classes,
            None if header.orientation == AS_STORED else header.size,
        )
        self.files.put(Kind.POINTS, id, content)
        if not points:
            # An image whose only point was taken back is as bare as before; a power cut leaves an empty list at worst.
            self.files.remove(Kind.POINTS, id)

    # ------------------------------------------------------------------ boxes

    def boxes(self, id: str, header: Header) -> Boxes | None:
        """The boxes of an image, or None where it has no annotation.

        Raises:
            BadFile: the annotation cannot be read.
        """
        path = self.files.find(Kind.BOXES, id)
        if path is None:
            return None
        annotation = read_annotation(path)
        require_told(self.dataset.image_file(id), header.orientation, header.size, annotation.size)
        return Boxes(
            annotation.boxes_within(*header.size).astype(np.float64),
            annotation.labels(self.classes),
            annotation.difficult,
        )

    def set_boxes(self, id: str, header: Header, boxes: Boxes) -> None:
        """Give an image these boxes.

        Raises:
            BadFile: its annotation cannot be read, and is left as it is.
            ValueError: a box is inverted or outside the image.
        """
        path = self.files.find(Kind.BOXES, id)
        if path is not None:
            content = update_boxes(path, header.size, boxes, self.classes)
        else:
            segmented = self.files.stamp(Kind.MASKS, id) is not None
            name = self.dataset.image_file(id).name
            content = format_boxes(name, header.size, boxes, self.classes, segmented=segmented)
        self.files.put(Kind.BOXES, id, content)

    # ------------------------------------------------------------------ masks

    def mask(self, id: str, header: Header) -> np.ndarray | None:
        """The mask of an image, [H, W] uint8, or None.

        Raises:
            BadFile: the mask cannot be read, or has another size.
        """
        return self.read_mask(self.files, id, header)

    def read_mask(self, files: LabelFiles, id: str, header: Header) -> np.ndarray | None:
        """The mask that another folder has for an image of this one, [H, W] uint8, or None.

        Raises:
            BadFile: the mask cannot be read, or has another size.
        """
        path = files.find(Kind.MASKS, id)
        if path is None:
            return None
        mask = read_mask(path, self.classes).numpy()
        size = mask.shape[0], mask.shape[1]
        require_size(path, size, header.size)
        require_told(self.dataset.image_file(id), header.orientation, header.size, size)
        return mask

    def encoded_mask(self, mask: np.ndarray) -> bytes:
        """The PNG of a mask.

        Args:
            mask: [H, W] uint8.

        Raises:
            ValueError: another shape or dtype, or a number that no class has.
        """
        checked = checked_mask(torch.from_numpy(np.array(mask)), self.classes)
        return encode_mask(checked, self.classes.palette)

    def is_mask(self, id: str, content: bytes) -> bool:
        """Whether the file of an image's mask has just this content."""
        path = self.files.find(Kind.MASKS, id)
        return path is not None and read_bytes(path) == content

    # ------------------------------------------------------------------- tags

    def present(self, id: str) -> list[int] | None:
        """The classes that an image's tags say it shows, or None where it was not tagged.

        Raises:
            BadFile: a tag list cannot be read.
        """
        values = self.tags.of(id)
        return None if values is None else np.flatnonzero(values == 1).tolist()

    def set_tags(self, id: str, present: Collection[int]) -> None:
        """Tag an image; what was marked as difficult only stays so unless it is present now.

        Raises:
            BadFile: a tag list cannot be read, and is left as it is.
        """
        before = self.tags.of(id)
        values = np.zeros(len(self.classes), dtype=np.uint8)
        if before is not None:
            values[before == IGNORE_INDEX] = IGNORE_INDEX
        values[list(present)] = 1
        self.tags.put(id, values)

    # --------------------------------------------------------------- problems

    def problem(self, id: str, header: Header, kinds: Collection[Kind] = FILE_KINDS) -> Problem | None:
        """What is wrong with the first of an image's label files that cannot be read; reads what was changed only."""
        return next(filter(None, (self._problem(id, header, kind) for kind in kinds)), None)

    def _problem(self, id: str, header: Header, kind: Kind) -> Problem | None:
        stamp = self.files.stamp(kind, id)
        known = self._verdicts.get((id, kind))
        if known is None or known[0] != stamp:
            known = self._verdicts[id, kind] = stamp, self._find_problem(id, header, kind)
        return known[1]

    def _find_problem(self, id: str, header: Header, kind: Kind) -> Problem | None:
        read = {Kind.POINTS: self.points, Kind.BOXES: self.boxes, Kind.MASKS: self.mask}[kind]
        try:
            read(id, header)
        except BadFile as error:
            return error.problem
        return None

    def state(self, id: str) -> bytes:
        """What tells the labels of an image from those that it had before anybody changed them."""
        try:
            tags = self.tags.of(id)
        except BadFile as error:
            content: object = str(error)
        else:
            content = None if tags is None else tags.tolist()
        stamps = [self.files.stamp(kind, id) for kind in FILE_KINDS]
        return hashlib.blake2b(repr((stamps, content)).encode("utf-8", "replace")).digest()


def _is_at(point: Collection[float], x: int, y: int) -> bool:
    """Whether a point lies in a pixel."""
    column, row, *_ = point
    return int(column) == x and int(row) == y
