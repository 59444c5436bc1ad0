"""Anchors: the reference boxes of a region proposal network, and what each of them is to learn (Faster R-CNN, 3.1).

Boxes are half-open XYXY in pixels of the network's input, as in `models.boxes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from labelwise.models.boxes import encode_boxes
from labelwise.models.regions import draw_positions

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the paper's anchors."""
SCALES = (8, 16, 32)
"""Sides of the paper's square anchors, as multiples of the stride of 16."""
IGNORED = -1
"""The label of anchors that take no part in the loss."""


def make_anchors(stride: int = 16, ratios: Sequence[float] = RATIOS, scales: Sequence[float] = SCALES) -> Tensor:
    """The anchors of the first cell of a feature map.

    Their sides are whole multiples of those of a window of the area of one cell, which are rounded: for a stride of 16
    the windows are 23 x 12, 16 x 16 and 11 x 22. The centre is that of the cell.

    Args:
        stride: input pixels per cell.
        ratios: heights over widths.
        scales: sides as multiples of those of the window.

    Returns:
        [A, 4] float32, one ratio after the other, for each all scales; the default's are the paper's nine.
    """
    shapes = []
    for ratio in ratios:
        width = max(1, round((stride * stride / ratio) ** 0.5))
        height = max(1, round(width * ratio))
        shapes += [(width * scale, height * scale) for scale in scales]
    half = torch.tensor(shapes, dtype=torch.float32) / 2
    return torch.cat([stride / 2 - half, stride / 2 + half], dim=1)


def grid_anchors(anchors: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The anchors of every cell of a feature map.

    Args:
        anchors: [A, 4] of the first cell.
        height: of the map, in cells.
        width: of it.
        stride: input pixels per cell.

    Returns:
        [height * width * A, 4], row by row, in each cell in the order of `anchors`.
    """
    rows = torch.arange(height, device=anchors.device, dtype=anchors.dtype) * stride
    columns = torch.arange(width, device=anchors.device, dtype=anchors.dtype) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1)
    return (shifts[:, :, None] + anchors).view(-1, 4)


def inside_image(anchors: Tensor, size: Sequence[int]) -> Tensor:
    """Which anchors [N, 4] lie whole in an image of this height and width: [N] bool."""
    height, width = size
    return (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)


@torch.no_grad()
def anchor_targets(
    anchors: Tensor,
    boxes: Tensor,
    size: Sequence[int] | None,
    *,
    positive: float = 0.7,
    negative: float = 0.3,
    samples: int = 256,
    positive_share: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """What the anchors of one image are to learn (Faster R-CNN, section 3.1.2).

    Of the anchors that lie whole in the image positive are those with an IoU of at least `positive` with some object,
    and for each object all those that share the highest IoU with it, however low, if they touch it; negative are the
    others with an IoU below `negative` with every object. Of both a random sample is drawn, by torch's global
    generator.

    Args:
        anchors: [N, 4].
        boxes: [M, 4], the objects.
        size: height and width of the image; None = anchors beyond its border count as well, as on a feature pyramid
            (FPN, section 4.1).
        positive: least IoU of positive anchors.
        negative: negative anchors have less.
        samples: the most anchors that are drawn.
        positive_share: the most positive ones among them; negative ones fill up.

    Returns:
        labels [N] int64, 1 for positive, 0 for negative and -1 for all others, and the offsets [N, 4] from each anchor
        to the object with which it has the highest IoU; 0 where an image has no objects.
    """
    labels = torch.full((len(anchors),), IGNORED, dtype=torch.int64, device=anchors.device)
    targets = torch.zeros_like(anchors)
    counted = torch.ones_like(labels, dtype=torch.bool) if size is None else inside_image(anchors, size)
    inside = counted.nonzero().squeeze(1)
    objectness = torch.zeros(len(inside), dtype=torch.int64, device=anchors.device)
    if len(boxes) and len(inside):
        overlaps = box_iou(anchors[inside], boxes)
        best, nearest = overlaps.max(dim=1)
        highest = overlaps.amax(dim=0)
        tied = ((overlaps == highest) & (highest > 0)).any(dim=1)
        objectness[best >= negative] = IGNORED
        objectness[tied | (best >= positive)] = 1
        targets[inside] = encode_boxes(anchors[inside], boxes[nearest])
    labels[inside] = _sampled(objectness, samples, int(samples * positive_share))
    return labels, targets


def _sampled(labels: Tensor, samples: int, most_positive: int) -> Tensor:
    """The labels [N] with all but a random sample of positive and negative ones ignored."""
    positive = draw_positions(labels == 1, most_positive)
    negative = draw_positions(labels == 0, samples - len(positive))
    sampled = torch.full_like(labels, IGNORED)
    sampled[positive], sampled[negative] = 1, 0
    return sampled
