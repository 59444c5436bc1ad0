"""The page of a recipe, and the sheet of what its stages made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelwise.errors import BadFile
from labelwise.reports.recipe_page import write_recipe_report

Read = Callable[[Path], Any]
HOSTILE = '<script>alert("1")</script>'

RECIPE: dict[str, Any] = {
    "recipe": "tags_cam_irn",
    "about": HOSTILE,
    "text": "# what it does\nstages: {}\n",
    "data": "/data/VOC2012",
    "seed": 0,
    "preset": None,
    "command": ["labelwise", "run", "tags_cam_irn"],
    "stages": [
        {"name": "model", "kind": "train", "subject": "cam", "reads": ["data"], "settings": {}, "folder": "1-model"},
        {
            "name": "seeds",
            "kind": "annotate",
            "subject": "model",
            "reads": ["data"],
            "settings": {},
            "folder": "2-seeds",
        },
        {
            "name": "score",
            "kind": "evaluate",
            "subject": "seeds",
            "reads": ["data"],
            "settings": {},
            "folder": "3-score",
        },
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    return tmp_path


def record(folder: Path, name: str, **entries: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(entries))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(path)


def test_the_page_shows_the_stages_their_scores_times_options_and_the_recipe(folder: Path, read_page: Read) -> None:
    score = {"name": "seed mIoU", "value": 48.312}
    record(folder, "1-model", status="finished", seconds=250.0, score=None, settings={"options": {"crop": 512}})
    record(folder, "3-score", status="finished", seconds=8.31, score=score)
    page = read_page(write_recipe_report(folder))
    for part in ("tags_cam_irn", HOSTILE, "/data/VOC2012", "seed 0", "# what it does stages: {}"):
        assert part in page.text
    for part in ("train cam", "4 min 10 s", "48.31", "seed mIoU of seeds", "annotate model", "not run"):
        assert part in page.text
    assert "options.crop512" in page.text and "preset" not in page.text
    assert "labelwise run tags_cam_irn" in page.text


def test_the_page_says_which_stage_stopped_and_why(folder: Path, read_page: Read) -> None:
    record(folder, "1-model", status="stopped", seconds=1.0, reason=f"nan {HOSTILE}")
    text = read_page(write_recipe_report(folder)).text
    assert f"Stage 'model' stopped: nan {HOSTILE}" in text and "stopped" in text


def test_a_stage_that_runs_again_has_no_old_reason(folder: Path, read_page: Read) -> None:
    record(folder, "1-model", status="running", seconds=1.0, reason="SIGTERM")
    assert "SIGTERM" not in read_page(write_recipe_report(folder)).text


def test_pictures_of_the_recipe_and_of_its_stages_are_on_the_page(folder: Path, read_page: Read) -> None:
    for path in ("pictures/stages.png", "1-model/pictures/iou_curves.png", "3-score/pictures/predictions.png"):
        picture(folder / path)
    page = read_page(write_recipe_report(folder))
    assert page.tags.count("img") == 3
    assert "What each stage made of the same images" in page.text
    assert "model: iou curves" in page.text and "score: predictions" in page.text


def test_a_stage_with_a_page_is_linked(folder: Path, read_page: Read) -> None:
    (folder / "1-model").mkdir()
    (folder / "1-model" / "report.html").touch()
    addresses = read_page(write_recipe_report(folder)).addresses
    assert [address for address in addresses if not address.startswith("data:")] == ["1-model/report.html"]


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_record_is_named(folder: Path, content: str) -> None:
    (folder / "1-model.json").write_text(content)
    with pytest.raises(BadFile, match=r"1-model.json: (not readable|does not hold)"):
        write_recipe_report(folder)
