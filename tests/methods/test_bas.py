"""BAS: what its equations say, where gradients go, what suppression and area do, both tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes import ShapesOptions, write_shapes
from labelwise.errors import UserError
from labelwise.methods.tags.bas import (
    BAS,
    bas_ratio,
    combine_maps,
    erase_score,
    foreground_guidance,
    min_max,
    multilabel_ce,
    topk_map,
)
from labelwise.samples import Batch, Sample
from tests.tiny_runs import cut, outcome, tiny_run

CLASSES = Classes(("background", "cat", "dog", "cow"))
SMALL: dict[str, Any] = {
    "backbone": "micro_w10",
    "backbone_weights": "none",
    "output_stride": 4,
    "hidden": 8,
    "crop": 32,
    "resize_range": (32, 40),
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "head_multiplier": 1.0,
    "freeze_norms": False,
    "batch_size": 2,
    "steps": 4,
}


def method(**options: Any) -> BAS:
    torch.manual_seed(0)
    return BAS(BAS.Config(**{**SMALL, "track": "localization", **options}), CLASSES)


def batch(*, several: bool = False) -> Batch:
    image = torch.randint(60, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tags = torch.zeros(6, 4, dtype=torch.uint8)
    for place in range(6):
        image[place, place % 3, 8:24, 8:24] += 150
        tags[place, 1 + place % 3] = 1
    if several:
        tags[:, 1] = 1
    return Batch(ids=tuple("abcdef"), image=image, tags=tags)


def late_part() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 3, 1))


# ------------------------------------------------------------------- equations


def test_without_a_map_all_activation_is_left() -> None:
    late, features, labels = late_part().eval(), torch.randn(2, 4, 8, 8), torch.tensor([0, 2])
    whole = late(features).mean((2, 3))[[0, 1], labels].relu()
    assert torch.allclose(erase_score(features, torch.zeros(2, 1, 8, 8), late, labels), whole)


def test_a_map_of_everything_leaves_the_answer_to_zeros() -> None:
    late, features, labels = late_part().eval(), torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    empty = late(torch.zeros(2, 4, 8, 8)).mean((2, 3))[[0, 1], labels].relu()
    assert torch.allclose(erase_score(features, torch.ones(2, 1, 8, 8), late, labels), empty)


def test_with_a_linear_late_part_suppression_is_the_covered_share_of_the_activation() -> None:
    late = nn.Conv2d(4, 3, 1, bias=False).requires_grad_(False)
    late.weight.abs_()
    features, mask, labels = torch.rand(2, 4, 8, 8), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    mass = late(features)[[0, 1], labels]
    expected = 1 - (mass * mask[:, 0]).sum((1, 2)) / mass.sum((1, 2))
    ratio = bas_ratio(mass.mean((1, 2)), erase_score(features, mask, late, labels))
    assert torch.allclose(ratio, expected, atol=1e-6)


def test_erasing_reaches_the_map_alone() -> None:
    late, features = late_part(), torch.randn(2, 4, 8, 8, requires_grad=True)
    mask = torch.full((2, 1, 8, 8), 0.5, requires_grad=True)
    before = {name: buffer.clone() for name, buffer in late.named_buffers()}
    erase_score(features, mask, late, torch.tensor([0, 1])).sum().backward()
    assert mask.grad is not None and mask.grad.abs().sum() > 0
    assert features.grad is None
    assert all(parameter.grad is None for parameter in late.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in late.named_buffers()), "running statistics moved"


def test_the_ratio_is_constant_where_erasing_activates_more() -> None:
    whole, erased = torch.tensor([2.0, 2.0, 0.0], requires_grad=True), torch.tensor([1.0, 3.0, 0.0], requires_grad=True)
    ratio = bas_ratio(whole, erased)
    assert ratio.tolist() == [0.5, 1.0, 0.0]
    assert bas_ratio(whole, erased, over=0.0)[1] == 0
    ratio[:2].sum().backward()
    assert erased.grad is not None and erased.grad.tolist() == [0.5, 0.0, 0.0]
    assert whole.grad is None


def test_guidance_averages_the_map_down_to_the_activations() -> None:
    class_maps, mask = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 8, 8)
    expected = (class_maps * functional.avg_pool2d(mask, 2)).mean((2, 3))
    assert torch.allclose(foreground_guidance(class_maps, mask), expected)
    same = torch.rand(2, 1, 4, 4)
    assert torch.allclose(foreground_guidance(class_maps, same), (class_maps * same).mean((2, 3)))


@given(st.integers(0, 1000), st.integers(2, 6))
def test_with_one_tag_the_loss_of_several_is_cross_entropy(seed: int, classes: int) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = 5 * torch.randn(4, classes, generator=random)
    labels = torch.randint(classes, (4,), generator=random)
    loss = multilabel_ce(scores, functional.one_hot(labels, classes))
    assert torch.allclose(loss, functional.cross_entropy(scores, labels), atol=1e-5)


def test_each_tag_competes_with_absent_classes_alone() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5, 9.0]], requires_grad=True)
    loss = multilabel_ce(scores, torch.tensor([[1, 1, 0, 255]]))
    pairs = [functional.softplus(torch.tensor(0.5 - own)) for own in (1.0, 2.0)]
    assert torch.allclose(loss, torch.stack(pairs).sum())
    loss.backward()
    assert scores.grad is not None and scores.grad[0, 3] == 0


def test_tags_of_all_classes_or_none_cost_nothing_and_have_finite_gradients() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    loss = multilabel_ce(scores, torch.tensor([[1, 1, 1], [0, 0, 0]]))
    loss.backward()
    assert loss == 0
    assert scores.grad is not None and not scores.grad.any()


def test_the_best_classes_maps_are_averaged() -> None:
    maps, scores = torch.rand(2, 3, 4, 4), torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]])
    assert torch.allclose(topk_map(maps, scores, 2)[0, 0], (maps[0, 1] + maps[0, 2]) / 2)
    assert torch.equal(topk_map(maps, scores, 1)[1, 0], maps[1, 0])
    assert torch.equal(topk_map(maps, scores, 1, torch.tensor([0, 1]))[1, 0], maps[1, 1])
    assert torch.allclose(topk_map(maps, scores, 200)[1, 0], maps[1].mean(0))


def test_stretching_and_adding_maps() -> None:
    assert min_max(torch.full((1, 1, 2, 2), 0.7)).max() == 0
    assert torch.allclose(min_max(torch.tensor([[[[2.0, 4.0]]]])), torch.tensor([[[[0.0, 1.0]]]]), atol=1e-5)
    both = combine_maps(torch.tensor([[[0.2, 0.0]]]), torch.tensor([[[1.0, 0.5]]]))
    assert torch.allclose(both, torch.tensor([[[1.0, 0.25]]]), atol=1e-3)


# -------------------------------------------------------------------- training


def reached(learner: BAS, term: str, labeled: Batch) -> dict[str, bool]:
    """Which parts of the network get a gradient from one term."""
    learner.zero_grad()
    learner.losses(labeled=labeled)[term].backward()
    network = learner.network
    early, late = network.backbone.early, network.backbone.late
    parts = {"early": early, "late": late, "classifier": network.classifier, "generator": network.generator}
    return {
        name: any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())
        for name, part in parts.items()
    }


@pytest.mark.parametrize(
    ("track", "term", "parts"),
    [
        ("localization", "classes", {"early", "late", "classifier"}),
        ("localization", "guidance", {"early", "late", "classifier", "generator"}),
        ("localization", "suppression", {"early", "generator"}),
        ("localization", "area", {"early", "generator"}),
        ("segmentation", "classes", {"early", "late", "classifier"}),
        ("segmentation", "guidance", {"early", "generator"}),
        ("segmentation", "suppression", {"early", "generator"}),
        ("segmentation", "area", {"early", "generator"}),
    ],
)
def test_each_term_reaches_the_parts_that_the_paper_names(track: str, term: str, parts: set[str]) -> None:
    learner = method(track=track, guidance_weight=0.5)
    with torch.no_grad():
        for module in learner.network.classifier.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.abs_()  # so that classes are active, and suppression is no constant
    found = reached(learner, term, batch(several=track == "segmentation"))
    assert {name for name, got in found.items() if got} == parts


def coverage(steps: int, keep: tuple[str, ...], **options: Any) -> tuple[float, float]:
    """The mean of the tags' maps before and after some steps with some of the terms."""
    learner, labeled = method(**options), batch()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.003)
    values = []
    for _ in range(steps):
        terms = learner.losses(labeled=labeled)
        values.append(float(learner._observed["pseudo/coverage"]))
        optimizer.zero_grad()
        torch.stack([terms[name] for name in keep]).sum().backward()
        optimizer.step()
    return values[0], values[-1]


def test_without_a_weight_of_the_area_the_map_grows_over_everything() -> None:
    first, last = coverage(250, ("classes", "guidance", "suppression", "area"), area_weight=0.0)
    assert last > 0.85 > first


def test_without_suppression_and_guidance_the_map_vanishes() -> None:
    first, last = coverage(60, ("classes", "area"), area_weight=1.0)
    assert last < 0.1 < first


def test_images_without_a_tag_change_no_map() -> None:
    learner, labeled = method(track="segmentation"), batch()
    labeled.tags.zero_()
    terms = learner.losses(labeled=labeled)
    assert all(float(terms[name].detach()) == 0 for name in ("guidance", "suppression", "area"))


def test_one_of_several_tags_is_drawn_and_never_an_absent_class() -> None:
    learner = method(track="segmentation")
    tags = torch.tensor([[1, 0, 1], [0, 1, 255]], dtype=torch.uint8)
    drawn = torch.stack([learner._drawn(tags) for _ in range(40)])
    assert set(drawn[:, 0].tolist()) == {0, 2}
    assert set(drawn[:, 1].tolist()) == {1}


def test_several_tags_in_an_image_of_one_object_are_refused() -> None:
    image = tv_tensors.Image(torch.zeros(3, 32, 32, dtype=torch.uint8))
    sample = Sample(id="both", image=image, tags=torch.tensor([0, 1, 1, 0], dtype=torch.uint8))
    with pytest.raises(UserError, match="image 'both' has 2 tags, not one; take segmentation"):
        method().tagged_view(sample)
    method(track="segmentation").tagged_view(sample)


def test_rates_of_biases_and_drops_follow_the_options() -> None:
    learner = method(bias_multiplier=2.0, head_multiplier=10.0, rate_drops=(0.5, 0.75), learning_rate=0.001)
    learner.total_steps = 100
    assert [learner.rate_factor(step) for step in (0, 49, 50, 80)] == pytest.approx([1, 1, 0.1, 0.01])
    parameters = dict(learner.named_parameters())
    multipliers = {
        name: learner.rate_multiplier(name, parameters[name])
        for name in ("network.generator.weight", "network.generator.bias", "network.backbone.body.low.1.bias")
    }
    assert list(multipliers.values()) == [10, 20, 2]


# ------------------------------------------------------------------- inference


def test_maps_of_single_objects_are_stretched_and_of_the_images_size() -> None:
    learner = method(top_k=2).eval()
    image = tv_tensors.Image(torch.randint(255, (3, 40, 70), dtype=torch.uint8))
    maps = learner.localize(image, torch.tensor([2]))
    assert maps.fine.shape == (1, 40, 70) and maps.coarse.shape == (1, 10, 18)
    assert 0 <= maps.fine.min() < 0.1 and 0.9 < maps.fine.max() <= 1
    other = learner.localize(image, torch.tensor([1]))
    assert torch.equal(maps.fine, other.fine), "the mean of the two best classes, whatever the tag"
    assert learner.framed_map(image, learner.localize(image, torch.tensor([1]))).shape == (224, 224)


def test_the_given_classs_map_is_taken_with_one_class() -> None:
    learner = method(top_k=1).eval()
    image = tv_tensors.Image(torch.randint(255, (3, 32, 32), dtype=torch.uint8))
    first, second = (learner.localize(image, torch.tensor([label])).fine for label in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_drops": (1.5,)}, "--rate-drops 1.5: must be between 0 and 1"),
        ({"nesterov": True}, "--nesterov: has no meaning without a momentum; --momentum 0.9"),
        ({"classifier": "cam"}, "--classifier cam: only maps of the segmentation track are added to its"),
        ({"top_k": 0}, "--top-k 0: must be at least 1"),
        ({"area_weight": -1.0}, "--area-weight -1.0: must be at least 0"),
    ],
)
def test_options_that_no_training_can_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BAS.Config(**{"track": "localization", **options})


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "heads"
    write_shapes(folder, ShapesOptions(scenes="heads", train=8, val=3, size=40))
    return folder


def test_a_run_of_single_objects_goes_on_as_if_it_had_not_been_cut(heads: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"base": SMALL, "labels": "tags:all", "track": "localization"}
    whole = tiny_run("bas", heads, tmp_path / "whole", **call)
    with cut(2):
        tiny_run("bas", heads, tmp_path / "cut", **call)
    again = tiny_run("bas", heads, tmp_path / "cut", **call)
    assert outcome(whole) == outcome(again)
    assert 0 <= outcome(whole)[1]["gt_known"] <= 100


def test_maps_are_added_to_those_of_a_classifier_that_is_kept_with_the_model(heads: Path, tmp_path: Path) -> None:
    from labelwise.saved import load_model

    options: dict[str, Any] = {"map_scales": (1.0,), "map_flip": False, "steps": 2}
    call: dict[str, Any] = {"base": SMALL | options, "labels": "tags:all"}
    run = tiny_run("bas", heads, tmp_path / "run", classifier="cam", **call)
    model = load_model(run)
    plain = load_model(run / "stages" / "1-classifier")
    image = tv_tensors.Image(torch.randint(255, (3, 40, 40), dtype=torch.uint8))
    labels = torch.tensor([1, 3])
    cam = plain.localize(image, labels).fine  # type: ignore[operator]
    model.config = type(model.config)(**{**vars(model.config), "classifier": "none"})
    own = model.localize(image, labels).fine  # type: ignore[operator]
    assert not torch.equal(own, cam)
    model.config = type(model.config)(**{**vars(model.config), "classifier": "cam"})
    both: Tensor = model.localize(image, labels).fine  # type: ignore[operator]
    assert torch.allclose(both, combine_maps(own, cam), atol=1e-5)
