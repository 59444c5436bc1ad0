"""Texture scenes: patches of four patterns on a smooth ground, on which methods are told apart in minutes.

The class is the pattern and never the color, so that a change of color keeps it. A network that has seen few masks
overfits to their colors, which bare images can mend.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes.backgrounds import blurred_ground, grainy
from labelwise.datasets.shapes.canvas import color_word
from labelwise.datasets.shapes.captions import captions
from labelwise.datasets.shapes.labels import labeled_sample, without_hidden
from labelwise.datasets.shapes.options import ShapesOptions, random_state
from labelwise.samples import Sample

PATCH_CLASSES = Classes(("background", "rows", "columns", "checks", "plain"))
"""The classes of texture scenes."""

_WORDS = ("", "patch of rows", "patch of columns", "patch of checks", "plain patch")
"what captions call an object of each class"
_COUNTS = (2, 4)
"patches in a scene, before those that others hide wholly are left out"
_RADIUS = (0.15, 0.3)
"half a patch's side, as a share of the image's size"
_PERIOD = (4.0, 7.0)
"of the patterns, in pixels"
_CONTRAST = (0.1, 0.3)
"between a pattern's two colors, per channel from 0 to 1"
_NOISE = 0.07


def patch_scene(options: ShapesOptions, split: str, index: int) -> Sample:
    """Draw one texture scene with all its labels.

    Args:
        options: the size of the image.
        split: `train` or `val`.
        index: position in the split.

    Returns:
        A sample with every field set, as `scene` gives it.
    """
    rng = random_state(options, split, index)
    size = options.size
    image = blurred_ground(size, rng)
    visible = np.zeros((size, size), dtype=np.int64)
    things: list[tuple[str, int]] = []
    for number in range(1, 1 + int(rng.integers(_COUNTS[0], _COUNTS[1] + 1))):
        label = int(rng.integers(1, len(PATCH_CLASSES)))
        inside, color = _paint_patch(image, label, rng)
        visible[inside] = number
        things.append((color_word(color), label))
    visible, kept = without_hidden(visible, len(things))
    pixels = grainy(image, _NOISE, rng)
    words = [(things[number][0], _WORDS[things[number][1]]) for number in kept]
    return labeled_sample(
        f"{split}_{index:06d}",
        pixels,
        visible,
        [things[number][1] for number in kept],
        captions(words, visible, "blurred"),
        PATCH_CLASSES,
    )


def _paint_patch(image: np.ndarray, label: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paint an ellipse or a rectangle; where it is, and its first color."""
    size = len(image)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    center, radius = rng.uniform(0.15, 0.85, 2) * size, rng.uniform(*_RADIUS, 2) * size
    u, v = np.abs(x - center[0]) / radius[0], np.abs(y - center[1]) / radius[1]
    inside = (u**2 + v**2 <= 1) if rng.random() < 0.5 else (np.maximum(u, v) <= 1)
    low = rng.uniform(0.1, 0.6, 3)
    colors = np.stack([low, low + rng.uniform(*_CONTRAST, 3)])[rng.permutation(2)]
    period, phase = rng.uniform(*_PERIOD), rng.uniform(0, 1, 2)
    along, across = (np.floor(2 * (axis / period + shift)) % 2 for axis, shift in zip((x, y), phase, strict=True))
    pattern = _PATTERNS[label](along, across)
    image[inside] = colors[pattern[inside].astype(np.int64)]
    return inside, colors[0]


_PATTERNS: dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    1: lambda along, across: across,
    2: lambda along, across: along,
    3: lambda along, across: (along + across) % 2,
    4: lambda along, across: np.zeros_like(along),
}
"class number -> from halves of a period along and across (0 or 1) to the number of the color"
