"""A square input for detectors: the image stretched to it, or smaller on a canvas (SSD's expansion, as in YOLOv3)."""

from __future__ import annotations

import torch

from labelwise.transforms.weak import MEAN_COLOR, ScaleCrop


class StretchOnCanvas(ScaleCrop):
    """Stretch an image to a square, or put it somewhere on a square canvas of up to four times its sides."""

    def __init__(self, side: int, share: float) -> None:
        """Remember the recipe.

        Args:
            side: of the square in pixels.
            share: of the images that are put on a canvas.
        """
        super().__init__(side, MEAN_COLOR)
        self.share = share

    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Draw the size in the square, and the place."""
        chance, growth, down, right = torch.rand(4).tolist()
        side = max(1, round(self.crop / (1 + 3 * growth))) if chance < self.share else self.crop
        free = self.crop - side
        return (side, side), (-round(down * free), -round(right * free))
