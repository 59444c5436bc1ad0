"""`labelwise compare`: several methods on the same data, the same labels and the same seeds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labelwise import datasets, methods
from labelwise.configuration import option_names
from labelwise.costs import annotation_minutes, cost_table, count_annotations, drawn_kinds, sure_costs
from labelwise.datasets.base import DataSet
from labelwise.datasets.journal import measured_costs
from labelwise.errors import UserError, did_you_mean, require_at_least
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.method import Card, Method
from labelwise.reports.compare_page import comparison_csv, comparison_markdown, write_compare_report
from labelwise.runs import differences, flatten, read_json
from labelwise.samples import Kind
from labelwise.saved import load_model
from labelwise.scoring import write_prediction_sheet
from labelwise.supervision import Supervision
from labelwise.tasks.few_masks import FewMasksMethod
from labelwise.verbs.preparation import (
    broken_ids,
    checked_index,
    labelled_ids,
    prepare_material,
    prepare_method,
    usable,
)
from labelwise.verbs.train import run_name, train_anywhere

COMPARISON = "comparison.json"
"""The file of a comparison's settings, runs and scores."""


@dataclass(frozen=True)
class Form:
    """A method as it is compared.

    Attributes:
        method: a name that `labelwise methods` lists.
        options: options of this form alone; they win over all others.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


def compare(
    names: Sequence[str],
    *,
    data: Path,
    labels: Sequence[str] | None = None,
    seeds: int = 3,
    preset: str | None = None,
    out: Path | None = None,
    split: str = "train",
    val_split: str = "val",
    skip_broken: bool = False,
    monitor: int = 0,
    options: Mapping[str, Any] | None = None,
    forms: Mapping[str, Form] | None = None,
    costs: Mapping[str, float] | None = None,
    metric: str | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Train every method on every label specification and seed, and compare the scores.

    Runs with the same seed see the same labelled images, so differences are paired. A comparison that was cut
    continues when the same call is made again; a call with other methods, labels or seeds extends it. Other costs
    train nothing anew.

    Args:
        names: methods, or names of `forms`; the first is the baseline of the differences.
        data: the data set's folder.
        labels: one or several label specifications; every label of the kind that the first method needs unless given.
        seeds: seeds 0 to N-1.
        preset: of every method: `mini`, `small`, `paper` or a file.
        out: the folder of runs, table, plot and page.
        split: the split to learn from.
        val_split: the split to score on.
        skip_broken: leave out images with broken files instead of stopping.
        monitor: see `train`; for the methods that make pseudo-labels.
        options: options for every method that has them, or `method.option` for one.
        forms: methods with options of their own, under the names by which tables and pictures tell them apart, so
            that a method can be compared with itself; `{"fcn, stride 32": Form("fcn", {"stride": 32})}`.
        costs: kind of label -> seconds of annotation, instead of those measured when the data set was labelled in the
            browser, or else the published ones (`labelwise.costs`).
        metric: what to compare by, as `evaluate --json` names it, instead of the task's main score.
        hardware: where and how fast to compute.

    Returns:
        The comparison as `comparison.json` holds it, with `report`, the page's path.

    Raises:
        UserError: the call or the data is wrong; nothing has been trained.
    """
    hardware, options, data = hardware or Hardware(), options or {}, Path(data)
    _refuse_repetitions(names, labels or (), seeds)
    measured = sure_costs(measured_costs(datasets.open(data).root))
    seconds = cost_table(costs or {}, measured)
    compared = {name: (forms or {}).get(name, Form(name)) for name in names}
    per_form = options_of_forms(compared, options)
    prepared = {name: prepare_method(form.method, preset, per_form[name]) for name, form in compared.items()}
    settings: dict[str, Any] = {
        "data": str(data.resolve()),
        "split": val_split,
        "train_split": split,
        "skip_broken": skip_broken,
        "precision": hardware.resolved_precision(),
        "options": {name: asdict(config) for name, (_, config) in prepared.items()},
    }
    card = _common_task({name: method for name, (method, _) in prepared.items()})
    metric = metric or card.main_score.key
    labels = labels or (card.needs.all_labels,)
    monitors = _monitors({name: method for name, (method, _) in prepared.items()}, monitor)
    folder = Path(out) if out else Path("runs") / f"compare-{'-'.join(names)}-{data.resolve().name}"
    before = _before(folder, settings)
    for method, config in prepared.values():
        for spec in labels:
            ood = getattr(config, "ood", "")
            prepare_material(method, data, spec, split, val_split, 0, skip_broken, ood)
    shown = _pictured_ids(prepared[names[0]][0], data, val_split, skip_broken)
    runs = []
    for spec, seed, name in _combinations(names, labels, seeds):
        run = folder / "runs" / run_name("-".join(re.findall(r"[\w.+-]+", name)), data, spec, seed)
        call = {"data": data, "labels": spec, "preset": preset, "out": run, "split": split}
        call |= {"val_split": val_split, "seed": seed, "skip_broken": skip_broken, "monitor": monitors[name]}
        result = train_anywhere(compared[name].method, call, per_form[name], hardware)
        entry = {"method": name, "labels": spec, "seed": seed, "score": _score(result, metric, data, val_split)}
        runs.append(entry | _measured(result) | {"folder": run.relative_to(folder).as_posix()})
    comparison = settings | {
        "options": before.get("options", {}) | settings["options"],
        "preset": preset,
        "task": card.task,
        "metric": metric,
        "labels": list(dict.fromkeys([*before.get("labels", ()), *labels])),
        "methods": list(dict.fromkeys([*names, *before.get("methods", ())])),
        "baseline": names[0],
        "seeds": max(seeds, before.get("seeds", 0)),
        "costs": seconds,
        "measured_costs": measured,
        "command": ["labelwise", *sys.argv[1:]],
        "runs": _with_minutes(_extended(before.get("runs", ()), runs), folder, data, split, seconds),
    }
    return _written(folder, comparison, data, shown)


def _score(result: Mapping[str, Any], metric: str, data: Path, split: str) -> float:
    """The score that runs are compared by.

    Raises:
        UserError: the labels of the split did not allow it.
    """
    value = result.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"--data {data}: the labels of split '{split}' give no {metric}; take a split with masks")
    return float(value)


def _combinations(names: Sequence[str], labels: Sequence[str], seeds: int) -> Iterator[tuple[str, int, str]]:
    return ((spec, seed, name) for spec in labels for seed in range(seeds) for name in names)


def _refuse_repetitions(names: Sequence[str], labels: Sequence[str], seeds: int) -> None:
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    for what, words in (("METHOD", names), ("--labels", labels)):
        twice = next((word for word in words if list(words).count(word) > 1), None)
        if twice is not None:
            raise UserError(f"{what} {twice}: given twice; give it once")


def _common_task(compared: Mapping[str, type[Method]]) -> Card:
    """The card of the first method, whose task all must have.

    Raises:
        UserError: names the first method of another task.
    """
    (first, card), *others = ((name, method.card) for name, method in compared.items())
    for name, other in others:
        if other.task != card.task:
            raise UserError(f"METHOD {name}: does {other.task}, but '{first}' {card.task}; compare methods of one task")
    return card


def _monitors(compared: Mapping[str, type[Method]], monitor: int) -> dict[str, int]:
    """The images that each method's runs monitor; none for methods without pseudo-labels."""
    require_at_least("monitor", monitor, 0)
    monitors = {name: monitor * issubclass(method, FewMasksMethod) for name, method in compared.items()}
    if monitor and not any(monitors.values()):
        raise UserError(f"--monitor {monitor}: none of {', '.join(compared)} makes pseudo-labels; leave it out")
    return monitors


def options_of_forms(forms: Mapping[str, Form], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each form: those meant for its method, and its own, which win."""
    called = list(dict.fromkeys(form.method for form in forms.values()))
    return {name: _options_of(form.method, called, options) | dict(form.options) for name, form in forms.items()}


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


def _pictured_ids(method: type[Method], data: Path, split: str, skip_broken: bool) -> list[str]:
    """The images to score and show.

    Raises:
        UserError: there is none.
    """
    dataset = datasets.open(data)
    kinds = method.card.truth.required
    ids = labelled_ids(dataset, split, kinds)
    return usable(ids, broken_ids(dataset, dict.fromkeys(ids, kinds), skip_broken), f"split '{split}' of {data}")


def _measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison keeps of a run's results beside its main score."""
    scores = ("iou", "ap", "pixel_accuracy", "boundary_iou", "top1", "top5")
    costs = ("seconds", "steps", "peak_memory_mb", "labeled", "unlabeled")
    return {key: result[key] for key in scores if key in result} | {key: result.get(key) for key in costs}


def _extended(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs of both; those of now count where both have one."""
    runs = {(run["labels"], run["seed"], run["method"]): run for run in [*before, *now]}
    return list(runs.values())


def _with_minutes(
    runs: Sequence[Mapping[str, Any]], folder: Path, data: Path, split: str, costs: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The runs with the number of annotations that they learned from, and the minutes that these take."""
    dataset = datasets.open(data)
    found: dict[tuple[str, int], dict[str, int]] = {}
    costed = []
    for run in runs:
        key = (run["labels"], run["seed"])
        if key not in found:
            skipped = read_json(folder / run["folder"] / "results.json").get("skipped", ())
            found[key] = run.get("annotations") or _annotations(dataset, *key, split, skipped)
        minutes = round(annotation_minutes(found[key], costs), 2)
        costed.append({**run, "annotations": found[key], "annotation_minutes": minutes})
    return costed


def _annotations(dataset: DataSet, spec: str, seed: int, split: str, skipped: Sequence[str]) -> dict[str, int]:
    """The annotations that a label specification stands for; objects are counted as boxes in the checked index."""
    supervision = Supervision.parse(spec)
    dataset = supervision.view(dataset)
    streams = supervision.streams(dataset, split, seed)
    drawn = drawn_kinds(streams, skipped)
    boxed = {id: frozenset({Kind.BOXES}) for id, kinds in drawn.items() if kinds & {Kind.BOXES, Kind.INSTANCES}}
    index = checked_index(dataset, boxed) if boxed else None
    objects = {id: len(index.boxes(id)[0]) for id in boxed} if index is not None else {}
    clicked = [id for id, kinds in drawn.items() if Kind.POINTS in kinds]
    clicks = {id: streams.points_per_image or _points(dataset, id) for id in clicked}
    return count_annotations(drawn, objects, clicks)


def _points(dataset: DataSet, id: str) -> int:
    points = dataset.read(id, (Kind.POINTS,)).points
    return 0 if points is None else len(points)


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
