"""Training, evaluation and prediction by `lightning.Trainer`: one process or many, one machine or many."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from labelwise.checkpoints import (
    AtomicCheckpointIO,
    Checkpoints,
    SharedBuffers,
    StepRandomness,
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
from labelwise.method import Method
from labelwise.progress import MetricsCsv, TrainingProgress, console
from labelwise.samples import Sample


def build_trainer(
    hardware: Hardware, *, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = (), **options: Any
) -> lightning.Trainer:
    """A trainer with our defaults: no padding samplers, no sanity check, atomic checkpoints."""
    _quiet_lightning()
    return lightning.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=_strategy(hardware),
        precision=hardware.resolved_precision(),  # type: ignore[arg-type]
        deterministic=hardware.deterministic or None,
        sync_batchnorm=hardware.on_gpu and hardware.world > 1,
        plugins=[AtomicCheckpointIO()],
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )


def _quiet_lightning() -> None:
    """Keep Lightning's remarks on hardware and products out of the output; warnings of substance stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers",
        ".*treespec",
        ".*LeafSpec",
        ".*`max_epochs`",
        ".*before the epoch ended",
    ):
        warnings.filterwarnings("ignore", message=text)


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
    validation: Sequence[str]
    "ids of the split that is scored"
    folder: Path
    seed: int
    hardware: Hardware

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
        every = hardware.checkpoint_every or min(500, max(20, total // 20))
        trainer = build_trainer(
            hardware,
            callbacks=[
                StepRandomness(self.seed, hardware.accumulate),
                SharedBuffers(),
                TrainingProgress(self.method.card.name),
                Checkpoints(self.folder / "checkpoints", every),
            ],
            loggers=[MetricsCsv(self.folder / "metrics.csv", resumed_at), *_tensorboard(self.folder)],
            max_steps=total,
            max_epochs=-1,
            accumulate_grad_batches=hardware.accumulate,
            log_every_n_steps=max(1, total // 200),
            val_check_interval=config.eval_every * hardware.accumulate or None,
            check_val_every_n_epoch=None if config.eval_every else 1,
            limit_val_batches=None if config.eval_every else 0,
        )
        if hardware.on_gpu:
            self.method.to(memory_format=torch.channels_last)
        if hardware.compile:
            _compile(self.method)
        loaders = self._loaders(resumed_at, total)
        if resumed_at < total:
            if resumed_at:
                console.print(f"continuing at step {resumed_at} of {total}")
            trainer.fit(self.method, loaders, self._validation_loader(), ckpt_path=checkpoint, weights_only=True)
        elif checkpoint:
            state = AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
            self.method.load_state_dict(state)
        return trainer

    def _validation_loader(self) -> DataLoader[Any]:
        return evaluation_loader(
            self.dataset, self.validation, self.method.card.gives, rank=process_rank(), world=self.hardware.world
        )

    def _total_steps(self) -> int:
        # A baseline that ignores the bare images takes as many steps as the methods that use them (protocol 5.1).
        return self.method.config.total_steps(max(map(len, self.sources.values())))

    def _loaders(self, start: int, stop: int) -> CombinedLoader:
        hardware = self.hardware
        passes = hardware.accumulate
        loaders = {}
        for name, stream in self.method.streams().items():
            ids = self.sources[stream.source]
            seed = derive_seed(self.seed, "stream", name)
            # An unlabelled stream never reads labels, not even where it falls back to labelled images.
            read = self.read if stream.source == "labeled" else self.dataset.read
            images = StreamSet(read, ids, stream, seed)
            batch = _share(round(self.method.config.batch_size * stream.share), hardware)
            batches = EndlessBatches(
                len(ids),
                batch,
                seed=seed,
                start=start * passes,
                stop=stop * passes,
                rank=process_rank(),
                world=hardware.world,
            )
            loaders[name] = training_loader(images, batches, hardware.loader_workers())
        return CombinedLoader(loaders, mode="min_size")


def _share(batch: int, hardware: Hardware) -> int:
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


def _compile(method: Method) -> None:
    """Compile the network in place and try it once; an unsupported machine keeps the plain network."""
    crop = getattr(method.config, "crop", 64)
    method.network.compile()
    try:
        with torch.no_grad():
            method.network.eval()(torch.zeros(1, 3, crop, crop))
    except Exception as error:
        method.network._compiled_call_impl = None
        console.print(
            f"[yellow]warning:[/] torch.compile does not work here ({str(error).splitlines()[0]}); going on without"
        )
    method.network.train()
