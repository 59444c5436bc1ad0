"""FD-MobileNet and the MobileNets: complexity to the unit, structure, features, and the weights of classifiers."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from labelwise.errors import BadFile, UserError
from labelwise.models.backbones import create_backbone
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.models.fd_mobilenet import (
    NAMES,
    PLANS,
    WIDTHS,
    DepthwiseSeparable,
    MobileNet,
    MobileNetBackbone,
    MobileNetClassifier,
)

COMPLEXITY = {
    ("fd_mobilenet", 1.0): (2_901_288, 144_489_728),
    ("fd_mobilenet", 0.5): (993_928, 40_132_224),
    ("fd_mobilenet", 0.25): (383_160, 12_037_952),
    ("fd_mobilenet", 0.125): (163_504, 4_011_936),
    ("mobilenet_v1", 1.0): (4_231_976, 568_740_352),
    ("mobilenet_v1", 0.5): (1_331_592, 149_497_088),
    ("mobilenet_v1", 0.25): (470_072, 41_030_272),
    ("mobilenet_v1", 0.125): (186_480, 12_085_568),
    ("shallow_mobilenet", 1.0): (2_887_976, 307_323_392),
    ("shallow_mobilenet", 0.5): (987_272, 83_013_888),
    ("shallow_mobilenet", 0.25): (379_832, 23_844_992),
    ("shallow_mobilenet", 0.125): (161_840, 7_507_008),
}
"""Parameters and multiply-adds of 1000 classes at 224 pixels; the papers' where they tell them."""
PUBLISHED = {
    ("fd_mobilenet", 1.0): 144,
    ("fd_mobilenet", 0.5): 40,
    ("fd_mobilenet", 0.25): 12,
    ("mobilenet_v1", 1.0): 569,
    ("mobilenet_v1", 0.5): 149,
    ("mobilenet_v1", 0.25): 41,
    ("mobilenet_v1", 0.125): 12,
}
"""Millions of multiply-adds in the papers' tables."""


@pytest.mark.parametrize(("network", "width"), COMPLEXITY)
def test_parameters_and_multiply_adds(network: str, width: float) -> None:
    with torch.device("meta"):
        classifier = MobileNetClassifier(network, width, 1000)
    assert (count_parameters(classifier), count_macs(classifier, (224, 224))) == COMPLEXITY[network, width]


@pytest.mark.parametrize(("network", "width"), PUBLISHED)
def test_the_papers_count_as_many_multiply_adds(network: str, width: float) -> None:
    assert abs(COMPLEXITY[network, width][1] / 1e6 - PUBLISHED[network, width]) < 0.6


@pytest.mark.parametrize(("fast", "usual", "ratio"), [(1, 0.5, 2.18), (0.5, 0.25, 2.11), (0.25, 0.125, 2.05)])
def test_at_equal_multiply_adds_it_has_twice_the_parameters(fast: float, usual: float, ratio: float) -> None:
    ours, theirs = COMPLEXITY["fd_mobilenet", fast], COMPLEXITY["mobilenet_v1", usual]
    assert round(ours[0] / theirs[0], 2) == ratio
    assert 0.96 < ours[1] / theirs[1] <= 1


def shares_by_map_size(network: str) -> dict[int, float]:
    """Percent of all multiply-adds that the convolutions of a map's side take."""
    sides: dict[int, float] = defaultdict(float)

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            kernel = module.weight[0].numel()
            sides[output.shape[-1]] += kernel * output.numel()

    with torch.device("meta"):
        classifier = MobileNetClassifier(network, 1.0, 1000)
        total = count_macs(classifier, (224, 224))
        for module in classifier.modules():
            module.register_forward_hook(count)
        classifier(torch.zeros(1, 3, 224, 224))
    return {side: round(100 * macs / total, 1) for side, macs in sides.items()}


@pytest.mark.parametrize(
    ("network", "shares"),
    [
        ("fd_mobilenet", {112: 7.5, 56: 5.1, 28: 14.3, 14: 13.8, 7: 58.6}),
        ("mobilenet_v1", {112: 7.1, 56: 14.5, 28: 14.0, 14: 50.6, 7: 13.7}),
    ],
)
def test_where_the_multiply_adds_are_spent(network: str, shares: dict[int, float]) -> None:
    assert shares_by_map_size(network) == pytest.approx(shares, abs=0.11)


def test_stride_32_is_reached_within_six_blocks_and_kept() -> None:
    sizes = []
    x = torch.zeros(1, 3, 96, 64)
    network = MobileNet("fd_mobilenet", 0.125).eval()
    with torch.no_grad():
        x = network.stem(x)
        for block in network.blocks:
            x = block(x)
            sizes.append(tuple(x.shape[-2:]))
    assert sizes == [(24, 16), (12, 8), (12, 8), (6, 4), (6, 4), *[(3, 2)] * 6]


def test_a_delta_kernel_and_neutral_normalisation_make_a_block_a_pointwise_convolution() -> None:
    block = DepthwiseSeparable(3, 5, 1).eval()
    with torch.no_grad():
        block.depthwise[0].weight.zero_()[:, :, 1, 1] = 1
    x = torch.rand(2, 3, 6, 7)
    expected = nn.functional.conv2d(x, block.pointwise[0].weight).relu()
    # The epsilon of two normalisations of variance 1.
    torch.testing.assert_close(block(x), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("fd_mobilenet", (64, 128, 256, 1024)),
        ("fd_mobilenet_025", (16, 32, 64, 256)),
        ("mobilenet_v1", (128, 256, 512, 1024)),
        ("shallow_mobilenet_050", (64, 128, 256, 512)),
    ],
)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_at_every_output_stride(name: str, channels: tuple[int, ...], output_stride: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, output_stride, None)
        features = backbone(torch.zeros(2, 3, 64, 96))
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert backbone.channels == channels and list(backbone.strides) == strides
    expected = [(2, count, 64 // stride, 96 // stride) for count, stride in zip(channels, strides, strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize(
    ("output_stride", "dilations"),
    [
        (32, [1] * 11),
        (16, [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]),
        (8, [1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 4]),
    ],
)
def test_layers_after_a_lost_stride_are_dilated(output_stride: int, dilations: list[int]) -> None:
    blocks = MobileNet("fd_mobilenet", 0.125, output_stride).blocks
    assert [block.depthwise[0].dilation[0] for block in blocks] == dilations


def test_the_densest_features_hold_those_of_the_whole_stride() -> None:
    torch.manual_seed(0)
    coarse = MobileNetBackbone("fd_mobilenet", 0.125, 32).eval()
    dense = MobileNetBackbone("fd_mobilenet", 0.125, 8).eval()
    dense.load_state_dict(coarse.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(dense(x)[-1][:, :, ::4, ::4], coarse(x)[-1])


@settings(max_examples=10)
@given(st.integers(1, 70), st.integers(1, 70))
def test_images_of_any_size_are_taken(height: int, width: int) -> None:
    network = MobileNetClassifier("fd_mobilenet", 0.125, 3).to("meta").eval()
    assert network(torch.zeros(2, 3, height, width, device="meta")).shape == (2, 3)


def test_weights_start_as_the_paper_says() -> None:
    torch.manual_seed(0)
    network = MobileNetClassifier("fd_mobilenet", 1.0, 1000)
    block = network.blocks[10]
    found = {
        "depthwise": block.depthwise[0].weight.std().item() * (9 / 2) ** 0.5,
        "pointwise": block.pointwise[0].weight.std().item() * (1024 / 2) ** 0.5,
        "stem": network.stem[0].weight.std().item() * (32 * 9 / 2) ** 0.5,
        "classifier": network.classifier.weight.std().item() * (1000 / 2) ** 0.5,
        # Of a few classes as of 1000: large first logits would have to be unlearned.
        "few classes": MobileNetClassifier("fd_mobilenet", 1.0, 8).classifier.weight.std().item() * (1000 / 2) ** 0.5,
    }
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.06)
    assert not network.classifier.bias.any()


def test_names_are_regular_and_none_is_timms() -> None:
    assert len(NAMES) == len(PLANS) * len(WIDTHS)
    assert NAMES["fd_mobilenet"] == ("fd_mobilenet", 1.0)
    assert NAMES["mobilenet_v1_050"] == ("mobilenet_v1", 0.5)
    assert NAMES["shallow_mobilenet_0125"] == ("shallow_mobilenet", 0.125)
    assert not NAMES.keys() & set(timm.list_models())
    assert "mobilenetv1_100" in timm.list_models()


@pytest.fixture
def classifier_run(tmp_path: Path) -> Path:
    """A folder with the weights of a classifier of seven classes, as a run has them."""
    torch.manual_seed(1)
    classifier = MobileNetClassifier("fd_mobilenet", 0.125, 7)
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("within", ["", "model.safetensors"])
def test_a_classifiers_run_gives_a_backbone_its_weights(classifier_run: Path, within: str) -> None:
    torch.manual_seed(1)
    classifier = MobileNetClassifier("fd_mobilenet", 0.125, 7)
    backbone = create_backbone("fd_mobilenet_0125", 16, classifier_run / within)
    assert all(torch.equal(value, classifier.state_dict()[key]) for key, value in backbone.body.state_dict().items())


def test_weights_without_a_classifier_are_read_too(tmp_path: Path) -> None:
    torch.manual_seed(2)
    body = MobileNet("mobilenet_v1", 0.125)
    torch.save(body.state_dict(), tmp_path / "body.pth")
    backbone = create_backbone("mobilenet_v1_0125", 32, str(tmp_path / "body.pth"))
    assert torch.equal(backbone.body.stem[0].weight, body.stem[0].weight)


def test_weights_of_another_width_are_refused(classifier_run: Path) -> None:
    with pytest.raises(BadFile, match=r"not the weights of 'fd_mobilenet_025' \(of another shape: blocks\.0"):
        create_backbone("fd_mobilenet_025", 16, classifier_run)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fd_mobilenet", 16, "imagenet"), "has no ImageNet weights; --backbone-weights none, or the folder of a run"),
        (("fd_mobilenet", 4, None), "output stride 4 is neither 8, 16 nor 32; --output-stride 8 or 16"),
        (("fd_mobilenet_05", 16, None), "did you mean 'fd_mobilenet_050'"),
        (("mobilenet_v1", 16, None, (1, 2)), "has no last blocks to dilate"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments: tuple, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError) as refused:
        create_backbone(*arguments)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_width_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no channels"):
        MobileNet("fd_mobilenet", 0.01)
