"""Boxes from score maps: hand cases, a threshold at a time, OpenCV where it is there, frames and overlaps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from labelwise.errors import UserError
from labelwise.metrics.map_boxes import (
    boxes_in_frame,
    contour_boxes,
    inclusive_corners,
    iou_inclusive,
    largest_component_boxes,
    normalize_map,
)

GRID = torch.arange(20, dtype=torch.float64) / 20


def rough_map(seed: int, size: int = 12, steps: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, size // 2, size // 2, generator=generator)
    values = torch.nn.functional.interpolate(coarse, (size, size + 1), mode="bilinear")[0, 0]
    return (values * steps).round() / steps if steps else values


def drawn(*rows: str) -> Tensor:
    return torch.tensor([[float(letter == "#") for letter in row] for row in rows])


def test_inclusive_overlap_by_hand() -> None:
    pair = torch.tensor([[0, 0, 9, 9]]), torch.tensor([[3, 3, 12, 12], [0, 0, 9, 9], [10, 0, 12, 12]])
    assert iou_inclusive(*pair).tolist() == [[pytest.approx(49 / 151), 1.0, 0.0]]
    halfopen = torch.tensor([[3, 3, 13, 13]])
    assert inclusive_corners(halfopen).tolist() == [[3, 3, 12, 12]]


def test_a_box_of_the_largest_component_is_one_pixel_too_large() -> None:
    score_map = torch.zeros(224, 224)
    score_map[20:70, 30:80] = 1
    found = largest_component_boxes(score_map, GRID)
    assert all(found.at(place).tolist() == [[30, 20, 80, 70]] for place in range(len(GRID)))
    truth = inclusive_corners(torch.tensor([[30, 20, 80, 70]]))
    assert iou_inclusive(found.at(3), truth).item() == pytest.approx(2500 / 2601)


def test_a_constant_map_gives_the_whole_frame() -> None:
    found = largest_component_boxes(torch.full((7, 7), 0.6), GRID, size=28)
    assert all(found.at(place).tolist() == [[0, 0, 28, 28]] for place in range(len(GRID)))


def test_a_map_is_normalised_before_it_is_resized() -> None:
    # Its lowest and highest value are lost in interpolation to fewer pixels.
    score_map = rough_map(5, size=30)
    assert normalize_map(score_map).aminmax() == (0, pytest.approx(1, abs=1e-4))
    resized = torch.nn.functional.interpolate(normalize_map(score_map)[None, None], (10, 10), mode="bilinear")[0, 0]
    high = resized.max().item()
    found = largest_component_boxes(score_map, torch.tensor([high - 1e-3, high + 1e-3]), size=10)
    top = np.argwhere((resized > high - 1e-3).numpy())[0]
    assert found.at(0).tolist() == [[top[1], top[0], top[1] + 1, top[0] + 1]]
    assert found.at(1).tolist() == [[0, 0, 10, 10]]


def largest_by_labeling(values: Tensor, threshold: float, size: int) -> list[int]:
    numbers, count = ndimage.label(values.numpy() > np.float32(threshold), np.ones((3, 3)))
    if not count:
        return [0, 0, size, size]
    rows, columns = ndimage.find_objects(numbers)[np.bincount(numbers.ravel())[1:].argmax()]
    return [columns.start, rows.start, columns.stop, rows.stop]


@given(seed=st.integers(0, 10_000), steps=st.sampled_from([0, 4, 20]))
@settings(max_examples=40, deadline=None)
def test_the_largest_component_of_each_threshold(seed: int, steps: int) -> None:
    score_map = rough_map(seed, steps=steps)
    found = largest_component_boxes(score_map, GRID, size=12)
    resized = torch.nn.functional.interpolate(normalize_map(score_map)[None, None], (12, 12), mode="bilinear")[0, 0]
    for place, threshold in enumerate(GRID.tolist()):
        assert found.at(place).tolist() == [largest_by_labeling(resized, threshold, 12)]


def test_a_value_of_just_the_threshold_is_outside() -> None:
    # (m - 0) / (1 - 1e-5 - 0 + 1e-5) leaves the values as they are.
    score_map = torch.tensor([[0.0, 0.25], [0.5, 1 - 1e-5]])
    found = largest_component_boxes(score_map, torch.tensor([0.24, 0.25, 0.5]), size=2)
    assert [found.at(place).tolist() for place in range(3)] == [[[0, 0, 2, 2]], [[0, 1, 2, 2]], [[1, 1, 2, 2]]]


def test_contours_run_around_components_and_holes() -> None:
    ring = drawn(
        "..........",
        ".######...",
        ".#....#...",
        ".#.##.#...",
        ".#....#..#",
        ".######..#",
        "..........",
    )
    found = contour_boxes(ring, torch.tensor([0.0, 0.5]), multi=True)
    expected = [[1, 1, 7, 6], [1, 1, 7, 6], [3, 3, 5, 4], [9, 4, 9, 6]]
    # The last one's second corner is cut to the last column; the first two are the ring's outside and its inside.
    assert sorted(found.at(0).tolist()) == expected
    assert contour_boxes(ring, torch.tensor([0.0]), multi=False).at(0).tolist() == [[1, 1, 7, 6]]


def test_the_largest_contour_is_that_of_the_largest_area_not_of_most_pixels() -> None:
    # Twelve pixels around a hole enclose 9, a bar of 14 pixels encloses 6.
    score_map = drawn(
        "####....",
        "#..#....",
        "#..#....",
        "####....",
        "........",
        "........",
        "#######.",
        "#######.",
    )
    assert contour_boxes(score_map, torch.tensor([0.0]), multi=False).at(0).tolist() == [[0, 0, 4, 4]]
    largest = largest_component_boxes(score_map, torch.tensor([0.5]), size=8)
    assert largest.at(0).tolist() == [[0, 6, 7, 8]]


def test_thresholds_of_contours_are_shares_of_the_maximum() -> None:
    score_map = drawn("....", ".##.", "....") * 0.4
    found = contour_boxes(score_map, torch.tensor([0.0, 0.9]), multi=False)
    assert found.at(1).tolist() == [[1, 1, 3, 2]]


@pytest.mark.parametrize("multi", [True, False])
def test_without_a_contour_the_box_is_the_first_pixel(multi: bool) -> None:
    found = contour_boxes(torch.zeros(5, 6), GRID, multi=multi)
    assert all(found.at(place).tolist() == [[0, 0, 0, 0]] for place in range(len(GRID)))


@pytest.mark.parametrize("multi", [True, False])
def test_contours_are_those_of_opencv(multi: bool) -> None:
    cv2 = pytest.importorskip("cv2")

    def peer(score_map: Tensor, threshold: float) -> list[list[int]]:
        quantized = (score_map.numpy() * 255).astype(np.uint8)
        height, width = quantized.shape
        binary = cv2.threshold(quantized, int(threshold * quantized.max()), 255, cv2.THRESH_BINARY)[1]
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        if not multi and len(contours):
            contours = [max(contours, key=cv2.contourArea)]
        boxes = [cv2.boundingRect(contour) for contour in contours]
        return sorted([x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in boxes) or [[0, 0, 0, 0]]

    for seed in range(40):
        score_map = rough_map(seed, size=4 + seed % 30, steps=(0, 3, 9)[seed % 3])
        found = contour_boxes(score_map, GRID, multi=multi)
        for place, threshold in enumerate(GRID.tolist()):
            assert sorted(found.at(place).tolist()) == peer(score_map, threshold)


def test_the_highest_value_of_each_threshold() -> None:
    found = contour_boxes(drawn("#.#", "...", "#.#") * torch.tensor([1.0, 1.0, 0.5]), GRID, multi=True)
    values = torch.arange(len(found.boxes), dtype=torch.float64)
    by_hand = [values[(found.start <= place) & (place < found.stop)].max() for place in range(len(GRID))]
    assert found.highest(values).tolist() == by_hand


@pytest.mark.parametrize(
    "extract",
    [
        lambda score_map: largest_component_boxes(score_map, GRID),
        lambda score_map: contour_boxes(score_map, GRID, multi=True),
    ],
)
def test_a_map_that_holds_no_numbers_is_refused(extract: Callable[[Tensor], object]) -> None:
    with pytest.raises(UserError, match="score map"):
        extract(torch.tensor([[0.1, torch.nan], [0.2, 0.3]]))


def test_contours_need_a_map_within_0_and_1() -> None:
    with pytest.raises(UserError, match="divide it by its maximum"):
        contour_boxes(torch.tensor([[0.0, 3.0]]), GRID, multi=False)


def test_boxes_are_squeezed_with_their_image() -> None:
    boxes = torch.tensor([[0.0, 0.0, 500.0, 375.0], [101.0, 50.0, 333.0, 374.0]])
    # 101 / 500 * 224 = 45.2, 50 / 375 * 224 = 29.9, 333 / 500 * 224 = 149.2, 374 / 375 * 224 = 223.4.
    assert boxes_in_frame(boxes, (375, 500)).tolist() == [[0, 0, 224, 224], [45, 29, 149, 223]]


def test_boxes_are_cropped_with_their_image() -> None:
    boxes = torch.tensor([[0.0, 0.0, 512.0, 256.0], [100.0, 100.0, 200.0, 200.0]])
    found = boxes_in_frame(boxes, (256, 512), "center_crop")
    # 100 / 512 * 256 - 16 = 34, 200 / 512 * 256 - 16 = 84; 100 - 16, 200 - 16.
    assert found.tolist() == [[0, 0, 224, 224], [34, 84, 84, 184]]


@given(x=st.integers(0, 99), y=st.integers(0, 79), seed=st.integers(0, 1000), crop=st.booleans())
def test_a_box_in_a_frame_keeps_a_pixel(x: int, y: int, seed: int, crop: bool) -> None:
    generator = np.random.default_rng(seed)
    box = torch.tensor([[x, y, generator.integers(x + 1, 101), generator.integers(y + 1, 81)]], dtype=torch.float32)
    left, top, right, bottom = boxes_in_frame(box, (80, 100), "center_crop" if crop else "squeezed", size=14)[
        0
    ].tolist()
    assert 0 <= left < right <= 14
    assert 0 <= top < bottom <= 14
