from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labelwise.saved import load_weights
from tests.conftest import Called
from tests.tiny_runs import tiny_run, train_words

Call = Callable[..., Called]


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of five classes; that of the trained run has nine."""
    from labelwise.datasets.shapes import ShapesOptions
    from labelwise.verbs.shapes import shapes

    folder = tmp_path_factory.mktemp("textures") / "data"
    shapes(folder, ShapesOptions(scenes="textures", size=32, train=8, val=2))
    return folder


def test_a_run_starts_from_the_weights_of_another(shapes_folder: Path, trained_run: Path, tmp_path: Path) -> None:
    # Without learning the weights stay what they were; normalisations keep their statistics.
    run = tiny_run(
        "supervised",
        shapes_folder,
        tmp_path / "run",
        steps=1,
        learning_rate=0.0,
        freeze_norms=True,
        start_from=trained_run,
    )
    before, after = load_file(trained_run / "model.safetensors"), load_file(run / "model.safetensors")
    weights = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in weights)


def test_a_teacher_starts_from_the_same_weights(shapes_folder: Path, trained_run: Path) -> None:
    from labelwise import datasets, methods

    kind = methods.load("fixmatch")
    config = kind.Config(backbone="tiny", backbone_weights="none", decoder_channels=16, steps=1)  # type: ignore[call-arg]
    weights = load_weights(trained_run)
    method = kind(config, datasets.open(shapes_folder).classes, initial=weights)
    assert all(torch.equal(value, weights[name]) for name, value in method.network.state_dict().items())


def test_other_classes_are_refused_and_on_request_left_out(
    call: Call, other_classes: Path, trained_run: Path, tmp_path: Path
) -> None:
    words = [*train_words("supervised", other_classes, tmp_path / "run", steps=1), "--start-from", str(trained_run)]
    refused = call(*words)
    assert refused.message == (
        f"--start-from {trained_run}: classifier.weight (9x16x1x1 there, 5x16x1x1 here), classifier.bias (9 there, "
        "5 here) do not fit in this network; --start-partly loads the rest"
    )
    assert not (tmp_path / "run").exists()
    called = call(*words, "--start-partly")
    assert called.code == 0
    assert "150 of 152 tensors loaded; not classifier.weight (9x16x1x1 there, 5x16x1x1 here)" in called.err


def test_a_run_is_not_continued_from_other_weights(
    call: Call, shapes_folder: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = tiny_run("supervised", shapes_folder, tmp_path / "run", steps=1)
    words = train_words("supervised", shapes_folder, run, steps=1)
    assert "start_from" in call(*words, "--start-from", str(trained_run)).message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start-from", "nowhere"], "--start-from nowhere: no such run folder; `labelwise train` makes one"),
        (["--start-partly"], "--start-partly: nothing to start from; name a run with --start-from RUN"),
    ],
)
def test_nothing_to_start_from(call: Call, shapes_folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    assert call(*train_words("supervised", shapes_folder, tmp_path / "run"), *words).message == message
    assert not (tmp_path / "run").exists()


def test_the_weights_of_an_entirely_other_network_are_refused(
    call: Call, shapes_folder: Path, trained_run: Path, tmp_path: Path
) -> None:
    words = train_words("supervised", shapes_folder, tmp_path / "run", backbone="mobilenetv2_100", decoder_channels=8)
    refused = call(*words, "--start-from", str(trained_run))
    assert refused.message.startswith(f"--start-from {trained_run}: ") and refused.message.endswith("loads the rest")
