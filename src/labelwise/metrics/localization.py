"""Scores of weakly supervised localisation: GT-known, Top-1 and Top-5, MaxBoxAcc and its second version, PxAP.

Each judges one score map per image, of the image's one class, at a threshold that is the same for the whole set. Boxes
are half-open in this package and the protocols' are not: `_overlaps` is where they are turned into theirs. A true box
may so differ by a pixel from the published conventions, which take each data set's annotations as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from labelwise.errors import UserError
from labelwise.metrics.map_boxes import (
    SIZE,
    ThresholdBoxes,
    boxes_in_frame,
    check_unit_range,
    contour_boxes,
    inclusive_corners,
    iou_inclusive,
    largest_component_boxes,
    resize_map,
)
from labelwise.metrics.segmentation import IGNORE_INDEX, check_sizes
from labelwise.metrics.thresholds import increasing

BOX_THRESHOLDS = tuple(number / 100 for number in range(100))
"0 to 0.99 in steps of 0.01, as from wsolevaluation's command line."
OVERLAP = 0.5
"The least IoU with which an object is found; just as much is enough."
OVERLAPS = (0.3, 0.5, 0.7)
"The least IoUs of MaxBoxAccV2."
_NOTHING = "nothing to score: no image was evaluated; give a split with boxes"


@dataclass
class Localization:
    """Percentages of images at one threshold.

    Attributes:
        threshold: of the map of the true class.
        gt_known: images whose box overlaps an object by at least 0.5.
        top1: of these, images whose class has the highest score.
        top5: of these, images whose class is among the five highest.
    """

    threshold: float
    gt_known: float
    top1: float
    top5: float


@dataclass
class LocalizationResults:
    """What `LocalizationAccuracy` computes.

    Attributes:
        curve: the percentages at each threshold.
        images: how many images were scored.
    """

    curve: tuple[Localization, ...]
    images: int

    @property
    def best(self) -> Localization:
        """Where GT-known + Top-1 is highest, as BAS chooses; of equals the lowest threshold."""
        return max(self.curve, key=lambda scores: scores.gt_known + scores.top1)

    def at(self, threshold: float) -> Localization:
        """The percentages at a threshold of the grid.

        Raises:
            ValueError: the grid lacks it.
        """
        for scores in self.curve:
            if scores.threshold == threshold:
                return scores
        raise ValueError(f"threshold {threshold} is not of the grid")


class LocalizationAccuracy(Metric):
    """GT-known, Top-1 and Top-5 localisation by the box of the largest component (BAS, Wu et al., CVPR 2022).

    Top-1 and Top-5 count images with a box that is right for the map of the true class and a class that is right too.
    Sums exactly over updates and processes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    found: Tensor
    images: Tensor

    def __init__(self, thresholds: Sequence[float] = BOX_THRESHOLDS, size: int = SIZE) -> None:
        """Start empty.

        Args:
            thresholds: T increasing shares of a map's range.
            size: side of the square to which maps and boxes are resized.

        Raises:
            ValueError: there is no threshold, or they do not increase.
        """
        super().__init__()
        self.thresholds = increasing(thresholds)
        self.size = size
        # GT-known, Top-1, Top-5.
        self.add_state("found", torch.zeros(3, len(thresholds), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, score_map: Tensor, boxes: Tensor, scores: Tensor, label: int) -> None:
        """Count one image.

        Args:
            score_map: [h, w] float, of the true class.
            boxes: [n, 4] half-open XYXY in pixels of the map, the objects of the class; the best overlap counts.
            scores: [K] float, of the classes; of equal scores the first counts as higher.
            label: position of the true class in `scores`.

        Raises:
            UserError: there is no box, or the map holds values that are not finite numbers.
        """
        found = largest_component_boxes(score_map, self.thresholds, self.size)
        right = _overlaps(found, boxes, score_map, self.size) >= OVERLAP
        higher = (scores > scores[label]).sum() + (scores[:label] == scores[label]).sum()
        named = torch.stack([higher >= 0, higher < 1, higher < 5]).cpu()
        self.found += (named[:, None] & right).to(self.found.device)
        self.images += 1

    def compute(self) -> LocalizationResults:
        """The scores of everything counted so far, over all processes.

        Raises:
            UserError: no image was counted.
        """
        shares = _percent(self.found, self.images).T.tolist()
        rows = zip(self.thresholds.tolist(), shares, strict=True)
        return LocalizationResults(tuple(Localization(threshold, *row) for threshold, row in rows), int(self.images))


@dataclass
class BoxAccuracy:
    """What `MaxBoxAccuracy` computes; percentages.

    Attributes:
        max_box_acc: MaxBoxAcc: images whose box overlaps an object by at least 0.5, at the best threshold.
        threshold: that threshold, the lowest of equals.
        max_box_acc_v2: MaxBoxAccV2: the mean of `max_box_acc_of`.
        max_box_acc_of: least overlap -> images with any box that overlaps that much, each at its own best threshold.
        images: how many images were scored.
    """

    max_box_acc: float
    threshold: float
    max_box_acc_v2: float
    max_box_acc_of: dict[float, float]
    images: int


class MaxBoxAccuracy(Metric):
    """MaxBoxAcc and MaxBoxAccV2 of boxes around contours (Choe et al., CVPR 2020, and their extension of it).

    Sums exactly over updates and processes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    single: Tensor
    multi: Tensor
    images: Tensor

    def __init__(self, thresholds: Sequence[float] = BOX_THRESHOLDS, size: int = SIZE) -> None:
        """Start empty.

        Args:
            thresholds: T increasing shares of a map's maximum.
            size: side of the square to which maps and boxes are resized.

        Raises:
            ValueError: there is no threshold, or they do not increase.
        """
        super().__init__()
        self.thresholds = increasing(thresholds)
        self.size = size
        # By least overlap: images found by the largest contour alone, and by any contour.
        for name in ("single", "multi"):
            counts = torch.zeros(len(OVERLAPS), len(thresholds), dtype=torch.int64)
            self.add_state(name, counts, dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, score_map: Tensor, boxes: Tensor) -> None:
        """Count one image.

        Args:
            score_map: [h, w] float in 0..1, of the true class.
            boxes: [n, 4] half-open XYXY in pixels of the map, the objects of the class; the best overlap counts.

        Raises:
            UserError: there is no box, or the map has values outside 0..1.
        """
        resized = resize_map(score_map, self.size)
        least = torch.tensor(OVERLAPS, dtype=torch.float64)[:, None]
        for counts, multi in ((self.single, False), (self.multi, True)):
            found = contour_boxes(resized, self.thresholds, multi=multi)
            counts += (_overlaps(found, boxes, score_map, self.size) >= least).to(counts.device)
        self.images += 1

    def compute(self) -> BoxAccuracy:
        """The scores of everything counted so far, over all processes.

        Raises:
            UserError: no image was counted.
        """
        single = _percent(self.single, self.images)[OVERLAPS.index(OVERLAP)].tolist()
        highest = _percent(self.multi, self.images).amax(dim=1).tolist()
        best = max(single)
        return BoxAccuracy(
            best,
            float(self.thresholds[single.index(best)]),
            sum(highest) / len(highest),
            dict(zip(OVERLAPS, highest, strict=True)),
            int(self.images),
        )


@dataclass
class PixelResults:
    """What `PixelAveragePrecision` computes; percentages.

    Attributes:
        pxap: PxAP, the area under the precision-recall curve of all pixels of the set.
        peak_iou: pIoU, the highest IoU of {score >= t} with the object over all thresholds t, from the same pixels.
        threshold: the threshold of `peak_iou`, the highest of equals.
        images: how many images were scored.
    """

    pxap: float
    peak_iou: float
    threshold: float
    images: int


class PixelAveragePrecision(Metric):
    """PxAP (Choe et al., CVPR 2020) and the peak IoU (BAS, Wu et al., CVPR 2022) from a histogram of all pixels.

    The bins of scores have the edges 0, 0.001, ..., 0.999, 1, 2 and 3, as in wsolevaluation. Sums exactly over updates
    and processes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor
    images: Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.edges = torch.from_numpy(np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0]))
        # By truth (0, 1) and bin.
        self.add_state("counts", torch.zeros(2, len(self.edges) - 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, score_map: Tensor, mask: Tensor) -> None:
        """Count one image.

        Args:
            score_map: [H, W] float in 0..1, of the true class.
            mask: [H, W] bool, or uint8: 1 object, 0 not, 255 ignored.

        Raises:
            UserError: sizes differ, the map has values outside 0..1, or the mask has values other than said.
        """
        check_sizes(score_map, mask)
        check_unit_range(score_map)
        known = mask != IGNORE_INDEX
        truth, values = mask[known].long(), score_map[known].detach().double()
        if (truth > 1).any():
            raise UserError("the mask of an object holds values other than 0, 1 and 255 (ignored)")
        bins = len(self.edges) - 1
        place = torch.bucketize(values, self.edges.to(values.device), right=True) - 1
        self.counts += torch.bincount(truth * bins + place, minlength=2 * bins).view(2, bins).to(self.counts.device)
        self.images += 1

    def compute(self) -> PixelResults:
        """The scores of everything counted so far, over all processes.

        Raises:
            UserError: no pixel of an object was counted.
        """
        # From the highest bin down.
        wrong, right = self.counts.cpu().flip(1).cumsum(dim=1).double()
        if not right[-1]:
            raise UserError("nothing to score: no evaluated image shows an object; give a split with masks")
        precision, recall = right / (right + wrong).clamp(min=1), right / right[-1]
        # The highest bin, 2 to 3, is left out of the sum and always empty.
        area = (precision[1:] * recall.diff()).sum()
        iou = right / (right[-1] + wrong)
        peak = int(iou.argmax())
        threshold = float(self.edges[:-1].flip(0)[peak])
        return PixelResults(100 * float(area), 100 * float(iou[peak]), threshold, int(self.images))


def _overlaps(found: ThresholdBoxes, boxes: Tensor, score_map: Tensor, size: int) -> Tensor:
    """The best IoU of each threshold, [T], by the protocols' way of measuring boxes."""
    if not len(boxes):
        raise UserError(
            "an image to score shows no box of its class; give a split with one class and its boxes per image"
        )
    height, width = score_map.shape
    truth = inclusive_corners(boxes_in_frame(boxes.cpu(), (height, width), size=size))
    return found.highest(iou_inclusive(found.boxes, truth).amax(dim=1))


def _percent(counts: Tensor, images: Tensor) -> Tensor:
    if not images:
        raise UserError(_NOTHING)
    return 100 * counts.cpu().double() / int(images)
