"""The section of a run's page on rounds."""

from __future__ import annotations

from typing import Any

from labelwise.reports.rounds import rounds_section
from labelwise.reports.run_page import SCORE_NAMES


def recorded(score: float | None, number: int = 1, classes: int = 2) -> dict[str, Any]:
    histogram = {f"class{place}": place + number for place in range(classes)}
    each = {"round": number, "clicks_per_image": 10 * number, "clicks": 3670 * number, "histogram": histogram}
    each |= {"entropy": None if number == 1 else 0.51, "distinct_classes": 4.25, "coverage": 171.5}
    return each if score is None else each | {"miou": score}


def test_a_run_without_rounds_shows_nothing() -> None:
    section = rounds_section({}, SCORE_NAMES)
    assert section["charts"] == [] and section["rows"] == []


def test_every_round_has_a_row_and_the_score_a_curve() -> None:
    section = rounds_section({"rounds": [recorded(41.3), recorded(48.26, 2)]}, SCORE_NAMES)
    assert section["columns"][:3] == ["mean IoU (%)", "clicks per image", "clicks in all"]
    assert section["rows"] == [
        {"name": "round 1", "values": ["41.30", "10", "3,670", "–", "4.25", "171.50"]},
        {"name": "round 2", "values": ["48.26", "20", "7,340", "0.51", "4.25", "171.50"]},
    ]
    score, shares = section["charts"]
    assert "Score by clicks per image" in score["svg"] and "class1" in shares["svg"] and shares["caption"] == ""


def test_rounds_without_a_score_and_many_classes_are_shown_all_the_same() -> None:
    (chart,) = rounds_section({"rounds": [recorded(None, classes=12)]}, SCORE_NAMES)["charts"]
    assert "class11" in chart["svg"] and "class0" not in chart["svg"]
    assert chart["caption"] == "The 8 of 12 classes with the most new pixels in the last round."
