from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from labelwise.transforms.strong import (
    ColorJitter,
    GaussianBlur,
    gaussian_blur,
    photometric,
    pillow_kernel,
    shift_hue,
)


def picture(height: int = 40, width: int = 52) -> tv_tensors.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.41, 1.42, 2.0])
def test_blur_is_pillows(sigma: float) -> None:
    image = picture()
    expected = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(sigma)))
    ours = gaussian_blur(image.as_subclass(torch.Tensor), sigma).permute(1, 2, 0).numpy()
    difference = np.abs(ours.astype(int) - expected.astype(int))
    margin = len(pillow_kernel(sigma)) // 2
    # Pillow rounds after each of six passes, and continues the image beyond its border before each of three.
    assert difference[margin:-margin, margin:-margin].max() <= 3
    assert difference.mean() < 1.5


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_the_kernel_has_exactly_the_standard_deviation_asked_for(sigma: float) -> None:
    weights = np.array(pillow_kernel(sigma))
    offsets = np.arange(len(weights)) - len(weights) // 2
    assert weights.sum() == pytest.approx(1)
    assert (weights * offsets**2).sum() == pytest.approx(sigma**2)


def test_the_drawn_blur_lies_in_its_range() -> None:
    torch.manual_seed(0)
    sigmas = [GaussianBlur((0.1, 2.0)).make_params([])["sigma"] for _ in range(300)]
    assert 0.1 <= min(sigmas) < 0.15 and 1.95 < max(sigmas) <= 2.0


def test_strong_views_keep_size_and_type_and_differ() -> None:
    torch.manual_seed(0)
    image = picture()
    views = [photometric()(image) for _ in range(2)]
    assert all(isinstance(view, tv_tensors.Image) and view.shape == image.shape for view in views)
    assert all(view.dtype == torch.uint8 for view in views)
    assert not torch.equal(views[0], views[1])


def test_a_fifth_of_the_views_is_gray_and_a_fraction_is_left_alone() -> None:
    torch.manual_seed(0)
    image, transform = picture(6, 6), photometric()
    views = [transform(image).as_subclass(torch.Tensor) for _ in range(400)]
    gray = sum(bool((view[0] == view[1]).all() and (view[1] == view[2]).all()) for view in views)
    same = sum(torch.equal(view, image.as_subclass(torch.Tensor)) for view in views)
    assert gray / len(views) == pytest.approx(0.2, abs=0.06)
    assert same / len(views) == pytest.approx(0.2 * 0.8 * 0.5, abs=0.045)


@pytest.mark.parametrize("shift", [-0.5, -0.25, -0.01, 0.0, 0.1, 0.25, 0.5])
def test_hue_is_torchvisions(shift: float) -> None:
    colors = torch.cartesian_prod(*(torch.arange(0, 256, 15, dtype=torch.uint8),) * 3).T.reshape(3, 18, -1)
    ours, theirs = shift_hue(colors, shift), functional.adjust_hue(colors, shift)
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_grays_have_no_hue_and_a_third_of_a_turn_swaps_channels() -> None:
    gray = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(shift_hue(gray, 0.2), gray)
    image = picture().as_subclass(torch.Tensor)
    assert (shift_hue(image, 1 / 3).int() - image[[2, 0, 1]].int()).abs().max() <= 1


def test_jitter_is_torchvisions() -> None:
    image = tv_tensors.Image(picture().contiguous())
    for seed in range(10):
        views = []
        for jitter in (ColorJitter(0.5, 0.5, 0.5, 0.25), v2.ColorJitter(0.5, 0.5, 0.5, 0.25)):
            torch.manual_seed(seed)
            views.append(jitter(image).int())
        # The hue may differ by one level, which a later change of contrast and saturation can stretch.
        assert (views[0] - views[1]).abs().max() <= 3
