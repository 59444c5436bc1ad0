from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import labelwise
from labelwise.metrics.segmentation import SegmentationScores
from tests.conftest import Called

Call = Callable[..., Called]


@pytest.fixture
def shapes_copy(shapes_folder: Path, tmp_path: Path) -> Path:
    """A copy of `shapes_folder` that may be spoiled."""
    return Path(shutil.copytree(shapes_folder, tmp_path / "copy"))


def test_the_score_has_the_promised_keys_and_is_the_runs_own(
    call: Call, shapes_folder: Path, trained_run: Path
) -> None:
    scored = call("evaluate", trained_run, "--data", shapes_folder, "--json").json
    assert list(scored)[:4] == ["miou", "iou", "pixel_accuracy", "images"]
    assert scored["images"] == 4 and scored["skipped"] == []
    assert list(scored["iou"]) == list(labelwise.open(shapes_folder).classes.names)
    results = json.loads((trained_run / "results.json").read_text())
    assert {key: scored[key] for key in ("miou", "iou", "pixel_accuracy", "boundary_iou")} == {
        key: results[key] for key in ("miou", "iou", "pixel_accuracy", "boundary_iou")
    }


def test_the_score_is_that_of_the_predicted_masks(
    call: Call, shapes_folder: Path, trained_run: Path, tmp_path: Path
) -> None:
    dataset = labelwise.open(shapes_folder)
    images = [dataset.image_file(id) for id in dataset.ids("val")]
    call("predict", trained_run, *images, "--out", tmp_path)
    scores = SegmentationScores(dataset.classes.names)
    for id in dataset.ids("val"):
        mask = dataset.read(id, {"masks"}).mask
        assert mask is not None
        predicted = np.array(Image.open(tmp_path / f"{id}.png"))
        scores.update(mask.new_tensor(predicted)[None], mask[None])
    scored = call("evaluate", trained_run, "--data", shapes_folder, "--json").json
    assert scored["miou"] == pytest.approx(scores.compute().miou)


def test_any_split_can_be_scored_in_any_precision(call: Call, shapes_folder: Path, trained_run: Path) -> None:
    scored = call("evaluate", trained_run, "--data", shapes_folder, "--split", "train", "--json").json
    assert scored["images"] == 12 and scored["protocol"] == "split 'train' of shapes"
    half = call("evaluate", trained_run, "--data", shapes_folder, "--precision", "bf16-mixed", "--json").json
    assert half["images"] == 4


def test_an_unknown_split_is_refused_with_a_suggestion(call: Call, shapes_folder: Path, trained_run: Path) -> None:
    refused = call("evaluate", trained_run, "--data", shapes_folder, "--split", "vall")
    assert refused.message == f"{shapes_folder}: no split 'vall'; did you mean 'val'?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "background\nball\nring\nstar\nleaf\ncup\nkey\nfish\nsnake\n",
            "class 8 is 'snake', but the model was trained w",
        ),
        ("background\nball\nring\n", "has 3 classes, but the model was trained on 9"),
    ],
)
def test_other_classes_are_refused(
    call: Call, shapes_copy: Path, trained_run: Path, content: str, message: str
) -> None:
    (shapes_copy / "classes.txt").write_text(content)
    assert message in call("evaluate", trained_run, "--data", shapes_copy).message


def test_images_without_masks_do_not_take_part(call: Call, shapes_copy: Path, trained_run: Path) -> None:
    masks = [shapes_copy / f"{folder}/val_000001.png" for folder in ("SegmentationClass", "SegmentationObject")]
    for path in masks:
        path.unlink()
    assert call("evaluate", trained_run, "--data", shapes_copy, "--json").json["images"] == 3
    for folder in ("SegmentationClass", "SegmentationObject"):
        shutil.rmtree(shapes_copy / folder)
    refused = call("evaluate", trained_run, "--data", shapes_copy)
    assert refused.message == f"{shapes_copy}: no image of split 'val' has masks; name another split"


def test_broken_files_stop_the_evaluation_unless_they_are_skipped(
    call: Call, shapes_copy: Path, trained_run: Path
) -> None:
    for number in (1, 3):
        (shapes_copy / f"JPEGImages/val_00000{number}.jpg").write_bytes(b"\xff\xd8")
    refused = call("evaluate", trained_run, "--data", shapes_copy)
    assert refused.message.startswith(f"{shapes_copy}/JPEGImages/val_000001.jpg: ")
    assert "note: 1 more broken files" in refused.err
    scored = call("evaluate", trained_run, "--data", shapes_copy, "--skip-broken", "--json")
    assert scored.json["images"] == 2
    assert scored.json["skipped"] == ["val_000001", "val_000003"]
    assert scored.err.count("note: skipped: ") == 2
    for number in (0, 2):
        (shapes_copy / f"JPEGImages/val_00000{number}.jpg").write_bytes(b"\xff\xd8")
    refused = call("evaluate", trained_run, "--data", shapes_copy, "--skip-broken")
    assert refused.message == f"split 'val' of {shapes_copy}: every image is broken; mend the files"
