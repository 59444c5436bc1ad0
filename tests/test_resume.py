"""A run that was stopped or killed anywhere ends like one that was not."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from labelwise.checkpoints import StopSignals, step_of
from labelwise.cli import main
from labelwise.methods.masks.supervised import Supervised
from tests.tiny_runs import cut, ended, outcome, start, tiny_run, train_slowly, train_words, wait_for


def said(output: Path) -> str:
    file = output / "stderr"
    return file.read_text() if file.exists() else ""


@pytest.fixture(scope="module")
def uninterrupted(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The outcome of a run that nothing disturbs; loader processes and checkpoints make no difference to it."""

    @cache
    def outcome_of(method: str, **options: Any) -> Any:
        return outcome(tiny_run(method, shapes_folder, tmp_path_factory.mktemp("whole"), **options))

    return outcome_of


def steps(run: Path) -> list[int]:
    return sorted(map(step_of, run.glob("checkpoints/step-*.ckpt")))


@pytest.mark.parametrize(
    ("method", "machine", "options"),
    [
        pytest.param("cps", {}, {"eval_every": 4}, id="cps with CutMix"),
        pytest.param("cps", {"workers": 1}, {"cutmix": False, "freeze_norms": True}, id="cps with a loader process"),
        pytest.param("supervised", {"accumulate": 2, "checkpoint_every": 2}, {"eval_every": 2}, id="accumulated"),
        pytest.param("supervised", {"precision": "bf16-mixed"}, {"optimizer": "adamw"}, id="bf16"),
    ],
)
def test_a_run_cut_at_several_steps_ends_like_an_uninterrupted_one(
    shapes_folder: Path, tmp_path: Path, method: str, machine: dict[str, Any], options: dict[str, Any]
) -> None:
    for step in (1, 4, 6):
        with cut(step):
            tiny_run(method, shapes_folder, tmp_path / "cut", machine, **options)
    tiny_run(method, shapes_folder, tmp_path / "cut", machine, **options)
    tiny_run(method, shapes_folder, tmp_path / "whole", machine, **options)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_an_evaluation_that_was_cut_is_made_up_for(
    shapes_folder: Path, tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    machine = {"checkpoint_every": 5}
    for step in (2, 4, 6):
        with cut(step, "in the evaluation"):
            tiny_run("supervised", shapes_folder, tmp_path, machine, eval_every=2)
    tiny_run("supervised", shapes_folder, tmp_path, machine, eval_every=2)
    assert outcome(tmp_path) == uninterrupted("supervised", eval_every=2)


@pytest.mark.parametrize("method", ["supervised", "cps"])
def test_a_killed_process_is_continued_at_once(
    shapes_folder: Path, tmp_path: Path, uninterrupted: Callable[..., Any], method: str
) -> None:
    machine = {"checkpoint_every": 1, "workers": 1}
    words = train_words(method, shapes_folder, tmp_path / "cut", eval_every=2, **machine)
    process = start(words, tmp_path, train_slowly)
    wait_for(lambda: max(steps(tmp_path / "cut"), default=0) >= 3, process)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert max(steps(tmp_path / "cut")) < 6
    tiny_run(method, shapes_folder, tmp_path / "cut", machine, eval_every=2)
    assert outcome(tmp_path / "cut") == uninterrupted(method, eval_every=2)


@pytest.mark.parametrize(
    ("signum", "to_all", "code"),
    [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)],
    ids=["SIGTERM to the process", "Ctrl-C to the whole group"],
)
def test_a_signal_stops_a_run_after_the_step_and_the_same_call_continues(
    shapes_folder: Path, tmp_path: Path, uninterrupted: Callable[..., Any], signum: int, to_all: bool, code: int
) -> None:
    run, machine = tmp_path / "cut", {"checkpoint_every": 100, "workers": 1}
    process = start(train_words("supervised", shapes_folder, run, **machine), tmp_path, train_slowly)
    wait_for(lambda: "step 2/6" in said(tmp_path), process)
    (os.killpg if to_all else os.kill)(process.pid, signum)
    assert ended(process) == code
    (step,) = steps(run)
    assert 2 <= step < 6
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["reason"], status["step"]) == ("stopped", signal.Signals(signum).name, step)
    *progress, last = said(tmp_path).splitlines()
    assert last.startswith(f"error: stopped by {signal.Signals(signum).name}")
    assert all(line.startswith("supervised: ") for line in progress)
    tiny_run("supervised", shapes_folder, run)
    assert outcome(run) == uninterrupted("supervised")


def train_with_a_long_evaluation(words: list[str]) -> int:
    step = Supervised.validation_step

    def slow(self: Supervised, *batch: Any) -> None:
        step(self, *batch)
        sys.stderr.write("evaluating\n")
        sys.stderr.flush()
        time.sleep(1)

    Supervised.validation_step = slow
    return main(words)


def test_a_signal_stops_an_evaluation_at_the_next_image(
    shapes_folder: Path, tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    words = train_words("supervised", shapes_folder, tmp_path / "cut")
    process = start(words, tmp_path, train_with_a_long_evaluation)
    wait_for(lambda: "evaluating" in said(tmp_path), process)
    process.terminate()
    assert ended(process) == 143
    assert said(tmp_path).count("evaluating") == 1
    status = json.loads((tmp_path / "cut" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("stopped", 6)
    tiny_run("supervised", shapes_folder, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == uninterrupted("supervised")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(signum: int) -> None:
    child = os.fork()
    if child == 0:
        StopSignals().on_train_start(None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signum)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signum


def test_signals_go_back_to_their_owner(shapes_folder: Path, tmp_path: Path) -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    with cut(1):
        tiny_run("supervised", shapes_folder, tmp_path / "run", steps=2)
    assert {signum: signal.getsignal(signum) for signum in before} == before
    tiny_run("supervised", shapes_folder, tmp_path / "run", steps=2)
    assert {signum: signal.getsignal(signum) for signum in before} == before


def test_the_seed_decides_and_nothing_else(shapes_folder: Path, tmp_path: Path) -> None:
    first, again, other = (
        outcome(tiny_run("cps", shapes_folder, tmp_path / name, seed=seed, steps=2))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert first[0] != other[0]
