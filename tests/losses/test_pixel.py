"""Pixel losses against brute force, limits and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelwise.losses.pixel import cross_entropy, masked_cross_entropy, ohem_cross_entropy, pseudo_label

K = 4


def batch(seed: int, ignored: float = 0.3, shape: tuple[int, int, int] = (2, 3, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape[0], K, *shape[1:], generator=generator)
    mask = torch.randint(0, K, shape, generator=generator, dtype=torch.uint8)
    mask[torch.rand(shape, generator=generator) < ignored] = 255
    return logits, mask


def true_probabilities(logits: Tensor, mask: Tensor) -> list[float]:
    found = []
    for image, row, column in torch.cartesian_prod(*(torch.arange(size) for size in mask.shape)).tolist():
        label = int(mask[image, row, column])
        if label != 255:
            scores = [math.exp(value) for value in logits[image, :, row, column].tolist()]
            found.append(scores[label] / sum(scores))
    return found


def mean_loss(probabilities: list[float]) -> float:
    return sum(-math.log(value) for value in probabilities) / max(1, len(probabilities))


@given(seed=st.integers(0, 10_000), ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
@settings(max_examples=25, deadline=None)
def test_cross_entropy_is_the_mean_over_valid_pixels(seed: int, ignored: float) -> None:
    logits, mask = batch(seed, ignored)
    expected = mean_loss(true_probabilities(logits, mask))
    assert cross_entropy(logits, mask).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_cross_entropy_takes_bytes_and_longs(dtype: torch.dtype) -> None:
    logits, mask = batch(0)
    expected = torch.nn.functional.cross_entropy(logits, mask.long(), ignore_index=255)
    assert torch.allclose(cross_entropy(logits, mask.to(dtype)), expected)


def test_another_ignore_index() -> None:
    logits, mask = batch(0, ignored=0.0)
    expected = torch.nn.functional.cross_entropy(logits, mask.long(), ignore_index=2)
    assert torch.allclose(cross_entropy(logits, mask, ignore_index=2), expected)


@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        lambda logits, mask: ohem_cross_entropy(logits, mask, 0.7, 10),
        lambda logits, mask: ohem_cross_entropy(logits, mask, 0.7, 0),
        lambda logits, mask: masked_cross_entropy(logits, mask, mask == mask, mask != 255),
    ],
)
def test_no_valid_pixel_gives_zero_and_zero_gradients(loss) -> None:  # type: ignore[no-untyped-def]
    logits, mask = batch(1, ignored=1.0)
    logits.requires_grad_()
    value = loss(logits, mask)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_ignored_pixels_get_no_gradient_and_valid_ones_do() -> None:
    logits, mask = batch(2)
    logits.requires_grad_()
    cross_entropy(logits, mask).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(dim=1) > 0, mask != 255)


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, mask = batch(3)
    assert cross_entropy(logits.bfloat16(), mask).dtype == torch.float32


@given(
    seed=st.integers(0, 10_000),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
    threshold=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    min_kept=st.integers(0, 35),
)
@settings(max_examples=60, deadline=None)
def test_ohem_keeps_what_the_definition_keeps(seed: int, ignored: float, threshold: float, min_kept: int) -> None:
    logits, mask = batch(seed, ignored)
    probabilities = sorted(true_probabilities(logits, mask))
    kept = probabilities
    if min_kept <= len(probabilities):
        limit = max(threshold, probabilities[min_kept - 1]) if min_kept else threshold
        kept = [value for value in probabilities if value <= limit + 1e-7]
    found = ohem_cross_entropy(logits, mask, threshold, min_kept).item()
    assert found == pytest.approx(mean_loss(kept), rel=1e-4, abs=1e-5)


def test_ohem_with_threshold_one_is_cross_entropy() -> None:
    logits, mask = batch(4)
    assert torch.allclose(ohem_cross_entropy(logits, mask, 1.0, 1), cross_entropy(logits, mask))


def test_ohem_sends_gradients_to_kept_pixels_only() -> None:
    logits, mask = batch(5, ignored=0.0)
    logits.requires_grad_()
    ohem_cross_entropy(logits, mask, 0.0, 7).backward()
    assert logits.grad is not None
    assert int((logits.grad.abs().sum(dim=1) > 0).sum()) == 7


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_masked_cross_entropy_divides_by_the_valid_pixels(seed: int) -> None:
    logits, mask = batch(seed, ignored=0.0)
    generator = torch.Generator().manual_seed(seed + 1)
    keep = torch.rand(mask.shape, generator=generator) < 0.5
    valid = torch.rand(mask.shape, generator=generator) < 0.8
    counted = mask.masked_fill(~(keep & valid), 255)
    total = sum(-math.log(value) for value in true_probabilities(logits, counted))
    expected = total / max(1, int(valid.sum()))
    assert masked_cross_entropy(logits, mask, keep, valid).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_masked_cross_entropy_that_keeps_all_is_cross_entropy() -> None:
    logits, mask = batch(6, ignored=0.0)
    every = torch.ones(mask.shape, dtype=torch.bool)
    assert torch.allclose(masked_cross_entropy(logits, mask, every, every), cross_entropy(logits, mask))


def test_masked_cross_entropy_takes_weights() -> None:
    logits, mask = batch(7, ignored=0.0)
    every = torch.ones(mask.shape, dtype=torch.bool)
    half = torch.full(mask.shape, 0.5)
    assert torch.allclose(masked_cross_entropy(logits, mask, half, every), cross_entropy(logits, mask) / 2)


def test_pseudo_label_is_the_arg_max_with_its_probability() -> None:
    logits, _ = batch(8)
    label, confidence = pseudo_label(logits.requires_grad_())
    probability = logits.softmax(dim=1)
    assert torch.equal(label, logits.argmax(dim=1))
    assert torch.allclose(confidence, probability.amax(dim=1))
    assert label.dtype == torch.int64
    assert not confidence.requires_grad


def test_pseudo_label_survives_large_logits() -> None:
    _, confidence = pseudo_label(torch.tensor([1e4, -1e4]).view(1, 2, 1, 1))
    assert confidence.item() == 1
