"""Scores of seeds: labels that score maps of the tagged classes give once the background has a constant score.

A seed of an image is, pixel by pixel, the argmax over [t, map_1, ..., map_N] (PSA, Ahn and Kwak, CVPR 2018; IRN, Ahn et
al., CVPR 2019). The threshold t belongs to the metric: two methods are compared at the best threshold of each, on one
grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics import Metric

from labelwise.errors import UserError
from labelwise.metrics.segmentation import IGNORE_INDEX, as_bytes, check_sizes, class_scores, wrong_label
from labelwise.metrics.thresholds import increasing

SEED_THRESHOLDS = tuple(number / 100 for number in range(5, 41))
"Scores of the background that are tried: 0.05 to 0.40 in steps of 0.01."


@dataclass
class SeedResults:
    """What `SeedScores` computes, at one threshold; percentages.

    Attributes:
        miou: the mean of `iou` over the classes that are not None, the background included.
        threshold: the score of the background.
        iou: class name -> intersection over union; None for a class that occurs in neither masks nor seeds.
        false_positive: over-activation, see `over_and_under_activation`.
        false_negative: under-activation.
        curve: threshold -> mIoU, of the whole grid.
        images: how many images were scored.
        background: the class number of the background.
        histograms: [T, K, K] int64, for each threshold of the grid the pixels by true class (row) and seed (column).
    """

    miou: float
    threshold: float
    iou: dict[str, float | None]
    false_positive: float
    false_negative: float
    curve: dict[float, float]
    images: int
    background: int
    histograms: Tensor = field(repr=False)

    def named(self) -> dict[str, object]:
        """The scores under the names that reports use, such as `seed_miou`; the curve as pairs of numbers."""
        return {
            "seed_miou": self.miou,
            "seed_threshold": self.threshold,
            "seed_iou": self.iou,
            "seed_false_positive": self.false_positive,
            "seed_false_negative": self.false_negative,
            "seed_curve": [[round(threshold, 6), miou] for threshold, miou in self.curve.items()],
        }

    def at(self, threshold: float) -> SeedResults:
        """The same set scored at another threshold of the grid.

        Raises:
            ValueError: the grid lacks the threshold.
        """
        grid = list(self.curve)
        if threshold not in grid:
            raise ValueError(f"threshold {threshold} is not of the grid {grid[0]} to {grid[-1]}")
        return _results(
            tuple(self.iou), self.background, self.curve, self.images, self.histograms, grid.index(threshold)
        )


class SeedScores(Metric):
    """Counts pixels by true class, best class and score of the best; sums exactly over updates and processes.

    Each image is looked at once: from the counts the seeds of every threshold follow. A score of exactly the threshold
    is background, of two equal scores the first map counts, and a pixel whose true label is 255 does not count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor
    images: Tensor

    def __init__(
        self, class_names: Sequence[str], background: int, thresholds: Sequence[float] = SEED_THRESHOLDS
    ) -> None:
        """Start empty.

        Args:
            class_names: one name per class number of masks, the background included.
            background: its class number.
            thresholds: T increasing scores of the background.

        Raises:
            ValueError: there is no threshold, or they do not increase.
        """
        super().__init__()
        self.class_names = tuple(class_names)
        self.background = background
        self.thresholds = increasing(thresholds)
        classes = len(self.class_names)
        # By true class, best class, and the number of thresholds below its score.
        counts = torch.zeros(classes, classes, len(thresholds) + 1, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Count one image; an update that raises counts nothing.

        Args:
            maps: [N, H, W] floats; N may be 0, then all is background.
            labels: [N] class numbers of the maps, never the background.
            mask: [H, W] uint8 class numbers or 255.

        Raises:
            UserError: sizes differ, a map is of the background or of no class, a map holds no numbers, or the mask
                holds a label that is neither a class nor 255.
        """
        classes, bins = len(self.class_names), self.counts.shape[2]
        labels = labels.long()
        _check_labels(labels, classes, self.background)
        mask = as_bytes(mask, "mask")
        for score_map in maps[:1]:
            check_sizes(score_map, mask)
        known = mask != IGNORE_INDEX
        truth = mask[known].long()
        if (truth >= classes).any():
            raise wrong_label("mask", mask, classes, IGNORE_INDEX)
        if not len(maps):
            maps, labels = maps.new_zeros(1, *mask.shape), labels.new_tensor([self.background])
        best, number = maps.max(dim=0)
        if best.isnan().any():
            raise UserError("a score map holds values that are not numbers")
        # In the precision of the maps, so that a score of just the threshold is found equal to it.
        below = torch.bucketize(best[known], self.thresholds.to(best))
        cells = (truth * len(maps) + number[known]) * bins + below
        found = torch.bincount(cells, minlength=classes * len(maps) * bins).view(classes, len(maps), bins)
        self.counts.index_add_(1, labels.to(self.counts.device), found.to(self.counts.device))
        self.images += 1

    def compute(self) -> SeedResults:
        """The scores of everything counted so far, at the threshold of the highest mIoU; of equals the lowest.

        Raises:
            UserError: no pixel was counted.
        """
        counts = self.counts.cpu()
        if not counts.any():
            raise UserError("nothing to score: no evaluated image has a labeled pixel; give a split with masks")
        # [K, K, T]: pixels whose best score is at most, and above, each threshold.
        unsure = counts.cumsum(dim=2)[:, :, :-1]
        histograms = counts.sum(dim=2, keepdim=True) - unsure
        histograms[:, self.background] += unsure.sum(dim=1)
        histograms = histograms.permute(2, 0, 1).contiguous()
        means = [_iou(self.class_names, histogram)[1] for histogram in histograms]
        curve = dict(zip(self.thresholds.tolist(), means, strict=True))
        place = means.index(max(means))
        return _results(self.class_names, self.background, curve, int(self.images), histograms, place)


def over_and_under_activation(matrix: Tensor, background: int) -> tuple[float, float]:
    """How much labels of the foreground reach too far, and how much they miss (SEAM, Wang et al., CVPR 2020).

    FP = mean_k (predicted_k - right_k) / union_k and FN = mean_k (true_k - right_k) / union_k, over the classes k of
    the foreground that occur in masks or predictions; with IoU_k = right_k / union_k the three add up to 100 %.

    Args:
        matrix: [K, K] int64, pixels by true class (row) and predicted class (column).
        background: its class number.

    Returns:
        FP and FN in percent; 0 where no class of the foreground occurs.
    """
    right = matrix.diagonal()
    union = matrix.sum(dim=0) + matrix.sum(dim=1) - right
    counts = union > 0
    counts[background] = False
    if not counts.any():
        return 0.0, 0.0
    over, under = ((matrix.sum(dim=axis) - right)[counts] / union[counts].double() for axis in (0, 1))
    return 100 * float(over.mean()), 100 * float(under.mean())


def _check_labels(labels: Tensor, classes: int, background: int) -> None:
    for label in labels.tolist():
        if label == background or not 0 <= label < classes:
            raise UserError(
                f"a score map is of class {label}; maps are of classes 0 to {classes - 1} without {background}"
            )


def _iou(names: Sequence[str], histogram: Tensor) -> tuple[dict[str, float | None], float]:
    right = histogram.diagonal()
    union = histogram.sum(dim=0) + histogram.sum(dim=1) - right
    return class_scores(names, right, union, "skip")


def _results(
    names: Sequence[str],
    background: int,
    curve: dict[float, float],
    images: int,
    histograms: Tensor,
    place: int,
) -> SeedResults:
    iou, miou = _iou(names, histograms[place])
    over, under = over_and_under_activation(histograms[place], background)
    return SeedResults(miou, list(curve)[place], iou, over, under, curve, images, background, histograms)
