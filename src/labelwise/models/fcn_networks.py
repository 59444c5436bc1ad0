"""The trunks of FCN by name, and the ImageNet weights they start from.

Expected weights and inputs, all RGB:

* `vgg16`, `alexnet_tv`, `googlenet_tv`: torchvision's or timm's weights and their normalisation. torchvision's AlexNet
  has 64-192-384-256-256 channels, no groups and no response normalisation; its GoogLeNet has BatchNorm, 3x3 where the
  original has 5x5 convolutions, and takes images scaled to -1..1.
* `caffenet`, `googlenet`: the original networks, with weights in Caffe's layer names (`conv1.weight`,
  `inception_3a/1x1.weight`, ...) for BGR images of 0..255 minus the mean. The first convolution is turned to RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from labelwise.errors import UserError
from labelwise.models.backbones import create_backbone
from labelwise.models.fcn_trunks import (
    STRIDES,
    BackboneTrunk,
    Trunk,
    alexnet_tv_trunk,
    caffenet_trunk,
    googlenet_trunk,
    googlenet_tv_trunk,
    vgg_tiny_trunk,
    vgg_trunk,
)
from labelwise.models.weights import check_keys, classifier_weights, read_weights

CAFFE_MEAN = (122.67892 / 255, 116.66877 / 255, 104.00699 / 255)
"""Mean of RGB in the ImageNet images of Caffe's models, which are scaled to 0..255."""
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True)
class _Network:
    """How a trunk is built and where its weights come from."""

    build: Callable[[bool], Trunk]
    classifier: str | None = None
    "torchvision's name of the classifier with these weights"
    caffe: bool = False
    "made for Caffe's input, with weights in Caffe's layer names"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


NETWORKS: dict[str, _Network] = {
    "vgg16": _Network(vgg_trunk, "vgg16"),
    "caffenet": _Network(caffenet_trunk, caffe=True, mean=CAFFE_MEAN, std=CAFFE_STD),
    "alexnet_tv": _Network(alexnet_tv_trunk, "alexnet"),
    "googlenet": _Network(googlenet_trunk, caffe=True, mean=CAFFE_MEAN, std=CAFFE_STD),
    "googlenet_tv": _Network(googlenet_tv_trunk, "googlenet", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "vgg_tiny": _Network(vgg_tiny_trunk),
}
"""The trunks of our own; every other name is one of `create_backbone`."""


def pixel_statistics(name: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation of RGB in 0..1 that a trunk expects; None = those of ImageNet."""
    network = NETWORKS.get(name)
    return (network.mean, network.std) if network and network.mean and network.std else None


def create_trunk(name: str, padded: bool, weights: str | Path | None) -> Trunk | BackboneTrunk:
    """Build a trunk.

    Args:
        name: one of `NETWORKS`, or a backbone of `create_backbone` that can have output stride 32.
        padded: the form with 100 pixels around the image; other backbones have no such form.
        weights: "imagenet", a file (see this module's head), or None or "none" for random weights.

    Raises:
        UserError: an unknown name, or weights that cannot be had.
        BadFile: the file does not exist, cannot be read, or is not of this network.
    """
    known = None if weights in (None, "none") else weights
    if name not in NETWORKS:
        return BackboneTrunk(create_backbone(name, STRIDES[-1], known))
    trunk = NETWORKS[name].build(padded)
    if known is not None:
        load_classifier(trunk, name, known)
    return trunk


def load_classifier(trunk: Trunk, name: str, weights: str | Path) -> None:
    """Fill a trunk with the weights of a classifier.

    Args:
        trunk: of any widths.
        name: of `NETWORKS`.
        weights: "imagenet" or a file.

    Raises:
        UserError: the weights cannot be had.
        BadFile: the file is not of this network.
    """
    network = NETWORKS[name]
    if weights == "imagenet" and network.classifier is None:
        raise UserError(f"backbone '{name}' has no ImageNet weights to fetch; --backbone-weights FILE or none")
    if network.classifier is None:
        found = read_weights(Path(weights))
    else:
        found = classifier_weights(network.classifier, weights)
    state = dict(_as_own(found, trunk.state_dict(), caffe=network.caffe))
    if weights != "imagenet":
        check_keys(Path(weights), name, state, trunk.state_dict(), classifier=())
    trunk.load_state_dict(state, strict=False)


_FULLY_CONNECTED = {"classifier.0": "fc6", "classifier.1": "fc6", "classifier.3": "fc7", "classifier.4": "fc7"}
"""torchvision's fc6 and fc7 of VGG (0, 3) and of AlexNet (1, 4); what follows is the ImageNet classifier."""
_NOT_OURS = ("classifier.6.", "fc.", "fc8.", "aux1.", "aux2.", "loss1.", "loss2.", "loss3.")
_FIRST = ("conv1.weight", "conv1.7x7_s2.weight")


def _as_own(found: Mapping[str, Tensor], own: Mapping[str, Tensor], *, caffe: bool) -> Iterator[tuple[str, Tensor]]:
    """Layers in our names; fully connected ones as convolutions, the first of Caffe's turned from BGR to RGB."""
    for key, value in found.items():
        key = key.replace("/", ".")
        if key.startswith(_NOT_OURS):
            continue
        layer, _, part = key.rpartition(".")
        layer = layer.removeprefix("features.").removeprefix("layers.")
        name = f"layers.{_FULLY_CONNECTED.get(layer, layer)}.{part}"
        if caffe and key in _FIRST:
            value = value.flip(1)
        yield name, _as_convolution(value, own.get(name))


def _as_convolution(value: Tensor, own: Tensor | None) -> Tensor:
    if own is None or own.ndim != 4 or value.ndim != 2 or value.numel() != own.numel():
        # Not a fully connected layer of this network: whoever checks the shapes will say so.
        return value
    return fc_to_conv(value, *own.shape[2:])


def fc_to_conv(weight: Tensor, height: int, width: int) -> Tensor:
    """The weight of a fully connected layer as that of a convolution with the same outputs.

    Args:
        weight: [O, C * height * width]; the channel is the slowest index of what was flattened.
        height: of the feature map that was flattened.
        width: of it.

    Returns:
        [O, C, height, width].
    """
    return weight.view(weight.shape[0], -1, height, width)
