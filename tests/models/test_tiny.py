"""The smallest network: its sizes, its width, its use as a backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from labelwise.errors import UserError
from labelwise.models.backbones import create_backbone
from labelwise.models.deeplab_v3plus import DeepLabV3Plus
from labelwise.models.tiny import MicroNetwork


@pytest.mark.parametrize("width", [1, 4, 13])
def test_features_are_twice_and_four_times_as_wide_at_strides_2_and_4(width: int) -> None:
    backbone = create_backbone(f"micro_w{width}", 4, None).eval()
    assert (backbone.channels, backbone.strides) == ((2 * width, 4 * width), (2, 4))
    with torch.no_grad():
        low, high = backbone(torch.randn(2, 3, 40, 24))
    assert low.shape == (2, 2 * width, 20, 12)
    assert high.shape == (2, 4 * width, 10, 6)


def test_the_layers_are_those_of_the_protocols_test_bed() -> None:
    convolutions = [module for module in MicroNetwork(10).modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.out_channels, conv.stride[0], conv.dilation[0]) for conv in convolutions] == [
        (10, 1, 1),
        (20, 2, 1),
        (40, 2, 1),
        (40, 1, 2),
    ]


def test_a_micro_network_carries_a_decoder_that_sees_stride_2() -> None:
    network = DeepLabV3Plus(create_backbone("micro_w4", 4, None), 5, aspp_channels=16, low_channels=8, rates=(2, 4))
    network.eval()
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        c1, c4 = network.forward_features(image)
        assert (c1.shape[1:], c4.shape[1:]) == ((8, 20, 20), (16, 10, 10))
        assert network(image).shape == (1, 5, 40, 40)


def test_weights_of_a_micro_network_are_read_from_a_file(tmp_path: Path) -> None:
    trained = create_backbone("micro_w4", 4, None).body.state_dict()
    save_file(trained, tmp_path / "micro.safetensors")
    state = create_backbone("micro_w4", 4, tmp_path / "micro.safetensors").body.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in state.items())


def test_the_network_of_stride_32_halves_its_size_five_times() -> None:
    backbone = create_backbone("tiny32", 32, None).eval()
    assert sum(parameter.numel() for parameter in backbone.parameters()) < 70_000
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert backbone.strides == (2, 4, 8, 16, 32)
    expected = [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(feature.shape[1:]) for feature in features] == expected


@pytest.mark.parametrize(
    ("name", "output_stride", "message"), [("tiny32", 16, "stride 32 and no other"), ("tiny", 32, "tiny32")]
)
def test_a_stride_that_a_small_network_cannot_have_is_refused(name: str, output_stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_backbone(name, output_stride, None)
