"""All connected components of an image at all thresholds, found in one pass from the highest pixels down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelwise.compiled import compiled

Integers = NDArray[np.int64]

_OFFSETS = np.array([(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)])


@dataclass(frozen=True)
class Components:
    """The components of {level > k} for k = 0, 1, ...; one that is the same for several k is kept once.

    Attributes:
        start: [N] the first k at which a component is there.
        stop: [N] one past the last.
        boxes: [N, 4] half-open XYXY.
        pixels: [N] how many pixels it has.
        areas: [N] twice the area of what the centers of its pixels enclose: squares of 2 x 2 pixels count 2, those with
            three pixels 1.
        first: [N] its first pixel in reading order.
    """

    start: Integers
    stop: Integers
    boxes: Integers
    pixels: Integers
    areas: Integers
    first: Integers


def component_tree(levels: NDArray[np.integer], *, diagonal: bool) -> Components:
    """The components at all thresholds.

    Args:
        levels: [H, W] whole numbers from 0, below 65,536.
        diagonal: pixels that touch at a corner are joined too.
    """
    flat = np.ascontiguousarray(levels, dtype=np.int64).ravel()
    # Numbers of 16 bits are sorted in linear time.
    order = np.argsort((flat.max() - flat).astype(np.uint16), kind="stable")[: np.count_nonzero(flat)]
    rows = _grow(flat, order, levels.shape[1], _OFFSETS[: 8 if diagonal else 4])
    return Components(rows[:, 0], rows[:, 1], rows[:, 2:6] + np.array([0, 0, 1, 1]), *rows[:, 6:].T)


@compiled
def _root(parent: Integers, pixel: int) -> int:
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel


@compiled
def _grow(levels: Integers, order: Integers, width: int, offsets: Integers) -> Integers:
    """Rows of start, stop, inclusive box, pixels, area and first pixel; `order` lists the pixels from the highest."""
    height = len(levels) // width
    parent = np.full(len(levels), -1)
    # Of the component whose root is a pixel: its row, -1 while it grows, and what the row holds from the box on.
    row = np.full(len(levels), -1)
    shape = np.empty((len(levels), 7), np.int64)
    rows = np.empty((len(order), 9), np.int64)
    count = begin = 0
    while begin < len(order):
        level = levels[order[begin]]
        end = begin
        while end < len(order) and levels[order[end]] == level:
            pixel = order[end]
            y, x = pixel // width, pixel % width
            parent[pixel] = root = pixel
            shape[pixel] = (x, y, x, y, 1, _new_area(parent, x, y, width, height), pixel)
            for dy, dx in offsets:
                if 0 <= y + dy < height and 0 <= x + dx < width and parent[pixel + dy * width + dx] >= 0:
                    other = _root(parent, pixel + dy * width + dx)
                    if other != root:
                        root = _joined(parent, row, shape, rows, level, root, other)
            end += 1
        for pixel in order[begin:end]:
            root = _root(parent, pixel)
            if row[root] < 0:
                row[root] = count
                rows[count, :2] = (0, level)
                rows[count, 2:] = shape[root]
                count += 1
        begin = end
    return rows[:count]


@compiled
def _new_area(parent: Integers, x: int, y: int, width: int, height: int) -> int:
    """How many of the four 2 x 2 squares at a pixel that was just added have three pixels or four."""
    squares = 0
    for top in range(max(y - 1, 0), min(y, height - 2) + 1):
        for left in range(max(x - 1, 0), min(x, width - 2) + 1):
            corner = top * width + left
            inside = 0
            for pixel in (corner, corner + 1, corner + width, corner + width + 1):
                inside += parent[pixel] >= 0
            squares += inside >= 3
    return squares


@compiled
def _joined(
    parent: Integers, row: Integers, shape: Integers, rows: Integers, level: int, first: int, second: int
) -> int:
    """The root of two components that are joined at a level; where they were whole above it, their rows stop there."""
    if shape[first, 4] < shape[second, 4]:
        first, second = second, first
    for root in (first, second):
        if row[root] >= 0:
            rows[row[root], 0] = level
            row[root] = -1
    parent[second] = first
    into, other = shape[first], shape[second]
    for column in (0, 1, 6):
        into[column] = min(into[column], other[column])
    for column in (2, 3):
        into[column] = max(into[column], other[column])
    for column in (4, 5):
        into[column] += other[column]
    return first
