"""The Darknets: their sizes, strides, and where they come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.errors import UserError
from labelwise.models.darknet import create_darknet


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_darknet53_has_the_papers_layers() -> None:
    with torch.device("meta"):
        backbone = create_darknet("darknet53", 16, "none")
    # 52 convolutions without the classifier.
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == 52
    assert parameters(backbone) == 40_584_928
    assert backbone.channels[-3:] == (256, 512, 1024)
    assert backbone.strides[-3:] == (8, 16, 32)


def test_the_tiny_stack_has_the_channels_of_the_released_code() -> None:
    with torch.device("meta"):
        backbone = create_darknet("darknet_tiny", 16, None)
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert [each.out_channels for each in convolutions] == [16, 32, 16, 128, 64, 128, 256, 512, 1024, 256]
    assert {module.negative_slope for module in backbone.modules() if isinstance(module, nn.LeakyReLU)} == {0.1}
    weights = sum(each.weight.numel() for each in convolutions)
    assert parameters(backbone) == weights + 2 * sum(each.out_channels for each in convolutions)


def test_the_tiny_stacks_features_have_the_strides_it_says() -> None:
    backbone = create_darknet("darknet_tiny", 16, None).eval()
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(feature.shape[1:]) for feature in features] == [(256, 4, 6), (256, 2, 3)]
    assert backbone.strides == (16, 32)


def test_other_names_are_backbones() -> None:
    assert create_darknet("tiny", 8, None).strides[-1] == 8
    with pytest.raises(UserError, match="unknown backbone"):
        create_darknet("darknet_35", 16, None)


def test_the_tiny_stack_has_no_weights_to_load() -> None:
    with pytest.raises(UserError, match=r"'darknet_tiny' .* --backbone-weights none"):
        create_darknet("darknet_tiny", 16, "imagenet")
