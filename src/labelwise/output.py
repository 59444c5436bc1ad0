"""Results as a person or a program reads them on standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_FILE_WIDTH = 160
"""Columns of a table in a file or a pipe, where no terminal sets them."""

# Without markup, because names of files may hold brackets.
console = Console(highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


def print_json(content: Any) -> None:
    """One JSON object or list, and nothing else."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """The scores of a run: a table, and one of the classes."""
    if as_json:
        print_json(result)
        return
    scores = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    scores |= {f"boxes.{key}": value for key, value in result.get("boxes", {}).items() if isinstance(value, float)}
    scores["skipped"] = len(result.get("skipped", ()))
    print_rows(
        [{"": key, "value": f"{value:.2f}" if isinstance(value, float) else value} for key, value in scores.items()]
    )
    for key, title in (("iou", "IoU"), ("ap", "AP")):
        if key in result:
            values = result[key].items()
            print_rows(
                [{"class": name, title: "absent" if value is None else f"{value:.1f}"} for name, value in values]
            )
    for title, values_of in (("AP^r", result.get("map_r")), ("recall", result.get("proposals", {}).get("recall"))):
        if values_of:
            print_rows([{title: name} | _written(values) for name, values in values_of.items()])


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table of rows with the same keys, which are its head."""
    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else []:
        table.add_column(str(name), overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)


def print_markdown_table(text: str) -> None:
    """A Markdown table in aligned columns."""
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    print_rows([dict(zip(head, cells, strict=True)) for cells in body])


def print_card(card: dict[str, Any]) -> None:
    """One method of the catalogue."""
    console.print(f"{card['name']}: {card['title']} ({card['year']})", style="bold")
    console.print(f"{card['idea']}\n")
    print_rows([{"": key, "value": card[key]} for key in ("task", "needs", "gives", "paper", "claim", "command")])
    if card["published"]:
        console.print("\npublished, not measured here:")
        print_rows(card["published"])


def print_inspection(summary: dict[str, Any]) -> None:
    """What `inspect` found."""
    console.print(f"{summary['data']}: {summary['layout']} layout, {len(summary['classes'])} classes\n")
    splits = summary["splits"]
    print_rows([{"split": split, "images": count} | _kinds_of(split, summary) for split, count in splits.items()])
    console.print()
    print_rows([{"class": name, **numbers} for name, numbers in summary["balance"].items()])
    fitting = [method["name"] for method in summary["methods"] if method["fits"]]
    console.print(f"\nmethods that fit: {', '.join(fitting) or 'none'}")
    for problem in summary["problems"]:
        console.print(f"broken: {problem['path']}: {problem['reason']}; {problem['mend']}", style="red")
    if "page" in summary:
        console.print(f"pictures: {summary['page']}")


def print_reproduction(reproduction: dict[str, Any]) -> None:
    """A claim, its numbers, and whether it holds."""
    from labelwise.reports.page import duration, interval, score
    from labelwise.reports.reproduce_page import NO_GAP, difference_text, measured_sides, share_text, verdict_reason

    console.print(f"{reproduction['claim']}\n")
    rows = [
        {
            "": side["role"],
            "method": side["name"],
            "labels": side["labels"],
            "seeds": len(side["scores"]),
            "mean": f"{score(side['mean'])} {'' if side['half_width'] is None else interval(side['half_width'])}",
            "time per run": duration(side["seconds"]),
        }
        for side in measured_sides(reproduction)
    ]
    print_rows(rows)
    console.print(f"\ndifference: {difference_text(reproduction)}")
    if reproduction["ceiling_scores"]:
        share = reproduction["share_of_gap"]
        console.print(NO_GAP if share is None else f"share of the gap to the ceiling: {share_text(share)}")
    console.print(f"verdict: {reproduction['verdict']}", style="bold")
    console.print(f"{verdict_reason(reproduction)}\nreport with charts: {reproduction['report']}")


def _written(values: dict[str, float]) -> dict[str, str]:
    return {key: f"{value:.1f}" for key, value in values.items()}


def _kinds_of(split: str, summary: dict[str, Any]) -> dict[str, int]:
    return {kind: counts[split] for kind, counts in summary["kinds"].items()}
