"""Stripe scenes: shapes whose class is told by a stripe far away, so that only a view of the whole image knows it.

Discs and boxes lie in the lower half of the image, a red or a blue stripe runs along its top. The class of a shape is
the color of the stripe; its own outline and color say nothing.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.random import Generator

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes.backgrounds import blurred_ground, grainy
from labelwise.datasets.shapes.canvas import color_word, random_color
from labelwise.datasets.shapes.captions import captions
from labelwise.datasets.shapes.labels import labeled_sample, without_hidden
from labelwise.datasets.shapes.options import ShapesOptions, random_state
from labelwise.samples import Sample

STRIPE_CLASSES = Classes(("background", "below_red", "below_blue"))
"""The classes of stripe scenes."""

_OUTLINES = ("disc", "box")
_STRIPES = ("red", "blue")
_HUES = (0.0, 0.62)
_STRIPE_HEIGHT = (0.06, 0.1)
"as a share of the image's size"
_ROWS = (0.62, 0.85)
"of the shapes' middles"
_RADIUS = (0.08, 0.14)
_COUNTS = (2, 4)
"shapes in a scene, before those that others hide wholly are left out"
_NOISE = 0.05


def stripe_scene(options: ShapesOptions, split: str, index: int) -> Sample:
    """Draw one stripe scene with all its labels.

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
    stripe = int(rng.integers(len(_STRIPES)))
    image[: round(size * rng.uniform(*_STRIPE_HEIGHT))] = _stripe_color(stripe, rng)
    visible = np.zeros((size, size), dtype=np.int64)
    things: list[tuple[str, int]] = []
    for number in range(1, 1 + int(rng.integers(_COUNTS[0], _COUNTS[1] + 1))):
        outline, color = int(rng.integers(len(_OUTLINES))), random_color(rng)
        inside = _inside(outline, size, rng)
        image[inside] = color
        visible[inside] = number
        things.append((color_word(color), outline))
    visible, kept = without_hidden(visible, len(things))
    seen = [things[number] for number in kept]
    pixels = grainy(image, _NOISE, rng)
    return labeled_sample(
        f"{split}_{index:06d}",
        pixels,
        visible,
        [1 + stripe] * len(seen),
        captions([(word, _OUTLINES[outline]) for word, outline in seen], visible, f"{_STRIPES[stripe]}-striped"),
        STRIPE_CLASSES,
    )


def _stripe_color(stripe: int, rng: Generator) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.normal(_HUES[stripe], 0.02) % 1, 0.85, rng.uniform(0.6, 0.9)))


def _inside(outline: int, size: int, rng: Generator) -> np.ndarray:
    """[size, size] bool: where a disc (0) or a box (1) lies."""
    y, x = np.mgrid[:size, :size] + 0.5
    row, column = rng.uniform(*_ROWS) * size, rng.uniform(0.12, 0.88) * size
    radius = rng.uniform(*_RADIUS) * size
    u, v = np.abs(x - column), np.abs(y - row)
    return np.hypot(u, v) <= radius if outline == 0 else np.maximum(u, v) <= 0.9 * radius
