"""What the files of a run and of a command tell of its progress; where there are none, nothing is known."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

_SHOWN_LOSSES = 200
_SHOWN_MESSAGE = 500
_PROGRESS = re.compile(rb"step \d+/(\d+)")


def read_object(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is none."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
    return {}


def total_steps(run: Path | None, log: Path) -> int:
    """The steps of a training: those asked for; where these follow from epochs, those that it speaks of."""
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        if run is not None and (steps := yaml.safe_load((run / "config.yaml").read_bytes())["options"]["steps"]):
            return int(steps)
    with suppress(OSError):
        if said := _PROGRESS.findall(log.read_bytes()):
            return int(said[-1])
    return 0


def read_losses(run: Path) -> list[tuple[int, float]]:
    """The losses of a training so far: (step, loss)."""
    with suppress(OSError, ValueError, KeyError, csv.Error), (run / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file) if row["loss"]]
    return []


def thinned(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """So many of them that a curve can be drawn, the last among them."""
    every = -(-len(losses) // _SHOWN_LOSSES) or 1
    return list(losses[::-1][::every][::-1])


def last_line(log: Path) -> str:
    """The last line that a command wrote, which says why it failed."""
    with log.open("rb") as file:
        lines = deque((line for line in file if line.strip()), maxlen=1)
    text = " ".join(lines[0].decode(errors="replace").split()) if lines else ""
    return text.removeprefix("error: ")[:_SHOWN_MESSAGE]
