"""Windows of an image, warped to the fixed input size of a classifier (R-CNN, section 2.1 and appendix A).

A box is widened so that after warping some pixels of context surround it, cut at the image's borders, and resized
bilinearly without antialiasing, each side by its own factor. Where the widened box leaves the image the window is
empty. The arithmetic, rounding included, is that of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

WarpMode = Literal["warp", "square"]
SIDE = 227
CONTEXT = 16


@dataclass(frozen=True)
class CropGeometry:
    """From where in the image each of N windows is taken, and where in the window that lies.

    Attributes:
        sources: [N, 4] int64 half-open XYXY in pixels of the image, within it.
        sizes: [N, 2] int64 height and width in the window, each at least 1.
        offsets: [N, 2] int64 rows above and columns left of it in the window.
    """

    sources: Tensor
    sizes: Tensor
    offsets: Tensor


def crop_geometry(
    boxes: Tensor, image_size: Sequence[int], size: int = SIDE, pad: int = CONTEXT, mode: WarpMode = "warp"
) -> CropGeometry:
    """Where windows come from and go to.

    Args:
        boxes: [N, 4] half-open XYXY in pixels of the image, each overlapping it.
        image_size: height and width of the image.
        size: side of the window.
        pad: pixels of context around the box, in the window; 0 with mode "warp" is a plain resize of the box.
        mode: "warp" changes the aspect ratio, "square" takes the tightest square around the box instead.
    """
    edges = boxes.double()
    limits = torch.tensor([image_size[1], image_size[0]], dtype=torch.int64, device=boxes.device)
    if pad == 0 and mode == "warp":
        low, high = _rounded(edges[:, :2]), _rounded(edges[:, 2:])
    else:
        low, high = _widened(edges, size / (size - 2 * pad), mode)
    scale = size / (high - low).clamp_min(1).double()
    inner_low = torch.minimum(low.clamp_min(0), limits - 1)
    inner_high = torch.maximum(torch.minimum(high, limits), inner_low + 1)
    offset = _rounded((-low).clamp_min(0) * scale).clamp_max(size - 1)
    extent = _rounded((inner_high - inner_low) * scale).clamp_min(1)
    extent = torch.minimum(extent, size - offset)
    return CropGeometry(torch.cat([inner_low, inner_high], dim=1), extent.flip(1), offset.flip(1))


def _widened(edges: Tensor, factor: float, mode: WarpMode) -> tuple[Tensor, Tensor]:
    """The corners with context, half-open; the released code's last pixel lies one beyond the rounded edge."""
    half = (edges[:, 2:] - edges[:, :2]) / 2
    center = edges[:, :2] + half
    if mode == "square":
        half = half.max(dim=1, keepdim=True).values.expand_as(half)
    return _rounded(center - half * factor), _rounded(center + half * factor) + 1


def _rounded(values: Tensor) -> Tensor:
    """To the nearest whole number, halves away from zero as in C; torch rounds them to even numbers."""
    return (values.sign() * (values.abs() + 0.5).floor()).long()


def warp_regions(
    image: Tensor, boxes: Tensor, size: int = SIDE, pad: int = CONTEXT, mode: WarpMode = "warp"
) -> tuple[Tensor, Tensor]:
    """The windows of boxes.

    Args:
        image: [C, H, W] float.
        boxes: [N, 4] half-open XYXY in its pixels.
        size: as in `crop_geometry`.
        pad: likewise.
        mode: likewise.

    Returns:
        windows [N, C, size, size] of the image's dtype, 0 outside the image, and [N, size, size] bool, True there.
    """
    geometry = crop_geometry(boxes, image.shape[-2:], size, pad, mode)
    rows, outside_rows = _sampled(geometry, 0, size)
    columns, outside_columns = _sampled(geometry, 1, size)
    height, width = image.shape[-2:]
    # One tall sampling of one image: a batch would need a copy of the image for each window.
    grid = torch.empty(len(boxes), size, size, 2, dtype=image.dtype, device=image.device)
    grid[..., 0] = (2 * columns / max(1, width - 1) - 1)[:, None, :]
    grid[..., 1] = (2 * rows / max(1, height - 1) - 1)[:, :, None]
    tall = grid.view(1, len(boxes) * size, size, 2)
    sampled = grid_sample(image[None], tall, mode="bilinear", padding_mode="border", align_corners=True)
    windows = sampled[0].view(len(image), len(boxes), size, size).transpose(0, 1)
    outside = outside_rows[:, :, None] | outside_columns[:, None, :]
    return windows.masked_fill(outside[:, None], 0.0), outside


def warp_masks(masks: Tensor, boxes: Tensor, size: int = SIDE, pad: int = CONTEXT, mode: WarpMode = "warp") -> Tensor:
    """The same windows of one mask each, by the nearest pixel.

    Args:
        masks: [N, H, W] bool.
        boxes: [N, 4].
        size: as in `crop_geometry`.
        pad: likewise.
        mode: likewise.

    Returns:
        [N, size, size] bool, False outside the image.
    """
    geometry = crop_geometry(boxes, masks.shape[-2:], size, pad, mode)
    rows, outside_rows = _sampled(geometry, 0, size)
    columns, outside_columns = _sampled(geometry, 1, size)
    number = torch.arange(len(masks), device=masks.device)[:, None, None]
    values = masks[number, rows.round().long()[:, :, None], columns.round().long()[:, None, :]]
    return values & ~(outside_rows[:, :, None] | outside_columns[:, None, :])


def _sampled(geometry: CropGeometry, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis, 0 for rows: where in the image each cell of a window is sampled, and which lie outside.

    Returns:
        [N, size] float64 pixel coordinates, whole numbers at the centres of pixels, and [N, size] bool.
    """
    first, last = (geometry.sources[:, 1 - axis + side, None] for side in (0, 2))
    extent, offset = geometry.sizes[:, axis, None], geometry.offsets[:, axis, None]
    cell = torch.arange(size, device=extent.device) - offset
    outside = (cell < 0) | (cell >= extent)
    place = (cell + 0.5) * ((last - first).double() / extent) - 0.5
    # What is resized is the cut box, so that nothing beside it shines through.
    inside = torch.minimum(place.clamp_min(0), (last - first - 1).double())
    return first + inside, outside
