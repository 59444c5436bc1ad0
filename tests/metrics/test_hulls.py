"""The overlap of convex hulls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelwise.metrics.hulls import (
    convex_hull,
    convex_intersection,
    corner_points,
    hull_overlap,
    hull_overlaps,
    polygon_area,
)

SQUARE = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], dtype=np.float64)


def hull(mask: np.ndarray) -> np.ndarray:
    return convex_hull(corner_points(mask))


def test_pixels_are_squares() -> None:
    one = np.zeros((4, 5), dtype=bool)
    one[2, 3] = True
    assert polygon_area(hull(one)) == 1.0
    assert hull(one).min(axis=0).tolist() == [3, 2] and hull(one).max(axis=0).tolist() == [4, 3]


def test_hull_fills_what_is_hollow() -> None:
    ring = np.ones((6, 6), dtype=bool)
    ring[1:5, 1:5] = False
    assert polygon_area(hull(ring)) == 36.0
    diagonal = np.eye(3, dtype=bool)
    assert polygon_area(hull(diagonal)) == 5.0


@pytest.mark.parametrize(
    ("shift", "shared", "overlap"),
    [((0, 0), 4.0, 1.0), ((1, 0), 2.0, 1 / 3), ((1, 1), 1.0, 1 / 8), ((2, 0), 0.0, 0.0), ((5, 5), 0.0, 0.0)],
)
def test_squares_that_are_shifted(shift: tuple[int, int], shared: float, overlap: float) -> None:
    moved = SQUARE + np.array(shift)
    assert polygon_area(convex_intersection(SQUARE, moved)) == pytest.approx(shared)
    # Shifted along the diagonal, the hull of both is 8, not the 7 that they cover.
    assert hull_overlap(SQUARE, moved) == pytest.approx(overlap)


def test_one_inside_the_other() -> None:
    inner = 0.5 * SQUARE + 0.25
    assert polygon_area(convex_intersection(SQUARE, inner)) == pytest.approx(1.0)
    assert polygon_area(convex_intersection(inner, SQUARE)) == pytest.approx(1.0)


CLOUDS = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed).random((12, 2)) + seed % 3 / 4)


@given(CLOUDS, CLOUDS)
def test_intersection_is_symmetric_and_that_of_half_planes(first: np.ndarray, second: np.ndarray) -> None:
    one, two = convex_hull(first), convex_hull(second)
    area = polygon_area(convex_intersection(one, two))
    assert area == pytest.approx(polygon_area(convex_intersection(two, one)), abs=1e-12)
    axis = (np.arange(120) + 0.5) / 120 * 1.75
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    sampled = (inside(grid, one) & inside(grid, two)).mean() * 1.75**2
    assert area == pytest.approx(sampled, abs=0.01)


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    edges = np.roll(polygon, -1, axis=0) - polygon
    away = points[:, None] - polygon
    return (edges[:, 0] * away[..., 1] - edges[:, 1] * away[..., 0] >= 0).all(axis=1)


def masks(seed: int, count: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(count, 16, 16, dtype=torch.bool)
    for mask in drawn:
        left, top = torch.randint(0, 12, (2,), generator=random).tolist()
        width, height = torch.randint(1, 9, (2,), generator=random).tolist()
        mask[top : top + height, left : left + width] = torch.rand(16, 16, generator=random)[
            top : top + height, left : left + width
        ].gt(0.4)
    return drawn


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.5]))
def test_no_pair_that_reaches_the_least_is_left_out(seed: int, least: float) -> None:
    found, true = masks(seed, 3), masks(seed + 1, 3)
    true[2] = found[2]
    first, second, overlap = hull_overlaps(found, true, torch.ones(3, 3, dtype=torch.bool), least=least)
    told = {
        (one, two): value for one, two, value in zip(first.tolist(), second.tolist(), overlap.tolist(), strict=True)
    }
    for one, left in enumerate(found.numpy()):
        for two, right in enumerate(true.numpy()):
            if left.any() and right.any() and (expected := hull_overlap(hull(left), hull(right))) >= least:
                assert told[one, two] == pytest.approx(expected)


def test_pairs_that_are_no_candidates_are_left_out() -> None:
    found = masks(3, 2)
    first, second, overlap = hull_overlaps(found, found, torch.eye(2, dtype=torch.bool), least=0.1)
    assert (first.tolist(), second.tolist(), overlap.tolist()) == ([0, 1], [0, 1], [1.0, 1.0])
    empty = torch.zeros(2, 16, 16, dtype=torch.bool)
    assert not len(hull_overlaps(found, empty, torch.ones(2, 2, dtype=torch.bool), least=0.1)[2])
