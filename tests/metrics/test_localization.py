"""Scores of localisation: limits, a threshold at a time, the published sum of PxAP, processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import Metric

from labelwise.errors import UserError
from labelwise.metrics.localization import (
    BOX_THRESHOLDS,
    BoxAccuracy,
    LocalizationAccuracy,
    LocalizationResults,
    MaxBoxAccuracy,
    PixelAveragePrecision,
)
from labelwise.metrics.map_boxes import contour_boxes, inclusive_corners, iou_inclusive, largest_component_boxes

SIZE = 16
GRID = (0.0, 0.2, 0.4, 0.6, 0.8)
Image = tuple[Tensor, Tensor, Tensor, int]


def image(seed: int, classes: int = 8) -> Image:
    """A map with a bright box that lies about where the true one is, true boxes, class scores and the class."""
    random = np.random.default_rng(seed)
    score_map = torch.from_numpy(random.random((SIZE, SIZE)) * 0.6).float()
    left, top, width, height = (
        random.integers(0, 6),
        random.integers(0, 6),
        random.integers(3, 9),
        random.integers(3, 9),
    )
    score_map[top : top + height, left : left + width] += 0.4
    shift = random.integers(0, 3)
    boxes = torch.tensor([[left + shift, top, left + width + shift, top + height], [0, 0, 2, 3]]).float()
    scores = torch.from_numpy(random.integers(0, 6, classes)).float()
    return score_map, boxes[: random.integers(1, 3)], scores, int(random.integers(0, classes))


def localization(*images: Image) -> LocalizationResults:
    metric = LocalizationAccuracy(GRID, SIZE)
    for one in images:
        metric.update(*one)
    return metric.compute()


def box_accuracy(*images: Image) -> BoxAccuracy:
    metric = MaxBoxAccuracy(GRID, SIZE)
    for score_map, boxes, _, _ in images:
        metric.update(score_map, boxes)
    return metric.compute()


def overlap(found: Tensor, boxes: Tensor) -> float:
    return float(iou_inclusive(found, inclusive_corners(boxes)).max())


@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_localization_counts_images_whose_box_and_class_are_right(seeds: list[int]) -> None:
    images = [image(seed) for seed in seeds]
    results = localization(*images)
    for place, threshold in enumerate(GRID):
        boxes = [largest_component_boxes(one[0], torch.tensor(GRID), SIZE).at(place) for one in images]
        right = [overlap(box, one[1]) >= 0.5 for box, one in zip(boxes, images, strict=True)]
        ranks = [one[2].argsort(descending=True, stable=True).tolist().index(one[3]) for one in images]
        expected = [
            100 * sum(hit and rank < least for hit, rank in zip(right, ranks, strict=True)) / len(images)
            for least in (99, 1, 5)
        ]
        found = results.at(threshold)
        assert [found.gt_known, found.top1, found.top5] == pytest.approx(expected)
    assert results.best.gt_known + results.best.top1 == max(one.gt_known + one.top1 for one in results.curve)
    assert all(one.gt_known >= one.top5 >= one.top1 for one in results.curve)
    assert results.images == len(images)


def test_a_map_that_is_the_box_localizes_at_every_threshold() -> None:
    score_map = torch.zeros(224, 224)
    score_map[20:70, 30:80] = 1
    metric = LocalizationAccuracy()
    metric.update(score_map, torch.tensor([[30.0, 20.0, 80.0, 70.0]]), torch.tensor([0.1, 0.9]), 1)
    results = metric.compute()
    assert all(one.gt_known == one.top1 == one.top5 == 100 for one in results.curve)
    assert results.best.threshold == BOX_THRESHOLDS[0]


def test_boxes_and_maps_of_any_size_meet_in_one_frame() -> None:
    score_map = torch.zeros(30, 60)
    score_map[3:12, 6:24] = 1
    box = torch.tensor([[6.0, 3.0, 24.0, 12.0]])
    assert localization((score_map, box, torch.ones(1), 0)).best.gt_known == 100
    # The right place in the image, the wrong one if the box were not squeezed.
    score_map = torch.zeros(30, 60)
    score_map[20:30, 40:60] = 1
    box = torch.tensor([[40.0, 20.0, 60.0, 30.0]])
    assert localization((score_map, box, torch.ones(1), 0)).best.gt_known == 100


def test_an_overlap_of_just_a_half_is_enough() -> None:
    score_map = torch.zeros(SIZE, SIZE)
    # Its box reaches from 0 to 9, one past the last pixel: 10 x 10 pixels; the true one has 10 x 5.
    score_map[:9, :9] = 1
    half = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
    less = torch.tensor([[0.0, 0.0, 10.0, 4.0]])
    assert localization((score_map, half, torch.ones(2), 0)).at(0.4).gt_known == 100
    assert localization((score_map, less, torch.ones(2), 0)).at(0.4).gt_known == 0


def test_of_equal_class_scores_the_first_is_higher() -> None:
    score_map = torch.zeros(SIZE, SIZE)
    score_map[:9, :9] = 1
    box, scores = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.ones(7)
    hits = [localization((score_map, box, scores, label)).best for label in range(7)]
    assert [one.top1 for one in hits] == [100, 0, 0, 0, 0, 0, 0]
    assert [one.top5 for one in hits] == [100, 100, 100, 100, 100, 0, 0]


@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_box_accuracy_takes_the_best_threshold_of_each_overlap(seeds: list[int]) -> None:
    images = [image(seed) for seed in seeds]
    shares = np.zeros((2, 3, len(GRID)))
    for score_map, boxes, _, _ in images:
        for multi in (0, 1):
            found = contour_boxes(score_map, torch.tensor(GRID), multi=bool(multi))
            for place in range(len(GRID)):
                value = overlap(found.at(place), boxes)
                shares[multi, :, place] += [100 / len(images) * (value >= least) for least in (0.3, 0.5, 0.7)]
    results = box_accuracy(*images)
    assert (shares[1] >= shares[0]).all()
    assert results.max_box_acc == pytest.approx(shares[0, 1].max())
    assert results.threshold == pytest.approx(GRID[shares[0, 1].round(6).argmax()])
    assert list(results.max_box_acc_of.values()) == pytest.approx(shares[1].max(axis=1).tolist())
    assert results.max_box_acc_v2 == pytest.approx(shares[1].max(axis=1).mean())
    assert results.max_box_acc_of[0.5] >= results.max_box_acc - 1e-9


def pxap(*pairs: tuple[Tensor, Tensor]) -> tuple[float, float]:
    metric = PixelAveragePrecision()
    for score_map, mask in pairs:
        metric.update(score_map, mask)
    results = metric.compute()
    return results.pxap, results.peak_iou


def published_sum(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """PxAP and the peak IoU, one bin after the other."""
    edges = [*np.arange(0, 1, 0.001), 1.0, 2.0, 3.0]
    positives, area, recall_before, best = int(truth.sum()), 0.0, 0.0, 0.0
    for number, low in enumerate(reversed(edges[:-1])):
        above = scores.double() >= low
        right = int((above & truth).sum())
        wrong = int((above & ~truth).sum())
        recall = right / positives
        if right + wrong and number:
            area += right / (right + wrong) * (recall - recall_before)
        recall_before = recall
        best = max(best, right / (wrong + positives))
    return 100 * area, 100 * best


@given(seed=st.integers(0, 10_000), steps=st.sampled_from([1, 10, 1000, 5000]))
@settings(max_examples=10, deadline=None)
def test_pixel_average_precision_is_the_published_sum(seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 2, (5, 6), generator=generator, dtype=torch.uint8)
    mask[0, :2] = torch.tensor([1, 255])
    score_map = (0.3 * mask.clamp(max=1) + torch.rand(5, 6, generator=generator) * 0.7).mul(steps).round() / steps
    known = mask != 255
    assert pxap((score_map, mask)) == pytest.approx(published_sum(score_map[known], mask[known] == 1))


def test_a_map_that_is_the_mask_has_an_area_of_100() -> None:
    mask = torch.zeros(6, 7, dtype=torch.bool)
    mask[2:4, 1:5] = True
    assert pxap((mask.float(), mask)) == (100, 100)


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_a_constant_map_has_the_share_of_the_object(value: float) -> None:
    mask = torch.zeros(6, 7, dtype=torch.uint8)
    mask[2:4, 1:5], mask[5] = 1, 255
    assert pxap((torch.full((6, 7), value), mask)) == pytest.approx((100 * 8 / 35, 100 * 8 / 35))


def test_pixels_of_all_images_are_pooled() -> None:
    maps, masks = torch.rand(3, 4, 4), torch.rand(3, 4, 4) > 0.5
    masks[0, 0, 0] = True
    assert pxap(*zip(maps, masks, strict=True)) == pxap((maps.reshape(4, 12), masks.reshape(4, 12)))


def updates() -> list[tuple[Metric, list[tuple[object, ...]]]]:
    images = [image(seed) for seed in range(5)]
    return [
        (LocalizationAccuracy(GRID, SIZE), [*images]),
        (MaxBoxAccuracy(GRID, SIZE), [one[:2] for one in images]),
        (PixelAveragePrecision(), [(one[0], one[0] > 0.5) for one in images]),
    ]


@pytest.mark.parametrize("which", range(3))
def test_two_processes_count_what_one_counts(which: int) -> None:
    (whole, calls), (first, _), (second, _) = (updates()[which] for _ in range(3))
    for number, arguments in enumerate(calls):
        whole.update(*arguments)
        (first if number < 2 else second).update(*arguments)
    states = [metric.metric_state for metric in (first, second)]
    for name in states[0]:
        setattr(first, name, sum(state[name] for state in states))
    assert first.compute() == whole.compute()


@pytest.mark.parametrize("metric", [LocalizationAccuracy(), MaxBoxAccuracy(), PixelAveragePrecision()])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_refused(metric: Metric) -> None:
    with pytest.raises(UserError, match="nothing to score"):
        metric.compute()


MAP, BOX, NO_BOX, MASK = torch.rand(4, 4), torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.zeros(0, 4), torch.ones(4, 4)
NAN = torch.full((4, 4), torch.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LocalizationAccuracy().update(MAP, NO_BOX, torch.rand(3), 0), "no box of its class"),
        (lambda: MaxBoxAccuracy().update(MAP, NO_BOX), "no box of its class"),
        (lambda: LocalizationAccuracy().update(NAN, BOX, torch.rand(3), 0), "not finite"),
        (lambda: MaxBoxAccuracy().update(4 + MAP, BOX), "divide it by its maximum"),
        (lambda: PixelAveragePrecision().update(NAN, MASK.byte()), "divide it by its maximum"),
        (lambda: PixelAveragePrecision().update(MAP, 2 * MASK.byte()), "other than 0, 1 and 255"),
        (lambda: PixelAveragePrecision().update(MAP, torch.ones(4, 5).byte()), "4x4 pixels, the mask 4x5"),
    ],
)
def test_bad_input_is_named(call: Callable[[], None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("thresholds", [(), (0.2, 0.2), (0.5, 0.1)])
def test_thresholds_increase(thresholds: tuple[float, ...]) -> None:
    for metric in (LocalizationAccuracy, MaxBoxAccuracy):
        with pytest.raises(ValueError, match="increase"):
            metric(thresholds)


def test_a_threshold_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="not of the grid"):
        localization(image(0)).at(0.3)
