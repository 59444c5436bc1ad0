"""The region proposal network of Faster R-CNN: where objects of any class may be, told from a detector's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import nms

from labelwise.models.boxes import clip_boxes, decode_boxes, sides

SIGMA = 3.0
"""How soon the smooth L1 loss of the offsets turns linear: at 1 / sigma^2."""
NEW_LAYER_STD = 0.01


class RegionProposalNetwork(nn.Module):
    """Scores and offsets of A anchors at every cell of a feature map (Faster R-CNN, section 3.1).

    A 3x3 convolution with ReLU, then a 1x1 convolution for the scores and one for the offsets. Of the 2A channels of
    scores the first A say "background", the last A "object", as in the released models.
    """

    def __init__(self, channels: int, anchors: int, hidden: int = 512) -> None:
        """Build it with random weights.

        Args:
            channels: of the feature map.
            anchors: A, in each cell.
            hidden: channels of the 3x3 convolution: 512 for VGG-16, 256 for ZF.
        """
        super().__init__()
        self.anchors = anchors
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.scores = nn.Conv2d(hidden, 2 * anchors, 1)
        self.offsets = nn.Conv2d(hidden, 4 * anchors, 1)
        for layer in (self.conv, self.scores, self.offsets):
            nn.init.normal_(layer.weight, std=NEW_LAYER_STD)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Score and move the anchors, in the order of `grid_anchors`.

        Args:
            features: [B, channels, h, w].

        Returns:
            logits [B, h * w * A, 2] of background and object, and offsets [B, h * w * A, 4].
        """
        hidden = functional.relu(self.conv(features))
        logits = self.scores(hidden).unflatten(1, (2, self.anchors)).permute(0, 3, 4, 2, 1)
        offsets = self.offsets(hidden).unflatten(1, (self.anchors, 4)).permute(0, 3, 4, 1, 2)
        return logits.flatten(1, 3), offsets.flatten(1, 3)


def rpn_loss(
    logits: Tensor, offsets: Tensor, labels: Tensor, targets: Tensor, sigma: float = SIGMA
) -> dict[str, Tensor]:
    """The loss of the region proposal network (Faster R-CNN, equation 1, with the released code's weights).

    Args:
        logits: [N, 2] of background and object.
        offsets: [N, 4].
        labels: [N] int64: 1 object, 0 background, all others do not count.
        targets: [N, 4], the true offsets of objects.
        sigma: the smooth L1 loss is (sigma d)^2 / 2 for |d| < 1 / sigma^2, and |d| - 1 / (2 sigma^2) beyond.

    Returns:
        `scores` (cross-entropy) and `offsets`, scalars float32; both are sums over the anchors that count, divided by
        their number, and 0 where none does.
    """
    counted = (labels >= 0).nonzero().squeeze(1)
    positive = (labels == 1).nonzero().squeeze(1)
    number = max(1, len(counted))
    scores = functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum")
    beta = 1 / sigma**2
    moved = functional.smooth_l1_loss(offsets[positive].float(), targets[positive], beta=beta, reduction="sum")
    return {"scores": scores / number, "offsets": moved / number}


@torch.no_grad()
def propose(
    logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    size: Sequence[int],
    *,
    min_side: float = 16.0,
    before: int = 6000,
    after: int = 300,
    nms_threshold: float = 0.7,
) -> tuple[Tensor, Tensor]:
    """The proposals of one image: decoded, clipped, large enough, the best ones, without near duplicates.

    Args:
        logits: [N, 2] of background and object.
        offsets: [N, 4].
        anchors: [N, 4].
        size: height and width of the image.
        min_side: proposals with a smaller side are dropped.
        before: the most that non-maximum suppression looks at.
        after: the most that are kept.
        nms_threshold: a proposal is dropped if its IoU with a better one is above.

    Returns:
        boxes [P, 4] and probabilities of object [P], by falling probability. They carry no gradient: their
        coordinates are constants of the training ("approximate joint training").
    """
    # The probability of object rises with it.
    margins = (logits[:, 1] - logits[:, 0]).float()
    boxes, margins = _best_large(margins, offsets, anchors, size, min_side, before)
    kept = first_kept(boxes, margins, nms_threshold, after)
    return boxes[kept], margins[kept].sigmoid()


@torch.no_grad()
def propose_over_levels(
    logits: Tensor, offsets: Tensor, anchors: Sequence[Tensor], size: Sequence[int], *, after: int = 300, **limits: Any
) -> tuple[Tensor, Tensor]:
    """The proposals of one image with several feature maps: those of each map, the best of all of them.

    Args:
        logits: [N, 2], map after map.
        offsets: [N, 4].
        anchors: [n, 4] of each map, N in all.
        size: height and width of the image.
        after: the most that are kept, of each map and in all.
        **limits: as of `propose`, for each map.

    Returns:
        as `propose`.
    """
    counts = [len(each) for each in anchors]
    parts = zip(logits.split(counts), offsets.split(counts), anchors, strict=True)
    found = [propose(*part, size, after=after, **limits) for part in parts]
    if len(found) == 1:
        return found[0]
    boxes, scores = (torch.cat(each) for each in zip(*found, strict=True))
    scores, order = scores.topk(min(after, len(scores)))
    return boxes[order], scores


def _best_large(
    scores: Tensor, offsets: Tensor, anchors: Tensor, size: Sequence[int], min_side: float, most: int
) -> tuple[Tensor, Tensor]:
    """The boxes with the highest scores that are large enough, and their scores; others are not even decoded."""
    looked_at = 2 * most
    while True:
        values, order = scores.topk(min(looked_at, len(scores)))
        boxes = clip_boxes(decode_boxes(anchors[order], offsets[order].float()), size)
        large = (sides(boxes) >= min_side).all(dim=1).nonzero().squeeze(1)[:most]
        if len(large) == most or looked_at >= len(scores):
            return boxes[large], values[large]
        looked_at *= 2


def first_kept(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    """The first of the boxes that non-maximum suppression keeps.

    Whether a box is kept depends on better ones only: as long as enough are kept of the first boxes, the others, whose
    time grows with the square of their number, need not be looked at.

    Args:
        boxes: [N, 4], by falling score.
        scores: [N].
        threshold: a box is dropped if its IoU with a better one is above.
        most: the most that are kept.

    Returns:
        [M] int64, rising.
    """
    looked_at = 2 * most
    while True:
        kept = nms(boxes[:looked_at], scores[:looked_at], threshold)
        if len(kept) >= most or looked_at >= len(boxes):
            return kept[:most]
        looked_at *= 2
