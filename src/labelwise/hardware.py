"""Where and how fast to compute: the options of the machine, which belong to no method."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from labelwise.errors import UserError, require_at_least

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where and how fast to compute; nothing here belongs to a method."""

    accelerator: str = "auto"
    "auto, cpu, gpu, mps"
    devices: int = 1
    "processes on this machine, one device each; a batch is divided over them"
    nodes: int = 1
    "machines; start the same command on each with torchrun or SLURM"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    "how several devices share the work; auto = ddp where there are several"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    "auto = what was measured to be fastest on this kind of device"
    workers: int = -1
    "loader processes per stream; -1 = half the cores, at most eight"
    accumulate: int = 1
    "divide each batch further into this many passes, for devices of little memory"
    compile: bool = False
    "torch.compile the network; falls back with a message"
    deterministic: bool = False
    "refuse operators whose result varies from run to run"
    checkpoint_every: int = 0
    "optimiser steps between checkpoints; 0 = a twentieth of the run, at most 500"

    def __post_init__(self) -> None:
        """Refuse what no machine has.

        Raises:
            UserError: names the option.
        """
        if self.accelerator not in _ACCELERATORS:
            raise UserError(f"--accelerator {self.accelerator}: must be one of {', '.join(_ACCELERATORS)}")
        for name, least in (("devices", 1), ("nodes", 1), ("workers", -1), ("accumulate", 1), ("checkpoint_every", 0)):
            require_at_least(name, getattr(self, name), least)

    @property
    def world(self) -> int:
        """Processes over all machines."""
        return self.devices * self.nodes

    @property
    def on_gpu(self) -> bool:
        """Whether a CUDA device will be used."""
        import torch

        return self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()

    def resolved_precision(self) -> str:
        """The precision that `auto` stands for on this machine."""
        if self.precision != "auto":
            return self.precision
        import torch

        if self.on_gpu:
            return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        # Without such instructions bf16 is emulated: a training step was measured to take 2.4 to 3.7 times as long.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16-mixed" if native else "32-true"

    def channels_last(self) -> bool:
        """Whether convolutions are faster with the channels last (`benchmarks/deeplab_precision.py`).

        On GPUs they are; on CPUs in float32 too (1.06 to 1.28 times), but not in bf16, where MobileNetV2 was measured
        to become ten times slower.
        """
        return self.on_gpu or self.resolved_precision() == "32-true"

    def described(self) -> str:
        """The options of the machine that were asked for, as on the command line."""
        names = ("accelerator", "devices", "nodes", "strategy", "precision")
        asked = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Hardware, name)}
        return " ".join(f"--{name} {value}" for name, value in asked.items()) or "--accelerator auto"

    def loader_workers(self) -> int:
        """The number of loader processes per stream."""
        return min(8, (os.cpu_count() or 1) // 2) if self.workers < 0 else self.workers


def process_rank() -> int:
    """This process's number among those of a distributed run; 0 outside one."""
    # torchrun sets RANK, Lightning's own launcher LOCAL_RANK, which has to win over the number of a SLURM task in
    # which it was started.
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)
