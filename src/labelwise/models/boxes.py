"""Boxes as tensors: offsets from one box to another, clipping, and non-maximum suppression by class.

Boxes are half-open XYXY: width is x2 - x1. The formulas of R-CNN and its successors, written for boxes whose last pixel
is inside, with a "+ 1" in each width, become these without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

LONGEST_STEP = 4.135166556742356
"""ln(1000 / 16): the largest offset of a logarithmic side that is decoded, so that no side overflows."""
FIXED_DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
"""Standard deviations by which Faster R-CNN's head divides its targets."""


def encode_boxes(sources: Tensor, targets: Tensor) -> Tensor:
    """The offsets that turn boxes into others (R-CNN, appendix C; Fast R-CNN, section 2.3).

    Args:
        sources: [N, 4], each of some area.
        targets: [N, 4].

    Returns:
        [N, 4]: shift of the centre in widths and heights of the source, logarithms of the ratios of the sides.
    """
    center, size = _center_size(sources)
    target_center, target_size = _center_size(targets)
    return torch.cat([(target_center - center) / size, (target_size / size).log()], dim=-1)


def decode_boxes(sources: Tensor, offsets: Tensor) -> Tensor:
    """The boxes that offsets lead to; the inverse of `encode_boxes`.

    Args:
        sources: [N, 4].
        offsets: [N, 4], or [N, K, 4] for K boxes of each source.

    Returns:
        of the shape of `offsets`.
    """
    center, size = _center_size(sources)
    if offsets.ndim == 3:
        center, size = center[:, None], size[:, None]
    moved = center + offsets[..., :2] * size
    half = size * offsets[..., 2:].clamp(max=LONGEST_STEP).exp() / 2
    return torch.cat([moved - half, moved + half], dim=-1)


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Cut boxes [..., 4] at the borders of an image of this height and width."""
    height, width = size
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        dim=-1,
    )


def scale_boxes(boxes: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Boxes [..., 4] of an image of one height and width, in the same image scaled to another."""
    ratio = boxes.new_tensor([new[1] / old[1], new[0] / old[0]])
    return boxes * ratio.repeat(2)


def sides(boxes: Tensor) -> Tensor:
    """Width and height. [..., 4] -> [..., 2]."""
    return boxes[..., 2:] - boxes[..., :2]


def best_boxes(
    boxes: Tensor, scores: Tensor, threshold: float, nms_threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept of boxes that are scored for several classes: by score, then non-maximum suppression of each class.

    Args:
        boxes: [N, K, 4], or [N, 4] where all classes share the box.
        scores: [N, K].
        threshold: least score, exclusive.
        nms_threshold: a box is dropped if its IoU with a better one of its class is above.
        most: the most boxes kept, over all classes.

    Returns:
        boxes [M, 4], columns of `scores` [M] int64 and scores [M], by falling score.
    """
    rows, columns = (scores > threshold).nonzero(as_tuple=True)
    chosen = boxes[rows] if boxes.ndim == 2 else boxes[rows, columns]
    values = scores[rows, columns]
    kept = batched_nms(chosen, values, columns, nms_threshold)[:most]
    return chosen[kept], columns[kept], values[kept]


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = sides(boxes)
    return boxes[..., :2] + size / 2, size
