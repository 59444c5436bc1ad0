"""BAS's networks: the paper's sizes, cuts that compute what the whole computes, heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.errors import UserError
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.bas import CUTS, BasNetwork, chain_of, create_network, split_backbone
from labelwise.models.cam import without_dilation


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("resnet50", 200, 53_870_032),
        ("resnet50", 1000, 62_063_632),
        ("vgg16", 200, 29_999_312),
        ("vgg16", 1000, 34_506_512),
        ("mobilenetv1_100", 200, 23_210_192),
        ("mobilenetv1_100", 1000, 27_717_392),
        ("inception_v3", 200, 51_686_768),
        ("inception_v3", 1000, 58_037_168),
    ],
)
def test_the_paper_s_networks_have_its_sizes_and_grids(name: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = create_network(name, None, classes, 1024)
        result = network.activations(torch.empty(1, 3, 224, 224))
    assert count(network) == parameters
    assert result.maps.shape == (1, classes, 28, 28)
    assert result.class_maps.shape == (1, classes, 14, 14)


def test_the_network_for_several_tags_has_the_paper_s_size_and_one_grid() -> None:
    backbone = create_backbone("resnet50", 16, None)
    without_dilation(backbone)
    network = BasNetwork(split_backbone(backbone, "resnet50"), 20, 0).eval()
    assert count(network) == 23_733_312
    with torch.no_grad():
        result = network.activations(torch.zeros(1, 3, 64, 96))
    assert result.maps.shape == result.class_maps.shape == (1, 20, 4, 6)


@pytest.mark.parametrize(
    ("name", "output_stride", "map_stride", "stride"),
    [
        ("tiny", 16, 0, 8),
        ("tiny", 8, 4, 4),
        ("micro_w10", 4, 0, 2),
        ("tiny32", 32, 8, 8),
        ("fd_mobilenet_025", 16, 8, 8),
        ("mobilenetv2_100", 16, 0, 16),
        ("resnet18", 16, 4, 4),
    ],
)
def test_a_cut_backbone_computes_what_the_whole_does(
    name: str, output_stride: int, map_stride: int, stride: int
) -> None:
    backbone = create_backbone(name, output_stride, None).eval()
    split = split_backbone(backbone, name, map_stride).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = split.early(image)
        assert features.shape == (2, split.channels[0], 64 // stride, 96 // stride)
        assert torch.equal(split.late(features), backbone(image)[-1])
    assert split.channels[1] == backbone.channels[-1]


def test_a_probe_leaves_no_trace_in_the_backbone() -> None:
    backbone = create_backbone("tiny", 16, None).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    split_backbone(backbone, "tiny")
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_layers_keep_the_names_of_the_plain_classifier() -> None:
    network = BasNetwork(split_backbone(create_backbone("tiny", 16, None), "tiny"), 3, 8)
    assert "backbone.body.layer1.0.conv1.0.weight" in network.state_dict()


def test_maps_and_logits_are_those_of_one_pass() -> None:
    network = BasNetwork(split_backbone(create_backbone("micro_w10", 4, None), "micro_w10"), 3, 8).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        result = network.activations(image)
        assert torch.equal(network(image), result.logits)
        assert torch.equal(network.maps(image), result.maps)
    assert 0 < result.maps.min() < result.maps.max() < 1


def test_the_heads_start_as_the_paper_says() -> None:
    split = split_backbone(create_backbone("tiny", 16, None), "tiny")
    plain, gaussian = (BasNetwork(split, 20, 64, gaussian=flag).generator for flag in (False, True))
    assert plain.bias is not None and not plain.bias.any()
    limit = (6 / (9 * 96 + 9 * 20)) ** 0.5
    assert 0.95 * limit < plain.weight.abs().max() <= limit
    assert gaussian.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert BasNetwork(split, 20, 0).generator.bias is None


def test_a_stride_that_the_backbone_lacks_is_refused() -> None:
    message = "--map-stride 3: backbone 'tiny' has features of strides 2, 4, 8 to make maps of"
    with pytest.raises(UserError, match=message):
        split_backbone(create_backbone("tiny", 16, None), "tiny", 3)


def test_a_backbone_that_is_no_chain_is_refused() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.left(x), self.right(x)]

    with pytest.raises(UserError, match="backbone 'forked' is no chain of stages that could be cut"):
        split_backbone(Backbone(Forked(), (4, 4), (1, 1)), "forked")


def test_the_cuts_name_stages_that_exist() -> None:
    for name, cut in CUTS.items():
        with torch.device("meta"):
            names = list(chain_of(create_backbone(name, 32, None).body))
        assert names.index(cut.early) < names.index(cut.late)
