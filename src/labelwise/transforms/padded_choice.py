"""The geometric recipe of DeepLab v1 and v2: one of a few scales, then a crop padded with the mean color."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labelwise.transforms.weak import MEAN_COLOR, ScaleCrop


class PaddedChoiceScaleCrop(ScaleCrop):
    """One of some scales; the mean color on the right and at the bottom of images smaller than the crop.

    The window is uniform over the padded image, as in the released data layer.
    """

    def __init__(self, crop: int, scales: Sequence[float] = (1.0,)) -> None:
        """Remember the recipe.

        Args:
            crop: side of the window in pixels.
            scales: the factors to choose from, all equally likely.
        """
        super().__init__(crop, MEAN_COLOR)
        self.scales = tuple(scales)

    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Draw the scale and the window."""
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        size = max(1, int(height * scale)), max(1, int(width * scale))
        top, left = (int(torch.randint(max(side - self.crop, 0) + 1, ())) for side in size)
        return size, (top, left)
