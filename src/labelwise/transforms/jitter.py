"""Photometric changes as in contrastive learning (SimCLR, Chen et al., ICML 2020), of an amount to be chosen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from labelwise.transforms.strong import ColorJitter, blur_with

SIGMA = (0.1, 2.0)


class TruncatedGaussianBlur(v2.Transform):
    """A Gaussian blur of random standard deviation, 0.1 to 2 pixels, cut off beyond a tenth of the image's short side.

    The kernel has int(0.1 * short // 2 * 2) + 1 weights, so that small images are blurred less.
    """

    _transformed_types = (tv_tensors.Image,)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the standard deviation."""
        return {"sigma": torch.empty(()).uniform_(*SIGMA).item()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Blur one image."""
        kernel = truncated_kernel(min(inpt.shape[-2:]), params["sigma"])
        return tv_tensors.wrap(blur_with(inpt.as_subclass(Tensor), kernel), like=inpt)


def truncated_kernel(short: int, sigma: float) -> list[float]:
    """The weights for an image whose short side has so many pixels.

    Args:
        short: in pixels.
        sigma: standard deviation in pixels.

    Returns:
        An odd number of weights that add up to 1; those beyond 5 standard deviations, which nothing in 8 bits shows,
        are left out.
    """
    radius = min(int(0.1 * short // 2), math.ceil(5 * sigma))
    weights = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def color_changes(amounts: tuple[float, float, float, float]) -> v2.Transform:
    """Color jitter (4 of 5 images), gray scale (1 of 5) and blur (every other).

    Args:
        amounts: of brightness, contrast, saturation and hue, as of `torchvision.transforms.v2.ColorJitter`.

    Returns:
        A transform of a [3, H, W] uint8 `tv_tensors.Image` to another of the same size.
    """
    brightness, contrast, saturation, hue = amounts
    jitter = ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    return v2.Compose(
        [
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([TruncatedGaussianBlur()], p=0.5),
        ]
    )
