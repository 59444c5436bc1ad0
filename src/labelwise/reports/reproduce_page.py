"""The report of a reproduction: a claim, what was measured, and whether it holds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from labelwise.reports.compare_page import metric_name
from labelwise.reports.curves import bar_chart_with_points
from labelwise.reports.page import DASH, interval, render, score, signed, write_text
from labelwise.reports.statistics import NO_INTERVAL, bound

SIDES = ("baseline", "method", "ceiling")
"""What a claim speaks of; the ceiling is the baseline with more labels, where the claim names them."""

NO_GAP = "The ceiling is not above the baseline: there is no gap of which a share could be told."

_TONES = {"holds": "good", "does not hold": "bad", "undecided": ""}


def write_reproduce_report(folder: Path, reproduction: Mapping[str, Any]) -> Path:
    """Write `reproduction-METHOD.html`.

    Args:
        folder: where to; the link to the comparison's page is relative to it.
        reproduction: as `labelwise.verbs.reproduce` describes it.

    Returns:
        the page's path.
    """
    page = render(
        "reproduce.html",
        reproduction=reproduction,
        metric=metric_name(reproduction),
        tone=_TONES[reproduction["verdict"]],
        reason=verdict_reason(reproduction),
        tiles=_tiles(reproduction),
        sides=measured_sides(reproduction),
        chart={
            "svg": _chart(reproduction),
            "caption": "A dot is one seed, the line the mean, the whisker its 95 % interval.",
        },
        notes=_notes(reproduction),
        command=shlex.join(reproduction["command"]),
    )
    return write_text(folder / f"reproduction-{reproduction['method']}.html", page)


def measured_sides(reproduction: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured on the baseline, the method and the ceiling, if there is one.

    Returns:
        for each `role`, `name` (of the method, with the settings that it has here alone), `labels`, `scores` (one per
        seed), `mean`, `half_width`, `labeled`, `unlabeled`, `steps`, `seconds` (mean of a run) and `peak_memory_mb`
        (highest).
    """
    names = (
        "name",
        "labels",
        "scores",
        "mean",
        "half_width",
        "labeled",
        "unlabeled",
        "steps",
        "seconds",
        "peak_memory_mb",
    )
    return [
        {"role": side, **{name: reproduction[f"{side}_{name}"] for name in names}}
        for side in SIDES
        if reproduction[f"{side}_scores"] is not None
    ]


def difference_text(reproduction: Mapping[str, Any]) -> str:
    """The mean difference and its interval, such as ``+3.21 ± 0.90 points``."""
    mean, half_width = signed(reproduction["difference_mean"]), reproduction["difference_half_width"]
    return f"{mean} points ({NO_INTERVAL})" if half_width is None else f"{mean} {interval(half_width)} points"


def verdict_reason(reproduction: Mapping[str, Any]) -> str:
    """Why the verdict is what it is, in one sentence."""
    mean, half_width, margin = (reproduction[name] for name in ("difference_mean", "difference_half_width", "margin"))
    if half_width is None:
        return "One seed gives no interval, and without one nothing is decided."
    asked = f"the {score(margin)} points that the claim asks for" if margin > 0 else ""
    least = f"{signed(margin)}, the loss that the claim allows" if margin < 0 else "0"
    if reproduction["verdict"] == "holds":
        enough = f" and the mean is at least {asked}" if asked else ""
        return f"The whole 95 % interval of the difference lies above {least}{enough}."
    if reproduction["verdict"] == "does not hold":
        where = f"below {asked}" if asked else f"at or below {least}"
        return f"The whole 95 % interval of the difference lies {where}."
    if mean - half_width <= bound(margin):
        return f"The 95 % interval of the difference contains {least}; more seeds may decide."
    return f"The whole 95 % interval of the difference lies above {least}, but the mean is below {asked}."


def share_text(share: float | None) -> str:
    """The share of the gap as a whole percentage; a dash where there is no gap."""
    return DASH if share is None else f"{100 * share:.0f} %"


def _tiles(reproduction: Mapping[str, Any]) -> list[dict[str, Any]]:
    half_width = reproduction["difference_half_width"]
    difference = {
        "value": signed(reproduction["difference_mean"]),
        "unit": "" if half_width is None else interval(half_width),
        "name": "points of difference, paired by seed",
    }
    means = [
        {"value": score(side["mean"]), "unit": "%", "name": f"{side['name']} on {side['labels']}"}
        for side in measured_sides(reproduction)
    ]
    share = {"value": share_text(reproduction["share_of_gap"]), "unit": "", "name": "of the gap to the ceiling closed"}
    return [difference, *means, *([share] if reproduction["ceiling_scores"] else [])]


def _chart(reproduction: Mapping[str, Any]) -> Markup:
    sides = measured_sides(reproduction)
    alike = len({side["labels"] for side in sides}) == 1
    values = {side["name"] if alike else f"{side['name']}, {side['labels']}": side["scores"] for side in sides}
    return Markup(bar_chart_with_points(values, f"{metric_name(reproduction)} (%)", "Every seed"))


def _notes(reproduction: Mapping[str, Any]) -> list[str]:
    margin, scale = reproduction["margin"], reproduction["scale"]
    steps = {side["steps"] for side in measured_sides(reproduction)}
    length = f" after {steps.pop():,} steps" if len(steps) == 1 and None not in steps else ""
    least = "0" if margin >= 0 else f"{signed(margin)} points"
    holds = f"at least {score(margin)} points" if margin > 0 else f"above {least}"
    fails = f"below {score(margin)} points" if margin > 0 else f"at or below {least}"
    notes = [
        f"Measured here at {scale} scale{length}. These are not the numbers of the paper"
        f"{' and say nothing about them' if scale == 'mini' else ''}.",
        "A seed fixes the labeled images and everything random, the same for all that is compared. The claim holds if "
        f"the mean difference is {holds} and its whole 95 % Student-t interval lies above {least}. It does not hold if "
        f"the whole interval lies {fails}. Anything else is undecided.",
    ]
    if reproduction["ceiling_scores"] and reproduction["share_of_gap"] is None:
        notes.append(NO_GAP)
    return notes
