"""Windows of R-CNN: the geometry number by number, the resize against torch's own, mirrors, borders."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from labelwise.models.region_warp import crop_geometry, warp_masks, warp_regions

IMAGE = 255 * torch.rand(3, 37, 50, generator=torch.Generator().manual_seed(0))


def round_half_away(value: float) -> int:
    """As C's `round`."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def written_out(
    box: tuple[int, int, int, int], image: tuple[int, int], size: int, pad: int, mode: Literal["warp", "square"]
) -> tuple[list[int], list[int], list[int]]:
    """The released code's steps for one box whose last pixel is inside, with its own names."""
    x1, y1, x2, y2 = box
    factor = size / (size - 2 * pad)
    half_w, half_h = (x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2
    center_x, center_y = x1 + half_w, y1 + half_h
    if mode == "square":
        half_w = half_h = max(half_w, half_h)
    left, right = round_half_away(center_x - half_w * factor), round_half_away(center_x + half_w * factor)
    top, bottom = round_half_away(center_y - half_h * factor), round_half_away(center_y + half_h * factor)
    scale_x, scale_y = size / (right - left + 1), size / (bottom - top + 1)
    pad_x, pad_y = max(0, -left), max(0, -top)
    left, top = left + pad_x, top + pad_y
    right, bottom = min(right, image[1] - 1), min(bottom, image[0] - 1)
    crop_w, crop_h = round_half_away((right - left + 1) * scale_x), round_half_away((bottom - top + 1) * scale_y)
    pad_x, pad_y = round_half_away(pad_x * scale_x), round_half_away(pad_y * scale_y)
    crop_w, crop_h = min(crop_w, size - pad_x), min(crop_h, size - pad_y)
    return [left, top, right + 1, bottom + 1], [crop_h, crop_w], [pad_y, pad_x]


def one_by_one(image: Tensor, boxes: Tensor, size: int, pad: int) -> Tensor:
    """Windows by torch's own resize of each cut."""
    geometry = crop_geometry(boxes, image.shape[-2:], size, pad)
    windows = torch.zeros(len(boxes), len(image), size, size)
    rows = zip(geometry.sources.tolist(), geometry.sizes.tolist(), geometry.offsets.tolist(), strict=True)
    for window, ((x1, y1, x2, y2), (height, width), (top, left)) in zip(windows, rows, strict=True):
        cut = interpolate(image[None, :, y1:y2, x1:x2], size=(height, width), mode="bilinear", antialias=False)
        window[:, top : top + height, left : left + width] = cut[0]
    return windows


@st.composite
def boxes_within(draw: st.DrawFn, height: int = 37, width: int = 50) -> tuple[int, int, int, int]:
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))


@given(boxes_within(), st.sampled_from(["warp", "square"]), st.sampled_from([(227, 16), (64, 4), (48, 1)]))
def test_the_geometry_is_that_of_the_released_code(
    box: tuple[int, int, int, int], mode: Literal["warp", "square"], window: tuple[int, int]
) -> None:
    size, pad = window
    geometry = crop_geometry(torch.tensor([box]).float(), (37, 50), size, pad, mode)
    x1, y1, x2, y2 = box
    source, extent, offset = written_out((x1, y1, x2 - 1, y2 - 1), (37, 50), size, pad, mode)
    assert geometry.sources[0].tolist() == source
    assert geometry.sizes[0].tolist() == extent
    assert geometry.offsets[0].tolist() == offset


@given(st.lists(boxes_within(), min_size=1, max_size=6), st.sampled_from([(33, 0), (40, 4), (64, 8)]))
def test_windows_equal_torchs_resize_of_each_cut(
    boxes: list[tuple[int, int, int, int]], window: tuple[int, int]
) -> None:
    rows = torch.tensor(boxes).float()
    windows, outside = warp_regions(IMAGE, rows, *window)
    expected = one_by_one(IMAGE, rows, *window)
    torch.testing.assert_close(windows, expected, atol=0.01, rtol=0)
    assert (windows.masked_select(outside[:, None]) == 0).all()


@pytest.mark.parametrize("box", [(0, 0, 50, 37), (10, 5, 30, 35), (49, 36, 50, 37)])
def test_without_context_a_window_is_the_resized_box(box: tuple[int, int, int, int]) -> None:
    x1, y1, x2, y2 = box
    windows, outside = warp_regions(IMAGE, torch.tensor([box]).float(), 32, 0)
    plain = interpolate(IMAGE[None, :, y1:y2, x1:x2], size=(32, 32), mode="bilinear", antialias=False)
    assert not outside.any()
    torch.testing.assert_close(windows, plain, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [(100, 100), (375, 500), (500, 333)])
def test_the_whole_image_gets_a_border_of_the_context(size: tuple[int, int]) -> None:
    height, width = size
    box = torch.tensor([[0.0, 0.0, width, height]])
    _, outside = warp_regions(torch.ones(1, height, width), box, 227, 16)
    rows, columns = (~outside[0].all(dim=1)).nonzero()[:, 0], (~outside[0].all(dim=0)).nonzero()[:, 0]
    for inside in (rows, columns):
        assert inside[0] == 16
        assert 16 <= 226 - inside[-1] <= 18


def test_a_mirrored_image_has_mirrored_windows() -> None:
    # Its widened box is symmetric about a pixel's centre, so that nothing is rounded to the other side.
    box = torch.tensor([[14.0, 8.0, 35.0, 29.0]])
    mirrored = torch.tensor([[50 - 35.0, 8.0, 50 - 14.0, 29.0]])
    windows, _ = warp_regions(IMAGE, box, 32, 0)
    others, _ = warp_regions(IMAGE.flip(-1), mirrored, 32, 0)
    torch.testing.assert_close(others, windows.flip(-1), atol=0.01, rtol=0)


def test_a_square_window_keeps_the_aspect_ratio() -> None:
    geometry = crop_geometry(torch.tensor([[20.0, 10.0, 30.0, 14.0]]), (37, 50), 64, 4, "square")
    x1, y1, x2, y2 = geometry.sources[0].tolist()
    assert x2 - x1 == y2 - y1


def test_nothing_beside_the_cut_shines_into_a_window() -> None:
    image = torch.zeros(1, 20, 20)
    image[:, :, 10:] = 1.0
    windows, _ = warp_regions(image, torch.tensor([[2.0, 2.0, 10.0, 18.0]]), 32, 0)
    assert (windows == 0).all()


def test_masks_are_warped_like_images() -> None:
    boxes = torch.tensor([[10.0, 5.0, 30.0, 35.0], [0.0, 0.0, 50.0, 37.0]])
    masks = torch.zeros(2, 37, 50, dtype=torch.bool)
    masks[0, 5:35, 10:30] = True
    masks[1, :, 25:] = True
    warped = warp_masks(masks, boxes, 48, 4)
    for mask, box, found in zip(masks, boxes, warped, strict=True):
        smooth, outside = warp_regions(mask[None].float(), box[None], 48, 4)
        # Where the smooth window is undecided, either neighbor may be the nearest.
        decided = (smooth[0, 0] - 0.5).abs() > 1e-3
        assert torch.equal(found[decided], (smooth[0, 0] > 0.5)[decided])
        assert not found[outside[0]].any()


def test_no_boxes_have_no_windows() -> None:
    windows, outside = warp_regions(IMAGE, torch.zeros(0, 4), 32, 4)
    assert windows.shape == (0, 3, 32, 32) and outside.shape == (0, 32, 32)
