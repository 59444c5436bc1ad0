"""Prediction in several passes: scales, mirrored copies, windows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.inference import Inference, multi_scale_log_probabilities, scaled_size
from labelwise.models.sliding import sliding_window_logits

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def network(seed: int = 0) -> nn.Module:
    """Logits that depend on place and neighborhood, at the input's size."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)).eval()


def images(*size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    image = torch.randint(256, (2, 3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return image, image.float() / 128 - 1


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def test_sides_at_the_papers_scales() -> None:
    assert [scaled_size(513, scale) for scale in SCALES] == [257, 385, 513, 641, 769, 897]
    assert [scaled_size(500, scale) for scale in SCALES] == [250, 375, 500, 624, 749, 874]
    assert {scaled_size(1, scale) for scale in SCALES} == {1}


@given(st.integers(1, 2000), st.sampled_from(SCALES))
def test_a_side_never_vanishes_and_an_atrous_grid_stays_one(side: int, scale: float) -> None:
    assert scaled_size(side, scale) >= 1
    assert (scaled_size(16 * side + 1, scale) - 1) % 4 == 0


@torch.no_grad()
def test_a_single_pass_is_the_network_itself() -> None:
    net, (image, normalized) = network(), images(9, 7)
    assert not Inference().passes
    assert torch.equal(Inference().scores(net, image, normalized), net(normalized))
    only = multi_scale_log_probabilities(net, normalized, (1.0,), flip=False)
    torch.testing.assert_close(only, net(normalized).log_softmax(1))


@torch.no_grad()
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([(0.5,), (1.0, 2.0), SCALES]), st.booleans())
def test_it_is_the_mean_of_the_probabilities_at_the_images_size(
    height: int, width: int, scales: tuple[float, ...], flip: bool
) -> None:
    net, (image, normalized) = network(), images(height, width)
    probabilities = []
    for scale in scales:
        size = tuple(int((side - 1) * scale + 1) for side in (height, width))
        copy = resized(normalized, size)
        logits = [net(copy), *([net(copy.flip(-1)).flip(-1)] if flip else [])]
        probabilities += [resized(each, (height, width)).softmax(1) for each in logits]
    expected = torch.stack(probabilities).mean(0)
    scores = Inference(scales=scales, flip=flip).scores(net, image, normalized)
    assert scores.shape == (2, 3, height, width) and scores.dtype == torch.float32
    torch.testing.assert_close(scores.exp() if (flip or scales != (1.0,)) else scores.softmax(1), expected)


@torch.no_grad()
def test_probabilities_are_averaged_not_logits() -> None:
    """One pass that is very sure of class 1 against two that slightly prefer class 0."""

    def predict(x: Tensor) -> Tensor:
        sure = x.shape[-1] == 9
        logits = torch.tensor([0.0, 30.0] if sure else [0.5, 0.0]).view(1, 2, 1, 1)
        return logits.expand(len(x), 2, *x.shape[2:])

    _, normalized = images(5, 5)
    logarithms = multi_scale_log_probabilities(predict, normalized, (1.0, 0.5, 2.0), flip=False)
    share = (2 * torch.tensor([0.5, 0.0]).softmax(0)[1] + 1) / 3
    torch.testing.assert_close(logarithms.exp()[:, 1], share.expand(2, 5, 5))


@torch.no_grad()
def test_a_network_that_does_not_tell_left_from_right_gains_nothing_from_the_mirror() -> None:
    net, (image, normalized) = network(), images(8, 6)
    for conv in (net[0], net[2]):
        conv.weight.copy_((conv.weight + conv.weight.flip(-1)) / 2)
    plain = net(normalized).softmax(1)
    torch.testing.assert_close(Inference(flip=True).scores(net, image, normalized).exp(), plain)
    other = network()
    assert not torch.allclose(
        Inference(flip=True).scores(other, image, normalized).exp(), other(normalized).softmax(1), atol=1e-3
    )


@torch.no_grad()
def test_a_mirrored_image_gives_the_mirrored_prediction() -> None:
    net, (image, normalized) = network(), images(7, 11)
    inference = Inference(scales=(0.75, 1.5), flip=True)
    mirrored = inference.scores(net, image.flip(-1), normalized.flip(-1))
    torch.testing.assert_close(mirrored, inference.scores(net, image, normalized).flip(-1))


@torch.no_grad()
@pytest.mark.parametrize("border", ["shift", "cut"])
def test_windows_slide_over_each_scaled_copy(border: str) -> None:
    net, (image, normalized) = network(), images(13, 9)
    seen: list[tuple[int, ...]] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return net(x)

    windowed = partial(sliding_window_logits, watched, window=8, stride=5, border=border)
    scores = Inference(scales=(0.5, 2.0)).scores(windowed, image, normalized)
    assert scores.shape == (2, 3, 13, 9)
    assert max(max(size) for size in seen) == 8
    parts = [
        resized(sliding_window_logits(net, resized(normalized, size), 8, 5, border), (13, 9)).softmax(1)
        for size in ((7, 5), (25, 17))
    ]
    torch.testing.assert_close(scores.exp(), (parts[0] + parts[1]) / 2)


def test_impossible_classes_stay_finite() -> None:
    _, normalized = images(3, 3)
    logits = torch.tensor([0.0, 500.0]).view(1, 2, 1, 1)
    scores = multi_scale_log_probabilities(lambda x: logits.expand(2, 2, *x.shape[2:]), normalized, (0.5, 1.0), True)
    assert scores.isfinite().all()
