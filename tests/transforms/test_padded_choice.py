"""DeepLab's crops: one of the scales, the mean color on the right and below, labels as they are."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from labelwise.transforms.padded_choice import PaddedChoiceScaleCrop
from labelwise.transforms.weak import MEAN_COLOR


def cropped(height: int, width: int, crop: int, *scales: float) -> tuple[torch.Tensor, torch.Tensor]:
    image = tv_tensors.Image(torch.full((3, height, width), 7, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(height, width, dtype=torch.uint8))
    return PaddedChoiceScaleCrop(crop, scales)(image, mask)


def test_a_smaller_image_lies_at_the_top_left_on_the_mean_color() -> None:
    image, mask = cropped(5, 9, 12, 1.0)
    assert (image[:, :5, :9] == 7).all()
    mean = torch.tensor(MEAN_COLOR, dtype=torch.uint8)[:, None]
    assert torch.equal(image[:, 5:].flatten(1), mean.expand(3, 7 * 12))
    assert (mask[:5, :9] == 1).all()
    assert (mask[5:] == 255).all() and (mask[:, 9:] == 255).all()


def test_every_scale_and_no_other_is_drawn() -> None:
    torch.manual_seed(0)
    sizes = {int((cropped(8, 8, 16, 0.5, 1.0, 1.5)[1] == 1).sum()) for _ in range(30)}
    assert sizes == {4**2, 8**2, 12**2}


@pytest.mark.parametrize("size", [1, 9])
def test_the_window_lies_anywhere_in_a_larger_image(size: int) -> None:
    torch.manual_seed(0)
    places = torch.arange(81, dtype=torch.uint8).view(9, 9)
    image = tv_tensors.Image(places.expand(3, 9, 9).contiguous())
    firsts = set()
    for _ in range(400):
        window, mask = PaddedChoiceScaleCrop(size, (1.0,))(image, tv_tensors.Mask(places))
        assert torch.equal(window[0], mask)
        firsts.add(int(mask[0, 0]))
    assert firsts == (set(range(81)) if size == 1 else {0})
