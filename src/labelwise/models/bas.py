"""Networks of Background Activation Suppression (Wu et al., CVPR 2022; IJCV 2023): a classifier cut in two.

The early part feeds a generator of one sigmoid map per class; the late part scores classes from the same features. Any
backbone that is a chain of stages can be cut; four also have the form of the paper for images with one class, in which
the maps have stride 8 whatever the backbone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labelwise.errors import UserError
from labelwise.models.backbones import Backbone, create_backbone

PROBE_SIDE = 64
"""Side in pixels of the image by which a chain is compared with its backbone."""
_GAUSSIAN_STD = 0.02
_FULL_STRIDE = 32


class SplitBackbone(nn.Module):
    """A backbone cut in two; its layers keep their names.

    Attributes:
        body: the layers.
        channels: of the features after the early part, and of the last ones.
    """

    def __init__(
        self, body: nn.Module, position: int, channels: tuple[int, int], end: int | None = None, pooling: int = 1
    ) -> None:
        """Cut a chain of stages.

        Args:
            body: see `chain_of`.
            position: stages of the early part.
            channels: as the attribute.
            end: stages that are used at all; all of them unless given.
            pooling: the late part starts with a maximum over so many pixels squared.
        """
        super().__init__()
        self.body = body
        self.channels = channels
        self.position, self.end, self.pooling = position, end, pooling

    @property
    def early(self) -> nn.Module:
        """[B, 3, H, W] -> [B, channels[0], h, w], with the weights of this network."""
        return nn.Sequential(*list(chain_of(self.body).values())[: self.position])

    @property
    def late(self) -> nn.Module:
        """[B, channels[0], h, w] -> [B, channels[1], h', w'], with the weights of this network."""
        pooling = [nn.MaxPool2d(self.pooling)] if self.pooling > 1 else []
        return nn.Sequential(*pooling, *list(chain_of(self.body).values())[self.position : self.end])


class Activations(NamedTuple):
    """What one pass through a `BasNetwork` gives.

    Attributes:
        features: [B, C, h, w], of which the maps are made ("F").
        class_maps: [B, K, h', w'] activations of the classes before they are averaged ("Z").
        maps: [B, K, h, w] in 0..1 ("M").
    """

    features: Tensor
    class_maps: Tensor
    maps: Tensor

    @property
    def logits(self) -> Tensor:
        """[B, K]: the scores of the classes."""
        return self.class_maps.mean((2, 3))


class BasNetwork(nn.Module):
    """A cut backbone, a classifier after its late part and a generator of maps after its early part.

    Both heads are new; the form of the extension, in which no ReLU follows the classifier.
    """

    def __init__(self, backbone: SplitBackbone, classes: int, hidden: int = 1024, *, gaussian: bool = False) -> None:
        """Build the heads with random weights.

        Args:
            backbone: the cut backbone.
            classes: K.
            hidden: channels of the classifier's two 3x3 convolutions; 0 is a classifier of one 1x1 convolution, and
                then neither head has a bias.
            gaussian: draw the heads' weights from N(0, 0.02), as for VGG, instead of Glorot's uniform distribution.
        """
        super().__init__()
        early, late = backbone.channels
        self.backbone = backbone
        self.classifier = _classifier(late, hidden, classes)
        self.generator = nn.Conv2d(early, classes, 3, padding=1, bias=hidden > 0)
        for module in (*self.classifier.modules(), self.generator):
            if isinstance(module, nn.Conv2d):
                _initialize(module, gaussian)

    @property
    def late_part(self) -> nn.Module:
        """Features of the early part -> [B, K, h', w'] activations, with the weights of this network."""
        return nn.Sequential(self.backbone.late, self.classifier)

    def activations(self, image: Tensor) -> Activations:
        """[B, 3, H, W] float, normalised -> features, activations of the classes and maps."""
        features = self.backbone.early(image)
        return Activations(features, self.late_part(features), self.generator(features).sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised -> [B, K] logits."""
        return self.late_part(self.backbone.early(image)).mean((2, 3))

    def maps(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised -> [B, K, h, w] in 0..1."""
        return self.generator(self.backbone.early(image)).sigmoid()


def _classifier(inputs: int, hidden: int, classes: int) -> nn.Module:
    if not hidden:
        return nn.Conv2d(inputs, classes, 1, bias=False)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, classes, 1),
    )


def _initialize(conv: nn.Conv2d, gaussian: bool) -> None:
    if gaussian:
        nn.init.normal_(conv.weight, std=_GAUSSIAN_STD)
    else:
        nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def split_backbone(backbone: Backbone, name: str, stride: int = 0) -> SplitBackbone:
    """Cut a backbone after one of its features.

    Args:
        backbone: any whose features are those of a chain of stages.
        name: of the backbone, for messages.
        stride: cut after the last feature of this stride but the very last; 0 = after the second-last feature.

    Raises:
        UserError: it has no such feature, or is no chain of stages.
    """
    candidates = [index for index, own in enumerate(backbone.strides[:-1]) if stride in (0, own)]
    if not candidates:
        strides = ", ".join(map(str, sorted(set(backbone.strides[:-1]))))
        raise UserError(f"--map-stride {stride}: backbone '{name}' has features of strides {strides} to make maps of")
    tap = candidates[-1]
    chain = chain_of(backbone.body)
    position = _position(backbone, chain, tap)
    if position is None:
        raise UserError(f"backbone '{name}' is no chain of stages that could be cut; --backbone resnet50")
    return SplitBackbone(backbone.body, position, (backbone.channels[tap], backbone.channels[-1]))


def chain_of(body: nn.Module) -> OrderedDict[str, nn.Module]:
    """The stages of a network in their order, those within `blocks` one by one."""
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in body.named_children():
        if name == "blocks":
            chain.update((f"{name}_{number}", block) for number, block in enumerate(module.children()))
        else:
            chain[name] = module
    return chain


@torch.no_grad()
def _position(backbone: Backbone, chain: Mapping[str, nn.Module], tap: int) -> int | None:
    """How many stages it takes to the feature of this number; None if the chain does not end as the backbone does."""
    training = backbone.training
    backbone.eval()
    x = torch.linspace(-1, 1, 3 * PROBE_SIDE**2).view(1, 3, PROBE_SIDE, PROBE_SIDE)
    features = backbone(x)
    position = None
    try:
        for number, stage in enumerate(chain.values(), start=1):
            x = stage(x)
            if _same(x, features[tap]):
                position = number
    except (RuntimeError, TypeError):
        return None  # stages that cannot be called one after the other
    finally:
        backbone.train(training)
    return position if _same(x, features[-1]) else None


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool(torch.equal(first, second))


class Cut(NamedTuple):
    """Where the paper cuts a backbone, and what it changes.

    Attributes:
        early: the last stage before the cut.
        late: the last stage that is kept.
        channels: after both.
        pooled: whether the late part starts with a 2x2 maximum that the backbone does not have.
        gaussian: as in `BasNetwork`.
    """

    early: str
    late: str
    channels: tuple[int, int]
    pooled: bool = False
    gaussian: bool = False


CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        "vgg16": Cut("features_22", "features_29", (512, 512), gaussian=True),
        "resnet50": Cut("layer3", "layer4", (1024, 2048), pooled=True),
        "mobilenetv1_100": Cut("blocks_3", "blocks_4", (512, 1024)),
        "inception_v3": Cut("Mixed_6e", "Mixed_7c", (768, 2048)),
    }
)
"""The backbones of the paper by timm's names: relu4_3 of VGG-16, the third stage of ResNet-50, and so on."""


def localization_backbone(name: str, weights: str | Path | None) -> SplitBackbone:
    """A backbone of `CUTS` in the paper's form for one class per image: maps of stride 8, activations of stride 16.

    Args:
        name: possibly with the tag of its weights, such as "resnet50.tv_in1k".
        weights: as for `create_backbone`.

    Raises:
        UserError: as `create_backbone`.
        BadFile: as `create_backbone`.
    """
    network = name.partition(".")[0]
    cut = CUTS[network]
    body = create_backbone(name, _FULL_STRIDE, weights).body
    if network in _RESHAPED:
        _RESHAPED[network](body)
    names = list(chain_of(body))
    return SplitBackbone(
        body, names.index(cut.early) + 1, cut.channels, names.index(cut.late) + 1, pooling=2 if cut.pooled else 1
    )


def _without_stride(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)


def _reshape_resnet(body: nn.Module) -> None:
    _without_stride(body.get_submodule("layer3"))
    _without_stride(body.get_submodule("layer4"))


def _reshape_mobilenet(body: nn.Module) -> None:
    _without_stride(body.get_submodule("blocks.3"))


def _reshape_inception(body: nn.Module) -> None:
    """Paddings that make 28 x 28 of 224 x 224 pixels, and no stride in the second reduction."""
    _convolution(body.get_submodule("Conv2d_1a_3x3")).padding = (1, 1)
    for name in ("Pool1", "Pool2"):
        body.set_submodule(name, nn.MaxPool2d(3, 2, padding=1, ceil_mode=True))
    names: tuple[tuple[str, ...], ...] = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
    body.set_submodule("Mixed_6a", Reduction(body.get_submodule("Mixed_6a"), names, stride=1))
    names = (("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{number}" for number in range(1, 5)))
    body.set_submodule("Mixed_7a", Reduction(body.get_submodule("Mixed_7a"), names, stride=2))


class Reduction(nn.Module):
    """An inception that ends in 3x3 convolutions and a maximum of one stride, all padded by 1."""

    def __init__(self, block: nn.Module, branches: tuple[tuple[str, ...], ...], stride: int) -> None:
        """Take over the convolutions of timm's block.

        Args:
            block: with the convolutions as children.
            branches: names of the convolutions of each branch; the last of each gets the stride and the padding.
            stride: of the last layer of every branch.
        """
        super().__init__()
        chains = [nn.Sequential(*(block.get_submodule(name) for name in names)) for names in branches]
        for chain in chains:
            last = _convolution(chain[-1])
            last.stride, last.padding = (stride, stride), (1, 1)
        self.branches = nn.ModuleList([*chains, nn.MaxPool2d(3, stride, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, sum of the branches, ceil(h / stride), ceil(w / stride)]."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _convolution(block: Any) -> nn.Conv2d:
    """The convolution of timm's convolution with normalisation."""
    conv: nn.Conv2d = block.conv
    return conv


_RESHAPED = MappingProxyType(
    {
        "resnet50": _reshape_resnet,
        "mobilenetv1_100": _reshape_mobilenet,
        "inception_v3": _reshape_inception,
    }
)


def create_network(name: str, weights: str | Path | None, classes: int, hidden: int) -> BasNetwork:
    """The network of the paper for one class per image.

    Args:
        name: of `CUTS`, possibly with the tag of its weights.
        weights: as for `create_backbone`.
        classes: K.
        hidden: as in `BasNetwork`.
    """
    gaussian = CUTS[name.partition(".")[0]].gaussian
    return BasNetwork(localization_backbone(name, weights), classes, hidden, gaussian=gaussian)
