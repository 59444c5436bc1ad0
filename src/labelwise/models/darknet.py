"""Darknets: the backbones of YOLOv3 (Redmon, Farhadi: YOLOv3, 2018) and of the small network of ESE-Seg.

Darknet-53 is timm's: the paper's layers and sizes, with ImageNet weights, but a slope of 0.01 below zero, with which
those weights were trained, where Darknet's is 0.1.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from labelwise.errors import UserError
from labelwise.models.backbones import Backbone, create_backbone

DARKNET53, DARKNET_TINY = "darknet53", "darknet_tiny"
SLOPE = 0.1
"""Of the activation below zero."""


def conv_norm_leaky(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution, normalised, with a leaky activation; size is kept but for the stride."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-5),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


class DarknetTiny(nn.Module):
    """Ten convolutions with maximum pooling between them, of 16, 32, 16, 128, 64, 128, 256, 512, 1024, 256 channels.

    The layers that narrow the channels are 1x1. Features at stride 16, before the last pooling, and at stride 32.
    """

    channels = (256, 256)
    strides = (16, 32)

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.fine = nn.Sequential(
            conv_norm_leaky(3, 16, 3),
            pool,
            conv_norm_leaky(16, 32, 3),
            pool,
            conv_norm_leaky(32, 16, 1),
            conv_norm_leaky(16, 128, 3),
            pool,
            conv_norm_leaky(128, 64, 1),
            conv_norm_leaky(64, 128, 3),
            pool,
            conv_norm_leaky(128, 256, 3),
        )
        self.coarse = nn.Sequential(
            pool,
            conv_norm_leaky(256, 512, 3),
            conv_norm_leaky(512, 1024, 3),
            conv_norm_leaky(1024, 256, 1),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, 256, H/16, W/16] and [B, 256, H/32, W/32]."""
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


def create_darknet(name: str, output_stride: int, weights: str | Path | None) -> Backbone:
    """Build a Darknet, or any other backbone.

    Args:
        name: "darknet53", "darknet_tiny", or a name of `create_backbone`.
        output_stride: of other backbones; Darknets have 32.
        weights: see `create_backbone`; "darknet_tiny" has random ones only.

    Raises:
        UserError: see `create_backbone`; or weights for "darknet_tiny".
    """
    if name != DARKNET_TINY:
        return create_backbone(name, 32 if name == DARKNET53 else output_stride, weights)
    if weights not in (None, "none"):
        raise UserError(f"backbone '{name}' has no pretrained weights; --backbone-weights none")
    body = DarknetTiny()
    return Backbone(body, body.channels, body.strides)
