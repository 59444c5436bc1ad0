"""Output stride and dilation: the lists of the official code, and the same features at any density."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labelwise.errors import UserError
from labelwise.models.atrous_backbone import AtrousResNet, create_atrous_backbone
from labelwise.models.atrous_stages import (
    Cascade,
    apply_multi_grid,
    before_addition,
    plan_blocks,
    plan_output_stride,
)
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.complexity import count_parameters

RESNET50_UNITS = [1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1]


def rates(block: nn.Module) -> list[int]:
    return [m.dilation[0] for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def body(name: str, output_stride: int, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_atrous_backbone(name, output_stride, None, **options).body  # type: ignore[arg-type]


def random_norms(network: nn.Module) -> nn.Module:
    """Normalisations that are not the identity, so that every layer counts."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return network.eval()


@pytest.mark.parametrize(
    ("output_stride", "block3", "block4"),
    [
        (32, [(1, 1)] * 5 + [(2, 1)], [(1, 1)] * 3),
        (16, [(1, 1)] * 6, [(1, 2)] * 3),
        (8, [(1, 2)] * 6, [(1, 4)] * 3),
    ],
)
def test_the_official_plan_of_resnet_50(
    output_stride: int, block3: list[tuple[int, int]], block4: list[tuple[int, int]]
) -> None:
    plan = plan_output_stride(RESNET50_UNITS, output_stride, start=4)
    assert plan[7:13] == block3
    assert plan[13:] == block4
    # At output stride 8 block2's last unit has lost its stride, but only what follows is dilated.
    assert plan[:7] == [(1, 1), (1, 1), (2, 1), (1, 1), (1, 1), (1, 1), (1 if output_stride == 8 else 2, 1)]


@given(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=12), st.integers(0, 5))
def test_strides_and_rates_make_up_the_nominal_strides(units: list[int], power: int) -> None:
    output_stride = 2**power
    if output_stride > prod(units):
        with pytest.raises(ValueError, match=f"output stride {output_stride} cannot be reached"):
            plan_output_stride(units, output_stride)
        return
    plan = plan_output_stride(units, output_stride)
    assert prod(stride for stride, _ in plan) == output_stride
    strides, planned = zip(*plan, strict=True)
    for number in range(len(units)):
        assert planned[number] * prod(strides[:number]) == prod(units[:number])


def test_the_rates_of_a_cascade() -> None:
    assert plan_blocks(16, 7) == [(2, 1), (2, 1), (1, 1), (1, 2), (1, 4), (1, 8), (1, 16)]
    assert plan_blocks(8, 7)[2:] == [(1, 2), (1, 4), (1, 8), (1, 16), (1, 32)]
    assert plan_blocks(64, 7)[3:] == [(2, 1), (1, 1), (1, 2), (1, 4)]
    assert plan_blocks(256, 7) == [(2, 1)] * 6 + [(1, 1)]


@pytest.mark.parametrize(
    ("output_stride", "block2", "block3", "block4"),
    [(32, 1, 1, [1, 2, 4]), (16, 1, 1, [2, 4, 8]), (8, 1, 2, [4, 8, 16])],
)
def test_every_unit_of_a_block_is_dilated_and_multi_grid_multiplies_the_last(
    output_stride: int, block2: int, block3: int, block4: list[int]
) -> None:
    network = body("resnet50", output_stride)
    assert rates(network.layer1) == [1] * 3
    assert rates(network.layer2) == [block2] * 4
    assert rates(network.layer3) == [block3] * 6
    assert rates(network.layer4) == block4
    plain = body("resnet50", output_stride, multi_grid=(1, 1, 1))
    assert rates(plain.layer4) == [block4[0]] * 3


def test_with_timms_strides_the_convolution_that_lost_its_stride_keeps_the_rate() -> None:
    network = body("resnet50", 8, multi_grid=(1, 1, 1), paper_form=False)
    assert rates(network.layer3) == [1, 2, 2, 2, 2, 2]
    assert rates(network.layer4) == [2, 4, 4]
    assert rates(body("resnet50", 8, multi_grid=(1, 2, 4), paper_form=False).layer4) == [2, 8, 16]


def test_both_convolutions_of_basic_units_are_dilated_and_further_units_have_one() -> None:
    network = body("resnet34", 16, multi_grid=(1, 2))
    assert rates(network.layer4) == [2, 2, 4, 4, 2, 2]
    apply_multi_grid(network.layer4, (3,))
    assert rates(network.layer4) == [6, 6, 4, 4, 2, 2]


@pytest.mark.parametrize("name", ["resnet50", "resnet101s", "resnet34d"])
def test_strides_lie_in_last_units(name: str) -> None:
    network = body(name, 32)
    for number in (1, 2, 3, 4):
        strides = [
            max(m.stride[0] for m in unit.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
            for unit in network.get_submodule(f"layer{number}").children()
        ]
        assert strides == [1] * (len(strides) - 1) + [1 if number == 4 else 2]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny", {}),
        ("mobilenetv2_050", {}),
        ("resnet18", {}),
        ("resnet18d", {}),
        ("resnet26", {"multi_grid": (1, 2)}),
        ("resnet18", {"paper_form": False}),
        ("resnet26", {"paper_form": False}),
    ],
)
def test_every_second_pixel_at_output_stride_8_is_output_stride_16(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    coarse = random_norms(create_atrous_backbone(name, 16, None, **options))  # type: ignore[arg-type]
    fine = create_atrous_backbone(name, 8, None, **options).eval()  # type: ignore[arg-type]
    fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        there, here = coarse(x), fine(x)
    assert there[-1].shape[2:] == (5, 4) and here[-1].shape[2:] == (9, 7)
    scale = there[-1].abs().max()
    assert scale > 0
    torch.testing.assert_close(here[-1][..., ::2, ::2] / scale, there[-1] / scale, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_end_points_of_a_crop_of_513(output_stride: int) -> None:
    with torch.device("meta"):
        backbone = create_atrous_backbone("resnet50", output_stride, None)
        low, high = backbone(torch.zeros(1, 3, 513, 513))
    side = {8: 65, 16: 33, 32: 17}[output_stride]
    assert low.shape == (1, 256, 129, 129) and high.shape == (1, 2048, side, side)
    assert backbone.channels == (256, 2048) and backbone.strides == (4, output_stride)


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "seresnet50"])
def test_what_a_unit_adds_and_what_it_gives_are_timms(name: str) -> None:
    torch.manual_seed(0)
    unit = random_norms(create_backbone(name, 32, None)).body.layer2[0]
    x = torch.randn(1, next(unit.children()).in_channels, 8, 8)
    residual, output = before_addition(unit, x)
    torch.testing.assert_close(output, unit(x))
    torch.testing.assert_close(output, (residual + unit.downsample(x)).relu())
    assert residual.min() < 0


def test_the_low_level_feature_of_a_resnet() -> None:
    """In the paper's form block1's last unit leaves stride 4, so that its second-last is the last there."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 33, 33)
    plain = random_norms(create_backbone("resnet26", 16, None))
    features: dict[tuple[str, bool], Tensor] = {}
    for low in ("stage", "residual"):
        for paper_form in (True, False):
            backbone = create_atrous_backbone("resnet26", 16, None, low_feature=low, paper_form=paper_form)  # type: ignore[arg-type]
            backbone.load_state_dict(plain.state_dict())
            features[low, paper_form] = backbone.eval()(x)[0]
    stem = plain.body.maxpool(plain.body.act1(plain.body.bn1(plain.body.conv1(x))))
    first = plain.body.layer1[0](stem)
    residual, _ = before_addition(plain.body.layer1[0], stem)
    torch.testing.assert_close(features["stage", True], first)
    torch.testing.assert_close(features["stage", False], plain(x)[1])
    for paper_form in (True, False):
        torch.testing.assert_close(features["residual", paper_form], residual)


def test_a_cascade_repeats_the_last_block_with_fresh_weights() -> None:
    torch.manual_seed(0)
    plan = plan_blocks(16, 6)
    backbone = create_atrous_backbone("resnet18", 16, None, multi_grid=(1, 2), blocks=6)
    cascade = Cascade(backbone.body.layer4, plan, (1, 2)).eval()
    assert [rates(block) for block in cascade] == [[4, 4, 8, 8], [8, 8, 16, 16]]
    unit = backbone.body.layer4[1]
    assert count_parameters(cascade) == 4 * count_parameters(unit)
    assert not torch.equal(cascade[0][1].conv1.weight, unit.conv1.weight)
    assert not torch.equal(cascade[0][0].conv1.weight, cascade[1][0].conv1.weight)
    assert cascade(torch.randn(1, 512, 5, 5)).shape == (1, 512, 5, 5)


@pytest.mark.parametrize(("output_stride", "side"), [(16, 9), (64, 3), (256, 1)])
def test_a_cascade_may_go_on_striding(output_stride: int, side: int) -> None:
    plan = plan_blocks(output_stride, 7)
    with torch.device("meta"):
        backbone = create_atrous_backbone("resnet50", output_stride, None, blocks=7)
        network = nn.Sequential(backbone, Cascade(backbone.body.layer4, plan)).eval()
        feature = network[1](network[0](torch.zeros(1, 3, 129, 129))[-1])
    assert feature.shape == (1, 2048, side, side)


def test_a_cascade_at_another_output_stride_has_the_same_weights_and_features() -> None:
    torch.manual_seed(0)
    outputs: list[Tensor] = []
    state: list[dict[str, Tensor]] = []
    x = torch.randn(1, 3, 129, 129)
    for output_stride in (64, 32):
        backbone = create_atrous_backbone("resnet18", output_stride, None, blocks=6)
        both = random_norms(nn.ModuleList([backbone, Cascade(backbone.body.layer4, plan_blocks(output_stride, 6))]))
        if state:
            both.load_state_dict(state[0])
        state.append(both.state_dict())
        with torch.no_grad():
            outputs.append(both[1](both[0](x)[-1]))
    coarse, fine = outputs
    assert coarse.shape[2:] == (3, 3) and fine.shape[2:] == (5, 5)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "output_stride", "options", "message"),
    [
        ("resnet18", 64, {}, "--output-stride 64: backbone 'resnet18'"),
        ("tiny", 16, {"multi_grid": (1, 2, 4)}, "--multi-grid: backbone 'tiny' has no units to dilate"),
        ("mobilenetv2_100", 16, {"multi_grid": (1, 2)}, "--multi-grid: backbone 'mobilenetv2_100'"),
        ("xception65", 4, {}, "'xception65' cannot have output stride 4"),
    ],
)
def test_what_a_network_cannot_have_is_refused(
    name: str, output_stride: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message), torch.device("meta"):
        create_atrous_backbone(name, output_stride, None, **options)  # type: ignore[arg-type]


def test_other_backbones_keep_all_their_features() -> None:
    backbone = create_atrous_backbone("micro_w4", 4, None)
    assert isinstance(backbone, Backbone) and not isinstance(backbone, AtrousResNet)
    assert backbone.strides == (2, 4)
