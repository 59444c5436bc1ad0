"""The classifiers that FCN reads as fully convolutional networks: VGG-16, AlexNet and GoogLeNet, and a small VGG.

Each can be built in two forms: with the image padded by 100 pixels and no padding of fc6, as in the paper's code, so
that images of any size have an output; or padded to keep sizes ("same"). Pooling rounds sizes up, as Caffe does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import googlenet as build_torchvision_googlenet
from torchvision.models.googlenet import Inception as TorchvisionInception

from labelwise.models.backbones import Backbone
from labelwise.models.coordinates import Layer, aligned_cells, coordinate_map

BORDER = 100
"""Pixels by which the paper's code pads the image."""
STRIDES = (8, 16, 32)


class Trunk(nn.Module):
    """A chain of layers that gives the features from which FCN scores classes, the finest first.

    Attributes:
        channels: of each feature.
        strides: of each feature: 8, 16 and 32, or 32 alone.
        maps: where the cells of each feature lie in the image.
        padded: whether the image is padded by 100 pixels, for which scores are made by transposed convolutions and
            fixed crops.
    """

    def __init__(self, layers: nn.Sequential, taps: Mapping[str, int], *, padded: bool) -> None:
        """Take a chain.

        Args:
            layers: the chain, with names.
            taps: name of a layer -> channels of the feature after it; in the order of the chain.
            padded: as the attribute.
        """
        super().__init__()
        self.layers = layers
        self.taps = tuple(taps)
        self.channels = tuple(taps.values())
        self.maps = tuple(coordinate_map(self.chain(tap)) for tap in taps)
        self.strides = tuple(int(each.scale) for each in self.maps)
        self.padded = padded
        _initialize(self)

    def chain(self, tap: str) -> list[Layer]:
        """What moves coordinates up to a tap."""
        found: list[Layer] = []
        for name, module in self.layers.named_children():
            found += moving_layers(module)
            if name == tap:
                break
        return found

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] float, normalised -> one [B, channels[i], h, w] per feature."""
        features = []
        for name, layer in self.layers.named_children():
            x = layer(x)
            if name in self.taps:
                features.append(x)
        return features


class BackboneTrunk(nn.Module):
    """Any backbone of output stride 32, scored at its strides 8, 16 and 32; attributes as those of `Trunk`."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.kept = [backbone.strides.index(stride) for stride in STRIDES]
        self.channels = tuple(backbone.channels[index] for index in self.kept)
        self.strides = STRIDES
        self.maps = tuple(map(aligned_cells, STRIDES))
        self.padded = False

    def forward(self, x: Tensor) -> list[Tensor]:
        """As `Trunk`."""
        features = self.backbone(x)
        return [features[index] for index in self.kept]


class Inception(nn.Module):
    """Four parallel branches, each convolution with bias and ReLU, named as in Caffe's model (GoogLeNet, 2014)."""

    def __init__(self, inputs: int, plain: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        """Build one.

        Args:
            inputs: channels that come in.
            plain: channels of the 1x1 branch.
            three: channels before and after the 3x3 convolution.
            five: channels before and after the 5x5 convolution.
            pool: channels of the branch that pools first.
        """
        super().__init__()
        self.add_module("1x1", nn.Conv2d(inputs, plain, 1))
        self.add_module("3x3_reduce", nn.Conv2d(inputs, three[0], 1))
        self.add_module("3x3", nn.Conv2d(three[0], three[1], 3, padding=1))
        self.add_module("5x5_reduce", nn.Conv2d(inputs, five[0], 1))
        self.add_module("5x5", nn.Conv2d(five[0], five[1], 5, padding=2))
        self.add_module("pool_proj", nn.Conv2d(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, sum of the branches, h, w]."""
        pooled = nn.functional.max_pool2d(x, 3, 1, 1)
        branches = (
            self._apply_chain(x, "1x1"),
            self._apply_chain(x, "3x3_reduce", "3x3"),
            self._apply_chain(x, "5x5_reduce", "5x5"),
            self._apply_chain(pooled, "pool_proj"),
        )
        return torch.cat(branches, dim=1)

    def _apply_chain(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x).relu()
        return x


def moving_layers(module: nn.Module) -> list[Layer]:
    """The layers with kernels of a chain; of parallel branches, which keep the centre, the widest."""
    if isinstance(module, nn.Conv2d | nn.MaxPool2d):
        return [Layer(_side(module.kernel_size), _side(module.stride), _side(module.padding))]
    if isinstance(module, Inception):
        return [Layer(5, 1, 2)]
    if isinstance(module, TorchvisionInception):
        return [Layer(3, 1, 1)]
    return [layer for child in module.children() for layer in moving_layers(child)]


def _side(value: int | str | tuple[int, ...]) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def vgg_trunk(
    padded: bool,
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    depths: Sequence[int] = (2, 2, 3, 3, 3),
    hidden: int = 4096,
    norm: bool = False,
    dropout: float = 0.5,
) -> Trunk:
    """VGG-16 (Simonyan and Zisserman, ICLR 2015); convolutions have the numbers of torchvision's `features`.

    Args:
        padded: the form with 100 pixels around the image.
        widths: channels of the five blocks.
        depths: convolutions of each block.
        hidden: channels of fc6 and fc7.
        norm: BatchNorm after each convolution of the blocks, and then no biases.
        dropout: after fc6 and fc7.
    """
    plain: list[nn.Module] = []
    pools = []
    inputs, border = 3, BORDER if padded else 1
    for width, depth in zip(widths, depths, strict=True):
        for _ in range(depth):
            plain.append(nn.Conv2d(inputs, width, 3, padding=border, bias=not norm))
            plain += [nn.BatchNorm2d(width)] * norm + [nn.ReLU(inplace=True)]
            inputs, border = width, 1
        pools.append(str(len(plain)))
        plain.append(nn.MaxPool2d(2, 2, ceil_mode=True))
    layers = OrderedDict((str(number), module) for number, module in enumerate(plain))
    layers |= _fully_connected(widths[-1], hidden, 7, 0 if padded else 3, dropout)
    return Trunk(nn.Sequential(layers), {pools[2]: widths[2], pools[3]: widths[3], "drop7": hidden}, padded=padded)


def _fully_connected(
    inputs: int, hidden: int, kernel: int, padding: int, dropout: float
) -> OrderedDict[str, nn.Module]:
    """fc6 and fc7 as convolutions."""
    return OrderedDict(
        fc6=nn.Conv2d(inputs, hidden, kernel, padding=padding),
        relu6=nn.ReLU(inplace=True),
        drop6=nn.Dropout(dropout),
        fc7=nn.Conv2d(hidden, hidden, 1),
        relu7=nn.ReLU(inplace=True),
        drop7=nn.Dropout(dropout),
    )


def caffenet_trunk(padded: bool) -> Trunk:
    """CaffeNet, an AlexNet (Krizhevsky et al., NIPS 2012) that pools before it normalises."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 96, 11, stride=4, padding=BORDER if padded else 5),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=nn.ReLU(inplace=True),
        pool5=nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    layers |= _fully_connected(256, 4096, 6, 0 if padded else 3, 0.5)
    return Trunk(nn.Sequential(layers), {"drop7": 4096}, padded=padded)


def alexnet_tv_trunk(padded: bool) -> Trunk:
    """Torchvision's AlexNet; layers have the numbers of its `features`."""
    plain: list[nn.Module] = []
    plan = ((3, 64, 11, 4, BORDER if padded else 5), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1))
    for number, (inputs, outputs, kernel, stride, padding) in enumerate((*plan, (256, 256, 3, 1, 1)), start=1):
        plain += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]
        if number in (1, 2, 5):
            plain.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    layers = OrderedDict((str(number), module) for number, module in enumerate(plain))
    layers |= _fully_connected(256, 4096, 6, 0 if padded else 3, 0.5)
    return Trunk(nn.Sequential(layers), {"drop7": 4096}, padded=padded)


_INCEPTIONS: dict[str, tuple[int, int, tuple[int, int], tuple[int, int], int]] = {
    "inception_3a": (192, 64, (96, 128), (16, 32), 32),
    "inception_3b": (256, 128, (128, 192), (32, 96), 64),
    "inception_4a": (480, 192, (96, 208), (16, 48), 64),
    "inception_4b": (512, 160, (112, 224), (24, 64), 64),
    "inception_4c": (512, 128, (128, 256), (24, 64), 64),
    "inception_4d": (512, 112, (144, 288), (32, 64), 64),
    "inception_4e": (528, 256, (160, 320), (32, 128), 128),
    "inception_5a": (832, 256, (160, 320), (32, 128), 128),
    "inception_5b": (832, 384, (192, 384), (48, 128), 128),
}
"""Channels of GoogLeNet's inceptions (Szegedy et al., CVPR 2015, table 1)."""


def googlenet_trunk(padded: bool) -> Trunk:
    """GoogLeNet with response normalisation, without its classifiers and its last, global pooling."""
    first = nn.Conv2d(3, 64, 7, stride=2, padding=BORDER if padded else 3)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Sequential(OrderedDict({"7x7_s2": first, "relu": nn.ReLU(inplace=True)})),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        conv2=nn.Sequential(
            OrderedDict(
                {
                    "3x3_reduce": nn.Conv2d(64, 64, 1),
                    "relu_reduce": nn.ReLU(inplace=True),
                    "3x3": nn.Conv2d(64, 192, 3, padding=1),
                    "relu": nn.ReLU(inplace=True),
                }
            )
        ),
        norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    for name, plan in _INCEPTIONS.items():
        layers[name] = Inception(*plan)
        if name in ("inception_3b", "inception_4e"):
            layers[f"pool{name[10]}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    return Trunk(nn.Sequential(layers), {"inception_5b": 1024}, padded=padded)


def googlenet_tv_trunk(padded: bool) -> Trunk:
    """Torchvision's GoogLeNet up to its last inception."""
    whole = build_torchvision_googlenet(weights=None, aux_logits=False, init_weights=False)
    layers = OrderedDict(whole.named_children())
    for name in ("aux1", "aux2", "avgpool", "dropout", "fc"):
        layers.pop(name, None)
    whole.conv1.conv.padding = (BORDER, BORDER) if padded else (3, 3)
    return Trunk(nn.Sequential(layers), {"inception5b": 1024}, padded=padded)


def vgg_tiny_trunk(padded: bool) -> Trunk:
    """A VGG of few channels with BatchNorm, which learns scenes of 96 pixels from random weights on a CPU."""
    return vgg_trunk(padded, widths=(8, 16, 24, 32, 32), depths=(2, 2, 2, 2, 2), hidden=48, norm=True, dropout=0.0)


def _initialize(trunk: nn.Module) -> None:
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
