"""The descriptors of regions on images whose colors, histograms and derivatives are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from labelwise.models.region_descriptors import ColorSpace, convert_color, region_descriptors, texture_bins

RED, GRAY, BLACK = (255, 0, 0), (128, 128, 128), (0, 0, 0)


def one_color(color: tuple[int, int, int], height: int = 1, width: int = 1) -> NDArray[np.uint8]:
    return np.full((height, width, 3), color, np.uint8)


@pytest.mark.parametrize(
    ("space", "color", "converted"),
    [
        ("hsv", RED, (0, 255, 255)),
        ("hsv", (0, 0, 255), (170, 255, 255)),
        ("lab", GRAY, (137, 128, 128)),
        ("lab", RED, (136, 208, 195)),
        ("rgi", RED, (255, 0, 76)),
        ("rgi", GRAY, (85, 85, 128)),
        ("rgi", BLACK, (0, 0, 0)),
        ("hue", (0, 0, 255), (170, 170, 170)),
        ("intensity", (10, 20, 200), (38, 38, 38)),
    ],
)
def test_known_colors(space: ColorSpace, color: tuple[int, int, int], converted: tuple[int, int, int]) -> None:
    found = convert_color(one_color(color), space)
    assert found.dtype == np.uint8 and found[0, 0].tolist() == list(converted)


@given(st.integers(0, 99))
def test_sizes_boxes_and_histograms_of_regions(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (9, 11, 3), np.uint8)
    labels = np.unique(random.integers(0, 5, (9, 11)), return_inverse=True)[1].reshape(9, 11).astype(np.int32)
    found = region_descriptors(labels, image)
    textures = texture_bins(image)
    for region in range(labels.max() + 1):
        inside = labels == region
        rows, columns = np.nonzero(inside)
        assert found.size[region] == len(rows)
        assert found.box[region].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        colors = np.floor(image[inside] / 255 * 24 + 0.5).astype(int) + 25 * np.arange(3)
        assert found.color[region] == pytest.approx(np.bincount(colors.ravel(), minlength=75) / colors.size, abs=1e-6)
        places = textures[inside] + 10 * np.arange(24)
        assert found.texture[region] == pytest.approx(np.bincount(places.ravel(), minlength=240) / places.size)
    assert found.color.shape[1] == 75 and found.texture.shape[1] == 240


def test_color_bins_are_rounded() -> None:
    # 5 / 255 * 24 = 0.47 and 6 / 255 * 24 = 0.56: the first bin is half as wide as the second.
    image = np.array([[[5, 6, 255]]], np.uint8)
    bins = region_descriptors(np.zeros((1, 1), np.int32), image).color[0].reshape(3, 25)
    assert bins.argmax(axis=1).tolist() == [0, 1, 24]


def test_an_even_image_has_no_texture() -> None:
    assert (texture_bins(one_color((7, 80, 200), 5, 6)) == 0).all()


def test_an_edge_shows_along_its_axis_in_its_direction() -> None:
    image = one_color(BLACK, 21, 21)
    image[:, 11:] = 255
    # The sum of i exp(-i * i / 2) over i > 0, by that of all weights: 0.364, in bin 9 / 0.43 * 0.364 = 7.6.
    right, left, down, up, falling, _, rising, _ = texture_bins(image)[10, 10].reshape(3, 8)[0]
    assert right == 8 and (left, down, up) == (0, 0, 0)
    assert falling == rising == 5
    turned = texture_bins(image[:, ::-1])[10, 10].reshape(3, 8)[0]
    assert turned.tolist() == [0, 8, 0, 0, 0, 5, 0, 5]
    upright = texture_bins(image.transpose(1, 0, 2))[10, 10].reshape(3, 8)[0]
    assert upright.tolist() == [0, 0, 8, 0, 5, 0, 0, 5]


def test_strong_derivatives_end_in_the_last_bin() -> None:
    image = one_color(BLACK, 21, 21)
    image[np.add.outer(np.arange(21), np.arange(21)) > 20] = 255
    assert texture_bins(image).max() <= 9 and texture_bins(image)[10, 10, 4] >= 7


def test_legacy_texture_is_that_of_the_first_channel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    labels = np.zeros((8, 8), np.int32)
    paper = region_descriptors(labels, image).texture.reshape(3, 80)
    legacy = region_descriptors(labels, image, legacy_texture=True).texture.reshape(3, 80)
    assert (legacy == paper[0]).all() and not np.allclose(paper[1], paper[0])
