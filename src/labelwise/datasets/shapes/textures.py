"""Surface patterns: values between 0 and 1 that mix an object's two colors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image

Texture = Callable[[np.ndarray, np.ndarray, float, Generator], np.ndarray]
"""(u, v, cycles, rng) -> values, with u and v from -1 to 1 along and across the object and `cycles` waves per unit."""


def noise(rng: Generator, width: int, height: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth random values.

    Args:
        rng: source of the values.
        width: columns.
        height: rows.
        cells: random values along x and along y that are interpolated.

    Returns:
        [height, width] float32, about 0 to 1.
    """
    grid = Image.fromarray(rng.random(cells[::-1], dtype=np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def octaves(rng: Generator, size: int, cells: int, count: int) -> np.ndarray:
    """Noise of doubling frequency and halving strength; [size, size] float32, about 0 to 1."""
    weights = 0.5 ** np.arange(count)
    layers = [noise(rng, size, size, (cells * 2**octave, cells * 2**octave)) for octave in range(count)]
    return np.tensordot(weights / weights.sum(), np.stack(layers), axes=1)


def sharpened(wave: np.ndarray, gain: float = 3.0) -> np.ndarray:
    """Turn a wave from -1 to 1 into a pattern from 0 to 1 with soft edges."""
    return np.clip(0.5 + gain * wave / 2, 0, 1)


def dots(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Polka dots on a square lattice."""
    scale = 1.3 * np.pi * cycles
    shift = rng.uniform(0, np.pi, 2)
    return sharpened(np.cos(scale * u + shift[0]) * np.cos(scale * v + shift[1]) * 2 - 0.5)


def rays(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Wedges around the centre."""
    count = max(6, round(4.7 * cycles))
    return sharpened(np.sin(count * np.arctan2(v, u) + rng.uniform(0, 2 * np.pi)))


def ripples(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Circles around the centre."""
    return sharpened(np.sin(2 * np.pi * cycles * np.hypot(u, v) + rng.uniform(0, 2 * np.pi)))


def veins(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Slanted ribs that leave a midrib."""
    ribs = np.sin(2 * np.pi * cycles * (u - rng.uniform(0.8, 1.2) * np.abs(v)) + rng.uniform(0, 2 * np.pi))
    return np.maximum(sharpened(ribs), np.abs(v) < 0.07)


def bands(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Straight stripes across the height."""
    return sharpened(np.sin(2 * np.pi * cycles * v + rng.uniform(0, 2 * np.pi)))


def hatch(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Two crossing sets of slanted lines."""
    scale, shift = 2 * np.pi * cycles, rng.uniform(0, np.pi, 2)
    return sharpened(np.maximum(np.sin(scale * (u + v) + shift[0]), np.sin(scale * (u - v) + shift[1])) * 2 - 1.2)


def scales(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Overlapping arcs in staggered columns."""
    x = 1.2 * cycles * u + rng.uniform()
    column = np.floor(x)
    y = 1.2 * cycles * v + 0.5 * (column % 2)
    distance = np.hypot(x - column, 2 * (y - np.floor(y)) - 1)
    return np.clip(1.6 * np.abs(distance - 0.75), 0, 1)


def notches(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """Slanted warning stripes, close together."""
    return sharpened(np.sin(2.6 * np.pi * cycles * (v + 0.5 * u) + rng.uniform(0, 2 * np.pi)), gain=6)


def plain(u: np.ndarray, v: np.ndarray, cycles: float, rng: Generator) -> np.ndarray:
    """A slow change from one color to the other."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.clip(0.25 + 0.25 * (np.cos(angle) * u + np.sin(angle) * v), 0, 1)


TEXTURES: dict[str, Texture] = {
    "ball": dots,
    "ring": rays,
    "star": ripples,
    "leaf": veins,
    "cup": bands,
    "key": hatch,
    "fish": scales,
    "ladder": notches,
}
"""One surface pattern per object class."""
