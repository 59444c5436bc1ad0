"""How answers become labels: what is checked before, and what is written after, the journal has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.annotator.annotations import boxes_of, require_boxes
from labelwise.annotator.clicks import Click
from labelwise.annotator.gallery import Gallery, Header
from labelwise.annotator.recorder import Recorder
from labelwise.annotator.store import LabelStore
from labelwise.datasets.journal import Entry
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind


class Conflict(Exception):
    """Somebody else has changed the image, or answered the question, meanwhile.

    Attributes:
        revision: the image's current one.
    """

    def __init__(self, revision: int) -> None:
        super().__init__("this was changed meanwhile, in another tab or on the disk; load it again")
        self.revision = revision


class Desk:
    """A data set on which answers are written down.

    Attributes:
        store: the labels.
        gallery: the images.
        recorder: the journal, and the statistics of its answers.
    """

    def __init__(self, dataset: VOC, folder: Path) -> None:
        """Go on where the last session ended: what a kill has kept from the label files is written now.

        Args:
            dataset: the folder that the labels go into.
            folder: for the journal.

        Raises:
            BadFile: the journal cannot be read.
            UserError: another process labels the data set.
            OSError: the disk is full or failed.
        """
        self.dataset, self.classes = dataset, dataset.classes
        self.store = LabelStore(dataset)
        self.gallery = Gallery(dataset)
        self.recorder = Recorder(folder, self._apply)
        # Where somebody's nonsense is in the way, it is left alone, and answers are refused with this line until then.
        with suppress(UserError):
            self.recorder.settle()

    def save_tags(self, answer: str, id: str, revision: int, tags: Sequence[int], seconds: float) -> None:
        """Say which classes an image shows, see `AnnotationSession.set_tags`."""
        self.recorder.settle()
        if self.recorder.has(answer, (Kind.TAGS, id)):
            return
        strange = [tag for tag in tags if tag not in self.classes.objects]
        if strange:
            raise ValueError(f"tags: {strange[0]} is the number of no class that an image can show")
        self.gallery.header(id)
        self.store.tags.require_usable(id)
        self.require_current(id, revision)
        self._record(answer, Kind.TAGS, id, seconds, {"tags": [self.classes.names[tag] for tag in sorted(set(tags))]})

    def save_boxes(
        self, answer: str, id: str, revision: int, boxes: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        """Give an image its boxes, see `AnnotationSession.set_boxes`."""
        self.recorder.settle()
        if self.recorder.has(answer, (Kind.BOXES, id)):
            return
        header = self.require_labelable(id, Kind.BOXES)
        require_boxes(boxes, header.size, self.classes)
        self.require_current(id, revision)
        names = self.classes.names
        rows = [
            {"box": list(box["box"]), "class": names[box["class"]], "difficult": bool(box.get("difficult"))}
            for box in boxes
        ]
        self._record(answer, Kind.BOXES, id, seconds, {"boxes": rows})

    def save_mask(self, answer: str, id: str, revision: int, mask: np.ndarray, seconds: float) -> None:
        """Give an image its mask, see `AnnotationSession.set_mask`."""
        self.recorder.settle()
        if self.recorder.has(answer, (Kind.MASKS, id)):
            return
        content = self.store.encoded_mask(mask)
        header = self.require_labelable(id, Kind.MASKS)
        if mask.shape != header.size:
            size = f"{header.width}x{header.height}"
            raise ValueError(f"mask: it has {mask.shape[1]}x{mask.shape[0]} pixels, but the image has {size}")
        # A kill after the mask and before its line of the journal leaves the mask that is sent again now.
        if not self.store.is_mask(id, content):
            self.require_current(id, revision)
            self.store.files.put(Kind.MASKS, id, content)
        self._record(answer, Kind.MASKS, id, seconds, {"sha256": hashlib.sha256(content).hexdigest()})

    def revision(self, id: str) -> int:
        """A number of 31 bits that is another one when anybody has changed the labels of an image."""
        content = b"%d " % self.recorder.changes(id) + self.store.state(id)
        return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest()) >> 1

    def require_current(self, id: str, revision: int) -> None:
        """Refuse a change by somebody who has not seen the labels as they are.

        Raises:
            Conflict: the labels were changed.
        """
        if revision != self.revision(id):
            raise Conflict(self.revision(id))

    def require_labelable(self, id: str, kind: Kind) -> Header:
        """The header of an image, if it and its labels of a kind can be read.

        Raises:
            BadFile: they cannot.
        """
        problem = self.gallery.problem(id)
        if problem is None:
            problem = self.store.problem(id, self.gallery.header(id), (kind,))
        if problem is not None:
            raise BadFile(problem)
        return self.gallery.header(id)

    def _record(self, answer: str, kind: Kind, id: str, seconds: float, content: Mapping[str, Any]) -> None:
        self.recorder.record(answer, kind, id, seconds, content)
        self.recorder.settle()

    def _apply(self, entry: Entry) -> None:
        """Bring an entry of the journal to the label files; doing so again changes nothing."""
        if entry.kind is Kind.MASKS:
            return  # the file was written before the entry
        try:
            header = self.gallery.header(entry.id)
        except BadFile:
            return  # somebody has taken the image away
        number = self.classes.number
        match entry.kind:
            case Kind.POINTS:
                self._apply_point(entry, header)
            case Kind.TAGS:
                self.store.set_tags(entry.id, [number(name) for name in entry.content["tags"]])
            case _:
                self.store.set_boxes(entry.id, header, boxes_of(entry.content["boxes"], self.classes))

    def _apply_point(self, entry: Entry, header: Header) -> None:
        click, number = Click.of(entry), self.classes.number
        if click.label is None:
            return
        label = number(click.label)
        if entry.undone is None:
            self.store.set_point(click.id, header, click.x, click.y, label)
        elif self.store.label_at(click.id, header, click.x, click.y) == label:
            before = None if click.before is None else number(click.before)
            self.store.set_point(click.id, header, click.x, click.y, before)
