"""Where the cells of a feature map lie in the image: the arithmetic behind crops, receptive fields and resizing.

The formulas are those of the coordinate maps in the released code of FCN (Long, Shelhamer, Darrell, CVPR 2015). Along
one axis a convolution or pooling of kernel k, stride s and padding p has its output i over its input s i + (k - 1) / 2
- p, and a transposed convolution has its input i over its output s i + (k - 1) / 2 - p.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """What moves coordinates in a layer; those without a kernel (ReLU, dropout) move none."""

    kernel: int
    stride: int = 1
    padding: int = 0
    kind: Literal["convolution", "transposed"] = "convolution"
    "pooling counts as convolution"


class CoordinateMap(NamedTuple):
    """Cell i of a map has its centre over pixel `scale * i + offset` of the image, along either axis."""

    scale: float
    offset: float

    def after(self, layer: Layer) -> CoordinateMap:
        """The map of a layer's output, this being that of its input."""
        shift = (layer.kernel - 1) / 2 - layer.padding
        if layer.kind == "transposed":
            return CoordinateMap(self.scale / layer.stride, self.offset - self.scale * shift / layer.stride)
        return CoordinateMap(self.scale * layer.stride, self.offset + self.scale * shift)


IMAGE = CoordinateMap(1.0, 0.0)


def aligned_cells(stride: int) -> CoordinateMap:
    """The map whose cells tile the image from its corner on, as resizing with `align_corners=False` takes them."""
    return CoordinateMap(float(stride), (stride - 1) / 2)


def coordinate_map(layers: Iterable[Layer]) -> CoordinateMap:
    """The map of the output of a chain of layers on the image."""
    return reduce(CoordinateMap.after, layers, IMAGE)


def crop_offset(larger: CoordinateMap, reference: CoordinateMap) -> int:
    """The first cell to keep of a map so that its cells lie on those of a reference.

    Args:
        larger: of the map to crop.
        reference: of the map to which it is cropped; of the same scale.

    Raises:
        ValueError: the scales differ, the cells lie between those of the reference, or begin after them.
    """
    cells = (reference.offset - larger.offset) / larger.scale
    if larger.scale != reference.scale or not cells.is_integer() or cells < 0:
        raise ValueError(f"{larger} cannot be cropped to {reference}")
    return int(cells)


def receptive_field(layers: Iterable[Layer]) -> int:
    """The side, in pixels, of what one cell of a chain's output sees."""
    field, jump = 1, 1
    for layer in layers:
        field += (layer.kernel - 1) * jump
        jump *= layer.stride
    return field


def bilinear_kernel(size: int) -> Tensor:
    """The kernel with which a transposed convolution of stride (size + 1) // 2 interpolates linearly.

    Args:
        size: k.

    Returns:
        [k, k] float32: (1 - |i - c| / f) (1 - |j - c| / f) with f = (k + 1) // 2 and the centre c.
    """
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size) - center).abs() / factor
    return line[:, None] * line


def resample(
    scores: Tensor, source: CoordinateMap, target: CoordinateMap, size: Sequence[int], edge: Literal["zero", "clamp"]
) -> Tensor:
    """Linear interpolation of a map at the cells of another.

    With edge "zero" this is the transposed convolution with `bilinear_kernel`, cropped: what lies outside the map
    counts as 0. With "clamp" the outermost cells go on; between maps of `aligned_cells` this is torch's bilinear
    resizing with `align_corners=False`. Two small matrix products take a tenth of a transposed convolution's time.

    Args:
        scores: [B, K, h, w] float.
        source: of `scores`.
        target: of the result; finer.
        size: (H, W) of the result.
        edge: what lies beyond the outermost cells.

    Returns:
        [B, K, H, W].
    """
    rows, columns = (
        _interpolation(old, new, source, target, edge, scores) for old, new in zip(scores.shape[-2:], size, strict=True)
    )
    return rows @ scores @ columns.T


def _interpolation(
    old: int, new: int, source: CoordinateMap, target: CoordinateMap, edge: Literal["zero", "clamp"], like: Tensor
) -> Tensor:
    """[new, old] weights of the old cells for each new one, along one axis."""
    pixel = target.scale * torch.arange(new, device=like.device) + target.offset
    position = (pixel - source.offset) / source.scale
    if edge == "clamp":
        position = position.clamp(0, old - 1)
    distance = (position[:, None] - torch.arange(old, device=like.device)).abs()
    return (1 - distance).clamp_min(0).to(like.dtype)
