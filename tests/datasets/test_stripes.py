"""Stripe scenes: labels that agree, a class that the stripe alone tells, and its distance from the shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes

from labelwise import datasets
from labelwise.datasets.shapes import STRIPE_CLASSES, ShapesOptions, stripe_scene, write_shapes
from labelwise.errors import UserError
from labelwise.samples import Kind, Sample

STRIPES = ShapesOptions(scenes="stripes", size=64, train=3, val=2)
RED, BLUE = 1, 2
few = settings(max_examples=15, derandomize=True)
scenes = st.builds(
    lambda seed, index, size: stripe_scene(replace(STRIPES, seed=seed, size=size), "train", index),
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.sampled_from([48, 64, 97]),
)


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    return [stripe_scene(STRIPES, "train", index) for index in range(300)]


@few
@given(scenes)
def test_all_kinds_of_label_agree(sample: Sample) -> None:
    mask, instances, labels = sample.mask, sample.instances, sample.instance_labels
    assert mask is not None and instances is not None and labels is not None
    assert 1 <= len(instances) == len(labels) <= 4
    assert instances.sum(dim=0).max() == 1
    for instance, label, box, point in zip(instances, labels, sample.boxes, sample.points, strict=True):
        assert (mask[instance] == label).all()
        assert torch.equal(box, masks_to_boxes(instance[None])[0] + torch.tensor([0, 0, 1, 1]))
        column, row = point.long()
        assert instance[row, column]
    uncovered = mask[~instances.any(dim=0)]
    assert ((uncovered == 0) | (uncovered == 255)).all()
    assert len(set(labels.tolist())) == 1
    assert sample.tags.nonzero().flatten().tolist() == [int(labels[0])]


@few
@given(scenes)
def test_the_color_of_the_stripe_is_the_class(sample: Sample) -> None:
    red, _, blue = sample.image[:, 0].float().mean(dim=1)
    assert int(sample.instance_labels[0]) == (RED if red > blue else BLUE)
    assert sample.captions[0].endswith("red-striped ground" if red > blue else "blue-striped ground")


@few
@given(scenes)
def test_the_shapes_are_far_from_the_stripe(sample: Sample) -> None:
    size = sample.image.shape[-1]
    assert not sample.instances[:, : int(0.47 * size)].any()
    ground = sample.image[:, round(0.1 * size) + 1 :].float().mean(dim=(1, 2))
    assert (ground.max() - ground.min()) < 120, "the stripe ends within the upper tenth"


def test_nothing_but_the_stripe_tells_the_class(many: list[Sample]) -> None:
    """The class whose mean color of shapes is nearest is right as often as chance."""
    labels = torch.stack([sample.instance_labels[0] for sample in many])
    assert (labels == RED).float().mean().item() == pytest.approx(0.5, abs=0.1)
    colors = torch.stack([s.image[:, s.instances.any(0)].float().mean(dim=1) for s in many])
    half = len(many) // 2
    means = torch.stack([colors[:half][labels[:half] == label].mean(dim=0) for label in (RED, BLUE)])
    guessed = torch.cdist(colors[half:], means).argmin(dim=1) + 1
    assert 0.35 < (guessed == labels[half:]).float().mean() < 0.65


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first = stripe_scene(STRIPES, "train", 2)
    assert torch.equal(first.image, stripe_scene(replace(STRIPES, train=900, val=5), "train", 2).image)
    for split, index, seed in (("train", 1, 0), ("val", 2, 0), ("train", 2, 1)):
        assert not torch.equal(first.image, stripe_scene(replace(STRIPES, seed=seed), split, index).image)


def test_discs_and_boxes_both_occur(many: list[Sample]) -> None:
    """A box fills its box, a disc 79 % of it."""
    filled = []
    for sample in many:
        for instance, box in zip(sample.instances, sample.boxes, strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            filled.append(float(instance.sum() / area))
    assert sum(share == 1 for share in filled) > 200
    assert sum(0.75 < share < 0.85 for share in filled) > 200


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 47}, "--size 47: must be between 48 and 2048 pixels"),
        ({"ood": 1}, "--scenes stripes: have no --context, --parts, --single or --ood; leave them out"),
    ],
)
def test_options_that_stripe_scenes_cannot_have_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(STRIPES, **wrong)


def test_a_written_set_is_read_back_equal(tmp_path: Path) -> None:
    write_shapes(tmp_path, STRIPES)
    dataset = datasets.open(tmp_path)
    assert dataset.classes == STRIPE_CLASSES
    for split, count in (("train", 3), ("val", 2)):
        assert len(dataset.ids(split)) == count
        for index, id in enumerate(dataset.ids(split)):
            true, read = stripe_scene(STRIPES, split, index), dataset.read(id, tuple(Kind))
            assert torch.equal(true.mask, read.mask) and torch.equal(true.instances, read.instances)
            assert true.captions == read.captions
            assert (true.image.int() - read.image.int()).abs().float().mean() < 16
