"""CorLoc: how often the surest box of a class is right, for detectors that learn from tags (Deselaers et al., 2012).

As in the evaluators of OICR, PCL and CBL: over the images of the training split with at least one object of the class,
difficult or not, and a box is right if its overlap with any object of the class, difficult or not, is above 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

from labelwise.detections import Detections
from labelwise.metrics.average_precision import percentages

THRESHOLD = 0.5


class CorLoc(Metric):
    """Counts images by class; sums exactly over updates and processes."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    containing: Tensor
    images: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        """Start empty.

        Args:
            names: of the K classes.
        """
        super().__init__()
        self.names = tuple(names)
        for name in ("correct", "containing"):
            self.add_state(name, torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, detections: Detections, boxes: Tensor, labels: Tensor) -> None:
        """Count one image.

        Args:
            detections: with at least one of each class of the image, without a threshold of the score; labels are
                classes 0 to K - 1. A class without any detection is not found.
            boxes: [G, 4] half-open XYXY, the objects, difficult ones included.
            labels: [G] their classes, 0 to K - 1.
        """
        present = torch.zeros(len(self.names), dtype=torch.bool, device=labels.device)
        present[labels] = True
        self.containing += present.to(self.containing.device)
        self.correct += correct_classes(detections, boxes, labels, len(self.names)).to(self.correct.device)
        self.images += 1

    def compute(self) -> dict[str, Any]:
        """The scores of everything counted so far, over all processes.

        Returns:
            in percent: `corloc`, the mean over the classes that occur, and `corloc_of_classes` (class -> percent, None
            for a class that does not occur); and `images`, a number.

        Raises:
            UserError: no class occurs.
        """
        values = (self.correct.double() / self.containing).cpu().numpy()
        mean, each = percentages(self.names, values)
        return {"corloc": mean, "corloc_of_classes": each, "images": int(self.images)}


def correct_classes(detections: Detections, boxes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Whether the surest detection of each class overlaps an object of it by more than 0.5.

    Args:
        detections: of one image; of equal scores the first counts.
        boxes: [G, 4] half-open XYXY.
        labels: [G] classes.
        classes: K.

    Returns:
        [K] bool.
    """
    correct = torch.zeros(classes, dtype=torch.bool, device=boxes.device)
    if not len(detections) or not len(boxes):
        return correct
    found = detections[detections.scores.argsort(descending=True, stable=True)]
    # [K, D]: the first detection of each class.
    of_class = found.labels == torch.arange(classes, device=found.labels.device)[:, None]
    first = of_class & (of_class.cumsum(dim=1) == 1)
    near = box_iou(found.boxes.float(), boxes.float()) > THRESHOLD
    right = (near & (found.labels[:, None] == labels)).any(dim=1)
    return (first & right).any(dim=1)
