"""R-CNN: which windows teach what, the fitting after the training, runs from the command line."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise import datasets
from labelwise.configuration import make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.methods.boxes.rcnn import RCNN, best_of_each, regression_pairs
from labelwise.models.boxes import decode_boxes
from labelwise.samples import Kind, Sample
from labelwise.saved import load_model
from labelwise.tasks.windows import class_overlaps
from labelwise.verbs.train import train
from tests.tiny_runs import MACHINE, cut, outcome

OPTIONS: dict[str, Any] = {
    "backbone": "micro_w10",
    "backbone_weights": "none",
    "output_stride": 4,
    "crop": 16,
    "context": 1,
    "proposals": "single",
    "max_proposals": 30,
    "batch_size": 8,
    "steps": 4,
    "learning_rate": 0.01,
}


def rcnn(classes: Classes, **options: Any) -> RCNN:
    torch.manual_seed(0)
    return RCNN(make_config(RCNN, {}, OPTIONS | options), classes)  # type: ignore[arg-type]


def samples_of(folder: Path, count: int = 6) -> list[Sample]:
    dataset = datasets.open(folder)
    return [dataset.read(id, {Kind.BOXES}) for id in dataset.ids("train")[:count]]


def without_objects(sample: Sample) -> Sample:
    assert sample.boxes is not None and sample.box_labels is not None
    boxes = tv_tensors.wrap(sample.boxes[:0], like=sample.boxes)
    difficult = None if sample.difficult is None else sample.difficult[:0]
    return replace(sample, boxes=boxes, box_labels=sample.box_labels[:0], difficult=difficult)


@pytest.fixture
def samples(shapes_folder: Path) -> list[Sample]:
    return samples_of(shapes_folder)


@pytest.fixture
def method(shapes_folder: Path) -> RCNN:
    return rcnn(datasets.open(shapes_folder).classes)


def run(folder: Path, out: Path, **options: Any) -> Path:
    machine = Hardware(**MACHINE | {"checkpoint_every": 1})
    train("rcnn", data=folder, out=out, labels="boxes:all", hardware=machine, **OPTIONS | options)
    return out


# ------------------------------------------------------------------- windows


def test_regression_pairs_lead_to_the_nearest_object_of_their_class() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 2.0]])
    objects = torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 10.0]])
    columns = torch.tensor([0, 0, 1])
    rows, classes, offsets = regression_pairs(boxes, objects, columns, class_overlaps(boxes, objects, columns, 2))
    assert rows.tolist() == [0, 0] and classes.tolist() == [0, 1]
    torch.testing.assert_close(decode_boxes(boxes[rows], offsets), objects[[1, 2]])
    nothing = regression_pairs(boxes, objects[:0], columns[:0], torch.zeros(2, 2))
    assert [len(part) for part in nothing] == [0, 0, 0]


# ---------------------------------------------------------------- completion


def test_completion_comes_to_the_same_result_again(method: RCNN, samples: list[Sample], tmp_path: Path) -> None:
    states = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        method.complete(samples, tmp_path / name)
        states.append({key: value.clone() for key, value in method.network.state_dict().items()})
    assert states[0]["fitted"]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_cut_completion_goes_on_with_its_files(method: RCNN, samples: list[Sample], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    method.complete(samples, whole)
    expected = method.network.svm_weight.clone()
    parts.mkdir()
    for number in range(3):
        shutil.copy(whole / f"{number}.npz", parts)

    class Rest(Sequence[Sample]):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: Any) -> Any:
            assert index >= 3, "has been computed already"
            return samples[index]

    method.complete(Rest(), parts)
    assert torch.equal(method.network.svm_weight, expected)


def test_machines_know_the_objects_they_saw(shapes_folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    method = rcnn(datasets.open(shapes_folder).classes, svm_cost=100.0)
    method.complete(samples, tmp_path)
    right = []
    for sample in samples:
        objects, columns = method.fine_tuning.objects(sample)
        with torch.no_grad():
            ((_, features),) = method.features(sample.image, objects)
            right.append(method.network.margins(features).argmax(1) == columns)
    assert torch.cat(right).float().mean() > 0.8


def test_a_class_without_objects_is_never_detected(shapes_folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    classes = datasets.open(shapes_folder).classes
    method = rcnn(replace(classes, names=(*classes.names, "unicorn"), colors=None))
    with pytest.warns(UserWarning, match="unicorn"):
        method.complete(samples, tmp_path)
    found = method.predict(samples[0].image.as_subclass(Tensor)[None])[0]
    assert len(found) and classes.names.index(classes.names[-1]) + 1 not in found.labels.tolist()


def test_images_without_objects_take_part(method: RCNN, samples: list[Sample], tmp_path: Path) -> None:
    method.complete([without_objects(samples[0]), *samples[1:]], tmp_path)
    assert method.network.fitted


def test_one_image_is_enough(method: RCNN, samples: list[Sample], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="never be detected"):
        method.complete(samples[:1], tmp_path)
    assert torch.isfinite(method.network.svm_bias).any()


def test_only_what_is_asked_for_is_fitted(shapes_folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    method = rcnn(datasets.open(shapes_folder).classes, scorer="softmax", box_regression=False)
    method.complete(samples, tmp_path)
    assert torch.isinf(method.network.svm_bias).all() and (method.network.ridge_weight == 0).all()
    assert len(method.predict(samples[0].image.as_subclass(Tensor)[None])[0])


# ----------------------------------------------------------------- prediction


def test_before_completion_the_classifier_scores(method: RCNN, samples: list[Sample]) -> None:
    method.eval()
    with torch.no_grad():
        ((_, features),) = method.features(samples[0].image, method.propose(samples[0]))
        torch.testing.assert_close(
            method.probabilities(features), method.network.classified(features).softmax(1)[:, 1:]
        )


def test_detections_lie_in_the_image_and_are_ordered(method: RCNN, samples: list[Sample], tmp_path: Path) -> None:
    method.complete(samples, tmp_path)
    found = method.detect(samples[1])
    height, width = samples[1].image.shape[-2:]
    assert len(found) and (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= width).all() and (found.boxes[:, 3] <= height).all()
    assert (found.scores.diff() <= 0).all() and (found.scores > 0).all() and (found.scores < 1).all()
    assert set(found.labels.tolist()) <= set(method.classes.objects)


def test_an_image_of_one_color_is_predicted(method: RCNN, samples: list[Sample], tmp_path: Path) -> None:
    method.complete(samples, tmp_path)
    assert len(method.predict(torch.zeros(1, 3, 20, 30, dtype=torch.uint8))) == 1


def test_of_each_class_the_best_proposals_are_kept() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.3], [0.7, 0.2]])
    assert torch.equal(best_of_each(scores, 2), torch.tensor([[0.9, 0.0], [0.0, 0.3], [0.7, 0.2]]))
    assert torch.equal(best_of_each(scores, 9), scores)


# ----------------------------------------------------------------------- runs


def test_rates_fall_again_and_again(shapes_folder: Path) -> None:
    method = rcnn(datasets.open(shapes_folder).classes, rate_drop=0.25)
    method.total_steps = 8
    assert [method.rate_factor(step) for step in (0, 1, 2, 4, 6)] == pytest.approx([1, 1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"foreground_share": 0.0}, "--foreground-share"),
        ({"foreground_share": 1.0}, "--foreground-share"),
        ({"context": 8}, "--context 8"),
        ({"rate_drop": 0.0}, "--rate-drop"),
        ({"svm_cost": 0.0}, "--svm-cost"),
        ({"boxes_per_class": 0}, "--boxes-per-class"),
        ({"crop": 4}, "--crop"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_config(RCNN, {}, OPTIONS | wrong)


@pytest.fixture(scope="module")
def finished(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; read only."""
    return run(shapes_folder, tmp_path_factory.mktemp("rcnn") / "run")


def test_a_run_keeps_machines_and_ridges_and_no_scratch(finished: Path, samples: list[Sample]) -> None:
    results = outcome(finished)[1]
    assert 0 <= results["map"] <= 100
    assert not list(finished.glob(".scratch*"))
    model = load_model(finished)
    assert isinstance(model, RCNN) and model.network.fitted
    assert len(model.predict(samples[0].image.as_subclass(Tensor)[None])[0])


@pytest.mark.parametrize("where", ["training", "completion"])
def test_a_cut_run_comes_to_the_same_end(finished: Path, shapes_folder: Path, tmp_path: Path, where: str) -> None:
    out = tmp_path / "cut"
    if where == "training":
        with cut(2):
            run(shapes_folder, out)
    else:
        stop_in_completion(shapes_folder, out)
    run(shapes_folder, out)
    assert outcome(out) == outcome(finished)


def stop_in_completion(folder: Path, out: Path) -> None:
    """End a run when the features of a few images have been computed."""
    cached = RCNN.cached

    def fail(self: RCNN, sample: Sample) -> Any:
        if len(list(out.glob(".scratch*/*.npz"))) == 5:
            raise KeyboardInterrupt
        return cached(self, sample)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RCNN, "cached", fail)
        run(folder, out)


def test_a_class_that_no_image_shows_is_a_note(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(
        "rcnn",
        data=shapes_folder,
        out=tmp_path / "run",
        labels="boxes:2",
        hardware=Hardware(**MACHINE),
        **OPTIONS | {"steps": 1},
    )
    assert "note: no training image shows '" in capsys.readouterr().err
