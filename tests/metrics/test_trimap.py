"""Bands around boundaries against their definition, and their limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labelwise.errors import UserError
from labelwise.metrics.segmentation import SegmentationScores
from labelwise.metrics.trimap import TrimapIoU, nearest_band

NAMES = ("background", "cat", "dog")
WIDTHS = (1, 2, 5)


def blocks(seed: int, height: int = 18, width: int = 23, void: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, len(NAMES), (-(-height // 7), -(-width // 7)), generator=generator, dtype=torch.uint8)
    labels = coarse.repeat_interleave(7, 0).repeat_interleave(7, 1)[:height, :width].contiguous()
    if void:
        labels[6:8, 3:11] = 255
    return labels


def in_band(labels: Tensor, width: int) -> Tensor:
    """Pixel by pixel: whether another label is at most `width` rows and columns away."""
    band = torch.zeros(labels.shape, dtype=torch.bool)
    for row, column in torch.ones_like(labels).nonzero().tolist():
        around = labels[max(0, row - width) : row + width + 1, max(0, column - width) : column + width + 1]
        band[row, column] = bool((around != labels[row, column]).any())
    return band


def scores_of(*pairs: tuple[Tensor, Tensor], widths: tuple[int, ...] = WIDTHS) -> dict[int, float | None]:
    metric = TrimapIoU(NAMES, widths)
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric.compute()


@given(seed=st.integers(0, 10_000), height=st.integers(1, 20), width=st.integers(1, 20), void=st.booleans())
def test_the_bands_are_those_of_the_definition(seed: int, height: int, width: int, void: bool) -> None:
    labels = blocks(seed, height, width, void)
    ring = nearest_band(labels, WIDTHS)
    for number, distance in enumerate(WIDTHS):
        assert torch.equal(ring <= number, in_band(labels, distance))


@given(seed=st.integers(0, 10_000))
def test_a_band_is_scored_as_if_all_else_were_ignored(seed: int) -> None:
    target, prediction = blocks(seed, void=True), blocks(seed + 1)
    found = scores_of((prediction, target))
    for width in WIDTHS:
        whole = SegmentationScores(NAMES)
        whole.update(prediction, target.masked_fill(~in_band(target, width), 255))
        assert found[width] == pytest.approx(whole.compute().miou)


def test_the_widest_band_is_the_whole_image() -> None:
    target, prediction = blocks(0), blocks(1)
    whole = SegmentationScores(NAMES)
    whole.update(prediction, target)
    assert scores_of((prediction, target), widths=(1, 40))[40] == pytest.approx(whole.compute().miou)


def test_a_shift_costs_most_in_the_narrowest_band() -> None:
    target = torch.zeros(60, 60, dtype=torch.uint8)
    target[15:45, 15:45] = 1
    values = list(scores_of((target.roll(2, dims=1), target), widths=(2, 5, 10, 40)).values())
    assert all(value is not None for value in values)
    assert values == sorted(values)
    assert values[-1] - values[0] > 20


def test_a_band_follows_the_void_contour() -> None:
    target = torch.zeros(9, 9, dtype=torch.uint8)
    target[:, 4] = 255
    prediction = torch.zeros_like(target)
    prediction[:, 5] = 1
    # Columns 3 and 5 are next to the contour; the contour itself is not scored.
    assert scores_of((prediction, target), widths=(1,)) == {1: pytest.approx((50 + 0) / 2)}


def test_images_without_a_boundary_have_no_score() -> None:
    plain = torch.ones(5, 5, dtype=torch.uint8)
    assert scores_of((plain, plain)) == dict.fromkeys(WIDTHS)


def test_counts_add_up_over_the_set_in_any_order() -> None:
    pairs = [(blocks(seed), blocks(seed + 5, void=True)) for seed in range(3)]
    together = tuple(torch.stack(part) for part in zip(*pairs, strict=True))
    assert scores_of(*pairs) == scores_of(*reversed(pairs)) == scores_of(together)  # type: ignore[arg-type]


@pytest.mark.parametrize("widths", [(), (0, 1), (2, 1), (1, 1)])
def test_widths_must_rise(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not rise"):
        TrimapIoU(NAMES, widths)


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
    metric = TrimapIoU(NAMES, WIDTHS)
    with pytest.raises(UserError, match=words):
        metric.update(*change(blocks(0), blocks(1)))
    assert not metric.histograms.any()
