from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import labelwise
from labelwise.errors import UserError
from labelwise.inference_options import InferenceOptions
from labelwise.saved import load_model
from labelwise.tasks.segmentation import SegmentationMethod
from tests.conftest import Called

Call = Callable[..., Called]


def test_a_plain_pass_changes_nothing_and_says_nothing() -> None:
    assert InferenceOptions().changed == {} and str(InferenceOptions()) == ""


def test_options_are_told_in_words() -> None:
    options = InferenceOptions(scales=(0.5, 1.0), flip=True, window=0, output_stride=8, crf="cam")
    assert str(options) == "scales 0.5 1.0, flip, window 0, output stride 8, crf cam"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "--scales : must be one or more factors above 0 and up to 8"),
        ({"scales": (1.0, 0.0)}, "--scales 1.0 0.0: must be one or more factors above 0 and up to 8"),
        ({"scales": (9.0,)}, "--scales 9.0: must be one or more factors above 0 and up to 8"),
        ({"window": -1}, "--window -1: must be at least 0"),
        ({"output_stride": 0}, "--output-stride 0: must be at least 1"),
    ],
)
def test_impossible_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        InferenceOptions(**options)
    assert str(refused.value) == message


def predicted(run: Path, image: Tensor, **options: Any) -> Tensor:
    method = load_model(run, InferenceOptions(**options))
    with torch.no_grad():
        return method.predict(image[None])


@pytest.fixture
def image(shapes_folder: Path) -> Tensor:
    return labelwise.open(shapes_folder).read("val_000000").image.as_subclass(Tensor)


def test_the_same_weights_predict_at_another_output_stride(trained_run: Path, image: Tensor) -> None:
    finer = load_model(trained_run, InferenceOptions(output_stride=8))
    assert isinstance(finer, SegmentationMethod)
    assert finer.network.backbone.strides[-1] == 8
    assert not torch.allclose(predicted(trained_run, image, output_stride=8), predicted(trained_run, image))
    assert torch.equal(predicted(trained_run, image, output_stride=16), predicted(trained_run, image))


def test_a_mirrored_image_is_predicted_mirrored_with_flip(trained_run: Path, image: Tensor) -> None:
    plain, mirrored = (predicted(trained_run, view, flip=True) for view in (image, image.flip(-1)))
    assert torch.allclose(plain, mirrored.flip(-1), atol=1e-4)
    assert torch.allclose(plain.exp().sum(1), torch.ones(1, *image.shape[1:]), atol=1e-4)


def test_a_window_as_large_as_the_image_is_the_whole_image(trained_run: Path, image: Tensor) -> None:
    windowed = predicted(trained_run, image, window=48)
    assert torch.allclose(windowed, predicted(trained_run, image), atol=1e-4)
    assert not torch.allclose(predicted(trained_run, image, window=24), windowed)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "annotate"])
def test_every_verb_takes_them(call: Call, shapes_folder: Path, trained_run: Path, tmp_path: Path, verb: str) -> None:
    rest = {
        "evaluate": ["--data", shapes_folder],
        "predict": [shapes_folder / "JPEGImages/val_000000.jpg", "--out", tmp_path / "out"],
        "annotate": ["--data", shapes_folder, "--split", "val", "--out", tmp_path / "out"],
    }[verb]
    words = [verb, trained_run, *rest, "--scales", 0.5, 1, "--flip", "--output-stride", 8, "--window", 32, "--json"]
    assert call(*words).code == 0
    refused = (
        call(verb, trained_run, *rest[:-2], "--out", tmp_path / "other", "--output-stride", 7)
        if (verb != "evaluate")
        else call(verb, trained_run, *rest, "--output-stride", 7)
    )
    assert refused.message == "--output-stride 7: must be one of 4, 8, 16, 32"
    assert not (tmp_path / "other").exists()


def test_a_score_says_how_it_was_made(call: Call, shapes_folder: Path, trained_run: Path) -> None:
    words = ["evaluate", trained_run, "--data", shapes_folder, "--json"]
    plain, flipped = call(*words).json, call(*words, "--flip").json
    assert plain["protocol"] == "split 'val' of shapes"
    assert flipped["protocol"] == "split 'val' of shapes, flip"
    assert flipped["miou"] != plain["miou"]


def test_an_annotated_data_set_is_not_completed_in_another_way(
    call: Call, shapes_folder: Path, trained_run: Path, tmp_path: Path
) -> None:
    words = ["annotate", trained_run, "--data", shapes_folder, "--split", "val", "--out", tmp_path / "out"]
    assert call(*words, "--flip").code == 0
    assert call(*words, "--flip").code == 0
    assert "holds something else than this call's data set" in call(*words).message
