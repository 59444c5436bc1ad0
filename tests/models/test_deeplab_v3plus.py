"""DeepLabv3+: parameter counts of the papers, sizes, and the parts that methods use separately."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.deeplab_v3plus import DeepLabV3Plus


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture
def network() -> DeepLabV3Plus:
    torch.manual_seed(0)
    return DeepLabV3Plus(create_backbone("tiny", 16, None), classes=5, aspp_channels=16, low_channels=8, rates=(1, 2))


@pytest.mark.parametrize("variant", ["plain", "concatenated"])
@pytest.mark.parametrize(("name", "total"), [("resnet50s", 40_475_957), ("resnet101s", 59_468_085)])
def test_parameters_of_the_papers_networks(name: str, total: int, variant: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, 16, None, multi_grid=(2, 4, 8))
        network = DeepLabV3Plus(backbone, classes=21, variant=variant)  # type: ignore[arg-type]
    assert parameters(network.aspp) == 15_535_104
    assert parameters(network.low, network.fuse, network.classifier) == 1_309_045
    assert parameters(network) == total


@pytest.mark.parametrize("size", [(96, 96), (97, 65)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_have_the_images_size(size: tuple[int, int], output_stride: int) -> None:
    network = DeepLabV3Plus(create_backbone("tiny", output_stride, None), 5, 16, 8, (1, 2)).eval()
    x = torch.randn(1, 3, *size)
    c1, c4 = network.forward_features(x)
    assert c1.shape[2:] == tuple(-(-side // 4) for side in size)
    assert c4.shape[2:] == tuple(-(-side // output_stride) for side in size)
    assert network.decoder_feature(c1, c4).shape == (1, 16, *c1.shape[2:])
    assert network.decode(c1, c4).shape == (1, 5, *c1.shape[2:])
    assert network(x).shape == (1, 5, *size)


def test_forward_is_its_parts(network: DeepLabV3Plus) -> None:
    network.eval()
    x = torch.randn(2, 3, 48, 64)
    c1, c4 = network.forward_features(x)
    quarter = network.classifier(network.decoder_feature(c1, c4))
    assert torch.equal(network.decode(c1, c4), quarter)
    whole = functional.interpolate(quarter, size=(48, 64), mode="bilinear", align_corners=True)
    assert torch.equal(network(x), whole)
    assert torch.allclose(whole[:, :, ::47, ::63], quarter[:, :, ::11, ::15], atol=1e-5), "corners are aligned"


def test_the_low_level_path_can_be_switched_off(network: DeepLabV3Plus) -> None:
    network.eval()
    nn.init.zeros_(network.low[0].weight)
    c1, c4 = network.forward_features(torch.randn(1, 3, 32, 32))
    assert torch.equal(network.decode(c1, c4), network.decode(torch.randn_like(c1), c4))
    assert not torch.equal(network.decode(c1, c4), network.decode(c1, torch.randn_like(c4)))


def test_one_image_trains_every_weight(network: DeepLabV3Plus) -> None:
    network(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_concatenated_heads_initialisation() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("tiny", 16, None)
    network = DeepLabV3Plus(backbone, 21, 64, 48, variant="concatenated")
    assert network.fuse[1][0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    assert network.classifier.bias is not None
    assert not network.classifier.bias.any()


def test_two_networks_differ_in_their_heads() -> None:
    torch.manual_seed(0)
    first, second = (DeepLabV3Plus(create_backbone("tiny", 16, None), 5, 16, 8) for _ in range(2))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_a_backbone_without_stride_four_is_refused() -> None:
    class Body(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x]

    with pytest.raises(ValueError, match="stride 4"):
        DeepLabV3Plus(Backbone(Body(), [3], [8]), 5)


def test_dropouts_act_where_they_are_asked_for_and_never_change_the_names_of_the_state() -> None:
    backbone = create_backbone("tiny", 16, None)
    plain, dropping = (
        DeepLabV3Plus(backbone, 5, 16, 8, (1, 2), dropout=dropout, decoder_dropout=(dropout, dropout))
        for dropout in (0.0, 0.5)
    )
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 48, 48)
    features = dropping.eval().forward_features(x)
    assert torch.equal(dropping.decoder_feature(*features), plain.eval().decoder_feature(*features))
    for module in dropping.modules():
        module.training = isinstance(module, nn.Dropout)
    # The last convolution ends in a ReLU and then drops: more zeros.
    zeros = [float((network.decoder_feature(*features) == 0).float().mean()) for network in (plain, dropping)]
    assert zeros[1] > zeros[0] + 0.15
