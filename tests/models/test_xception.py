"""The modified aligned Xception: sizes and dilation of the paper, the low-level feature, weights from files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from labelwise.errors import BadFile, UserError
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.models.xception import create_xception, is_xception


def meta(name: str, output_stride: int, **options: Any) -> Any:
    with torch.device("meta"):
        return create_xception(name, output_stride, None, **options)


def plan(backbone: Any) -> list[tuple[int, list[int]]]:
    """(stride, rate of each unit) of every module."""
    modules = []
    for block in backbone.body.blocks:
        convs = [getattr(block.stack, f"conv{number}").conv_dw for number in (1, 2, 3)]
        assert all(conv.padding == conv.dilation for conv in convs)
        if block.shortcut is not None:
            assert block.shortcut.conv.stride == convs[2].stride
        modules.append((convs[2].stride[0], [conv.dilation[0] for conv in convs]))
    return modules


@pytest.mark.parametrize(
    ("name", "millions", "billions"),
    [("xception41", 24.921, 34.6), ("xception65", 37.867, 48.6), ("xception71", 40.290, 60.6)],
)
def test_parameters_and_multiply_adds(name: str, millions: float, billions: float) -> None:
    backbone = meta(name, 16)
    assert round(count_parameters(backbone) / 1e6, 3) == millions
    # 34.5475 for Xception-41, which the table has as 34.6.
    assert count_macs(backbone, (513, 513)) / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize(
    ("output_stride", "entry", "middle", "exit_flow"),
    [
        (32, [(2, 1), (2, 1), (2, 1)], 1, [(2, 1), (1, 1)]),
        (16, [(2, 1), (2, 1), (2, 1)], 1, [(1, 1), (1, 2)]),
        (8, [(2, 1), (2, 1), (1, 1)], 2, [(1, 2), (1, 4)]),
    ],
)
def test_the_module_that_loses_its_stride_keeps_the_rate(
    output_stride: int, entry: list[tuple[int, int]], middle: int, exit_flow: list[tuple[int, int]]
) -> None:
    expected = [*entry, *[(1, middle)] * 16, *exit_flow]
    assert plan(meta("xception65", output_stride)) == [(stride, [rate] * 3) for stride, rate in expected]


def test_multi_grid_is_of_the_last_three_convolutions() -> None:
    modules = plan(meta("xception65", 16, unit_rates=(1, 2, 4)))
    assert modules[-1] == (1, [2, 4, 8]) and modules[-2] == (1, [1, 1, 1])


@pytest.mark.parametrize("name", ["xception41", "xception65", "xception71"])
@pytest.mark.parametrize(("output_stride", "side"), [(8, 17), (16, 9), (32, 5)])
def test_end_points(name: str, output_stride: int, side: int) -> None:
    backbone = meta(name, output_stride)
    low, high = backbone(torch.zeros(1, 3, 129, 129, device="meta"))
    assert low.shape == (1, 256, 33, 33) and high.shape == (1, 2048, side, side)
    assert backbone.channels == (256, 2048) and backbone.strides == (4, output_stride)


@pytest.mark.parametrize("name", ["xception41", "xception71"])
def test_all_output_strides_have_the_same_weights(name: str) -> None:
    """timm's own Xception-71 has one shortcut less at output stride 8."""
    states = [meta(name, stride).state_dict() for stride in (8, 16, 32)]
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.fixture(scope="module")
def whole() -> Any:
    """timm's classifier of the smallest of them."""
    torch.manual_seed(0)
    network = timm.create_model("xception41", pretrained=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def weights(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "xception41.safetensors"
    save_file(whole.state_dict(), path)
    return path


@torch.no_grad()
def test_with_weights_from_a_file_the_features_are_timms(whole: Any, weights: Path) -> None:
    backbone = create_xception("xception41", 32, weights).eval()
    x = torch.randn(1, 3, 65, 65)
    low, high = backbone(x)
    torch.testing.assert_close(high, whole.forward_features(x))
    second = whole.blocks[1]
    inside = whole.blocks[0](whole.stem(x))
    expected = second.stack.conv2(second.stack.act2(second.stack.conv1(second.stack.act1(inside))))
    torch.testing.assert_close(low, expected)
    assert low.min() < 0, "before the ReLU"


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    with pytest.raises(BadFile, match="not the weights of 'xception65'"):
        create_xception("xception65", 16, weights)


@pytest.fixture(scope="module")
def random() -> Any:
    torch.manual_seed(0)
    return create_xception("xception41", 16, None)


@torch.no_grad()
def test_the_middle_flow_without_its_pointwise_weights_is_the_identity(random: Any) -> None:
    block = copy.deepcopy(random.body.blocks[4]).eval()
    nn.init.zeros_(block.stack.conv3.conv_pw.weight)
    x = torch.randn(1, 728, 5, 5)
    assert torch.equal(block(x), x)


def test_random_weights_come_from_a_truncated_normal_distribution(random: Any) -> None:
    weight = random.body.blocks[5].stack.conv1.conv_pw.weight
    assert weight.abs().max() <= 0.18
    assert weight.std().item() == pytest.approx(0.88 * 0.09, rel=0.02)


def test_names() -> None:
    assert all(map(is_xception, ("xception41", "xception65.tf_in1k", "xception71")))
    assert not any(map(is_xception, ("xception", "xception65p", "xception41p.ra3_in1k", "legacy_xception")))
    with pytest.raises(UserError, match="has no weights 'tf'"), torch.device("meta"):
        create_xception("xception65.tf", 16, None)
