"""VGG-16 with holes: the same features at more places, the papers' sizes, and a classifier's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg16

from labelwise.errors import BadFile
from labelwise.models import atrous_vgg
from labelwise.models.atrous_heads import ClassifierBranch
from labelwise.models.atrous_vgg import AtrousMaxPool2d, AtrousVGG16, atrous_from_strided, decimate_fc6, load_vgg16
from labelwise.models.complexity import count_parameters

NARROW = (2, 3, 3, 4, 4)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers, with few channels."""
    monkeypatch.setattr(atrous_vgg, "CHANNELS", NARROW)
    monkeypatch.setattr(atrous_vgg, "FC_WIDTH", 8)


def same_weights(*networks: AtrousVGG16) -> tuple[AtrousVGG16, ...]:
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())
    return networks


def conv5_3(network: AtrousVGG16, x: Tensor) -> Tensor:
    """Everything but pool5."""
    with torch.no_grad():
        return network.features[:-1](x)


def test_the_convolutions_have_vggs_names_shapes_and_count() -> None:
    with torch.device("meta"):
        ours, theirs = AtrousVGG16(), vgg16().features
    shapes = {f"features.{name}": value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    assert count_parameters(ours) == 14_714_688


@pytest.mark.parametrize(("size", "grid"), [(321, 41), (513, 65)])
def test_the_papers_sizes(size: int, grid: int) -> None:
    with torch.device("meta"):
        features = AtrousVGG16(pool5a=True)(torch.zeros(1, 3, size, size))
    half, quarter = (size + 1) // 2, (size + 3) // 4
    assert [feature.shape[-1] for feature in features] == [half, quarter, grid, grid, grid]


def test_only_what_follows_a_removed_stride_has_holes() -> None:
    layers = AtrousVGG16().features
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [conv.dilation[0] for conv in convolutions] == 10 * [1] + 3 * [2]
    assert [conv.padding[0] for conv in convolutions] == 10 * [1] + 3 * [2]
    pools = [layer for layer in layers if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 2


@pytest.mark.parametrize("size", [(65, 97), (81, 49)])
def test_holes_give_at_every_second_place_what_the_stride_gave(narrow: None, size: tuple[int, int]) -> None:
    dense, coarse = same_weights(AtrousVGG16(8), AtrousVGG16(16))
    x = torch.randn(1, 3, *size)
    torch.testing.assert_close(conv5_3(dense, x)[..., ::2, ::2], conv5_3(coarse, x), rtol=0, atol=1e-6)


def test_beyond_pool5_the_identity_needs_a_dilated_pool(narrow: None) -> None:
    torch.manual_seed(0)
    coarse, dilated, paper = same_weights(AtrousVGG16(32), AtrousVGG16(8, dilate_pools=True), AtrousVGG16(8))
    x = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        wanted, found, papers = (network(x)[-1] for network in (coarse, dilated, paper))
    torch.testing.assert_close(found[..., ::4, ::4], wanted, rtol=0, atol=1e-6)
    assert (papers[..., ::4, ::4] - wanted).abs().max() > 0.01


def test_a_dilated_pool_never_takes_its_padding() -> None:
    x = -1 - torch.rand(1, 2, 7, 6)
    pooled = AtrousMaxPool2d(3, 1, 2)(x)
    assert pooled.shape == x.shape
    assert (pooled < 0).all()
    torch.testing.assert_close(AtrousMaxPool2d(3, 2, 1)(x), nn.functional.max_pool2d(x, 3, 2, 1))


def test_strided_convolutions_become_dense_too() -> None:
    torch.manual_seed(0)

    def layers() -> nn.Sequential:
        pairs = [nn.Conv2d(3, 3, 3, 2, padding=1), nn.Conv2d(3, 3, 5, 2, padding=2), nn.Conv2d(3, 3, 3, padding=1)]
        return nn.Sequential(pairs[0], nn.ReLU(), pairs[1], nn.ReLU(), pairs[2])

    coarse, dense = layers(), layers()
    dense.load_state_dict(coarse.state_dict())
    atrous_from_strided(dense, 1)
    assert [dense[index].dilation[0] for index in (0, 2, 4)] == [1, 2, 4]
    x = torch.randn(1, 3, 21, 33)
    torch.testing.assert_close(dense(x)[..., ::4, ::4], coarse(x))


def test_nothing_changes_at_the_networks_own_stride() -> None:
    layers = AtrousVGG16(32).features
    assert {layer.dilation for layer in layers if isinstance(layer, nn.Conv2d)} == {(1, 1)}
    assert {layer.stride for layer in layers if isinstance(layer, nn.MaxPool2d)} == {2}


@pytest.mark.parametrize(("kernel", "taps"), [(3, [0, 3, 6]), (4, [0, 2, 4, 6]), (7, list(range(7)))])
def test_decimation_takes_even_taps_and_filters(kernel: int, taps: list[int]) -> None:
    weight = torch.randn(8, 2, 7, 7)
    found = decimate_fc6(weight, kernel, 4)
    assert found.shape == (4, 2, kernel, kernel)
    for i, row in enumerate(taps):
        for j, column in enumerate(taps):
            assert torch.equal(found[:, :, i, j], weight[[0, 2, 4, 6], :, row, column])


def classifier_state(fully_connected: bool = True) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = AtrousVGG16().state_dict()
    if fully_connected:
        state |= {"classifier.0.weight": torch.randn(8, 4 * 49), "classifier.0.bias": torch.randn(8)}
        state |= {"classifier.3.weight": torch.randn(8, 8), "classifier.3.bias": torch.randn(8)}
        state |= {"classifier.6.weight": torch.randn(5, 8), "classifier.6.bias": torch.randn(5)}
    return {name: value.clone() for name, value in state.items()}


def test_a_classifiers_file_fills_convolutions_and_fully_connected_layers(narrow: None, tmp_path: Path) -> None:
    state = classifier_state()
    save_file(state, tmp_path / "vgg.safetensors")
    network, branch, other = AtrousVGG16(), ClassifierBranch(4, 4, 3, 3, 12), ClassifierBranch(4, 5, 3, 3, 12)
    random = other.fc6.weight.clone()
    load_vgg16(network, [branch, other], tmp_path / "vgg.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    whole = state["classifier.0.weight"].view(8, 4, 7, 7)
    assert torch.equal(branch.fc6.weight[1, :, 2, 1], whole[2, :, 6, 3])
    assert torch.equal(branch.fc6.bias, state["classifier.0.bias"][[0, 2, 4, 6]])
    assert torch.equal(branch.fc7.weight[:, :, 0, 0], state["classifier.3.weight"][::2, ::2])
    assert torch.equal(branch.fc7.bias, state["classifier.3.bias"][::2])
    # 5 filters are no regular choice of 8.
    assert torch.equal(other.fc6.weight, random)


def test_whole_fully_connected_layers_compute_what_the_classifier_did(narrow: None, tmp_path: Path) -> None:
    state = classifier_state()
    save_file(state, tmp_path / "vgg.safetensors")
    branch = ClassifierBranch(4, 8, 3, 7, 1).eval()
    load_vgg16(AtrousVGG16(), [branch], tmp_path / "vgg.safetensors")
    feature = torch.randn(1, 4, 7, 7)
    fc6 = nn.functional.linear(feature.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"])
    torch.testing.assert_close(branch.fc6(feature)[:, :, 3, 3], fc6)


def test_convolutions_alone_are_enough(narrow: None, tmp_path: Path) -> None:
    save_file(classifier_state(fully_connected=False), tmp_path / "vgg.safetensors")
    branch = ClassifierBranch(4, 4, 3, 3, 12)
    random = branch.fc6.weight.clone()
    load_vgg16(AtrousVGG16(), [branch], tmp_path / "vgg.safetensors")
    assert torch.equal(branch.fc6.weight, random)


@pytest.mark.parametrize("fault", ["features.0.weight", "classifier.3.bias"])
def test_weights_of_another_network_are_refused(narrow: None, tmp_path: Path, fault: str) -> None:
    state = classifier_state()
    state[fault] = torch.zeros(1)
    save_file(state, tmp_path / "vgg.safetensors")
    with pytest.raises(BadFile, match=f"of another shape: {fault}"):
        load_vgg16(AtrousVGG16(), [], tmp_path / "vgg.safetensors")
