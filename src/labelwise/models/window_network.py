"""The network of R-CNN: a classifier of windows, and what is fitted on its features afterwards.

Features of a window come from three layers. Of the paper's networks these are pool5, fc6 and fc7, as they were trained
for ImageNet; of any other backbone "pool5" is its last map, averaged into a small grid, and both others are its mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from labelwise.errors import UserError
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.box_ridge import BoxRidge
from labelwise.models.fcn_networks import create_trunk
from labelwise.models.fcn_trunks import Trunk
from labelwise.models.region_warp import WarpMode, warp_masks, warp_regions

Layer = Literal["pool5", "fc6", "fc7"]
Strategy = Literal["full", "fg", "full+fg"]
CLASSIFIERS = {"vgg16": (224, 1), "caffenet": (227, 0), "alexnet_tv": (224, 2)}
"""The networks with fc6 and fc7: side of their windows, and padding of their first layer."""
_LARGEST_GRID = 4
_AT_ONCE = 128
"""Windows that pass the network together, so that thousands need little memory."""


class WindowFeatures(NamedTuple):
    """What is computed of N windows, not scaled."""

    pool5: Tensor
    "[N, D5], where in the window something is"
    fc6: Tensor
    "[N, D]"
    fc7: Tensor
    "[N, D]"

    def layer(self, name: Layer) -> Tensor:
        """Those of one layer."""
        features: Tensor = getattr(self, name)
        return features


class ClassifierBody(nn.Module):
    """VGG-16, CaffeNet or AlexNet as the ImageNet classifier that it was, up to fc7.

    Attributes:
        widths: dimensions of pool5, fc6 and fc7.
    """

    def __init__(self, backbone: Trunk, padding: int) -> None:
        """Take the layers.

        Args:
            backbone: the trunk, of which fc6 and fc7 are convolutions.
            padding: of its first convolution.
        """
        super().__init__()
        self.backbone = backbone
        layers = dict(backbone.layers.named_children())
        first, fc6, fc7 = (layers[name] for name in (next(iter(layers)), "fc6", "fc7"))
        assert isinstance(first, nn.Conv2d) and isinstance(fc6, nn.Conv2d) and isinstance(fc7, nn.Conv2d)
        first.padding = (padding, padding)
        fc6.padding = (0, 0)
        self.widths = (fc6.weight[0].numel(), fc6.out_channels, fc7.out_channels)

    def forward(self, windows: Tensor) -> WindowFeatures:
        """[N, 3, s, s] normalised."""
        found = []
        x = windows
        for name, layer in self.backbone.layers.named_children():
            if name == "fc6":
                found.append(x.flatten(1))
            x = layer(x)
            if name in ("drop6", "drop7"):
                found.append(x.flatten(1))
        return WindowFeatures(*found)


class PooledBody(nn.Module):
    """Any backbone; attributes as those of `ClassifierBody`."""

    def __init__(self, backbone: Backbone, size: int) -> None:
        """Take a backbone.

        Args:
            backbone: of which the last map counts.
            size: side of the windows.
        """
        super().__init__()
        self.backbone = backbone
        self.grid = max(1, min(_LARGEST_GRID, size // backbone.strides[-1]))
        channels = backbone.channels[-1]
        self.widths = (channels * self.grid**2, channels, channels)

    def forward(self, windows: Tensor) -> WindowFeatures:
        """[N, 3, s, s] normalised."""
        last = self.backbone(windows)[-1]
        mean = last.mean((2, 3))
        return WindowFeatures(adaptive_avg_pool2d(last, self.grid).flatten(1), mean, mean)


def create_window_body(
    name: str, size: int, output_stride: int, weights: str | Path | None
) -> ClassifierBody | PooledBody:
    """Build the part of a window network that is pretrained.

    Args:
        name: of `CLASSIFIERS`, or a backbone of `create_backbone`.
        size: side of the windows.
        output_stride: of other backbones, as in `create_backbone`.
        weights: as in `create_backbone`.

    Raises:
        UserError: an unknown name, weights that cannot be had, or windows of another size than the network takes.
        BadFile: the file of weights does not exist, cannot be read, or is not of this network.
    """
    if name not in CLASSIFIERS:
        return PooledBody(create_backbone(name, output_stride, weights), size)
    wanted, padding = CLASSIFIERS[name]
    if size != wanted:
        raise UserError(f"--crop {size}: backbone '{name}' takes windows of {wanted} pixels; --crop {wanted}")
    trunk = create_trunk(name, False, weights)
    assert isinstance(trunk, Trunk)
    return ClassifierBody(trunk, padding)


class WindowClassifier(nn.Module):
    """A classifier of windows into K classes of objects and background."""

    def __init__(self, body: ClassifierBody | PooledBody, objects: int) -> None:
        """Add an untrained last layer.

        Args:
            body: from `create_window_body`.
            objects: K.
        """
        super().__init__()
        self.body = body
        self.fc8 = nn.Linear(body.widths[2], objects + 1)
        nn.init.normal_(self.fc8.weight, std=0.01)
        nn.init.zeros_(self.fc8.bias)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows [N, 3, s, s], normalised -> logits [N, K + 1], background first."""
        return self.classified(self.body(windows))

    def classified(self, features: WindowFeatures) -> Tensor:
        """Logits [N, K + 1], background first."""
        logits: Tensor = self.fc8(features.fc7)
        return logits

    def features(
        self, image: Tensor, boxes: Tensor, size: int, pad: int, mode: WarpMode
    ) -> Iterator[tuple[Tensor, WindowFeatures]]:
        """Warp boxes of one image and compute their features, some at a time.

        Args:
            image: [3, H, W] normalised.
            boxes: [N, 4] half-open in its pixels.
            size: as in `crop_geometry`.
            pad: likewise.
            mode: likewise.

        Yields:
            the boxes [M, 4] and their features, until all N have come.
        """
        for part in boxes.split(_AT_ONCE) if len(boxes) else ():
            windows, _ = warp_regions(image, part, size, pad, mode)
            yield part, self.body(windows)


class WindowNetwork(WindowClassifier):
    """A window classifier, and later a machine and a ridge per class.

    Attributes:
        fitted: [] bool, whether machines and ridges are there.
        feature_scale: [] by which features are multiplied before `svm_weight`.
        pool5_scale: [] likewise before the ridges.
        svm_weight: [D, K].
        svm_bias: [K]; -inf of a class that was never seen.
        ridge_weight: [K, D5 + 1, 4] of each class's `BoxRidge`.
        ridge_unwhiten: [K, 4, 4] likewise.
        ridge_mean: [K, 4] likewise.
    """

    fitted: Tensor
    feature_scale: Tensor
    pool5_scale: Tensor
    svm_weight: Tensor
    svm_bias: Tensor
    ridge_weight: Tensor
    ridge_unwhiten: Tensor
    ridge_mean: Tensor

    def __init__(self, body: ClassifierBody | PooledBody, objects: int, layer: Layer) -> None:
        """Build it with nothing fitted.

        Args:
            body: from `create_window_body`.
            objects: K.
            layer: whose features the machines see.
        """
        super().__init__(body, objects)
        self.layer: Layer = layer
        width, none = width_of(body, layer), BoxRidge.none(body.widths[0])
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("feature_scale", torch.ones(()))
        self.register_buffer("pool5_scale", torch.ones(()))
        self.register_buffer("svm_weight", torch.zeros(width, objects))
        self.register_buffer("svm_bias", torch.full((objects,), -torch.inf))
        self.register_buffer("ridge_weight", none.weight.repeat(objects, 1, 1))
        self.register_buffer("ridge_unwhiten", none.unwhiten.repeat(objects, 1, 1))
        self.register_buffer("ridge_mean", none.mean.repeat(objects, 1))

    def margins(self, features: WindowFeatures) -> Tensor:
        """What the machines say, [N, K]; -inf of a class that was never seen."""
        scaled = features.layer(self.layer).float() * self.feature_scale
        with full_precision(scaled):
            return scaled @ self.svm_weight + self.svm_bias

    def offsets(self, features: WindowFeatures) -> Tensor:
        """What the ridges say, [N, K, 4]."""
        scaled = features.pool5.float() * self.pool5_scale
        with full_precision(scaled):
            whitened = torch.einsum("nd,kdo->nko", scaled, self.ridge_weight[:, :-1]) + self.ridge_weight[:, -1]
            return torch.einsum("nko,kop->nkp", whitened, self.ridge_unwhiten) + self.ridge_mean


class RegionNetwork(WindowClassifier):
    """A window classifier, and later a regressor per class of how well a region covers it.

    Attributes:
        scale: [] by which features are multiplied.
        svr_weight: [D, K].
        svr_bias: [K].
    """

    scale: Tensor
    svr_weight: Tensor
    svr_bias: Tensor

    def __init__(self, body: ClassifierBody | PooledBody, objects: int, layer: Layer, strategy: Strategy) -> None:
        """Build it with nothing fitted: every region has quality 0.

        Args:
            body: from `create_window_body`.
            objects: K.
            layer: whose features the regressors see.
            strategy: of the window (`full`), of the region alone (`fg`), or both.
        """
        super().__init__(body, objects)
        self.layer: Layer = layer
        self.strategy: Strategy = strategy
        width = width_of(body, layer) * (2 if strategy == "full+fg" else 1)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("svr_weight", torch.zeros(width, objects))
        self.register_buffer("svr_bias", torch.zeros(objects))

    def region_features(
        self, image: Tensor, masks: Tensor, boxes: Tensor, size: int, pad: int, mode: WarpMode
    ) -> Tensor:
        """The features of regions, not scaled (section 5 of the paper).

        Args:
            image: [3, H, W] normalised.
            masks: [R, H, W] bool.
            boxes: [R, 4] around them.
            size: as in `crop_geometry`.
            pad: likewise.
            mode: likewise.

        Returns:
            [R, D].
        """
        found = [torch.zeros(0, len(self.svr_weight), device=image.device)]
        for part, its_masks in zip(boxes.split(_AT_ONCE), masks.split(_AT_ONCE), strict=True) if len(boxes) else ():
            windows, _ = warp_regions(image, part, size, pad, mode)
            shown = warp_masks(its_masks, part, size, pad, mode)
            alone = windows * shown[:, None]
            inputs = {"full": [windows], "fg": [alone], "full+fg": [windows, alone]}[self.strategy]
            found.append(torch.cat([self.body(each).layer(self.layer).float() for each in inputs], dim=1))
        return torch.cat(found)

    def qualities(self, features: Tensor) -> Tensor:
        """The IoU that each region [R, D] is expected to have with each class, [R, K]."""
        scaled = features * self.scale
        with full_precision(scaled):
            return scaled @ self.svr_weight + self.svr_bias


def width_of(body: ClassifierBody | PooledBody, layer: Layer) -> int:
    """Dimensions of a layer's features."""
    return body.widths[WindowFeatures._fields.index(layer)]


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """No autocast: what was fitted in float32 orders windows that half precision cannot tell apart."""
    return torch.autocast(tensor.device.type, enabled=False)
