"""VGG-16 made dense: strides become holes in the filters that follow (DeepLab v1, Chen et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.aspp import initialize_kaiming
from labelwise.models.atrous_heads import ClassifierBranch
from labelwise.models.weights import check_keys, classifier_weights

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
FC6_GRID, FC_WIDTH = 7, 4096


class AtrousMaxPool2d(nn.Module):
    """Maximum over a dilated window; torch's own refuses the padding that keeps the size."""

    def __init__(self, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = kernel, stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / stride, W / stride]."""
        padding = self.dilation * (self.kernel // 2)
        padded = functional.pad(x, (padding,) * 4, value=-torch.inf)
        return functional.max_pool2d(padded, self.kernel, self.stride, dilation=self.dilation)


def atrous_from_strided(layers: nn.Sequential, output_stride: int, *, dilate_pools: bool = False) -> nn.Sequential:
    """Turn the strides beyond an output stride into dilations of the layers that follow, in place (hole algorithm).

    The same weights then give at every position what they gave at some. A convolution's own rate counts the strides
    removed before it, not its own.

    Args:
        layers: convolutions and maximum pools with anything that has neither stride nor extent between them.
        output_stride: the greatest product of strides to keep.
        dilate_pools: dilate pools as well. DeepLab does not, and is therefore not equal to the strided network from
            the first pool after a removed stride on.

    Returns:
        The same layers.
    """
    stride = rate = 1
    for index, layer in enumerate(layers):
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            continue
        step = _square(layer.stride)
        keeps = stride * step <= output_stride
        stride, own = (stride * step, step) if keeps else (stride, 1)
        if isinstance(layer, nn.Conv2d):
            dilation, padding = rate * _square(layer.dilation), rate * _square(layer.padding)
            layer.stride, layer.dilation, layer.padding = (own, own), (dilation, dilation), (padding, padding)
        elif dilate_pools and rate > 1:
            layers[index] = AtrousMaxPool2d(_square(layer.kernel_size), own, rate)
        else:
            layer.stride = own
        rate = rate if keeps else rate * step
    return layers


def _square(value: object) -> int:
    first = value[0] if isinstance(value, tuple) else value
    assert isinstance(first, int)
    return first


class AtrousVGG16(nn.Module):
    """The convolutions of VGG-16 with pools of 3x3 instead of 2x2, so that grids align; features after each pool.

    The names of the weights are torchvision's (`features.0.weight`, ...). Random weights are Kaiming normal.
    """

    def __init__(self, output_stride: int = 8, *, pool5a: bool = False, dilate_pools: bool = False) -> None:
        """Build it with random weights.

        Args:
            output_stride: 8 in the papers: pool4 and pool5 keep the size, conv5 has rate 2; 32 is the usual VGG.
            pool5a: average 3x3 neighbourhoods at the end, as the released LargeFOV network does.
            dilate_pools: see `atrous_from_strided`.
        """
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        inputs = 3
        for width, count in zip(CHANNELS, CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
            self._ends.append(len(layers))
            layers.append(nn.MaxPool2d(3, 2, padding=1))
        self.features = atrous_from_strided(nn.Sequential(*layers), output_stride, dilate_pools=dilate_pools)
        self.pool5a = nn.AvgPool2d(3, 1, padding=1) if pool5a else nn.Identity()
        self.channels = CHANNELS
        self.strides = tuple(min(2**number, output_stride) for number in range(1, len(CHANNELS) + 1))
        initialize_kaiming(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features after pool1 to pool5."""
        features: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._ends:
                features.append(x)
        return [*features[:-1], self.pool5a(features[-1])]


def decimate_fc6(weight: Tensor, kernel: int, width: int) -> Tensor:
    """Sub-sample VGG's first fully connected layer, as a convolution.

    The taps are spread evenly over the filter from edge to edge, the output filters evenly from the first.

    Args:
        weight: [O, C, k, k].
        kernel: side of the new filter, at most k.
        width: the new number of output filters, a divisor of O.

    Returns:
        [width, C, kernel, kernel].
    """
    taps = torch.linspace(0, weight.shape[-1] - 1, kernel).round().long()
    return weight[:: weight.shape[0] // width, :, taps[:, None], taps]


def load_vgg16(backbone: AtrousVGG16, branches: Iterable[ClassifierBranch], weights: str | Path) -> None:
    """Take over a VGG-16 classifier's convolutions, and its fc6 and fc7, decimated.

    A branch whose width is no divisor of 4096 keeps its random weights; so do all where a file has convolutions alone.

    Args:
        backbone: receives `features.*`.
        branches: receive `classifier.0` and `classifier.3`.
        weights: see `classifier_weights`.

    Raises:
        UserError: pretrained weights that cannot be had.
        BadFile: the file does not exist, cannot be read, or is not of VGG-16.
    """
    state = classifier_weights("vgg16", weights)
    whole = "classifier.0.weight" in state
    expected = {**backbone.state_dict(), **(_fully_connected() if whole else {})}
    check_keys(Path(weights), "vgg16", state, expected, ("classifier.6",) if whole else ("classifier",))
    backbone.load_state_dict({name: state[name] for name in backbone.state_dict()})
    if not whole:
        return
    fc6 = state["classifier.0.weight"].view(FC_WIDTH, CHANNELS[-1], FC6_GRID, FC6_GRID)
    fc7 = state["classifier.3.weight"].view(FC_WIDTH, FC_WIDTH, 1, 1)
    for branch in branches:
        width, kernel = branch.fc6.out_channels, branch.fc6.kernel_size[0]
        if FC_WIDTH % width:
            continue
        step = FC_WIDTH // width
        taken = {
            "fc6.weight": decimate_fc6(fc6, kernel, width),
            "fc6.bias": state["classifier.0.bias"][::step],
            "fc7.weight": fc7[::step, ::step],
            "fc7.bias": state["classifier.3.bias"][::step],
        }
        branch.load_state_dict({**branch.state_dict(), **taken})


def _fully_connected() -> dict[str, Tensor]:
    """Tensors of the shapes of fc6 and fc7, without content."""
    with torch.device("meta"):
        layers = {"0": nn.Linear(CHANNELS[-1] * FC6_GRID**2, FC_WIDTH), "3": nn.Linear(FC_WIDTH, FC_WIDTH)}
    return nn.ModuleDict({"classifier": nn.ModuleDict(layers)}).state_dict()
