"""AffinityNet (PSA; Ahn and Kwak, CVPR 2018): features whose distance tells whether two pixels belong together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.backbones import Backbone

WIDTHS = (64, 128, 256)
_LEVELS = len(WIDTHS)
_GAIN = 4.0


class AffinityNet(nn.Module):
    """1x1 convolutions on the last three features of a backbone, concatenated at the finest of them and mixed."""

    def __init__(self, backbone: Backbone) -> None:
        """Build the head.

        Args:
            backbone: with features of which the last three, or as many as there are, are compared; on
                WideResNet-38 these are conv4, conv5 and conv6 of the paper, and the whole has 106,484,032 parameters.
        """
        super().__init__()
        self.backbone = backbone
        channels = backbone.channels[-_LEVELS:]
        widths = WIDTHS[-len(channels) :]
        self.stride = backbone.strides[-len(channels)]
        self.projections = nn.ModuleList(nn.Conv2d(*pair, 1, bias=False) for pair in zip(channels, widths, strict=True))
        self.mixed = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for projection in self.projections:
            assert isinstance(projection, nn.Conv2d)
            nn.init.kaiming_normal_(projection.weight)
        nn.init.xavier_uniform_(self.mixed.weight, gain=_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] normalised -> [B, 448, H / stride, W / stride]."""
        features: Sequence[Tensor] = self.backbone(x)[-len(self.projections) :]
        size = features[0].shape[-2:]
        parts = [
            _at_size(functional.elu(projection(feature)), size)
            for projection, feature in zip(self.projections, features, strict=True)
        ]
        return functional.elu(self.mixed(torch.cat(parts, 1)))


def _at_size(x: Tensor, size: torch.Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
