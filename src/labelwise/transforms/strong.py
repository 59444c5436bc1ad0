"""The photometric changes of strong views: those of the FixMatch family, on uint8 tensors.

Brightness, contrast, saturation and grey scale are torchvision's. Its change of hue and its blur are slow, so both are
written out here: a uint8 crop of 321x321 takes 2.0 ms of one core for the hue (torchvision 5.8, Pillow 4.0) and 1.7 ms
for the blur (torchvision 6.4, Pillow 2.5).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as nn_functional
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional


class ColorJitter(v2.ColorJitter):
    """torchvision's color jitter, with a faster change of hue."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change brightness, contrast, saturation and hue in the order drawn."""
        changes = (
            (functional.adjust_brightness, params["brightness_factor"]),
            (functional.adjust_contrast, params["contrast_factor"]),
            (functional.adjust_saturation, params["saturation_factor"]),
            (shift_hue, params["hue_factor"]),
        )
        image = inpt.as_subclass(Tensor)
        for number in params["fn_idx"].tolist():
            change, amount = changes[number]
            if amount is not None:
                image = change(image, amount)
        return tv_tensors.wrap(image, like=inpt)


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """Turn the hue and keep saturation and value, as `torchvision.transforms.v2.functional.adjust_hue` does.

    The chroma, that is the distance of the largest and smallest channel, stays; a channel rises from the smallest to
    the largest value and falls back along the circle of hues, at its own phase.

    Args:
        image: [3, H, W] uint8.
        shift: share of the circle, in [-0.5, 0.5].

    Returns:
        [3, H, W] uint8.
    """
    red, green, blue = image.float().unbind(0)
    largest, smallest = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    is_red, is_green, turn = largest == red, largest == green, 6 * shift
    ahead = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sector = torch.where(is_red, turn, torch.where(is_green, 2 + turn, 4 + turn))
    # In sixths of the circle from red; gray has no hue, and with a chroma of 0 none is needed.
    hue = ahead.div_(chroma.clamp(min=1)).add_(sector).remainder_(6)
    smallest += 0.5
    turned = torch.empty_like(image)
    for channel, share in enumerate(((hue - 3).abs_().sub_(1), _falling(hue, 2), _falling(hue, 4))):
        turned[channel] = share.clamp_(0, 1).mul_(chroma).add_(smallest)
    return turned


def _falling(hue: Tensor, peak: int) -> Tensor:
    return (hue - peak).abs_().neg_().add_(2)


class GaussianBlur(v2.Transform):
    """Pillow's Gaussian blur with a random radius.

    Pillow blurs three times with a box whose ends have a fractional weight, so that the standard deviation is exact
    at every radius. The three boxes are one kernel of 7 (sigma below 1.41) or 13 pixels, applied here directly, with
    one rounding instead of six. Beyond the border the image is continued by its last pixel, once and not before each
    box, so the outermost pixels differ a little from Pillow's.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        """Remember the range.

        Args:
            sigma: least and greatest standard deviation in pixels.
        """
        super().__init__()
        self.sigma = sigma

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the standard deviation."""
        return {"sigma": torch.empty(()).uniform_(*self.sigma).item()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Blur one image."""
        return tv_tensors.wrap(gaussian_blur(inpt.as_subclass(Tensor), params["sigma"]), like=inpt)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur as `PIL.ImageFilter.GaussianBlur(sigma)` does.

    Args:
        image: [C, H, W] uint8.
        sigma: standard deviation in pixels.

    Returns:
        [C, H, W] uint8.
    """
    return blur_with(image, pillow_kernel(sigma))


def blur_with(image: Tensor, kernel: list[float]) -> Tensor:
    """Blur rows and columns with a symmetric kernel; beyond the border the image is continued by its last pixel.

    Args:
        image: [C, H, W] uint8.
        kernel: an odd number of weights that add up to 1.

    Returns:
        [C, H, W] uint8.
    """
    radius = len(kernel) // 2
    # Channel by channel, since what a channel needs stays in the cache.
    return torch.stack([_blur_channel(channel, kernel, radius) for channel in image])


def pillow_kernel(sigma: float) -> list[float]:
    """The weights of Pillow's Gaussian blur: three times a box of fractional length (Gwosdek et al., SSVM 2011)."""
    variance = sigma * sigma / 3
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = torch.ones(2 * whole + 3, dtype=torch.float64)
    box[[0, -1]] = end
    box /= box.sum()
    twice = nn_functional.conv1d(box.view(1, 1, -1), box.view(1, 1, -1), padding=len(box) - 1)
    weights: list[float] = nn_functional.conv1d(twice, box.view(1, 1, -1), padding=len(box) - 1).flatten().tolist()
    return weights


def _blur_channel(channel: Tensor, kernel: list[float], radius: int) -> Tensor:
    padded = nn_functional.pad(channel[None, None].float(), (radius,) * 4, mode="replicate")[0, 0]
    return _blur_axis(_blur_axis(padded, 0, kernel, radius), 1, kernel, radius).add_(0.5).to(torch.uint8)


def _blur_axis(padded: Tensor, axis: int, kernel: list[float], radius: int) -> Tensor:
    # Adding shifted copies is two to three times faster than a convolution of one channel.
    length = padded.shape[axis] - 2 * radius
    total = padded.narrow(axis, radius, length) * kernel[radius]
    for shift in range(1, radius + 1):
        total.add_(padded.narrow(axis, radius - shift, length), alpha=kernel[radius - shift])
        total.add_(padded.narrow(axis, radius + shift, length), alpha=kernel[radius + shift])
    return total


def photometric(blur: tuple[float, float] = (0.1, 2.0)) -> v2.Transform:
    """The photometric changes of the FixMatch family, in their order: jitter, grey scale, blur.

    Args:
        blur: least and greatest standard deviation of the blur in pixels.

    Returns:
        A transform of a [3, H, W] uint8 `tv_tensors.Image` to another of the same size.
    """
    return v2.Compose(
        [
            v2.RandomApply([ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([GaussianBlur(sigma=blur)], p=0.5),
        ]
    )
