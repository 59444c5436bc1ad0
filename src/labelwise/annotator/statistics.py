"""What a person has done and how long it took, kept up answer by answer."""

from __future__ import annotations

from array import array
from bisect import insort
from collections import Counter
from datetime import datetime

from labelwise.datasets.journal import LABELED_KINDS, Entry, Tally
from labelwise.samples import Kind


class Statistics:
    """Numbers of answers and their times for each kind of label.

    The time of an answer that was skipped or taken back stays in the sums, as the person spent it.
    """

    def __init__(self) -> None:
        """Start with no answer."""
        self._tally = Tally()
        self._answers: Counter[Kind] = Counter()
        self._today: Counter[Kind] = Counter()
        self._day = ""
        # Sorted, so that the median is the one in the middle; eight bytes for each answer.
        self._times = {kind: array("d") for kind in LABELED_KINDS}

    def add(self, entry: Entry) -> None:
        """Count an entry of the journal."""
        self._start_day(datetime.fromisoformat(entry.time))
        undone = entry.undone
        if undone is None:
            insort(self._times[entry.kind], entry.seconds)
            change = int(not entry.skipped)
        else:
            change = -int(undone not in self._tally.undone and undone not in self._tally.skips)
        self._tally.add(entry)
        self._answers[entry.kind] += change
        self._today[entry.kind] += change

    def described(self) -> dict[str, dict[str, float | int | None]]:
        """The statistics of every kind.

        Returns:
            kind -> `answers` (without those skipped or taken back), `skipped`, `seconds` (of all answers),
            `seconds_mean` and `seconds_median` (of one answer, None without any), `minutes`, `per_minute` (answers a
            minute, None without any), `today` (answers since midnight) and `each` (what one label costs in seconds, as
            `journal.measured_costs` counts it, None without any).
        """
        self._start_day(datetime.now().astimezone())
        measured = self._tally.measured()
        return {
            kind.value: self._of(kind) | {"each": measured[kind].seconds if kind in measured else None}
            for kind in LABELED_KINDS
        }

    def _of(self, kind: Kind) -> dict[str, float | int | None]:
        times, seconds = self._times[kind], self._tally.seconds[kind]
        answers = self._answers[kind]
        middle = len(times) // 2
        return {
            "answers": answers,
            "skipped": len(self._tally.skips) if kind is Kind.POINTS else 0,
            "seconds": round(seconds, 3),
            "seconds_mean": seconds / len(times) if times else None,
            "seconds_median": (times[middle] + times[~middle]) / 2 if times else None,
            "minutes": seconds / 60,
            "per_minute": 60 * answers / seconds if seconds else None,
            "today": max(self._today[kind], 0),
        }

    def _start_day(self, time: datetime) -> None:
        """Count from nothing where a new day has begun on this machine."""
        day = time.astimezone().date().isoformat()
        if day > self._day:
            self._day = day
            self._today.clear()
