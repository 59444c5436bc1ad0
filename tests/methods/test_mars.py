"""What biased object removal promises."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes import CLASSES as OBJECTS
from labelwise.datasets.shapes import ShapesOptions, scene, with_noise
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.tags import mars
from labelwise.methods.tags.mars import DEBIASED, MARS, complete_labels, debiased_label, weighted_cross_entropy
from labelwise.metrics.segmentation import SegmentationScores
from labelwise.models.pixel_features import DescriptorFeatures
from labelwise.samples import Batch, Sample
from labelwise.tasks.label_store import BIASED
from tests.tiny_runs import cut, outcome, tiny_run

CLASSES = Classes(("background", "cat", "dog"))
SETTINGS: dict[str, Any] = {
    "backbone": "micro_w2",
    "backbone_weights": "none",
    "output_stride": 4,
    "decoder_channels": 8,
    "crop": 16,
    "features": "descriptor",
}


def method(classes: Classes = CLASSES, **options: Any) -> MARS:
    torch.manual_seed(0)
    made = MARS(MARS.Config(**{**SETTINGS, **options}), classes)
    made.trainer = SimpleNamespace(global_step=0)
    return made


def labels(seed: int, *shape: int) -> Tensor:
    mask = torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))
    return mask.masked_fill(mask == 3, 255).to(torch.uint8)


def probabilities(seed: int, batch: int = 2, size: int = 4) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


# --------------------------------------------------------------------- steps


@given(st.integers(0, 100))
def test_only_object_pixels_unlike_the_object_lose_their_label(seed: int) -> None:
    mask = labels(seed, 6, 6)
    everything, nothing = torch.ones(6, 6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)
    assert torch.equal(debiased_label(mask, everything), mask)
    removed = debiased_label(mask, nothing)
    assert torch.equal(removed == BIASED, (mask == 1) | (mask == 2))
    assert torch.equal(removed[removed != BIASED], mask[removed != BIASED])


@given(st.integers(0, 100))
def test_labels_without_biased_pixels_are_learned_plainly(seed: int) -> None:
    mask, probability = labels(seed, 2, 4, 4), probabilities(seed)
    completed, weight = complete_labels(mask, probability, 0 * mask.long(), torch.ones(2, 3, dtype=torch.bool))
    logits = probabilities(seed + 1).log()
    torch.testing.assert_close(weighted_cross_entropy(logits, completed, weight), cross_entropy(logits, mask))


def test_biased_pixels_take_the_teachers_label_and_its_certainty_of_tagged_classes() -> None:
    mask = torch.tensor([[[BIASED, BIASED, 1, 255]]], dtype=torch.uint8)
    probability = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.04, 0.06], [0, 0, 1], [0, 0, 1]]).T.view(1, 3, 1, 4)
    tags = torch.tensor([[False, True, False]])
    completed, weight = complete_labels(mask, probability, torch.tensor([[[1, 0, 0, 0]]]), tags)
    assert completed.tolist() == [[[1, 0, 1, 255]]]
    torch.testing.assert_close(weight, torch.tensor([[[0.5, 0.04, 1.0, 1.0]]]))


def test_the_weighted_loss_is_a_mean_over_labeled_pixels() -> None:
    logits, label = torch.zeros(1, 3, 1, 4), torch.tensor([[[0, 1, 2, 255]]])
    weight = torch.tensor([[[1.0, 0.5, 0.0, 7.0]]])
    torch.testing.assert_close(weighted_cross_entropy(logits, label, weight), torch.tensor(3.0).log() * 1.5 / 3)
    assert weighted_cross_entropy(logits, torch.full((1, 1, 4), 255), weight) == 0


def test_a_sure_teacher_gives_ordinary_cross_entropy() -> None:
    label = labels(3, 2, 4, 4).clamp(max=2).long()
    sure = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    completed, weight = complete_labels(
        torch.full((2, 4, 4), BIASED, dtype=torch.uint8), sure, label, torch.ones(2, 3, dtype=torch.bool)
    )
    logits = probabilities(5).log()
    torch.testing.assert_close(weighted_cross_entropy(logits, completed, weight), cross_entropy(logits, label))


# ---------------------------------------------------------- without training


def pseudo_labeled(count: int) -> list[tuple[Sample, Sample]]:
    """Scenes with a true mask and one that holds the ground below the object."""
    options = ShapesOptions(size=48, context=0.9, single=True, noise="context", noise_amount=1.0, seed=5)
    true = [scene(options, "train", index) for index in range(count)]
    return [(sample, with_noise(sample, options, "train", index, OBJECTS)) for index, sample in enumerate(true)]


def test_what_is_removed_is_the_ground_and_not_the_objects() -> None:
    pairs = pseudo_labeled(120)
    learner, features = method(OBJECTS, crop=48), DescriptorFeatures()
    samples = [spoiled for _, spoiled in pairs]
    centroids = learner._debiased_centroids(samples, features)
    before, after = SegmentationScores(OBJECTS.names), SegmentationScores(OBJECTS.names)
    removed = biased = lost = objects = 0
    for true, spoiled in pairs:
        mask = learner.debias(spoiled, features(spoiled.image), centroids)
        gone = mask == BIASED
        removed += int(gone.sum())
        biased += int((gone & (true.mask == 0)).sum())
        lost += int((gone & (true.mask != 0)).sum())
        objects += int((true.mask != 0).sum())
        before.update(spoiled.mask[None], true.mask[None])
        after.update(mask.masked_fill(gone, 0)[None], true.mask[None])
    assert biased >= 0.8 * removed > 0
    assert lost <= 0.1 * objects
    assert after.compute().miou >= before.compute().miou + 10


def test_an_image_without_objects_keeps_its_mask() -> None:
    (_, spoiled), *_ = pseudo_labeled(1)
    learner, mask = method(OBJECTS), torch.zeros(48, 48, dtype=torch.uint8)
    empty = Sample(id="a", image=spoiled.image, mask=tv_tensors.Mask(mask), tags=torch.zeros(9, dtype=torch.uint8))
    assert torch.equal(learner.debias(empty, DescriptorFeatures()(spoiled.image), {1: torch.ones(28)}), mask)


def test_masks_without_any_background_are_refused(tmp_path: Path) -> None:
    (_, spoiled), *_ = pseudo_labeled(1)
    full = tv_tensors.Mask(torch.ones(48, 48, dtype=torch.uint8))
    sample = Sample(id="a", image=spoiled.image, mask=full, tags=torch.tensor([0, 1, 0], dtype=torch.uint8))
    with pytest.raises(UserError, match="no mask shows any background"):
        method().prepare([sample], tmp_path)


def test_preparing_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [spoiled for _, spoiled in pseudo_labeled(6)]
    learner = method(OBJECTS)
    learner.prepare(samples, tmp_path)
    written = [learner.store.read(DEBIASED, sample.id) for sample in samples]
    for mask, sample in zip(written, samples, strict=True):
        assert torch.equal(mask[mask != BIASED], sample.mask[mask != BIASED])
    monkeypatch.setattr(mars, "DescriptorFeatures", None)
    again = method(OBJECTS)
    again.prepare(samples, tmp_path)
    assert torch.equal(again.store.read(DEBIASED, samples[0].id), written[0])


@pytest.mark.parametrize("features", ["patches", "stego"])
def test_transformer_features_can_be_taken(tmp_path: Path, features: str) -> None:
    """With random weights: what is taken then means nothing, but the same is taken again."""
    samples = [spoiled for _, spoiled in pseudo_labeled(3)]
    options = {
        "features": features,
        "feature_model": "vit_tiny_patch16_224",
        "feature_weights": "none",
        "head_steps": 1,
        "head_dimensions": 4,
    }
    written = []
    for name in ("one", "other"):
        learner = method(OBJECTS, **options)
        torch.manual_seed(1)
        learner.prepare(samples, tmp_path / name)
        written.append([learner.store.read(DEBIASED, sample.id) for sample in samples])
    assert all(torch.equal(one, other) for one, other in zip(*written, strict=True))


# --------------------------------------------------------------- the learner


def batch(*values: int) -> Batch:
    """Images [16, 16] of one label each."""
    image = torch.randint(256, (len(values), 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask = torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(-1, 16, 16).clone()
    tags = torch.tensor([[0, 1, 0]] * len(values), dtype=torch.uint8)
    return Batch(ids=tuple(map(str, values)), image=image, mask=mask, tags=tags)


def test_the_teacher_is_asked_for_biased_pixels_alone() -> None:
    learner = method()
    scores = torch.tensor([0.0, 2.0, 5.0])
    learner.teacher.forward = lambda image: scores.view(1, 3, 1, 1).expand(2, 3, 16, 16)  # type: ignore[method-assign]
    given_batch = batch(1, BIASED)
    loss = learner.losses(given_batch)["completed"]
    logits = learner.network(learner.normalize(given_batch.image))
    ones = torch.ones(1, 16, 16)
    certain, unsure = cross_entropy(logits[:1], ones), cross_entropy(logits[1:], 2 * ones)
    expected = (certain + scores.softmax(0)[1] * unsure) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())


@pytest.mark.parametrize(("every", "step", "images"), [(1, 3, 1), (2, 3, 0), (2, 4, 1), (0, 4, 0)])
def test_the_crf_refines_images_with_biased_pixels_when_it_is_their_turn(
    monkeypatch: pytest.MonkeyPatch, every: int, step: int, images: int
) -> None:
    refined: list[Tensor] = []

    def crf(image: Tensor, unary: Tensor, *_: Any) -> Tensor:
        refined.append(image)
        return unary

    monkeypatch.setattr(mars, "dense_crf", crf)
    learner, given_batch = method(refine_every=every), batch(1, BIASED)
    learner.trainer.global_step = step
    learner.losses(given_batch)
    assert len(refined) == images
    assert all(torch.equal(image, given_batch.image[1]) for image in refined)


def test_the_teacher_follows_the_student() -> None:
    learner = method(keep=0.5)
    learner.after_step()
    first = next(learner.teacher.module.parameters()).clone()
    with torch.no_grad():
        next(learner.network.parameters()).add_(1)
    learner.after_step()
    torch.testing.assert_close(next(learner.teacher.module.parameters()), first + 0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"foreground_clusters": 0}, "--foreground-clusters"),
        ({"kept_share": 0.0}, "--kept-share 0: must be above 0"),
        ({"keep": 1.5}, "--keep"),
        ({"refine_every": -1}, "--refine-every"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MARS.Config(**{**SETTINGS, **wrong})


def test_a_data_set_without_background_is_refused() -> None:
    with pytest.raises(UserError, match="needs a class of the background"):
        method(Classes(("sky", "road"), background=None)).prepare([], Path())


def test_a_run_that_is_cut_ends_like_an_uninterrupted_one(shapes_folder: Path, tmp_path: Path) -> None:
    options = {**SETTINGS, "crop": 32, "steps": 4}
    for step in (1, 3):
        with cut(step):
            tiny_run("mars", shapes_folder, tmp_path / "cut", **options)
    tiny_run("mars", shapes_folder, tmp_path / "cut", {"workers": 1}, **options)
    tiny_run("mars", shapes_folder, tmp_path / "whole", **options)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
