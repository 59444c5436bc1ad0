"""A trained model is three files that rebuild it and can run no code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.methods.few_masks.cps import CPS
from labelwise.models.tiny import TinyNetwork
from labelwise.saved import DESCRIPTION, WEIGHTS, load_model, save_model
from tests.tiny_runs import OPTIONS, tiny_run


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(TinyNetwork(16).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained(shapes_folder: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    return tiny_run("cps", shapes_folder, run, backbone_weights=str(pretrained), steps=2)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    for name in (WEIGHTS, DESCRIPTION):
        shutil.copy(trained / name, tmp_path)
    return tmp_path


def test_both_networks_start_from_the_same_backbone_and_from_different_heads(pretrained: Path) -> None:
    method = CPS(CPS.Config(**OPTIONS | {"backbone_weights": str(pretrained)}), Classes(("ground", "ball")))
    first, second = method.network.state_dict(), method.second.state_dict()
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert {name for name in first if name.startswith("backbone.")} <= same
    assert not {name for name, value in first.items() if value.ndim == 4 and not name.startswith("backbone.")} & same


def test_only_the_first_network_is_kept(trained: Path) -> None:
    kept = load_file(trained / WEIGHTS)
    checkpoint = torch.load(max(trained.glob("checkpoints/*.ckpt")), weights_only=True)["state_dict"]
    assert {f"network.{name}" for name in kept} == {name for name in checkpoint if name.startswith("network.")}
    assert all(torch.equal(value, checkpoint[f"network.{name}"]) for name, value in kept.items())


def test_a_model_is_rebuilt_without_the_weights_that_it_started_from(run: Path) -> None:
    change_option(backbone_weights="deleted.safetensors")(run)
    method = load_model(run)
    assert not method.training and not hasattr(method, "second")
    image = torch.randint(0, 256, (1, 3, 40, 30), dtype=torch.uint8)
    with torch.no_grad():
        scores = method.predict(image)
    assert scores.shape == (1, len(method.classes), 40, 30)
    again = load_model(run)
    with torch.no_grad():
        assert torch.equal(again.predict(image), scores)


def test_classes_with_colors_and_without_background_come_back(run: Path, tmp_path: Path) -> None:
    classes = Classes(("sky", "road"), None, ((1, 2, 3), (4, 5, 6)))
    method = CPS(CPS.Config(**OPTIONS), classes, training=False)
    save_model(method, tmp_path, {}, "labelwise train")
    assert load_model(tmp_path).classes == classes


def test_the_card_says_what_was_measured_and_how(trained: Path) -> None:
    card, results = (trained / "README.md").read_text(), json.loads((trained / "results.json").read_text())
    assert f"Measured: {results['miou']:.1f} mIoU on 4 images" in card
    assert "library_name: labelwise" in card


def change(**entries: Any) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        path = run / DESCRIPTION
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return write


def change_option(**options: Any) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        path = run / DESCRIPTION
        description = json.loads(path.read_text())
        path.write_text(json.dumps(description | {"options": description["options"] | options}))

    return write


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run: (run / DESCRIPTION).unlink(), r"holds no finished run \(no config.json\)"),
        (lambda run: (run / DESCRIPTION).write_text("{"), "config.json: is not the description"),
        (lambda run: (run / DESCRIPTION).write_text("[]"), "config.json: is not the description"),
        (lambda run: (run / DESCRIPTION).write_bytes(b"\xff"), "config.json: is not the description"),
        (change(method="csp"), "config.json: unknown method 'csp'; did you mean 'cps'"),
        (change(method=["cps"]), "config.json: "),
        (change(options=7), "config.json: "),
        (change(classes={"names": 3}), "config.json: "),
        (change(classes={"names": ["a"] * 300, "background": 0, "colors": None}), "config.json: 300 classes"),
        (change_option(crops=3), "config.json: method 'cps' has no option 'crops'; did you mean 'crop'"),
        (change_option(crop="wide"), "config.json: --crop wide: must be"),
        (change_option(decoder_channels=32), "model.safetensors: cannot be loaded"),
        (lambda run: (run / WEIGHTS).unlink(), "model.safetensors: cannot be loaded"),
        (lambda run: (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-9]), "safetensors: cannot be loaded"),
        (lambda run: torch.save({}, run / WEIGHTS), "model.safetensors: cannot be loaded"),
        (shutil.rmtree, "no such run folder"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(run: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(run)
    with pytest.raises(UserError, match=reason) as error:
        load_model(run)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).startswith(str(run))
