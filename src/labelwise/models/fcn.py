"""FCN: class scores of a classifier's features at strides 32, 16 and 8, summed and brought to the image's size.

Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.coordinates import (
    IMAGE,
    CoordinateMap,
    Layer,
    bilinear_kernel,
    crop_offset,
    resample,
)
from labelwise.models.fcn_trunks import BackboneTrunk, Trunk

SKIPS = {16: "score_pool4", 8: "score_pool3"}
"""Stride of a skip -> its layer."""
LEAST_SIDE = 32
"""Smaller images are padded on the right and at the bottom where the network does not pad them anyway."""
TWICE = Layer(4, 2, kind="transposed")


class FCN(nn.Module):
    """A trunk with scores at its stride 32 and, where asked for, skips from strides 16 and 8.

    On a padded trunk scores grow by transposed convolutions and are cropped by the offsets of the paper's code (5 and 9
    for the skips, 19, 27 or 31 for the image, 18 for AlexNet), all of which follow from the coordinate maps. On any
    other trunk scores are interpolated at the cells of the skip and at the image's pixels.
    """

    def __init__(
        self,
        backbone: Trunk | BackboneTrunk,
        classes: int,
        stride: int = 32,
        *,
        skip_scales: Sequence[float] = (1.0, 1.0),
        learn_upsampling: bool = False,
    ) -> None:
        """Add the scoring layers, all zero.

        Args:
            backbone: the trunk.
            classes: K.
            stride: of the finest features that are scored: 32, 16 or 8.
            skip_scales: constants by which the features of strides 16 and 8 are multiplied before they are scored.
            learn_upsampling: whether the transposed convolutions between the skips are learned; the last stays fixed.

        Raises:
            ValueError: the trunk has no features of this stride, or no transposed convolutions to learn.
        """
        super().__init__()
        if stride not in backbone.strides:
            raise ValueError(f"there are features of stride {' and '.join(map(str, backbone.strides))} only")
        if learn_upsampling and not (backbone.padded and stride < 32):
            raise ValueError("there is no transposed convolution to learn without skips and the border of 100 pixels")
        self.backbone = backbone
        self.skips = [skip for skip in (16, 8) if skip >= stride]
        self.skip_scales = tuple(skip_scales)
        self.score_fr = zero_conv(backbone.channels[-1], classes)
        for skip in self.skips:
            self.add_module(SKIPS[skip], zero_conv(backbone.channels[backbone.strides.index(skip)], classes))
            if learn_upsampling:
                self.register_parameter(f"upscore{skip}", nn.Parameter(diagonal(bilinear_kernel(4), classes)))

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised, of any size -> logits [B, K, H, W]."""
        size = image.shape[-2:]
        if not self.backbone.padded:
            image = functional.pad(
                image, [value for side in reversed(size) for value in (0, max(0, LEAST_SIDE - side))]
            )
        scores, where = self.low_resolution_scores(image)
        return resample(scores, where, IMAGE, size, "zero" if self.backbone.padded else "clamp")

    def low_resolution_scores(self, image: Tensor) -> tuple[Tensor, CoordinateMap]:
        """The sum of all scores on the grid of the finest skip.

        Args:
            image: [B, 3, H, W] float, at least 32 pixels on a side unless the trunk pads it.

        Returns:
            [B, K, h, w], and where its cells lie in the image.
        """
        features = self.backbone(image)
        scores, where = self.score_fr(features[-1]), self.backbone.maps[-1]
        for skip, scale in zip(self.skips, self.skip_scales, strict=False):
            index = self.backbone.strides.index(skip)
            finer = self.get_submodule(SKIPS[skip])(scale * features[index])
            its = self.backbone.maps[index]
            if self.backbone.padded:
                scores, where = self._twice(scores, where, skip)
                scores = scores + cropped(finer, crop_offset(its, where), scores.shape[-2:])
            else:
                scores, where = resample(scores, where, its, finer.shape[-2:], "clamp") + finer, its
        return scores, where

    def _twice(self, scores: Tensor, where: CoordinateMap, skip: int) -> tuple[Tensor, CoordinateMap]:
        """A transposed convolution 4/2: [B, K, h, w] -> [B, K, 2h + 2, 2w + 2]."""
        then = where.after(TWICE)
        learned = getattr(self, f"upscore{skip}", None)
        if learned is not None:
            return functional.conv_transpose2d(scores, cast(Tensor, learned), stride=2), then
        return resample(scores, where, then, [2 * side + 2 for side in scores.shape[-2:]], "zero"), then


def zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution that starts at zero (CVPR paper, section 4.2)."""
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


def cropped(scores: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """[B, K, h, w] -> the window of this size that begins at `offset` along both axes."""
    return scores[..., offset : offset + size[0], offset : offset + size[1]]


def diagonal(kernel: Tensor, channels: int) -> Tensor:
    """[k, k] -> [channels, channels, k, k]: each channel to itself by the kernel, to no other."""
    return torch.eye(channels)[:, :, None, None] * kernel


def transplant(source: nn.Module, destination: nn.Module) -> None:
    """Copy the weights of a coarser FCN into a finer one, whose further layers stay as they are.

    A finer network whose own skip is zero then computes the prediction of the coarser one.

    Args:
        source: with fewer layers.
        destination: with the same and more.

    Raises:
        ValueError: a layer of the source has no place, or another shape; names it.
    """
    theirs, ours = source.state_dict(), destination.state_dict()
    wrong = [name for name, value in theirs.items() if name not in ours or ours[name].shape != value.shape]
    if wrong:
        raise ValueError(f"{wrong[0]} has no place in this network")
    destination.load_state_dict(theirs, strict=False)
