"""The journal of a labelling session: every answer that a person gave, in order, never changed and never lost.

``Labelling/journal.jsonl`` beside the labels has one JSON object per line::

    {"number": 12, "time": "2026-11-21T20:15:03Z", "answer": "8a1f...", "kind": "points", "id": "2007_000032",
     "seconds": 1.84, "x": 12, "y": 7, "class": "cat"}

==========  =====================================================================================================
kind        further fields
==========  =====================================================================================================
``points``  ``x``, ``y``, and ``class`` or ``"skipped": true``; ``"undo": 12`` takes the answer of number 12 back
``tags``    ``tags``: class names
``boxes``   ``boxes``: ``[{"box": [x1, y1, x2, y2], "class": "cat", "difficult": false}]``, half-open as in memory
``masks``   ``sha256`` of the PNG
==========  =====================================================================================================

A line reaches the disk before its answer is acknowledged. A kill in the middle of a line leaves a torn last line, which
was never acknowledged: it is passed over when the journal is read, and cut off before the next line.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from labelwise.datasets.images import refuse
from labelwise.errors import UserError
from labelwise.samples import Kind

FOLDER = "Labelling"
"""Everything of a labelling session that is no label lies in this folder of the data set."""

JOURNAL = "journal.jsonl"

LONGEST = 600.0
"""The most seconds that an answer can have taken: whoever took longer was not labelling all the time."""

LABELED_KINDS = (Kind.POINTS, Kind.TAGS, Kind.BOXES, Kind.MASKS)
"""The kinds of labels that a person can give here."""

_HEAD = ("number", "time", "answer", "kind", "id", "seconds")
_MEND = "correct or remove the line"


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    Attributes:
        number: 1, 2, 3, ...
        time: when it was written, UTC, ISO 8601.
        answer: the identifier by which the client knows its answer.
        kind: what was labeled.
        id: the image.
        seconds: what the answer took, 0 to `LONGEST`.
        content: the further fields of the kind.
    """

    number: int
    time: str
    answer: str
    kind: Kind
    id: str
    seconds: float
    content: Mapping[str, Any]

    @property
    def undone(self) -> int | None:
        """The number of the entry that this one takes back, if it does."""
        return self.content.get("undo")

    @property
    def skipped(self) -> bool:
        """Whether the question was passed over by the person."""
        return self.content.get("skipped") is True

    def line(self) -> bytes:
        """The entry as it is stored, with the end of its line."""
        row = {name: getattr(self, name) for name in _HEAD} | dict(self.content)
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"


class Journal:
    """A journal that answers are added to, by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open or start a journal, and keep it to this process until `close`.

        Args:
            path: the file; its folder must exist.

        Raises:
            BadFile: a line is no entry.
            UserError: another process has it open.
            OSError: the file cannot be written to.
        """
        self.path = path
        self._file = path.open("ab", buffering=0)
        _lock(self._file.fileno(), path)
        self._whole = _Extent()
        for _, self._whole in _entries(path):
            pass

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def last(self) -> int:
        """The number of the last entry, 0 before the first."""
        return self._whole.number

    def close(self) -> None:
        """Let other processes have the journal."""
        self._file.close()

    def append(self, answer: str, kind: Kind, id: str, seconds: float, content: Mapping[str, Any]) -> Entry:
        """Add an entry; it is on the disk when this returns.

        Args:
            answer: the client's identifier of the answer.
            kind: what was labeled.
            id: the image.
            seconds: what the answer took; clamped to 0 ... `LONGEST`.
            content: the further fields of the kind.

        Raises:
            OSError: the disk is full or failed; the journal is as it was.
        """
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        entry = Entry(self.last + 1, time, answer, kind, id, clamped(seconds), content)
        line = (b"" if self._whole.closed else b"\n") + entry.line()
        try:
            # What a kill or a full disk left of an earlier line must not become the start of this one.
            if os.fstat(self._file.fileno()).st_size > self._whole.end:
                self._file.truncate(self._whole.end)
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise
        self._whole = _Extent(self._whole.end + len(line), entry.number)
        return entry


def clamped(seconds: float) -> float:
    """What an answer took as it is counted: 0 to `LONGEST`, to the millisecond; 0 for what is no number."""
    return round(min(max(seconds, 0.0), LONGEST), 3) if math.isfinite(seconds) else 0.0


def read_journal(path: Path) -> Iterator[Entry]:
    """The entries of a journal in their order, one at a time; a torn last line is left out.

    Raises:
        BadFile: a line is no entry, or out of order.
    """
    for entry, _ in _entries(path):
        yield entry


@dataclass(frozen=True)
class Measured:
    """What one label of a kind took the people who labelled a data set.

    Attributes:
        seconds: the mean time for each.
        count: how many there are.
    """

    seconds: float
    count: int


@dataclass
class Tally:
    """What a journal adds up to, entry by entry.

    The time of an answer counts even if it was skipped, taken back or given anew: it is what the labels took.
    """

    seconds: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(LABELED_KINDS, 0.0))
    "by kind, of all answers"
    clicks: int = 0
    "points that were named and not taken back"
    skips: set[int] = field(default_factory=set)
    "the numbers of the skipped points that were not taken back"
    undone: set[int] = field(default_factory=set)
    "the numbers of the points that were taken back"
    tagged: set[str] = field(default_factory=set)
    masked: set[str] = field(default_factory=set)
    boxes: dict[str, int] = field(default_factory=dict)
    "id -> boxes of its latest answer"

    def add(self, entry: Entry) -> None:
        """Count the next entry."""
        self.seconds[entry.kind] += entry.seconds
        match entry.kind:
            case Kind.POINTS:
                self._add_point(entry)
            case Kind.TAGS:
                self.tagged.add(entry.id)
            case Kind.BOXES:
                self.boxes[entry.id] = len(entry.content["boxes"])
            case _:
                self.masked.add(entry.id)

    def _add_point(self, entry: Entry) -> None:
        if entry.undone is None:
            self.clicks += not entry.skipped
            if entry.skipped:
                self.skips.add(entry.number)
        elif entry.undone not in self.undone:
            self.undone.add(entry.undone)
            self.clicks -= entry.undone not in self.skips
            self.skips.discard(entry.undone)

    def measured(self) -> dict[Kind, Measured]:
        """The mean time for each click, tagged image, box and masked image; kinds without any are left out."""
        counts = {
            Kind.POINTS: self.clicks,
            Kind.TAGS: len(self.tagged),
            Kind.BOXES: sum(self.boxes.values()),
            Kind.MASKS: len(self.masked),
        }
        return {kind: Measured(self.seconds[kind] / count, count) for kind, count in counts.items() if count > 0}


def measured_costs(root: Path) -> dict[Kind, Measured]:
    """What labels took the people who labelled a data set in the browser.

    Points count by click (the time of skipped ones included), tags by image, boxes by box (all the time that was spent
    on an image for the boxes that it has now), masks by image (the time of all its answers).

    Args:
        root: the data set's folder.

    Returns:
        kind -> mean time and number; empty where nobody has labelled.

    Raises:
        BadFile: the journal cannot be read.
    """
    tally = Tally()
    for entry in _answers(root):
        tally.add(entry)
    return tally.measured()


def skipped_pixels(root: Path) -> dict[str, list[tuple[int, int]]]:
    """The pixels whose class nobody could tell: there is no use in asking for them again.

    Args:
        root: the data set's folder.

    Returns:
        id -> (x, y) of each; images without any are left out.

    Raises:
        BadFile: the journal cannot be read.
    """
    skipped: dict[int, tuple[str, int, int]] = {}
    for entry in _answers(root):
        if entry.undone is not None:
            skipped.pop(entry.undone, None)
        elif entry.skipped:
            skipped[entry.number] = entry.id, entry.content["x"], entry.content["y"]
    found: dict[str, list[tuple[int, int]]] = {}
    for id, x, y in skipped.values():
        found.setdefault(id, []).append((x, y))
    return found


def _answers(root: Path) -> Iterator[Entry]:
    """The journal of a data set; nothing where nobody has labelled it in the browser."""
    path = root / FOLDER / JOURNAL
    if path.exists():
        yield from read_journal(path)


@dataclass(frozen=True)
class _Extent:
    """How much of a journal is whole: its bytes, the last number, and whether the last line has its end."""

    end: int = 0
    number: int = 0
    closed: bool = True


def _entries(path: Path) -> Iterator[tuple[Entry, _Extent]]:
    """The entries, and how far the file was whole up to each.

    Raises:
        BadFile: a line is no entry, or out of order.
    """
    extent = _Extent()
    try:
        with path.open("rb") as file:
            for place, line in enumerate(file, start=1):
                closed = line.endswith(b"\n")
                try:
                    entry = _entry(line)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    # A power cut may leave the room of the last line filled with zeros.
                    if not closed or b"\0" in line:
                        return
                    refuse(path, f"line {place} is no entry ({type(error).__name__}: {error})", _MEND)
                if entry.number <= extent.number:
                    refuse(path, f"line {place} has number {entry.number} after {extent.number}", _MEND)
                extent = _Extent(extent.end + len(line), entry.number, closed)
                yield entry, extent
    except OSError as error:
        refuse(path, f"it cannot be read ({error.strerror})", "change its permissions")


def _entry(line: bytes) -> Entry:
    """The entry of a line.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    row = json.loads(line)
    number, time, answer, kind, id, seconds = (row.pop(name) for name in _HEAD)
    words = all(isinstance(word, str) for word in (time, answer, id))
    if not words or not isinstance(number, int) or kind not in LABELED_KINDS or not _has_content(Kind(kind), row):
        raise ValueError("a field is missing or of the wrong type")
    return Entry(number, time, answer, Kind(kind), id, clamped(float(seconds)), row)


def _has_content(kind: Kind, row: Mapping[str, Any]) -> bool:
    match kind:
        case Kind.POINTS if "undo" in row:
            return isinstance(row["undo"], int)
        case Kind.POINTS:
            named = row.get("skipped") is True or isinstance(row.get("class"), str)
            return named and isinstance(row.get("x"), int) and isinstance(row.get("y"), int)
        case Kind.MASKS:
            return isinstance(row.get("sha256"), str)
        case _:
            return isinstance(row.get(kind.value), list)


def _lock(descriptor: int, path: Path) -> None:
    """Keep a file to this process, where the system can."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path}: another labelwise labels this data set already; use its page, or stop it") from None
