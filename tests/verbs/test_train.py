"""What a training reports about itself."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from labelwise import methods
from labelwise.errors import UserError
from labelwise.runs import Run
from labelwise.samples import Kind
from labelwise.verbs.train import scratch_folder
from tests.tiny_runs import DETECTOR, OPTIONS, tiny_run


def test_the_best_evaluation_is_told_beside_the_last(shapes_folder: Path, tmp_path: Path) -> None:
    run = tiny_run("supervised", shapes_folder, tmp_path / "run", eval_every=2)
    with (run / "metrics.csv").open(newline="") as file:
        scores = {int(row["step"]): float(row["val/miou"]) for row in csv.DictReader(file) if row["val/miou"]}
    results = json.loads((run / "results.json").read_text())
    assert set(scores) == {2, 4, 6}
    assert results["best_miou"] == max(scores.values()) == scores[results["best_step"]]


def test_without_evaluations_on_the_way_there_is_no_best(shapes_folder: Path, tmp_path: Path) -> None:
    run = tiny_run("supervised", shapes_folder, tmp_path / "run", steps=2)
    assert "best_miou" not in json.loads((run / "results.json").read_text())


def test_a_finished_runs_page_says_so_and_is_written_anew_where_it_is_missing(
    shapes_folder: Path, tmp_path: Path
) -> None:
    page = tiny_run("supervised", shapes_folder, tmp_path / "run", steps=2) / "report.html"
    assert ">finished<" in page.read_text()
    page.unlink()
    tiny_run("supervised", shapes_folder, tmp_path / "run", steps=2)
    assert ">finished<" in page.read_text()


@pytest.mark.parametrize(("method", "base"), [("supervised", OPTIONS), ("faster_rcnn", DETECTOR)])
def test_weaker_labels_that_a_method_needs_follow_from_the_allowed_ones_alone(
    shapes_folder: Path, tmp_path: Path, method: str, base: dict[str, Any]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes_folder, data)
    for id in (data / "ImageSets/Main/train.txt").read_text().split():
        (data / "Annotations" / f"{id}.xml").unlink()
    options = {"anchor_sizes": (8, 16), "output_stride": 8} if method == "faster_rcnn" else {}
    run = tiny_run(method, data, tmp_path / "run", base=base, labels="instances:6", steps=2, **options)
    assert (run / "model.safetensors").is_file()


SCORE_MAP: dict[str, Any] = {name: value for name, value in OPTIONS.items() if name != "decoder_channels"}
SCORE_MAP |= {"backbone": "micro_w4", "head_channels": 8, "output_stride": 4}


@pytest.mark.parametrize("method", ["supervised", "deeplab_v1", "cps"])
def test_clicks_are_masks_that_are_silent_everywhere_else(shapes_folder: Path, tmp_path: Path, method: str) -> None:
    base = SCORE_MAP if method == "deeplab_v1" else OPTIONS
    run = tiny_run(method, shapes_folder, tmp_path / "run", base=base, labels="points:5", steps=2)
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"] == "5 own clicks per image, seed 0"
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert all(0 < loss < 100 for loss in losses)


def test_clicks_that_are_fewer_than_asked_for_are_told(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The scenes come with a click for each object, and the note is written once for each text.
    tiny_run("supervised", shapes_folder, tmp_path / "run", labels="points:97", steps=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "note: --labels points:97: 'train_0000" in said and "others may have as few; all of them count" in said


def test_every_click_counts_even_between_the_points_of_a_score_map(shapes_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes_folder, data)
    for id in (data / "ImageSets/Main/train.txt").read_text().split():
        (data / "SegmentationClass" / f"{id}.png").unlink()
        clicks = {"image": id, "points": [{"x": 5, "y": 7, "class": "background"}]}
        (data / "Points" / f"{id}.json").write_text(json.dumps(clicks))
    run = tiny_run("deeplab_v1", data, tmp_path / "run", base=SCORE_MAP, labels="points", steps=2, crop=0)
    with (run / "metrics.csv").open(newline="") as file:
        assert all(float(row["loss"]) > 0 for row in csv.DictReader(file) if row["loss"])


def test_whole_masks_are_asked_for_where_clicks_are_not_enough(shapes_folder: Path, tmp_path: Path) -> None:
    dense = {name for name in methods.METHODS if methods.load(name).card.needs.dense}
    assert dense == {"adele", "irn", "mars", "psa", "rcnn_regions"}
    assert not any(methods.load(name).card.needs.fit({Kind.POINTS}) for name in dense)
    with pytest.raises(UserError, match="'adele' needs masks"):
        tiny_run("adele", shapes_folder, tmp_path / "run", labels="points:5")


def test_a_data_set_whose_usual_split_has_no_masks_gives_a_model_without_a_score(
    shapes_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes_folder, data)
    for folder in ("SegmentationClass", "SegmentationObject"):
        for id in (data / "ImageSets/Main/val.txt").read_text().split():
            (data / folder / f"{id}.png").unlink()
    run = tiny_run("supervised", data, tmp_path / "run", steps=2)
    assert "miou" not in json.loads((run / "results.json").read_text())
    assert (run / "model.safetensors").is_file()
    with pytest.raises(UserError, match="no split 'holdout'"):
        tiny_run("supervised", data, tmp_path / "other", steps=2, val_split="holdout")


def test_a_further_process_may_be_quicker_than_the_one_that_makes_the_folder(tmp_path: Path) -> None:
    scratch = scratch_folder(tmp_path / "run")
    assert scratch.is_dir()
    # The first process finds an empty folder.
    Run(tmp_path / "run", {"method": "supervised"}).start()
    assert scratch_folder(tmp_path / "run") == scratch
