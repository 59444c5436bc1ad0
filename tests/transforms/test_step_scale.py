"""Scaling by steps: its factors, and the padding on the right and below."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from labelwise.transforms.step_scale import RandomStepScaleCrop


def test_the_factors_of_the_papers() -> None:
    assert RandomStepScaleCrop(513).scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    assert RandomStepScaleCrop(9, (0.5, 1.1), 0.3).scales == pytest.approx((0.5, 0.8, 1.1))
    assert RandomStepScaleCrop(9, (1.0, 1.0)).scales == (1.0,)


def test_all_factors_and_windows_are_drawn() -> None:
    torch.manual_seed(0)
    crop = RandomStepScaleCrop(12, (0.5, 1.5), 0.5)
    draws = {crop.draw(12, 16) for _ in range(400)}
    assert {size for size, _ in draws} == {(6, 8), (12, 16), (18, 24)}
    assert {origin for size, origin in draws if size == (6, 8)} == {(0, 0)}
    assert {origin for size, origin in draws if size == (12, 16)} == {(0, left) for left in range(5)}
    tops, lefts = zip(*(origin for size, origin in draws if size == (18, 24)), strict=True)
    assert set(tops) == set(range(7)) and set(lefts) == set(range(13))


def test_what_lies_outside_has_the_fill_color_and_is_ignored() -> None:
    image = tv_tensors.Image(torch.full((3, 4, 6), 200, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(4, 6, dtype=torch.uint8))
    image, mask = RandomStepScaleCrop(8, (1.0, 1.0), fill=(1, 2, 3))(image, mask)
    assert image.shape == (3, 8, 8) and mask.shape == (8, 8)
    assert (image[:, :4, :6] == 200).all() and (mask[:4, :6] == 1).all()
    for outside in (image[:, 4:], image[:, :, 6:]):
        assert (outside == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()
    assert (mask[4:] == 255).all() and (mask[:, 6:] == 255).all()


def test_an_image_of_one_pixel() -> None:
    image = tv_tensors.Image(torch.zeros(3, 1, 1, dtype=torch.uint8))
    assert RandomStepScaleCrop(5)(image).shape == (3, 5, 5)
