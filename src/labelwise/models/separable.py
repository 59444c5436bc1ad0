"""Atrous separable convolution (Chen et al., ECCV 2018): a depthwise 3x3 convolution, then a pointwise one."""

from __future__ import annotations

from torch import nn

_DEPTHWISE_STD, _POINTWISE_STD = 0.33, 0.06


class SeparableConv2d(nn.Sequential):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with normalisation and ReLU, as pyramid and decoder use it.

    The padding is symmetric and equals the rate. Convolutions start from the truncated normal distributions of the
    official code, with standard deviations 0.33 and 0.06.
    """

    def __init__(self, inputs: int, outputs: int, rate: int = 1) -> None:
        """Build it.

        Args:
            inputs: channels.
            outputs: channels.
            rate: dilation of the depthwise convolution.
        """
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )
        self.initialize()

    def initialize(self) -> None:
        """Draw both convolutions anew."""
        for conv in (part for part in self if isinstance(part, nn.Conv2d)):
            truncated_normal(conv, _DEPTHWISE_STD if is_depthwise(conv) else _POINTWISE_STD)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution of each channel by itself."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def truncated_normal(conv: nn.Conv2d, std: float) -> None:
    """Draw a convolution's weight from a normal distribution that is cut at two standard deviations."""
    nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
