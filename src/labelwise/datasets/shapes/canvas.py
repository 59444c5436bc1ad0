"""Drawing: outlines with a surface, placed in the image, rasterised with soft edges and painted."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from labelwise.datasets.shapes.outlines import Outline
from labelwise.datasets.shapes.textures import Texture

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Layer:
    """An outline with a surface, placed in the image.

    Attributes:
        size: width and height of the image in pixels.
        outline: polygons in a square from -1 to 1.
        texture: the surface pattern.
        wavelength: of the pattern, in pixels.
        colors: [2, 3] float RGB from 0 to 1, mixed by the pattern.
        center: (x, y) in pixels.
        radius: pixels per unit of the outline.
        angle: rotation in radians.
        mirrored: the outline's x axis is flipped.
    """

    size: int
    outline: Outline
    texture: Texture
    wavelength: float
    colors: np.ndarray
    center: tuple[float, float]
    radius: float
    angle: float
    mirrored: bool

    @property
    def _axes(self) -> np.ndarray:
        """[2, 2]: the outline's x and y axis in pixels."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        axes = self.radius * np.array([(cos, sin), (-sin, cos)])
        return axes * [[-1], [1]] if self.mirrored else axes

    @cached_property
    def coverage(self) -> np.ndarray:
        """How much of every pixel the layer covers; [size, size] uint8, 255 = all of it."""
        size = self.size
        polygons = [polygon.points @ self._axes + self.center for polygon in self.outline]
        corners = np.concatenate(polygons)
        left, top = np.clip(np.floor(corners.min(axis=0)) - 1, 0, size).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(axis=0)) + 1, 0, size).astype(int)
        covered = np.zeros((size, size), dtype=np.uint8)
        if left >= right or top >= bottom:
            return covered
        fine = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
        draw = ImageDraw.Draw(fine)
        for polygon, points in zip(self.outline, polygons, strict=True):
            # Pillow counts pixels by their centres, hence the half.
            vertices = (points - (left, top)) * _SUPERSAMPLING - 0.5
            draw.polygon(vertices.ravel().tolist(), fill=0 if polygon.hole else 255)
        covered[top:bottom, left:right] = np.asarray(fine.reduce(_SUPERSAMPLING))
        return covered

    def surface(self, window: tuple[slice, slice], rng: Generator) -> np.ndarray:
        """The color at every pixel of a window, lit from one side; [h, w, 3] float64."""
        rows, columns = window
        x = np.arange(columns.start, columns.stop) + 0.5 - self.center[0]
        y = np.arange(rows.start, rows.stop)[:, None] + 0.5 - self.center[1]
        inverse = np.linalg.inv(self._axes)
        u, v = (x * inverse[0, axis] + y * inverse[1, axis] for axis in (0, 1))
        pattern = self.texture(u, v, self.radius / self.wavelength, rng)[..., None]
        light = 1 + rng.uniform(0.05, 0.2) * (u + v)[..., None]
        return light * (pattern * self.colors[0] + (1 - pattern) * self.colors[1])


def _window(covered: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The smallest rows and columns that hold all nonzero pixels, widened by a margin; None if there are none."""
    ends = [np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0)]
    if not len(ends[0]):
        return None
    low = [max(0, int(end[0]) - margin) for end in ends]
    high = [min(len(covered), int(end[-1]) + 1 + margin) for end in ends]
    return slice(low[0], high[0]), slice(low[1], high[1])


def paint(image: np.ndarray, layer: Layer, rng: Generator) -> None:
    """Paint a layer with a soft shadow onto an image, in place.

    Args:
        image: [size, size, 3] float64 RGB.
        layer: what to paint.
        rng: source of the surface's variation.
    """
    covered = layer.coverage
    blur = max(1.0, 0.12 * layer.radius)
    window = _window(covered, margin=round(3 * blur))
    if window is None:
        return
    alpha = covered[window]
    soft = np.asarray(Image.fromarray(alpha).filter(ImageFilter.BoxBlur(blur)), dtype=np.float64) / 255
    down, right = round(blur), round(blur) // 2
    shadow = np.zeros_like(soft)
    shadow[down:, right:] = soft[: len(soft) - down, : soft.shape[1] - right]
    weight = alpha[..., None] / 255
    # Less light near the rim makes the outline look round and tells it from flat clutter of the same color.
    color = layer.surface(window, rng) * (0.72 + 0.28 * soft[..., None])
    image[window] = weight * color + (1 - weight) * image[window] * (1 - 0.35 * shadow[..., None])


def random_color(rng: Generator, hue: float | None = None) -> np.ndarray:
    """Any hue, from dull to vivid and from dark to bright; [3] float RGB from 0 to 1.

    Args:
        rng: the source of randomness.
        hue: 0 to 1; gives a vivid color of about this hue instead.
    """
    if hue is not None:
        return np.array(colorsys.hsv_to_rgb(rng.normal(hue, 0.03) % 1, rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.95)))
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.1, 0.85), rng.uniform(0.25, 0.95)))


def shaded(color: np.ndarray, rng: Generator) -> np.ndarray:
    """A lighter or darker relative of a color with a slightly other hue."""
    hue, saturation, value = colorsys.rgb_to_hsv(*color)
    step = rng.uniform(0.3, 0.55)
    value = max(0.05, value - step) if value > 0.55 else min(1, value + step)
    return np.array(colorsys.hsv_to_rgb((hue + rng.normal(0, 0.06)) % 1, saturation * rng.uniform(0.4, 1), value))


_HUES = ("red", "orange", "yellow", "green", "green", "cyan", "blue", "blue", "purple", "pink", "red")


def color_word(color: np.ndarray) -> str:
    """The everyday word for an RGB color from 0 to 1."""
    hue, saturation, value = colorsys.rgb_to_hsv(*color)
    if saturation < 0.22:
        return "white" if value > 0.8 else "gray" if value > 0.4 else "dark"
    return _HUES[int(np.searchsorted((0.04, 0.11, 0.19, 0.3, 0.45, 0.54, 0.62, 0.72, 0.83, 0.95), hue))]
