"""`labelwise compare`: several methods on the same data, the same labels and the same seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwise import datasets, methods
from labelwise.configuration import option_names
from labelwise.errors import UserError
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.progress import console
from labelwise.reports.compare_page import comparison_csv, comparison_markdown, write_compare_report
from labelwise.runs import read_json
from labelwise.saved import load_model
from labelwise.scoring import write_prediction_sheet
from labelwise.supervision import Supervision
from labelwise.verbs.preparation import broken_ids, labelled_ids, prepare_method
from labelwise.verbs.train import run_name, train


def compare(
    names: Sequence[str],
    *,
    data: Path,
    labels: Sequence[str] = ("masks:all",),
    seeds: int = 3,
    preset: str | None = None,
    out: Path | None = None,
    split: str = "train",
    val_split: str = "val",
    skip_broken: bool = False,
    options: Mapping[str, Any] | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Train every method on every label specification and seed, and compare the scores.

    Runs with the same seed see the same labelled images, so differences are paired. A comparison that was cut
    continues when the same call is made again.

    Args:
        names: methods; the first is the baseline of the differences.
        data: the data set's folder.
        labels: one or several label specifications.
        seeds: seeds 0 to N-1.
        preset: of every method: `mini`, `small`, `paper` or a file.
        out: the folder of runs, table, plot and page.
        split: the split to learn from.
        val_split: the split to score on.
        skip_broken: leave out images with broken files instead of stopping.
        options: options for every method that has them, or `method.option` for one.
        hardware: where and how fast to compute.

    Returns:
        The comparison as `comparison.json` holds it, with `report`, the page's path.

    Raises:
        UserError: the call or the data is wrong; nothing has been trained.
    """
    hardware, options = hardware or Hardware(), options or {}
    per_method = {name: _options_of(name, names, options) for name in names}
    for name in names:
        prepare_method(name, preset, per_method[name])
    for spec in labels:
        Supervision.parse(spec)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    folder = Path(out) if out else Path("runs") / f"compare-{'-'.join(names)}-{Path(data).resolve().name}"
    _refuse_other_content(folder)
    runs = []
    for spec in labels:
        for seed in range(seeds):
            for name in names:
                run = folder / "runs" / run_name(name, Path(data), spec, seed)
                call = {"data": Path(data), "labels": spec, "preset": preset, "out": run, "split": split}
                call |= {"val_split": val_split, "seed": seed, "skip_broken": skip_broken}
                result = _trained(name, call, per_method[name], hardware)
                runs.append(_entry(name, spec, seed, result, run, folder))
    comparison = {
        "data": str(data),
        "split": val_split,
        "task": methods.load(names[0]).card.task,
        "metric": "miou",
        "labels": list(labels),
        "methods": list(names),
        "baseline": names[0],
        "preset": preset,
        "seeds": seeds,
        "command": ["labelwise", *sys.argv[1:]],
        "runs": runs,
    }
    return _written(folder, comparison, Path(data), val_split, skip_broken)


def _options_of(name: str, names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options meant for one method: `option` where the method has it, `method.option` always."""
    known = {other: option_names(methods.load(other)) for other in names}
    chosen = {}
    for key, value in options.items():
        method, _, option = key.rpartition(".")
        if method and method not in names:
            raise UserError(f"--option {key}: '{method}' is not among the methods compared ({', '.join(names)})")
        if method == name or (not method and option in known[name]):
            chosen[option] = value
        elif not method and not any(option in names_of for names_of in known.values()):
            raise UserError(f"--option {key}: none of {', '.join(names)} has an option '{option}'")
    return chosen


def _refuse_other_content(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "runs").is_dir()):
        raise UserError(f"--out {folder}: holds something else than a comparison; name a new or empty folder")


def _trained(name: str, call: Mapping[str, Any], options: Mapping[str, Any], hardware: Hardware) -> dict[str, Any]:
    if hardware.world == 1:
        return train(name, hardware=hardware, **call, **options)
    # Lightning starts the further processes of a run by repeating the whole command, which must then be one `train`.
    placed = {"devices": hardware.devices, "nodes": hardware.nodes, "strategy": hardware.strategy}
    flags: dict[str, Any] = {**placed, **call, **options}
    words = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items() if value not in (None, False)]
    code = subprocess.run([sys.executable, "-m", "labelwise", "train", name, *words], check=False).returncode
    if code:
        raise UserError(f"labelwise train {name} {' '.join(words)}: ended with exit code {code}")
    return read_json(call["out"] / "results.json")


def _entry(name: str, spec: str, seed: int, result: Mapping[str, Any], run: Path, folder: Path) -> dict[str, Any]:
    kept = ("iou", "pixel_accuracy", "boundary_iou", "seconds", "steps", "peak_memory_mb", "labeled", "unlabeled")
    entry = {"method": name, "labels": spec, "seed": seed, "score": result["miou"]}
    return entry | {key: result.get(key) for key in kept} | {"folder": str(run.relative_to(folder))}


def _written(folder: Path, comparison: dict[str, Any], data: Path, split: str, skip_broken: bool) -> dict[str, Any]:
    first = {
        run["method"]: load_model(folder / run["folder"])
        for run in comparison["runs"]
        if run["seed"] == 0 and run["labels"] == comparison["labels"][0]
    }
    dataset = datasets.open(data)
    kinds = next(iter(first.values())).card.gives
    ids = labelled_ids(dataset, split, kinds)
    broken = broken_ids(dataset, dict.fromkeys(ids, kinds), skip_broken)
    shown = [id for id in ids if id not in broken]
    write_prediction_sheet(first, dataset, shown, folder / "pictures" / "side_by_side.png")
    atomic_write(folder / "comparison.json", json.dumps(comparison, indent=2))
    atomic_write(folder / "table.csv", comparison_csv(comparison))
    atomic_write(folder / "table.md", comparison_markdown(comparison))
    page = write_compare_report(folder, comparison)
    console.print(f"pictures and details: {page}")
    return comparison | {"report": str(page)}
