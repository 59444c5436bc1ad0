"""Boxes from score maps, for many thresholds at once: the largest component (BAS), and contours (wsolevaluation).

Both papers' protocols give a box two corners and measure overlap as if both were pixels of it (`iou_inclusive`). Boxes
from here have those two corners. The second one lies one past the last pixel, as published, which makes boxes one pixel
larger than what they enclose.

Sources: BAS (Wu et al., CVPR 2022), "Evaluating Weakly Supervised Object Localization Methods Right" (Choe et al.,
CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.morphology import reconstruction
from torch import Tensor
from torch.nn import functional

from labelwise.errors import UserError
from labelwise.metrics.component_tree import Components, component_tree

SIZE = 224
"The height and width at which boxes are compared."
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)

Integers = NDArray[np.int64]


def iou_inclusive(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes whose both corners are pixels of the box, so that a side is x1 - x0 + 1 long.

    Args:
        boxes: [N, 4] XYXY.
        others: [M, 4] XYXY.

    Returns:
        [N, M] float64.
    """
    boxes, others = boxes.double(), others.double()
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low + 1).clamp(min=0).prod(dim=2)
    areas, other_areas = ((values[:, 2:] - values[:, :2] + 1).prod(dim=1) for values in (boxes, others))
    return shared / (areas[:, None] + other_areas - shared)


def boxes_in_frame(
    boxes: Tensor, shape: tuple[int, int], frame: Literal["squeezed", "center_crop"] = "squeezed", size: int = SIZE
) -> Tensor:
    """Boxes of an image as they lie in the frame in which they are compared, cut to whole pixels.

    Args:
        boxes: [N, 4] half-open XYXY in pixels of the image.
        shape: height and width of the image.
        frame: "squeezed" into a square of `size` (wsolevaluation), or squeezed into one that is larger by 8/7 (256 for
            224), of which the center is cut out (BAS).
        size: side of the frame.

    Returns:
        [N, 4] int64 half-open XYXY in pixels of the frame, with at least one pixel.
    """
    side = size if frame == "squeezed" else size * 8 // 7
    height, width = shape
    scaled = boxes.double() * side / boxes.new_tensor([width, height] * 2, dtype=torch.float64)
    edges = (scaled - (side - size) // 2).clamp(0, size).long()
    first = edges[:, :2].clamp(max=size - 1)
    return torch.cat([first, torch.maximum(edges[:, 2:], first + 1)], dim=1)


def inclusive_corners(boxes: Tensor) -> Tensor:
    """Half-open boxes [N, 4] of whole pixels by their first and last pixel, for `iou_inclusive`."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


@dataclass(frozen=True)
class ThresholdBoxes:
    """The boxes of one score map at each of T increasing thresholds; a box that stays the same may be kept once.

    Attributes:
        boxes: [N, 4] int64, see the module's text.
        start: [N] int64, the first threshold at which a box is found.
        stop: [N] int64, one past the last.
        thresholds: T.
    """

    boxes: Tensor
    start: Tensor
    stop: Tensor
    thresholds: int

    def at(self, place: int) -> Tensor:
        """The boxes [n, 4] at one threshold; n is at least 1."""
        return self.boxes[(self.start <= place) & (place < self.stop)]

    def highest(self, values: Tensor) -> Tensor:
        """The highest value among the boxes of each threshold. [N] float -> [T] float."""
        return torch.where(self._found(), values, -torch.inf).amax(dim=1)

    def largest(self, sizes: Tensor) -> ThresholdBoxes:
        """At each threshold only the box of the largest size, of equals the first. `sizes`: [N] int64, at least 0."""
        if not len(self.boxes):
            return self
        size, chosen = torch.where(self._found(), sizes, -1).max(dim=1)
        places = (size >= 0).nonzero().flatten()
        return ThresholdBoxes(self.boxes[chosen[places]], places, places + 1, self.thresholds)

    def otherwise(self, box: Sequence[int]) -> ThresholdBoxes:
        """The same with a box for the thresholds that have none."""
        places = (~self._found().any(dim=1)).nonzero().flatten()
        boxes = torch.cat([self.boxes, self.boxes.new_tensor([box]).expand(len(places), 4)])
        start, stop = torch.cat([self.start, places]), torch.cat([self.stop, places + 1])
        return ThresholdBoxes(boxes, start, stop, self.thresholds)

    def _found(self) -> Tensor:
        places = torch.arange(self.thresholds)[:, None]
        return (self.start <= places) & (places < self.stop)


def largest_component_boxes(score_map: Tensor, thresholds: Tensor, size: int = SIZE) -> ThresholdBoxes:
    """The box around the largest component above each threshold, as BAS takes it.

    The map is normalised (`normalize_map`), then resized bilinearly; a pixel belongs to a component if it is above the
    threshold, and pixels that touch at a corner are joined. Of components of equal size the first one in reading order
    counts. Without a component the box is the whole frame, [0, 0, size, size].

    Args:
        score_map: [h, w] float, of one class.
        thresholds: [T], increasing, of the map after its normalisation.
        size: height and width of the frame of the boxes.

    Returns:
        One box per threshold; the second corner lies one past the last pixel.

    Raises:
        UserError: the map holds values that are not finite numbers.
    """
    resized = resize_map(normalize_map(score_map), size)
    # In the precision of the map, so that a value of just the threshold is not above it.
    levels = torch.bucketize(resized, thresholds.to(resized)).cpu().numpy()
    found = component_tree(levels, diagonal=True)
    order = np.argsort(found.first, kind="stable")
    pixels = torch.from_numpy(found.pixels[order])
    return _boxes(found, order, len(thresholds)).largest(pixels).otherwise([0, 0, size, size])


def contour_boxes(score_map: Tensor, thresholds: Tensor, *, multi: bool) -> ThresholdBoxes:
    """The boxes around contours at each threshold, as wsolevaluation takes them for MaxBoxAcc.

    The map is quantised, q = floor(255 m), and a pixel is inside if q > floor(t max q): thresholds are shares of the
    map's maximum. Contours are the outer borders of components, whose pixels may touch at a corner, and the borders
    around their holes. The second corner of a box lies one past the contour's last pixel, but inside the map. Without
    a contour the box is [0, 0, 0, 0].

    The area of a contour is that of the polygon through the centers of its pixels, holes included. Since it never is
    larger than the contour around it, one in a hole needs not be looked at. Of contours of equal area the one that
    begins last in reading order counts, as with OpenCV, which lists them from the bottom of the image.

    Args:
        score_map: [H, W] float in 0..1.
        thresholds: [T], increasing.
        multi: all contours instead of the one of the largest area.

    Raises:
        UserError: the map has values outside 0..1.
    """
    check_unit_range(score_map)
    quantized = (255 * score_map.detach().float()).floor().cpu().numpy()
    cuts = np.floor(thresholds.double().numpy() * quantized.max())
    levels = np.searchsorted(cuts, quantized)
    if multi:
        found = _all_contours(levels, len(thresholds))
    else:
        outer = component_tree(_without_holes(levels), diagonal=True)
        # Those that begin last come first.
        order = np.argsort(-outer.first, kind="stable")
        found = _boxes(outer, order, len(thresholds)).largest(torch.from_numpy(outer.areas[order]))
    height, width = score_map.shape
    inside = torch.minimum(found.boxes, torch.tensor([width - 1, height - 1] * 2))
    return replace(found, boxes=inside).otherwise([0, 0, 0, 0])


def normalize_map(score_map: Tensor) -> Tensor:
    """The map in 0..1 as BAS brings it there: (m - min) / (max - min + 1e-5); a constant map gives zeros.

    Args:
        score_map: [h, w].

    Returns:
        [h, w] float32.

    Raises:
        UserError: the map holds values that are not numbers.
    """
    score_map = score_map.detach().float()
    low, high = score_map.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise UserError("a score map holds values that are not finite numbers")
    return (score_map - low) / (high - low + 1e-5)


def resize_map(score_map: Tensor, size: int) -> Tensor:
    """The map at another size, bilinearly. [h, w] -> [size, size]."""
    if score_map.shape == (size, size):
        return score_map
    return functional.interpolate(score_map[None, None].float(), (size, size), mode="bilinear")[0, 0]


def check_unit_range(score_map: Tensor) -> None:
    """Refuse a map with values outside 0..1.

    Raises:
        UserError: as said.
    """
    low, high = score_map.aminmax()
    # Interpolation rounds.
    if not (low >= 0 and high <= 1 + 1e-5):
        raise UserError(f"a score map holds values from {low:g} to {high:g}; divide it by its maximum, to 0..1")


def _all_contours(levels: Integers, thresholds: int) -> ThresholdBoxes:
    outer = component_tree(levels, diagonal=True)
    # A hole's pixels touch at sides. One that reaches the rim of the image is the outside.
    holes = component_tree(thresholds - levels, diagonal=False)
    height, width = levels.shape
    closed = (holes.boxes[:, :2] > 0).all(axis=1) & (holes.boxes[:, 2:] < [width, height]).all(axis=1)
    # The contour around a hole runs through the pixels that enclose it.
    around = holes.boxes[closed] + np.array([-1, -1, 1, 1])
    boxes = np.concatenate([outer.boxes, around])
    start = np.concatenate([outer.start, thresholds - holes.stop[closed]])
    stop = np.concatenate([outer.stop, thresholds - holes.start[closed]])
    return _from_arrays(boxes, start, stop, thresholds)


def _without_holes(levels: Integers) -> Integers:
    """The levels where each pixel is as high as what encloses it: {level > k} without its holes, for every k."""
    seed = np.full_like(levels, levels.max())
    for rim in (0, -1):
        seed[rim], seed[:, rim] = levels[rim], levels[:, rim]
    return reconstruction(seed, levels, method="erosion", footprint=_CROSS).astype(np.int64)


def _boxes(found: Components, order: Integers, thresholds: int) -> ThresholdBoxes:
    return _from_arrays(found.boxes[order], found.start[order], found.stop[order], thresholds)


def _from_arrays(boxes: Integers, start: Integers, stop: Integers, thresholds: int) -> ThresholdBoxes:
    return ThresholdBoxes(torch.from_numpy(boxes), torch.from_numpy(start), torch.from_numpy(stop), thresholds)
