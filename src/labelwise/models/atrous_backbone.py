"""The backbones of DeepLab v3 and v3+: any output stride, multi-grid, and the low-level feature of the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from labelwise.errors import UserError
from labelwise.models.atrous_stages import BLOCKS, apply_multi_grid, before_addition, plan_blocks, to_paper_form
from labelwise.models.backbones import TINY, Backbone, create_backbone, takes_multi_grid
from labelwise.models.xception import create_xception, is_xception

LowFeature = Literal["residual", "stage"]
_LOW_STRIDE = 4
MULTI_GRID = (1, 2, 4)
"""Of the best ResNet-101 of DeepLab v3."""


class AtrousResNet(Backbone):
    """A residual network of timm that returns a feature at stride 4 and the last one."""

    def __init__(self, backbone: Backbone, output_stride: int, low_feature: LowFeature, paper_form: bool) -> None:
        """Take over a backbone.

        Args:
            backbone: with timm's `layer1` to `layer4`.
            output_stride: of its last feature.
            low_feature: see `create_atrous_backbone`.
            paper_form: the last unit of `layer1` has left stride 4.
        """
        channels = backbone.channels[1], backbone.channels[-1]
        super().__init__(backbone.body, channels, (_LOW_STRIDE, output_stride))
        self._residual = low_feature == "residual"
        self._low_unit = -2 if self._residual or paper_form else -1

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] float -> [B, channels[0], H/4, W/4] and [B, channels[1], H/OS, W/OS]."""
        low = x
        for name, part in self.body.named_children():
            if name == "layer1":
                low, x = self._block1(list(part.children()), x)
            else:
                x = part(x)
        return [low, x]

    def _block1(self, units: list[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
        low = x
        for number, unit in enumerate(units, start=-len(units)):
            residual, x = before_addition(unit, x)
            if number == self._low_unit:
                low = residual if self._residual else x
        return low, x


def create_atrous_backbone(
    name: str,
    output_stride: int,
    weights: str | Path | None,
    *,
    multi_grid: Sequence[int] | None = None,
    paper_form: bool = True,
    low_feature: LowFeature = "stage",
    blocks: int = BLOCKS,
) -> Backbone:
    """Build a backbone with the dilation of the official code.

    The same weights give the same features at any output stride, but denser.

    Args:
        name: as for `create_backbone`.
        output_stride: of the last feature.
        weights: as for `create_backbone`.
        multi_grid: rates of the last units as multiples of their block's rate: of a ResNet's last block, or of the
            last Xception module; None = 1 2 4 for ResNets and 1 1 1 for Xception, as in the papers.
        paper_form: ResNets reduce the resolution in the last unit of a block and dilate all units of a later one;
            False leaves strides where torchvision and timm have them, in the first unit of the next block, whose
            convolution then keeps the rate before.
        low_feature: at stride 4 the plain output of the "stage", or as in the paper "residual", without ReLU: what
            block1's second-last unit of a ResNet adds to its input. That of Xception is always the paper's; other
            networks have the stage's alone.
        blocks: of a ResNet in the paper's form, those that a cascade adds included; `output_stride` is then that of
            the whole network.

    Raises:
        UserError: an output stride or a multi-grid that the network cannot have, or see `create_backbone`.
        BadFile: see `create_backbone`.
    """
    if is_xception(name):
        return create_xception(name, output_stride, weights, multi_grid or ())
    if not is_resnet(name):
        if multi_grid:
            raise UserError(f"--multi-grid: backbone '{name}' has no units to dilate one by one; leave it out")
        return _with_first_rate(create_backbone(name, output_stride, weights), name, output_stride)
    grid = MULTI_GRID if multi_grid is None else multi_grid
    if not paper_form:
        backbone = create_backbone(name, output_stride, weights)
        apply_multi_grid(backbone.body.get_submodule("layer4"), grid)
        return AtrousResNet(backbone, output_stride, low_feature, paper_form)
    try:
        plan = plan_blocks(output_stride, blocks)
    except ValueError as error:
        raise UserError(f"--output-stride {output_stride}: backbone '{name}' cannot have it here") from error
    backbone = create_backbone(name, 32, weights)
    to_paper_form(backbone.body, plan, grid)
    own_stride = _LOW_STRIDE * math.prod(stride for stride, _ in plan[:BLOCKS])
    return AtrousResNet(backbone, own_stride, low_feature, paper_form)


def _with_first_rate(backbone: Backbone, name: str, output_stride: int) -> Backbone:
    """The same weights of our tiny network at output stride 8: the convolution without its stride keeps its rate."""
    if name == TINY and output_stride == 8:
        conv = backbone.body.get_submodule("layer3.0.conv1.0")
        assert isinstance(conv, nn.Conv2d)
        conv.dilation = conv.padding = (1, 1)
    return backbone


def is_resnet(name: str) -> bool:
    """Whether a backbone is one of timm's residual networks of four stages."""
    return takes_multi_grid(name) and not name.startswith("mobilenet")
