"""What a detector finds in one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The objects found in one image, in pixels of the image as it was given."""

    boxes: Tensor
    "[N, 4] float32 XYXY, half-open as in `Sample`"
    labels: Tensor
    "[N] int64 class numbers"
    scores: Tensor
    "[N] float32, higher is surer"
    masks: Tensor | None = None
    "[N, H, W] bool, of methods that find shapes"

    def __len__(self) -> int:
        """How many objects."""
        return len(self.scores)

    def __getitem__(self, chosen: Tensor | slice) -> Detections:
        """Those of the numbers [M] int64, where a [N] bool is true, or of a slice."""
        return Detections(
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            scores=self.scores[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )

    def cpu(self) -> Detections:
        """The same in the main memory."""
        masks = None if self.masks is None else self.masks.cpu()
        return Detections(boxes=self.boxes.cpu(), labels=self.labels.cpu(), scores=self.scores.cpu(), masks=masks)

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> Detections:
        """Nothing found."""
        return cls(
            boxes=torch.zeros(0, 4, device=device),
            labels=torch.zeros(0, dtype=torch.int64, device=device),
            scores=torch.zeros(0, device=device),
        )
