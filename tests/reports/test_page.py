"""How numbers are written; files that are whole or absent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from labelwise.reports import page


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (page.score, 12.345, "12.35"),
        (page.score, None, "–"),
        (page.score, math.nan, "–"),
        (page.signed, 1.0, "+1.00"),
        (page.signed, -1.0, "-1.00"),
        (page.interval, 0.5, "± 0.50"),
        (page.interval, None, "one seed: no interval"),
        (page.count, 12345, "12,345"),
        (page.count, None, "–"),
        (page.count, 0.12345678, "0.1235"),
        (page.duration, 8.26, "8.3 s"),
        (page.duration, 119.7, "2 min 0 s"),
        (page.duration, 7500, "2 h 5 min"),
        (page.duration, None, "–"),
        (page.memory, 512.0, "512 MB"),
        (page.memory, 2140.3, "2.1 GB"),
        (page.memory, None, "–"),
    ],
)
def test_numbers_are_written_for_people(function: object, value: float | None, text: str) -> None:
    assert callable(function)
    assert function(value) == text


def test_nested_settings_become_rows() -> None:
    rows = page.flattened({"method": "cps", "options": {"crop": [321, 321], "weights": None}})
    assert rows == [("method", "cps"), ("options.crop", "321, 321"), ("options.weights", "–")]


def test_truth_values_and_infinities_are_no_numbers() -> None:
    assert [page.is_number(value) for value in (True, math.inf, "3", None, 3, 0.5)] == [False] * 4 + [True] * 2


def test_page_replaces_the_older_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    page.write_text(path, "old")
    page.write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert list(path.parent.iterdir()) == [path]
