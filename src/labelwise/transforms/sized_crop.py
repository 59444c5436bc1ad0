"""The crops of class activation maps: scaled to a random size of their own, at a random place of a square window."""

from __future__ import annotations

from typing import Literal

import torch

from labelwise.transforms.weak import MEAN_COLOR, ScaleCrop

Resizing = Literal["long_side", "square"]


class RandomSizedCrop(ScaleCrop):
    """Scale an image to a random size in pixels and cut a square window; a smaller image lies anywhere in it.

    What of the window lies outside the image has the mean color, which is 0 after normalisation.
    """

    def __init__(self, crop: int, sizes: tuple[int, int], resizing: Resizing = "long_side") -> None:
        """Remember the recipe.

        Args:
            crop: side of the window in pixels.
            sizes: least and greatest size to draw, in pixels.
            resizing: what is scaled to that size: the long side (IRNet), or both sides, which squeezes the image
                (localisation benchmarks).
        """
        super().__init__(crop, MEAN_COLOR)
        self.sizes, self.resizing = sizes, resizing

    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Draw the size and the window."""
        side = _uniform(*self.sizes)
        size = (side, side)
        if self.resizing == "long_side":
            longest = max(height, width)
            size = max(1, round(height * side / longest)), max(1, round(width * side / longest))
        return size, (self._origin(size[0]), self._origin(size[1]))

    def _origin(self, length: int) -> int:
        free = length - self.crop
        return _uniform(0, free) if free >= 0 else -_uniform(0, -free)


def _uniform(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
