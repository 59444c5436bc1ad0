"""Folded networks: the same outputs from fewer layers, and nothing folded whose convolution serves others too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from labelwise import methods
from labelwise.configuration import make_config
from labelwise.datasets.base import Classes
from labelwise.models.backbones import create_backbone
from labelwise.models.bas import BasNetwork, split_backbone
from labelwise.models.folding import folded
from labelwise.saved import for_prediction


def with_random_statistics(network: nn.Module) -> nn.Module:
    """The same network with norms that are far from the identity, some of their scales negative."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 2.0),
                (module.weight, -0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                assert values is not None
                nn.init.uniform_(values, low, high)
    return network


def norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(one.abs().max())


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("resnet50", 16),
        ("mobilenetv2_100", 16),
        ("tf_mobilenetv3_small_minimal_100", 16),
        ("densenet121", 32),
        ("tiny", 8),
        ("tiny32", 32),
        ("micro_w4", 4),
        ("fd_mobilenet", 16),
    ],
)
def test_a_folded_backbone_gives_the_same_features_and_the_original_stays(name: str, output_stride: int) -> None:
    network = with_random_statistics(create_backbone(name, output_stride, None)).train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    result = folded(network, lambda copy: copy(torch.zeros(1, 3, 32, 32)))
    assert network.training and not result.training
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
    # Of DenseNet half the norms follow a concatenation.
    assert len(norms(result)) == (62 if name == "densenet121" else 0) < len(norms(network))
    # The example says nothing of size or batch.
    image = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert_same(network.eval()(image), result(image))


def test_of_pre_activated_blocks_only_norms_within_a_block_and_after_the_first_layer_are_folded() -> None:
    with torch.device("meta"):
        whole = create_backbone("wide_resnet38", 8, None)
        left = norms(folded(whole, lambda copy: copy(torch.zeros(1, 3, 32, 32))))
    assert left == [name for name in norms(whole) if name.endswith(("branch2a", "bn7")) and ".b2.bn" not in name]
    block = with_random_statistics(whole.body.get_submodule("b2_1").to_empty(device="cpu")).eval()
    for parameter in block.parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=0.03)
    result = folded(block, lambda copy: copy(torch.zeros(1, 128, 8, 8)))
    image = torch.randn(1, 128, 8, 8)
    assert norms(result) == ["bn_branch2a"]
    with torch.no_grad():
        assert_same([block(image)], [result(image)])


def test_a_cut_network_that_takes_its_backbone_apart_gives_the_same_maps() -> None:
    backbone = split_backbone(create_backbone("mobilenetv2_100", 16, None), "mobilenetv2_100")
    network = with_random_statistics(BasNetwork(backbone, 3, 8)).eval()
    assert isinstance(network, BasNetwork)
    small, image = torch.zeros(1, 3, 32, 32), torch.randn(2, 3, 64, 64)
    result = folded(network, lambda copy: (copy(small), copy.maps(small)))
    assert isinstance(result, BasNetwork) and not norms(result)
    with torch.no_grad():
        assert_same([network(image), network.maps(image)], [result(image), result.maps(image)])


class Small(nn.Module):
    """Two convolutions, two norms and a way to call them."""

    def __init__(self, way: Callable[[Small, Tensor], object], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.way = way
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.norm, self.second = norm or nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> object:
        """[B, 4, H, W] -> whatever it may be."""
        return self.way(self, x)


def left_after_folding(network: nn.Module) -> list[str]:
    """The norms that are left, once the outputs are found to be the same."""
    network = with_random_statistics(network).eval()
    result = folded(network, lambda copy: copy(torch.zeros(1, 4, 3, 3)))
    image = torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        first, second = network(image), result(image)
    assert_same(*([values] if isinstance(values, Tensor) else list(values) for values in (first, second)))
    return norms(result)


def given_out(net: Small, x: Tensor) -> tuple[Tensor, Tensor]:
    made = net.conv(x)
    return made, net.norm(made)


@pytest.mark.parametrize(
    "way",
    [
        lambda net, x: net.norm(net.conv(x)) + net.second(net.conv(net.other(x))),
        lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x)),
        lambda net, x: net.norm(net.conv(x)) + net.norm(x),
        lambda net, x: (lambda made: net.norm(made) + made)(net.conv(x)),
        lambda net, x: (lambda made: net.norm(made) + net.second(made))(net.conv(x)),
        lambda net, x: (lambda made: net.norm(made) + net.norm(made))(net.conv(x)),
        lambda net, x: (lambda made: net.norm(made) + made.flatten(2).mean(2)[:, :, None, None])(net.conv(x)),
        lambda net, x: net.norm(net.conv(x).relu_()),
        given_out,
    ],
    ids=[
        "convolution of two norms",
        "norm of two convolutions",
        "norm of an input",
        "shortcut",
        "two norms of one output",
        "twice",
        "view",
        "activation in between",
        "given out",
    ],
)
def test_a_norm_is_left_alone_where_the_convolution_serves_others(way: Callable[[Small, Tensor], object]) -> None:
    assert left_after_folding(Small(way)) == ["norm", "second"]


def test_a_pair_that_is_called_twice_is_folded_once() -> None:
    way: Callable[[Small, Tensor], object] = lambda net, x: net.norm(net.conv(net.norm(net.conv(x)).relu_()))  # noqa: E731
    assert left_after_folding(Small(way)) == ["second"]


def test_of_a_norm_with_an_activation_the_activation_stays() -> None:
    network = Small(lambda net, x: net.norm(net.other(x)), BatchNormAct2d(4))
    assert left_after_folding(network) == ["second"]
    result = folded(network, lambda copy: copy(torch.zeros(1, 4, 3, 3)))
    with torch.no_grad():
        assert float(result(torch.randn(1, 4, 6, 5)).min()) == 0


class Standardized(nn.Conv2d):
    """A convolution whose weights are made anew at every call."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        return self._conv_forward(input, self.weight / self.weight.std(), self.bias)


def test_a_convolution_that_changes_its_weights_is_left_alone() -> None:
    network = Small(lambda net, x: net.norm(net.conv(x)))
    network.conv = Standardized(4, 4, 3, padding=1)
    assert left_after_folding(network) == ["norm", "second"]


@pytest.mark.parametrize("name", ["cam", "bas", "w_ood"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_loaded_method_gives_the_same_scores_and_maps_without_its_norms(name: str, precision: str) -> None:
    method_class = methods.load(name)
    options = {"backbone": "mobilenetv2_100", "backbone_weights": "none", "map_scales": (1.0, 0.5)}
    method = method_class(make_config(method_class, {}, options), Classes(("ground", "ball", "box")), training=False)
    with_random_statistics(method.eval())
    image, labels = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8), torch.tensor([1, 2])

    def found() -> list[Tensor]:
        maps = method.localize(image, labels)  # type: ignore[operator]
        return [method.predict(image[None]), maps.fine, maps.coarse]

    with torch.no_grad():
        before = found()
        assert for_prediction(method, precision) is method and not norms(method.network)
        assert_same(before, found())
    weights = [weight for weight in method.network.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
    last = [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights]
    assert all(last) if precision == "32-true" else not any(last)


def test_a_method_that_finds_no_classes_stays_as_it_is() -> None:
    method_class = methods.load("supervised")
    options = {"backbone": "tiny", "backbone_weights": "none"}
    method = method_class(make_config(method_class, {}, options), Classes(("ground", "ball")), training=False)
    network = method.network
    assert for_prediction(method, "32-true").network is network and norms(network)
