"""The feature pyramid for segmentation: the paper's parameter counts, sizes, and what each level adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.models.acquisition import monte_carlo_dropout
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.semantic_fpn import SemanticFPN


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        network = SemanticFPN(create_backbone("resnet50", 8, None), classes=21)
    assert network.backbone.strides == (2, 4, 8, 8, 8)
    assert parameters(network.backbone) == 23_508_032
    assert parameters(network) - parameters(network.backbone) == 3_202_837


@pytest.mark.parametrize(("name", "stride"), [("tiny", 4), ("tiny", 8), ("tiny", 16), ("micro_w4", 4), ("tiny32", 32)])
@pytest.mark.parametrize("size", [(48, 32), (41, 50)])
def test_logits_have_the_images_size_whatever_it_is(name: str, stride: int, size: tuple[int, int]) -> None:
    network = SemanticFPN(create_backbone(name, stride, None), classes=5, channels=16).eval()
    assert network(torch.rand(2, 3, *size)).shape == (2, 5, *size)


class Given(nn.Module):
    """A body whose features are given."""

    def __init__(self, *features: torch.Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(self.features)


def test_a_level_is_its_own_feature_and_the_coarser_level_enlarged() -> None:
    fine, coarse = torch.rand(1, 2, 8, 8), torch.rand(1, 3, 4, 4)
    network = SemanticFPN(Backbone(Given(fine, coarse), (2, 3), (4, 8)), classes=2, channels=4)
    first, second = network.pyramid([fine, coarse])
    torch.testing.assert_close(second, network.laterals[1](coarse))
    enlarged = nn.functional.interpolate(second, (8, 8), mode="bilinear")
    torch.testing.assert_close(first, network.laterals[0](fine) + enlarged)


@pytest.mark.parametrize("level", [0, 1])
def test_every_level_reaches_the_prediction(level: int) -> None:
    features = torch.rand(1, 2, 8, 8), torch.rand(1, 3, 4, 4)
    features[level].requires_grad_()
    network = SemanticFPN(Backbone(Given(*features), (2, 3), (4, 8)), classes=2, channels=64)
    network(torch.rand(1, 3, 32, 32)).square().sum().backward()
    assert features[level].grad is not None and features[level].grad.any()


def test_a_backbone_without_a_feature_at_stride_4_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \(2, 8\), none at stride 4"):
        SemanticFPN(Backbone(nn.Identity(), (4, 8), (2, 8)), classes=3)


def test_training_drops_nothing_but_a_committee_can() -> None:
    torch.manual_seed(0)
    network, image = SemanticFPN(create_backbone("tiny", 8, None), classes=3, channels=16), torch.rand(2, 3, 32, 32)
    before = torch.get_rng_state()
    network.train()(image)
    assert torch.equal(torch.get_rng_state(), before)
    network.eval()
    with torch.no_grad(), monte_carlo_dropout(network):
        assert not torch.equal(network(image), network(image))
    assert torch.equal(network(image), network(image))
