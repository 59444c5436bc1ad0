"""DeepLab v3 and v3+ as networks: the specification's table, their limits, and what can be switched off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.aspp import ASPP
from labelwise.models.atrous_backbone import create_atrous_backbone
from labelwise.models.atrous_stages import Cascade, plan_blocks
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.models.deeplab_v3 import DeepLabV3, initialize_head
from labelwise.models.deeplab_v3plus import DeepLabV3Plus
from labelwise.models.separable import SeparableConv2d

RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
VOC_CROP = (513, 513)


def pyramid_network(name: str, output_stride: int) -> DeepLabV3:
    with torch.device("meta"):
        backbone = create_atrous_backbone(name, output_stride, None)
        return DeepLabV3(backbone, ASPP(backbone.channels[-1], 256, RATES[output_stride]), 256, 21)


def decoder_network(name: str, output_stride: int, separable: bool) -> DeepLabV3Plus:
    with torch.device("meta"):
        backbone = create_atrous_backbone(name, output_stride, None, low_feature="residual")
        return DeepLabV3Plus(backbone, 21, rates=RATES[output_stride], separable=separable)


def toy(output_stride: int = 16, rates: tuple[int, ...] = (1, 2), **options: object) -> DeepLabV3:
    backbone = create_atrous_backbone("tiny", output_stride, None)
    return DeepLabV3(backbone, ASPP(128, 16, rates, **options), 16, 5).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "output_stride", "millions", "billions"),
    [
        ("resnet50", 16, 39.05, 48.3),
        ("resnet101", 16, 58.04, 68.9),
        ("resnet101s", 16, 58.16, 76.1),
        ("resnet101", 8, 58.04, 245.1),
        ("resnet101s", 8, 58.16, 252.3),
    ],
)
def test_the_counts_of_v3(name: str, output_stride: int, millions: float, billions: float) -> None:
    network = pyramid_network(name, output_stride)
    assert round(count_parameters(network) / 1e6, 2) == millions
    assert round(count_macs(network, VOC_CROP) / 1e9, 1) == billions


@pytest.mark.parametrize(
    ("name", "output_stride", "separable", "millions", "billions"),
    [
        ("xception65", 16, True, 41.055, 54.04),
        ("xception65", 8, True, 41.055, 176.85),
        ("xception65", 16, False, 54.711, 86.68),
        ("resnet101", 16, False, 59.344, 90.67),
        ("resnet101s", 16, False, 59.468, 97.81),
    ],
)
def test_the_counts_of_v3plus(name: str, output_stride: int, separable: bool, millions: float, billions: float) -> None:
    network = decoder_network(name, output_stride, separable)
    assert round(count_parameters(network) / 1e6, 3) == millions
    assert round(count_macs(network, VOC_CROP) / 1e9, 2) == billions


def test_the_sizes_of_a_crop_of_513() -> None:
    with torch.device("meta"):
        for output_stride, side in ((16, 33), (8, 65)):
            network = pyramid_network("resnet50", output_stride).eval()
            _, high = network.backbone(torch.zeros(1, 3, 513, 513))
            assert network.decode(high).shape == (1, 21, side, side)
        low, high = (plus := decoder_network("xception65", 16, True).eval()).forward_features(
            torch.zeros(1, 3, 513, 513)
        )
        assert plus.decode(low, high).shape == (1, 21, 129, 129)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (64, 48)])
def test_logits_have_the_images_size_and_aligned_corners(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = toy()
    x = torch.randn(1, 3, *size)
    coarse = network.decode(network.backbone(x)[-1])
    assert network(x).shape == (1, 5, *size)
    corners = network(x)[:, :, [0, -1]][..., [0, -1]]
    torch.testing.assert_close(corners, coarse[:, :, [0, -1]][..., [0, -1]])


@torch.no_grad()
def test_a_rate_beyond_the_map_leaves_the_middle_tap() -> None:
    torch.manual_seed(0)
    pyramid, x = ASPP(6, 4, (9,), image_pooling=False).eval(), torch.randn(1, 6, 9, 9)
    dilated = pyramid.convs[1][0]
    torch.testing.assert_close(dilated(x), functional.conv2d(x, dilated.weight[:, :, 1:2, 1:2]))


@torch.no_grad()
def test_without_rates_and_pooling_the_pyramid_is_a_plain_head() -> None:
    torch.manual_seed(0)
    pyramid, x = ASPP(6, 4, (), image_pooling=False).eval(), torch.randn(1, 6, 5, 5)
    assert torch.equal(pyramid(x), pyramid.project(pyramid.convs[0](x)))


@torch.no_grad()
def test_image_pooling_is_constant_and_the_last_of_the_branches() -> None:
    torch.manual_seed(0)
    with_pool, without = ASPP(6, 4, (1, 2)).eval(), ASPP(6, 4, (1, 2), image_pooling=False).eval()
    without.load_state_dict(
        {name: value for name, value in with_pool.state_dict().items() if name in without.state_dict()}
        | {"project.0.weight": with_pool.project[0].weight[:, :12]}
    )
    with_pool.project[0].weight[:, 12:] = 0
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(with_pool(x), without(x))
    assert "pooled.0.weight" not in without.state_dict()
    # What is added by the pooled branch is the same everywhere before the normalisation, which is affine.
    other = ASPP(6, 4, (1, 2)).eval()
    other.load_state_dict(with_pool.state_dict())
    other.project[0].weight[:, 12:] = torch.randn(4, 4, 1, 1)
    difference = other.project[0](features(other, x)) - with_pool.project[0](features(with_pool, x))
    torch.testing.assert_close(difference, difference[..., :1, :1].expand_as(difference), atol=1e-5, rtol=1e-4)
    assert difference.abs().max() > 0


def features(pyramid: ASPP, x: Tensor) -> Tensor:
    assert pyramid.pooled is not None
    pooled = pyramid.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
    return torch.cat([*(conv(x) for conv in pyramid.convs), pooled], 1)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    pyramid, x = ASPP(6, 64, (1,), dropout=0.5), torch.randn(4, 6, 8, 8)
    assert torch.equal(pyramid.eval()(x), pyramid(x))
    assert ((pyramid.train()(x) == 0).float().mean() - 0.75).abs() < 0.05


@torch.no_grad()
def test_output_stride_8_agrees_with_16_at_every_second_pixel() -> None:
    torch.manual_seed(0)
    coarse, fine = toy(16, (1, 2), image_pooling=False), toy(8, (2, 4), image_pooling=False)
    fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 3, 81, 65)
    there, here = (network.decode(network.backbone(x)[-1]) for network in (coarse, fine))
    assert there.shape[2:] == (6, 5) and here.shape[2:] == (11, 9)
    torch.testing.assert_close(here[..., ::2, ::2], there, atol=1e-4, rtol=1e-4)
    unchanged = toy(8, (1, 2), image_pooling=False)
    unchanged.load_state_dict(coarse.state_dict())
    assert not torch.allclose(unchanged.decode(unchanged.backbone(x)[-1])[..., ::2, ::2], there, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("separable", [False, True])
def test_on_a_constant_image_both_output_strides_agree(separable: bool) -> None:
    torch.manual_seed(0)
    # Far from the border, which the padding lets look different.
    coarse, fine = toy(16, (1, 1), separable=separable), toy(8, (2, 2), separable=separable)
    fine.load_state_dict(coarse.state_dict())
    pool_alike(coarse, fine)
    x = torch.full((1, 3, 321, 321), 0.7)
    there, here = coarse(x)[..., 158:163, 158:163], fine(x)[..., 158:163, 158:163]
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)


def pool_alike(*networks: DeepLabV3) -> None:
    """The average of a whole map counts the border, of which the denser map has more pixels."""
    for network in networks:
        assert isinstance(network.aspp, ASPP)
        network.aspp.project[0].weight[:, -16:] = 0


@torch.no_grad()
def test_a_decoder_that_looks_at_nothing_else_depends_on_the_pyramid_alone() -> None:
    torch.manual_seed(0)
    network = DeepLabV3Plus(create_atrous_backbone("tiny", 16, None), 5, 16, 8, (1, 2), separable=True).eval()
    low, high = network.forward_features(torch.randn(1, 3, 32, 32))
    assert not torch.equal(network.decode(low, high), network.decode(low + 1, high))
    nn.init.zeros_(network.low[0].weight)
    assert torch.equal(network.decode(low, high), network.decode(torch.randn_like(low), high))


def test_the_separable_head() -> None:
    network = DeepLabV3Plus(create_atrous_backbone("tiny", 16, None), 5, 16, 8, (1, 2), separable=True, dropout=0.1)
    assert [type(conv) for conv in network.aspp.convs] == [nn.Sequential, SeparableConv2d, SeparableConv2d]
    assert [conv[0].dilation for conv in network.aspp.convs] == [(1, 1), (1, 1), (2, 2)]
    assert all(isinstance(conv, SeparableConv2d) for conv in network.fuse)
    network(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_how_the_head_starts() -> None:
    torch.manual_seed(0)
    backbone = create_atrous_backbone("tiny", 16, None)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    network = DeepLabV3(backbone, ASPP(128, 64, (1,), separable=True), 64, 21)
    initialize_head(network)
    pyramid = network.aspp
    assert isinstance(pyramid, ASPP)
    assert pyramid.convs[0][0].weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert pyramid.convs[1][0].weight.std().item() == pytest.approx(0.88 * 0.33, rel=0.1)
    assert pyramid.convs[1][3].weight.std().item() == pytest.approx(0.88 * 0.06, rel=0.05)
    assert network.classifier.weight.abs().max() <= 0.02
    assert network.classifier.bias is not None and not network.classifier.bias.any()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_cascade_keeps_its_own_start() -> None:
    torch.manual_seed(0)
    backbone = create_atrous_backbone("resnet18", 16, None, blocks=5)
    cascade = Cascade(backbone.body.layer4, plan_blocks(16, 5))
    weight = cascade[0][0].conv1.weight.clone()
    network = DeepLabV3(backbone, cascade, 512, 5).eval()
    initialize_head(network)
    assert torch.equal(cascade[0][0].conv1.weight, weight)
    assert network(torch.randn(1, 3, 33, 40)).shape == (1, 5, 33, 40)
