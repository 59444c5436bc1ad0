"""The U-Net of CT scans."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from labelwise.models.unet import WIDTHS, UNet


def level(inputs: int, outputs: int) -> int:
    """Two convolutions of 9 weights per pair of channels, and scale and shift of their outputs."""
    return 9 * outputs * (inputs + outputs) + 2 * 2 * outputs


def test_it_has_the_weights_that_its_widths_say() -> None:
    down = sum(level(*pair) for pair in pairwise((1, *WIDTHS)))
    up = level(512 + 512, 256) + level(256 + 256, 128) + level(128 + 128, 64) + level(64 + 64, 64)
    with torch.device("meta"):
        network = UNet(5, inputs=1)
    assert sum(each.numel() for each in network.parameters()) == down + up + 65 * 5


@pytest.mark.parametrize("size", [(16, 16), (11, 24), (1, 3)])
def test_any_size_comes_back(size: tuple[int, int]) -> None:
    network = UNet(3, widths=(2, 3, 4)).eval()
    assert network(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


def test_a_pixel_depends_on_its_own_color_through_the_finest_level_and_on_far_ones_through_the_coarsest() -> None:
    torch.manual_seed(0)
    network = UNet(2, widths=(4, 4, 4, 4)).eval()
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, 0, 16, 16], image)
    reach = gradient.abs().sum(1)[0]
    assert reach[16, 16] > 0 and reach[16, 30] > 0
