"""What detectors compute once per image: a network's convolutions up to one feature map, and the layers on regions.

Expected weights and inputs, all RGB:

* `vgg16` (network L of Fast R-CNN): torchvision's or timm's classifier and its normalisation.
* `caffenet` (S), `vgg_cnn_m_1024` (M) and `zf` (of Faster R-CNN): files with Caffe's layer names (`conv1.weight` to
  `fc7.weight`) for BGR images of 0..255 minus the mean. The first convolution is turned to RGB.
* every backbone of `create_backbone`, at an output stride that it can have; with light layers on the regions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.errors import UserError
from labelwise.models.aspp import initialize_kaiming
from labelwise.models.atrous_vgg import CHANNELS, CONVOLUTIONS
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.fcn_networks import CAFFE_MEAN, CAFFE_STD
from labelwise.models.regions import FullyConnected, RegionHead
from labelwise.models.weights import check_keys, classifier_weights, read_weights

CLASSIFIER_STRIDE = 16
PROBE_SIDE = 64
"""Pixels of an image that every backbone can take."""

Layers = OrderedDict[str, nn.Module]


class DetectionTrunk(nn.Module):
    """A network from images to one feature map.

    Attributes:
        channels: of the map.
        stride: pixels of the image per cell.
    """

    channels: int
    stride: int


class ClassifierTrunk(DetectionTrunk):
    """The convolutions of a classifier of the papers, without its last pooling; stages end before each pooling."""

    def __init__(self, layers: Layers, channels: int) -> None:
        """Take a chain; random weights are Kaiming normal.

        Args:
            layers: by name.
            channels: of the last one.
        """
        super().__init__()
        self.features = nn.Sequential(layers)
        self.channels = channels
        self.stride = CLASSIFIER_STRIDE
        initialize_kaiming(self)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised -> [B, channels, h, w], h and w about H / 16 and W / 16."""
        return self.features(image)

    def stages(self) -> list[list[nn.Parameter]]:
        """The parameters before the first pooling, between this and the second, and so on."""
        found: list[list[nn.Parameter]] = [[]]
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append([])
            found[-1].extend(layer.parameters())
        return found


class FeatureTrunk(DetectionTrunk):
    """The last feature of a backbone."""

    def __init__(self, features: Backbone) -> None:
        super().__init__()
        self.features = features
        self.channels, self.stride = features.channels[-1], features.strides[-1]

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised -> [B, channels, H / stride, W / stride]."""
        return self.features(image)[-1]

    def stages(self) -> list[list[nn.Parameter]]:
        """As of `backbone_stages`."""
        return backbone_stages(self.features)


class RegionNetwork(nn.Module):
    """A trunk, and a head on its regions."""

    def __init__(self, backbone: ClassifierTrunk | FeatureTrunk, head: RegionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """The feature map of images: [B, 3, H, W] -> [B, channels, h, w]."""
        return self.backbone(image)


def _vgg16_layers() -> Layers:
    """conv1_1 to conv5_3, numbered as in torchvision."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in zip(CHANNELS, CONVOLUTIONS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
    return OrderedDict((str(number), layer) for number, layer in enumerate(layers[:-1]))


def _caffenet_layers() -> Layers:
    """CaffeNet with the paddings of the released detector, which centre each cell on its 16 pixels."""
    return OrderedDict(
        conv1=nn.Conv2d(3, 96, 11, stride=4, padding=5),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=nn.ReLU(inplace=True),
    )


def _vgg_cnn_m_layers() -> Layers:
    """VGG_CNN_M_1024 (Chatfield et al.: Return of the Devil in the Details, BMVC 2014)."""
    return OrderedDict(
        conv1=nn.Conv2d(3, 96, 7, stride=2),
        relu1=nn.ReLU(inplace=True),
        norm1=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(96, 256, 5, stride=2, padding=1),
        relu2=nn.ReLU(inplace=True),
        norm2=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv3=nn.Conv2d(256, 512, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(512, 512, 3, padding=1),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(512, 512, 3, padding=1),
        relu5=nn.ReLU(inplace=True),
    )


class WithinChannelNorm(nn.Module):
    """Response normalisation over a window of each channel by itself, as Caffe's ZF has it."""

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        """Set it up.

        Args:
            size: cells along each side of the window.
            alpha: weight of the window's mean square.
            beta: power of what an activation is divided by.
        """
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape: x / (1 + alpha mean(x^2))^beta."""
        mean = functional.avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.alpha * mean) ** -self.beta


def _zf_layers() -> Layers:
    """ZF (Zeiler and Fergus, ECCV 2014) with the paddings of the released detector."""
    return OrderedDict(
        conv1=nn.Conv2d(3, 96, 7, stride=2, padding=3),
        relu1=nn.ReLU(inplace=True),
        norm1=WithinChannelNorm(3, 5e-5, 0.75),
        pool1=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        conv2=nn.Conv2d(96, 256, 5, stride=2, padding=2),
        relu2=nn.ReLU(inplace=True),
        norm2=WithinChannelNorm(3, 5e-5, 0.75),
        pool2=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(384, 256, 3, padding=1),
        relu5=nn.ReLU(inplace=True),
    )


@dataclass(frozen=True)
class _Classifier:
    """A classifier of the papers: its convolutions, and its fully connected layers."""

    layers: Callable[[], Layers]
    channels: int
    size: int
    "bins along each side of what fc6 takes"
    widths: tuple[int, int]
    caffe: bool = False


CLASSIFIERS: dict[str, _Classifier] = {
    "vgg16": _Classifier(_vgg16_layers, 512, 7, (4096, 4096)),
    "caffenet": _Classifier(_caffenet_layers, 256, 6, (4096, 4096), caffe=True),
    "vgg_cnn_m_1024": _Classifier(_vgg_cnn_m_layers, 512, 6, (4096, 1024), caffe=True),
    "zf": _Classifier(_zf_layers, 256, 6, (4096, 4096), caffe=True),
}
"""The networks with fully connected layers of their own; every other name is one of `create_backbone`."""


def pixel_statistics(name: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation of RGB in 0..1 that a trunk expects; None = those of ImageNet."""
    classifier = CLASSIFIERS.get(name)
    return (CAFFE_MEAN, CAFFE_STD) if classifier and classifier.caffe else None


def create_trunk(
    name: str, weights: str | Path | None, *, output_stride: int = CLASSIFIER_STRIDE, frozen_stages: int = 0
) -> ClassifierTrunk | FeatureTrunk:
    """Build a trunk.

    Args:
        name: of `CLASSIFIERS`, or a backbone of `create_backbone`.
        weights: "imagenet", a file (see this module's head), or None or "none" for random weights.
        output_stride: of the map; 16 for `CLASSIFIERS`.
        frozen_stages: how many stages from the image on are not trained. A stage lies between two reductions of size:
            2 are conv1_1 to conv2_2 of VGG-16, and the stem and first residual stage of a ResNet.

    Raises:
        UserError: an unknown name, an output stride or a number of stages that it cannot have, or weights that cannot
            be had.
        BadFile: the file does not exist, cannot be read, or is not of this network.
    """
    known = None if weights in (None, "none") else weights
    trunk: ClassifierTrunk | FeatureTrunk
    if name not in CLASSIFIERS:
        trunk = FeatureTrunk(create_backbone(name, output_stride, known))
    elif output_stride != CLASSIFIER_STRIDE:
        raise UserError(f"backbone '{name}' has output stride {CLASSIFIER_STRIDE} and no other; --output-stride 16")
    else:
        trunk = ClassifierTrunk(CLASSIFIERS[name].layers(), CLASSIFIERS[name].channels)
        if known is not None:
            trunk.load_state_dict(_of_part(_classifier_state(name, known), "features"))
    _freeze(trunk, name, frozen_stages)
    return trunk


def create_fully_connected(
    name: str,
    weights: str | Path | None,
    *,
    channels: int,
    size: int,
    width: int,
    dropout: float = 0.5,
    ranks: tuple[int, int] = (0, 0),
) -> FullyConnected:
    """The two layers on each region: fc6 and fc7 of a classifier, or new ones.

    Args:
        name: as of `create_trunk`.
        weights: as of `create_trunk`; only classifiers have weights for these layers.
        channels: of the trunk's map.
        size: bins along each side of a pooled region.
        width: outputs of each new layer; a classifier has its own.
        dropout: after each layer.
        ranks: as of `FullyConnected`; without weights alone.

    Raises:
        UserError: a classifier's layers take another size.
        BadFile: as of `create_trunk`.
    """
    if name not in CLASSIFIERS:
        return FullyConnected(channels, size, (width, width), dropout, ranks)
    classifier = CLASSIFIERS[name]
    if size != classifier.size:
        raise UserError(f"--roi-size {size}: fc6 of '{name}' takes --roi-size {classifier.size}")
    layers = FullyConnected(channels, size, classifier.widths, dropout, ranks)
    if weights is not None and weights != "none":
        state = _classifier_state(name, weights)
        layers.load_state_dict({key: value for key, value in state.items() if key.startswith("fc")})
    return layers


def backbone_stages(backbone: Backbone) -> list[list[nn.Parameter]]:
    """The parameters that each feature of a backbone needs and the one before does not, the finest first."""
    named = list(backbone.parameters())
    training = backbone.training
    backbone.eval()
    with torch.enable_grad():
        features = backbone(named[0].new_zeros(1, 3, PROBE_SIDE, PROBE_SIDE))
        reached = [torch.autograd.grad(each.sum(), named, retain_graph=True, allow_unused=True) for each in features]
    backbone.train(training)
    stages, taken = [], [False] * len(named)
    for gradients in reached:
        new = [gradient is not None and not done for gradient, done in zip(gradients, taken, strict=True)]
        stages.append([parameter for parameter, here in zip(named, new, strict=True) if here])
        taken = [done or here for done, here in zip(taken, new, strict=True)]
    return stages


def _freeze(trunk: ClassifierTrunk | FeatureTrunk, name: str, count: int) -> None:
    if not count:
        return
    stages = trunk.stages()
    if not 0 < count <= len(stages):
        raise UserError(f"--frozen-stages {count}: backbone '{name}' has {len(stages)} stages")
    for stage in stages[:count]:
        for parameter in stage:
            parameter.requires_grad_(False)


_TORCHVISION = {"classifier.0": "fc6", "classifier.3": "fc7"}
_UNUSED = ("classifier.6", "fc8")


def _classifier_state(name: str, weights: str | Path) -> dict[str, Tensor]:
    """The tensors `features.*`, `fc6.*` and `fc7.*` of a classifier."""
    classifier = CLASSIFIERS[name]
    if weights == "imagenet" and classifier.caffe:
        raise UserError(f"backbone '{name}' has no ImageNet weights to fetch; --backbone-weights FILE or none")
    found = read_weights(Path(weights)) if classifier.caffe else classifier_weights(name, weights)
    state = dict(_renamed(key, value, classifier.caffe) for key, value in found.items())
    check_keys(Path(weights), name, state, _expected(classifier), _UNUSED)
    return {key: value for key, value in state.items() if key.startswith(("features.", "fc6.", "fc7."))}


def _renamed(key: str, value: Tensor, caffe: bool) -> tuple[str, Tensor]:
    layer, _, part = key.rpartition(".")
    if not caffe:
        return f"{_TORCHVISION.get(layer, layer)}.{part}", value
    if layer.startswith("fc"):
        return key, value
    return f"features.{key}", value.flip(1) if key == "conv1.weight" else value


def _expected(classifier: _Classifier) -> Mapping[str, Tensor]:
    """Tensors of the shapes of a classifier's parts, without content."""
    with torch.device("meta"):
        trunk = ClassifierTrunk(classifier.layers(), classifier.channels)
        layers = FullyConnected(classifier.channels, classifier.size, classifier.widths)
    return {**trunk.state_dict(), **layers.state_dict()}


def _of_part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith(f"{part}.")}
