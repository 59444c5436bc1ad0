"""Training, evaluation and prediction by `lightning.Trainer`: one process or many, one machine or many."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from labelwise.checkpoints import (
    AtomicCheckpointIO,
    Checkpoints,
    SharedBuffers,
    StepRandomness,
    StopSignals,
    newest_intact,
    step_of,
)
from labelwise.datasets.base import DataSet
from labelwise.errors import UserError
from labelwise.hardware import Hardware, process_rank
from labelwise.loaders import (
    EndlessBatches,
    StreamSet,
    derive_seed,
    evaluation_loader,
    training_loader,
)
from labelwise.method import Method, Stream
from labelwise.progress import MetricsCsv, TrainingProgress, console, watched
from labelwise.samples import Sample


def build_trainer(
    hardware: Hardware, *, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = (), **options: Any
) -> lightning.Trainer:
    """A trainer with our defaults: no padding samplers, no sanity check, atomic checkpoints.

    Raises:
        UserError: this machine cannot do what is asked of it.
    """
    _quiet_lightning()
    if process_rank() >= hardware.world:
        # Without this, each would train the whole run into the same folder.
        raise UserError(f"--devices {hardware.devices}: fewer than the processes that were started; name as many")
    if process_rank() != 0:
        _end_with_parent()
    try:
        return lightning.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            strategy=_strategy(hardware),
            precision=hardware.resolved_precision(),  # type: ignore[arg-type]
            deterministic=hardware.deterministic or None,
            sync_batchnorm=hardware.on_gpu and hardware.world > 1,
            plugins=[AtomicCheckpointIO()],
            callbacks=list(callbacks) or [StopSignals()],
            logger=list(loggers) or False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **options,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(f"{hardware.described()}: not possible here: {' '.join(str(error).split())}") from error


def _quiet_lightning() -> None:
    """Keep Lightning's remarks on hardware and products out of the output; warnings of substance stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers",
        ".*sync_dist=True",
        ".*treespec",
        ".*LeafSpec",
        ".*`max_epochs`",
        ".*before the epoch ended",
        ".*in eval mode at the start of training",
        ".*`broadcast_buffers` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=text)


@cache
def _end_with_parent() -> None:
    """End this helper process with the one that started it; it would wait half an hour for a killed one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _strategy(hardware: Hardware) -> str | Strategy:
    if hardware.strategy == "fsdp":
        return "fsdp"
    if hardware.world > 1 or hardware.strategy == "ddp":
        # Buffers are synchronised by SyncBatchNorm or SharedBuffers; DDP's own broadcast in every forward pass
        # would hang in an evaluation whose processes hold different numbers of images.
        return DDPStrategy(broadcast_buffers=False, process_group_backend=None if hardware.on_gpu else "gloo")
    return "auto"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: what to train on which images, and where to keep its state."""

    method: Method
    dataset: DataSet
    sources: Mapping[str, Sequence[str]]
    "ids per stream source: labeled, unlabeled, ood"
    read: Callable[[str], Sample]
    "reads an image with the labels that supervision allows"
    read_ood: Callable[[str], Sample]
    "reads an image of no class"
    validation: Sequence[str]
    "ids of the split that is scored"
    folder: Path
    seed: int
    hardware: Hardware
    monitor: Callback | None = None
    "watches the steps and changes nothing"

    def run(self) -> lightning.Trainer:
        """Train to the end, from the newest intact checkpoint if there is one; then the trainer for an evaluation.

        Raises:
            Interrupted: a signal stopped the run; the state is saved.
            NonFiniteLoss: a loss term became infinite or not a number.
        """
        hardware, config = self.hardware, self.method.config
        checkpoint = newest_intact(self.folder / "checkpoints", console)
        resumed_at = step_of(checkpoint) if checkpoint else 0
        self.method.total_steps = total = self._total_steps()
        metrics = MetricsCsv(self.folder / "metrics.csv", max(1, total // 200), resumed_at)
        trainer = build_trainer(
            hardware,
            callbacks=self._callbacks(metrics, total),
            loggers=_tensorboard(self.folder),
            max_steps=total,
            max_epochs=-1,
            accumulate_grad_batches=hardware.accumulate,
            log_every_n_steps=max(1, total // 200),
            val_check_interval=config.eval_every * hardware.accumulate or None,
            check_val_every_n_epoch=None if config.eval_every else 1,
            limit_val_batches=None if config.eval_every else 0,
            # Evaluations before, within and after the training add to the same tensors of the metrics.
            inference_mode=False,
        )
        loaders, validation = self._loaders(resumed_at, total), self._validation_loader()
        if hardware.channels_last():
            self.method.to(memory_format=torch.channels_last)
        if hardware.compile:
            _compile(self.method, hardware)
        if checkpoint:
            console.print(f"continuing at step {resumed_at} of {total}")
            due = config.eval_every and resumed_at % config.eval_every == 0 and resumed_at < total
            if due and self.validation and not metrics.has_evaluation(resumed_at):
                # The run was cut between this checkpoint and the evaluation that follows it.
                trainer.validate(self.method, validation, checkpoint, verbose=False, weights_only=True)
        self.method.train()
        trainer.fit(self.method, loaders, validation, ckpt_path=checkpoint, weights_only=True)
        return trainer

    def _callbacks(self, metrics: MetricsCsv, total: int) -> list[Callback]:
        hardware, signals = self.hardware, StopSignals()
        every = [hardware.checkpoint_every or min(500, max(20, total // 20))]
        if self.method.config.eval_every:
            # An evaluation may be stopped at any image, so the step before it has to be on disk.
            every.append(self.method.config.eval_every)
        return [
            signals,
            StepRandomness(self.seed, hardware.accumulate),
            SharedBuffers(),
            TrainingProgress(self.method.card.name),
            *([self.monitor] if self.monitor else []),
            metrics,
            # The last, so that a checkpoint's step is in the tables of the two before.
            Checkpoints(self.folder / "checkpoints", every, signals),
        ]

    def _validation_loader(self) -> DataLoader[Any]:
        return evaluation_loader(
            self.dataset, self.validation, self.method.card.truth.kinds, rank=process_rank(), world=self.hardware.world
        )

    def _total_steps(self) -> int:
        # A baseline that ignores the bare images takes as many steps as the methods that use them (protocol 5.1).
        images = [len(ids) for source, ids in self.sources.items() if source != "ood"]
        return self.method.config.total_steps(max(images))

    def _loaders(self, start: int, stop: int) -> CombinedLoader:
        hardware = self.hardware
        passes = hardware.accumulate
        loaders = {}
        for name, stream in self.method.streams().items():
            ids = self.sources[stream.source]
            seed = derive_seed(self.seed, "stream", name)
            # An unlabelled stream never reads labels, not even where it falls back to labelled images.
            read = {"labeled": self.read, "unlabeled": self.dataset.read, "ood": self.read_ood}[stream.source]
            if stream.copies is not None:
                counted = watched(ids, f"counting the stream {name}", len(ids))
                ids = [id for id in counted for _ in range(stream.copies(read(id)))]
                if not ids:
                    raise UserError(f"the stream '{name}' finds nothing to draw in any image; label more images")
            images = StreamSet(read, ids, stream, seed)
            batch = _share(self.method, stream, hardware)
            batches = EndlessBatches(
                len(ids),
                batch,
                seed=seed,
                start=start * passes,
                stop=stop * passes,
                rank=process_rank(),
                world=hardware.world,
            )
            loaders[name] = training_loader(images, batches, 0 if stream.live else hardware.loader_workers())
        return CombinedLoader(loaders, mode="min_size")


def check_possible(method: Method, hardware: Hardware) -> None:
    """Refuse what this machine cannot do, before anything is written.

    Raises:
        UserError: an accelerator or a strategy that is not to be had, or a batch that cannot be divided.
    """
    for stream in method.streams().values():
        _share(method, stream, hardware)
    build_trainer(hardware)


def _share(method: Method, stream: Stream, hardware: Hardware) -> int:
    """Images of a stream per pass and device."""
    batch = round(method.config.batch_size * stream.share)
    parts = hardware.world * hardware.accumulate
    if batch % parts:
        raise UserError(
            f"--batch-size {batch}: cannot be divided over {hardware.world} devices and {hardware.accumulate} passes; "
            f"take a multiple of {parts}"
        )
    return batch // parts


def _tensorboard(folder: Path) -> list[Logger]:
    try:
        return [TensorBoardLogger(folder, name="", version="tensorboard")]
    except ModuleNotFoundError:
        return []


def _compile(method: Method, hardware: Hardware) -> None:
    """Compile the network in place and try it once; an unsupported machine keeps the plain network."""
    crop = getattr(method.config, "crop", 0) or 64
    device = "cuda" if hardware.on_gpu else "cpu"
    method.network.compile()
    try:
        with torch.no_grad():
            method.network.eval().to(device)(torch.zeros(1, 3, crop, crop, device=device))
    except Exception as error:
        method.network._compiled_call_impl = None
        console.print(
            f"[yellow]warning:[/] torch.compile does not work here ({str(error).splitlines()[0]}); going on without"
        )
