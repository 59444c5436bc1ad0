"""What Selective Search knows of a region: size, box, and histograms of color and texture (IJCV 2013, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import color

from labelwise.models.selective_search_kernels import count_regions

ColorSpace = Literal["hsv", "lab", "rgi", "hue", "intensity"]

COLOR_BINS = 25
TEXTURE_BINS = 10
ORIENTATIONS = 8
TEXTURE_SIGMA = 1.0
TEXTURE_RANGE = 0.43
"""The derivative, of channels between 0 and 1, that falls into the last bin: a constant of the public code."""


@dataclass(frozen=True)
class RegionDescriptors:
    """The descriptors of n regions."""

    size: NDArray[np.int32]
    "[n] pixels"
    box: NDArray[np.int32]
    "[n, 4] half-open"
    color: NDArray[np.float32]
    "[n, 75], sums of 1"
    texture: NDArray[np.float32]
    "[n, 240], sums of 1"


def convert_color(image: NDArray[np.uint8], space: ColorSpace) -> NDArray[np.uint8]:
    """An RGB image in another color space, each channel scaled to 0..255.

    Args:
        image: [H, W, 3].
        space: `hsv`; `lab`; `rgi`: shares of red and green (0 where all is black) and the intensity; `hue` and
            `intensity`: one channel three times.
    """
    if space == "hsv":
        return _bytes(255 * color.rgb2hsv(image))
    if space == "hue":
        return np.repeat(_bytes(255 * color.rgb2hsv(image)[..., :1]), 3, axis=2)
    if space == "lab":
        return _bytes(color.rgb2lab(image) * (255 / 100, 1, 1) + (0, 128, 128))
    intensity = image @ np.array([0.299, 0.587, 0.114])
    if space == "intensity":
        return np.repeat(_bytes(intensity)[..., None], 3, axis=2)
    shares = 255.0 * image[..., :2] / np.maximum(image.sum(axis=2, keepdims=True), 1.0)
    return _bytes(np.concatenate([shares, intensity[..., None]], axis=2))


def region_descriptors(
    labels: NDArray[np.int32], image: NDArray[np.uint8], *, legacy_texture: bool = False
) -> RegionDescriptors:
    """Describe the regions of an image.

    Args:
        labels: [H, W], numbers 0..n - 1, each in use.
        image: [H, W, 3], in the color space of the strategy.
        legacy_texture: take the texture of the first channel three times, as the public code does.
    """
    return describe_regions(labels, descriptor_bins(image, legacy_texture=legacy_texture))


def descriptor_bins(image: NDArray[np.uint8], *, legacy_texture: bool = False) -> tuple[NDArray, NDArray]:
    """The bins of each pixel: colors [H, W, 3], 0..24, and textures [H, W, 24], 0..9; what regions have in common."""
    texture = texture_bins(image)
    return _color_bin_of_byte()[image], np.tile(texture[..., :ORIENTATIONS], 3) if legacy_texture else texture


def describe_regions(labels: NDArray[np.int32], bins: tuple[NDArray, NDArray]) -> RegionDescriptors:
    """As `region_descriptors`, of the bins of each pixel."""
    colors, textures = bins
    count = int(labels.max()) + 1
    size, box, color_counts = count_regions(labels, colors, count, colors.shape[2] * COLOR_BINS)
    _, _, texture_counts = count_regions(labels, textures, count, textures.shape[2] * TEXTURE_BINS)
    return RegionDescriptors(
        size=size,
        box=box,
        color=_shares(color_counts, size * colors.shape[2]),
        texture=_shares(texture_counts, size * textures.shape[2]),
    )


def texture_bins(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gaussian derivatives along 4 axes, in positive and negative parts. [H, W, C] -> [H, W, 8 C], 0..9."""
    bins = np.empty((*image.shape[:2], ORIENTATIONS * image.shape[2]), np.uint8)
    step = np.float32((TEXTURE_BINS - 1) / TEXTURE_RANGE)
    for channel in range(image.shape[2]):
        for place, axis in enumerate(_derivatives(image[..., channel] / np.float32(255))):
            for side, sign in enumerate((step, -step)):
                rounded = np.clip(sign * axis + np.float32(0.5), 0, TEXTURE_BINS - 1)
                bins[..., ORIENTATIONS * channel + 2 * place + side] = rounded
    return bins


def _derivatives(channel: NDArray) -> tuple[NDArray, ...]:
    """Along x, y and both diagonals. A Gaussian's first derivative is steerable: diagonals need no filter."""
    along_x = ndimage.gaussian_filter(channel, TEXTURE_SIGMA, order=(0, 1), mode="nearest")
    along_y = ndimage.gaussian_filter(channel, TEXTURE_SIGMA, order=(1, 0), mode="nearest")
    half = np.float32(np.sqrt(0.5))
    return along_x, along_y, half * (along_x + along_y), half * (along_x - along_y)


@cache
def _color_bin_of_byte() -> NDArray[np.uint8]:
    """Bins are rounded, not cut: the first and the last are half as wide."""
    return np.floor((COLOR_BINS - 1) * np.arange(256) / 255 + 0.5).astype(np.uint8)


def _bytes(values: NDArray) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _shares(counts: NDArray, totals: NDArray) -> NDArray[np.float32]:
    return (counts / totals[:, None]).astype(np.float32)
