"""A feature pyramid for semantic segmentation: every level enlarged to the image's size, and all added up.

After Kirillov et al., Panoptic Feature Pyramid Networks (CVPR 2019), section 3.1, in the form of PixelPick (ICCV 2021
workshop ILDAV): the last enlargement comes before the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.aspp import initialize_kaiming
from labelwise.models.backbones import Backbone

FINEST = 4
GROUPS = 32


class SemanticFPN(nn.Module):
    """Backbone, top-down pyramid, enlargements to the image's size, sum and classifier."""

    def __init__(self, backbone: Backbone, classes: int, channels: int = 256) -> None:
        """Build it; what comes after the backbone starts from a Kaiming normal distribution (fan in).

        Args:
            backbone: its features from stride 4 on are the levels; strides are powers of 2.
            classes: the number of logits per pixel.
            channels: of the pyramid; the enlargements have half as many.

        Raises:
            ValueError: the backbone has no feature at stride 4.
        """
        super().__init__()
        if FINEST not in backbone.strides:
            raise ValueError(f"the backbone has features at strides {backbone.strides}, none at stride {FINEST}")
        self.backbone = backbone
        self._first = backbone.strides.index(FINEST)
        levels = list(zip(backbone.channels, backbone.strides, strict=True))[self._first :]
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, channels, 1) for inputs, _ in levels)
        self.enlargements = nn.ModuleList(_enlargement(channels, channels // 2, stride) for _, stride in levels)
        self.classifier = nn.Conv2d(channels // 2, classes, 1)
        # Dropouts of 0 are for committees (`acquisition.monte_carlo_dropout`).
        self.backbone_dropout, self.dropout = nn.Dropout(0.0), nn.Dropout(0.0)
        for part in (self.laterals, self.enlargements, self.classifier):
            initialize_kaiming(part)

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Each level's own feature plus the coarser level, enlarged to it.

        Args:
            features: [B, C_i, h_i, w_i] of the levels, the finest first.

        Returns:
            [B, channels, h_i, w_i] of the levels, the finest first.
        """
        levels: list[Tensor] = []
        for lateral, feature in zip(reversed(self.laterals), reversed(features), strict=True):
            level = lateral(feature)
            levels.append(level + _resized(levels[-1], level.shape[2:]) if levels else level)
        return levels[::-1]

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] float -> logits [B, K, H, W]."""
        *finer, coarsest = self.backbone(x)[self._first :]
        levels = self.pyramid([*finer, self.backbone_dropout(coarsest)])
        enlarged = (enlarge(level) for enlarge, level in zip(self.enlargements, levels, strict=True))
        # Sides that are no multiples of the strides come out too large.
        total = sum(_resized(level, x.shape[2:]) for level in enlarged)
        return self.classifier(self.dropout(total))


def _enlargement(inputs: int, width: int, stride: int) -> nn.Sequential:
    """As often a convolution and twice the size as makes up for the stride."""
    count = round(math.log2(stride))
    return nn.Sequential(*(_block(inputs if number == 0 else width, width) for number in range(count)))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(math.gcd(GROUPS, outputs), outputs),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if x.shape[2:] == tuple(size) else functional.interpolate(x, size=tuple(size), mode="bilinear")
