"""Heads of DeepLab v1 and v2: dilated classifiers, alone or summed, and score layers on early features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from labelwise.models.aspp import initialize_kaiming
from labelwise.models.backbones import Backbone
from labelwise.models.score_maps import ScoreMapNetwork, resize_align_corners

SKIP_CHANNELS = 128
_SCORE_DEVIATION = 0.01


class ClassifierBranch(nn.Module):
    """The fully connected layers of a classifier as convolutions: fc6 with holes, fc7, score.

    fc6 and fc7 are followed by ReLU and dropout. They start Kaiming normal, the score layer from N(0, 0.01).
    """

    def __init__(self, inputs: int, width: int, classes: int, kernel: int, rate: int, dropout: float = 0.5) -> None:
        """Build it with random weights.

        Args:
            inputs: channels of the feature.
            width: channels of fc6 and fc7.
            classes: the number of scores.
            kernel: side of fc6.
            rate: dilation of fc6; its padding keeps the size.
            dropout: share of the values of fc6 and fc7 that a training step lacks.
        """
        super().__init__()
        self.fc6 = nn.Conv2d(inputs, width, kernel, padding="same", dilation=rate)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.score = nn.Conv2d(width, classes, 1)
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        initialize_kaiming(self)
        initialize_score(self.score)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, classes, h, w]."""
        for layer in (self.fc6, self.fc7):
            x = self.dropout(self.act(layer(x)))
        return self.score(x)


class SummedScores(nn.Module):
    """The sum of the score maps of several branches: the atrous pyramid of DeepLab v2, with one branch LargeFOV."""

    def __init__(self, branches: Iterable[nn.Module]) -> None:
        """Put them together; each is [B, C, h, w] -> [B, K, h, w]."""
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, K, h, w]."""
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


def direct_branches(inputs: int, classes: int, rates: Sequence[int]) -> list[nn.Conv2d]:
    """One 3x3 convolution per rate from the feature to the scores, weights from N(0, 0.01) (ResNet's ASPP)."""
    branches = [nn.Conv2d(inputs, classes, 3, padding=rate, dilation=rate) for rate in rates]
    for branch in branches:
        initialize_score(branch)
    return branches


def initialize_score(layer: nn.Conv2d) -> None:
    """Draw the weight from a normal distribution of deviation 0.01; the bias becomes 0."""
    nn.init.normal_(layer.weight, std=_SCORE_DEVIATION)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class SkipScores(nn.Module):
    """Scores from the image and the features before the last (multi-scale prediction, DeepLab v1, section 4.3).

    Each goes through two convolutions of 128 channels, the first of which brings it to the output stride. In the paper
    their outputs are concatenated to fc7 before the score layer; a score layer of their own, whose result is added,
    is the same.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], output_stride: int, classes: int, dropout: float = 0.5
    ) -> None:
        """Build it with random weights.

        Args:
            channels: of each input.
            strides: image pixels per pixel of each input, at most `output_stride`.
            output_stride: of the scores.
            classes: the number of scores.
            dropout: share of the values after each of the two convolutions that a training step lacks.
        """
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, SKIP_CHANNELS, 3, output_stride // stride, padding=1),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Conv2d(SKIP_CHANNELS, SKIP_CHANNELS, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            )
            for inputs, stride in zip(channels, strides, strict=True)
        )
        self.score = nn.Conv2d(SKIP_CHANNELS * len(self.branches), classes, 1, bias=False)
        initialize_kaiming(self)
        initialize_score(self.score)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """One [B, channels[i], *, *] per input and the size (h, w) of the scores -> [B, K, h, w]."""
        maps = [branch(feature) for branch, feature in zip(self.branches, features, strict=True)]
        return self.score(torch.cat([resize_align_corners(each, size) for each in maps], dim=1))


class SkipScoreNetwork(ScoreMapNetwork):
    """A network whose scores also come from the image and from the features before the last."""

    def __init__(self, backbone: Backbone, head: nn.Module, classes: int, dropout: float = 0.5) -> None:
        """Add random skip layers.

        Args:
            backbone: see `ScoreMapNetwork`.
            head: see `ScoreMapNetwork`.
            classes: the number of scores.
            dropout: of the skip layers.
        """
        super().__init__(backbone, head)
        channels, strides = (3, *backbone.channels[:-1]), (1, *backbone.strides[:-1])
        self.skips = SkipScores(channels, strides, backbone.strides[-1], classes, dropout)

    def score_map(self, x: Tensor) -> Tensor:
        """[B, 3, k S + 1, l S + 1] float -> scores [B, K, k + 1, l + 1]."""
        *early, last = self.backbone(x)
        scores = self.head(last)
        return scores + self.skips([x, *early], scores.shape[-2:])
