from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labelwise.errors import BadFile, UserError
from labelwise.models.affinity_net import AffinityNet
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.wide_resnet38 import WideResNet38


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def trunk() -> WideResNet38:
    with torch.device("meta"):
        return WideResNet38()


def test_it_has_as_many_parameters_as_the_papers_network(trunk: WideResNet38) -> None:
    assert parameters(trunk) + 20 * 4096 == 105_152_832
    with torch.device("meta"):
        affinity_net = AffinityNet(Backbone(trunk, trunk.channels, trunk.strides))
    assert parameters(affinity_net) == 106_484_032


def test_its_features_have_the_channels_and_strides_that_it_names(trunk: WideResNet38) -> None:
    features = trunk(torch.zeros(1, 3, 64, 96, device="meta"))
    shapes = [(feature.shape[1], 64 // feature.shape[2], 96 // feature.shape[3]) for feature in features]
    assert shapes == [(count, stride, stride) for count, stride in zip(trunk.channels, trunk.strides, strict=True)]


def test_only_the_last_two_stages_drop_channels_and_the_fifth_begins_without_dilation(trunk: WideResNet38) -> None:
    rates = [module.p for module in trunk.modules() if isinstance(module, torch.nn.Dropout2d)]
    assert rates == [0.3, 0.5]
    dilations = {
        name: module.dilation[0]
        for name, module in trunk.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) and name.startswith("b5")
    }
    assert dilations.pop("b5.conv_branch2a") == 1
    assert set(dilations.values()) == {2}


@pytest.mark.parametrize(
    ("stride", "weights", "message"),
    [
        (16, None, "backbone 'wide_resnet38' has output stride 8 and no other; --output-stride 8"),
        (8, "imagenet", "has no ImageNet weights; --backbone-weights none, or a file of the released ones"),
    ],
)
def test_what_it_cannot_have_is_refused(stride: int, weights: str | None, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_backbone("wide_resnet38", stride, weights)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"conv1a.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.safetensors")
    with torch.device("meta"), pytest.raises(BadFile, match="not the weights of 'wide_resnet38'"):
        create_backbone("wide_resnet38", 8, tmp_path / "other.safetensors")
