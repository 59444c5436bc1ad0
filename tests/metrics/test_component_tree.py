"""Components of all thresholds at once against a labeling of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from labelwise.metrics.component_tree import component_tree


def labeled(inside: NDArray[np.bool_], *, diagonal: bool) -> list[tuple[int, ...]]:
    """Box, pixels, twice the area within their centers and first pixel of each component, one labeling."""
    numbers, count = ndimage.label(inside, np.ones((3, 3)) if diagonal else None)
    found = []
    for number in range(1, count + 1):
        own = np.pad(numbers == number, 1)
        corners = own[1:, 1:].astype(int) + own[:-1, 1:] + own[1:, :-1] + own[:-1, :-1]
        rows, columns = np.nonzero(numbers == number)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        first = np.flatnonzero(numbers == number)[0]
        found.append((*box, len(rows), (corners == 3).sum() + 2 * (corners == 4).sum(), first))
    return sorted(tuple(int(value) for value in row) for row in found)


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    highest=st.integers(0, 6),
)
@settings(max_examples=80, deadline=None)
@pytest.mark.parametrize("diagonal", [True, False])
def test_every_threshold_has_the_components_of_a_labeling(
    seed: int, height: int, width: int, highest: int, diagonal: bool
) -> None:
    levels = np.random.default_rng(seed).integers(0, highest + 1, (height, width))
    tree = component_tree(levels, diagonal=diagonal)
    rows = np.column_stack([tree.boxes, tree.pixels, tree.areas, tree.first])
    for threshold in range(highest + 1):
        there = (tree.start <= threshold) & (threshold < tree.stop)
        expected = labeled(levels > threshold, diagonal=diagonal)
        assert sorted(tuple(row) for row in rows[there].tolist()) == expected


def test_one_that_stays_the_same_is_kept_once() -> None:
    levels = np.array([[9, 9, 0, 5]])
    tree = component_tree(levels, diagonal=True)
    assert list(zip(tree.start.tolist(), tree.stop.tolist(), tree.pixels.tolist(), strict=True)) == [
        (0, 9, 2),
        (0, 5, 1),
    ]
