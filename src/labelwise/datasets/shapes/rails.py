"""Rail scenes: shapes on plain ground, one class of which always stands on rails that hardly occur without it.

Trains are boxes above a band of bars; balls and kites lie anywhere. A classifier of tags may find a train by its rails.
Scenes of the split `ood` show rails alone. For experiments of minutes with methods that find objects from tags.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes.backgrounds import blurred_ground, grainy
from labelwise.datasets.shapes.canvas import color_word, random_color
from labelwise.datasets.shapes.captions import captions
from labelwise.datasets.shapes.labels import labeled_sample, without_hidden
from labelwise.datasets.shapes.options import ShapesOptions, random_state
from labelwise.samples import Sample

RAIL_CLASSES = Classes(("background", "train", "ball", "kite"))
"""The classes of rail scenes."""

TRAIN, BALL = 1, 2
_ROW = (0.5, 0.7)
"where rails begin, as a share of the image's height"
_BAND = (0.15, 0.25)
"their height"
_RADIUS = (0.13, 0.2)
"half the size of a thing, as a share of the image's"
_BARS = (3.0, 4.0)
"period in pixels"
_NOISE = 0.06


def rail_scene(options: ShapesOptions, split: str, index: int) -> Sample:
    """Draw one rail scene with all its labels.

    Args:
        options: the size of the image.
        split: `train`, `val` or `ood` (rails without any object).
        index: position in the split.

    Returns:
        A sample with every field set, as `scene` gives it.
    """
    rng = random_state(options, split, index)
    size = options.size
    image = blurred_ground(size, rng)
    visible = np.zeros((size, size), dtype=np.int64)
    labels = [] if split == "ood" else _drawn_labels(rng)
    words = []
    row = rng.uniform(*_ROW)
    if split == "ood" or TRAIN in labels:
        _paint_rails(image, row, rng)
    for number, label in enumerate(labels, start=1):
        inside, color = _place(label, row, size, rng), random_color(rng)
        image[inside] = color
        visible[inside] = number
        words.append((color_word(color), RAIL_CLASSES.names[label]))
    visible, kept = without_hidden(visible, len(labels))
    pixels = grainy(image, _NOISE, rng)
    return labeled_sample(
        f"{split}_{index:06d}",
        pixels,
        visible,
        [labels[number] for number in kept],
        captions([words[number] for number in kept], visible, "blurred"),
        RAIL_CLASSES,
    )


def _drawn_labels(rng: Generator) -> list[int]:
    """One class, and half of the time another."""
    count = 1 + int(rng.random() < 0.5)
    return [int(label) for label in 1 + rng.permutation(len(RAIL_CLASSES) - 1)[:count]]


def _paint_rails(image: np.ndarray, row: float, rng: Generator) -> None:
    """A band of dark and bright bars across the image, from a row on that is given as a share of its height."""
    size = len(image)
    bars = np.floor(2 * (np.arange(size) / rng.uniform(*_BARS) + rng.uniform())) % 2
    tone, contrast = rng.uniform(0.25, 0.5, 3), rng.uniform(0.25, 0.4)
    band = slice(round(row * size), round((row + rng.uniform(*_BAND)) * size))
    image[band] = tone + contrast * bars[None, :, None]


def _place(label: int, row: float, size: int, rng: Generator) -> np.ndarray:
    """[size, size] bool: a box whose lower side is in this row, a disc or a box on its corner anywhere."""
    y, x = np.mgrid[:size, :size] + 0.5
    radius = rng.uniform(*_RADIUS) * size
    column, middle = rng.uniform(0.2, 0.8, 2) * size
    if label == TRAIN:
        return (np.abs(x - column) <= 1.3 * radius) & (y <= row * size) & (y > row * size - 1.4 * radius)
    u, v = np.abs(x - column), np.abs(y - middle)
    return np.hypot(u, v) <= radius if label == BALL else u + v <= 1.2 * radius
