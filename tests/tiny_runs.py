"""Runs of seconds: in this process, in processes that can be killed, and cut at a chosen place."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, set_start_method
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from labelwise.checkpoints import Checkpoints, StopSignals
from labelwise.cli import main
from labelwise.hardware import Hardware
from labelwise.method import Method
from labelwise.verbs.train import train

OPTIONS: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_weights": "none",
    "decoder_channels": 16,
    "crop": 32,
    "window": 0,
    "batch_size": 2,
    "steps": 6,
}
DETECTOR: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_weights": "none",
    "short_side": 48,
    "long_side": 64,
    "batch_size": 2,
    "steps": 6,
}
"""The same of detectors, to be given as `base`."""
LOCALIZER: dict[str, Any] = {
    "backbone": "micro_w4",
    "backbone_weights": "none",
    "output_stride": 4,
    "freeze_norms": False,
    "crop": 32,
    "resize_range": (32, 48),
    "map_scales": (1.0,),
    "batch_size": 2,
    "steps": 6,
}
"""The same of methods that learn score maps from tags; with `labels="tags:6"`."""
MACHINE: dict[str, Any] = {"accelerator": "cpu", "precision": "32-true", "workers": 0}
PATIENCE = 120
"""Seconds until something is taken to hang."""


def tiny_run(
    method: str,
    data: Path,
    out: Path,
    machine: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] = OPTIONS,
    **options: Any,
) -> Path:
    """Train in this process, saving after every step unless `machine` says otherwise."""
    labels = "masks:6" if base is OPTIONS else "boxes:6"
    call: dict[str, Any] = {"labels": options.pop("labels", labels), "seed": options.pop("seed", 0)}
    hardware = Hardware(**MACHINE | {"checkpoint_every": 1} | dict(machine or {}))
    train(method, data=data, out=out, hardware=hardware, **call, **{**base, **options})
    return out


def outcome(run: Path) -> tuple[bytes, dict[str, Any], str]:
    """What must not depend on how a run came to its end: weights, scores, curves."""
    results = json.loads((run / "results.json").read_text())
    for name in ("seconds", "peak_memory_mb", "folder"):
        del results[name]
    return (run / "model.safetensors").read_bytes(), results, (run / "metrics.csv").read_text()


def train_words(
    method: str, data: Path, out: Path, *words: str, base: Mapping[str, Any] = OPTIONS, **options: Any
) -> list[str]:
    """The words of the same call for the shell."""
    flags = {**base} | MACHINE | {"labels": "masks:6", "data": data, "out": out} | options
    return ["train", method, *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()), *words]


def train_slowly(words: list[str]) -> int:
    """The command with steps long enough to be killed between."""
    step = Method.training_step

    def slow(self: Method, *batch: Any) -> Any:
        time.sleep(0.1)
        return step(self, *batch)

    Method.training_step = slow  # type: ignore[method-assign]
    return main(words)


class Cut(Exception):
    """A run ended without any warning."""


@contextmanager
def cut(step: int, where: str = "after the step") -> Iterator[None]:
    """End a run after a step, when its checkpoint has been written, or within the evaluation that follows it."""

    def end(trainer: lightning.Trainer) -> None:
        if trainer.global_step == step:
            raise Cut

    def after(hook: Callable[..., None]) -> Callable[..., None]:
        def both(self: Any, trainer: lightning.Trainer, *rest: Any) -> None:
            hook(self, trainer, *rest)
            end(trainer)

        return both

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        if where == "after the step":
            patch.setattr(Checkpoints, "on_train_batch_end", after(Checkpoints.on_train_batch_end))
        else:
            patch.setattr(StopSignals, "on_validation_batch_end", after(StopSignals.on_validation_batch_end))
        yield


def start(
    words: Sequence[str], output: Path, command: Callable[[list[str]], int] = main, **environment: str
) -> ForkServerProcess:
    """The command in a process of its own and in its own group, without the seconds that its imports take.

    Its standard output and error are the files `stdout` and `stderr` in `output`.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["labelwise.commands.training", "labelwise.verbs.evaluate", "labelwise.verbs.train"])
    process = context.Process(target=_run, args=(command, list(words), output, environment))
    process.start()
    return process


def start_all(words: Sequence[str], output: Path, world: int, **options: Any) -> list[ForkServerProcess]:
    """One process per device, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    return [
        start(
            [*words, f"--devices={world}"],
            output / str(rank),
            **options,
            **shared,
            WORLD_SIZE=str(world),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(world)
    ]


def ended(process: ForkServerProcess) -> int | None:
    """The exit code of a process that has to end."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        pytest.fail("the process hangs")
    return process.exitcode


def wait_for(condition: Callable[[], Any], process: ForkServerProcess) -> None:
    """Wait until something is true that a process brings about."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE or not process.is_alive():
            pytest.fail(f"the process has ended with {process.exitcode}, or nothing happens")
        time.sleep(0.005)


def _run(command: Callable[[list[str]], int], words: list[str], output: Path, environment: dict[str, str]) -> None:
    # As in a process that was started afresh; else its loader processes would have to import everything.
    set_start_method("fork", force=True)
    os.setsid()
    os.environ.update(environment)
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        name = "stdout" if stream is sys.stdout else "stderr"
        os.dup2(os.open(output / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream.fileno())
    sys.exit(command(words))
