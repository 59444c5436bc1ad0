"""Head scenes: one object with a large pale body and a small vivid head, whose color is the class.

A classifier looks at the head; the body's color, which only leans to that of its class, adds little. What is to be
found is the whole object. For experiments of minutes with methods that find objects from tags.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.random import Generator

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes.backgrounds import grainy
from labelwise.datasets.shapes.captions import captions
from labelwise.datasets.shapes.labels import labeled_sample
from labelwise.datasets.shapes.options import ShapesOptions, random_state
from labelwise.datasets.shapes.textures import noise
from labelwise.samples import Sample

HEAD_CLASSES = Classes(("background", "redhead", "greenhead", "bluehead"))
"""The classes of head scenes."""

_HUES = (0.0, 0.33, 0.62)
_WORDS = ("red", "green", "blue")
_RADIUS = (0.19, 0.3)
"half a body's length and width, as a share of the image's size"
_HEAD = 0.07
"radius, as a share of the image's size"
_LEAN = 0.06
"standard deviation of a body's hue around its class's"
_TINT = 0.2
"range of the ground's colors around gray"
_NOISE = 0.04


def head_scene(options: ShapesOptions, split: str, index: int) -> Sample:
    """Draw one head scene with all its labels.

    Args:
        options: the size of the image.
        split: `train` or `val`.
        index: position in the split.

    Returns:
        A sample with every field set, as `scene` gives it.
    """
    rng = random_state(options, split, index)
    size, label = options.size, int(rng.integers(1, len(HEAD_CLASSES)))
    gray, *tints = (noise(rng, size, size, (3, 3)) for _ in range(4))
    image = 0.3 + 0.4 * gray[..., None] + _TINT * (np.stack(tints, axis=-1) - 0.5)
    body, head = _places(size, rng)
    image[body] = _color(rng.normal(_HUES[label - 1], _LEAN), (0.25, 0.4), rng)
    image[head] = _color(rng.normal(_HUES[label - 1], 0.02), (0.85, 1.0), rng)
    pixels = grainy(image, _NOISE, rng)
    visible = (body | head).astype(np.int64)
    return labeled_sample(
        f"{split}_{index:06d}",
        pixels,
        visible,
        [label],
        captions([("pale", f"body with a {_WORDS[label - 1]} head")], visible, "blurred"),
        HEAD_CLASSES,
    )


def _places(size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """[size, size] bool twice: an ellipse, and a disc at its rim."""
    y, x = np.mgrid[:size, :size] + 0.5
    center, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(*_RADIUS, 2) * size
    direction = rng.uniform(0, 2 * np.pi)
    middle = center + radius * np.array([np.cos(direction), np.sin(direction)])
    middle = np.clip(middle, _HEAD * size, (1 - _HEAD) * size)
    body = ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 <= 1
    return body, np.hypot(x - middle[0], y - middle[1]) <= _HEAD * size


def _color(hue: float, saturation: tuple[float, float], rng: Generator) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(0.55, 0.95)))
