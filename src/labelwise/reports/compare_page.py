"""The report of a comparison: the same data, the same labels, several methods and seeds."""

from __future__ import annotations

import csv
import io
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from labelwise.costs import COSTS
from labelwise.reports.curves import bar_chart_with_points, line_chart
from labelwise.reports.page import count, interval, is_number, render, score, signed, write_text
from labelwise.reports.run_page import SCORE_NAMES, picture_content, read_pictures
from labelwise.reports.statistics import mean_interval, paired_difference
from labelwise.samples import Kind

Row = dict[str, Any]

_WIDE = 8
"""The ratio of the largest to the smallest budget above which the axis is logarithmic."""


def write_compare_report(folder: Path, comparison: Mapping[str, Any]) -> Path:
    """Write `report.html` of a comparison.

    Args:
        folder: the comparison's folder; `pictures/side_by_side.png` is shown first if it exists, further PNGs after it.
        comparison: `data`, `task`, `metric`, `labels` (specifications), `methods`, `baseline`, and `runs`, each with
            `method`, `labels`, `seed`, `score` (percent, None if the run failed), and where known `iou` or `ap` (class
            -> percent), `folder`, `seconds`, `steps`, `peak_memory_mb`, `labeled`, `unlabeled` (numbers of images),
            `annotations` (kind -> number) and `annotation_minutes`. Optional: `command`, `scale`, `split`, `notes`,
            `costs` (kind -> seconds of annotation), `measured_costs` (those of them that this data set's labels took).

    Returns:
        the page's path.
    """
    rows = comparison_table(comparison)
    page = render(
        "compare.html",
        comparison={"split": None, **comparison, "command": _command(comparison)},
        metric=metric_name(comparison),
        all_run=_all_run(comparison),
        minutes=_minutes,
        without_difference=lambda row: _without_difference(row, comparison),
        by_labels=[(spec, [row for row in rows if row["labels"] == spec]) for spec in comparison["labels"]],
        budgets=_budgets(comparison, rows),
        budget_charts=_budget_charts(comparison, rows),
        charts=_charts(comparison, rows),
        class_tables=[table for spec in comparison["labels"] if (table := _class_table(comparison, spec))],
        side_by_side=[picture_content(path) for path in [folder / "pictures" / "side_by_side.png"] if path.is_file()],
        pictures=[picture for picture in read_pictures(folder / "pictures") if picture["caption"] != "side by side"],
        runs=_runs(folder, comparison),
        notes=_notes(comparison),
    )
    return write_text(folder / "report.html", page)


def comparison_table(comparison: Mapping[str, Any]) -> list[Row]:
    """One row per label specification and method, in the order of the comparison.

    Returns:
        rows with `labels`, `method`, `seeds` (how many were scored), `mean`, `half_width` (of the 95 % interval, None
        for one seed), `difference`, `difference_half_width` and `pairs` (against the baseline's runs of the same
        seeds; None for the baseline itself and where it was not run on these labels), `labeled`, `unlabeled`,
        `annotation_minutes` (mean), `steps`, `seconds` (mean) and `peak_memory_mb` (highest). What was not measured is
        None. A method without a score has no row, nor has a combination that was not run.
    """
    rows = []
    for spec in comparison["labels"]:
        baseline = _by_seed(comparison, spec, comparison["baseline"])
        for method in comparison["methods"]:
            runs = _by_seed(comparison, spec, method)
            if runs:
                rows.append(_row(spec, method, runs, {} if method == comparison["baseline"] else baseline))
    return rows


def comparison_csv(comparison: Mapping[str, Any]) -> str:
    """The table as CSV with a header; empty cells where nothing was measured."""
    rows = comparison_table(comparison)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["labels", "method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    head = (
        "labels",
        "method",
        "seeds",
        f"{metric_name(comparison)} (%)",
        f"against {comparison['baseline']}",
        "labeled images",
        "annotation minutes",
    )
    body = [
        (
            row["labels"],
            row["method"],
            str(row["seeds"]),
            _with_interval(row),
            _difference_text(row, comparison),
            count(row["labeled"]),
            _minutes(row["annotation_minutes"]),
        )
        for row in comparison_table(comparison)
    ]
    lines = [head, ("---", "---", *["--:"] * (len(head) - 2)), *body]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def metric_name(comparison: Mapping[str, Any]) -> str:
    """The comparison's score, written out."""
    return SCORE_NAMES.get(comparison["metric"], str(comparison["metric"]))


def _row(spec: str, method: str, runs: Mapping[int, Row], baseline: Mapping[int, Row]) -> Row:
    mean, half_width = mean_interval([run["score"] for run in runs.values()])
    shared = [seed for seed in runs if seed in baseline]
    ours, theirs = ([side[seed]["score"] for seed in shared] for side in (runs, baseline))
    gain = paired_difference(ours, theirs) if shared else None
    return {
        "labels": spec,
        "method": method,
        "seeds": len(runs),
        "mean": mean,
        "half_width": half_width,
        "difference": gain.mean if gain else None,
        "difference_half_width": gain.half_width if gain else None,
        "pairs": gain.pairs if gain else None,
        "labeled": _only(runs, "labeled"),
        "unlabeled": _only(runs, "unlabeled"),
        "annotation_minutes": _mean(runs, "annotation_minutes"),
        "steps": _only(runs, "steps"),
        "seconds": _mean(runs, "seconds"),
        "peak_memory_mb": max(_measured(runs, "peak_memory_mb"), default=None),
    }


def _by_seed(comparison: Mapping[str, Any], spec: str, method: str) -> dict[int, Row]:
    runs = [run for run in comparison["runs"] if run["labels"] == spec and run["method"] == method]
    return {run["seed"]: run for run in runs if is_number(run.get("score"))}


def _measured(runs: Mapping[int, Row], name: str) -> list[float]:
    return [run[name] for run in runs.values() if is_number(run.get(name))]


def _mean(runs: Mapping[int, Row], name: str) -> float | None:
    values = _measured(runs, name)
    return statistics.fmean(values) if values else None


def _only(runs: Mapping[int, Row], name: str) -> float | None:
    values = set(_measured(runs, name))
    return values.pop() if len(values) == 1 else None


def _with_interval(row: Row) -> str:
    half_width = interval(row["half_width"])
    return f"{score(row['mean'])} ({half_width})" if row["half_width"] is None else f"{score(row['mean'])} {half_width}"


def _difference_text(row: Row, comparison: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return _without_difference(row, comparison)
    text = signed(row["difference"])
    return text if row["difference_half_width"] is None else f"{text} {interval(row['difference_half_width'])}"


def _without_difference(row: Row, comparison: Mapping[str, Any]) -> str:
    """Why a row has no difference; nothing where the baseline was not run on these labels."""
    if row["method"] == comparison["baseline"]:
        return "baseline"
    return "no common seed" if _by_seed(comparison, row["labels"], comparison["baseline"]) else ""


def _minutes(value: float | None) -> str:
    """Minutes with as many digits as an estimate deserves."""
    return count(value if value is None or value < 10 else round(value))


def _command(comparison: Mapping[str, Any]) -> str | None:
    command = comparison.get("command")
    return command if command is None or isinstance(command, str) else shlex.join(command)


def _charts(comparison: Mapping[str, Any], rows: Sequence[Row]) -> list[dict[str, Any]]:
    if not rows:
        return []
    name, specs = metric_name(comparison), list(comparison["labels"])
    drawn = _drawn_methods(comparison, rows)
    scores = {
        spec: {
            method: [run["score"] for run in runs.values()]
            for method in drawn
            if (runs := _by_seed(comparison, spec, method))
        }
        for spec in specs
    }
    reach = [row["mean"] + (row["half_width"] or 0) for row in rows]
    highest = 1.05 * max([*reach, *(value for bars in scores.values() for values in bars.values() for value in values)])
    bars = [
        {"svg": Markup(bar_chart_with_points(values, f"{name} (%)", spec, highest, drawn)), "caption": ""}
        for spec, values in scores.items()
        if values
    ]
    return bars


def _drawn_methods(comparison: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The methods with a score, in the order of their colors in every chart."""
    scored = {row["method"] for row in rows}
    return [method for method in comparison["methods"] if method in scored]


def _budgets(comparison: Mapping[str, Any], rows: Sequence[Row]) -> list[Row]:
    """A row per label specification with the scores of all methods; empty if there is only one specification."""
    table = []
    for spec in dict.fromkeys(row["labels"] for row in rows):
        cells = {row["method"]: row for row in rows if row["labels"] == spec}
        first = next(iter(cells.values()))
        table.append(first | {"cells": [cells.get(method) for method in comparison["methods"]]})
    return table if len(table) > 1 else []


def _budget_charts(comparison: Mapping[str, Any], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The score over the number of labeled images, and over the time that labeling them takes."""
    name, methods = f"{metric_name(comparison)} (%)", _drawn_methods(comparison, rows)
    kinds = {frozenset(run["annotations"]) for run in comparison["runs"] if run.get("annotations")}
    # An image with a tag and one with a mask are not the same amount of label.
    images = [] if len(kinds) > 1 else _budget_chart(rows, methods, "labeled", "labeled images", name)
    return [*images, *_budget_chart(rows, methods, "annotation_minutes", "annotation minutes", name)]


def _budget_chart(
    rows: Sequence[Row], methods: Sequence[str], place: str, xlabel: str, ylabel: str
) -> list[dict[str, Any]]:
    budgets: dict[str, float] = {row["labels"]: row[place] for row in rows if row[place] is not None}
    specs = {row["labels"] for row in rows}
    # Two specifications at the same place would not be told apart.
    if len(specs) < 2 or len(set(budgets.values())) < len(specs):
        return []
    series, errors = {}, {}
    for method in methods:
        points = sorted((row for row in rows if row["method"] == method), key=lambda row: budgets[row["labels"]])
        series[method] = ([budgets[row["labels"]] for row in points], [row["mean"] for row in points])
        errors[method] = [row["half_width"] for row in points]
    low, high = min(budgets.values()), max(budgets.values())
    wide = low > 0 and high > _WIDE * low
    svg = line_chart(
        series,
        f"{xlabel}, logarithmic" if wide else xlabel,
        ylabel,
        f"Score over {xlabel}",
        errors=errors,
        ticks={value: _minutes(value) for value in budgets.values()},
        log_x=wide,
    )
    return [{"svg": Markup(svg), "caption": "Mean over seeds; bars are 95 % intervals."}]


def _class_table(comparison: Mapping[str, Any], spec: str) -> dict[str, Any] | None:
    columns = {}
    for method in comparison["methods"]:
        tables = [run.get("iou") or run.get("ap") or {} for run in _by_seed(comparison, spec, method).values()]
        names = dict.fromkeys(name for table in tables for name in table)
        measured = {name: [table[name] for table in tables if is_number(table.get(name))] for name in names}
        means = {name: statistics.fmean(values) if values else None for name, values in measured.items()}
        if means:
            columns[method] = means
    rows = []
    for name in dict.fromkeys(name for means in columns.values() for name in means):
        values = [means.get(name) for means in columns.values()]
        best = max((round(value, 2) for value in values if value is not None), default=None)
        cells = [{"value": value, "best": value is not None and round(value, 2) == best} for value in values]
        rows.append({"name": name, "cells": cells})
    return {"labels": spec, "methods": list(columns), "rows": rows} if rows else None


def _runs(folder: Path, comparison: Mapping[str, Any]) -> list[Row]:
    names = ("seconds", "steps", "peak_memory_mb", "labeled", "unlabeled", "score")
    return [{**dict.fromkeys(names), **run, "link": _link(folder, run.get("folder"))} for run in comparison["runs"]]


def _link(folder: Path, run: str | Path | None) -> str | None:
    if run is None:
        return None
    report = folder.resolve() / run / "report.html"
    return quote(Path(os.path.relpath(report, folder.resolve())).as_posix()) if report.is_file() else None


def _notes(comparison: Mapping[str, Any]) -> list[str]:
    runs = comparison["runs"]
    seeds = {run["seed"] for run in runs}
    failed = sum(not is_number(run.get("score")) for run in runs)
    steps = sorted({run["steps"] for run in runs if is_number(run.get("steps"))})
    length = f" after {steps[0]:,} steps" if len(steps) == 1 else ""
    scale = f" at {comparison['scale']} scale" if comparison.get("scale") else ""
    notes = [f"Measured here{scale}{length}. These are not the numbers of the papers and say nothing about them."]
    if len(seeds) == 1:
        notes.append("One seed: no interval. Every difference may be chance; more seeds tell.")
    else:
        notes.append(
            f"{len(seeds)} seeds. Intervals are 95 % Student-t intervals of the mean over seeds; differences are "
            "paired by seed, which also fixes the labeled images. An interval that holds zero decides nothing."
        )
    if not _all_run(comparison):
        notes.append("Not every method was run on all of these labels; differences are between runs on the same ones.")
    if failed:
        notes.append(f"{failed} of {len(runs)} runs gave no score and are left out of every mean.")
    return [*notes, *_cost_note(comparison), *(str(note) for note in comparison.get("notes", ()))]


def _all_run(comparison: Mapping[str, Any]) -> bool:
    """Whether every method was run on all of the labels."""
    run = {(run["labels"], run["method"]) for run in comparison["runs"]}
    return len(run) == len(comparison["labels"]) * len(comparison["methods"])


def _cost_note(comparison: Mapping[str, Any]) -> list[str]:
    """How annotation time was estimated; nothing if it was not."""
    costs: Mapping[str, float] = comparison.get("costs") or {}
    used = {kind for run in comparison["runs"] for kind in run.get("annotations") or ()}
    told = [kind for kind in COSTS if kind in used and kind in costs]
    if not told:
        return []
    parts = [f"{kind} {costs[kind]:.4g} s per {COSTS[kind].per} ({_cost_source(comparison, kind)})" for kind in told]
    measured = all(_is_measured(comparison, kind) for kind in told)
    what = "was measured on this data set" if measured else "is an estimate, not a measurement"
    return [f"Annotation time {what}: {'; '.join(parts)}. --cost gives other times."]


def _cost_source(comparison: Mapping[str, Any], kind: Kind) -> str:
    if _is_measured(comparison, kind):
        return "measured when this data set was labeled"
    return COSTS[kind].source if comparison["costs"][kind] == COSTS[kind].seconds else "given by --cost"


def _is_measured(comparison: Mapping[str, Any], kind: Kind) -> bool:
    return bool((comparison.get("measured_costs") or {}).get(kind) == comparison["costs"][kind])
