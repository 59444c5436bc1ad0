"""The report of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from labelwise.errors import Problem
from labelwise.reports.inspect_page import write_inspect_report

Read = Callable[[Path], Any]
HOSTILE = '<script>alert("1")</script>'

SUMMARY: dict[str, Any] = {
    "data": "VOC2012",
    "layout": "voc",
    "splits": {"train": 1464, "val": 1449},
    "kinds": {"masks": {"train": 366, "val": 1449}, "captions": {}},
    "classes": ["background", "cat", HOSTILE],
    "background": 0,
    "balance": {
        "background": {"images": 90, "pixels": 900},
        "cat": {"images": 30, "objects": 45, "pixels": 75},
        HOSTILE: {"images": 10, "objects": 11, "pixels": 25},
    },
    "sizes": [(500, 375), (500, 375), (300, 200)],
    "problems": [
        Problem(Path("JPEGImages/a.jpg"), "ends too early", "copy it again"),
        {"path": HOSTILE, "reason": "an RGB mask", "mend": "save it with a palette", "id": "x"},
    ],
    "methods": [
        {"name": "cps", "needs": "few masks + bare images", "fits": True, "title": "Cross pseudo supervision"},
        {"name": "lost", "needs": "no labels", "fits": False},
    ],
    "pictures": {"Eight images of train": Image.new("RGBA", (40, 20))},
    "command": "labelwise inspect VOC2012",
}


def test_page_shows_labels_balance_sizes_problems_and_methods(tmp_path: Path, read_page: Read) -> None:
    path = write_inspect_report(tmp_path / "inspect.html", SUMMARY)
    page = read_page(path)
    for part in ("1,464", "366", "500 × 375", "ends too early", "copy it again", "Cross pseudo supervision"):
        assert part in page.text
    assert "90.00 %" in page.text and "7.50 %" in page.text
    assert "1 that need more" in page.text
    assert page.tags.count("img") == 1
    assert page.text.count(HOSTILE) == 2


def test_bars_are_relative_to_the_most_frequent_object_class(tmp_path: Path) -> None:
    content = write_inspect_report(tmp_path / "inspect.html", SUMMARY).read_text(encoding="utf-8")
    assert "--share: 100.0" in content
    assert f"--share: {100 * 10 / 30}" in content
    assert "--share: 25.0" in content


def test_whole_data_set_is_told_from_one_not_checked(tmp_path: Path, read_page: Read) -> None:
    whole = read_page(write_inspect_report(tmp_path / "a.html", {"data": "x", "problems": []}))
    unchecked = read_page(write_inspect_report(tmp_path / "b.html", {"data": "x"}))
    assert "every file that was read is whole" in whole.text
    assert "Broken files" not in unchecked.text


def test_class_that_never_occurs_stays_in_the_table(tmp_path: Path, read_page: Read) -> None:
    balance = {"cat": {"images": 3}}
    page = read_page(write_inspect_report(tmp_path / "a.html", {**SUMMARY, "balance": balance, "problems": []}))
    assert HOSTILE in page.text
