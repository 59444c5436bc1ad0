"""The outlines of the object classes: parametric polygons in a square from -1 to 1, y pointing down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Polygon:
    """A filled polygon, or a hole in what was drawn before it.

    Attributes:
        points: [P, 2] float64 (x, y).
        hole: the polygon is cut out.
    """

    points: np.ndarray
    hole: bool = False


Outline = tuple[Polygon, ...]


def _ellipse(x: float, y: float, width: float, height: float, count: int = 40) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)


def _band(points: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """The polygon of a stroke along [P, 2] points; the width may change along it."""
    along = np.gradient(points, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-9
    offset = across * np.reshape(width, (-1, 1)) / 2
    return np.concatenate([points + offset, (points - offset)[::-1]])


def _rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _bent(outline: Outline, bend: float) -> Outline:
    """Bend the x axis into an arc."""
    return tuple(
        Polygon(part.points + np.stack([np.zeros(len(part.points)), bend * part.points[:, 0] ** 2], axis=1), part.hole)
        for part in outline
    )


def ball(rng: Generator) -> Outline:
    """A disc, a little out of round."""
    return (Polygon(_ellipse(0, 0, 0.8, 0.8 * rng.uniform(0.82, 1))),)


def ring(rng: Generator) -> Outline:
    """A round or oval ring, thin to thick."""
    height, inner = rng.uniform(0.7, 1), rng.uniform(0.45, 0.72)
    return (
        Polygon(_ellipse(0, 0, 0.9, 0.9 * height)),
        Polygon(_ellipse(0, 0, 0.9 * inner, 0.9 * height * inner), hole=True),
    )


def star(rng: Generator) -> Outline:
    """Five to seven pointed arms of unequal length."""
    arms = int(rng.integers(5, 8))
    radius = np.tile([1.0, rng.uniform(0.38, 0.56)], arms) * rng.uniform(0.85, 1.08, 2 * arms)
    angle = np.arange(2 * arms) * np.pi / arms
    return (Polygon(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)),)


def leaf(rng: Generator) -> Outline:
    """A pointed blade with a thin stem, bent along its length."""
    along = np.linspace(0, 1, 24)
    width = rng.uniform(0.4, 0.56) * np.sin(np.pi * along ** rng.uniform(0.75, 1.2)) ** rng.uniform(0.8, 1.2)
    x = -0.6 + 1.6 * along
    blade = np.concatenate([np.stack([x, width], axis=1), np.stack([x, -width], axis=1)[::-1]])
    stem = _band(np.stack([np.linspace(-1, -0.5, 6), np.zeros(6)], axis=1), rng.uniform(0.09, 0.14))
    return _bent((Polygon(blade), Polygon(stem)), rng.uniform(-0.35, 0.35))


def cup(rng: Generator) -> Outline:
    """A tapering body with a thin handle."""
    top, foot = rng.uniform(0.5, 0.66), rng.uniform(0.34, 0.5)
    height = rng.uniform(0.55, 0.85)
    side = [(-top, -height), (-foot, height * 0.85), (-foot * 0.8, height)]
    body = np.array([*side, *((-x, y) for x, y in reversed(side))])
    angle = np.linspace(-0.55 * np.pi, 0.55 * np.pi, 16)
    reach, drop = rng.uniform(0.34, 0.5), rng.uniform(0.3, 0.5)
    joint = (top + foot) / 2 - 0.06
    handle = np.stack([joint + reach * np.cos(angle), -0.05 + drop * np.sin(angle)], axis=1)
    return tuple(Polygon(part - (0.2, 0)) for part in (_band(handle, rng.uniform(0.13, 0.2)), body))


def key(rng: Generator) -> Outline:
    """A bow with a hole, a thin shaft and two to four teeth."""
    bow, shaft = rng.uniform(0.42, 0.54), rng.uniform(0.18, 0.25)
    teeth = int(rng.integers(2, 5))
    left = 0.86 - np.arange(teeth) * rng.uniform(0.16, 0.2)
    length = rng.uniform(0.16, 0.36, teeth)
    height = bow * rng.uniform(0.85, 1.15)
    hole = bow * rng.uniform(0.25, 0.45)
    return (
        Polygon(_ellipse(-0.58, 0, bow, height)),
        Polygon(_ellipse(-0.58 - bow * 0.15, 0, hole, hole), hole=True),
        Polygon(_rectangle(-0.58 + bow * 0.8, -shaft / 2, 1, shaft / 2)),
        *(Polygon(_rectangle(x, 0, x + 0.12, shaft / 2 + y)) for x, y in zip(left, length, strict=True)),
    )


def fish(rng: Generator) -> Outline:
    """A body, a tail that swings at its joint, and fins."""
    along = np.linspace(0, 1, 24)
    width = rng.uniform(0.4, 0.54) * np.sin(np.pi * along**0.8) ** 0.75
    x = 1 - 1.4 * along
    body = np.concatenate([np.stack([x, width], axis=1), np.stack([x, -width], axis=1)[::-1]])
    swing = rng.uniform(-0.5, 0.5)
    turn = np.array([(np.cos(swing), np.sin(swing)), (-np.sin(swing), np.cos(swing))])
    spread = rng.uniform(0.34, 0.5)
    tail = np.array([(0.12, 0.0), (-0.6, -spread), (-0.42, 0.0), (-0.6, spread)]) @ turn + (-0.4, 0)
    fin = np.array([(0.35, -0.2), (0.1, -rng.uniform(0.55, 0.75)), (-0.15, -0.2)])
    belly = np.array([(0.3, 0.2), (0.05, rng.uniform(0.45, 0.65)), (-0.02, 0.2)])
    return tuple(Polygon(part) for part in (tail, fin, belly, body))


def ladder(rng: Generator) -> Outline:
    """Two rails that may converge, with four or five rungs between them."""
    foot, top = rng.uniform(0.34, 0.46), rng.uniform(0.24, 0.4)
    thick = rng.uniform(0.16, 0.23)
    rungs = int(rng.integers(4, 6))
    y = np.linspace(-0.8, 0.8, rungs) + rng.uniform(-0.05, 0.05)
    half = top + (foot - top) * (y + 1) / 2
    rails = (np.array([(side * top, -1.0), (side * foot, 1.0)]) for side in (-1, 1))
    return (
        *(Polygon(_band(rail, thick)) for rail in rails),
        *(Polygon(_rectangle(-w, v - thick * 0.4, w, v + thick * 0.4)) for w, v in zip(half, y, strict=True)),
    )


def blob(rng: Generator) -> Outline:
    """A smooth lump of no class."""
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    wave = np.arange(2, 5)
    strength = rng.uniform(0, 0.22, 3) / np.sqrt(wave - 1)
    radius = 0.75 + (strength * np.cos(wave * (angle[:, None] + rng.uniform(0, 2 * np.pi, 3)))).sum(axis=1)
    return (Polygon(np.stack([radius * np.cos(angle), rng.uniform(0.55, 1) * radius * np.sin(angle)], axis=1)),)


def shard(rng: Generator) -> Outline:
    """A straight-edged chip of no class."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))))
    return (Polygon(np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(0.6, 1, (len(angle), 1))),)


def stroke(rng: Generator) -> Outline:
    """A curved line of no class."""
    x = np.linspace(-1, 1, 16)
    y = rng.uniform(-0.5, 0.5) * x**2 + rng.uniform(-0.2, 0.2) * np.sin(4 * x)
    return (Polygon(_band(np.stack([x, y], axis=1), rng.uniform(0.06, 0.2))),)


OUTLINES: dict[str, Callable[[Generator], Outline]] = {
    "ball": ball,
    "ring": ring,
    "star": star,
    "leaf": leaf,
    "cup": cup,
    "key": key,
    "fish": fish,
    "ladder": ladder,
}
"""One outline per object class."""
