"""Checkpoints that survive a kill: written atomically inside the loop, checked by a digest, with a fall-back."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
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
from labelwise.method import NonFiniteLoss

_KEPT = 2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints of tensors and plain types, replaced atomically and accompanied by their SHA-256."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], *_: Any, **__: Any) -> None:
        """Write `path`, then `path.sha256`.

        Raises:
            OSError: the disk is full or the folder cannot be written to; an older file of that name stays.
        """
        target = Path(path)
        try:
            with atomic_file(target) as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch hides a failed write behind the archive that it could not close.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        atomic_write(_digest_file(target), _digest(target))

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint without running any code from it."""
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return checkpoint


def newest_intact(folder: Path, console: Console | None = None) -> Path | None:
    """The newest checkpoint whose digest is right; a damaged newer one is passed over with a warning."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        digest = _digest_file(path)
        if digest.is_file() and digest.read_bytes() == _digest(path).encode():
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


class StopSignals(Callback):
    """Take SIGTERM and SIGINT for a wish to stop at the next safe point; a second signal ends the process at once."""

    def __init__(self) -> None:
        """Remember who handles the signals now."""
        self.received = 0
        self._handlers = {signum: signal.getsignal(signum) for signum in _SIGNALS}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over the signals once Lightning has set its own handlers."""
        self._handle(dict.fromkeys(_SIGNALS, self._receive))

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take them over likewise where nothing is trained."""
        self.on_train_start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        """Stop an evaluation at any image, since it changes nothing that would have to be saved."""
        if self.received and trainer.is_global_zero:
            raise Interrupted(self.received)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back, and end the processes that Lightning started on this machine."""
        self._handle(self._handlers)
        launcher = trainer.strategy.launcher
        if launcher is not None:
            # Left alone they would complain of the lost connection; left in the list, Lightning's watcher would take
            # their end for a failure and kill this process.
            launcher.kill(signal.SIGKILL)
            getattr(launcher, "procs", []).clear()
        if isinstance(exception, KeyboardInterrupt):
            # Lightning would turn it into exit code 1.
            raise exception

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._handle(self._handlers)

    def of_any_process(self, trainer: lightning.Trainer) -> int:
        """The signal that any of the processes received, or 0; to be called by all of them."""
        if trainer.world_size == 1:
            return self.received
        signum = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(signum, reduce_op="max"))

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if self.received:
            os._exit(128 + signum)
        self.received = signum

    def _handle(self, handlers: dict[signal.Signals, Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in handlers.items():
                signal.signal(signum, handler)


class Checkpoints(Callback):
    """Save every so many steps, after the last one, and when a signal asks to stop."""

    def __init__(self, folder: Path, every: Sequence[int], signals: StopSignals) -> None:
        """Save into `folder` after the optimiser steps that are multiples of any number in `every`."""
        self.folder, self.every, self.signals = folder, every, signals

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time or a signal arrived.

        Raises:
            Interrupted: a signal arrived; the state is saved.
            NonFiniteLoss: a weight is not finite; nothing is saved.
        """
        if not step_is_done(trainer, batch_idx):
            return
        step, stop = trainer.global_step, self.signals.of_any_process(trainer)
        if stop or step == trainer.max_steps or any(step % every == 0 for every in self.every):
            _require_finite(pl_module, step)
            trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt")
            if trainer.is_global_zero:
                self._prune(step)
        if stop:
            raise Interrupted(stop)

    def _prune(self, step: int) -> None:
        """Keep the newest checkpoints up to this step; later ones are damaged, or they would have been resumed."""
        found = sorted(self.folder.glob("step-*.ckpt"))
        kept = [path for path in found if step_of(path) <= step][-_KEPT:]
        for path in set(found) - set(kept):
            _digest_file(path).unlink(missing_ok=True)
            path.unlink()


def step_is_done(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether this was the last of the passes that a batch is divided into."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


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


def _require_finite(method: lightning.LightningModule, step: int) -> None:
    """Refuse to save weights that an infinite gradient of a finite loss has spoilt."""
    for name, weight in method.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteLoss(
                f"the weights '{name}' are not finite after step {step}, although every loss term was; "
                "the last checkpoint is kept: lower the learning rate"
            )


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
