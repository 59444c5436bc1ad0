"""The geometric recipe of DeepLab v3 and v3+: one of evenly spaced scales, padding right and below."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labelwise.transforms.weak import MEAN_COLOR, ScaleCrop


class RandomStepScaleCrop(ScaleCrop):
    """Resize by one of evenly spaced factors, pad right and below to at least the crop, cut a uniform window."""

    def __init__(
        self,
        crop: int,
        scale: tuple[float, float] = (0.5, 2.0),
        step: float = 0.25,
        fill: Sequence[int] = MEAN_COLOR,
    ) -> None:
        """Remember the recipe.

        Args:
            crop: side of the window in pixels.
            scale: least and greatest factor.
            step: between neighboring factors.
            fill: RGB color outside the image; one that is 0 after normalisation.
        """
        super().__init__(crop, fill)
        low, high = scale
        # Half a step more than the last, so that rounding loses none.
        self.scales = tuple(low + step * number for number in range(int((high - low) / step + 1.5)))

    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Draw the scale and the window."""
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        size = max(1, int(height * scale)), max(1, int(width * scale))
        top, left = (int(torch.randint(max(side - self.crop, 0) + 1, ())) for side in size)
        return size, (top, left)
