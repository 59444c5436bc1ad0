"""Weights of classifiers: every naming ends in torchvision's, and what cannot be had is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vgg import VGG
from torch import Tensor
from torchvision import models

from labelwise.errors import BadFile, UserError
from labelwise.models import weights as module
from labelwise.models.weights import classifier_weights, read_weights, to_torchvision


def narrow_timm_vgg() -> dict[str, Tensor]:
    """The state of timm's own class at a hundredth of the size."""
    torch.manual_seed(0)
    plan = [2, "M", 3, "M", 3, "M", 3, "M", 3, "M"]
    network = VGG(cfg=plan, num_classes=5)
    narrow = network.state_dict()
    return {key: value if key.startswith("features") else value[:6].clone() for key, value in narrow.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timms_naming_of_a_vgg_becomes_torchvisions(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vgg{suffix}"
    state = narrow_timm_vgg()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = classifier_weights("vgg16", path)
    assert {key for key in found if key.startswith("classifier")} == {
        f"classifier.{number}.{part}" for number in (0, 3, 6) for part in ("weight", "bias")
    }
    assert torch.equal(found["classifier.0.weight"], state["pre_logits.fc1.weight"].flatten(1))
    assert torch.equal(found["classifier.3.weight"], state["pre_logits.fc2.weight"][:, :, 0, 0])
    assert torch.equal(found["classifier.6.bias"], state["head.fc.bias"])
    assert all(torch.equal(found[key], value) for key, value in state.items() if key.startswith("features."))


def test_torchvisions_naming_stays(tmp_path: Path) -> None:
    state = {"features.0.weight": torch.ones(2, 3, 3, 3), "classifier.0.weight": torch.ones(4, 2)}
    save_file(state, tmp_path / "vgg.safetensors")
    found = classifier_weights("vgg16", tmp_path / "vgg.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_every_key_and_shape_of_timms_vgg_fits_torchvisions() -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model("vgg16").state_dict(), models.vgg16().state_dict()
    found = {key: value.shape for key, value in to_torchvision(theirs).items()}
    assert found == {key: value.shape for key, value in ours.items()}


def test_imagenet_means_timms_weights_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def create(name: str, pretrained: bool) -> VGG:
        asked.append((name, pretrained))
        with torch.device("meta"):
            return VGG(cfg=[2, "M"], num_classes=5)

    monkeypatch.setattr(timm, "create_model", create)
    assert classifier_weights("vgg16", "imagenet")["classifier.0.weight"].shape == (4096, 2 * 49)
    assert asked == [("vgg16", True)]


def test_imagenet_means_torchvisions_weights_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def create(name: str, weights: str) -> torch.nn.Module:
        asked.append((name, weights))
        with torch.device("meta"):
            return models.alexnet()

    monkeypatch.setattr(module, "get_model", create)
    assert classifier_weights("alexnet", "imagenet")["classifier.1.weight"].shape == (4096, 9216)
    assert asked == [("alexnet", "DEFAULT")]


def test_weights_out_of_reach_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, pretrained: bool) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match="cannot fetch the pretrained weights of 'vgg16'") as caught:
        classifier_weights("vgg16", "imagenet")
    assert "--backbone-weights FILE" in str(caught.value)


def test_an_unknown_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="unknown classifier 'alexnett'; did you mean 'alexnet'"):
        classifier_weights("alexnett", "imagenet")


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), (b"nonsense", "cannot be read as weights")])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "vgg.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadFile, match=words):
        classifier_weights("vgg16", path)


def test_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"features.0.weight": torch.ones(1)}, "epoch": 1}, tmp_path / "whole.pth")
    with pytest.raises(BadFile, match="more than named tensors"):
        read_weights(tmp_path / "whole.pth")
