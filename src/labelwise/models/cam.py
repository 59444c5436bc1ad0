"""Class activation maps: a classifier whose last layers say where in the image a class was found.

The network ends in a convolution, the mean over all positions and a linear layer without bias. Both are linear, so
they may change places: a logit is the mean of a map of its class, and where that map is high the class was found
(Zhou et al., CVPR 2016).

    A_c(p) = ReLU(w_c . f(p)),      logit_c = mean over p of w_c . f(p)

Maps of several scales and of the mirrored image are added up (Ahn and Kwak, CVPR 2018; Ahn, Cho and Kwak, CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import InterpolationMode, resize

from labelwise.models.backbones import Backbone

COARSE_STRIDE = 4
"""Pixels of the image per pixel of a coarse map."""
LEAST_MAXIMUM = 1e-5
"""Added to the maximum by which a map is divided."""


class CamNetwork(nn.Module):
    """A backbone and a linear layer without bias over its last feature."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        """Put a classifier of random weights on a backbone.

        Args:
            backbone: of which the last feature is used.
            classes: K.
        """
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], classes, 1, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] normalised images -> [B, C, h, w], the last feature."""
        features: Tensor = self.backbone(x)[-1]
        return features

    def logits(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, K]."""
        scores: Tensor = self.classifier(features.mean((2, 3), keepdim=True))
        return scores.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] normalised images -> [B, K] logits."""
        return self.logits(self.features(x))

    def maps(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] normalised images -> [B, K, h, w] class activation maps, not negative."""
        return cam_from_features(self.features(x), self.classifier.weight)


def cam_from_features(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps: `ReLU(w_c . f(p))`.

    Args:
        features: [B, C, h, w].
        weight: [K, C] or [K, C, 1, 1], of the linear layer.

    Returns:
        [B, K, h, w].
    """
    return functional.conv2d(features, weight.flatten(1)[:, :, None, None]).relu()


def without_dilation(network: nn.Module) -> None:
    """Make every dilated convolution a plain one of the same weights; strides stay as they are.

    Networks that are given a finer output stride dilate their last layers. IRNet's classifier does not.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and max(module.dilation) > 1:
            module.padding = (module.kernel_size[0] // 2, module.kernel_size[1] // 2)
            module.dilation = (1, 1)


def multi_scale_maps(
    activations: Callable[[Tensor], Tensor],
    images: Tensor,
    columns: Sequence[Tensor],
    scales: Sequence[float],
    flip: bool,
    output_stride: int,
) -> list[tuple[Tensor, Tensor]]:
    """The maps of images of one size, summed over scales and mirrored copies, each divided by its own maximum.

    All images and their mirrored copies are one batch at every scale.

    Args:
        activations: [B, 3, h, w] uint8 images -> [B, K, h', w'] maps that are not negative.
        images: [B, 3, H, W] uint8.
        columns: for every image which of the K maps to keep, [N] int64.
        scales: factors of the image's size.
        flip: add the maps of the mirrored image.
        output_stride: pixels of the image per pixel of a map. A map covers whole steps of it, so the fine maps are
            computed for the image's sides rounded up, 16 ceil(H / 16) with IRNet's network, and cut.

    Returns:
        For every image its fine maps [N, H, W] and coarse maps [N, ceil(H / 4), ceil(W / 4)] float32 from 0 to 1.
    """
    height, width = images.shape[-2:]
    fine_size = [-(-side // output_stride) * output_stride for side in (height, width)]
    coarse_size = [-(-side // COARSE_STRIDE) for side in (height, width)]
    fine: list[Tensor | float] = [0.0] * len(images)
    coarse: list[Tensor | float] = [0.0] * len(images)
    for scale in scales:
        maps = _flip_summed(activations, _scaled(images, scale), flip)
        for place, (its_maps, kept) in enumerate(zip(maps, columns, strict=True)):
            chosen = its_maps[kept.to(its_maps.device)][None].float()
            fine[place] = fine[place] + _resized(chosen, fine_size)[..., :height, :width]
            coarse[place] = coarse[place] + _resized(chosen, coarse_size)
    return [(divided_by_maximum(one), divided_by_maximum(other)) for one, other in zip(fine, coarse, strict=True)]  # type: ignore[arg-type]


def divided_by_maximum(maps: Tensor) -> Tensor:
    """Divide each map by its own maximum. [N, h, w] -> [N, h, w], from 0 to 1."""
    return maps / (maps.amax((1, 2), keepdim=True) + LEAST_MAXIMUM) if len(maps) else maps


def seed(maps: Tensor, labels: Tensor, background: float, background_class: int = 0) -> Tensor:
    """The class of every pixel: that of the greatest map, or the background where none is above its constant.

    Args:
        maps: [N, H, W] from 0 to 1.
        labels: [N] class numbers.
        background: the constant score of the background, which wins ties.
        background_class: its number.

    Returns:
        [H, W] uint8 class numbers.
    """
    constant = maps.new_full((1, *maps.shape[1:]), background)
    numbers = torch.cat([labels.new_full((1,), background_class), labels])
    return numbers[torch.cat([constant, maps]).argmax(0)].to(torch.uint8)


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return resize(images, size, InterpolationMode.BICUBIC, antialias=True)


def _flip_summed(activations: Callable[[Tensor], Tensor], images: Tensor, flip: bool) -> Tensor:
    if not flip:
        return activations(images)
    straight, mirrored = activations(torch.cat([images, images.flip(-1)])).chunk(2)
    return straight + mirrored.flip(-1)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[1, N, h, w] -> [N, *size]."""
    if not maps.shape[1]:
        return maps.new_zeros(0, *size)
    return functional.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)[0]
