from __future__ import annotations

import statistics as reference
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise.annotator.statistics import Statistics
from labelwise.datasets.journal import Entry
from labelwise.samples import Kind

NOW = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
CLICK, SKIP = {"x": 1, "y": 1, "class": "cat"}, {"x": 1, "y": 1, "skipped": True}


def entry(number: int, seconds: float, content: dict[str, Any], kind: Kind = Kind.POINTS, time: str = NOW) -> Entry:
    return Entry(number, time, str(number), kind, "a", seconds, content)


def test_no_answer_has_no_mean() -> None:
    for of_kind in Statistics().described().values():
        assert of_kind["answers"] == of_kind["seconds"] == of_kind["today"] == 0
        assert of_kind["seconds_mean"] is of_kind["seconds_median"] is of_kind["per_minute"] is of_kind["each"] is None


def test_a_skip_takes_time_but_is_no_answer() -> None:
    statistics = Statistics()
    for number, content in enumerate((CLICK, CLICK, SKIP), start=1):
        statistics.add(entry(number, 2.0 * number, content))
    points = statistics.described()["points"]
    assert points == {
        "answers": 2, "skipped": 1, "seconds": 12.0, "seconds_mean": 4.0, "seconds_median": 4.0, "minutes": 0.2,
        "per_minute": 10.0, "today": 2, "each": 6.0,
    }  # fmt: skip


def test_what_was_taken_back_is_no_answer_but_took_its_time() -> None:
    statistics = Statistics()
    for number, content in enumerate((CLICK, SKIP, {"undo": 1} | CLICK, {"undo": 2} | SKIP, {"undo": 1} | CLICK), 1):
        statistics.add(entry(number, 0.0 if "undo" in content else 3.0, content))
    points = statistics.described()["points"]
    assert (points["answers"], points["skipped"], points["today"], points["seconds"]) == (0, 0, 0, 6.0)


def test_only_todays_answers_are_todays() -> None:
    statistics = Statistics()
    past = (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    statistics.add(entry(1, 1.0, {"tags": []}, Kind.TAGS, past))
    statistics.add(entry(2, 1.0, {"tags": []}, Kind.TAGS))
    assert (statistics.described()["tags"]["answers"], statistics.described()["tags"]["today"]) == (2, 1)


@given(st.lists(st.floats(0, 600), min_size=1, max_size=30))
def test_mean_and_median_are_those_of_all_answers(times: list[float]) -> None:
    statistics = Statistics()
    for number, seconds in enumerate(times, start=1):
        statistics.add(entry(number, seconds, {"sha256": ""}, Kind.MASKS))
    masks = statistics.described()["masks"]
    assert masks["seconds_median"] == pytest.approx(reference.median(times))
    assert masks["seconds_mean"] == pytest.approx(reference.fmean(times))
