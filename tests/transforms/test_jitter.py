"""The photometric changes of contrastive learning: how often, how much, and the kernel of the blur."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from labelwise.transforms.jitter import TruncatedGaussianBlur, color_changes, truncated_kernel


def picture(side: int = 48) -> tv_tensors.Image:
    generator = torch.Generator().manual_seed(0)
    return tv_tensors.Image(torch.randint(256, (3, side, side), generator=generator, dtype=torch.uint8))


@pytest.mark.parametrize(("short", "published"), [(320, 33), (360, 37), (256, 25), (40, 5), (10, 1)])
def test_the_kernel_is_a_tenth_of_the_short_side(short: int, published: int) -> None:
    assert published == int(0.1 * short // 2 * 2) + 1
    assert len(truncated_kernel(short, 1e3)) == published
    # Of a narrow one no more weights are kept than 8 bits can show.
    narrow = truncated_kernel(short, 1.0)
    assert len(narrow) == min(published, 11)
    assert sum(narrow) == pytest.approx(1) and narrow == narrow[::-1]


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_the_blur_is_torchvisions_with_this_kernel(sigma: float) -> None:
    image = picture(320)
    ours = TruncatedGaussianBlur().transform(image, {"sigma": sigma})
    expected = functional.gaussian_blur(image.float(), [33, 33], [sigma, sigma])
    # Theirs mirrors the image at its border.
    inner = slice(16, -16)
    difference = (ours.as_subclass(Tensor).float() - expected.as_subclass(Tensor))[:, inner, inner].abs()
    assert difference.max() <= 0.51 and ours.dtype == torch.uint8


def test_a_tiny_image_is_not_blurred() -> None:
    image = picture(16)
    assert torch.equal(TruncatedGaussianBlur()(image), image)


def test_standard_deviations_are_uniform_from_a_tenth_to_two_pixels() -> None:
    torch.manual_seed(0)
    drawn = torch.tensor([TruncatedGaussianBlur().make_params([])["sigma"] for _ in range(2000)])
    assert drawn.min() >= 0.1 and drawn.max() <= 2.0
    assert drawn.mean() == pytest.approx(1.05, abs=4 * 1.9 / math.sqrt(12 * 2000))


def test_one_image_in_five_is_gray_and_the_others_keep_their_colors() -> None:
    torch.manual_seed(0)
    change, image = color_changes((0.0, 0.0, 0.0, 0.0)), picture(16)
    gray = [bool((changed[0] == changed[1]).all()) for changed in (change(image) for _ in range(500))]
    assert sum(gray) / 500 == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(500))


def test_larger_amounts_change_more() -> None:
    image = picture(32).float().div(4).add(90).to(torch.uint8)

    def change(amounts: tuple[float, float, float, float]) -> float:
        torch.manual_seed(0)
        transform = color_changes(amounts)
        means = torch.stack([transform(tv_tensors.Image(image)).float().mean() for _ in range(60)])
        return float(means.std())

    assert 0 < 2 * change((0.1, 0.1, 0.1, 0.1)) < change((0.8, 0.8, 0.8, 0.2))
