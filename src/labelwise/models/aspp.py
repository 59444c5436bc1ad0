"""Atrous spatial pyramid pooling: one feature map seen at several dilations (Chen et al., arXiv:1706.05587)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.separable import SeparableConv2d


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that survives one value per channel.

    Globally pooled features of a single image have no batch statistics: plain batch normalisation raises an error.
    Such a batch is normalised with the running statistics, as in evaluation, and does not change them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        if self.training and input.numel() == input.shape[1]:
            mean, variance = self.running_mean, self.running_var
            return functional.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def rates_at(rates: Sequence[int], output_stride: int, given_at: int = 8) -> tuple[int, ...]:
    """Dilations that see as many pixels at an output stride as these do at the one they are given for.

    Args:
        rates: dilations.
        output_stride: for which they are wanted.
        given_at: to which `rates` belong; 8 in DeepLab v1 and v2.
    """
    return tuple(max(1, rate * given_at // output_stride) for rate in rates)


def _pool(x: Tensor) -> Tensor:
    # Not adaptive_avg_pool2d: its backward pass on CUDA is not deterministic.
    return x.mean(dim=(2, 3), keepdim=True)


def _branches(inputs: int, outputs: int, rates: Sequence[int]) -> list[nn.Conv2d]:
    dilated = [nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate, bias=False) for rate in rates]
    return [nn.Conv2d(inputs, outputs, 1, bias=False), *dilated]


class ASPP(nn.Module):
    """The usual pyramid: every branch has its own normalisation, then concatenate and project.

    Branches: a 1x1 convolution, one 3x3 convolution per rate, and a 1x1 convolution of the global average, which is
    spread back over the map. With one image per batch the last one's normalisation uses its running statistics
    (`PooledBatchNorm2d`). The convolutions keep torch's default initialisation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        *,
        image_pooling: bool = True,
        separable: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Build it.

        Args:
            inputs: channels.
            outputs: channels of each branch and of the result.
            rates: dilation of each 3x3 convolution.
            image_pooling: have the branch of the global average (DeepLab v3's image-level feature).
            separable: the 3x3 convolutions are depthwise separable (DeepLab v3+); they start as `SeparableConv2d` does.
            dropout: share of the projected values that are dropped in training.
        """
        super().__init__()
        dense = [_with_norm(conv) for conv in _branches(inputs, outputs, () if separable else rates)]
        divided = [SeparableConv2d(inputs, outputs, rate) for rate in (rates if separable else ())]
        self.convs = nn.ModuleList([*dense, *divided])
        self.pooled = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), PooledBatchNorm2d(outputs), nn.ReLU(inplace=True))
            if image_pooling
            else None
        )
        self.project = nn.Sequential(
            nn.Conv2d(outputs * (len(self.convs) + image_pooling), outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        maps = [conv(x) for conv in self.convs]
        if self.pooled is not None:
            maps.append(self.pooled(_pool(x)).expand(-1, -1, *x.shape[2:]))
        return self.project(torch.cat(maps, dim=1))


def _with_norm(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


class ConcatenatedASPP(nn.Module):
    """The pyramid of Cross Pseudo Supervision's network (Chen et al., CVPR 2021, official code).

    One normalisation over the concatenated convolutions, leaky ReLU of slope 0.01, and the pooled branch is reduced
    by its own 1x1 convolution and added before the last normalisation. Convolutions start from a Kaiming normal
    distribution (fan in).
    """

    def __init__(self, inputs: int, outputs: int = 256, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_branches(inputs, outputs, rates))
        self.convs_norm = nn.BatchNorm2d(outputs * len(self.convs))
        self.convs_project = nn.Conv2d(outputs * len(self.convs), outputs, 1, bias=False)
        self.pooled = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            PooledBatchNorm2d(outputs),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv2d(outputs, outputs, 1, bias=False),
        )
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        initialize_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        maps = torch.cat([conv(x) for conv in self.convs], dim=1)
        maps = self.convs_project(self.act(self.convs_norm(maps)))
        return self.act(self.norm(maps + self.pooled(_pool(x))))


def initialize_kaiming(module: nn.Module) -> None:
    """Draw every convolution's weight from a Kaiming normal distribution (fan in, ReLU gain); biases become 0."""
    for conv in module.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
