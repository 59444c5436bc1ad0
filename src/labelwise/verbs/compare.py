"""`labelwise compare`: several methods on the same data, the same labels and the same seeds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from labelwise import datasets
from labelwise.costs import annotation_minutes, cost_table, count_annotations, drawn_kinds, sure_costs
from labelwise.datasets.base import DataSet
from labelwise.datasets.journal import measured_costs
from labelwise.errors import UserError, require_at_least
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.method import Card
from labelwise.reports.compare_page import comparison_csv, comparison_markdown, write_compare_report
from labelwise.runs import differences, flatten, read_json
from labelwise.samples import Kind
from labelwise.saved import load_model
from labelwise.scoring import write_prediction_sheet
from labelwise.supervision import Supervision
from labelwise.verbs.compared import Compared, Form, Setting, load_compared
from labelwise.verbs.compared import options_of_forms as options_of_forms
from labelwise.verbs.preparation import broken_ids, checked_index, labelled_ids, usable
from labelwise.verbs.train import run_name

COMPARISON = "comparison.json"
"""The file of a comparison's settings, runs and scores."""


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
    """Train every method on every label specification that it fits and every seed, and compare the scores.

    Runs with the same seed see the same labelled images, so differences are paired. A comparison that was cut
    continues when the same call is made again; a call with other methods, labels or seeds extends it. Other costs
    train nothing anew.

    Args:
        names: methods, names of `forms`, or recipes as `run` takes them, which fit the labels that their own stages
            learn from; the first is the baseline of the differences.
        data: the data set's folder.
        labels: one or several label specifications; every label of the kind that the first method needs unless given.
        seeds: seeds 0 to N-1.
        preset: of every method: `mini`, `small`, `paper` or a file.
        out: the folder of runs, table, plot and page.
        split: the split to learn from.
        val_split: the split to score on.
        skip_broken: leave out images with broken files instead of stopping.
        monitor: see `train`; for the methods that make pseudo-labels.
        options: options for every method that has them, or `method.option` for one; of a recipe for every stage that
            has them, or `recipe.stage.option` for one.
        forms: methods with options of their own, under the names by which tables and pictures tell them apart, so
            that a method can be compared with itself; `{"fcn, stride 32": Form("fcn", {"stride": 32})}`.
        costs: kind of label -> seconds of annotation, instead of those measured when the data set was labelled in the
            browser, or else the published ones (`labelwise.costs`).
        metric: what to compare by, as `evaluate --json` names it, instead of the task's main score.
        hardware: where and how fast to compute.

    Returns:
        The comparison as `comparison.json` holds it, with `report`, the page's path.

    Raises:
        UserError: the call or the data is wrong, a method fits none of the labels, or no method fits some of them;
            nothing has been trained.
    """
    hardware, data = hardware or Hardware(), Path(data)
    _refuse_repetitions(names, labels or (), seeds)
    measured = sure_costs(measured_costs(datasets.open(data).root))
    seconds = cost_table(costs or {}, measured)
    setting = Setting(data, split, val_split, skip_broken, preset, monitor, hardware)
    compared = load_compared(names, forms or {}, options or {}, setting)
    names = list(compared)
    settings: dict[str, Any] = {
        "data": str(data.resolve()),
        "split": val_split,
        "train_split": split,
        "skip_broken": skip_broken,
        "precision": hardware.resolved_precision(),
        "options": {name: each.settings for name, each in compared.items()},
    }
    card = _common_task(compared)
    metric = metric or card.main_score.key
    labels = labels or (compared[names[0]].labels,)
    _refuse_monitor(compared, monitor)
    folder = Path(out) if out else Path("runs") / f"compare-{'-'.join(names)}-{data.resolve().name}"
    before = _before(folder, settings)
    fitting = _fitting(compared, labels)
    for spec, each in fitting:
        each.check(spec)
    shown = _pictured_ids(card, data, val_split, skip_broken)
    runs = []
    for spec, seed in product(labels, range(seeds)):
        for each in (each for fitted, each in fitting if fitted == spec):
            run = folder / "runs" / run_name("-".join(re.findall(r"[\w.+-]+", each.name)), data, spec, seed)
            trained = each.train(spec, seed, run)
            score = _score(trained.results, metric, data, val_split)
            entry = {"method": each.name, "labels": spec, "seed": seed, "score": score}
            runs.append(entry | _measured(trained.results) | _places(folder, run, trained.model))
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


def _refuse_repetitions(names: Sequence[str], labels: Sequence[str], seeds: int) -> None:
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    for what, words in (("METHOD", names), ("--labels", labels)):
        twice = next((word for word in words if list(words).count(word) > 1), None)
        if twice is not None:
            raise UserError(f"{what} {twice}: given twice; give it once")


def _common_task(compared: Mapping[str, Compared]) -> Card:
    """The card of the first method, whose task all must have.

    Raises:
        UserError: names the first method of another task.
    """
    (first, card), *others = ((name, each.card) for name, each in compared.items())
    for name, other in others:
        if other.task != card.task:
            raise UserError(f"METHOD {name}: does {other.task}, but '{first}' {card.task}; compare methods of one task")
    return card


def _refuse_monitor(compared: Mapping[str, Compared], monitor: int) -> None:
    """Refuse to monitor where nothing makes pseudo-labels."""
    require_at_least("monitor", monitor, 0)
    if monitor and not any(each.makes_pseudo_labels for each in compared.values()):
        raise UserError(f"--monitor {monitor}: none of {', '.join(compared)} makes pseudo-labels; leave it out")


def _fitting(compared: Mapping[str, Compared], labels: Sequence[str]) -> list[tuple[str, Compared]]:
    """Each label specification with each method that fits it.

    Raises:
        UserError: a method fits none of the specifications, or no method fits one of them.
    """
    seen = {spec: Supervision.parse(spec) for spec in labels}
    fitting = [(spec, each) for spec in labels for each in compared.values() if each.fits(seen[spec])]
    one = 1 in (len(compared), len(labels))
    for name, each in compared.items():
        if all(other is not each for _, other in fitting):
            if one:
                each.require_fit(labels[0])
            raise UserError(
                f"METHOD {name}: learns from {each.needs}, which none of --labels {', '.join(labels)} gives; leave it "
                "out, or add such labels"
            )
    for spec in labels:
        if all(other != spec for other, _ in fitting):
            if one:
                next(iter(compared.values())).require_fit(spec)
            raise UserError(
                f"--labels {spec}: none of {', '.join(compared)} learns from it; leave it out, or add a method that "
                f"`labelwise methods --labels {spec}` lists"
            )
    return fitting


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


def _pictured_ids(card: Card, data: Path, split: str, skip_broken: bool) -> list[str]:
    """The images to score and show.

    Raises:
        UserError: there is none.
    """
    dataset = datasets.open(data)
    kinds = card.truth.required
    ids = labelled_ids(dataset, split, kinds)
    return usable(ids, broken_ids(dataset, dict.fromkeys(ids, kinds), skip_broken), f"split '{split}' of {data}")


def _measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison keeps of a run's results beside its main score."""
    scores = ("iou", "ap", "pixel_accuracy", "boundary_iou", "top1", "top5")
    costs = ("seconds", "steps", "peak_memory_mb", "labeled", "unlabeled")
    return {key: result[key] for key in scores if key in result} | {key: result.get(key) for key in costs}


def _places(folder: Path, run: Path, model: Path) -> dict[str, str]:
    """Where a run lies within a comparison's folder, and its model, if that lies deeper."""
    places = {"folder": run.relative_to(folder).as_posix()}
    return places if model == run else places | {"model": model.relative_to(folder).as_posix()}


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
    first = {title: load_model(folder / model) for title, model in _pictured_models(comparison).items()}
    write_prediction_sheet(first, datasets.open(data), shown, folder / "pictures" / "side_by_side.png")
    atomic_write(folder / COMPARISON, json.dumps(comparison, indent=2))
    atomic_write(folder / "table.csv", comparison_csv(comparison))
    atomic_write(folder / "table.md", comparison_markdown(comparison))
    page = write_compare_report(folder, comparison)
    return comparison | {"report": str(page)}


def _pictured_models(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Title -> the model of each method's first seed, with the first of the labels on which it was run."""
    place = {spec: number for number, spec in enumerate(comparison["labels"])}
    first: dict[str, Mapping[str, Any]] = {}
    for run in sorted((run for run in comparison["runs"] if run["seed"] == 0), key=lambda run: place[run["labels"]]):
        first.setdefault(run["method"], run)
    same = len({run["labels"] for run in first.values()}) == 1
    return {
        name if same else f"{name}, {run['labels']}": run.get("model", run["folder"]) for name, run in first.items()
    }
