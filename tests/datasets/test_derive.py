from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.derive import (
    boxes_of_instances,
    instance_labels,
    mask_of_instances,
    points_of_mask,
    sample_points,
    sparse_mask,
    tags_of_labels,
    tags_of_mask,
    with_derived,
)
from labelwise.samples import Kind, Sample

CLASSES = Classes(("background", "a", "b", "c"))
MASKS = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.sampled_from([0, 1, 2, 3, 255])
).map(torch.from_numpy)


@given(mask=MASKS, count=st.integers(0, 70), seed=st.integers(0, 1000))
def test_sampled_points_are_different_pixels_with_their_classes(mask: torch.Tensor, count: int, seed: int) -> None:
    points, labels = sample_points(mask, count, seed)
    columns, rows = points.long().unbind(1)
    assert torch.equal(mask[rows, columns].long(), labels)
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == len(points)
    assert len(points) == min(count, int((mask != 255).sum()))
    assert all(torch.equal(a, b) for a, b in zip(sample_points(mask, count, seed), (points, labels), strict=True))


@given(mask=MASKS)
def test_a_sparse_mask_has_its_points_and_nothing_else(mask: torch.Tensor) -> None:
    points, labels = points_of_mask(mask)
    assert torch.equal(sparse_mask(points, labels, (mask.shape[0], mask.shape[1])), mask)


def test_points_differ_between_seeds_and_cover_the_image() -> None:
    mask = torch.zeros(20, 20, dtype=torch.uint8)
    first, second = sample_points(mask, 100, 0)[0], sample_points(mask, 100, 1)[0]
    assert not torch.equal(first, second)
    assert (first.mean(dim=0) - 9.5).abs().max() < 2


@given(mask=MASKS)
def test_tags_of_a_mask_are_its_classes(mask: torch.Tensor) -> None:
    assert set(tags_of_mask(mask, CLASSES).nonzero().flatten().tolist()) == set(mask.unique().tolist()) - {0, 255}


def test_a_class_is_present_if_one_of_its_objects_is_not_difficult() -> None:
    tags = tags_of_labels(torch.tensor([1, 1, 2, 3]), CLASSES, torch.tensor([True, False, True, False]))
    assert tags.tolist() == [0, 1, 255, 1]


def test_boxes_enclose_their_objects() -> None:
    instances = torch.zeros(2, 5, 6, dtype=torch.bool)
    instances[0, 1, 2] = instances[1, 2:4, 1:6] = True
    assert boxes_of_instances(instances).tolist() == [[2, 1, 3, 2], [1, 2, 6, 4]]
    assert boxes_of_instances(instances[:0]).shape == (0, 4)


def test_later_objects_cover_earlier_ones() -> None:
    instances = torch.tensor([[[1, 1, 0]], [[0, 1, 0]]], dtype=torch.bool)
    assert mask_of_instances(instances, torch.tensor([3, 1]), background=0).tolist() == [[3, 1, 0]]
    assert mask_of_instances(instances, torch.tensor([3, 1]), background=None).tolist() == [[3, 1, 255]]


def test_an_object_has_the_class_of_most_of_its_labeled_pixels() -> None:
    objects = np.array([[1, 1, 1, 1, 2, 7, 255]], np.uint8)
    mask = np.array([[0, 0, 255, 3, 2, 0, 1]], np.uint8)
    numbers, labels = instance_labels(objects, mask, CLASSES)
    assert numbers.tolist() == [1, 2, 7] and labels.tolist() == [3, 2, -1]


def test_whole_outlines_make_the_mask_where_there_are_clicks_as_well() -> None:
    sample = Sample(
        id="a",
        image=tv_tensors.Image(torch.zeros(3, 2, 2, dtype=torch.uint8)),
        instances=tv_tensors.Mask(torch.tensor([[[True, True], [False, False]]])),
        instance_labels=torch.tensor([2]),
        points=tv_tensors.KeyPoints(torch.tensor([[1.0, 0.0]]), canvas_size=(2, 2)),
        point_labels=torch.tensor([2]),
    )
    mask = with_derived(sample, {Kind.MASKS}, CLASSES).mask
    assert mask is not None and mask.tolist() == [[2, 2], [0, 0]]
