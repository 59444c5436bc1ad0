"""The picture of learning curves by class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelwise.reports.learning_curves import LEARNING_CURVES, LEARNING_CURVES_PICTURE, write_learning_curves

CURVE = {"epoch": [0.0, 1.0, 2.0], "iou": [0.0, 0.4, 0.5], "fit": [0.0, 0.4, 0.5], "corrected_after": 2}
BARE = CURVE | {"fit": None, "corrected_after": None}


def drawn(folder: Path, curves: dict[str, Any]) -> Image.Image | None:
    (folder / LEARNING_CURVES).write_text(json.dumps(curves))
    path = write_learning_curves(folder)
    if path is None:
        return None
    assert path == folder / "pictures" / LEARNING_CURVES_PICTURE
    return Image.open(path).convert("RGBA")


def test_a_run_without_curves_gets_no_picture(tmp_path: Path) -> None:
    assert write_learning_curves(tmp_path) is None
    assert drawn(tmp_path, {"cat": BARE | {"epoch": [], "iou": []}}) is None
    assert not (tmp_path / "pictures").exists()


def test_the_fit_and_the_begin_of_the_correction_are_marked_where_they_are(tmp_path: Path) -> None:
    def colors(curve: dict[str, Any]) -> set[tuple[int, ...]]:
        picture = drawn(tmp_path, {"cat": BARE, "$x": curve})
        assert picture is not None
        return {color for _, color in picture.getcolors(2**20)}

    mark = (0xFF, 0x7A, 0x2E, 255)
    assert mark in colors(CURVE) and mark not in colors(BARE)


@pytest.mark.parametrize("classes", [1, 4, 9])
def test_every_class_has_its_panel(tmp_path: Path, classes: int) -> None:
    picture = drawn(tmp_path, {f"class {number}": CURVE for number in range(classes)})
    assert picture is not None
    panels = min(4, classes), -(-classes // 4)
    assert picture.width == pytest.approx(286 * panels[0], abs=2)
    assert picture.height == pytest.approx(55 + 209 * panels[1], abs=2)
