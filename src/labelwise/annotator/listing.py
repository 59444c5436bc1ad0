"""All images at a glance: which labels each has, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelwise.annotator.annotations import Boxes
from labelwise.annotator.gallery import Gallery
from labelwise.annotator.label_files import FILE_KINDS
from labelwise.annotator.store import LabelStore, Point
from labelwise.errors import BadFile
from labelwise.samples import Kind

_KINDS = (*FILE_KINDS, Kind.TAGS)
_SHOWN = (Kind.POINTS, Kind.TAGS, Kind.BOXES, Kind.MASKS)


@dataclass
class Drawable:
    """The labels of an image that can be read."""

    points: list[Point]
    boxes: Boxes | None
    mask: np.ndarray | None


class ImageListing:
    """The images of a session with their labels and problems.

    Looking for problems takes the decoding of an image, so that they are known of images that were shown or inspected.
    """

    def __init__(self, ids: Sequence[str], store: LabelStore, gallery: Gallery) -> None:
        """Open nothing yet."""
        self._ids, self._store, self._gallery = ids, store, gallery
        self._problems: dict[str, str] = {}

    def find(self, filter: str, search: str) -> list[str]:
        """The images that a filter lets through and whose id contains some text, in the order of the split.

        Raises:
            ValueError: an unknown filter.
        """
        text = search.casefold()
        found = [id for id in self._ids if text in id.casefold()] if text else list(self._ids)
        if filter == "all":
            return found
        if filter == "broken":
            return [id for id in found if id in self._problems]
        if filter == "unlabeled":
            labeled = set().union(*self._having().values())
            return [id for id in found if id not in labeled]
        if filter not in _SHOWN:
            names = ", ".join(("all", "unlabeled", *_SHOWN, "broken"))
            raise ValueError(f"filter: '{filter}' is none of {names}")
        having = self._having()[Kind(filter)]
        return [id for id in found if id in having]

    def described(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Size, kinds of labels and problem of images; a size that cannot be known is 0."""
        having = self._having()
        return [self._described(id, having) for id in ids]

    def inspect(self, id: str) -> str | None:
        """What is wrong with an image or its labels, in one line; reads only what was changed since the last time."""
        problem = self._gallery.problem(id)
        if problem is None:
            problem = self._store.problem(id, self._gallery.header(id))
        if problem is None:
            self._problems.pop(id, None)
            return None
        self._problems[id] = str(problem)
        return self._problems[id]

    def note(self, id: str, problem: str) -> None:
        """Remember a problem that was come upon."""
        self._problems[id] = problem

    def drawable(self, id: str) -> Drawable:
        """The labels of an image that can be read."""
        drawn = Drawable([], None, None)
        try:
            header = self._gallery.header(id)
        except BadFile:
            return drawn
        if self._store.problem(id, header, (Kind.POINTS,)) is None:
            drawn.points = self._store.points(id, header)
        if self._store.problem(id, header, (Kind.BOXES,)) is None:
            drawn.boxes = self._store.boxes(id, header)
        if self._store.problem(id, header, (Kind.MASKS,)) is None:
            drawn.mask = self._store.mask(id, header)
        return drawn

    def labels(self, id: str) -> dict[str, Any]:
        """The labels of an image as the page gets them, without those that cannot be read."""
        drawn = self.drawable(id)
        boxes = drawn.boxes
        return {
            "points": [{"x": int(x), "y": int(y), "class": label} for x, y, label in drawn.points],
            "tags": self._tags(id),
            "boxes": [] if boxes is None else [
                {"box": box, "class": label, "difficult": difficult}
                for box, label, difficult in zip(
                    boxes.boxes.tolist(), boxes.labels.tolist(), boxes.difficult.tolist(), strict=True
                )
            ],
            "mask": drawn.mask is not None,
        }  # fmt: skip

    def _tags(self, id: str) -> list[int] | None:
        try:
            return self._store.present(id)
        except BadFile as error:
            self._problems.setdefault(id, str(error))
            return None

    def _having(self) -> dict[Kind, Set[str]]:
        return {kind: self._having_kind(kind) for kind in _KINDS}

    def _having_kind(self, kind: Kind) -> Set[str]:
        if kind is not Kind.TAGS:
            return self._store.files.having(kind)
        try:
            return self._store.tags.having()
        except BadFile:
            return frozenset()

    def _described(self, id: str, having: dict[Kind, Set[str]]) -> dict[str, Any]:
        height = width = 0
        try:
            height, width = self._gallery.header(id).size
        except BadFile as error:
            self._problems[id] = str(error)
        if id in self._problems:
            # Somebody may have mended it.
            self.inspect(id)
        return {
            "id": id,
            "height": height,
            "width": width,
            "kinds": [kind.value for kind in _SHOWN if id in having[kind]],
            "problem": self._problems.get(id),
        }
