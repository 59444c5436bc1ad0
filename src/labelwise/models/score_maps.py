"""Scores on a coarse grid whose corners are those of the image: the geometry of DeepLab v1 and v2.

A network of output stride S turns an image of k S + 1 pixels into k + 1 scores, the i-th of which belongs to pixel i S.
Labels are therefore picked at these pixels, never interpolated, and scores are resized with aligned corners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce
from math import lcm

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.backbones import Backbone
from labelwise.models.inference import scaled_size

_FINEST_FRACTION = 8


def resize_align_corners(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, h, w] -> [B, C, *size] by bilinear interpolation; the corners stay where they are."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def pad_to_grid(x: Tensor, stride: int, value: float = 0) -> Tensor:
    """Extend the last two dimensions on the right and below to the next k * stride + 1.

    Args:
        x: [..., H, W].
        stride: pixels between two points of the grid.
        value: what to fill with; 0 is the mean color of a normalised image.
    """
    rows, columns = (-(size - 1) % stride for size in x.shape[-2:])
    return functional.pad(x, (0, columns, 0, rows), value=value)


def shrink_labels(labels: Tensor, stride: int = 8) -> Tensor:
    """[B, H, W] -> the labels of rows and columns 0, stride, 2 stride, ...; none is interpolated."""
    return labels[:, ::stride, ::stride]


def pick_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """The labels nearest to the points of a grid whose corners are those of the image.

    Of labels of k S + 1 pixels and a grid of k + 1 points this is `shrink_labels`. Halves are rounded up.

    Args:
        labels: [B, H, W].
        size: (h, w) of the grid.

    Returns:
        [B, h, w], same type.
    """
    rows, columns = (_picked(*sides, labels.device) for sides in zip(labels.shape[-2:], size, strict=True))
    return labels[:, rows[:, None], columns]


def _picked(length: int, count: int, device: torch.device) -> Tensor:
    steps = max(1, count - 1)
    doubled = 2 * (length - 1) * torch.arange(count, device=device)
    return (doubled + steps).div(2 * steps, rounding_mode="floor")


def fused_scores(
    score: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float]
) -> tuple[list[Tensor], Tensor]:
    """Scores of an image at several scales, and their element-wise maximum (DeepLab v2, section 3.2).

    Args:
        score: [B, 3, h, w] -> scores [B, K, *].
        image: [B, 3, H, W].
        scales: factors of the image's size; the first gives the size of the maximum.

    Returns:
        The scores at each scale, on grids of their own, and [B, K, h, w], the greatest per position and class.
    """
    size = image.shape[-2:]
    copies = (resize_align_corners(image, [scaled_size(side, scale) for side in size]) for scale in scales)
    maps = [score(copy) for copy in copies]
    return maps, reduce(torch.maximum, (resize_align_corners(each, maps[0].shape[-2:]) for each in maps))


class ScoreMapNetwork(nn.Module):
    """Backbone and head, applied at one or several scales of the image."""

    def __init__(self, backbone: Backbone, head: nn.Module, scales: Sequence[float] = (1.0,)) -> None:
        """Put it together.

        Args:
            backbone: its last feature goes into the head.
            head: [B, C, h, w] -> scores [B, K, h, w].
            scales: factors of the image's size whose scores are fused by their maximum, the largest first.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.scales = tuple(scales)
        # At every scale the grid has to be one of the output stride: 32 pixels for stride 8 and scales of quarters.
        parts = [Fraction(scale).limit_denominator(_FINEST_FRACTION).denominator for scale in scales]
        self.grid = backbone.strides[-1] * lcm(*parts)

    def score_map(self, x: Tensor) -> Tensor:
        """[B, 3, k S + 1, l S + 1] float -> scores [B, K, k + 1, l + 1] of this one scale."""
        return self.head(self.backbone(x)[-1])

    def score_maps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The scores of each scale and their maximum, as `fused_scores`; x is padded to `grid` (`pad_to_grid`)."""
        return fused_scores(self.score_map, x, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] float of any size -> logits [B, K, H, W]."""
        height, width = x.shape[-2:]
        padded = pad_to_grid(x, self.grid)
        _, fused = self.score_maps(padded)
        return resize_align_corners(fused, padded.shape[-2:])[..., :height, :width]
