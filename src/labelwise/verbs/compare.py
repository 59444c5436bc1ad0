"""`labelwise compare`: several methods on the same data, the same labels and the same seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labelwise import datasets, methods
from labelwise.configuration import option_names
from labelwise.errors import UserError, did_you_mean
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.reports.compare_page import comparison_csv, comparison_markdown, write_compare_report
from labelwise.runs import differences, flatten, read_json
from labelwise.saved import load_model
from labelwise.scoring import write_prediction_sheet
from labelwise.verbs.preparation import (
    broken_ids,
    labelled_ids,
    prepare_material,
    prepare_method,
    usable,
)
from labelwise.verbs.train import run_name, train

COMPARISON = "comparison.json"
"""The file of a comparison's settings, runs and scores."""


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
    continues when the same call is made again; a call with other methods, labels or seeds extends it.

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
    hardware, options, data = hardware or Hardware(), options or {}, Path(data)
    _refuse_repetitions(names, labels, seeds)
    per_method = {name: _options_of(name, names, options) for name in names}
    prepared = {name: prepare_method(name, preset, per_method[name]) for name in names}
    settings: dict[str, Any] = {
        "data": str(data.resolve()),
        "split": val_split,
        "train_split": split,
        "skip_broken": skip_broken,
        "precision": hardware.resolved_precision(),
        "options": {name: asdict(config) for name, (_, config) in prepared.items()},
    }
    folder = Path(out) if out else Path("runs") / f"compare-{'-'.join(names)}-{data.resolve().name}"
    before = _before(folder, settings)
    for method, _ in prepared.values():
        for spec in labels:
            prepare_material(method, data, spec, split, val_split, 0, skip_broken)
    shown = _pictured_ids(names[0], data, val_split, skip_broken)
    runs = []
    for spec, seed, name in _combinations(names, labels, seeds):
        run = folder / "runs" / run_name(name, data, spec, seed)
        call = {"data": data, "labels": spec, "preset": preset, "out": run, "split": split}
        call |= {"val_split": val_split, "seed": seed, "skip_broken": skip_broken}
        result = _trained(name, call, per_method[name], hardware)
        runs.append(_entry(name, spec, seed, result, run, folder))
    comparison = settings | {
        "options": before.get("options", {}) | settings["options"],
        "preset": preset,
        "task": methods.load(names[0]).card.task,
        "metric": "miou",
        "labels": list(dict.fromkeys([*before.get("labels", ()), *labels])),
        "methods": list(dict.fromkeys([*names, *before.get("methods", ())])),
        "baseline": names[0],
        "seeds": max(seeds, before.get("seeds", 0)),
        "command": ["labelwise", *sys.argv[1:]],
        "runs": _extended(before.get("runs", ()), runs),
    }
    return _written(folder, comparison, data, shown)


def _combinations(names: Sequence[str], labels: Sequence[str], seeds: int) -> Iterator[tuple[str, int, str]]:
    return ((spec, seed, name) for spec in labels for seed in range(seeds) for name in names)


def _refuse_repetitions(names: Sequence[str], labels: Sequence[str], seeds: int) -> None:
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    for what, words in (("METHOD", names), ("--labels", labels)):
        twice = next((word for word in words if list(words).count(word) > 1), None)
        if twice is not None:
            raise UserError(f"{what} {twice}: given twice; give it once")


def _options_of(name: str, names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options meant for one method: `option` where the method has it, `method.option` always."""
    known = {other: option_names(methods.load(other)) for other in names}
    chosen = {}
    for key, value in options.items():
        method, _, option = key.rpartition(".")
        if method and method not in names:
            raise UserError(f"--option {key}: '{method}' is not among the methods compared ({', '.join(names)})")
        having = [other for other in ([method] if method else names) if option in known[other]]
        if not having:
            every = sorted({option for options_of in known.values() for option in options_of})
            whom = (
                f"none of {', '.join(names)} has an" if not method and len(names) > 1 else f"'{method or name}' has no"
            )
            raise UserError(f"--option {key}: {whom} option '{option}'{did_you_mean(option, every)}")
        if name in having:
            chosen[option] = value
    return chosen


def _before(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison that the folder holds already; empty if there is none.

    Raises:
        UserError: the folder holds something else, or a comparison with other settings.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "runs").is_dir()):
        raise UserError(f"--out {folder}: holds something else than a comparison; name a new or empty folder")
    before = read_json(folder / COMPARISON)
    then, now = flatten(before), flatten(json.loads(json.dumps(settings)))
    # Options of methods that only one of the two comparisons has are no difference.
    shared = [key for key in now if key in then]
    changes = differences({key: then[key] for key in shared}, {key: now[key] for key in shared})
    if changes:
        raise UserError(
            f"--out {folder}: holds a comparison with other settings ({'; '.join(changes)}); name another folder"
        )
    return before


def _pictured_ids(name: str, data: Path, split: str, skip_broken: bool) -> list[str]:
    """The images to score and show.

    Raises:
        UserError: there is none.
    """
    dataset = datasets.open(data)
    kinds = methods.load(name).card.gives
    ids = labelled_ids(dataset, split, kinds)
    return usable(ids, broken_ids(dataset, dict.fromkeys(ids, kinds), skip_broken), f"split '{split}' of {data}")


def _trained(name: str, call: Mapping[str, Any], options: Mapping[str, Any], hardware: Hardware) -> dict[str, Any]:
    if hardware.world == 1:
        return train(name, hardware=hardware, **call, **options)
    # Lightning starts the further processes of a run by repeating the whole command, which must then be one `train`.
    words = _as_words({**asdict(hardware), **call, **options})
    subprocess.run([sys.executable, "-m", "labelwise", "train", name, *words], check=True, stdout=subprocess.DEVNULL)
    return read_json(call["out"] / "results.json")


def _as_words(options: Mapping[str, Any]) -> list[str]:
    """Options as the shell takes them; None is left out."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={value}")
    return words


def _entry(name: str, spec: str, seed: int, result: Mapping[str, Any], run: Path, folder: Path) -> dict[str, Any]:
    kept = ("iou", "pixel_accuracy", "boundary_iou", "seconds", "steps", "peak_memory_mb", "labeled", "unlabeled")
    entry = {"method": name, "labels": spec, "seed": seed, "score": result["miou"]}
    return entry | {key: result.get(key) for key in kept} | {"folder": run.relative_to(folder).as_posix()}


def _extended(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs of both; those of now count where both have one."""
    runs = {(run["labels"], run["seed"], run["method"]): run for run in [*before, *now]}
    return list(runs.values())


def _written(folder: Path, comparison: dict[str, Any], data: Path, shown: Sequence[str]) -> dict[str, Any]:
    first = {
        run["method"]: load_model(folder / run["folder"])
        for run in comparison["runs"]
        if run["seed"] == 0 and run["labels"] == comparison["labels"][0]
    }
    write_prediction_sheet(first, datasets.open(data), shown, folder / "pictures" / "side_by_side.png")
    atomic_write(folder / COMPARISON, json.dumps(comparison, indent=2))
    atomic_write(folder / "table.csv", comparison_csv(comparison))
    atomic_write(folder / "table.md", comparison_markdown(comparison))
    page = write_compare_report(folder, comparison)
    return comparison | {"report": str(page)}
