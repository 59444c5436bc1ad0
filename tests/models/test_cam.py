"""Class activation maps: what the linearity promises, and how scales and mirrored copies are put together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labelwise.models.backbones import create_backbone
from labelwise.models.cam import (
    CamNetwork,
    cam_from_features,
    divided_by_maximum,
    multi_scale_maps,
    seed,
    without_dilation,
)

ALL = [torch.arange(3)]


def colors(image: Tensor) -> Tensor:
    """Maps that are the three colors, at half the size."""
    return nn.functional.avg_pool2d(image.float() / 255, 2, ceil_mode=True)


def picture(height: int = 24, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


def test_irnets_classifier_has_its_parameters() -> None:
    with torch.device("meta"):
        network = CamNetwork(create_backbone("resnet50", 16, None), 20)
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_548_992


def test_the_mean_of_a_map_before_the_relu_is_the_logit() -> None:
    torch.manual_seed(0)
    network = CamNetwork(create_backbone("micro_w4", 4, None), 5).eval()
    features = network.features(torch.randn(2, 3, 24, 32))
    mean = network.classifier(features).mean((2, 3))
    torch.testing.assert_close(network.logits(features), mean, atol=1e-5, rtol=1e-5)


def test_a_map_is_the_rectified_product_of_weight_and_feature() -> None:
    features, weight = torch.randn(2, 4, 3, 5), torch.randn(6, 4)
    expected = torch.einsum("kc,bchw->bkhw", weight, features).clamp(min=0)
    torch.testing.assert_close(cam_from_features(features, weight), expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035"])
def test_a_network_without_dilation_keeps_its_stride(name: str) -> None:
    backbone = create_backbone(name, 16, None).eval()
    assert any(max(conv.dilation) > 1 for conv in backbone.modules() if isinstance(conv, nn.Conv2d))
    without_dilation(backbone)
    assert all(max(conv.dilation) == 1 for conv in backbone.modules() if isinstance(conv, nn.Conv2d))
    assert backbone(torch.zeros(1, 3, 64, 96))[-1].shape[-2:] == (4, 6)


@given(height=st.integers(3, 40), width=st.integers(3, 40))
def test_maps_have_the_sizes_of_the_protocol(height: int, width: int) -> None:
    ((fine, coarse),) = multi_scale_maps(
        colors, picture(height, width), [torch.tensor([2, 0])], (1.0, 0.5), flip=True, output_stride=2
    )
    assert fine.shape == (2, height, width)
    assert coarse.shape == (2, math.ceil(height / 4), math.ceil(width / 4))
    assert float(fine.min()) >= 0 and float(fine.max()) <= 1


def test_maps_of_a_mirrored_image_are_mirrored() -> None:
    image = picture(16, 32)
    ((fine, _),) = multi_scale_maps(colors, image, ALL, (1.0, 0.5), flip=True, output_stride=2)
    ((mirrored, _),) = multi_scale_maps(colors, image.flip(-1), ALL, (1.0, 0.5), flip=True, output_stride=2)
    torch.testing.assert_close(mirrored.flip(-1), fine, atol=0.02, rtol=0)


def test_several_images_are_one_batch_with_the_same_result() -> None:
    images = torch.cat([picture(), picture().flip(2)])
    together = multi_scale_maps(
        colors, images, [torch.tensor([0]), torch.tensor([1, 2])], (1.0, 2.0), flip=True, output_stride=2
    )
    for image, kept, (fine, coarse) in zip(images, ([0], [1, 2]), together, strict=True):
        ((alone, small),) = multi_scale_maps(
            colors, image[None], [torch.tensor(kept)], (1.0, 2.0), flip=True, output_stride=2
        )
        torch.testing.assert_close(fine, alone)
        torch.testing.assert_close(coarse, small)


def test_a_map_covers_whole_steps_of_the_stride() -> None:
    image = torch.zeros(1, 3, 32, 40, dtype=torch.uint8)
    image[..., :32] = 255

    def means(images: Tensor) -> Tensor:
        # As a network does that pads its input to whole steps.
        padded = nn.functional.pad(images.float() / 255, (0, -images.shape[-1] % 16))
        return nn.functional.avg_pool2d(padded, 16)

    ((fine, _),) = multi_scale_maps(means, image, ALL, (1.0,), flip=False, output_stride=16)
    assert (fine[0, 16, :30] > 0.5).all() and (fine[0, 16, 33:] < 0.5).all()


def test_scales_are_summed_before_they_are_divided() -> None:
    image = picture(32, 32)
    parts = []
    for scale in (1.0, 0.5):
        size = [round(32 * scale)] * 2
        scaled = image if scale == 1 else nn.functional.interpolate(image.float(), size, mode="bicubic", antialias=True)
        maps = colors(scaled.round().clamp(0, 255).to(torch.uint8))
        parts.append(nn.functional.interpolate(maps, (32, 32), mode="bilinear")[0])
    expected = divided_by_maximum(parts[0] + parts[1])
    ((fine, _),) = multi_scale_maps(colors, image, ALL, (1.0, 0.5), flip=False, output_stride=2)
    torch.testing.assert_close(fine, expected, atol=0.01, rtol=0)


def test_an_image_without_tags_has_no_maps() -> None:
    ((fine, coarse),) = multi_scale_maps(
        colors, picture(), [torch.zeros(0, dtype=torch.int64)], (1.0,), flip=True, output_stride=2
    )
    assert fine.shape == (0, 24, 20) and coarse.shape == (0, 6, 5)
    assert not seed(fine, torch.zeros(0, dtype=torch.int64), 0.2).any()


@pytest.mark.parametrize(("background", "expected"), [(0.99, 7), (1.01, 0), (1.0, 0)])
def test_a_map_of_ones_is_its_class_wherever_the_background_is_below_one(background: float, expected: int) -> None:
    assert (seed(torch.ones(1, 3, 4), torch.tensor([7]), background) == expected).all()


def test_the_greatest_map_wins_and_another_background_keeps_its_number() -> None:
    maps = torch.tensor([[[0.9, 0.2, 0.1]], [[0.3, 0.6, 0.1]]])
    assert seed(maps, torch.tensor([2, 5]), 0.15).tolist() == [[2, 5, 0]]
    assert seed(maps, torch.tensor([2, 5]), 0.15, background_class=4).tolist() == [[2, 5, 4]]
