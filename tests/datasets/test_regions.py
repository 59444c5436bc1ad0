"""Polygons and run lengths: the pixels of COCO's own functions, no pixel lost on the way back, nothing hostile."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from labelwise.datasets import regions
from labelwise.datasets.regions import (
    joined,
    masks_of_runs,
    outlines,
    painted,
    runs_of_encoding,
    runs_of_polygons,
)

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def filled(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return masks_of_runs([runs], size)[0].numpy()


@given(MASKS)
def test_outlines_give_the_mask_back(mask: np.ndarray) -> None:
    polygons = outlines(mask)
    if not mask.any():
        assert polygons == []
        return
    size = (mask.shape[0], mask.shape[1])
    assert np.array_equal(
        filled(runs_of_polygons([polygon.ravel().tolist() for polygon in polygons], size), size), mask
    )
    one = joined(polygons).ravel().tolist()
    assert np.array_equal(filled(runs_of_polygons([one], size), size), mask)


def test_an_outline_has_corners_only() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:5, 2:7] = True
    assert sorted(outlines(mask)[0].tolist()) == [[2, 1], [2, 5], [7, 1], [7, 5]]
    assert len(outlines(np.eye(3, dtype=bool))) == 3


@given(MASKS)
def test_run_lengths_are_read_as_the_reference_reads_them(mask: np.ndarray) -> None:
    size = (mask.shape[0], mask.shape[1])
    text = reference.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    counts = np.diff(changes, prepend=0, append=mask.size).tolist()
    for encoding in ({"size": list(size), "counts": text}, {"size": list(size), "counts": counts}):
        assert np.array_equal(filled(runs_of_encoding(encoding, size), size), mask)


@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=8))
def test_polygons_are_filled_as_the_reference_fills_them(points: list[tuple[float, float]]) -> None:
    polygon = [value for point in points for value in point]
    expected = reference.decode(reference.frPyObjects([polygon], 17, 20))[..., 0].astype(bool)
    assert np.array_equal(filled(runs_of_polygons([polygon], (17, 20)), (17, 20)), expected)


@given(st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=30))
def test_damaged_text_is_refused_or_fills_the_image(text: str) -> None:
    try:
        runs = runs_of_encoding({"size": [3, 4], "counts": text}, (3, 4))
    except ValueError:
        return
    assert (runs >= 0).all() and runs.sum() == 12


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("soup", "neither a list of polygons nor an object"),
        ({"counts": [12]}, "neither a list of polygons nor an object"),
        ({"size": [4, 3], "counts": [12]}, r"size \[4, 3\] in an image of size \[3, 4\]"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "in an image of size"),
        ({"size": [3, 4], "counts": [11]}, "do not add up"),
        ({"size": [3, 4], "counts": [20, -8]}, "neither text nor a list of numbers"),
        ({"size": [3, 4], "counts": [1.5, 10.5]}, "neither text nor a list of numbers"),
        ({"size": [3, 4], "counts": [10**30]}, "neither text nor a list of numbers"),
        ({"size": [3, 4], "counts": None}, "neither text nor a list of numbers"),
        ({"size": [3, 4], "counts": "o" * 1000}, "damaged"),
        ({"size": [3, 4], "counts": ""}, "damaged"),
        ({"size": [3, 4], "counts": ";0"}, "do not add up"),
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(encoding: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        runs_of_encoding(encoding, (3, 4))


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        ([1, 1, 2, 2, 3], "5 coordinates, which is an odd number"),
        ([1, 1, 2, 2], "a polygon of 2 points"),
        ([], "a polygon of 0 points"),
        ([1, 1, 2, 2, 3, float("nan")], "no finite number"),
        ([1, 1, 2, 2, 3, "4"], "no finite number"),
        ([1, 1, 2, 2, 3, 10**400], "no finite number"),
        ([1, 1, 2, 2, 3, 10**9], "far outside the 4x3 image"),
        (7, "no finite number"),
    ],
)
def test_polygons_that_are_none_are_refused(polygon: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        runs_of_polygons([polygon], (3, 4))


def test_what_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="2 masks of 100000x100000 pixels"):
        masks_of_runs([np.array([10**10])] * 2, (100_000, 100_000))
    monkeypatch.setattr(regions, "OUTLINE_LIMIT", 100)
    with pytest.raises(ValueError, match="an outline of 180 pixels"):
        runs_of_polygons([[0, 0, 30, 0, 30, 30, 0, 30, 0, 0, 30, 0]], (40, 40))


def test_a_later_object_is_painted_over_an_earlier_one() -> None:
    whole, left = np.array([0, 6]), np.array([0, 2, 4])
    assert painted(np.zeros((2, 3), np.uint8), [whole, left], [7, 9]).tolist() == [[9, 7, 7], [9, 7, 7]]
