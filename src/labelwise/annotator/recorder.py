"""From an answer to a label that is not lost: first the journal, then the label files, then the acknowledgement."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from labelwise.annotator.statistics import Statistics
from labelwise.datasets.journal import JOURNAL, Entry, Journal, read_journal
from labelwise.samples import Kind

APPLIED = "applied.txt"
"""The number of the last entry of the journal that the label files have."""

Question = tuple[Kind | str | int, ...]
"""What an answer is about: the kind, the image, and of a point its column and row."""

UNDO: Question = ("undo",)


class Recorder:
    """Writes answers down and sees to it that the label files follow the journal.

    What a kill has kept from the label files is written at the next start: the entries beyond the number in `APPLIED`,
    and no other, so that what somebody has edited since stays.

    Attributes:
        statistics: of all answers.
    """

    def __init__(self, folder: Path, apply: Callable[[Entry], None]) -> None:
        """Read the journal of a folder, or start it.

        Args:
            folder: where the journal lies.
            apply: brings an entry to the label files; called again with the same entry where it could not.

        Raises:
            BadFile: the journal cannot be read.
            UserError: another process has it open.
            OSError: it cannot be written to.
        """
        self.statistics = Statistics()
        self.path = folder / JOURNAL
        self._apply = apply
        self._journal = Journal(self.path)
        self._mark = _Mark(folder / APPLIED, self._journal.last)
        self._waiting: deque[Entry] = deque()
        self._changes: Counter[str] = Counter()
        self._questions: dict[str, int] = {}
        for entry in read_journal(self.path):
            self._count(entry)
            if entry.number > self._mark.number:
                self._waiting.append(entry)

    def close(self) -> None:
        """Let other processes have the journal."""
        self._journal.close()
        self._mark.close()

    def changes(self, id: str) -> int:
        """How many answers there were for an image."""
        return self._changes[id]

    def has(self, answer: str, question: Question) -> bool:
        """Whether an answer is in the journal already.

        Raises:
            ValueError: it is, but as the answer to another question.
        """
        known = self._questions.get(answer)
        if known is not None and known != hash(question):
            raise ValueError(f"answer: '{answer}' was given to another question already; use a new identifier")
        return known is not None

    def record(self, answer: str, kind: Kind, id: str, seconds: float, content: Mapping[str, Any]) -> Entry:
        """Write an answer into the journal; `settle` brings it to the label files.

        Raises:
            OSError: the disk is full or failed, and the journal does not have it.
        """
        entry = self._journal.append(answer, kind, id, seconds, content)
        self._count(entry)
        self._waiting.append(entry)
        return entry

    def settle(self) -> None:
        """Bring to the label files what the journal is ahead of them.

        Raises:
            BadFile: a label file cannot be read; nothing is written before somebody has mended or removed it.
            OSError: the disk is full or failed.
        """
        while self._waiting:
            entry = self._waiting[0]
            self._apply(entry)
            self._mark.move(entry.number)
            self._waiting.popleft()

    def _count(self, entry: Entry) -> None:
        self.statistics.add(entry)
        self._changes[entry.id] += 1
        self._questions[entry.answer] = hash(_question_of(entry))


def _question_of(entry: Entry) -> Question:
    if entry.kind is not Kind.POINTS:
        return entry.kind, entry.id
    return UNDO if entry.undone is not None else (entry.kind, entry.id, entry.content["x"], entry.content["y"])


class _Mark:
    """A number in a file that outlives a killed process; written in place, which is as good as nothing to pay for."""

    def __init__(self, path: Path, last: int) -> None:
        try:
            self.number = min(int(path.read_text()), last)
        except (OSError, ValueError):
            # Without the mark nobody can tell what was edited since, so that nothing is written again.
            self.number = last
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.move(self.number)

    def move(self, number: int) -> None:
        os.pwrite(self._descriptor, f"{number:012d}\n".encode(), 0)
        self.number = number

    def close(self) -> None:
        os.close(self._descriptor)
