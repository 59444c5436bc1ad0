"""The crops of class activation maps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from labelwise.transforms.sized_crop import RandomSizedCrop
from labelwise.transforms.weak import MEAN_COLOR


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 99),
    resizing=st.sampled_from(["long_side", "square"]),
)
def test_the_window_lies_in_the_image_or_the_image_in_the_window(
    height: int, width: int, seed: int, resizing: str
) -> None:
    torch.manual_seed(seed)
    crop = RandomSizedCrop(32, (20, 50), resizing)  # type: ignore[arg-type]
    size, origin = crop.draw(height, width)
    assert 20 <= max(size) <= 50
    assert resizing == "long_side" or size[0] == size[1]
    for length, start in zip(size, origin, strict=True):
        assert (0 <= start <= length - 32) if length >= 32 else (length - 32 <= start <= 0)


def test_the_long_side_keeps_the_shape() -> None:
    assert RandomSizedCrop(8, (40, 40)).draw(100, 200)[0] == (20, 40)


def test_what_is_outside_has_the_mean_color_anywhere() -> None:
    crop = RandomSizedCrop(16, (8, 8), "square")
    image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        window = crop(image)
        inside = (window == 0).all(0)
        assert int(inside.sum()) == 64
        assert window[:, ~inside].float().mean(1).tolist() == pytest.approx(MEAN_COLOR)
        places.add(tuple(inside.nonzero()[0].tolist()))
    assert len(places) > 10
