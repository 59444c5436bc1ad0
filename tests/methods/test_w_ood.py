"""W-OoD: what its equations say, what of them has a gradient, centres that stay, a run from a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes import ShapesOptions, write_shapes
from labelwise.errors import UserError
from labelwise.methods.tags.cam import Cam
from labelwise.methods.tags.w_ood import (
    WOoD,
    adversarial_climb,
    class_centers,
    distance_loss,
    kmeans_lloyd,
    nearest,
    ood_loss,
)
from labelwise.samples import Batch, Sample
from labelwise.saved import load_model
from tests.tiny_runs import cut, outcome, tiny_run

CLASSES = Classes(("background", "cat", "dog", "cow"))
SMALL: dict[str, Any] = {
    "backbone": "micro_w10",
    "backbone_weights": "none",
    "output_stride": 4,
    "crop": 32,
    "resize_range": (32, 40),
    "map_scales": (1.0,),
    "map_flip": False,
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "head_multiplier": 1.0,
    "clusters": 3,
    "ood_side": 40,
    "batch_size": 2,
    "steps": 4,
}


# ------------------------------------------------------------------- equations


def test_a_class_s_centre_is_the_mean_of_all_images_with_its_tag() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 2.0], [8.0, 8.0]])
    tags = torch.tensor([[1, 1, 0], [1, 0, 0], [255, 0, 0]])
    assert class_centers(features, tags).tolist() == [[2.0, 1.0], [1.0, 0.0], [0.0, 0.0]]


def test_k_means_finds_separate_blobs_from_one_sample_of_each() -> None:
    random = torch.Generator().manual_seed(0)
    blobs = [center + 0.1 * torch.randn(20, 2, generator=random) for center in (0.0, 10.0, -10.0)]
    samples = torch.stack(blobs, dim=1).flatten(0, 1)  # the first three are of three blobs
    labels, centers = kmeans_lloyd(samples, 3)
    assert torch.allclose(centers, torch.stack([blob.mean(0) for blob in blobs]), atol=1e-5)
    assert labels.tolist() == [0, 1, 2] * 20


def test_an_empty_cluster_is_dropped() -> None:
    samples = torch.tensor([[0.0], [0.0], [5.0], [6.0]])
    labels, centers = kmeans_lloyd(samples, 3)
    assert centers.flatten().tolist() == [0.0, 5.5]
    assert labels.tolist() == [0, 0, 1, 1]
    assert len(kmeans_lloyd(samples[2:], 50)[1]) == 2


def test_distances_of_one_image_class_and_cluster() -> None:
    feature = torch.tensor([[3.0, 4.0]], requires_grad=True)
    loss = distance_loss(feature, torch.tensor([[1]]), torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]), 1.0)
    assert loss.item() == pytest.approx(20 * 5 - 4)
    loss.backward()
    assert feature.grad is not None
    assert feature.grad[0].tolist() == pytest.approx([20 * 0.6, 20 * 0.8 - 1])


def test_distances_to_own_centres_are_averaged_over_all_classes() -> None:
    features, own, foreign = torch.randn(4, 8), torch.randn(3, 8), torch.randn(5, 8)
    tags = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 255, 1]])
    total = sum((features[i] - own[c]).norm() for i, c in ((0, 0), (1, 0), (1, 1), (3, 2)))
    assert torch.allclose(distance_loss(features, tags, own, foreign, 0.0), total / 12 * 20 / 5, atol=1e-5)


def test_the_nearest_of_the_batch_or_of_each_image_are_pushed_away() -> None:
    distances = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]])
    assert nearest(distances, 0.2).nonzero().tolist() == [[0, 0], [0, 1]]
    assert nearest(distances, 0.2, per_image=True).nonzero().tolist() == [[0, 0], [1, 0]]


@given(st.integers(0, 100), st.integers(1, 6), st.integers(1, 8))
def test_no_share_pushes_nothing_away_and_the_whole_share_all(seed: int, images: int, clusters: int) -> None:
    distances = torch.rand(images, clusters, generator=torch.Generator().manual_seed(seed))
    assert (nearest(distances, 0.0) * distances).sum() == 0
    assert nearest(distances, 1.0).all()
    half = int(nearest(distances, 0.5).sum())
    assert half <= images * clusters // 2 + 1


def test_a_distance_of_zero_has_a_finite_gradient() -> None:
    features = torch.zeros(1, 3, requires_grad=True)
    distance_loss(features, torch.tensor([[1]]), torch.zeros(1, 3), torch.ones(2, 3), 0.5).backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_the_step_is_full_where_the_gradient_is_steepest_and_stays_in_range() -> None:
    random = torch.Generator().manual_seed(0)
    image, gradient = torch.rand(2, 3, 8, 8, generator=random), torch.randn(2, 3, 8, 8, generator=random)
    image[0, 0, 0, 0], gradient[0, 0, 0, 0] = 0.5, 9.0
    image[1, 0, 0, 0], gradient[1, 0, 0, 0] = 1.0, 5.0
    moved = adversarial_climb(image, gradient, 0.07)
    assert (moved - image)[0, 0, 0, 0].item() == pytest.approx(0.07)
    assert (moved - image).abs().max() <= 0.07 + 1e-6
    assert moved.max() <= image.max() and moved.min() >= image.min()
    assert torch.equal(adversarial_climb(image, torch.zeros_like(image), 0.07), image)


def test_images_of_no_class_have_no_tag_and_some_are_left_out() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    each = functional.binary_cross_entropy_with_logits(logits, torch.zeros(2, 2), reduction="none").mean(1)
    assert torch.allclose(ood_loss(logits), each.sum() / 2)
    assert torch.allclose(ood_loss(logits, (1,)), each[0] / 2)
    assert ood_loss(logits, (0, 1)) == 0


# -------------------------------------------------------------------- training


def learner(**options: Any) -> WOoD:
    torch.manual_seed(0)
    shared = {name: value for name, value in SMALL.items() if name not in ("clusters", "ood_side")}
    classifier = Cam(Cam.Config(**shared, freeze_norms=False), CLASSES)
    config = WOoD.Config(**{**SMALL, **options})
    return WOoD(config, CLASSES, earlier={"classifier": classifier})


def sample(id: str, label: int | None) -> Sample:
    image = torch.randint(60, (3, 36, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(len(id)))
    tags = torch.zeros(4, dtype=torch.uint8)
    if label is not None:
        tags[label] = 1
        image[label - 1] += 150
    return Sample(id=id, image=tv_tensors.Image(image), tags=tags if label is not None else None)


TAGGED = [sample("a" * number, 1 + number % 3) for number in range(1, 7)]
BARE = [sample("b" * number, None) for number in range(1, 6)]


def batches() -> dict[str, Batch]:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(255, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=random)
    tags = torch.zeros(4, 4, dtype=torch.uint8)
    tags[[0, 1, 2, 3], [1, 2, 3, 1]] = 1
    return {
        "labeled": Batch(ids=tuple("abcd"), image=images[0], tags=tags),
        "ood": Batch(ids=tuple("efgh"), image=images[1]),
    }


def test_it_starts_from_the_classifier_with_centres_of_its_features(tmp_path: Path) -> None:
    method = learner()
    method.ood_samples = BARE
    method.prepare(TAGGED, tmp_path)
    classifier = method.earlier["classifier"].network
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, method.network.state_dict()[name])
    classifier.eval()
    with torch.no_grad():
        own = [classifier.features(method.normalize(each.image[None])).mean((2, 3))[0] for each in TAGGED[2::3]]
    assert torch.allclose(method.network.own[0], torch.stack(own).mean(0), atol=1e-5)
    assert int(method.network.found) == 3


def test_the_centres_are_kept_for_when_the_run_goes_on(tmp_path: Path) -> None:
    method = learner()
    method.ood_samples = BARE
    method.prepare(TAGGED, tmp_path)
    kept = method.network.foreign.clone()
    again = learner()
    again.prepare([], tmp_path)
    assert torch.equal(again.network.foreign, kept)
    assert method.training, "measuring leaves the training mode"


def test_all_terms_are_finite_and_move_the_weights_but_not_the_centres(tmp_path: Path) -> None:
    method = learner(freeze_norms=False)
    method.ood_samples = BARE
    method.prepare(TAGGED, tmp_path)
    centers = method.network.own.clone()
    terms = method.losses(**batches())
    assert set(terms) == {"tags", "ood", "distance"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.network.parameters())
    assert torch.equal(method.network.own, centers) and not method.network.own.requires_grad


def test_without_its_weights_it_is_continued_training(tmp_path: Path) -> None:
    method = learner(ood_weight=0.0, distance_weight=0.0)
    method.ood_samples = BARE
    method.prepare(TAGGED, tmp_path)
    given = batches()
    terms = method.losses(**given)
    plain = method.tag_loss(method.network(method.normalize(given["labeled"].image)), given["labeled"])
    assert torch.allclose(torch.stack(list(terms.values())).sum(), plain)


def test_classes_to_skip_are_known_by_name() -> None:
    assert learner(skip_classes=("dog",)).skipped == [1]
    with pytest.raises(UserError, match="--skip-classes dogs: no such class; did you mean 'dog'"):
        learner(skip_classes=("dogs",))


def test_a_classifier_of_another_network_is_refused() -> None:
    shared = {name: value for name, value in SMALL.items() if name not in ("clusters", "ood_side")}
    other = Cam(Cam.Config(**{**shared, "backbone": "micro_w12"}), CLASSES)
    with pytest.raises(UserError, match="--classifier cam: is not a run of cam with --backbone micro_w10"):
        WOoD(WOoD.Config(**SMALL), CLASSES, earlier={"classifier": other})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nearest_share": 1.2}, "--nearest-share 1.2"),
        ({"clusters": 0}, "--clusters 0: must be at least 1"),
        ({"ood_weight": -1.0}, "--ood-weight -1.0: must be at least 0"),
    ],
)
def test_options_that_no_training_can_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WOoD.Config(**options)


# ------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def rails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "rails"
    write_shapes(folder, ShapesOptions(scenes="rails", train=8, val=3, ood=5, size=40))
    return folder


def test_a_run_trains_its_classifier_first_and_goes_on_as_if_it_had_not_been_cut(rails: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"base": SMALL, "labels": "tags:all"}
    whole = tiny_run("w_ood", rails, tmp_path / "whole", **call)
    with cut(2):
        tiny_run("w_ood", rails, tmp_path / "cut", classifier=str(whole / "stages" / "1-classifier"), **call)
    again = tiny_run("w_ood", rails, tmp_path / "cut", classifier=str(whole / "stages" / "1-classifier"), **call)
    assert outcome(whole) == outcome(again)
    model = load_model(whole)
    assert int(model.network.found) == 3
    assert model.network.own.abs().sum() > 0


def test_a_data_set_without_such_images_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--ood ood: is no split of"):
        tiny_run("w_ood", shapes_folder, tmp_path / "run", base=SMALL, labels="tags:all")
