"""Parameters and multiply-adds of a network, as papers count them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """The number of learnable values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_macs(module: nn.Module, size: Sequence[int]) -> int:
    """Multiply-adds of convolutions and matrix products in one forward pass of one image.

    Papers call them FLOPs or MACs; additions, normalisations and resizing are not counted. The module is left in
    evaluation mode.

    Args:
        module: takes [1, 3, H, W]; on the meta device the count costs no arithmetic.
        size: (H, W) in pixels.
    """
    device = next(module.parameters()).device
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, *size, device=device))
    return counter.get_total_flops() // 2
