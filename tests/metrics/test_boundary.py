"""Boundary IoU against erosion by definition, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelwise.errors import UserError
from labelwise.metrics.boundary import BoundaryIoU, BoundaryScores, boundary

NAMES = ("background", "cat", "dog")
K = len(NAMES)


def blocks(seed: int, height: int = 20, width: int = 24, void: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, K, (-(-height // 5), -(-width // 5)), generator=generator, dtype=torch.uint8)
    labels = coarse.repeat_interleave(5, 0).repeat_interleave(5, 1)[:height, :width].contiguous()
    if void:
        labels[7:9, 3:11] = 255
    return labels


def boundary_by_definition(mask: Tensor, distance: int) -> Tensor:
    """The mask minus its erosion, pixel by pixel; outside the image is outside the mask."""
    near = torch.zeros_like(mask)
    rows, columns = mask.shape
    for row, column in mask.nonzero().tolist():
        inside = distance <= row < rows - distance and distance <= column < columns - distance
        window = mask[max(0, row - distance) : row + distance + 1, max(0, column - distance) : column + distance + 1]
        near[row, column] = not (inside and bool(window.all()))
    return near


def scores_of(*pairs: tuple[Tensor, Tensor], width: float = 0.02) -> BoundaryScores:
    metric = BoundaryIoU(NAMES, width=width)
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric.compute()


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    distance=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_the_boundary_is_what_erosion_removes(seed: int, height: int, width: int, distance: int) -> None:
    labels = blocks(seed, height, width, void=False)
    found = boundary(labels, distance)
    for number in range(K):
        mask = labels == number
        assert torch.equal(found & mask, boundary_by_definition(mask, distance))


@given(seed=st.integers(0, 10_000), width=st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=20, deadline=None)
def test_scores_follow_the_definition(seed: int, width: float) -> None:
    target, prediction = blocks(seed), blocks(seed + 1, void=False)
    distance = max(1, round(width * math.hypot(*target.shape)))
    valid = target != 255
    expected = []
    for number in range(K):
        true = boundary_by_definition(target == number, distance)
        guessed = boundary_by_definition((prediction == number) & valid, distance)
        either = int((true | guessed).sum())
        expected.append(100 * int((true & guessed).sum()) / either if either else None)
    found = scores_of((prediction, target), width=width)
    assert list(found.iou.values()) == pytest.approx(expected)
    present = [value for value in expected if value is not None]
    assert found.miou == pytest.approx(sum(present) / len(present))


def test_a_perfect_prediction_scores_100_whatever_it_says_on_ignored_pixels() -> None:
    target = blocks(0)
    for value in range(K):
        assert scores_of((target.masked_fill(target == 255, value), target)).miou == 100


def test_a_wide_boundary_is_the_mask_itself() -> None:
    target, prediction = blocks(0, void=False), blocks(1, void=False)
    found = scores_of((prediction, target), width=1.0).iou
    for number, name in enumerate(NAMES):
        true, guessed = target == number, prediction == number
        assert found[name] == pytest.approx(100 * int((true & guessed).sum()) / int((true | guessed).sum()))


def test_a_shift_costs_more_at_the_boundary_than_inside() -> None:
    target = torch.zeros(60, 60, dtype=torch.uint8)
    target[10:50, 10:50] = 1
    prediction = target.roll(2, dims=1)
    narrow, wide = scores_of((prediction, target)), scores_of((prediction, target), width=1.0)
    assert narrow.iou["cat"] is not None
    assert wide.iou["cat"] is not None
    assert narrow.iou["cat"] < wide.iou["cat"] - 20


def test_counts_add_up_over_the_set_in_any_order() -> None:
    pairs = [(blocks(seed, void=False), blocks(seed + 5)) for seed in range(3)]
    together = tuple(torch.stack(part) for part in zip(*pairs, strict=True))
    assert scores_of(*pairs) == scores_of(*reversed(pairs)) == scores_of(together)  # type: ignore[arg-type]


def test_an_absent_class_is_left_out() -> None:
    ones = torch.ones(5, 5, dtype=torch.int64)
    assert scores_of((ones, ones)) == BoundaryScores(100, {"background": None, "cat": 100, "dog": None})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda prediction, target: (prediction.T, target), "the mask"),
        (lambda prediction, target: (prediction, target.masked_fill(target == 1, 37)), "mask holds 37"),
        (lambda prediction, target: (prediction.masked_fill(prediction == 1, 9), target), "prediction holds 9"),
        (lambda prediction, target: (prediction.float(), target), "float32"),
    ],
)
def test_bad_input_is_refused_and_counts_nothing(change, words: str) -> None:  # type: ignore[no-untyped-def]
    metric = BoundaryIoU(NAMES)
    with pytest.raises(UserError, match=words):
        metric.update(*change(blocks(0, void=False), blocks(1)))
    assert not metric.target_boundary.any()


def test_nothing_to_score_is_said() -> None:
    void = torch.full((4, 4), 255, dtype=torch.uint8)
    with pytest.raises(UserError, match="nothing to score"):
        scores_of((void, void))
