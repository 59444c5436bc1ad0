"""U-Net with bilinear up-sampling (Ronneberger et al., MICCAI 2015), as ADELE trains it on CT scans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512, 512)


class UNet(nn.Module):
    """Levels of two 3x3 convolutions with normalisation and ReLU: down by max pooling, up bilinearly.

    On the way up a level sees the coarser level's feature beside its own of the way down, and gives as many channels
    as the next finer level has. Convolutions have no bias, since a normalisation follows.
    """

    def __init__(self, classes: int, inputs: int = 3, widths: Sequence[int] = WIDTHS) -> None:
        """Build it with random weights.

        Args:
            classes: the number of logits per pixel.
            inputs: channels of the image.
            widths: channels of the levels, the finest first; two at least.
        """
        super().__init__()
        self.down = nn.ModuleList(_level(*pair) for pair in zip((inputs, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList()
        width = widths[-1]
        for level in reversed(range(len(widths) - 1)):
            finer = widths[max(0, level - 1)]
            self.up.append(_level(width + widths[level], finer))
            width = finer
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] float -> logits [B, K, H, W]; sides need not be multiples of anything."""
        features = [self.down[0](x)]
        for level in self.down[1:]:
            features.append(level(functional.max_pool2d(features[-1], 2, ceil_mode=True)))
        x = features.pop()
        for level, skip in zip(self.up, reversed(features), strict=True):
            larger = functional.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=True)
            x = level(torch.cat([skip, larger], dim=1))
        return self.classifier(x)


def _level(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(inputs, outputs), *_convolution(outputs, outputs))


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
