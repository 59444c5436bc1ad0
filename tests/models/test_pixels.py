from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional

from labelwise.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization


def test_images_are_normalised_as_torchvision_does() -> None:
    image = torch.randint(256, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = functional.normalize(image / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(PixelNormalization()(image), expected)
    centered = PixelNormalization((0.5,) * 3, (0.5,) * 3)(image)
    torch.testing.assert_close(centered, 2 * (image / 255) - 1)


def test_the_statistics_are_no_part_of_a_checkpoint() -> None:
    assert PixelNormalization().state_dict() == {}
