"""The options of the machine: what is refused, and what they change."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from labelwise.cli import main
from labelwise.engine import build_trainer
from labelwise.errors import UserError
from labelwise.hardware import Hardware, process_rank
from labelwise.models.deeplab_v3plus import DeepLabV3Plus
from tests.tiny_runs import outcome, tiny_run, train_words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "--devices 0: must be at least 1"),
        ({"nodes": 0}, "--nodes 0: must be at least 1"),
        ({"workers": -2}, "--workers -2: must be at least -1"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
        ({"checkpoint_every": -1}, "--checkpoint-every -1: must be at least 0"),
        ({"accelerator": "gpus"}, "--accelerator gpus: must be one of auto, cpu, gpu, cuda, mps"),
    ],
)
def test_what_no_machine_has_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Hardware(**options)


def test_a_wrong_number_ends_the_command_with_one_line(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_words("supervised", shapes_folder, tmp_path / "run", devices=0)) == 2
    assert capsys.readouterr().err == "error: --devices 0: must be at least 1\n"
    assert not (tmp_path / "run").exists()


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="--devices 2: fewer than the processes that were started"):
        build_trainer(Hardware(accelerator="cpu", devices=2))


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="needs a bare machine")
@pytest.mark.parametrize("options", [{"accelerator": "gpu"}, {"accelerator": "mps"}, {"strategy": "fsdp"}])
def test_what_this_machine_has_not_is_refused_in_one_line(options: dict[str, str]) -> None:
    (option,) = options
    with pytest.raises(UserError, match=f"--{option} {options[option]}: not possible here: ") as error:
        build_trainer(Hardware(**options))
    assert len(str(error.value).splitlines()) == 1


def test_a_batch_that_cannot_be_divided_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch-size 2: cannot be divided over 1 devices and 3 passes"):
        tiny_run("supervised", shapes_folder, tmp_path, {"accumulate": 3})


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({"LOCAL_RANK": "1"}, 1),
        ({"SLURM_PROCID": "3"}, 3),
        # Lightning's own launcher within the task of a batch script.
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1),
        ({"RANK": ""}, 0),
    ],
)
def test_a_process_knows_its_number(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], rank: int) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank


def test_workers_are_half_the_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((None, 0), (1, 0), (6, 3), (64, 8)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert Hardware().loader_workers() == workers
    assert Hardware(workers=3).loader_workers() == 3


@pytest.fixture(scope="module")
def plain(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any option of the machine."""
    return tiny_run("supervised", shapes_folder, tmp_path_factory.mktemp("plain"), steps=2)


def test_deterministic_runs_refuse_operators_that_vary(shapes_folder: Path, tmp_path: Path, plain: Path) -> None:
    try:
        deterministic = tiny_run("supervised", shapes_folder, tmp_path, {"deterministic": True}, steps=2)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert outcome(deterministic) == outcome(plain)


def test_half_precision_changes_the_weights_only_a_little(shapes_folder: Path, tmp_path: Path, plain: Path) -> None:
    half = tiny_run("supervised", shapes_folder, tmp_path, {"precision": "bf16-mixed"}, steps=2)
    states = [load_file(run / "model.safetensors") for run in (plain, half)]
    assert {value.dtype for state in states for value in state.values()} == {torch.float32, torch.int64}
    first, second = (torch.cat([value.flatten().float() for value in state.values()]) for state in states)
    assert not torch.equal(first, second)
    assert torch.allclose(first, second, atol=0.1)


def test_without_a_compiler_the_plain_network_is_trained(
    shapes_folder: Path,
    tmp_path: Path,
    plain: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no C++ compiler\nand much more")

    def compile_into_failure(self: nn.Module) -> None:
        self._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", compile_into_failure)
    compiled = tiny_run("supervised", shapes_folder, tmp_path, {"compile": True}, steps=2)
    assert "torch.compile does not work here (no C++ compiler); going on without" in capsys.readouterr().err
    assert outcome(compiled) == outcome(plain)


def test_a_compiled_network_is_called_and_saved_under_the_same_names(
    shapes_folder: Path,
    tmp_path: Path,
    plain: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    called = []

    def compile_(self: nn.Module) -> None:
        def compiled(*inputs: Any) -> Any:
            called.append(self.training)
            return self._call_impl(*inputs)

        self._compiled_call_impl = compiled

    monkeypatch.setattr(nn.Module, "compile", compile_)
    compiled = tiny_run("supervised", shapes_folder, tmp_path, {"compile": True}, steps=2)
    assert called[:3] == [False, True, True]
    assert "does not work" not in capsys.readouterr().err
    assert outcome(compiled) == outcome(plain)


def test_frozen_norms_stay_in_evaluation_from_the_first_step(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = DeepLabV3Plus.forward

    def watched(self: DeepLabV3Plus, image: torch.Tensor) -> torch.Tensor:
        norms = [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        seen.append((self.training, {norm.training for norm in norms}))
        return forward(self, image)

    monkeypatch.setattr(DeepLabV3Plus, "forward", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny_run("supervised", shapes_folder, tmp_path, steps=2, eval_every=1, freeze_norms=True)
    assert {norms for training, norms in ((t, frozenset(n)) for t, n in seen) if training} == {frozenset({False})}
