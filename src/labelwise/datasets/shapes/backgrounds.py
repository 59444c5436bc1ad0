"""Grounds: the textured backgrounds on which scenes stand, and the light that falls on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from labelwise.datasets.shapes.textures import noise, octaves, sharpened

Ground = Callable[[int, Generator], np.ndarray]
"""(size, rng) -> [size, size] values between 0 and 1 that mix the ground's colors."""


def _axes(size: int, rng: Generator, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates from 0 to 1, tilted by up to `tilt` radians, with a random origin."""
    x = np.arange(size) / size
    y = x[:, None]
    angle = rng.uniform(-tilt, tilt)
    shift = rng.uniform(0, 1, 2)
    return x * np.cos(angle) + y * np.sin(angle) + shift[0] + 1, y * np.cos(angle) - x * np.sin(angle) + shift[1] + 1


def _per_cell(column: np.ndarray, row: np.ndarray, rng: Generator) -> np.ndarray:
    """A random value for every (column, row) of a tiling."""
    table = rng.random((64, 64))
    return table[row.astype(int) % 64, column.astype(int) % 64]


def grassy(size: int, rng: Generator) -> np.ndarray:
    """Short upright blades."""
    blades = noise(rng, size, size, (int(rng.integers(30, 44)), int(rng.integers(7, 12))))
    return np.clip(0.7 * sharpened(2 * blades - 1, 2) + 0.3 * octaves(rng, size, 3, 2), 0, 1)


def sandy(size: int, rng: Generator) -> np.ndarray:
    """Fine grains on soft dunes."""
    grains = noise(rng, size, size, (48, 48))
    return 0.45 * grains + 0.55 * octaves(rng, size, 2, 2)


def cloudy(size: int, rng: Generator) -> np.ndarray:
    """Large soft billows."""
    return np.clip(1.6 * octaves(rng, size, int(rng.integers(3, 5)), 4) - 0.3, 0, 1)


def leafy(size: int, rng: Generator) -> np.ndarray:
    """Curled ridges, as of foliage."""
    cells = int(rng.integers(9, 14))
    ridges = np.abs(2 * noise(rng, size, size, (cells, cells)) - 1)
    return np.clip(1.2 * (1 - 1.6 * ridges) * octaves(rng, size, 5, 2) + 0.15, 0, 1)


def tiled(size: int, rng: Generator) -> np.ndarray:
    """Square tiles of different shades with joints."""
    x, y = _axes(size, rng, 0.4)
    count = rng.uniform(5, 9)
    shade = 0.3 + 0.5 * _per_cell(np.floor(x * count), np.floor(y * count), rng)
    joint = np.minimum((x * count) % 1, (y * count) % 1) < 0.13
    return np.where(joint, 0.0, shade)


def wooden(size: int, rng: Generator) -> np.ndarray:
    """Planks with wavy grain."""
    x, y = _axes(size, rng, 0.5)
    planks = rng.uniform(3, 6)
    plank = np.floor(y * planks)
    shade = _per_cell(np.zeros_like(plank), plank, rng)
    grain = np.sin(2 * np.pi * (y * rng.uniform(14, 22) + 0.6 * np.sin(2 * np.pi * x + 6 * shade)))
    return np.where((y * planks) % 1 < 0.1, 0, 0.3 + 0.35 * shade + 0.2 * grain)


def wavy(size: int, rng: Generator) -> np.ndarray:
    """Ripples, as of water."""
    x, y = _axes(size, rng, 0.3)
    swell = rng.uniform(0.1, 0.3) * np.sin(2 * np.pi * x * rng.uniform(1.5, 3)) + 1.2 * octaves(rng, size, 3, 1)
    return np.clip(0.5 + 0.4 * np.sin(2 * np.pi * (y * rng.uniform(6, 10) + swell)) + 0.1 * (x - y), 0, 1)


def brick(size: int, rng: Generator) -> np.ndarray:
    """Courses of bricks with mortar."""
    x, y = _axes(size, rng, 0.25)
    courses = rng.uniform(7, 11)
    row = np.floor(y * courses)
    along = x * courses / 2.2 + 0.5 * (row % 2)
    shade = 0.45 + 0.4 * _per_cell(np.floor(along), row, rng) + 0.15 * noise(rng, size, size, (30, 30))
    mortar = ((y * courses) % 1 < 0.18) | (along % 1 < 0.08)
    return np.where(mortar, 0.0, shade)


GROUNDS: dict[str, tuple[str, Ground]] = {
    "ball": ("grassy", grassy),
    "ring": ("sandy", sandy),
    "star": ("cloudy", cloudy),
    "leaf": ("leafy", leafy),
    "cup": ("tiled", tiled),
    "key": ("wooden", wooden),
    "fish": ("wavy", wavy),
    "ladder": ("brick", brick),
}
"""The ground on which each object class is at home: its adjective and its pattern."""


def paint_ground(ground: Ground, colors: np.ndarray, size: int, rng: Generator) -> np.ndarray:
    """Color a ground and drift its color slowly over the image.

    Args:
        ground: the pattern.
        colors: [3, 3] float RGB from 0 to 1: two that the pattern mixes, one that the drift brings in.
        size: width and height.
        rng: source of the variation.

    Returns:
        [size, size, 3] float64, about 0 to 1.
    """
    pattern = ground(size, rng)[..., None]
    drift = 0.5 * octaves(rng, size, 2, 2)[..., None]
    return (1 - drift) * (pattern * colors[0] + (1 - pattern) * colors[1]) + drift * colors[2]


def illumination(size: int, rng: Generator) -> np.ndarray:
    """The light over the image: a slope in a random direction with a soft spot; [size, size, 1] factors around 1."""
    x = np.arange(size) / size - 0.5
    y = x[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.5) * (np.cos(angle) * x + np.sin(angle) * y)
    center = rng.uniform(-0.5, 0.5, 2)
    spot = rng.uniform(-0.2, 0.3) * np.exp(-4 * ((x - center[0]) ** 2 + (y - center[1]) ** 2))
    return (rng.uniform(0.85, 1.1) + slope + spot)[..., None]


def blurred_ground(size: int, rng: Generator) -> np.ndarray:
    """A ground of soft colors that tells nothing, for scenes of experiments. -> [size, size, 3] from 0.25 to 0.75."""
    return 0.25 + 0.5 * np.stack([noise(rng, size, size, (3, 3)) for _ in range(3)], axis=-1)


def grainy(image: np.ndarray, deviation: float, rng: Generator) -> np.ndarray:
    """A picture with a sensor's noise. [H, W, 3] from 0 to 1 -> [H, W, 3] uint8."""
    pixels = image + deviation * rng.standard_normal(image.shape)
    return (255 * np.clip(pixels, 0, 1)).astype(np.uint8)
