from __future__ import annotations

import pytest
import torch

from labelwise.models.affinity_net import AffinityNet
from labelwise.models.backbones import create_backbone
from labelwise.models.irn import BoundaryHead, DisplacementHead, IRNet

RESNET50 = (64, 256, 512, 1024, 2048), (2, 4, 8, 16, 16)
SMALL = [("tiny", 16), ("tiny", 4), ("micro_w2", 4)]


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_heads_have_as_many_parameters_as_the_papers_on_resnet50() -> None:
    with torch.device("meta"):
        assert parameters(BoundaryHead(RESNET50[0])) == 125_409
        assert parameters(DisplacementHead(*RESNET50)) == 1_269_120


@pytest.mark.parametrize(("name", "stride"), SMALL)
def test_both_maps_have_stride_4_on_any_backbone_and_image(name: str, stride: int) -> None:
    network = IRNet(create_backbone(name, stride, None)).eval()
    boundary, displacement = network(torch.randn(2, 3, 30, 41))
    assert boundary.shape == (2, 8, 11) and displacement.shape == (2, 2, 8, 11)
    assert torch.equal(network.boundary_logits(torch.zeros(1, 3, 8, 8)), network(torch.zeros(1, 3, 8, 8))[0])


@pytest.mark.parametrize("frozen", [True, False])
def test_the_backbone_gets_a_gradient_only_if_it_is_not_frozen(frozen: bool) -> None:
    network = IRNet(create_backbone("micro_w2", 4, None), frozen=frozen)
    boundary, displacement = network(torch.randn(2, 3, 16, 16))
    (boundary.sum() + displacement.square().sum()).backward()
    learned = {name.split(".")[0] for name, weight in network.named_parameters() if weight.grad is not None}
    assert learned == {"boundary", "displacement"} | (set() if frozen else {"backbone"})


def test_the_mean_displacement_is_taken_away_in_evaluation_alone() -> None:
    network = IRNet(create_backbone("micro_w2", 4, None))
    network.backbone.eval()
    network.displacement.mean.copy_(torch.tensor([1.0, -2.0]))
    image = torch.randn(1, 3, 16, 16)
    trained = network(image)[1]
    moved = network.eval()(image)[1]
    assert torch.allclose(trained - moved, torch.tensor([1.0, -2.0])[:, None, None].expand_as(moved), atol=1e-5)


def test_a_backbone_without_a_fine_feature_is_refused() -> None:
    backbone = create_backbone("tiny", 16, None)
    backbone.strides = (8, 16)
    with pytest.raises(ValueError, match="its finest feature has stride 8"):
        IRNet(backbone)


@pytest.mark.parametrize(("name", "stride", "finest"), [("tiny", 16, 4), ("tiny", 4, 4), ("micro_w2", 4, 2)])
def test_affinity_net_compares_the_last_features_at_the_finest_of_them(name: str, stride: int, finest: int) -> None:
    network = AffinityNet(create_backbone(name, stride, None)).eval()
    assert network.stride == finest
    assert network(torch.randn(1, 3, 32, 48)).shape == (1, network.mixed.out_channels, 32 // finest, 48 // finest)
