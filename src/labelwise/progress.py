"""Progress that a person sees: a bar in a terminal, plain lines elsewhere; and the numbers in `metrics.csv`."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from labelwise.files import atomic_write
from labelwise.hardware import process_rank

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Everything that is not a result goes to standard error, so that `--json` stays readable by programs."""

T = TypeVar("T")


def watched(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar in a terminal and silently elsewhere."""
    if not console.is_terminal:
        return iter(items)
    return iter(track(items, description, total=total, console=console, transient=True))


class MetricsCsv(Logger):
    """One row per logged step in `metrics.csv`; a resumed run drops the rows after its checkpoint."""

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        """Continue the file at `path` up to the step `resumed_at`."""
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, str]] = {}
        if path.is_file():
            with path.open(newline="") as file:
                rows = {int(row["step"]): row for row in csv.DictReader(file)}
            self.rows = {
                step: {name: value for name, value in row.items() if value and name != "step"}
                for step, row in rows.items()
                if step <= resumed_at
            }

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """One file, one version."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in `config.yaml` already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the row of the optimiser steps done."""
        row = {name: f"{value:.6g}" for name, value in metrics.items() if name != "epoch"}
        if row:
            self.rows.setdefault(step or 0, {}).update(row)

    def save(self) -> None:
        """Write the file."""
        if not self.rows or process_rank() != 0:
            return
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))
        atomic_write(self.path, text.getvalue())


class TrainingProgress(Callback):
    """Steps, loss and speed: a bar in a terminal, a line every tenth of the way elsewhere."""

    def __init__(self, title: str) -> None:
        """Show the bar under this title."""
        self.title = title
        self._bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the bar at the step where training begins."""
        self._began, self._first = time.monotonic(), trainer.global_step
        if console.is_terminal and trainer.is_global_zero:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}")
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._task = self._bar.add_task(self.title, total=trainer.max_steps, status="", completed=self._first)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Show the step."""
        step, total = trainer.global_step, trainer.max_steps
        tenth = step % max(1, total // 10) == 0
        if not trainer.is_global_zero or not (self._bar or tenth):
            return
        pace = (step - self._first) / (time.monotonic() - self._began)
        status = f"step {step}/{total}  loss {float(outputs['loss']):.3f}  {pace:.1f} steps/s"
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
        else:
            console.print(f"{self.title}: {status}")

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def print_json(content: Any) -> None:
    """One JSON object on standard output."""
    import json

    sys.stdout.write(json.dumps(content, indent=2) + "\n")
