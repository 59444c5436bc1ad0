"""Output stride as a choice: dilated blocks, multi-grid and the cascade of DeepLab v3 (Chen et al., arXiv:1706.05587).

Dilation has no parameters, so the same weights give features of any density. The paper's ResNets reduce the resolution
in the last unit of a block, torchvision's and timm's in the first unit of the next. With a block's stride in its last
unit, all of a later block can be dilated by the same rate, and at every second pixel the features at output stride 8
are exactly those at 16.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

from torch import Tensor, nn

_STEM_STRIDE = 4
BLOCKS = 4


def plan_output_stride(units: Sequence[int], output_stride: int, start: int = 1) -> list[tuple[int, int]]:
    """Where a network stops to reduce the resolution, and the dilation of what follows.

    The algorithm of the official code: a unit keeps its stride as long as the output stride is not reached; from then
    on it runs with stride 1 at the current rate, and its stride multiplies the rate of all later units.

    Args:
        units: the nominal stride of each unit, in their order.
        output_stride: input pixels per feature pixel that are wanted at the end.
        start: input pixels per pixel before the first unit.

    Returns:
        (stride, rate) of each unit.

    Raises:
        ValueError: the units do not reach this output stride.
    """
    current, rate = start, 1
    plan = []
    for stride in units:
        if current == output_stride:
            plan.append((1, rate))
            rate *= stride
        else:
            plan.append((stride, 1))
            current *= stride
    if current != output_stride:
        raise ValueError(f"output stride {output_stride} cannot be reached: the units end at {current}")
    return plan


def plan_blocks(output_stride: int, blocks: int = BLOCKS) -> list[tuple[int, int]]:
    """(stride of the last unit, rate of all units) of each block of a ResNet, whose first sees every fourth pixel.

    Each block would halve the resolution, but for the last.

    Raises:
        ValueError: so many blocks do not reach this output stride.
    """
    return plan_output_stride([2] * (blocks - 1) + [1], output_stride, start=_STEM_STRIDE)


def to_paper_form(body: nn.Module, plan: Sequence[tuple[int, int]], multi_grid: Sequence[int] = ()) -> None:
    """Turn a residual network of timm into the paper's form, in place: strides at the end of blocks, and their rates.

    Args:
        body: has `layer1` to `layer4`, without dilation.
        plan: (stride, rate) of each of these blocks.
        multi_grid: m_1, m_2, ...: unit j of the last block has m_j times its rate; further units have 1.
    """
    for number, (stride, rate) in enumerate(plan[:BLOCKS], start=1):
        block = body.get_submodule(f"layer{number}")
        _remove_stride(next(block.children()))
        _set_block(block, stride, rate, multi_grid if number == BLOCKS else ())


def apply_multi_grid(block: nn.Module, multi_grid: Sequence[int]) -> None:
    """Multiply the rates of a block's units, as they are, by m_1, m_2, ...; further units keep theirs."""
    for unit, factor in zip(block.children(), multi_grid, strict=False):
        for conv in _spatial_convolutions(unit):
            _set_rate(conv, conv.dilation[0] * factor)


def _set_block(block: nn.Module, stride: int, rate: int, multi_grid: Sequence[int]) -> None:
    *_, last = block.children()
    for unit, factor in zip(block.children(), chain(multi_grid, repeat(1)), strict=False):
        for conv in _spatial_convolutions(unit):
            _set_rate(conv, rate * factor)
    if stride > 1:
        _add_stride(last, stride)


def _remove_stride(unit: nn.Module) -> None:
    for name, part in list(unit.named_modules()):
        if isinstance(part, nn.Conv2d):
            part.stride = (1, 1)
        elif isinstance(part, nn.AvgPool2d):
            # The shortcut of "d" networks, which averages where it strides.
            unit.set_submodule(name, nn.Identity())


def _add_stride(unit: Any, stride: int) -> None:
    """Keep every second pixel of a unit's output; convolutions before the last see all of them."""
    _spatial_convolutions(unit)[-1].stride = (stride, stride)
    if unit.downsample is None:
        unit.downsample = nn.MaxPool2d(1, stride)
    else:
        next(part for part in unit.downsample if isinstance(part, nn.Conv2d)).stride = (stride, stride)


def _spatial_convolutions(unit: nn.Module) -> list[nn.Conv2d]:
    return [part for part in unit.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]


def _set_rate(conv: nn.Conv2d, rate: int) -> None:
    conv.dilation = conv.padding = (rate, rate)


class Cascade(nn.Sequential):
    """Block5, block6, ...: copies of a residual network's last block with growing rates and fresh weights."""

    def __init__(self, last_block: nn.Module, plan: Sequence[tuple[int, int]], multi_grid: Sequence[int] = ()) -> None:
        """Build the blocks; He initialisation.

        Args:
            last_block: block4, whose last unit has as many outputs as inputs.
            plan: (stride, rate) of all blocks of the network, those of the backbone first.
            multi_grid: m_1, m_2, ... of each block's units; further units have 1.
        """
        super().__init__()
        units = list(last_block.children())
        for stride, rate in plan[BLOCKS:]:
            block = nn.Sequential(*(_without_stride(copy.deepcopy(units[-1])) for _ in units))
            _set_block(block, stride, rate, multi_grid)
            self.append(block)
        _initialize(self)


def _without_stride(unit: Any) -> nn.Module:
    _remove_stride(unit)
    unit.downsample = None
    plain: nn.Module = unit
    return plain


def _initialize(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()


def before_addition(unit: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A residual unit of timm, and what it adds to its input.

    Args:
        unit: a timm `Bottleneck` or `BasicBlock`.
        x: its input.

    Returns:
        The residual, normalised and not yet added, and the unit's output.
    """
    last = "act3" if hasattr(unit, "act3") else "act2"
    residual = x
    for name, part in unit.named_children():
        if name == last:
            break
        residual = part(residual)
    shortcut = x if unit.downsample is None else unit.get_submodule("downsample")(x)
    return residual, unit.get_submodule(last)(residual + shortcut)
