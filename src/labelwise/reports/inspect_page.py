"""The report of a data set: which labels there are, what they look like, what is broken, which methods fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labelwise.datasets.base import voc_palette
from labelwise.errors import Problem
from labelwise.reports.page import render, write_text
from labelwise.reports.pictures import png_data_uri, swatch

_QUANTILES = {"smallest": 0.0, "median": 0.5, "largest": 1.0}


def write_inspect_report(path: Path, summary: Mapping[str, Any]) -> Path:
    """Write the page of a data set.

    Args:
        path: the HTML file.
        summary: every entry but `data` may be missing:
            `data` (path or name), `layout`, `command`;
            `splits`: name -> number of images;
            `kinds`: label kind -> {split -> number of images that have it};
            `classes`: names in the order of their numbers, `background`: its number or None, `colors`: [C, 3];
            `balance`: class -> {`images`, `objects`, `pixels`}, numbers, any of which may be missing;
            `sizes`: (width, height) of each image;
            `problems`: `Problem`s, or mappings with `path`, `reason`, `mend`;
            `methods`: mappings with `name`, `needs`, `fits` and perhaps `title`;
            `pictures`: caption -> contact sheet.

    Returns:
        the page's path.
    """
    splits, names = summary.get("splits", {}), list(summary.get("classes", ()))
    problems = summary.get("problems")
    page = render(
        "inspect.html",
        data=summary["data"],
        layout=summary.get("layout"),
        tiles=_tiles(splits, names, problems),
        splits=splits,
        kinds=_kinds(summary.get("kinds", {}), splits),
        **_balance(summary.get("balance", {}), names, summary.get("colors"), summary.get("background")),
        sizes=_sizes(summary.get("sizes", ())),
        problems=None if problems is None else [_problem(problem) for problem in problems],
        fitting=[method for method in summary.get("methods", ()) if method["fits"]],
        unfitting=[method for method in summary.get("methods", ()) if not method["fits"]],
        pictures=[_picture(caption, picture) for caption, picture in summary.get("pictures", {}).items()],
        command=summary.get("command"),
    )
    return write_text(path, page)


def _tiles(
    splits: Mapping[str, int], names: Sequence[str], problems: Sequence[Problem | Mapping[str, Any]] | None
) -> list[dict[str, str]]:
    tiles = [{"name": f"images in {name}", "value": f"{number:,}", "unit": ""} for name, number in splits.items()]
    if names:
        tiles.append({"name": "classes", "value": f"{len(names)}", "unit": ""})
    if problems is not None:
        tiles.append({"name": "broken files", "value": f"{len(problems):,}", "unit": ""})
    return tiles


def _kinds(kinds: Mapping[str, Mapping[str, int]], splits: Mapping[str, int]) -> list[dict[str, Any]]:
    columns = list(splits) or list(dict.fromkeys(split for counts in kinds.values() for split in counts))
    return [
        {
            "name": str(kind),
            "cells": [
                {
                    "split": split,
                    "value": counts.get(split, 0),
                    "share": _share(counts.get(split, 0), splits.get(split)),
                }
                for split in columns
            ],
        }
        for kind, counts in kinds.items()
    ]


def _balance(
    balance: Mapping[str, Mapping[str, int]],
    names: Sequence[str],
    colors: Sequence[Sequence[int]] | None,
    background: int | None,
) -> dict[str, Any]:
    columns = [name for name in ("images", "objects", "pixels") if any(name in row for row in balance.values())]
    totals = {name: sum(row.get(name, 0) for row in balance.values()) for name in columns}
    palette = voc_palette() if colors is None else colors
    things = [
        row.get(name, 0)
        for number, label in enumerate(names)
        for row in [balance.get(label, {})]
        for name in columns[:1]
        if number != background
    ]
    longest = max(things, default=0)
    rows = []
    for number, name in enumerate(names or list(balance)):
        counts = balance.get(name, {})
        first = counts.get(columns[0], 0) if columns else 0
        rows.append(
            {
                "name": name,
                "color": swatch(palette[number]) if number < len(palette) else "transparent",
                "background": number == background,
                "share": min(100.0, _share(first, longest)),
                "cells": [_balance_cell(column, counts.get(column), totals[column]) for column in columns],
            }
        )
    return {"balance": rows if columns else [], "balance_columns": columns}


def _balance_cell(column: str, value: int | None, total: int) -> str:
    if value is None:
        return "–"
    return f"{_share(value, total):.2f} %" if column == "pixels" else f"{value:,}"


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    if not len(sizes):
        return None
    widths_heights = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    order = np.argsort(widths_heights.prod(axis=1), kind="stable")
    chosen = {name: widths_heights[order[round(share * (len(order) - 1))]] for name, share in _QUANTILES.items()}
    distinct, numbers = np.unique(widths_heights, axis=0, return_counts=True)
    frequent = np.argsort(-numbers, kind="stable")[:8]
    return {
        "quantiles": [(name, f"{width} × {height}") for name, (width, height) in chosen.items()],
        "distinct": len(distinct),
        "frequent": [
            {
                "size": f"{distinct[index][0]} × {distinct[index][1]}",
                "number": int(numbers[index]),
                "share": _share(int(numbers[index]), int(numbers.max())),
            }
            for index in frequent
        ],
    }


def _problem(problem: Problem | Mapping[str, Any]) -> dict[str, str]:
    if isinstance(problem, Problem):
        return {"path": str(problem.path), "reason": problem.reason, "mend": problem.mend}
    return {name: str(problem[name]) for name in ("path", "reason", "mend")}


def _picture(caption: str, picture: Image.Image) -> dict[str, Any]:
    return {"uri": png_data_uri(picture), "caption": caption, "width": picture.width, "height": picture.height}


def _share(value: float, total: float | None) -> float:
    return 100 * value / total if total else 0.0
