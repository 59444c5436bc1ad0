from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from labelwise.models.anchors import anchor_targets, grid_anchors, inside_image, make_anchors
from labelwise.models.boxes import decode_boxes

PUBLISHED = (
    (-84, -40, 99, 55),
    (-176, -88, 191, 103),
    (-360, -184, 375, 199),
    (-56, -56, 71, 71),
    (-120, -120, 135, 135),
    (-248, -248, 263, 263),
    (-36, -80, 51, 95),
    (-80, -168, 95, 183),
    (-168, -344, 183, 359),
)
"""With the last pixel inside, as the released code has them."""
SIZE = (600, 1000)


def all_anchors() -> Tensor:
    return grid_anchors(make_anchors(), 37, 62, 16)


def test_the_nine_anchors_are_those_of_the_paper() -> None:
    assert torch.equal(make_anchors(), torch.tensor(PUBLISHED) + torch.tensor([0.0, 0, 1, 1]))


def test_anchors_of_a_smaller_stride_have_its_center_and_whole_multiples_of_its_window() -> None:
    anchors = make_anchors(8, scales=(2, 4, 8))
    assert torch.equal((anchors[:, :2] + anchors[:, 2:]) / 2, torch.full((9, 2), 4.0))
    assert (anchors[3:6, 2:] - anchors[3:6, :2]).tolist() == [[16, 16], [32, 32], [64, 64]]


def test_anchors_follow_the_rows_of_the_map_and_come_together_in_each_cell() -> None:
    anchors = make_anchors()
    grid = grid_anchors(anchors, 2, 3, 16)
    assert len(grid) == 9 * 2 * 3
    for row in range(2):
        for column in range(3):
            first = 9 * (3 * row + column)
            shift = torch.tensor([column, row, column, row]) * 16.0
            assert torch.equal(grid[first : first + 9], anchors + shift)


def test_about_six_thousand_of_twenty_thousand_anchors_lie_in_the_image() -> None:
    anchors = all_anchors()
    assert len(anchors) == 20646
    assert 5500 < int(inside_image(anchors, SIZE).sum()) < 9000


def test_an_anchor_may_touch_the_border() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 20], [-1, 0, 10, 20], [0, 0, 11, 20], [0, 0, 10, 21]])
    assert inside_image(anchors, (20, 10)).tolist() == [True, False, False, False]


def test_an_object_on_an_anchor_makes_it_positive_and_asks_for_no_offset() -> None:
    anchors = all_anchors()
    index = int(inside_image(anchors, SIZE).nonzero()[1000])
    labels, targets = anchor_targets(anchors, anchors[index : index + 1], SIZE)
    assert labels[index] == 1
    assert torch.equal(targets[index], torch.zeros(4))


def test_an_object_smaller_than_every_anchor_still_has_all_that_share_the_best_overlap() -> None:
    anchors = all_anchors()
    box = torch.tensor([[500.0, 300, 504, 304]])
    labels, targets = anchor_targets(anchors, box, SIZE)
    positive = (labels == 1).nonzero().squeeze(1)
    inside = inside_image(anchors, SIZE)
    overlaps = box_iou(anchors, box).squeeze(1) * inside
    assert len(positive) > 1 and overlaps.max() < 0.3
    assert torch.equal(positive, (overlaps == overlaps.max()).nonzero().squeeze(1))
    torch.testing.assert_close(decode_boxes(anchors[positive], targets[positive]), box.expand(len(positive), 4))


def test_an_object_that_no_anchor_touches_makes_none_positive() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]])
    labels, _ = anchor_targets(anchors, torch.tensor([[50.0, 50, 60, 60]]), (100, 100))
    assert labels.tolist() == [0, 0]


def test_offsets_lead_to_the_best_object_of_the_anchor_not_to_that_of_which_it_is_the_best_anchor() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    near, far = torch.tensor([0.0, 0, 10, 9]), torch.tensor([0.0, 0, 10, 2])
    labels, targets = anchor_targets(anchors, torch.stack([far, near]), (100, 100))
    assert labels.tolist() == [1]
    torch.testing.assert_close(decode_boxes(anchors, targets)[0], near)


@pytest.mark.parametrize(("height", "label"), [(29, 0), (30, -1), (69, -1), (70, 1)])
def test_the_thresholds_belong_to_the_classes_above_them(height: int, label: int) -> None:
    # A third anchor is the best one of the object, so that the first is judged by its overlap alone.
    anchors = torch.tensor([[0.0, 0, 10, 100], [0, 0, 10, height]])
    labels, _ = anchor_targets(anchors, torch.tensor([[0.0, 0, 10, height]]), (100, 100))
    assert labels.tolist() == [label, 1]


def test_at_most_half_of_the_sample_is_positive_and_no_anchor_beyond_the_border_is_in_it() -> None:
    anchors = all_anchors()
    inside = inside_image(anchors, SIZE)
    boxes = anchors[inside.nonzero().squeeze(1)[::40]]
    labels, _ = anchor_targets(anchors, boxes, SIZE)
    assert (int((labels == 1).sum()), int((labels == 0).sum())) == (128, 128)
    assert bool((labels[~inside] == -1).all())


def test_negatives_fill_up_where_objects_are_few() -> None:
    labels, _ = anchor_targets(all_anchors(), torch.tensor([[100.0, 100, 228, 228]]), SIZE)
    positive = int((labels == 1).sum())
    assert 0 < positive < 128 and int((labels == 0).sum()) == 256 - positive


def test_an_image_without_objects_has_negatives_alone() -> None:
    labels, targets = anchor_targets(all_anchors(), torch.zeros(0, 4), SIZE)
    assert int((labels == 0).sum()) == 256 and not bool((labels == 1).any())
    assert not bool(targets.any())


def test_an_image_smaller_than_every_anchor_has_nothing_to_learn() -> None:
    labels, _ = anchor_targets(all_anchors(), torch.tensor([[0.0, 0, 8, 8]]), (16, 16))
    assert bool((labels == -1).all())


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_labels_are_those_of_torchvisions_matcher(seed: int, objects: int) -> None:
    random = torch.Generator().manual_seed(seed)
    anchors = grid_anchors(make_anchors(8, scales=(2, 4)), 12, 12, 8)
    corner = 70 * torch.rand(objects, 2, generator=random)
    boxes = torch.cat([corner, corner + 2 + 24 * torch.rand(objects, 2, generator=random)], dim=1)
    inside = inside_image(anchors, (96, 96))
    matched = Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(boxes, anchors[inside]))
    expected = torch.where(matched >= 0, 1, torch.where(matched == Matcher.BELOW_LOW_THRESHOLD, 0, -1))
    labels, _ = anchor_targets(anchors, boxes, (96, 96), samples=2 * len(anchors))
    assert torch.equal(labels[inside], expected)
