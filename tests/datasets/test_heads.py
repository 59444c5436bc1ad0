"""Head scenes: labels that agree, a head that alone is vivid, a body that is most of the object."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes

from labelwise.datasets.shapes import HEAD_CLASSES, ShapesOptions, head_scene
from labelwise.errors import UserError
from labelwise.samples import Sample

HEADS = ShapesOptions(scenes="heads", size=56)
few = settings(max_examples=15, derandomize=True)
scenes = st.builds(
    lambda seed, index, size: head_scene(replace(HEADS, seed=seed, size=size), "train", index),
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.sampled_from([40, 56, 97]),
)


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    return [head_scene(HEADS, "train", index) for index in range(200)]


def vividness(sample: Sample) -> torch.Tensor:
    """[H, W]: the range of the three channels."""
    image = sample.image.float()
    return image.amax(0) - image.amin(0)


@few
@given(scenes)
def test_all_kinds_of_label_agree(sample: Sample) -> None:
    assert sample.instances is not None and len(sample.instances) == 1
    label = int(sample.instance_labels[0])
    assert (sample.mask[sample.instances[0]] == label).all()
    assert sample.tags.nonzero().flatten().tolist() == [label]
    assert torch.equal(sample.boxes[0], masks_to_boxes(sample.instances)[0] + torch.tensor([0, 0, 1, 1]))


@few
@given(scenes)
def test_the_vivid_part_is_in_the_object_and_small(sample: Sample) -> None:
    vivid, object_ = vividness(sample) > 115, sample.instances[0]
    assert (vivid & ~object_).sum() < 0.02 * vivid.numel()
    assert (vivid & object_).sum() < 0.45 * object_.sum()


def test_the_color_of_the_head_is_the_class(many: list[Sample]) -> None:
    right = 0
    for sample in many:
        place = int(vividness(sample).argmax())
        right += int(sample.image.flatten(1)[:, place].argmax()) + 1 == int(sample.instance_labels[0])
    assert right > 0.95 * len(many)


def test_all_classes_occur_about_as_often(many: list[Sample]) -> None:
    counts = torch.bincount(torch.cat([sample.instance_labels for sample in many]), minlength=len(HEAD_CLASSES))
    assert counts[0] == 0
    assert counts[1:].min() > 0.6 * counts[1:].max()


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first = head_scene(HEADS, "train", 2)
    assert torch.equal(first.image, head_scene(replace(HEADS, train=900, val=5), "train", 2).image)
    assert not torch.equal(first.image, head_scene(HEADS, "val", 2).image)


def test_images_without_an_object_are_refused() -> None:
    with pytest.raises(UserError, match="--scenes heads: have no --context, --parts, --single or --ood"):
        replace(HEADS, ood=3)
