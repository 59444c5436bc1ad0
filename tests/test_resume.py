"""A run that was stopped or killed anywhere ends like one that was not."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import cut, ended, outcome, start, tiny_run, train_words, wait_for

from labelwise.checkpoints import StopSignals, step_of
from labelwise.cli import main
from labelwise.methods.masks.supervised import Supervised


def said(output: Path) -> str:
    file = output / "stderr"
    return file.read_text() if file.exists() else ""


def steps(run: Path) -> list[int]:
    return sorted(map(step_of, run.glob("checkpoints/step-*.ckpt")))


@pytest.mark.parametrize(
    ("method", "machine", "options"),
    [
        pytest.param("supervised", {}, {"eval_every": 2}, id="supervised"),
        pytest.param("cps", {}, {"eval_every": 3}, id="cps with CutMix"),
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


def test_an_evaluation_that_was_cut_is_made_up_for(shapes_folder: Path, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        with cut(step, "in the evaluation"):
            tiny_run("supervised", shapes_folder, tmp_path / "cut", {"checkpoint_every": 5}, eval_every=2)
    tiny_run("supervised", shapes_folder, tmp_path / "cut", {"checkpoint_every": 5}, eval_every=2)
    tiny_run("supervised", shapes_folder, tmp_path / "whole", eval_every=2)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("method", ["supervised", "cps"])
def test_a_killed_process_is_continued_at_once(shapes_folder: Path, tmp_path: Path, method: str) -> None:
    options = {"steps": 12, "eval_every": 5}
    machine = {"checkpoint_every": 1, "workers": 1}
    process = start(train_words(method, shapes_folder, tmp_path / "cut", **options, **machine), tmp_path)
    wait_for(lambda: max(steps(tmp_path / "cut"), default=0) >= 3, process)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert max(steps(tmp_path / "cut")) < 12
    tiny_run(method, shapes_folder, tmp_path / "cut", machine, **options)
    tiny_run(method, shapes_folder, tmp_path / "whole", machine, **options)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("signum", "to_all", "code"),
    [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)],
    ids=["SIGTERM to the process", "Ctrl-C to the whole group"],
)
def test_a_signal_stops_a_run_after_the_step_and_the_same_call_continues(
    shapes_folder: Path, tmp_path: Path, signum: int, to_all: bool, code: int
) -> None:
    run, options = tmp_path / "cut", {"steps": 40}
    machine = {"checkpoint_every": 100, "workers": 1}
    process = start(train_words("supervised", shapes_folder, run, **options, **machine), tmp_path)
    wait_for(lambda: "step 4/40" in said(tmp_path), process)
    (os.killpg if to_all else os.kill)(process.pid, signum)
    assert ended(process) == code
    assert steps(run) and 4 <= max(steps(run)) < 40
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("stopped", signal.Signals(signum).name)
    assert status["step"] == max(steps(run))
    *progress, last = said(tmp_path).splitlines()
    assert last.startswith(f"error: stopped by {signal.Signals(signum).name}")
    assert all(line.startswith("supervised: ") for line in progress)
    tiny_run("supervised", shapes_folder, run, machine, **options)
    tiny_run("supervised", shapes_folder, tmp_path / "whole", machine, **options)
    assert outcome(run) == outcome(tmp_path / "whole")


def train_with_a_long_evaluation(words: list[str]) -> int:
    step = Supervised.validation_step

    def slow(self: Supervised, *batch: Any) -> None:
        step(self, *batch)
        sys.stderr.write("evaluating\n")
        sys.stderr.flush()
        time.sleep(1)

    Supervised.validation_step = slow
    return main(words)


def test_a_signal_stops_an_evaluation_at_the_next_image(shapes_folder: Path, tmp_path: Path) -> None:
    words = train_words("supervised", shapes_folder, tmp_path / "cut")
    process = start(words, tmp_path, command=train_with_a_long_evaluation)
    wait_for(lambda: "evaluating" in said(tmp_path), process)
    process.terminate()
    assert ended(process) == 143
    status = json.loads((tmp_path / "cut" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("stopped", 6)
    assert said(tmp_path).count("evaluating") == 1
    tiny_run("supervised", shapes_folder, tmp_path / "cut")
    tiny_run("supervised", shapes_folder, tmp_path / "whole")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


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
        outcome(tiny_run("cps", shapes_folder, tmp_path / name, seed=seed, steps=3))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert first[0] != other[0]
