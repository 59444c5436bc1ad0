"""Overlays, boxes, differences and contact sheets."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torchvision import tv_tensors

from labelwise.datasets.base import voc_palette
from labelwise.reports.pictures import (
    contact_sheet,
    difference,
    draw_boxes,
    legend_entries,
    overlay,
    png_data_uri,
    swatch,
    text_panel,
)

PALETTE = voc_palette()
GREY = np.full((3, 24, 32), 100, dtype=np.uint8)


def half_mask() -> np.ndarray:
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[:, 16:] = 15
    return mask


def test_overlay_blends_by_alpha_and_leaves_the_background_alone() -> None:
    drawn = np.asarray(overlay(GREY, half_mask(), PALETTE, alpha=0.5, contours=False, background=0))
    assert (drawn[:, :16] == 100).all()
    assert (drawn[:, 16:] == np.round(0.5 * 100 + 0.5 * PALETTE[15].astype(float))).all()


def test_overlay_tints_class_zero_when_there_is_no_background() -> None:
    drawn = np.asarray(overlay(GREY, half_mask(), PALETTE, alpha=0.5, contours=False))
    assert (drawn[:, :16] == 50).all()


def test_contour_is_the_inner_edge_in_full_color() -> None:
    drawn = np.asarray(overlay(GREY, half_mask(), PALETTE, alpha=0.5, background=0))
    assert (drawn[:, 16] == PALETTE[15]).all()
    assert (drawn[:, 15] == 100).all()
    assert (drawn[:, 20] != PALETTE[15]).all()


def test_ignored_pixels_are_hatched() -> None:
    drawn = np.asarray(overlay(GREY, np.full((24, 32), 255, dtype=np.uint8), PALETTE))
    assert len(np.unique(drawn)) == 2
    assert (drawn >= 100).all()


def test_overlay_takes_tensors() -> None:
    image, mask = tv_tensors.Image(torch.from_numpy(GREY)), tv_tensors.Mask(torch.from_numpy(half_mask()))
    assert overlay(image, mask, PALETTE) == overlay(GREY, half_mask(), PALETTE)


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        overlay(GREY, half_mask()[:-1], PALETTE)
    with pytest.raises(ValueError, match="size"):
        difference(half_mask(), half_mask()[:-1])


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.uint8, (2, 9, 11), elements=st.sampled_from([0, 1, 2, 255])))
def test_difference_is_bright_exactly_where_it_counts(masks: np.ndarray) -> None:
    prediction, target = masks
    drawn = np.asarray(difference(prediction, target))
    bright = drawn[..., 0] > 200
    assert np.array_equal(bright, (prediction != target) & (target != 255))


def test_box_is_drawn_on_its_half_open_edges() -> None:
    picture = np.asarray(
        draw_boxes(np.zeros((3, 60, 60), dtype=np.uint8), [[10, 30, 50, 55]], [1], ["a", "b"], PALETTE)
    )
    color = PALETTE[1]
    assert (picture[54, 10:50] == color).all() and (picture[55] == 0).all()
    assert (picture[30:55, 49] == color).all() and (picture[:, 50] != color).any(axis=1).all()


def test_boxes_out_of_order_and_without_number_are_drawn() -> None:
    blank = np.zeros((3, 40, 40), dtype=np.uint8)
    assert not np.asarray(draw_boxes(blank, np.zeros((0, 4)), [], ["a"], PALETTE)).any()
    inverted = draw_boxes(blank, [[30, 30, 5, 5]], [1], ["a", "b"], PALETTE, [0.5])
    assert np.asarray(inverted).any()


def test_legend_names_the_classes_that_occur() -> None:
    entries = legend_entries([half_mask(), np.full((2, 2), 255)], [f"class {number}" for number in range(21)], PALETTE)
    assert entries == [("class 0", (0, 0, 0)), ("class 15", (192, 128, 128))]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=4), min_size=1, max_size=4))
def test_contact_sheet_holds_every_row_and_column(sizes: list[list[tuple[int, int]]]) -> None:
    rows = [[Image.new("RGB", size, (200, 0, 0)) for size in row] for row in sizes]
    columns = max(len(row) for row in rows)
    if columns == 0:
        with pytest.raises(ValueError, match="at least one"):
            contact_sheet(rows)
        return
    sheet = contact_sheet(rows, cell=40)
    assert sheet.width == 20 + 40 * columns + 6 * (columns - 1)
    assert np.asarray(sheet)[..., 3].any()


def test_contact_sheet_makes_room_for_titles_and_legend() -> None:
    picture = Image.new("RGB", (40, 20), (200, 0, 0))
    names = [(f"a class with a rather long name {number}", (number, 0, 0)) for number in range(21)]
    plain = contact_sheet([[picture] * 3] * 2)
    full = contact_sheet([[picture] * 3] * 2, ["image", "truth", "x" * 500], ["id " * 99, "<b>"], legend=names)
    assert full.width == plain.width
    assert full.height > plain.height + 21 * 20


def colors_of(panel: Image.Image) -> set[object]:
    return {color for _, color in panel.getcolors(1 << 16) or ()}


def test_a_panel_of_text_sets_off_what_is_wrong_and_counts_what_does_not_fit() -> None:
    orange = (255, 122, 46)
    assert orange in colors_of(text_panel([("cat", False), ("dog", True)]))
    assert orange not in colors_of(text_panel([("cat", False), ("dog", False)]))
    # The wrong line is beyond the room of a small panel.
    crowded = text_panel([("cat", False)] * 5 + [("dog", True)], cell=80)
    assert crowded.size == (80, 80) and orange not in colors_of(crowded)
    assert len(colors_of(text_panel([]))) == 1


def test_data_uri_is_the_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    picture.save(tmp_path / "a.png")
    for source in (picture, tmp_path / "a.png"):
        head, _, content = png_data_uri(source).partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).getpixel((2, 1)) == (1, 2, 3)


def test_swatch_is_a_css_color() -> None:
    assert swatch(np.array([0, 128, 255], dtype=np.uint8)) == "#0080ff"
