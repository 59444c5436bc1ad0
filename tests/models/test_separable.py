"""Depthwise separable convolution: what it reduces to, and how it starts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from labelwise.models.separable import SeparableConv2d, is_depthwise


def without_norms(conv: SeparableConv2d) -> tuple[torch.Tensor, torch.Tensor]:
    return conv[0].weight, conv[3].weight


@given(st.integers(1, 3), st.integers(1, 4))
def test_with_a_delta_in_front_it_is_a_pointwise_convolution(rate: int, outputs: int) -> None:
    torch.manual_seed(rate)
    conv = SeparableConv2d(3, outputs, rate).eval()
    nn.init.zeros_(conv[0].weight)
    conv[0].weight.data[:, :, 1, 1] = 1
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        expected = functional.conv2d(x / (1 + 1e-5) ** 0.5, conv[3].weight) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(conv(x), expected.relu())


def test_without_what_lies_between_it_is_an_ordinary_convolution_of_rank_one() -> None:
    torch.manual_seed(0)
    conv = SeparableConv2d(4, 6, 2)
    depthwise, pointwise = without_norms(conv)
    x = torch.randn(2, 4, 9, 9)
    joint = pointwise * depthwise.transpose(0, 1)
    torch.testing.assert_close(
        functional.conv2d(conv[0](x), pointwise), functional.conv2d(x, joint, padding=2, dilation=2)
    )


def test_both_halves_are_normalised_and_rectified() -> None:
    torch.manual_seed(0)
    conv = SeparableConv2d(4, 6).eval()
    x = torch.randn(1, 4, 7, 7)
    depthwise, pointwise = without_norms(conv)
    scale = (1 + 1e-5) ** -0.5
    middle = (functional.conv2d(x, depthwise, padding=1, groups=4) * scale).relu()
    torch.testing.assert_close(conv(x), (functional.conv2d(middle, pointwise) * scale).relu())


@pytest.mark.parametrize("rate", [1, 6, 18])
def test_the_size_stays(rate: int) -> None:
    assert SeparableConv2d(2, 3, rate)(torch.randn(2, 2, 5, 4)).shape == (2, 3, 5, 4)


def test_weights_start_from_truncated_normal_distributions() -> None:
    torch.manual_seed(0)
    depthwise, pointwise = without_norms(SeparableConv2d(512, 64))
    for weight, std in ((depthwise, 0.33), (pointwise, 0.06)):
        assert weight.abs().max() <= 2 * std
        # A normal distribution that is cut at two standard deviations has 0.88 of its own.
        assert weight.std().item() == pytest.approx(0.88 * std, rel=0.03)


def test_depthwise_convolutions_are_recognised() -> None:
    assert is_depthwise(nn.Conv2d(4, 4, 3, groups=4)) and is_depthwise(nn.Conv2d(4, 8, 3, groups=4))
    assert not any(map(is_depthwise, (nn.Conv2d(4, 4, 3), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))))
