"""What a run's page shows of a detector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelwise.output import print_result
from labelwise.reports.detection_page import detection_section
from labelwise.reports.run_page import SCORE_NAMES, write_run_report

CURVE = {"recall": [25.0, 50.0], "precision": [100.0, 80.0]}
BOXES: dict[str, Any] = {
    "map": 41.25,
    "map_voc07": 41.25,
    "coco_ap": None,
    "ap": {"cat": 82.5, "dog": 0.0, "cow": None},
    "images": 7,
    "curves": {"cat": CURVE, "dog": {"recall": [], "precision": []}},
}
VARIANT = {"0.5": 51.5, "0.7": 33.25, "vol": 44.75}
SHAPES = BOXES | {"map_r": {"sds": VARIANT, "mnc": VARIANT}, "boxes": BOXES}
PROPOSALS = {
    "recall": {"0.5": {"1": 8.0, "2000": 97.5}, "0.7": {"1": 3.0, "2000": 77.5}},
    "mabo": 71.25,
    "mean_number": 1843.2,
    "images": 7,
}


def test_results_without_objects_have_no_section() -> None:
    assert detection_section({"miou": 40.0, "iou": {"cat": 40.0}}, SCORE_NAMES) == {"charts": [], "tables": []}


def test_boxes_have_a_chart_of_precision_and_recall() -> None:
    (chart,) = detection_section(BOXES, SCORE_NAMES)["charts"]
    assert "Precision and recall of boxes" in chart["svg"]
    assert chart["caption"] == "No object found: dog."


def test_of_many_classes_the_worst_are_drawn() -> None:
    names = [f"class {number}" for number in range(10)]
    results = {"curves": dict.fromkeys(names, CURVE), "ap": {name: float(place) for place, name in enumerate(names)}}
    (chart,) = detection_section(results, SCORE_NAMES)["charts"]
    assert all(f">{name}<" in chart["svg"] for name in names[:8])
    assert not any(f">{name}<" in chart["svg"] for name in names[8:])
    assert chart["caption"] == "The 8 of 10 classes with the lowest average precision."


def test_proposals_have_a_chart_of_recall() -> None:
    charts = detection_section(BOXES | {"proposals": PROPOSALS}, SCORE_NAMES)["charts"]
    assert len(charts) == 2
    assert "IoU 0.5" in charts[1]["svg"] and ">2000<" in charts[1]["svg"]
    assert "1,843 proposals" in charts[1]["caption"] and "71.2 %" in charts[1]["caption"]


def test_shapes_have_charts_of_both_and_tables() -> None:
    section = detection_section(SHAPES, SCORE_NAMES)
    assert ["masks" in chart["svg"] for chart in section["charts"]] == [True, False]
    regions, boxes = section["tables"]
    assert regions["rows"][0] == {"name": "SDS", "values": ["51.50", "33.25", "44.75"]}
    assert boxes["rows"][0] == {"name": SCORE_NAMES["map"], "values": ["41.25"]}
    assert SCORE_NAMES["coco_ap"] not in [row["name"] for row in boxes["rows"]]


def test_page_of_a_run_shows_the_section(tmp_path: Path, read_page: Callable[[Path], Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(SHAPES | {"proposals": PROPOSALS}))
    page = read_page(write_run_report(tmp_path))
    for part in ("Detection", "MNC", "33.25", "mean of 0.1 to 0.9", "1,843 proposals", "82.50", "absent"):
        assert part in page.text
    assert page.tags.count("svg") == 3


@pytest.mark.parametrize("as_json", [False, True])
def test_results_are_printed_whole(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    results = SHAPES | {"proposals": PROPOSALS}
    print_result(results, as_json)
    text = capsys.readouterr().out
    if as_json:
        assert json.loads(text) == results
    else:
        for part in ("boxes.map ", "sds", "44.8", "2000", "97.5", "absent"):
            assert part in text
