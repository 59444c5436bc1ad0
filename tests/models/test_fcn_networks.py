"""The weights of FCN's trunks: every naming, and that the network read as convolutions is the classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from labelwise.errors import BadFile, UserError
from labelwise.models import fcn_networks
from labelwise.models.fcn_networks import NETWORKS, create_trunk, fc_to_conv, load_classifier, pixel_statistics
from labelwise.models.fcn_trunks import Trunk, vgg_trunk

WIDTHS, HIDDEN = (4, 4, 6, 6, 6), 8


def narrow_trunk(padded: bool = False) -> Trunk:
    trunk = vgg_trunk(padded, WIDTHS, hidden=HIDDEN)
    if not padded:
        # As the classifier sees 224 pixels: fc6 once, without a border.
        trunk.layers.get_submodule("fc6").padding = (0, 0)
    return trunk.eval()


@pytest.fixture(scope="module")
def classifier() -> models.VGG:
    """torchvision's own class at a fraction of the size."""
    torch.manual_seed(0)
    depths = (2, 2, 3, 3, 3)
    plan = [part for width, depth in zip(WIDTHS, depths, strict=True) for part in (*(width,) * depth, "M")]
    with torch.device("meta"):
        network = models.VGG(nn.Sequential(), init_weights=False)
    network.features = models.vgg.make_layers(plan)
    network.classifier = nn.Sequential(
        nn.Linear(WIDTHS[-1] * 49, HIDDEN), nn.ReLU(), nn.Dropout(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(),
        nn.Linear(HIDDEN, 5),
    )  # fmt: skip
    return network.eval()


def as_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    found = {}
    for key, value in state.items():
        layer, _, part = key.rpartition(".")
        found[f"{names.get(layer, layer)}.{part}"] = value
    found["pre_logits.fc1.weight"] = found["pre_logits.fc1.weight"].view(HIDDEN, -1, 7, 7)
    found["pre_logits.fc2.weight"] = found["pre_logits.fc2.weight"][:, :, None, None]
    return {key: value.contiguous() for key, value in found.items()}


@pytest.mark.parametrize("naming", ["torchvision", "timm"])
def test_on_224_pixels_the_convolutions_compute_the_classifier(
    classifier: models.VGG, tmp_path: Path, naming: str
) -> None:
    state = classifier.state_dict()
    save_file(state if naming == "torchvision" else as_timm(state), tmp_path / "vgg.safetensors")
    trunk = narrow_trunk()
    load_classifier(trunk, "vgg16", tmp_path / "vgg.safetensors")
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        fc7 = trunk(image)[-1]
        expected = classifier.classifier[:-1](classifier.avgpool(classifier.features(image)).flatten(1))
        assert fc7.shape == (2, HIDDEN, 1, 1)
        assert expected.any()
        torch.testing.assert_close(fc7.flatten(1), expected, atol=1e-5, rtol=1e-4)
        head = classifier.classifier[-1]
        logits = nn.functional.conv2d(fc7, fc_to_conv(head.weight, 1, 1), head.bias)
        torch.testing.assert_close(logits.flatten(1), classifier(image), atol=1e-5, rtol=1e-4)


def test_the_padded_form_takes_the_same_weights(classifier: models.VGG, tmp_path: Path) -> None:
    save_file(classifier.state_dict(), tmp_path / "vgg.safetensors")
    trunk = narrow_trunk(padded=True)
    load_classifier(trunk, "vgg16", tmp_path / "vgg.safetensors")
    assert torch.equal(trunk.get_parameter("layers.0.weight"), classifier.features[0].weight)
    assert torch.equal(trunk.get_parameter("layers.fc6.weight").flatten(1), classifier.classifier[0].weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("features.0.weight"), r"missing: layers\.0\.weight"),
        (lambda state: state.update({"features.50.weight": torch.zeros(1)}), r"unexpected: layers\.50\.weight"),
        (lambda state: state.update({"classifier.0.weight": torch.zeros(8, 7)}), r"another shape: layers\.fc6\.weight"),
    ],
)
def test_weights_of_another_network_are_refused(  # type: ignore[no-untyped-def]
    classifier: models.VGG, tmp_path: Path, change, words: str
) -> None:
    state = dict(classifier.state_dict())
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(BadFile, match=words):
        load_classifier(narrow_trunk(), "vgg16", tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["vgg16", "alexnet_tv", "googlenet_tv"])
def test_every_layer_of_torchvisions_classifier_has_its_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = {"vgg16": models.vgg16, "alexnet_tv": models.alexnet, "googlenet_tv": models.googlenet}[name]
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet_tv" else {}
    with torch.device("meta"):
        theirs = build(**options).state_dict()
        trunk = create_trunk(name, True, None)
    own = trunk.state_dict()
    found = dict(fcn_networks._as_own(theirs, own, caffe=False))
    assert found.keys() == own.keys()
    assert all(found[key].shape == own[key].shape for key in own)


def test_imagenet_weights_are_fetched_and_loaded(classifier: models.VGG, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(network: str, weights: str) -> dict[str, Tensor]:
        asked.append((network, weights))
        return dict(classifier.state_dict())

    monkeypatch.setattr(fcn_networks, "classifier_weights", fetch)
    trunk = narrow_trunk()
    load_classifier(trunk, "vgg16", "imagenet")
    assert asked == [("vgg16", "imagenet")]
    assert torch.equal(trunk.get_parameter("layers.fc7.weight")[:, :, 0, 0], classifier.classifier[3].weight)


def caffe_names(trunk: Trunk) -> dict[str, Tensor]:
    """A state in the layer names of Caffe's models."""
    found = {}
    for key in trunk.state_dict():
        layer, _, part = key.removeprefix("layers.").rpartition(".")
        found[f"{layer.replace('.', '/')}.{part}"] = torch.zeros(())
    return found


def test_googlenets_layers_have_caffes_names() -> None:
    with torch.device("meta"):
        trunk = create_trunk("googlenet", True, None)
    assert isinstance(trunk, Trunk)
    names = caffe_names(trunk)
    assert {"conv1/7x7_s2.weight", "conv2/3x3_reduce.bias", "inception_3a/pool_proj.weight"} <= names.keys()
    own = trunk.state_dict()
    theirs = {key: own[f"layers.{key.replace('/', '.')}"] for key in names}
    theirs["loss3/classifier.weight"] = torch.zeros(1000, 1024)
    found = dict(fcn_networks._as_own(theirs, own, caffe=True))
    assert found.keys() == own.keys()


@pytest.mark.parametrize(("key", "own"), [("conv1.weight", "conv1"), ("conv1/7x7_s2.weight", "conv1.7x7_s2")])
def test_caffes_first_convolution_is_turned_to_rgb(key: str, own: str) -> None:
    weight = torch.randn(2, 3, 7, 7)
    other = torch.randn(2, 3, 1, 1)
    found = dict(fcn_networks._as_own({key: weight, "conv2.weight": other}, {}, caffe=True))
    image = torch.randn(1, 3, 9, 9)
    theirs = nn.functional.conv2d(image.flip(1), weight)
    torch.testing.assert_close(nn.functional.conv2d(image, found[f"layers.{own}.weight"]), theirs, atol=1e-5, rtol=1e-4)
    assert torch.equal(found["layers.conv2.weight"], other)


def test_caffes_networks_expect_grey_levels_minus_the_mean() -> None:
    mean, std = pixel_statistics("caffenet") or ((), ())
    found = [
        (value / 255 - center) / deviation for value, center, deviation in zip((200, 100, 50), mean, std, strict=True)
    ]
    assert found == pytest.approx([200 - 122.67892, 100 - 116.66877, 50 - 104.00699])
    assert pixel_statistics("googlenet_tv") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pixel_statistics("vgg16") is None
    assert pixel_statistics("mobilenetv2_100") is None


def test_a_files_own_naming_is_that_of_the_trunk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = create_trunk("vgg_tiny", False, None).state_dict()
    save_file(trained, tmp_path / "tiny.safetensors")
    found = create_trunk("vgg_tiny", True, tmp_path / "tiny.safetensors").state_dict()
    assert all(torch.equal(found[key], trained[key]) for key in trained)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.classifier is None])
def test_networks_without_public_weights_say_so(name: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match="no ImageNet weights to fetch; --backbone-weights FILE"):
        create_trunk(name, True, "imagenet")


def test_fc_to_conv_keeps_the_order_of_what_was_flattened() -> None:
    weight, features = torch.randn(4, 2 * 3 * 5), torch.randn(1, 2, 3, 5)
    expected = features.flatten(1) @ weight.T
    torch.testing.assert_close(nn.functional.conv2d(features, fc_to_conv(weight, 3, 5)).flatten(1), expected)
