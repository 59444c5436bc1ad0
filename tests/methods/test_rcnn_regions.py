"""R-CNN on regions: what the regressors learn from, what the pixels get, runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from labelwise import datasets
from labelwise.configuration import make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.methods.masks.rcnn_regions import RCNNRegions
from labelwise.models.region_pasting import region_overlaps
from labelwise.samples import IGNORE_INDEX, Kind, Sample
from labelwise.saved import load_model
from labelwise.verbs.train import train
from tests.tiny_runs import MACHINE, cut, outcome

OPTIONS: dict[str, Any] = {
    "backbone": "micro_w10",
    "backbone_weights": "none",
    "output_stride": 4,
    "crop": 16,
    "context": 1,
    "search": "single",
    "proposals": "single",
    "max_proposals": 30,
    "regions": 12,
    "batch_size": 8,
    "steps": 2,
    "learning_rate": 0.01,
}


def method_of(classes: Classes, **options: Any) -> RCNNRegions:
    torch.manual_seed(0)
    return RCNNRegions(make_config(RCNNRegions, {}, OPTIONS | options), classes).eval()  # type: ignore[arg-type]


@pytest.fixture
def classes(shapes_folder: Path) -> Classes:
    return datasets.open(shapes_folder).classes


@pytest.fixture
def samples(shapes_folder: Path) -> list[Sample]:
    dataset = datasets.open(shapes_folder)
    return [dataset.read(id, {Kind.MASKS, Kind.BOXES}) for id in dataset.ids("train")[:6]]


@torch.no_grad()
def test_the_features_of_the_region_alone_see_nothing_beside_it(classes: Classes, samples: list[Sample]) -> None:
    image = samples[0].image.as_subclass(Tensor)
    masks = torch.zeros(1, *image.shape[1:], dtype=torch.bool)
    masks[0, 10:30, 12:40] = True
    masks[0, 10:20, 12:26] = False
    # The next pixel counts: windows are interpolated before what lies beside the region is taken away.
    near = max_pool2d(masks.float(), 3, 1, 1).bool()
    changed = torch.where(near, image, 255 - image)
    full, alone, both = (method_of(classes, strategy=strategy) for strategy in ("full", "fg", "full+fg"))
    torch.testing.assert_close(alone.region_features(changed, masks), alone.region_features(image, masks))
    assert not torch.allclose(full.region_features(changed, masks), full.region_features(image, masks))
    parts = torch.cat([full.region_features(image, masks), alone.region_features(image, masks)], dim=1)
    torch.testing.assert_close(both.region_features(image, masks), parts)


def test_regressors_learn_how_well_regions_cover_classes(
    classes: Classes, samples: list[Sample], tmp_path: Path
) -> None:
    method = method_of(classes, svr_cost=0.1)
    method.complete(samples, tmp_path)
    errors, spread = [], []
    for sample in samples:
        assert sample.mask is not None
        masks = method.regions(sample.image)
        truth = region_overlaps(masks, sample.mask.as_subclass(Tensor), torch.tensor(classes.objects), IGNORE_INDEX)
        with torch.no_grad():
            said = method.network.qualities(method.region_features(sample.image, masks))
        errors.append((said - truth).square().sum())
        spread.append(truth.square().sum())
    assert torch.stack(errors).sum() < 0.5 * torch.stack(spread).sum()


def test_completion_comes_to_the_same_result_again(classes: Classes, samples: list[Sample], tmp_path: Path) -> None:
    method, states = method_of(classes), []
    for name in ("first", "second", "second"):
        (tmp_path / name).mkdir(exist_ok=True)
        method.complete(samples, tmp_path / name)
        states.append({key: value.clone() for key, value in method.network.state_dict().items()})
    assert states[0]["svr_weight"].any()
    for state in states[1:]:
        assert all(torch.equal(value, state[key]) for key, value in states[0].items())


@torch.no_grad()
def test_pixels_get_the_quality_of_their_region_or_the_background(classes: Classes, samples: list[Sample]) -> None:
    method = method_of(classes)
    assert classes.background is not None
    column, image = 2, samples[0].image.as_subclass(Tensor)[None]
    nothing = method.predict(image)
    assert nothing.shape == (1, len(classes), *image.shape[2:])
    assert (nothing.argmax(1) == classes.background).all()
    method.network.svr_bias[column] = 0.7
    scores = method.predict(image)
    number = classes.objects[column]
    covered = scores.argmax(1) == number
    assert covered.any() and torch.isin(scores.argmax(1), torch.tensor([classes.background, number])).all()
    torch.testing.assert_close(scores[:, number][covered], torch.full((int(covered.sum()),), 0.7))
    assert torch.allclose(scores[:, classes.background], torch.tensor(method.config.region_threshold))


def test_an_image_of_one_color_is_predicted(classes: Classes) -> None:
    scores = method_of(classes).predict(torch.zeros(1, 3, 20, 30, dtype=torch.uint8))
    assert scores.shape == (1, len(classes), 20, 30)


def test_classes_without_background_are_refused(classes: Classes) -> None:
    with pytest.raises(UserError, match="background"):
        method_of(replace(classes, background=None))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"svr_cost": 0.0}, "--svr-cost"), ({"regions": 0}, "--regions"), ({"region_overlap": 2.0}, "--region-overlap")],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_config(RCNNRegions, {}, OPTIONS | wrong)


def run(folder: Path, out: Path) -> Path:
    machine = Hardware(**MACHINE | {"checkpoint_every": 1})
    train("rcnn_regions", data=folder, out=out, labels="masks:all+boxes:all", hardware=machine, **OPTIONS)
    return out


def test_a_cut_run_comes_to_the_same_end(shapes_folder: Path, tmp_path: Path) -> None:
    whole = run(shapes_folder, tmp_path / "whole")
    with cut(1):
        run(shapes_folder, tmp_path / "cut")
    assert outcome(run(shapes_folder, tmp_path / "cut")) == outcome(whole)
    assert 0 <= outcome(whole)[1]["miou"] <= 100
    model = load_model(whole)
    assert isinstance(model, RCNNRegions) and model.network.svr_weight.any()
