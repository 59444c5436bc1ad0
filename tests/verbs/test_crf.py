from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import labelwise
from labelwise.inference_options import InferenceOptions
from labelwise.models.dense_crf import dense_crf, parse_crf, unary_from_logits
from labelwise.saved import load_model
from labelwise.tasks.segmentation import SegmentationMethod
from tests.conftest import Called
from tests.tiny_runs import tiny_run

Call = Callable[..., Called]

SMALL = "deeplab_v2:iterations=2,appearance_xy=10"


@pytest.fixture
def run(shapes_folder: Path, tmp_path: Path) -> Path:
    """A run of one's own, since tuning writes into its folder."""
    return tiny_run("supervised", shapes_folder, tmp_path / "run", steps=2)


def test_a_prediction_is_refined_by_the_named_crf(trained_run: Path, shapes_folder: Path) -> None:
    image = labelwise.open(shapes_folder).read("val_000000").image.as_subclass(torch.Tensor)
    with torch.no_grad():
        plain = load_model(trained_run).predict(image[None])
        refined = load_model(trained_run, InferenceOptions(crf=SMALL)).predict(image[None])
    expected = dense_crf(image, unary_from_logits(plain[0]), parse_crf(SMALL))
    assert torch.allclose(refined[0].exp(), expected, atol=1e-5)
    assert not torch.allclose(refined.exp(), plain.softmax(1), atol=0.01)


def test_a_constant_image_is_refined_as_well(trained_run: Path) -> None:
    grey = torch.full((1, 3, 40, 33), 127, dtype=torch.uint8)
    with torch.no_grad():
        refined = load_model(trained_run, InferenceOptions(crf="deeplab_v1")).predict(grey)
    assert refined.isfinite().all()
    assert torch.allclose(refined.exp().sum(1), torch.ones(1, 40, 33), atol=1e-3)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "annotate"])
def test_every_verb_refines(call: Call, shapes_folder: Path, trained_run: Path, tmp_path: Path, verb: str) -> None:
    rest = {
        "evaluate": ["--data", shapes_folder],
        "predict": [shapes_folder / "JPEGImages/val_000000.jpg", "--out", tmp_path / "out"],
        "annotate": ["--data", shapes_folder, "--split", "val", "--out", tmp_path / "out"],
    }[verb]
    assert call(verb, trained_run, *rest, "--crf", SMALL, "--json").code == 0
    message = call(verb, trained_run, *rest, "--crf", "deeplab_v9").message
    assert message.startswith("--crf deeplab_v9: neither a preset nor a file; did you mean 'deeplab_v")


def test_the_numbers_are_tuned_written_and_used(call: Call, shapes_folder: Path, run: Path) -> None:
    words = ["evaluate", run, "--data", shapes_folder, "--json"]
    tuned = call(*words, "--crf", SMALL, "--tune-crf", 2)
    assert tuned.code == 0
    assert tuned.json["protocol"] == f"split 'val' of shapes, crf {SMALL}, CRF tuned on 2 of these images"
    found = yaml.safe_load((run / "crf.yaml").read_text())
    assert found["iterations"] == 2 and found["appearance_weight"] in (3, 4, 5, 6)
    trials = json.loads((run / "crf_search.json").read_text())
    assert len(trials) > 16 and trials[0]["miou"] == max(trial["miou"] for trial in trials)
    assert {key: value for key, value in trials[0].items() if key != "miou"} == found
    again = call(*words, "--crf", run / "crf.yaml").json
    assert again["miou"] == tuned.json["miou"]


def test_what_was_tuned_is_the_best_on_its_images(call: Call, shapes_folder: Path, run: Path) -> None:
    call("evaluate", run, "--data", shapes_folder, "--crf", SMALL, "--tune-crf", 4)
    trials = json.loads((run / "crf_search.json").read_text())
    scored = call("evaluate", run, "--data", shapes_folder, "--crf", run / "crf.yaml", "--json").json
    assert scored["miou"] == pytest.approx(trials[0]["miou"], abs=0.05)


def test_tuning_leaves_the_model_as_it_was(shapes_folder: Path, run: Path) -> None:
    from labelwise.verbs.crf import tune_crf

    method = load_model(run, InferenceOptions(crf=SMALL, flip=True))
    assert isinstance(method, SegmentationMethod)
    before = method.inference
    dataset = labelwise.open(shapes_folder)
    tune_crf(method, dataset, dataset.ids("val")[:1], SMALL, run)
    assert method.inference == before


def test_tuning_needs_a_start(call: Call, shapes_folder: Path, trained_run: Path) -> None:
    words = ["evaluate", trained_run, "--data", shapes_folder, "--tune-crf"]
    assert call(*words, 2).message == (
        "--tune-crf: there is no CRF to start from; name one with --crf, such as --crf deeplab_v2"
    )
    assert call(*words, -1).message == "--tune-crf -1: must be at least 0"
