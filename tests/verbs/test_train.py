"""What a training reports about itself."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from labelwise.runs import Run
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


def test_a_further_process_may_be_quicker_than_the_one_that_makes_the_folder(tmp_path: Path) -> None:
    scratch = scratch_folder(tmp_path / "run")
    assert scratch.is_dir()
    # The first process finds an empty folder.
    Run(tmp_path / "run", {"method": "supervised"}).start()
    assert scratch_folder(tmp_path / "run") == scratch
