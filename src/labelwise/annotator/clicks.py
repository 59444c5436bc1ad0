"""The answers to questions, which can be taken back from the latest on."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from itertools import islice
from typing import Any

from labelwise.annotator.queue import QueryQueue
from labelwise.datasets.base import Classes
from labelwise.datasets.journal import Entry
from labelwise.datasets.queries import Query
from labelwise.samples import Kind

_KEPT = 1000
"""How many of the latest answers can be taken back."""


@dataclass(frozen=True, slots=True)
class Click:
    """A named or skipped point.

    Attributes:
        number: of its entry in the journal.
        id: the image.
        x: column of the pixel.
        y: its row.
        label: the class name, or None where it was skipped.
        before: the class name that the pixel had before, or None.
        batch: the batch that asked for it, or None.
    """

    number: int
    id: str
    x: int
    y: int
    label: str | None
    before: str | None
    batch: str | None = None

    @classmethod
    def of(cls, entry: Entry) -> Click:
        """The point of an entry of the journal."""
        content = entry.content
        label, before, batch = (content.get(name) for name in ("class", "before", "batch"))
        return cls(entry.number, entry.id, content["x"], content["y"], label, before, batch)

    @property
    def content(self) -> dict[str, Any]:
        """The fields of an entry about this point."""
        named = {"skipped": True} if self.label is None else {"class": self.label}
        return {"x": self.x, "y": self.y} | named | ({} if self.before is None else {"before": self.before})

    def described(self, classes: Classes) -> dict[str, Any]:
        """The point as the page gets it, with the number of its class."""
        label = None if self.label is None else classes.number(self.label)
        return {"id": self.id, "x": self.x, "y": self.y, "class": label}


class Clicks:
    """A batch's questions, and the latest answers to them and to those of batches before.

    Attributes:
        queue: the questions.
    """

    def __init__(self, queue: QueryQueue, known: Container[str]) -> None:
        """Start without an answer.

        Args:
            queue: the questions.
            known: the images of the session; answers about others cannot be taken back here.
        """
        self.queue, self._known = queue, known
        self._live: dict[int, Click] = {}
        self._undone: tuple[str, Click] | None = None
        self._passed: set[str] = set()

    def add(self, entry: Entry) -> None:
        """Take an entry of the journal into account."""
        if entry.kind is not Kind.POINTS:
            return
        if entry.undone is not None:
            self._take_back(entry.answer, self._live.pop(entry.undone, None))
            return
        click = Click.of(entry)
        if click.batch == self.queue.batch:
            self.queue.answer(click.id, click.x, click.y)
        if click.id in self._known:
            self._live[entry.number] = click
        if len(self._live) > _KEPT:
            del self._live[next(iter(self._live))]

    def _take_back(self, answer: str, click: Click | None) -> None:
        if click is None:
            return
        self._undone = answer, click
        if click.batch == self.queue.batch:
            self.queue.take_back(click.id, click.x, click.y)

    def latest(self) -> Click | None:
        """The latest answer that was not taken back."""
        return self._live[next(reversed(self._live))] if self._live else None

    def undone_by(self, answer: str) -> Click | None:
        """What an undo took back, if it was the last one."""
        return self._undone[1] if self._undone is not None and self._undone[0] == answer else None

    def upcoming(self, count: int, usable: Callable[[Query], bool]) -> dict[str, Any]:
        """The next questions, and how far the batch is.

        Args:
            count: how many questions at most.
            usable: whether an image's questions can be asked.
        """

        def judge(query: Query) -> bool:
            if usable(query):
                self._passed.discard(query.id)
                return True
            self._passed.add(query.id)
            return False

        questions = [question.described() for question in islice(self.queue.upcoming(judge), max(count, 0))]
        return {
            "queries": questions,
            "batch": self.queue.batch,
            "done": self.queue.done,
            "total": self.queue.total,
            "passed_over": sum(map(self.queue.open_in, self._passed)),
        }
