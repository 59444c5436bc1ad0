"""Pyramid pooling axial attention: rows and columns attend on their averages (Elhassan et al., arXiv:2310.15025)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.aspp import PooledBatchNorm2d

POOLS = (3, 5, 7)
POSITIONS = 16
"""Length of the learned positional embeddings, which are interpolated to the map's own length."""
Axis = Literal["rows", "columns"]


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def conv_norm_prelu(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the map's size, batch normalisation, PReLU with a slope per channel."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        # Of a single image, globally pooled maps have one value per channel.
        PooledBatchNorm2d(outputs),
        nn.PReLU(outputs),
    )


def axial_squeeze_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, heads: int, axis: Axis
) -> Tensor:
    """Attention among a map's rows, each averaged over its width, or among its columns, averaged over their height.

    Args:
        query: [B, heads * D, H, W].
        key: [B, heads * D, H, W].
        value: [B, heads * E, H, W].
        positions: [2, heads * D, P], added to the averaged queries and keys; interpolated to their number.
        heads: number of heads; scores are divided by the root of D.
        axis: what attends.

    Returns:
        [B, heads * E, H, 1] for rows, [B, heads * E, 1, W] for columns.
    """
    averaged, kept = (3, 2) if axis == "rows" else (2, 3)
    query_position, key_position = functional.interpolate(positions, size=query.shape[kept], mode="linear")

    def split(x: Tensor) -> Tensor:
        return x.unflatten(1, (heads, -1)).transpose(2, 3)

    attended = functional.scaled_dot_product_attention(
        split(query.mean(averaged) + query_position),
        split(key.mean(averaged) + key_position),
        split(value.mean(averaged)),
    )
    return attended.transpose(2, 3).flatten(1, 2).unsqueeze(averaged)


class PoolingPyramid(nn.Module):
    """A 1x1 block, weighted by three average poolings of it, each on top of the last.

    The poolings have windows of 3, 5 and 7 and count padding as zeros. The grouped convolution over the concatenated
    poolings reads three neighbouring channels of one pooling per output, as in the released code, not one channel of
    all three.
    """

    def __init__(self, channels: int, fix_pool2: bool) -> None:
        super().__init__()
        self.fix_pool2 = fix_pool2
        self.enter = conv_norm_prelu(channels, channels, 1)
        self.pools = nn.ModuleList(nn.AvgPool2d(size, stride=1, padding=size // 2) for size in POOLS)
        self.weight = conv_norm_prelu(len(POOLS) * channels, channels, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        entered = self.enter(x)
        pooled = [entered]
        for pool in self.pools:
            pooled.append(pool(pooled[-1]))
        _, first, second, third = pooled
        middle = second if self.fix_pool2 else first
        return self.weight(torch.cat([first, middle, third], dim=1)) * entered


class PyramidPoolingAxialAttention(nn.Module):
    """Axial attention on top of a pooling pyramid, gated by a local branch.

    The rows' result passes a 1x1 block with normalisation and PReLU, the columns' a bare 1x1 convolution, as in the
    released code. The gate is a product without sigmoid.
    """

    def __init__(self, channels: int, key_dim: int, heads: int, fix_pool2: bool = False) -> None:
        """Build it; positional embeddings are drawn from N(0, 1).

        Args:
            channels: of the map, in and out.
            key_dim: channels of queries and keys per head; values have twice as many.
            heads: number of attention heads.
            fix_pool2: take the second pooling where the released code takes the first one twice.
        """
        super().__init__()
        keys, values = heads * key_dim, 2 * heads * key_dim
        self.heads = heads
        self.local = nn.Sequential(pointwise(channels, channels), nn.BatchNorm2d(channels))
        self.local_context = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.pyramid = PoolingPyramid(channels, fix_pool2)
        self.query, self.key = pointwise(channels, keys), pointwise(channels, keys)
        self.value = pointwise(channels, values)
        self.row_positions = nn.Parameter(torch.randn(2, keys, POSITIONS))
        self.column_positions = nn.Parameter(torch.randn(2, keys, POSITIONS))
        self.row_projection = conv_norm_prelu(values, values, 1)
        self.column_projection = pointwise(values, values)
        self.projection = conv_norm_prelu(values, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        local = self.local(x)
        gate = self.local_context(local) + local
        pooled = self.pyramid(x)
        query, key, value = self.query(pooled), self.key(pooled), self.value(pooled)
        rows = axial_squeeze_attention(query, key, value, self.row_positions, self.heads, "rows")
        columns = axial_squeeze_attention(query, key, value, self.column_positions, self.heads, "columns")
        return self.projection(value + (self.row_projection(rows) + self.column_projection(columns))) * gate


class AttentionBlock(nn.Module):
    """Attention, then two 1x1 convolutions around a depthwise one, both around a shortcut; without normalisation."""

    def __init__(self, channels: int, key_dim: int, heads: int, fix_pool2: bool) -> None:
        super().__init__()
        hidden = 4 * channels
        self.attention = PyramidPoolingAxialAttention(channels, key_dim, heads, fix_pool2)
        self.mlp = nn.Sequential(
            pointwise(channels, hidden),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.ReLU(inplace=True),
            pointwise(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class SSA(nn.Sequential):
    """P2AT's context: attention blocks on the encoder's coarsest feature."""

    def __init__(self, channels: int = 64, key_dim: int = 16, heads: int = 8, fix_pool2: bool = False) -> None:
        super().__init__(*(AttentionBlock(channels, key_dim, heads, fix_pool2) for _ in range(2)))
