"""Scenes: objects on a cluttered ground, and every kind of label from one map of the visible pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes.backgrounds import GROUNDS, illumination, paint_ground
from labelwise.datasets.shapes.canvas import Layer, color_word, paint, random_color, shaded
from labelwise.datasets.shapes.captions import captions
from labelwise.datasets.shapes.labels import labeled_sample
from labelwise.datasets.shapes.options import ShapesOptions, random_state
from labelwise.datasets.shapes.outlines import OUTLINES, Outline, blob, shard, stroke
from labelwise.datasets.shapes.textures import TEXTURES, dots, plain
from labelwise.samples import Sample

CLASSES = Classes(("background", *OUTLINES))
"""The classes of object scenes."""

FREQUENCIES = {
    "ball": 0.20,
    "ring": 0.12,
    "star": 0.16,
    "leaf": 0.14,
    "cup": 0.12,
    "key": 0.09,
    "fish": 0.10,
    "ladder": 0.07,
}
"""How often an object is drawn as each class; those that others hide are left out afterwards."""

_COUNTS = (0.25, 0.4, 0.25, 0.1)
"how often a scene is given 1, 2, 3 and 4 objects"
_RADIUS = (0.22, 0.45)
"of an object, as a share of the image's size"
_GROWTH = {"key": 1.3, "ladder": 1.15}
"thin things are longer than the others, so that their parts cover whole pixels"
_WAVELENGTH = (0.085, 0.125)
"of a surface pattern, as a share of the image's size"
TYPICAL_COLOR = 0.75
"""Share of the objects that have their class's usual color; the others have any, as clutter and grounds have."""
_HUES = {
    "ball": 0.0,
    "star": 0.13,
    "leaf": 0.29,
    "ring": 0.42,
    "cup": 0.55,
    "fish": 0.66,
    "key": 0.79,
    "ladder": 0.9,
}
"usual hues, as in colorsys; neighbors overlap"
_TURNS = {"cup": 0.5, "ladder": 0.7, "fish": 0.6}
"radians to either side; things that have an upper side do not turn over"
_LEAST_VISIBLE = 0.3
"share of an object's pixels, and of those that tell its class; an object that shows less is taken out of the scene"


@dataclass(frozen=True)
class Thing:
    """An object of a scene, in one or two layers."""

    label: int
    layers: tuple[Layer, ...]

    @property
    def cover(self) -> np.ndarray:
        """[size, size] bool: the pixels that are at least half covered."""
        return np.max([layer.coverage for layer in self.layers], axis=0) > 127

    @property
    def telling(self) -> np.ndarray:
        """[size, size] bool: the pixels of the layer that tells the class."""
        return self.layers[-1].coverage > 127

    @property
    def word(self) -> str:
        """The color that a caption names."""
        return color_word(self.layers[0].colors[0])


def scene(options: ShapesOptions, split: str, index: int) -> Sample:
    """Draw one scene with all its labels.

    Args:
        options: what the scenes look like; the numbers of images and the label noise play no part.
        split: `train`, `val` or `ood` (no object in the picture).
        index: position in the split.

    Returns:
        A sample with every field set. Instances are ordered from back to front; there is one point per object,
        at a pixel (column, row) well inside its visible part.

    Raises:
        UserError: the generator has no such split.
    """
    rng = random_state(options, split, index)
    home = _draw_class(rng)
    adjective, ground = GROUNDS[home]
    tones = _ground_colors(rng)
    image = paint_ground(ground, tones, options.size, rng)
    things, front, visible = _arrange(options, home, tones, rng, empty=split == "ood")
    accents = [color for thing in things for layer in thing.layers for color in layer.colors]
    for layer in _clutter(options, accents, rng):
        paint(image, layer, rng)
    for layer in (*(layer for thing in things for layer in thing.layers), *front):
        paint(image, layer, rng)
    pixels = _photograph(image, rng)
    words = [(thing.word, CLASSES.names[thing.label]) for thing in things]
    labels = [thing.label for thing in things]
    sentences = captions(words, visible, adjective)
    return labeled_sample(f"{split}_{index:06d}", pixels, visible, labels, sentences, CLASSES)


def class_at_home(options: ShapesOptions, split: str, index: int) -> int:
    """The number of the class on whose own ground a scene plays."""
    return CLASSES.number(_draw_class(random_state(options, split, index)))


def _draw_class(rng: Generator) -> str:
    return str(rng.choice(list(FREQUENCIES), p=list(FREQUENCIES.values())))


def _ground_colors(rng: Generator) -> np.ndarray:
    base = random_color(rng)
    # Half the contrast of an object's surface, so that grounds lie behind the objects.
    return np.stack([base, (base + shaded(base, rng)) / 2, random_color(rng)])


def _arrange(
    options: ShapesOptions, home: str, tones: np.ndarray, rng: Generator, *, empty: bool
) -> tuple[list[Thing], list[Layer], np.ndarray]:
    """Place objects until at least one is to be seen; objects that are mostly hidden are left out.

    Returns:
        The things from back to front, the twigs in front of them, the map of visible objects [size, size] int64.
    """
    size = options.size
    while True:
        front = [_distractor(size, stroke, [], rng) for _ in range(int(rng.random() < 0.3))]
        hidden = np.max([np.zeros((size, size)), *(layer.coverage for layer in front)], axis=0) > 127
        things = [] if empty else _things(options, home, tones, rng)
        covers = np.array([thing.cover for thing in things], dtype=bool).reshape(-1, size, size)
        tells = np.array([thing.telling for thing in things], dtype=bool).reshape(-1, size, size)
        kept = _recognizable(_shown(covers, hidden), covers, tells)
        if empty or kept.any():
            shown = _shown(covers[kept], hidden)
            visible = (shown * np.arange(1, len(shown) + 1)[:, None, None]).sum(axis=0)
            return [thing for thing, keep in zip(things, kept, strict=True) if keep], front, visible


def _shown(covers: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """[N, H, W] bool: of each cover the pixels that no later cover, and nothing in front of all, hides."""
    later = np.cumsum(covers[::-1], axis=0)[::-1] - covers
    return covers & (later == 0) & ~hidden


def _recognizable(shown: np.ndarray, covers: np.ndarray, tells: np.ndarray) -> np.ndarray:
    """[N] bool: whether enough is shown of each whole cover, and of what tells its class."""
    area, part = shown.sum(axis=(1, 2)), (shown & tells).sum(axis=(1, 2))
    enough = area >= np.maximum(_LEAST_VISIBLE * covers.sum(axis=(1, 2)), np.prod(shown.shape[1:]) / 400)
    return enough & (part >= np.maximum(_LEAST_VISIBLE * tells.sum(axis=(1, 2)), 1))


def _things(options: ShapesOptions, home: str, tones: np.ndarray, rng: Generator) -> list[Thing]:
    things: list[Thing] = []
    for _ in range(1 if options.single else 1 + int(rng.choice(len(_COUNTS), p=_COUNTS))):
        name = home if rng.random() < options.context else _draw_class(rng)
        radius = options.size * float(np.exp(rng.uniform(*np.log(_RADIUS))))
        center = rng.uniform(0.12, 0.88, 2) * options.size
        if things and rng.random() < 0.45:
            neighbor = things[-1].layers[0]
            direction = rng.uniform(0, 2 * np.pi)
            reach = 0.8 * (neighbor.radius + radius)
            center = np.array(neighbor.center) + reach * np.array([np.cos(direction), np.sin(direction)])
            center = np.clip(center, 0.08 * options.size, 0.92 * options.size)
        make = _with_part if options.parts else _whole
        things.append(make(name, options.size, center, radius, tones, rng))
    return things


def _whole(
    name: str, size: int, center: np.ndarray, radius: float, tones: np.ndarray, rng: Generator, fineness: float = 1
) -> Thing:
    turn = _TURNS.get(name, np.pi)
    layer = Layer(
        size=size,
        outline=OUTLINES[name](rng),
        texture=TEXTURES[name],
        wavelength=rng.uniform(*_WAVELENGTH) * size / fineness,
        colors=_object_colors(name, tones, rng),
        center=(float(center[0]), float(center[1])),
        radius=radius * _GROWTH.get(name, 1),
        angle=rng.uniform(-turn, turn),
        mirrored=rng.random() < 0.5,
    )
    return Thing(CLASSES.number(name), (layer,))


def _with_part(name: str, size: int, center: np.ndarray, radius: float, tones: np.ndarray, rng: Generator) -> Thing:
    """A plain lump of no class that carries a small object of the class at its rim."""
    direction = rng.uniform(0, 2 * np.pi)
    outward = np.array([np.cos(direction), np.sin(direction)])
    body = Layer(
        size=size,
        outline=blob(rng),
        texture=plain,
        wavelength=radius,
        colors=_object_colors(None, tones, rng),
        center=(float(center[0]), float(center[1])),
        radius=radius,
        angle=rng.uniform(-np.pi, np.pi),
        mirrored=False,
    )
    at_rim = np.clip(center + 0.65 * radius * outward, 0.1 * size, 0.9 * size)
    # A pattern as coarse as on a whole object would need more room than a part has.
    part = _whole(name, size, at_rim, 0.45 * radius, tones, rng, fineness=1.7)
    return Thing(part.label, (body, *part.layers))


def _object_colors(name: str | None, tones: np.ndarray, rng: Generator) -> np.ndarray:
    """Two colors of one object, the first set off from the ground where one of a few draws is."""
    hue = _HUES[name] if name is not None and rng.random() < TYPICAL_COLOR else None
    candidates = np.stack([random_color(rng, hue) for _ in range(6)])
    distance = np.abs(candidates - tones.mean(axis=0)).sum(axis=1)
    base = candidates[np.argmax(distance > 0.6)]
    other = shaded(base, rng) if hue is not None or rng.random() < 0.7 else random_color(rng)
    return np.stack([base, other])


def _clutter(options: ShapesOptions, accents: list[np.ndarray], rng: Generator) -> list[Layer]:
    # With parts, a lump is what the objects' bodies look like; there it must not be background as well.
    outlines = (stroke, shard) if options.parts else (stroke, shard, stroke, blob)
    count = int(rng.integers(3, 9))
    return [_distractor(options.size, outlines[int(rng.integers(len(outlines)))], accents, rng) for _ in range(count)]


def _distractor(size: int, outline: Callable[[Generator], Outline], accents: list[np.ndarray], rng: Generator) -> Layer:
    """A thing of no class, often in an object's color and sometimes with a class's surface."""
    borrowed = accents and rng.random() < 0.6
    base = accents[int(rng.integers(len(accents)))] if borrowed else random_color(rng)
    textures = [texture for texture in TEXTURES.values() if texture is not dots]  # a dotted lump would pass for a ball
    texture = textures[int(rng.integers(len(textures)))] if rng.random() < 0.15 else plain
    x, y = rng.uniform(0, size, 2)
    return Layer(
        size=size,
        outline=outline(rng),
        texture=texture,
        wavelength=rng.uniform(*_WAVELENGTH) * size,
        colors=np.stack([base, shaded(base, rng)]),
        center=(float(x), float(y)),
        radius=size * rng.uniform(0.05, 0.22),
        angle=rng.uniform(-np.pi, np.pi),
        mirrored=False,
    )


def _photograph(image: np.ndarray, rng: Generator) -> np.ndarray:
    """Light, a little blur and sensor noise; [H, W, 3] uint8."""
    lit = np.clip(image * illumination(len(image), rng), 0, 1)
    noisy = 255 * lit + rng.uniform(1, 5) * rng.standard_normal(lit.shape, dtype=np.float32)
    picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return np.array(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.5))))
