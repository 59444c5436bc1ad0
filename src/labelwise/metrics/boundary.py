"""Boundary IoU: intersection over union of what lies near the masks' contours (Cheng et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from labelwise.errors import UserError
from labelwise.metrics.segmentation import IGNORE_INDEX, as_bytes, check_sizes, class_scores, wrong_label


@dataclass
class BoundaryScores:
    """What `BoundaryIoU` computes; percentages.

    Attributes:
        miou: the mean of `iou` over the classes that are not None.
        iou: class name -> boundary IoU; None for a class that occurs in neither masks nor predictions.
    """

    miou: float
    iou: dict[str, float | None]


class BoundaryIoU(Metric):
    """|G_d & P_d| / |G_d | P_d| per class, G_d and P_d being the pixels of a mask at most d away from its contour.

    As in the paper's code, d is a share of the image's diagonal, at least one pixel; distance is measured in square
    neighbourhoods (a mask minus its erosion by 2d + 1 by 2d + 1 pixels); and the image's border is contour.
    For whole-image class maps, which the paper does not treat: the counts of each class are added up over the set,
    as for mIoU, and pixels that the ground truth ignores are cut out of both maps before the contours are drawn, so
    that a perfect prediction scores 100 whatever it says there.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    intersection: Tensor
    target_boundary: Tensor
    prediction_boundary: Tensor

    def __init__(self, class_names: Sequence[str], width: float = 0.02, ignore_index: int = IGNORE_INDEX) -> None:
        """Start empty.

        Args:
            class_names: one name per class number, at most 254.
            width: d as a share of the image's diagonal.
            ignore_index: the mask value of pixels that do not count; no class number.
        """
        super().__init__()
        self.class_names = tuple(class_names)
        self.width = width
        self.ignore_index = ignore_index
        for name in ("intersection", "target_boundary", "prediction_boundary"):
            self.add_state(name, torch.zeros(len(self.class_names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one image or a batch of images of equal size; an update that raises counts nothing.

        Args:
            prediction: [..., H, W] class numbers, any integer type.
            target: of the same size, class numbers or `ignore_index`.

        Raises:
            UserError: sizes differ, a value is no class number, or a mask holds a label that is neither a class
                nor ignored.
        """
        check_sizes(prediction, target)
        target = as_bytes(target, "mask")
        ignored = target == self.ignore_index
        prediction = as_bytes(prediction, "prediction")
        height, width = target.shape[-2:]
        distance = max(1, round(self.width * math.hypot(height, width)))
        near_target = boundary(target, distance) & ~ignored
        near_prediction = boundary(prediction.masked_fill(ignored, self.ignore_index), distance) & ~ignored
        both = near_target & near_prediction & (target == prediction)
        counts = (
            self._count("mask", target[near_target]),
            self._count("prediction", prediction[near_prediction]),
            self._count("mask", target[both]),
        )
        self.target_boundary += counts[0]
        self.prediction_boundary += counts[1]
        self.intersection += counts[2]

    def compute(self) -> BoundaryScores:
        """The scores of everything counted so far, over all processes.

        Raises:
            UserError: no pixel was counted.
        """
        union = self.target_boundary + self.prediction_boundary - self.intersection
        if not union.any():
            raise UserError("nothing to score: no evaluated image has a labeled pixel; give a split with masks")
        iou, miou = class_scores(self.class_names, self.intersection, union, absent="skip")
        return BoundaryScores(miou, iou)

    def _count(self, what: str, values: Tensor) -> Tensor:
        # A wrong value is never missed: every region, however placed, has pixels next to its contour.
        classes = len(self.class_names)
        counts = torch.bincount(values, minlength=256)
        if counts[classes:].any():
            raise wrong_label(what, values, classes)
        return counts[:classes].to(self.intersection.device)


def boundary(labels: Tensor, distance: int) -> Tensor:
    """The pixels whose square neighbourhood holds another label or leaves the image.

    A pixel survives the erosion of its own class exactly where the labels around it are all the same, so that one
    highest and one lowest value per neighbourhood serve all classes at once.

    Args:
        labels: [..., H, W] uint8.
        distance: d in pixels; the neighbourhood is 2d + 1 pixels square.

    Returns:
        bool, same size.
    """
    near = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
    height, width = labels.shape[-2:]
    if min(height, width) > 2 * distance:
        size = 2 * distance + 1
        inside = near[..., distance : height - distance, distance : width - distance]
        torch.ne(window_extreme(torch.maximum, labels, size), window_extreme(torch.minimum, labels, size), out=inside)
    return near


def window_extreme(extreme: Callable[[Tensor, Tensor], Tensor], labels: Tensor, size: int) -> Tensor:
    """The highest or lowest label of every square window that lies within the image.

    Args:
        extreme: `torch.maximum` or `torch.minimum`.
        labels: [..., H, W].
        size: side of the window.

    Returns:
        [..., H - size + 1, W - size + 1].
    """
    # Rows, then columns; windows grow by doubling, so a large one costs little more than a small one, and the labels
    # stay bytes, which max_pool2d does not take.
    for dim in (-2, -1):
        window = 1
        while window < size:
            step = min(window, size - window)
            length = labels.shape[dim] - step
            labels = extreme(labels.narrow(dim, 0, length), labels.narrow(dim, step, length))
            window += step
    return labels
