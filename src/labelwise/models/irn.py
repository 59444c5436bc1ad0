"""The networks of IRNet (Ahn, Cho and Kwak, CVPR 2019): class boundaries and displacement fields from frozen features.

Both heads take every feature of a backbone through a 1x1 convolution of its own, so that any backbone fits: features
finer than stride 4, such as a ResNet's stem, are pooled as its max pooling does; coarser ones are enlarged. On
ResNet-50 the heads have 125,409 and 1,269,120 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.backbones import Backbone

STRIDE = 4
_BOUNDARY_WIDTH, _BOUNDARY_GROUPS = 32, 4
_FIRST_WIDTH, _FINE_WIDTH, _COARSE_WIDTH = 64, 128, 256
_CHANNELS_PER_GROUP = {64: 8, 128: 8, 256: 16}


def _projection(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs))


def _wide_projection(inputs: int, outputs: int) -> nn.Sequential:
    return _projection(inputs, outputs, outputs // _CHANNELS_PER_GROUP[outputs])


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """ReLU after the enlargement, as the paper's network has it."""
    if list(x.shape[-2:]) != list(size):
        x = functional.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
    return functional.relu(x)


class BoundaryHead(nn.Module):
    """Logits of class boundaries at stride 4."""

    def __init__(self, channels: Sequence[int]) -> None:
        """Build it with random weights.

        Args:
            channels: of each feature.
        """
        super().__init__()
        self.projections = nn.ModuleList(_projection(count, _BOUNDARY_WIDTH, _BOUNDARY_GROUPS) for count in channels)
        self.classifier = nn.Conv2d(_BOUNDARY_WIDTH * len(channels), 1, 1)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The features, none finer than stride 4, and height and width at stride 4 -> [B, h, w]."""
        pairs = zip(self.projections, features, strict=True)
        return self.classifier(torch.cat([_enlarged(projection(x), size) for projection, x in pairs], 1)).squeeze(1)


class DisplacementHead(nn.Module):
    """For each pixel at stride 4 the way to the centroid of its object: rows, then columns, in such pixels."""

    mean: Tensor
    "[2] the mean over the training images, which is taken away in evaluation; set after the training"

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Build it with random weights.

        Args:
            channels: of each feature.
            strides: of each feature.
        """
        super().__init__()
        fine = [count for count, stride in zip(channels, strides, strict=True) if stride <= STRIDE]
        coarse = [count for count, stride in zip(channels, strides, strict=True) if stride > STRIDE]
        widths = [_FINE_WIDTH if place else _FIRST_WIDTH for place in range(len(fine))]
        self.fine = nn.ModuleList(_wide_projection(*pair) for pair in zip(fine, widths, strict=True))
        self.coarse = nn.ModuleList(_wide_projection(count, _COARSE_WIDTH) for count in coarse)
        self.merged = _wide_projection(_COARSE_WIDTH * len(coarse), _COARSE_WIDTH) if coarse else None
        inputs = sum(widths) + (_COARSE_WIDTH if coarse else 0)
        self.last = nn.Sequential(
            _wide_projection(inputs, _COARSE_WIDTH), nn.ReLU(), nn.Conv2d(_COARSE_WIDTH, 2, 1, bias=False)
        )
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The features, none finer than stride 4, and height and width at stride 4 -> [B, 2, h, w]."""
        count = len(self.fine)
        parts = [_enlarged(projection(x), size) for projection, x in zip(self.fine, features[:count], strict=True)]
        if self.merged is not None:
            pairs = zip(self.coarse, features[count:], strict=True)
            middle = features[count].shape[-2:]
            merged = self.merged(torch.cat([_enlarged(projection(x), middle) for projection, x in pairs], 1))
            parts.append(_enlarged(merged, size))
        displacement = self.last(torch.cat(parts, 1))
        return displacement if self.training else displacement - self.mean[:, None, None]


class IRNet(nn.Module):
    """A backbone with a boundary head and a displacement head."""

    def __init__(self, backbone: Backbone, *, frozen: bool = True) -> None:
        """Build the heads.

        Args:
            backbone: the features' source.
            frozen: it gets no gradient; its normalisation is the owner's to freeze.

        Raises:
            ValueError: it has no feature of stride 4 or finer.
        """
        super().__init__()
        if backbone.strides[0] > STRIDE:
            raise ValueError(f"its finest feature has stride {backbone.strides[0]}, not {STRIDE} or less")
        self.backbone, self.frozen = backbone.requires_grad_(not frozen), frozen
        self.boundary = BoundaryHead(backbone.channels)
        self.displacement = DisplacementHead(backbone.channels, backbone.strides)

    def features(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] normalised -> the backbone's features, those finer than stride 4 pooled to it."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(x)
        return [
            _pooled(feature, STRIDE // stride) for feature, stride in zip(features, self.backbone.strides, strict=True)
        ]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] normalised -> boundary logits [B, h, w] and displacements [B, 2, h, w], h = ceil(H / 4)."""
        features = self.features(x)
        size = [-(-length // STRIDE) for length in x.shape[-2:]]
        return self.boundary(features, size), self.displacement(features, size)

    def boundary_logits(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] normalised -> [B, h, w], h = ceil(H / 4)."""
        return self.boundary(self.features(x), [-(-length // STRIDE) for length in x.shape[-2:]])


def _pooled(feature: Tensor, factor: int) -> Tensor:
    return functional.max_pool2d(feature, 3, factor, padding=1) if factor > 1 else feature
