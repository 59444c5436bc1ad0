"""Checkpoints that survive a kill: written atomically inside the loop, checked by a digest, with a fall-back."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console
from torch import nn

from labelwise.files import atomic_file, atomic_write
from labelwise.loaders import derive_seed

_KEPT = 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints of tensors and plain types, replaced atomically and accompanied by their SHA-256."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        """Write `path`, then `path.sha256`."""
        target = Path(path)
        with atomic_file(target) as file:
            torch.save(checkpoint, file)
        atomic_write(_digest_file(target), _digest(target))

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint without running any code from it."""
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return checkpoint


def newest_intact(folder: Path, console: Console | None = None) -> Path | None:
    """The newest checkpoint whose digest is right; a damaged newer one is passed over with a warning."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        digest = _digest_file(path)
        if digest.is_file() and digest.read_text() == _digest(path):
            return path
        if console:
            console.print(f"[yellow]warning:[/] {path} is damaged or unfinished; falling back to the one before")
    return None


def step_of(checkpoint: Path) -> int:
    """The optimiser step in a checkpoint's name."""
    return int(checkpoint.stem.removeprefix("step-"))


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint of the last finished step is on disk."""

    def __init__(self, signum: int) -> None:
        """Remember the signal's number."""
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Checkpoints(Callback):
    """Save every so many steps and when SIGTERM or SIGINT arrives; a second signal ends the process at once."""

    def __init__(self, folder: Path, every: int) -> None:
        """Save into `folder` after every `every` optimiser steps."""
        self.folder, self.every = folder, every
        self._signal = 0
        self._saved = -1
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over the two signals once Lightning has set its own handlers."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._handlers[signum] = signal.signal(signum, self._receive)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Save if it is time or a signal arrived."""
        step = trainer.global_step
        if step == self._saved:
            return
        stop = self._signal_of_any_process(trainer)
        if stop or step % self.every == 0 or step == trainer.max_steps:
            self._save(trainer, step)
        if stop:
            raise Interrupted(stop)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if self._signal:
            os._exit(128 + signum)
        self._signal = signum

    def _signal_of_any_process(self, trainer: lightning.Trainer) -> int:
        if trainer.world_size == 1:
            return self._signal
        signum = torch.tensor(self._signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(signum, reduce_op="max"))

    def _save(self, trainer: lightning.Trainer, step: int) -> None:
        self._saved = step
        trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt")
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[:-_KEPT]:
                _digest_file(old).unlink(missing_ok=True)
                old.unlink()


class StepRandomness(Callback):
    """Make a step's randomness a function of (seed, step, device), so that a resumed run draws the same numbers."""

    def __init__(self, seed: int, accumulate: int) -> None:
        """Seed each micro-batch from the run's seed."""
        self.seed, self.accumulate = seed, accumulate

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch's generators."""
        torch.manual_seed(
            derive_seed(self.seed, "step", trainer.global_step, batch_idx % self.accumulate, trainer.global_rank)
        )


class SharedBuffers(Callback):
    """Give every device the first one's BatchNorm statistics where they are not synchronised anyway."""

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Broadcast the statistics of ordinary BatchNorm layers."""
        if trainer.world_size > 1:
            for buffer in _statistics(pl_module):
                torch.distributed.broadcast(buffer, src=0)


def _statistics(method: lightning.LightningModule) -> Iterator[torch.Tensor]:
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            yield from module.buffers(recurse=False)


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
