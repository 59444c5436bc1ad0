"""MSRA's ResNet with holes: sizes, strides, rates, weights of ImageNet networks, and the hole identity."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from labelwise.errors import BadFile
from labelwise.models import atrous_resnet
from labelwise.models.atrous_resnet import AtrousResNet, create_atrous_resnet


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks per stage and few channels."""
    monkeypatch.setattr(atrous_resnet, "BLOCKS", {"resnet50": (1, 2, 2, 2)})
    monkeypatch.setattr(atrous_resnet, "WIDTHS", (4, 5, 6, 7))


def spatial(stage: nn.Module) -> list[nn.Conv2d]:
    return [conv for conv in stage.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)]


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_names_and_shapes_of_the_weights_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = AtrousResNet(name), timm.create_model(name, num_classes=0)
    found = {key: value.shape for key, value in ours.state_dict().items()}
    assert found == {key: value.shape for key, value in theirs.state_dict().items()}


@pytest.mark.parametrize(("size", "grids"), [(321, (161, 81, 41)), (241, (121, 61, 31)), (161, (81, 41, 21))])
def test_the_papers_sizes(size: int, grids: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        network = AtrousResNet("resnet50")
        features = network(torch.zeros(1, 3, size, size))
    half, quarter, eighth = grids
    assert [feature.shape[-1] for feature in features] == [half, quarter, eighth, eighth, eighth]
    assert network.strides == (2, 4, 8, 8, 8)
    assert tuple(feature.shape[1] for feature in features) == network.channels


def test_the_first_pool_rounds_up() -> None:
    with torch.device("meta"):
        assert AtrousResNet("resnet50").eval()(torch.zeros(1, 3, 4, 6))[1].shape[2:] == (2, 2)
        assert AtrousResNet("resnet50").eval()(torch.zeros(1, 3, 1, 1))[-1].shape[2:] == (1, 1)


@pytest.mark.parametrize(
    ("output_stride", "strides", "rates"),
    [(4, (1, 1, 1), (2, 4, 8)), (8, (2, 1, 1), (1, 2, 4)), (16, (2, 2, 1), (1, 1, 2)), (32, (2, 2, 2), (1, 1, 1))],
)
@pytest.mark.parametrize("msra", [True, False])
def test_strides_and_rates_of_the_stages(
    output_stride: int, strides: tuple[int, ...], rates: tuple[int, ...], msra: bool
) -> None:
    with torch.device("meta"):
        network = AtrousResNet("resnet101", output_stride, msra_stride=msra)
    for number, stride, rate in zip((2, 3, 4), strides, rates, strict=True):
        stage = network.get_submodule(f"layer{number}")
        first = stage[0]
        assert (first.conv1.stride[0], first.conv2.stride[0]) == ((stride, 1) if msra else (1, stride))
        assert first.downsample[0].stride[0] == stride
        # The first block's 3x3 convolution included.
        assert {conv.dilation[0] for conv in spatial(stage)} == {rate} == {conv.padding[0] for conv in spatial(stage)}


@pytest.mark.parametrize(("fine", "coarse"), [(8, 16), (8, 32), (4, 8)])
def test_holes_give_at_some_places_what_the_strides_gave(small: None, fine: int, coarse: int) -> None:
    torch.manual_seed(0)
    dense, strided = AtrousResNet("resnet50", fine).eval(), AtrousResNet("resnet50", coarse).eval()
    dense.load_state_dict(strided.state_dict())
    step = coarse // fine
    x = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        torch.testing.assert_close(dense(x)[-1][..., ::step, ::step], strided(x)[-1], rtol=1e-5, atol=1e-5)


def test_weights_of_timms_network_are_read_from_a_file_and_compute_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet50").eval()
    save_file(theirs.state_dict(), tmp_path / "resnet50.safetensors")
    ours = create_atrous_resnet("resnet50", 32, tmp_path / "resnet50.safetensors", msra_stride=False).eval()
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[-1], theirs.forward_features(x), rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(BadFile, match="not the weights of 'resnet50'"):
        create_atrous_resnet("resnet50", 8, tmp_path / "wrong.safetensors")
