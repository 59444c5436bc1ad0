"""The commands that compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from labelwise.commands.shared import Flag, Flat, Json, parsed_options
from labelwise.hardware import Hardware
from labelwise.output import (
    console,
    print_json,
    print_markdown_table,
    print_reproduction,
)

_HARDWARE = Hardware()


def compare(
    names: Annotated[list[str], Parameter(name="METHOD")],
    /,
    *,
    data: Path,
    labels: list[str] | None = None,
    seeds: int = 3,
    preset: str | None = None,
    out: Path | None = None,
    split: str = "train",
    val_split: str = "val",
    skip_broken: Annotated[bool, Flag] = False,
    monitor: int = 0,
    option: list[str] | None = None,
    cost: list[str] | None = None,
    hardware: Annotated[Hardware, Flat] = _HARDWARE,
    json: Json = False,
) -> None:
    """Train several methods on the same data, labels and seeds; write table, plot and page.

    Parameters
    ----------
    names
        methods, or recipes as `labelwise run` takes them (a shipped one or a YAML file); the first is the baseline of
        the differences
    data
        the data set's folder
    labels
        what the methods may see; give it several times to compare over label budgets or kinds of label: a method is run
        on those that it can learn from, a recipe on those that its own stages learn from [default: every label of the
        kind that the first method needs]
    seeds
        seeds 0 to N-1
    preset
        mini, small, paper or a YAML file, for every method
    out
        the folder of runs, table and page; the same call again continues
    split
        the split to learn from
    val_split
        the split to score on
    skip_broken
        leave out images with broken files, and count them, instead of stopping
    monitor
        watch the pseudo-labels of N unlabelled images in every run: reads their hidden masks for the runs' reports,
        never for the training
    option
        NAME=VALUE for every method that has this option, or METHOD.NAME=VALUE for one; in a recipe for every stage that
        has it, or RECIPE.STAGE.NAME=VALUE for one; may be given several times
    cost
        KIND=SECONDS of annotation, such as masks=60 for each mask; may be given several times; trains nothing anew
        [default: the times measured by `labelwise label` on this data set, else published ones]
    """
    from labelwise.costs import parse_costs
    from labelwise.reports.compare_page import comparison_markdown
    from labelwise.verbs.compare import compare as run

    comparison = run(
        names,
        data=data,
        labels=labels,
        seeds=seeds,
        preset=preset,
        out=out,
        split=split,
        val_split=val_split,
        skip_broken=skip_broken,
        monitor=monitor,
        options=parsed_options(option or []),
        costs=parse_costs(cost or []),
        hardware=hardware,
    )
    if json:
        print_json(comparison)
    else:
        print_markdown_table(comparison_markdown(comparison))
        console.print(f"report with pictures: {comparison['report']}")


def reproduce(
    method: Annotated[str, Parameter(name="METHOD")],
    /,
    *,
    scale: Literal["mini", "paper"] = "mini",
    data: Path | None = None,
    labels: str | None = None,
    preset: str | None = None,
    seeds: int = 3,
    out: Path | None = None,
    option: list[str] | None = None,
    hardware: Annotated[Hardware, Flat] = _HARDWARE,
    json: Json = False,
) -> int:
    """Run the claim of a method's card, paired over seeds, and say whether it holds.

    Exit code 1 if it does not hold or is undecided.

    Parameters
    ----------
    method
        a name that `labelwise methods` lists
    scale
        mini = CPU minutes on synthetic scenes; paper = the paper's experiment on its own data
    data
        the data set's folder; scale paper needs one [default: the claim's synthetic scenes, written into OUT]
    labels
        what both methods may see [default: the claim's]
    preset
        mini, small, paper or a YAML file, for both methods [default: the scale's]
    seeds
        seeds 0 to N-1; one gives no interval and hence no verdict
    out
        the folder of data, runs and pages, shared by all methods; the same call again continues
        [default: runs/reproduce-SCALE]
    option
        NAME=VALUE for every method that has this option, or METHOD.NAME=VALUE for one; may be given several times
    """
    from labelwise.verbs.reproduce import reproduce as run

    result = run(
        method,
        scale=scale,
        data=data,
        labels=labels,
        preset=preset,
        seeds=seeds,
        out=out,
        options=parsed_options(option or []),
        hardware=hardware,
    )
    if json:
        print_json(result)
    else:
        print_reproduction(result)
    return 0 if result["verdict"] == "holds" else 1


def report(runs: list[Path], /, *, json: Json = False) -> None:
    """Write the HTML page of runs and comparisons anew.

    Parameters
    ----------
    runs
        folders that `train` or `compare` wrote
    """
    from labelwise.verbs.report import report as write

    result = write(runs)
    if json:
        print_json(result)
    else:
        for page in result["reports"]:
            console.print(page)
