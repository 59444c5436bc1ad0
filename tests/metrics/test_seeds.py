"""Scores of seeds: every threshold against an argmax of its own, ties, limits, processes."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelwise.errors import UserError
from labelwise.metrics.seeds import SEED_THRESHOLDS, SeedResults, SeedScores, over_and_under_activation
from labelwise.metrics.segmentation import SegmentationScores

NAMES = ("bird", "background", "cat", "dog", "boat")
BACKGROUND = 1
Image = tuple[Tensor, Tensor, Tensor]


def image(seed: int, steps: int = 100, dtype: torch.dtype = torch.float32) -> Image:
    """Maps of up to three classes with scores that are often just a threshold, their classes, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 2, 3, 4])[torch.randperm(4, generator=generator)][: seed % 4]
    maps = torch.randint(0, steps // 2, (len(labels), 5, 6), generator=generator).to(dtype) / steps
    mask = torch.tensor([1, 0, 2, 3, 255, 1])[torch.randint(0, 6, (5, 6), generator=generator)].byte()
    mask[0, 0] = 1
    return maps, labels, mask


def scores_of(*images: Image, thresholds: tuple[float, ...] = SEED_THRESHOLDS) -> SeedResults:
    metric = SeedScores(NAMES, BACKGROUND, thresholds)
    for maps, labels, mask in images:
        metric.update(maps, labels, mask)
    return metric.compute()


def seed_by_definition(maps: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The argmax over [t, maps], which gives the first of equals."""
    constant = torch.full((1, *maps.shape[1:]), threshold, dtype=maps.dtype)
    return torch.cat([torch.tensor([BACKGROUND]), labels])[torch.cat([constant, maps]).argmax(dim=0)]


@given(
    seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
    steps=st.sampled_from([100, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_every_threshold_scores_its_own_seed(seeds: list[int], steps: int, dtype: torch.dtype) -> None:
    images = [image(seed, steps, dtype) for seed in seeds]
    results = scores_of(*images)
    for threshold in SEED_THRESHOLDS:
        metric = SegmentationScores(NAMES)
        for maps, labels, mask in images:
            metric.update(seed_by_definition(maps, labels, threshold), mask)
        expected, found = metric.compute(), results.at(threshold)
        assert found.iou == expected.iou
        assert found.miou == results.curve[threshold] == expected.miou
        assert torch.equal(results.histograms[SEED_THRESHOLDS.index(threshold)], expected.histogram)
    assert results.miou == max(results.curve.values())
    assert results.threshold == next(t for t, miou in results.curve.items() if miou == results.miou)
    assert results.images == len(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_score_of_just_the_threshold_is_background(dtype: torch.dtype) -> None:
    mask = torch.ones(1, 1, dtype=torch.uint8)
    for threshold in SEED_THRESHOLDS:
        score = torch.tensor(threshold, dtype=dtype)
        for value, background in ((score, 1), (score.nextafter(score.new_tensor(1)), 0)):
            results = scores_of((value.reshape(1, 1, 1), torch.tensor([2]), mask))
            histogram = results.histograms[SEED_THRESHOLDS.index(threshold)]
            assert histogram[BACKGROUND].tolist() == [0, background, 1 - background, 0, 0]


def test_the_grid_has_steps_of_a_hundredth() -> None:
    assert len(SEED_THRESHOLDS) == 36
    assert (SEED_THRESHOLDS[0], SEED_THRESHOLDS[10], SEED_THRESHOLDS[-1]) == (0.05, 0.15, 0.4)


def test_a_map_of_one_everywhere_covers_the_image_below_a_threshold_of_one() -> None:
    mask = torch.full((4, 4), 2, dtype=torch.uint8)
    results = scores_of((torch.ones(1, 4, 4), torch.tensor([2]), mask), thresholds=(0.5, 1.5))
    assert (results.at(0.5).iou["cat"], results.at(1.5).iou["cat"]) == (100, 0)
    assert results.at(1.5).iou["background"] == 0
    assert results.threshold == 0.5


def test_an_image_without_tags_is_background() -> None:
    mask = torch.tensor([[1, 1, 1, 2]], dtype=torch.uint8)
    results = scores_of((torch.zeros(0, 1, 4), torch.zeros(0, dtype=torch.int64), mask))
    assert results.iou == {"bird": None, "background": 75.0, "cat": 0.0, "dog": None, "boat": None}
    assert results.miou == 37.5


def test_over_and_under_activation_by_hand() -> None:
    matrix = torch.tensor([[70, 6, 4, 0], [3, 10, 1, 0], [5, 0, 5, 0], [0, 0, 0, 0]])
    # Class 1: 16 predicted, 14 true, 10 right, union 20; class 2: 10 predicted, 10 true, 5 right, union 15.
    over, under = over_and_under_activation(matrix, background=0)
    assert over == pytest.approx(100 * (6 / 20 + 5 / 15) / 2)
    assert under == pytest.approx(100 * (4 / 20 + 5 / 15) / 2)
    assert over_and_under_activation(torch.diag(torch.tensor([9, 0])), background=0) == (0, 0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_activation_and_overlap_add_up(seed: int) -> None:
    results = scores_of(image(4 * seed + 3), image(seed))
    foreground = [value for name, value in results.iou.items() if name != "background" and value is not None]
    total = sum(foreground) / len(foreground) + results.false_positive + results.false_negative
    assert total == pytest.approx(100)


def test_two_processes_count_what_one_counts() -> None:
    images = [image(seed) for seed in range(6)]
    first, second = SeedScores(NAMES, BACKGROUND), SeedScores(NAMES, BACKGROUND)
    for number, one in enumerate(images):
        (first if number % 2 else second).update(*one)
    first.counts += second.counts
    first.images += second.images
    merged, whole = first.compute(), scores_of(*images)
    assert merged.named() == whole.named()
    assert merged.images == whole.images == 6


def test_named_scores_can_be_written_to_a_file() -> None:
    named = scores_of(image(3)).named()
    read = json.loads(json.dumps(named))
    assert read["seed_curve"][0][0] == 0.05
    assert read["seed_miou"] == max(miou for _, miou in read["seed_curve"])


@pytest.mark.parametrize(
    ("maps", "labels", "mask", "message"),
    [
        (torch.rand(1, 2, 2), [1], torch.zeros(2, 2), "class 1"),
        (torch.rand(1, 2, 2), [5], torch.zeros(2, 2), "class 5"),
        (torch.rand(1, 2, 2), [0], torch.zeros(2, 3), "2x2 pixels, the mask 2x3"),
        (torch.rand(1, 2, 2), [0], torch.full((2, 2), 7), "mask holds 7"),
        (torch.full((1, 2, 2), torch.nan), [0], torch.zeros(2, 2), "not numbers"),
    ],
)
def test_bad_input_is_named_and_counts_nothing(maps: Tensor, labels: list[int], mask: Tensor, message: str) -> None:
    metric = SeedScores(NAMES, BACKGROUND)
    with pytest.raises(UserError, match=message):
        metric.update(maps, torch.tensor(labels), mask.byte())
    assert not metric.counts.any()
    assert not metric.images


def test_bad_grids_are_refused() -> None:
    for thresholds in ((), (0.2, 0.1)):
        with pytest.raises(ValueError, match="increase"):
            SeedScores(NAMES, BACKGROUND, thresholds)
    with pytest.raises(ValueError, match="not of the grid"):
        scores_of(image(3)).at(0.055)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_refused() -> None:
    ignored = torch.full((2, 2), 255, dtype=torch.uint8)
    with pytest.raises(UserError, match="nothing to score"):
        scores_of((torch.rand(1, 2, 2), torch.tensor([0]), ignored))
