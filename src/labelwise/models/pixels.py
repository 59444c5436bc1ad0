"""From the pixels of image files to what networks were trained to see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelNormalization(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel, on the images' device."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        """Remember the statistics.

        Args:
            mean: of red, green and blue in 0..1.
            std: likewise.
        """
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> the same shape, float32."""
        return (image.float() - self.mean) / self.std
