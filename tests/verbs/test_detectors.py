"""Predictions of detectors as files, as a data set, and as an evaluation's page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import labelwise
from labelwise.datasets.voc_xml import read_annotation
from labelwise.detections import Detections
from labelwise.hardware import Hardware
from labelwise.samples import Kind
from labelwise.scoring import detected
from labelwise.verbs.outputs import BoxOutput, ShapeOutput
from labelwise.verbs.predict import load_output
from tests.conftest import Called
from tests.tiny_runs import DETECTOR, tiny_run

Call = Callable[..., Called]
ALL = 1e-6
"""A least score that every object of an untrained detector reaches."""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Path:
    """The run of a detector that has hardly learned; its scores are low."""
    out = tmp_path_factory.mktemp("runs") / "faster_rcnn"
    small = {"output_stride": 8, "anchor_sizes": (8, 16), "score_threshold": 0.0, "max_detections": 20}
    return tiny_run("faster_rcnn", shapes_folder, out, base=DETECTOR, labels="boxes:all", **small)


def test_a_prediction_holds_every_object_and_the_annotation_the_sure_ones(
    call: Call, detector: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    path, out = shapes_folder / "JPEGImages/val_000000.jpg", tmp_path / "out"
    found = detected(labelwise.load_model(detector), labelwise.open(shapes_folder).read("val_000000"))  # type: ignore[arg-type]
    assert len(found) > 2
    middle = float(found.scores[len(found) // 2])
    called = call("predict", detector, path, "--out", out, "--least-score", middle, "--json")
    assert called.code == 0
    (entry,) = called.json["images"]
    objects = json.loads(Path(entry["file"]).read_text())["objects"]
    names = labelwise.open(shapes_folder).classes.names
    assert [each["class"] for each in objects] == [names[label] for label in found.labels.tolist()]
    assert np.allclose([each["score"] for each in objects], found.scores.numpy(), atol=1e-5)
    assert np.allclose([each["box"] for each in objects], found.boxes.numpy(), atol=0.01)
    annotation = read_annotation(Path(entry["labels"]))
    whole = [each for each in objects if each["score"] >= middle - 1e-6]
    assert 0 < len(annotation.names) <= len(whole) < len(objects) and annotation.size == (48, 48)
    assert sum(entry["classes"].values()) == len(annotation.names)
    with Image.open(entry["overlay"]) as picture:
        assert picture.size == (48, 48)


def test_the_same_call_again_replaces_its_own_predictions_and_no_other_file(
    call: Call, detector: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    words = ("predict", detector, shapes_folder / "JPEGImages/val_000000.jpg", "--out", tmp_path)
    (tmp_path / "val_000000.xml").write_text("mine")
    assert "val_000000.xml, which is no prediction" in call(*words).message
    (tmp_path / "val_000000.xml").unlink()
    assert call(*words).code == 0 and call(*words).code == 0


def test_annotations_are_boxes_that_other_methods_learn_from(
    call: Call, detector: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "annotated"
    words = ("annotate", detector, "--data", shapes_folder, "--split", "val", "--out", out, "--least-score", ALL)
    assert call(*words).code == 0
    annotated, original = labelwise.open(out), labelwise.open(shapes_folder)
    assert annotated.kinds("val") == {Kind.BOXES, Kind.TAGS}
    model = labelwise.load_model(detector)
    for id in annotated.ids("val"):
        sample, found = annotated.read(id, {Kind.BOXES}), detected(model, original.read(id))  # type: ignore[arg-type]
        assert sample.boxes is not None and sample.box_labels is not None
        wide = (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all(1)
        assert sample.box_labels.tolist() == found.labels[wide].tolist()
        assert torch.allclose(sample.boxes.as_subclass(torch.Tensor), found.boxes[wide], atol=1.01)
    again = tmp_path / "again"
    assert call(*words[:7], again, "--least-score", 1).code == 0
    empty = [labelwise.open(again).read(id, {Kind.BOXES}) for id in annotated.ids("val")]
    assert all(sample.boxes is not None and len(sample.boxes) == 0 for sample in empty)
    assert "holds something else" in call(*words[:7], again, "--least-score", 0.5).message


def test_an_evaluation_can_leave_a_page(call: Call, detector: Path, shapes_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    words = ("evaluate", detector, "--data", shapes_folder, "--out", out, "--json")
    scores = call(*words).json
    assert json.loads((out / "results.json").read_text()) == scores
    assert {"map", "ap", "map_voc07", "map_area", "map_70", "coco_ap", "curves", "proposals"} <= scores.keys()
    assert "<svg" in (out / "report.html").read_text() and (out / "pictures" / "predictions.png").is_file()
    assert call(*words).code == 0
    (out / "mine.txt").touch()
    assert "holds something else than an evaluation" in call(*words).message


@pytest.mark.parametrize("score", ["-0.1", "1.5"])
def test_a_score_is_a_share(call: Call, detector: Path, shapes_folder: Path, tmp_path: Path, score: str) -> None:
    path = shapes_folder / "JPEGImages/val_000000.jpg"
    assert "--least-score" in call("predict", detector, path, "--out", tmp_path, f"--least-score={score}").message


def test_boxes_thinner_than_a_pixel_become_no_labels(detector: Path) -> None:
    output = load_output(detector, Hardware(accelerator="cpu"), None, 0.5)
    assert isinstance(output, BoxOutput) and not isinstance(output, ShapeOutput)
    boxes = torch.tensor([[1.0, 1.0, 1.5, 9.0], [1.0, 1.0, 3.0, 9.0], [1.0, 1.0, 3.0, 9.0]])
    found = Detections(boxes=boxes, labels=torch.tensor([1, 1, 1]), scores=torch.tensor([0.9, 0.8, 0.4]))
    assert output.sure(found).scores.tolist() == [pytest.approx(0.8)]
