"""How well class-agnostic proposals cover the objects: recall, and mean average best overlap (MABO).

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from labelwise.metrics.rows import RowsMetric

NUMBERS = (1, 10, 50, 100, 300, 1000, 2000)
THRESHOLDS = (0.5, 0.7)


class ProposalRecall(RowsMetric):
    """Keeps the best overlap of each object with the first so many proposals of its image."""

    proposals: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        """Start empty.

        Args:
            names: of the K classes.
        """
        super().__init__()
        self.names = tuple(names)
        # Place, class, best overlap for each of the numbers, and with all proposals.
        self.keep_rows("objects", 3 + len(NUMBERS))
        self.keep_total("proposals")

    def update(self, place: int, proposals: Tensor, boxes: Tensor, labels: Tensor) -> None:
        """Add one image.

        Args:
            place: the image's position among all, however many processes share them.
            proposals: [P, 4] half-open XYXY, best first; P may be 0.
            boxes: [G, 4] the objects.
            labels: [G] their classes, 0 to K - 1.
        """
        self.add_rows("objects", place, labels, best_overlaps(proposals.float(), boxes.float()))
        self.proposals += len(proposals)
        self.images += 1

    def compute(self) -> dict[str, Any]:
        """The scores of everything added so far, over all processes; every process must call it.

        Returns:
            `recall`: overlap -> number of proposals -> percent of all objects that one of the first so many proposals
            overlaps at least so much; `mabo`: percent, the mean over classes of the mean best overlap of their
            objects; `mean_number` of proposals per image, and `images`. Empty if there is no object.
        """
        totals, rows = self.kept()
        objects = rows["objects"]
        if not len(objects):
            return {}
        overlaps = objects[:, 2:]
        recall = {
            f"{threshold}": {
                f"{number}": 100 * float((overlaps[:, column] >= np.float32(threshold)).mean())
                for column, number in enumerate(NUMBERS)
            }
            for threshold in THRESHOLDS
        }
        best = overlaps[:, -1].astype(np.float64)
        means = [best[objects[:, 1] == label].mean() for label in np.unique(objects[:, 1])]
        images = totals["images"]
        return {
            "recall": recall,
            "mabo": 100 * float(np.mean(means)),
            "mean_number": totals["proposals"] / images,
            "images": images,
        }


def best_overlaps(proposals: Tensor, boxes: Tensor) -> Tensor:
    """The highest IoU of each box with the first 1, 10, ... 2000 proposals, and with all. [P, 4], [G, 4] -> [G, 8]."""
    if not len(proposals):
        return boxes.new_zeros(len(boxes), len(NUMBERS) + 1)
    best = box_iou(boxes, proposals).cummax(dim=1).values
    last = torch.tensor([*NUMBERS, len(proposals)], device=best.device).clamp(max=len(proposals)) - 1
    return best[:, last]
