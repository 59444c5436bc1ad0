"""The modified aligned Xception of DeepLab v3+ (Chen et al., ECCV 2018), from timm's parts and weights.

timm has the modules, and the authors' ImageNet weights under the tag `tf_in1k`. Built here: the output stride, since
timm's own drops the last entry module's shortcut from Xception-71 at output stride 8, so that weights do not fit any
more; and the low-level feature, which is taken before the ReLU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from labelwise.errors import UserError
from labelwise.models.atrous_stages import plan_output_stride
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.separable import truncated_normal

OUTPUT_STRIDES = (8, 16, 32)
_NAME = re.compile(r"xception(41|65|71)(\..+)?")
_STEM_STRIDE, _LOW_STRIDE = 2, 4
_STD = 0.09


def is_xception(name: str) -> bool:
    """Whether a backbone's name is that of a modified aligned Xception: `xception41`, `65`, `71`, with any tag."""
    return _NAME.fullmatch(name) is not None


class AlignedXception(nn.Module):
    """Entry, middle and exit flow; returns the low-level feature at stride 4, before its ReLU, and the last one."""

    def __init__(self, stem: nn.Sequential, blocks: nn.Sequential, low: int) -> None:
        """Take over timm's modules.

        Args:
            stem: two 3x3 convolutions, the first with stride 2.
            blocks: the Xception modules.
            low: number of the module that has the low-level feature.
        """
        super().__init__()
        self.stem, self.blocks, self.low = stem, blocks, low

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, 256, H/4, W/4] and [B, 2048, H/OS, W/OS]."""
        x = self.blocks[: self.low](self.stem(x))
        feature, x = _before_last_convolution(self.blocks[self.low], x)
        return [feature, self.blocks[self.low + 1 :](x)]


def create_xception(
    name: str, output_stride: int, weights: str | Path | None, unit_rates: Sequence[int] = ()
) -> Backbone:
    """Build the backbone.

    Args:
        name: `xception41`, `xception65` or `xception71`, possibly with the tag of its weights.
        output_stride: 8, 16 or 32.
        weights: as for `create_backbone`; random ones come from a truncated normal distribution.
        unit_rates: multi-grid of the last module's three convolutions; none = 1 1 1, as in the paper.

    Raises:
        UserError: another output stride, or pretrained weights that cannot be had.
        BadFile: the file of weights is missing or not of this network.
    """
    if output_stride not in OUTPUT_STRIDES:
        strides = ", ".join(map(str, OUTPUT_STRIDES))
        raise UserError(f"backbone '{name}' cannot have output stride {output_stride}; --output-stride {strides}")
    parts = dict(create_backbone(name, 32, weights).body.named_children())
    stem = nn.Sequential(*(part for key, part in parts.items() if key.startswith("stem_")))
    # Any: timm's modules carry attributes that nn.Module's type does not know.
    blocks: Any = nn.Sequential(*(part for key, part in parts.items() if key.startswith("blocks_")))
    low = _low_module([_stride(block) for block in blocks])
    _set_output_stride(blocks, output_stride, unit_rates)
    body = AlignedXception(stem, blocks, low)
    if weights in (None, "none"):
        for conv in (part for part in body.modules() if isinstance(part, nn.Conv2d)):
            truncated_normal(conv, _STD)
    channels = blocks[low].stack.conv2.conv_pw.out_channels, blocks[-1].out_channels
    return Backbone(body, channels, (_LOW_STRIDE, output_stride))


def _low_module(strides: Sequence[int]) -> int:
    """The last module whose input has stride 4."""
    current, found = _STEM_STRIDE, 0
    for number, stride in enumerate(strides):
        found = number if current == _LOW_STRIDE else found
        current *= stride
    return found


def _stride(block: Any) -> int:
    stride: int = block.stack.conv3.conv_dw.stride[0]
    return stride


def _set_output_stride(blocks: Any, output_stride: int, unit_rates: Sequence[int]) -> None:
    plan = plan_output_stride([_stride(block) for block in blocks], output_stride, start=_STEM_STRIDE)
    for number, (block, (stride, rate)) in enumerate(zip(blocks, plan, strict=True)):
        grid = unit_rates if number == len(blocks) - 1 else ()
        units = (block.stack.conv1, block.stack.conv2, block.stack.conv3)
        for unit, factor in zip(units, chain(grid, repeat(1)), strict=False):
            unit.conv_dw.dilation = unit.conv_dw.padding = (rate * factor, rate * factor)
        block.stack.conv3.conv_dw.stride = (stride, stride)
        if block.shortcut is not None:
            block.shortcut.conv.stride = (stride, stride)


def _before_last_convolution(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a module's second convolution, before the ReLU, and that of the module."""
    stack = block.stack
    feature = stack.conv2(stack.act2(stack.conv1(stack.act1(x))))
    return feature, stack.conv3(feature.relu()) + block.shortcut(x)
