"""Point labels by question and answer: the queried pixels of a batch, named one after the other."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from labelwise.annotator.clicks import Click, Clicks
from labelwise.annotator.desk import Conflict, Desk
from labelwise.annotator.listing import ImageListing
from labelwise.annotator.queue import QueryQueue
from labelwise.annotator.recorder import UNDO
from labelwise.datasets.journal import read_journal
from labelwise.datasets.queries import Query, QueryFile
from labelwise.errors import BadFile
from labelwise.samples import Kind

NEXT = 8
"""How many of the next questions come with the acknowledgement of an answer."""


class PointQuestions:
    """The questions of a batch, and what becomes of their answers."""

    def __init__(self, desk: Desk, listing: ImageListing, known: Container[str], file: QueryFile) -> None:
        """Ask the questions of a batch, without those that were answered in an earlier session.

        Args:
            desk: where answers are written down.
            listing: where the problems of images are listed.
            known: the images of the session; questions about others are passed over.
            file: the batch.
        """
        self._desk, self._listing, self._known = desk, listing, known
        self.ask(file)

    @property
    def queue(self) -> QueryQueue:
        """The questions of the batch."""
        return self._clicks.queue

    def ask(self, file: QueryFile) -> None:
        """Ask the questions of another batch from now on, without those that were answered before."""
        clicks = Clicks(QueryQueue(file), self._known)
        for entry in read_journal(self._desk.recorder.path):
            clicks.add(entry)
        self._clicks = clicks

    def upcoming(self, count: int) -> dict[str, Any]:
        """The next questions, see `AnnotationSession.queries`."""
        file = self.queue.file
        return self._clicks.upcoming(count, self._can_be_asked) | {"round": file.round, "strategy": file.strategy}

    def answer(self, answer: str, id: str, x: int, y: int, label: int | None, seconds: float) -> dict[str, Any]:
        """Name or skip a pixel, see `AnnotationSession.answer_point`."""
        self._desk.recorder.settle()
        if not self._desk.recorder.has(answer, (Kind.POINTS, id, x, y)):
            self._record(answer, id, x, y, label, seconds)
        return self._acknowledge(id)

    def undo(self, answer: str) -> dict[str, Any]:
        """Take the latest answer back, see `AnnotationSession.undo`."""
        self._desk.recorder.settle()
        if not self._desk.recorder.has(answer, UNDO):
            self._undo(answer)
        click = self._clicks.undone_by(answer)
        described = None if click is None else click.described(self._desk.classes)
        return self._acknowledge(None if click is None else click.id) | {"undone": described}

    def _can_be_asked(self, query: Query) -> bool:
        """Whether a person can name pixels of an image; what speaks against it is listed with the image."""
        if query.id not in self._known:
            return False
        try:
            header = self._desk.require_labelable(query.id, Kind.POINTS)
        except BadFile as error:
            self._listing.note(query.id, str(error))
            return False
        return header.size == (query.height, query.width)

    def _record(self, answer: str, id: str, x: int, y: int, label: int | None, seconds: float) -> None:
        classes, queue = self._desk.classes, self.queue
        if label is not None and not 0 <= label < len(classes):
            raise ValueError(f"class: {label} is the number of no class; there are {len(classes)}, from 0")
        header = self._desk.require_labelable(id, Kind.POINTS)
        if not (0 <= x < header.width and 0 <= y < header.height):
            raise ValueError(f"x, y: ({x}, {y}) lies outside the {header.width}x{header.height} image")
        before = self._desk.store.label_at(id, header, x, y)
        asked = queue.asks(id, x, y)
        if queue.is_answered(id, x, y) or (before is not None and not asked):
            raise Conflict(self._desk.revision(id))
        name = None if label is None else classes.names[label]
        replaced = None if before is None or label is None else classes.names[before]
        content = Click(0, id, x, y, name, replaced).content | ({"batch": queue.batch} if asked else {})
        self._write(answer, id, seconds, content)

    def _undo(self, answer: str) -> None:
        click = self._clicks.latest()
        if click is None:
            return
        if click.label is not None:
            self._desk.require_labelable(click.id, Kind.POINTS)
        content = {"undo": click.number} | click.content
        self._write(answer, click.id, 0.0, content)

    def _write(self, answer: str, id: str, seconds: float, content: Mapping[str, Any]) -> None:
        self._clicks.add(self._desk.recorder.record(answer, Kind.POINTS, id, seconds, content))
        self._desk.recorder.settle()

    def _acknowledge(self, id: str | None) -> dict[str, Any]:
        upcoming = self.upcoming(NEXT)
        revision = None if id is None else self._desk.revision(id)
        return upcoming | {"statistics": self._desk.recorder.statistics.described(), "revision": revision}
