"""What detectors compute once per image: the papers' sizes, what is frozen, whose weights go where."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from labelwise.errors import BadFile, UserError
from labelwise.models import detection_trunks
from labelwise.models.backbones import create_backbone
from labelwise.models.detection_trunks import (
    RegionNetwork,
    backbone_stages,
    create_fully_connected,
    create_trunk,
    pixel_statistics,
)
from labelwise.models.regions import RegionHead


def network(name: str, size: int, classes: int = 20, frozen: int = 0) -> RegionNetwork:
    trunk = create_trunk(name, None, frozen_stages=frozen)
    layers = create_fully_connected(name, None, channels=trunk.channels, size=size, width=8)
    return RegionNetwork(trunk, RegionHead(layers, layers.width, classes))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def frozen_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)


def test_the_sizes_of_network_l_are_the_papers() -> None:
    with torch.device("meta"):
        vgg16 = network("vgg16", 7, frozen=2)
    assert count(vgg16.backbone) == 14_714_688
    assert count(vgg16.head.layers.fc6) == 102_764_544
    assert count(vgg16.head.layers.fc7) == 16_781_312
    assert count(vgg16.head.scores) == 86_037 and count(vgg16.head.offsets) == 344_148
    assert count(vgg16) == 134_690_729
    assert frozen_count(vgg16) == 260_160
    assert [name for name, parameter in vgg16.named_parameters() if not parameter.requires_grad][-1] == (
        "backbone.features.7.bias"
    )


@pytest.mark.parametrize(("name", "first"), [("caffenet", 34_944), ("vgg_cnn_m_1024", 14_208)])
def test_networks_s_and_m_keep_their_first_convolution(name: str, first: int) -> None:
    with torch.device("meta"):
        small = network(name, 6, frozen=1)
    assert frozen_count(small) == first
    assert small.head.scores.in_features == (4096 if name == "caffenet" else 1024)


@pytest.mark.parametrize(
    ("name", "channels", "cells"),
    [("vgg16", 512, (38, 63)), ("caffenet", 256, (39, 64)), ("vgg_cnn_m_1024", 512, None)],
)
def test_a_cell_of_the_papers_networks_is_16_pixels(name: str, channels: int, cells: tuple[int, int] | None) -> None:
    with torch.device("meta"):
        trunk = create_trunk(name, None)
        found = trunk(torch.zeros(1, 3, 600, 1000))
    assert trunk.stride == 16 and found.shape[1] == trunk.channels == channels
    if cells:
        assert found.shape[2:] == cells
    assert all(abs(cell - pixels / 16) < 3 for cell, pixels in zip(found.shape[2:], (600, 1000), strict=True))


@pytest.mark.parametrize(
    ("name", "stride", "channels", "frozen"),
    [
        ("tiny", 8, 128, ("stem.", "layer1.")),
        ("mobilenetv2_100", 16, 320, ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
        ("resnet18", 16, 512, ("conv1.", "bn1.", "layer1.")),
    ],
)
def test_any_backbone_gives_its_last_feature(name: str, stride: int, channels: int, frozen: tuple[str, ...]) -> None:
    trunk = create_trunk(name, None, output_stride=stride, frozen_stages=2)
    assert (trunk.channels, trunk.stride) == (channels, stride)
    assert trunk(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 64 // stride, 96 // stride)
    for key, parameter in trunk.named_parameters():
        assert parameter.requires_grad != key.removeprefix("features.body.").startswith(frozen), key


@pytest.mark.parametrize("name", ["tiny", "mobilenetv2_100"])
def test_every_parameter_is_of_one_stage_and_looking_changes_nothing(name: str) -> None:
    backbone = create_backbone(name, 16, None)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    stages = backbone_stages(backbone)
    listed = [id(parameter) for stage in stages for parameter in stage]
    assert sorted(listed) == sorted(map(id, backbone.parameters()))
    assert len(stages) == len(backbone.strides) and all(stages)
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_caffes_networks_see_the_pixels_of_caffe() -> None:
    statistics = pixel_statistics("caffenet")
    assert statistics is not None and statistics[1] == (1 / 255,) * 3
    assert pixel_statistics("vgg16") is None and pixel_statistics("tiny") is None


@pytest.mark.parametrize(
    ("call", "mend"),
    [
        (lambda: create_trunk("vgg16", None, output_stride=8), "--output-stride 16"),
        (lambda: create_trunk("tiny", None, output_stride=8, frozen_stages=5), "--frozen-stages 5: .* has 4 stages"),
        (lambda: create_trunk("tiny", None, output_stride=8, frozen_stages=-1), "--frozen-stages -1"),
        (lambda: create_trunk("caffenet", "imagenet"), "--backbone-weights FILE or none"),
        (lambda: create_trunk("resnet17", None), "unknown backbone 'resnet17'"),
        (
            lambda: create_fully_connected("caffenet", None, channels=256, size=7, width=8),
            "--roi-size 7: fc6 of 'caffenet' takes --roi-size 6",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(call: object, mend: str) -> None:
    with pytest.raises(UserError, match=mend):
        call()  # type: ignore[operator]


def small_layers() -> detection_trunks.Layers:
    return OrderedDict(conv1=nn.Conv2d(3, 4, 3), pool1=nn.MaxPool2d(2), conv2=nn.Conv2d(4, 5, 3))


def numbered_layers() -> detection_trunks.Layers:
    return OrderedDict((str(number), layer) for number, layer in enumerate(small_layers().values()))


def weights_of(names: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {f"{name}.{part}": torch.rand(shape[: 1 if part == "bias" else None])
            for name, shape in names.items() for part in ("weight", "bias")}  # fmt: skip


def test_weights_in_torchvisions_naming_find_their_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = detection_trunks._Classifier(numbered_layers, 5, 2, (6, 7))
    monkeypatch.setitem(detection_trunks.CLASSIFIERS, "vgg16", small)
    state = weights_of({"features.0": (4, 3, 3, 3), "features.2": (5, 4, 3, 3), "classifier.0": (6, 20),
                        "classifier.3": (7, 6), "classifier.6": (1000, 7)})  # fmt: skip
    save_file(state, tmp_path / "vgg.safetensors")
    trunk = create_trunk("vgg16", tmp_path / "vgg.safetensors")
    layers = create_fully_connected("vgg16", tmp_path / "vgg.safetensors", channels=5, size=2, width=0)
    assert torch.equal(trunk.state_dict()["features.2.weight"], state["features.2.weight"])
    assert torch.equal(layers.state_dict()["fc6.weight"], state["classifier.0.weight"])
    assert torch.equal(layers.state_dict()["fc7.bias"], state["classifier.3.bias"])


def test_weights_of_caffe_are_turned_to_rgb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = detection_trunks._Classifier(small_layers, 5, 2, (6, 7), caffe=True)
    monkeypatch.setitem(detection_trunks.CLASSIFIERS, "caffenet", small)
    state = weights_of({"conv1": (4, 3, 3, 3), "conv2": (5, 4, 3, 3), "fc6": (6, 20), "fc7": (7, 6), "fc8": (9, 7)})
    save_file(state, tmp_path / "caffe.safetensors")
    trunk = create_trunk("caffenet", tmp_path / "caffe.safetensors")
    assert torch.equal(trunk.state_dict()["features.conv1.weight"], state["conv1.weight"].flip(1))
    assert torch.equal(trunk.state_dict()["features.conv2.weight"], state["conv2.weight"])


def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = detection_trunks._Classifier(small_layers, 5, 2, (6, 7), caffe=True)
    monkeypatch.setitem(detection_trunks.CLASSIFIERS, "caffenet", small)
    save_file(weights_of({"conv1": (4, 3, 3, 3)}), tmp_path / "other.safetensors")
    with pytest.raises(BadFile, match="not the weights of 'caffenet'"):
        create_trunk("caffenet", tmp_path / "other.safetensors")
