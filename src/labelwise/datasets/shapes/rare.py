"""Rare scenes: shapes on a soft ground, seven times as many of the commonest class as of the rarest.

Outline and color both tell the class, so that a small network learns it in seconds, of the classes that it has seen
enough of. Clicks at random hardly ever hit the rare ones. For experiments of minutes with methods that choose which
pixels are to be labelled.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes.backgrounds import grainy
from labelwise.datasets.shapes.canvas import color_word, random_color
from labelwise.datasets.shapes.captions import captions
from labelwise.datasets.shapes.labels import labeled_sample, without_hidden
from labelwise.datasets.shapes.options import ShapesOptions, random_state
from labelwise.datasets.shapes.textures import noise
from labelwise.samples import Sample

RARE_CLASSES = Classes(("background", "disc", "box", "kite", "beam", "ring"))
"""The classes of rare scenes, the commonest object first."""
RARE_FREQUENCIES = (0.35, 0.27, 0.21, 0.12, 0.05)
"""How often a shape is drawn as each of them; those that others hide wholly are left out afterwards."""

_HUES = (0.0, 0.3, 0.6, 0.13, 0.8)
"of vivid colors, as in colorsys"
_COUNTS = (2, 4)
"shapes in a scene"
_RADIUS = (0.12, 0.22)
"half the size of a shape, as a share of the image's"
_TINT = 0.2
"range of the ground's colors around gray"
_NOISE = 0.05


def rare_scene(options: ShapesOptions, split: str, index: int) -> Sample:
    """Draw one rare scene with all its labels.

    Args:
        options: the size of the image.
        split: `train` or `val`.
        index: position in the split.

    Returns:
        A sample as `scene` gives it, but without points of its own: then every pixel of its mask can be asked for.
    """
    rng = random_state(options, split, index)
    size = options.size
    image = _ground(size, rng)
    visible = np.zeros((size, size), dtype=np.int64)
    labels = 1 + rng.choice(len(RARE_FREQUENCIES), int(rng.integers(_COUNTS[0], _COUNTS[1] + 1)), p=RARE_FREQUENCIES)
    words = []
    for number, label in enumerate(labels.tolist(), start=1):
        inside, color = _place(label, size, rng), random_color(rng, _HUES[label - 1])
        image[inside] = color
        visible[inside] = number
        words.append((color_word(color), RARE_CLASSES.names[label]))
    visible, kept = without_hidden(visible, len(labels))
    pixels = grainy(image, _NOISE, rng)
    sample = labeled_sample(
        f"{split}_{index:06d}",
        pixels,
        visible,
        [int(labels[number]) for number in kept],
        captions([words[number] for number in kept], visible, "blurred"),
        RARE_CLASSES,
    )
    return replace(sample, points=None, point_labels=None)


def _ground(size: int, rng: Generator) -> np.ndarray:
    """[size, size, 3] float from 0 to 1: clouds of a dull color."""
    gray, *tints = (noise(rng, size, size, (3, 3)) for _ in range(4))
    return 0.3 + 0.4 * gray[..., None] + _TINT * (np.stack(tints, axis=-1) - 0.5)


def _place(label: int, size: int, rng: Generator) -> np.ndarray:
    """[size, size] bool: a shape of this class anywhere."""
    y, x = np.mgrid[:size, :size] + 0.5
    radius = rng.uniform(*_RADIUS) * size
    column, row = rng.uniform(0.12, 0.88, 2) * size
    u, v = np.abs(x - column), np.abs(y - row)
    match RARE_CLASSES.names[label]:
        case "disc":
            return np.hypot(u, v) <= radius
        case "box":
            return np.maximum(u, v) <= 0.9 * radius
        case "kite":
            return u + v <= 1.25 * radius
        case "beam":
            return (u <= 1.4 * radius) & (v <= 0.5 * radius)
        case _:
            return np.abs(np.hypot(u, v) - 0.8 * radius) <= 0.35 * radius
