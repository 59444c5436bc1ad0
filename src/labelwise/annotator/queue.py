"""The questions of a batch: which pixels are still to be named, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labelwise.datasets.queries import Query, QueryFile

EMPTY = QueryFile((), "random", None, 0)
"""The batch of a session without queries."""


@dataclass(frozen=True)
class Question:
    """One pixel that is to be named.

    Attributes:
        query: the image's query.
        x: its column.
        y: its row.
        place: 1, 2, 3, ... among the image's pixels from left to right.
    """

    query: Query
    x: int
    y: int
    place: int

    def described(self) -> dict[str, object]:
        """The question as the page gets it."""
        query = self.query
        size = {"width": query.width, "height": query.height}
        return {"id": query.id, "x": self.x, "y": self.y, **size, "place": self.place, "of": len(query.x)}


class QueryQueue:
    """The questions of a batch in order: image by image, within an image from left to right.

    The images of which the model is least sure come first, so that the labels of whoever stops early are those that
    help most; without a model the images come as the file has them.

    Attributes:
        file: the batch.
        batch: a name for the batch's content, by which the journal tells its answers from those of other batches.
        total: the number of questions.
    """

    def __init__(self, file: QueryFile) -> None:
        """Start with nothing answered."""
        self.file = file
        self.total = file.pixels
        self._queries = sorted(file.images, key=lambda query: -(query.uncertainty or 0.0))
        self._pixels = [_from_left_to_right(query) for query in self._queries]
        self._places = {query.id: place for place, query in enumerate(self._queries)}
        self._answered: list[set[tuple[int, int]]] = [set() for _ in self._queries]
        self._done = 0
        # No question before this image is open.
        self._first = 0
        content = repr([(query.id, _from_left_to_right(query)) for query in file.images])
        self.batch = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    @property
    def done(self) -> int:
        """The number of questions that were answered or skipped."""
        return self._done

    def uncertainty(self, id: str) -> float | None:
        """How unsure the model is of an image, or None."""
        place = self._places.get(id)
        return None if place is None else self._queries[place].uncertainty

    def asks(self, id: str, x: int, y: int) -> bool:
        """Whether the batch asks for this pixel, answered or not."""
        place = self._places.get(id)
        return place is not None and (x, y) in self._pixels[place]

    def is_answered(self, id: str, x: int, y: int) -> bool:
        """Whether this question was answered or skipped."""
        place = self._places.get(id)
        return place is not None and (x, y) in self._answered[place]

    def answer(self, id: str, x: int, y: int) -> None:
        """Take a question out; pixels that nobody asked for are passed over."""
        if self.asks(id, x, y) and not self.is_answered(id, x, y):
            self._answered[self._places[id]].add((x, y))
            self._done += 1

    def take_back(self, id: str, x: int, y: int) -> None:
        """Ask an answered question again."""
        if self.is_answered(id, x, y):
            place = self._places[id]
            self._answered[place].remove((x, y))
            self._done -= 1
            self._first = min(self._first, place)

    def upcoming(self, usable: Callable[[Query], bool]) -> Iterator[Question]:
        """The open questions in order.

        Args:
            usable: whether an image's questions can be asked; the others' stay open and are passed over.
        """
        self._advance()
        for place in range(self._first, len(self._pixels)):
            query, answered = self._queries[place], self._answered[place]
            if len(answered) < len(self._pixels[place]) and usable(query):
                for number, (x, y) in enumerate(self._pixels[place], start=1):
                    if (x, y) not in answered:
                        yield Question(query, x, y, number)

    def open_in(self, id: str) -> int:
        """How many questions of an image are open."""
        place = self._places.get(id)
        return 0 if place is None else len(self._pixels[place]) - len(self._answered[place])

    def _advance(self) -> None:
        while self._first < len(self._pixels) and len(self._answered[self._first]) == len(self._pixels[self._first]):
            self._first += 1


def _from_left_to_right(query: Query) -> list[tuple[int, int]]:
    return sorted(zip(query.x, query.y, strict=True))
