"""Overlap of convex hulls: what ESE-Seg's published code calls the IoU of two shapes.

It is area(hull(A) ∩ hull(B)) / area(hull(A ∪ B)), which differs from the IoU of the shapes in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

Points = NDArray[Any]


def hull_overlaps(masks: Tensor, others: Tensor, candidates: Tensor, *, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """The overlaps of the convex hulls of masks, of the pairs that may reach a least overlap.

    Args:
        masks: [N, H, W] bool.
        others: [M, H, W] bool.
        candidates: [N, M] bool, the pairs to compare.
        least: overlap, above 0.

    Returns:
        of P pairs: position in `masks` and in `others`, [P] int64, and overlap, [P] float64.
    """
    found, true = (values.cpu().numpy() for values in (masks, others))

    @cache
    def hull(which: int, number: int) -> Points:
        return convex_hull(corner_points((found, true)[which][number]))

    rows = []
    for first, second in _near(masks, others, candidates, least):
        rows.append((first, second, hull_overlap(hull(0, first), hull(1, second))))
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
    return table[:, 0].long(), table[:, 1].long(), table[:, 2]


def hull_overlap(first: Points, second: Points) -> float:
    """The overlap of two convex polygons [n, 2], corners in order with the inside on the left."""
    both = polygon_area(convex_hull(np.concatenate([first, second])))
    return polygon_area(convex_intersection(first, second)) / both


def convex_hull(points: Points) -> Points:
    """The corners of the convex hull of points [n, 2] that do not all lie on a line; the inside is on the left."""
    return points[ConvexHull(points).vertices]


def corner_points(mask: NDArray[np.bool_]) -> Points:
    """The corners of the first and the last pixel of each row of a mask [H, W]: (x, y), [4 * rows, 2]."""
    rows = np.flatnonzero(mask.any(axis=1))
    left, right = mask[rows].argmax(axis=1), mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    ends = [np.stack([side, height], axis=1) for side in (left, right) for height in (rows, rows + 1)]
    return np.concatenate(ends).astype(np.float64)


def convex_intersection(first: Points, second: Points) -> Points:
    """What two convex polygons share: the hull of the corners inside the other one and of where edges cross.

    Args:
        first: [n, 2], the inside on the left.
        second: [m, 2], the inside on the left.

    Returns:
        [k, 2]; k is 0 where they share no area.
    """
    edges, others = (np.roll(polygon, -1, axis=0) - polygon for polygon in (first, second))
    # Signed areas [n, m]: of a corner of one and an edge of the other; positive on the left.
    side, other_side = _cross(others, first[:, None] - second), _cross(edges[:, None], second - first[:, None])
    after, other_after = np.roll(side, -1, axis=0), np.roll(other_side, -1, axis=1)
    crosses = (side * after < 0) & (other_side * other_after < 0)
    start, _ = np.nonzero(crosses)
    share = side[crosses] / (side[crosses] - after[crosses])
    points = np.concatenate(
        [
            first[(side >= 0).all(axis=1)],
            second[(other_side >= 0).all(axis=0)],
            first[start] + share[:, None] * edges[start],
        ]
    )
    try:
        return convex_hull(points)
    except (QhullError, ValueError):
        # Fewer than three points, or all on a line.
        return points[:0]


def polygon_area(polygon: Points) -> float:
    """The area of a polygon [n, 2] without crossings."""
    x, y = polygon[:, 0], polygon[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _cross(first: Points, second: Points) -> Points:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _near(masks: Tensor, others: Tensor, candidates: Tensor, least: float) -> Iterator[tuple[int, int]]:
    """The candidates whose overlap may reach the least.

    Their hulls share no more than their boxes do, and the hull of both has at least the pixels of the larger one.
    """
    boxes, other_boxes = (_extents(values) for values in (masks, others))
    low = torch.maximum(boxes[:, None, :2], other_boxes[:, :2])
    high = torch.minimum(boxes[:, None, 2:], other_boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas, other_areas = (values.flatten(1).sum(dim=1) for values in (masks, others))
    larger = torch.maximum(areas[:, None], other_areas)
    near = candidates & (shared > 0) & (shared >= least * larger)
    yield from map(tuple, near.nonzero().tolist())


def _extents(masks: Tensor) -> Tensor:
    """The half-open boxes of masks, without area where one is empty. [N, H, W] bool -> [N, 4] int64."""
    sides = []
    for lines in (masks.any(dim=1), masks.any(dim=2)):
        numbers = torch.arange(lines.shape[1], device=masks.device)
        first = torch.where(lines, numbers, lines.shape[1])
        last = torch.where(lines, numbers + 1, 0)
        sides.append((first.amin(dim=1), last.amax(dim=1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1)
