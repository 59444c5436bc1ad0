"""Detection on regions of a feature map: pooling, sampling, losses and the head of Fast R-CNN and its successors.

Boxes are half-open XYXY in pixels of the network's input. A region of interest (ROI) is such a box in one image of a
batch. Everything is from Girshick: Fast R-CNN, ICCV 2015, unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou, roi_align, roi_pool

from labelwise.models.boxes import encode_boxes

SCORE_DEVIATION, OFFSET_DEVIATION = 0.01, 0.001
"""Standard deviations of the two last layers' random weights (section 2.3)."""
ALIGN_SAMPLES = 2


def as_rois(boxes: Sequence[Tensor]) -> Tensor:
    """The boxes of each image of a batch, B times [n, 4], in one tensor [R, 5]: the image's number, then the box."""
    numbers = [each.new_full((len(each), 1), number) for number, each in enumerate(boxes)]
    return torch.cat([torch.cat(numbers), torch.cat(list(boxes))], dim=1)


def roi_max_pool(features: Tensor, boxes: Sequence[Tensor] | Tensor, stride: int, size: int) -> Tensor:
    """The maxima over a grid of bins in each region (section 2.1).

    Corners are rounded to cells; the bins of a region tile its cells with overlaps where they do not divide; a bin
    without a cell is 0. `torchvision.ops.roi_pool` is Caffe's layer, for corners that lie inside the box.

    Args:
        features: [B, C, h, w].
        boxes: B times [n, 4], or [R, 5] as of `as_rois`; half-open, in pixels of the input.
        stride: pixels of the input per cell.
        size: bins along each side.

    Returns:
        [R, C, size, size] float32; the gradient goes to each bin's greatest cell.
    """
    return roi_pool(features.float(), _inclusive(boxes), size, 1 / stride)


def roi_align_pool(features: Tensor, boxes: Sequence[Tensor] | Tensor, stride: int, size: int) -> Tensor:
    """The means over a grid of bins, read between cells without rounding (He et al.: Mask R-CNN, ICCV 2017).

    Args:
        features: [B, C, h, w].
        boxes: as of `roi_max_pool`.
        stride: pixels of the input per cell.
        size: bins along each side.

    Returns:
        [R, C, size, size] float32.
    """
    rois = boxes if isinstance(boxes, Tensor) else as_rois(boxes)
    return roi_align(features.float(), rois.float(), size, 1 / stride, sampling_ratio=ALIGN_SAMPLES, aligned=True)


def distinct_rois(rois: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Regions that cover different cells; `roi_max_pool` cannot tell the others apart.

    Args:
        rois: [R, 5] as of `as_rois`.
        stride: pixels of the input per cell.

    Returns:
        the distinct regions [U, 5], and for each of the R the position of its like, [R] int64.
    """
    inclusive = _inclusive(rois)
    scaled = inclusive[:, 1:] * (1 / stride)
    # Half away from zero, as the pooling rounds.
    cells = torch.cat([inclusive[:, :1], scaled.sign() * (scaled.abs() + 0.5).floor()], dim=1)
    distinct, position = cells.unique(dim=0, return_inverse=True)
    numbers = torch.arange(len(rois), device=rois.device)
    first = numbers.new_full((len(distinct),), len(rois)).scatter_reduce_(0, position, numbers, "amin")
    return rois[first], position


def _inclusive(boxes: Sequence[Tensor] | Tensor) -> Tensor:
    rois = (boxes if isinstance(boxes, Tensor) else as_rois(boxes)).float()
    return torch.cat([rois[:, :3], rois[:, 3:] - 1], dim=1)


def best_overlaps(candidates: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """For each candidate [N, 4] its greatest IoU with one of the boxes [M, 4], and which: [N] and [N] int64.

    Without boxes the IoU is 0, and the number has no meaning.
    """
    if not len(boxes):
        return candidates.new_zeros(len(candidates)), candidates.new_zeros(len(candidates), dtype=torch.int64)
    best = box_iou(candidates, boxes).max(dim=1)
    return best.values, best.indices


class SampledRois(NamedTuple):
    """The regions of one image that a training step learns from; foreground first.

    Attributes:
        boxes: [n, 4].
        labels: [n] int64, 0 = background, 1..K the classes of objects.
        targets: [n, 4] offsets to the object, not normalised; 0 for background.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor


@torch.no_grad()
def sample_rois(
    proposals: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    count: int,
    foreground_share: float,
    foreground_threshold: float,
    background_low: float,
    background_high: float,
) -> SampledRois:
    """Draw regions of one image, without replacement, from its proposals and its objects' boxes (section 2.3).

    Where foreground is scarce there is more background; where both are, there are fewer regions, down to none. Draws
    come from torch's global generator.

    Args:
        proposals: [P, 4].
        boxes: [M, 4] the objects, M may be 0.
        labels: [M] int64, their classes 0..K-1.
        count: the most regions.
        foreground_share: the most that are foreground, as a share of `count`.
        foreground_threshold: least IoU of foreground with an object, whose class it has then.
        background_low: least IoU of background with the object that it overlaps most.
        background_high: greatest such IoU, exclusive.
    """
    candidates = torch.cat([proposals, boxes])
    overlap, nearest = best_overlaps(candidates, boxes)
    foreground = draw_positions(overlap >= foreground_threshold, round(count * foreground_share))
    background = draw_positions((overlap >= background_low) & (overlap < background_high), count - len(foreground))
    chosen = torch.cat([foreground, background])
    sampled_labels = torch.zeros_like(chosen)
    targets = candidates.new_zeros(len(chosen), 4)
    if len(foreground):
        sampled_labels[: len(foreground)] = labels[nearest[foreground]] + 1
        targets[: len(foreground)] = encode_boxes(candidates[foreground], boxes[nearest[foreground]])
    return SampledRois(candidates[chosen], sampled_labels, targets)


def sample_batch(
    proposals: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor], **limits: Any
) -> tuple[list[Tensor], Tensor, Tensor]:
    """`sample_rois` of each image of a batch.

    Args:
        proposals: B times [P, 4].
        boxes: B times [M, 4].
        labels: B times [M].
        **limits: as of `sample_rois`.

    Returns:
        the regions of each image, B times [n, 4], and labels [R] and targets [R, 4] of all of them.
    """
    sampled = [sample_rois(*image, **limits) for image in zip(proposals, boxes, labels, strict=True)]
    return (
        [each.boxes for each in sampled],
        torch.cat([each.labels for each in sampled]),
        torch.cat([each.targets for each in sampled]),
    )


def draw_positions(eligible: Tensor, most: int) -> Tensor:
    """Positions where [N] bool is true, at most so many, drawn without replacement: [n] int64."""
    positions = eligible.nonzero().squeeze(1)
    return positions[torch.randperm(len(positions), device=positions.device)[:most]]


def fast_rcnn_loss(
    logits: Tensor, offsets: Tensor, labels: Tensor, targets: Tensor, weight: float = 1.0, beta: float = 1.0
) -> dict[str, Tensor]:
    """- log softmax of the true class, and smooth L1 of that class's offsets for foreground (equations 1 to 3).

    Both are divided by the number of regions, background included.

    Args:
        logits: [N, K + 1], background first.
        offsets: [N, 4 (K + 1)], those of one class side by side.
        labels: [N] int64, 0 = background.
        targets: [N, 4].
        weight: of the offsets' term, lambda in the paper.
        beta: |difference| from which smooth L1 is linear; 1 / sigma^2 in the papers that follow.

    Returns:
        "classification" and "boxes": scalars float32, 0 without regions.
    """
    regions = max(1, len(labels))
    foreground = (labels > 0).nonzero().squeeze(1)
    learned = offsets.float().unflatten(1, (-1, 4))[foreground, labels[foreground]]
    return {
        "classification": functional.cross_entropy(logits.float(), labels, reduction="sum") / regions,
        "boxes": weight
        * functional.smooth_l1_loss(learned, targets[foreground].float(), beta=beta, reduction="sum")
        / regions,
    }


class FullyConnected(nn.Module):
    """Two linear layers on pooled features, each with ReLU and dropout: fc6 and fc7 of a classifier, or light ones.

    Attributes:
        width: numbers per region that come out.
        full_ranks: the greatest rank of each layer.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        widths: tuple[int, int],
        dropout: float = 0.5,
        ranks: tuple[int, int] = (0, 0),
    ) -> None:
        """Build it with random weights.

        Args:
            channels: of the pooled features.
            size: bins along each side.
            widths: outputs of the two layers.
            dropout: share of outputs of each layer that training sets to 0.
            ranks: build them in the form that `compress` gives; 0 = as one layer.
        """
        super().__init__()
        sides = (channels * size**2, *widths)
        self.fc6, self.fc7 = (
            low_rank_linear(inputs, outputs, rank) if rank else nn.Linear(inputs, outputs)
            for inputs, outputs, rank in zip(sides, widths, ranks, strict=False)
        )
        self.dropout = dropout
        self.width = widths[1]
        self.full_ranks = min(sides[:2]), min(sides[1:])
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """[R, channels, size, size] -> [R, width]."""
        hidden = pooled.flatten(1)
        for layer in (self.fc6, self.fc7):
            hidden = functional.dropout(layer(hidden).relu(), self.dropout, self.training)
        return hidden

    def compress(self, ranks: tuple[int, int]) -> None:
        """Cut the layers to these ranks, in place (`truncated_svd_linear`); one of rank 0, or cut before, stays.

        Raises:
            ValueError: a rank that the layer cannot have.
        """
        if ranks[0] and isinstance(self.fc6, nn.Linear):
            self.fc6 = truncated_svd_linear(self.fc6, ranks[0])
        if ranks[1] and isinstance(self.fc7, nn.Linear):
            self.fc7 = truncated_svd_linear(self.fc7, ranks[1])


class RegionHead(nn.Module):
    """Scores of K + 1 classes and offsets for each of them, from what was pooled in a region.

    The layer of offsets learns normalised ones; the statistics lie beside it as buffers, so that they are saved.
    """

    offset_mean: Tensor
    offset_deviation: Tensor

    def __init__(self, layers: nn.Module, width: int, classes: int) -> None:
        """Put the two last layers on others.

        Args:
            layers: pooled features [R, C, s, s] -> [R, width].
            width: as above.
            classes: K, without the background.
        """
        super().__init__()
        self.layers = layers
        self.scores = nn.Linear(width, classes + 1)
        self.offsets = nn.Linear(width, 4 * (classes + 1))
        for layer, deviation in ((self.scores, SCORE_DEVIATION), (self.offsets, OFFSET_DEVIATION)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        self.register_buffer("offset_mean", torch.zeros(classes + 1, 4))
        self.register_buffer("offset_deviation", torch.ones(classes + 1, 4))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C, s, s] -> logits [R, K + 1] and normalised offsets [R, 4 (K + 1)]."""
        hidden = self.layers(pooled)
        return self.scores(hidden), self.offsets(hidden)

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """What offsets are normalised by: [K + 1, 4], or [4] for all classes."""
        self.offset_mean.copy_(mean)
        self.offset_deviation.copy_(deviation)

    def normalized(self, targets: Tensor, labels: Tensor) -> Tensor:
        """Targets [N, 4] of regions with labels [N], as the layer learns them; those of background stay as they are."""
        normal = (targets - self.offset_mean[labels]) / self.offset_deviation[labels]
        return torch.where(labels[:, None] > 0, normal, targets)

    def plain(self, offsets: Tensor) -> Tensor:
        """Offsets as `forward` gives them -> [R, K + 1, 4], as `decode_boxes` takes them."""
        return offsets.float().unflatten(1, (-1, 4)) * self.offset_deviation + self.offset_mean


def low_rank_linear(inputs: int, outputs: int, rank: int) -> nn.Sequential:
    """Two linear layers in the place of one, rank (inputs + outputs) weights; only the second has a bias."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


@torch.no_grad()
def truncated_svd_linear(layer: nn.Linear, rank: int) -> nn.Sequential:
    """A linear layer by its greatest singular values (section 3.1); exact at full rank.

    Args:
        layer: W [u, v] = U S V^T.
        rank: t, at most min(u, v).

    Returns:
        the layers S_t V_t^T, without bias, and U_t with the bias.

    Raises:
        ValueError: the rank is not between 1 and min(u, v).
    """
    if not 1 <= rank <= min(layer.weight.shape):
        raise ValueError(f"rank {rank} is not between 1 and {min(layer.weight.shape)}")
    left, values, right = torch.linalg.svd(layer.weight.float(), full_matrices=False)
    pair = low_rank_linear(layer.in_features, layer.out_features, rank).to(layer.weight)
    first = values[:rank, None] * right[:rank]
    pair.load_state_dict({"0.weight": first, "1.weight": left[:, :rank], "1.bias": layer.bias})
    return pair
