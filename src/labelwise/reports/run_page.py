"""The report of one run: what it scored, how it learned, what it sees, and how to do it again."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from PIL import Image

from labelwise.errors import BadFile, Problem
from labelwise.reports.curves import Curve, line_chart
from labelwise.reports.detection_page import detection_section
from labelwise.reports.page import count, duration, flattened, is_number, memory, render, score, write_text
from labelwise.reports.pictures import png_data_uri
from labelwise.reports.pseudo_labels_page import (
    is_pseudo_label_column,
    lowest,
    per_class,
    pseudo_label_picture,
    pseudo_labels_section,
)
from labelwise.reports.rounds import ROUNDS, rounds_section

PAGE = "report.html"
"""The name of the page in its folder."""
SCORE_NAMES = {
    "miou": "mean IoU",
    "best_miou": "best mean IoU on the way",
    "miou_teacher": "mean IoU of the teacher",
    "miou_ensemble": "mean IoU of both networks",
    "map": "mean average precision",
    "best_map": "best mean average precision on the way",
    "map_voc07": "mean AP at 11 recalls",
    "map_area": "mean AP as area",
    "map_70": "mean AP at an overlap of 0.7",
    "coco_ap": "COCO AP",
    "coco_ap50": "COCO AP at 0.5",
    "coco_ap75": "COCO AP at 0.75",
    "corloc": "mean CorLoc",
    "corloc_of_classes": "CorLoc",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "boundary_iou": "boundary IoU",
    "iou": "IoU",
    "ap": "average precision",
    "seed_miou": "seed mean IoU",
    "best_seed_miou": "best seed mean IoU on the way",
    "seed_false_positive": "over-activation of seeds",
    "seed_false_negative": "under-activation of seeds",
    "seed_iou": "seed IoU",
    "false_positive": "over-activation",
    "false_negative": "under-activation",
    "gt_known": "GT-known localisation",
    "top1_localization": "top-1 localisation",
    "top5_localization": "top-5 localisation",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    "pxap": "PxAP",
    "peak_iou": "peak IoU",
}
"""How the keys of a result are written out."""

_FILES = (
    "config.yaml",
    "environment.json",
    "status.json",
    "metrics.csv",
    "monitor.csv",
    "results.json",
    ROUNDS,
    "model.safetensors",
)
_BADGES = ("data", "backbone", "preset", "scale", "seed", "steps", "batch_size")
_POINTS = 240


def write_run_report(folder: Path) -> Path:
    """Write `report.html` of a run folder from the files that are there.

    Read are `config.yaml`, `environment.json`, `status.json`, `metrics.csv`, `monitor.csv`, `results.json`,
    `rounds.json` and `pictures/*.png`; what is missing is left out.

    Args:
        folder: the run folder.

    Returns:
        the page's path.

    Raises:
        BadFile: one of the files cannot be read as what its name says.
    """
    configuration = _mapping(folder / "config.yaml")
    environment = _mapping(folder / "environment.json")
    status = _mapping(folder / "status.json")
    results = _mapping(folder / "results.json")
    tables = (folder / name for name in ("metrics.csv", "monitor.csv"))
    curves = {name: curve for table in tables if table.is_file() for name, curve in read_metrics(table).items()}
    sheet = pseudo_label_picture(folder)
    columns, classes = _class_table(results)
    page = render(
        "run.html",
        title=_title(folder, configuration),
        badges=_badges(configuration, status),
        tiles=_tiles(results, status, environment),
        protocol=results.get("protocol"),
        notes=_notes(status, results),
        pictures=[picture_content(path) for path in sorted(folder.glob("pictures/*.png")) if path != sheet],
        charts=_charts({name: curve for name, curve in curves.items() if not is_pseudo_label_column(name)}),
        pseudo_labels=pseudo_labels_section(curves, _total_steps(status, curves), _chart),
        pseudo_label_picture=picture_content(sheet) if sheet else None,
        detection=detection_section(results, SCORE_NAMES),
        rounds=rounds_section(_mapping(folder / ROUNDS), SCORE_NAMES),
        columns=columns,
        classes=classes,
        has_absent=any(None in row["values"] for row in classes),
        command=_command(environment, status, configuration),
        configuration=flattened(configuration),
        environment=flattened(environment),
        status=flattened(status),
        files=[(name, _size(folder / name)) for name in _FILES if (folder / name).is_file()],
    )
    return write_text(folder / PAGE, page)


def read_metrics(path: Path) -> dict[str, Curve]:
    """The columns of a `metrics.csv` as curves over the step; empty cells and non-finite values are left out.

    Raises:
        BadFile: there is no column `step`, or a cell is not a number.
    """
    points: dict[str, tuple[list[float], list[float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = float(row.pop("step"))
                for name, cell in row.items():
                    if name and cell and is_number(value := float(cell)):
                        steps, values = points.setdefault(name, ([], []))
                        steps.append(step)
                        values.append(value)
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise BadFile(Problem(path, f"not a table of numbers over steps ({error})", "delete it")) from error
    return dict(points)


def read_pictures(folder: Path) -> list[dict[str, Any]]:
    """The PNG files of a folder, in the order of their names, as content of a page.

    Raises:
        BadFile: a file is not a PNG.
    """
    return [picture_content(path) for path in sorted(folder.glob("*.png"))]


def picture_content(path: Path) -> dict[str, Any]:
    """A PNG file as content of a page; its name is the caption.

    Raises:
        BadFile: the file is not a PNG.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            width, height = picture.size
    except (OSError, Image.DecompressionBombError) as error:
        raise BadFile(Problem(path, f"not a PNG ({error})", "delete it")) from error
    return {"uri": png_data_uri(path), "caption": path.stem.replace("_", " "), "width": width, "height": height}


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(Problem(path, f"not readable ({reason})", "restore it or delete it")) from error
    if not isinstance(content, Mapping):
        raise BadFile(Problem(path, "does not hold names and values", "restore it or delete it"))
    return {str(name): value for name, value in content.items()}


def _title(folder: Path, configuration: Mapping[str, Any]) -> str:
    method, labels = configuration.get("method"), configuration.get("labels")
    if isinstance(method, str):
        return f"{method} on {labels}" if isinstance(labels, str) else method
    return folder.resolve().name


def _badges(configuration: Mapping[str, Any], status: Mapping[str, Any]) -> list[dict[str, str]]:
    state = status.get("status")
    tone = {"finished": "good", "running": ""}.get(str(state), "bad")
    badges = [{"text": str(state), "tone": tone}] if state else []
    shown = {name.rpartition(".")[2]: value for name, value in flattened(configuration)}
    return badges + [
        {"text": f"{name.replace('_', ' ')} {shown[name]}", "tone": ""} for name in _BADGES if name in shown
    ]


def _tiles(*sources: Mapping[str, Any]) -> list[dict[str, str]]:
    results, status, environment = sources
    percent = [
        {"name": SCORE_NAMES[name], "value": score(results[name]), "unit": "%"}
        for name in SCORE_NAMES
        if is_number(results.get(name))
    ]
    counts = [
        {"name": name, "value": count(results[name]), "unit": ""}
        for name in results
        if name not in SCORE_NAMES and is_number(results[name])
    ]
    known = {**environment, **status}
    costs = [
        {"name": label, "value": written(known[name]), "unit": ""}
        for name, label, written in (
            ("step", "steps done", count),
            ("seconds", "wall time", duration),
            ("peak_memory_mb", "peak memory", memory),
        )
        if is_number(known.get(name))
    ]
    return [*percent, *({**tile, "name": tile["name"].replace("_", " ")} for tile in counts), *costs]


def _notes(status: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    notes = []
    step, steps = status.get("step"), status.get("steps")
    if is_number(step) and is_number(steps) and step < steps:
        notes.append(f"This run is not finished: {count(step)} of {count(steps)} steps.")
    if status.get("reason"):
        notes.append(str(status["reason"]))
    if is_number(skipped := results.get("skipped")) and skipped:
        notes.append(f"{count(skipped)} broken files were skipped and are not part of the scores.")
    return notes


def _class_table(results: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    tables = {name: values for name, values in results.items() if isinstance(values, Mapping) and values}
    per_class = {
        name: values for name, values in tables.items() if all(v is None or is_number(v) for v in values.values())
    }
    columns = [{"title": SCORE_NAMES.get(name, name.replace("_", " "))} for name in per_class]
    names = dict.fromkeys(str(name) for values in per_class.values() for name in values)
    rows = [{"name": name, "values": [values.get(name) for values in per_class.values()]} for name in names]
    return columns, rows


def _command(*sources: Mapping[str, Any]) -> str | None:
    for source in sources:
        command = source.get("command")
        if isinstance(command, str) and command:
            return command
        if isinstance(command, Sequence) and command:
            return shlex.join(str(word) for word in command)
    return None


def _charts(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    losses = {name: curve for name, curve in curves.items() if name.removeprefix("val/").partition("/")[0] == "loss"}
    rates = {name: curve for name, curve in curves.items() if name.startswith("lr")}
    scores = {
        name: curve
        for name, curve in curves.items()
        if name.startswith("val/") and name.count("/") == 1 and name not in losses
    }
    known = {*losses, *rates, *scores}
    others = {name: curve for name, curve in curves.items() if name not in known and not name.startswith("val/")}
    val = {SCORE_NAMES.get(name.removeprefix("val/"), name): curve for name, curve in scores.items()}
    groups = [
        ("Scores on val", "percent", val, ""),
        *(
            (f"{title} of each class on val", "percent", *_class_curves(curves, f"val/{key}/"))
            for key, title in (("iou", "IoU"), ("ap", "Average precision"))
        ),
        ("Loss", "loss", {name.removeprefix("loss/"): curve for name, curve in losses.items()}, ""),
        ("Learning rate", "learning rate", rates, ""),
        *((name, name, {name: curve}, "") for name, curve in others.items()),
    ]
    return [_chart(*group) for group in groups if group[2]]


def _class_curves(curves: Mapping[str, Curve], prefix: str) -> tuple[Mapping[str, Curve], str]:
    """The curves of the classes, of many the lowest, and what the caption says of that."""
    return lowest({name: curve for name, curve in per_class(curves, prefix).items() if len(curve[1]) > 1})


def _total_steps(status: Mapping[str, Any], curves: Mapping[str, Curve]) -> float:
    """The steps of the whole training; those that there are, where nothing tells."""
    steps = status.get("steps")
    return steps if is_number(steps) else max((curve[0][-1] for curve in curves.values()), default=0)


def _chart(title: str, ylabel: str, group: Mapping[str, Curve], caption: str = "") -> dict[str, Any]:
    lines, bands, widest = {}, {}, 1
    for name, (steps, values) in group.items():
        bins = -(-len(values) // _POINTS)
        widest = max(widest, bins)
        lines[name], band = _binned(steps, values, bins)
        if bins > 1:
            bands[name] = band
    if widest > 1:
        caption = f"{caption} Line: mean of {widest} logged values; band: the smallest and largest of them.".strip()
    return {"svg": Markup(line_chart(lines, "step", ylabel, title, bands=bands)), "caption": caption}


def _binned(steps: Sequence[float], values: Sequence[float], size: int) -> tuple[Curve, Curve]:
    starts = np.arange(0, len(values), size)
    numbers = np.diff(np.append(starts, len(values)))
    y = np.asarray(values, dtype=np.float64)
    x = np.add.reduceat(np.asarray(steps, dtype=np.float64), starts) / numbers
    mean = np.add.reduceat(y, starts) / numbers
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    return (x.tolist(), mean.tolist()), (low.tolist(), high.tolist())


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size:,} bytes" if size < 1_000_000 else memory(size / 1e6)
