"""Hard-pixel mining: plain cross-entropy as its limit, and which pixels it keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelwise.losses.hard_pixels import hard_pixel_cross_entropy, mined_share
from labelwise.losses.pixel import cross_entropy


def batch(seed: int, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    mask = torch.randint(3, (2, 4, 5), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    return logits, mask.to(torch.uint8)


@given(st.integers(0, 1000))
def test_from_all_pixels_it_is_plain_cross_entropy(seed: int) -> None:
    logits, mask = batch(seed)
    torch.testing.assert_close(hard_pixel_cross_entropy(logits, mask, 1.0), cross_entropy(logits, mask))


@given(st.integers(0, 1000), st.floats(0.05, 1.0))
def test_it_is_the_mean_of_the_largest_losses(seed: int, share: float) -> None:
    """The share is of all pixels; of the ignored ones, whose loss is 0, none counts."""
    logits, mask = batch(seed)
    losses = torch.nn.functional.cross_entropy(logits, mask.long(), ignore_index=255, reduction="none").flatten()
    kept = losses.sort(descending=True).values[: max(1, int(share * mask.numel()))]
    expected = kept[kept > 0].mean() if (kept > 0).any() else torch.tensor(0.0)
    torch.testing.assert_close(hard_pixel_cross_entropy(logits, mask, share), expected)


def test_only_the_hardest_get_a_gradient() -> None:
    logits, mask = batch(0, ignored=0)
    logits[0, 0, 0, 0], mask[0, 0, 0] = -20, 0
    logits.requires_grad_()
    hard_pixel_cross_entropy(logits, mask, 0.025).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(dim=1).nonzero().tolist() == [[0, 0, 0]]


def test_without_a_labelled_pixel_it_is_zero() -> None:
    logits, mask = batch(0, ignored=2)
    logits.requires_grad_()
    loss = hard_pixel_cross_entropy(logits, mask, 0.5)
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


def test_the_share_goes_down_from_all_pixels() -> None:
    assert [mined_share(0.25, step, 100) for step in (0, 50, 100, 500)] == pytest.approx([1, 0.625, 0.25, 0.25])
    assert mined_share(0.25, 0, 0) == 0.25
