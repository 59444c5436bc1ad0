"""P2AT: axial attention at stride 32, fused upwards to stride 4 (Elhassan et al., arXiv:2310.15025).

The names of the blocks are those of the released code, which the layers follow one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.axial_attention import SSA, conv_norm_prelu, pointwise
from labelwise.models.backbones import Backbone

STRIDES = (4, 8, 16, 32)
SCALE_AT_START = 1e-6
"""Of a decoder block's residual branch: a new block is nearly the identity."""


class P2ATFeatures(NamedTuple):
    """What P2AT predicts from.

    Attributes:
        refined: [B, C, H/4, W/4], the input of the head.
        fused8: [B, C, H/8, W/8], the input of the first auxiliary head in training.
        fused4: [B, C, H/4, W/4], the input of the second one.
    """

    refined: Tensor
    fused8: Tensor
    fused4: Tensor


class DecoderBlock(nn.Module):
    """A depthwise convolution and two linear layers per pixel around a shortcut (as in ConvNeXt)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        # 1x1 convolutions compute the paper's linear layers without moving the channels behind the pixels.
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.act = nn.Hardswish(inplace=True)
        self.reduce = nn.Conv2d(hidden, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), SCALE_AT_START))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return x + self.scale * self.reduce(self.act(self.expand(self.norm(self.depthwise(x)))))


class LFR(nn.Module):
    """The low-level branch of a fusion: a feature's global average plus a sigmoid of the feature.

    The average is taken before its 1x1 convolution. The published counts of multiply-adds have it after: the same
    function, at 64 * 64 more of them per pixel.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.enter = conv_norm_prelu(inputs, channels, 1)
        self.average = pointwise(channels, channels)
        self.gate = pointwise(channels, channels)
        self.leave = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, channels, H, W]."""
        x = self.enter(x)
        return self.leave(self.average(_global_average(x)) + self.gate(x).sigmoid())


class SFU(nn.Module):
    """The high-level branch of a fusion: a feature weighted by a soft-max over its channels."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.enter = conv_norm_prelu(inputs, channels, 1)
        self.weight = nn.Conv2d(inputs, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, channels, H, W]."""
        return self.enter(x) * self.weight(x).softmax(1)


class BiF(nn.Module):
    """Bidirectional fusion of a finer, a middle and a coarser feature, at the size of the finer one."""

    def __init__(self, low: int, same: int, high: int, channels: int) -> None:
        """Build it.

        Args:
            low: channels of the finer feature.
            same: channels of the middle feature.
            high: channels of the coarser feature.
            channels: of the result.
        """
        super().__init__()
        self.low = LFR(low, channels)
        self.same = nn.Sequential(pointwise(same, channels), nn.BatchNorm2d(channels))
        self.high = SFU(high, channels)
        self.fuse = nn.Sequential(pointwise(3 * channels, channels), nn.BatchNorm2d(channels))

    def forward(self, low: Tensor, same: Tensor, high: Tensor) -> Tensor:
        """[B, low, H, W] and two coarser features -> [B, channels, H, W]."""
        down = self.low(low)
        up = _resize_like(self.high(high), down)
        middle = _resize_like(self.same(same), down)
        return self.fuse(torch.cat([down, up, middle], dim=1)) + middle * up + (middle * down).sigmoid()


class GCE(nn.Module):
    """Global context enhancer: adds a transformed global average to every pixel.

    On the 1x1 map of the average only the centre taps of the published 3x3 and 7x7 convolutions act, 2 of 58 weights
    per pair of channels. `compact` holds these alone, which is the same function.
    """

    def __init__(self, channels: int, compact: bool = False) -> None:
        super().__init__()
        first, second = (1, 1) if compact else (3, 7)
        self.average = nn.Conv2d(channels, channels, first, padding=first // 2, bias=False)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.transform = conv_norm_prelu(channels, channels, second)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return x + self.transform(self.scale * self.average(_global_average(x)) + self.bias)


class SegHead(nn.Sequential):
    """Normalisation, ReLU, 3x3 convolution, normalisation, ReLU, 1x1 convolution to one channel per class."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, classes, 1),
        )


class P2AT(nn.Module):
    """Encoder, axial attention, two bidirectional fusions, refinement and head."""

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        channels: int = 64,
        key_dim: int = 16,
        heads: int = 8,
        attention: bool = True,
        fix_pool2: bool = False,
        compact_gce: bool = False,
    ) -> None:
        """Build it; everything but the backbone is random.

        Args:
            backbone: has features at strides 4, 8, 16 and 32; ResNet-18, -34 and -50 make P2AT-S, -M and -L.
            classes: the number of logits per pixel.
            channels: width of everything after the backbone.
            key_dim: channels of queries and keys per head.
            heads: attention heads.
            attention: False leaves out the attention blocks.
            fix_pool2: in the attention's pyramid, take the second pooling where the released code repeats the first.
            compact_gce: 1x1 convolutions in the global context enhancers (`GCE`).

        Raises:
            ValueError: the backbone lacks one of the features.
        """
        super().__init__()
        self._feature_indices = feature_indices(backbone)
        fine, low, middle, high = (backbone.channels[index] for index in self._feature_indices)
        self.backbone = backbone
        self.enter = conv_norm_prelu(high, channels, 1)
        self.attention = SSA(channels, key_dim, heads, fix_pool2) if attention else nn.Identity()
        self.decode32 = DecoderBlock(channels, 3)
        self.fuse8 = BiF(low, middle, channels, channels)
        self.decode8 = nn.Sequential(GCE(channels, compact_gce), DecoderBlock(channels, 5))
        self.fuse4 = BiF(fine, low, channels, channels)
        self.decode4 = nn.Sequential(GCE(channels, compact_gce), DecoderBlock(channels, 7))
        self.refine4 = conv_norm_prelu(channels, channels, 3)
        self.refine8 = _refinement(channels)
        self.refine32 = _refinement(channels)
        self.head = SegHead(channels, classes)

    def forward_features(self, x: Tensor) -> P2ATFeatures:
        """The features that the head and the auxiliary heads look at.

        Args:
            x: [B, 3, H, W] float, normalised as the backbone's weights want it.
        """
        features = self.backbone(x)
        fine, low, middle, high = (features[index] for index in self._feature_indices)
        decoded32 = self.decode32(self.attention(self.enter(high)))
        fused8 = self.fuse8(low, middle, decoded32)
        decoded8 = self.decode8(fused8)
        fused4 = self.fuse4(fine, low, decoded8)
        refined = self.refine4(self.decode4(fused4))
        refined = self.refine8(torch.cat([_resize_like(decoded8, refined), refined], dim=1))
        refined = self.refine32(torch.cat([_resize_like(decoded32, refined), refined], dim=1))
        return P2ATFeatures(refined, fused8, fused4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] float -> logits [B, K, H, W]."""
        return to_image_size(self.head(self.forward_features(x).refined), x)


class CoarseSegmenter(nn.Module):
    """A 1x1 convolution on the backbone's last feature, up-sampled: no decoder at all."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.channels[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] float -> logits [B, K, H, W]."""
        return to_image_size(self.head(self.backbone(x)[-1]), x)


def feature_indices(backbone: Backbone) -> tuple[int, ...]:
    """Which of a backbone's features have strides 4, 8, 16 and 32; of several the last, which has seen most layers.

    Raises:
        ValueError: there is none at one of the strides.
    """
    last = {stride: index for index, stride in enumerate(backbone.strides)}
    missing = [stride for stride in STRIDES if stride not in last]
    if missing:
        raise ValueError(f"the backbone has features at strides {backbone.strides}, none at stride {missing[0]}")
    return tuple(last[stride] for stride in STRIDES)


def to_image_size(logits: Tensor, image: Tensor) -> Tensor:
    """Scores [B, K, h, w] up-sampled bilinearly to the size of images [B, 3, H, W], corner pixels on corner pixels."""
    return functional.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=True)


def _refinement(channels: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_prelu(2 * channels, channels, 3), conv_norm_prelu(channels, channels, 3))


def _resize_like(x: Tensor, other: Tensor) -> Tensor:
    return functional.interpolate(x, size=other.shape[2:], mode="bilinear", align_corners=False)


def _global_average(x: Tensor) -> Tensor:
    # Not adaptive_avg_pool2d: its backward pass on CUDA is not deterministic.
    return x.mean(dim=(2, 3), keepdim=True)
