"""`labelwise reproduce`: the claim of a method's card as an experiment, paired over seeds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import starmap
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from labelwise import datasets, methods
from labelwise.configuration import option_names
from labelwise.datasets.shapes import OPTIONS_FILE, ShapesOptions
from labelwise.datasets.shapes.options import SPLITS
from labelwise.errors import UserError, did_you_mean, require_at_least
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.method import Claim
from labelwise.reports.compare_page import comparison_table
from labelwise.reports.reproduce_page import SIDES, write_reproduce_report
from labelwise.reports.statistics import paired_difference, verdict
from labelwise.runs import read_json
from labelwise.supervision import Supervision
from labelwise.verbs.compare import Form, compare, options_of_forms
from labelwise.verbs.preparation import note, prepare_method
from labelwise.verbs.shapes import shapes

Scale = Literal["mini", "paper"]

_MEASURED = ("mean", "half_width", "labeled", "unlabeled", "steps", "seconds", "peak_memory_mb")
"""What is told of each side, as `comparison_table` names it."""


class Side(NamedTuple):
    """One of the scores that a claim speaks of: a method with these settings, trained with these labels."""

    method: str
    labels: str
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self) -> str:
        """What tables and pictures call it, such as `fcn, stride 32`."""
        return ", ".join([self.method, *starmap(_setting, self.settings.items())])


def reproduce(
    method: str,
    *,
    scale: Scale = "mini",
    data: Path | None = None,
    labels: str | None = None,
    preset: str | None = None,
    seeds: int = 3,
    out: Path | None = None,
    options: Mapping[str, Any] | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Run the claim of a method's card: the method against its baseline, on the same labels and seeds.

    A claim with a ceiling also has the baseline trained with the ceiling's labels, and is told as the share of the
    gap between the baseline's two scores that the method closes. A method that is its own baseline is measured against
    itself with the claim's settings of the baseline; where there are none, with the ceiling's labels against itself
    with the claim's.

    Runs lie in a comparison that all methods on the same data, preset and labels share, so that a baseline is trained
    once. A call that was cut continues when it is made again.

    Args:
        method: a name that `labelwise methods` lists.
        scale: `mini`, CPU minutes on synthetic scenes; or `paper`, the paper's experiment on its own data, where the
            claim's margin, which was chosen for the mini scale, is not asked for; a loss that the claim allows (a
            margin below 0) is allowed there too.
        data: the data set's folder; unless given, the claim's synthetic scenes, which are written into `out`.
        labels: what both methods may see; the claim's unless given.
        preset: of both methods; the scale's own unless given.
        seeds: seeds 0 to N-1; with one the verdict is "undecided".
        out: the folder of data, runs and pages; `runs/reproduce-SCALE` unless given.
        options: options for every method that has them, or `method.option` for one. Where a method is measured
            against itself they are for both sides, except those that the claim's settings name.
        hardware: where and how fast to compute.

    Returns:
        The reproduction as `reproduction-METHOD.json` holds it, with `report`, the page's path. `verdict` is "holds",
        "does not hold" or "undecided" (`labelwise.reports.statistics.verdict`); `baseline`, `method` and `ceiling`
        begin the names of what belongs to each side; those of a ceiling that the claim does not have are None.

    Raises:
        UserError: the call or the data is wrong; nothing has been trained.
    """
    claim = _claim_of(method)
    out = Path(out) if out else Path("runs") / f"reproduce-{scale}"
    _refuse_wrong_call(scale, data, seeds, out)
    if data is not None and preset is None:
        note(f"both methods take their preset '{scale}'; --preset names another")
    preset = preset or scale
    labels = labels or (claim.labels if scale == "mini" else claim.paper_labels)
    sides = _sides(method, claim, labels, options or {})
    for side in sides.values():
        prepare_method(side.method, preset, side.settings)
        Supervision.parse(side.labels)
    _refuse_equal_sides(sides, preset, options or {})
    scenes = claim.scenes if data is None else None
    place = out / (Path(data).resolve().name if data else _slug("shapes", *claim.scenes.items()))
    data = Path(data) if data else _drawn(place / "data", ShapesOptions(**claim.scenes))
    taken = _taken_over(method, claim, preset, options or {})
    measured = [claim.score] if claim.score else []
    folder = place / _slug(Path(preset).stem, sides["baseline"].labels, *taken.items(), *measured)
    call = {"data": data, "preset": preset, "seeds": seeds, "out": folder / "comparison", "hardware": hardware}
    call |= {"metric": claim.score}
    # What the call says about the baseline itself wins.
    comparison = _compared(sides, call, {**taken, **(options or {})})
    margin = claim.margin if scale == "mini" else min(claim.margin, 0.0)
    reproduction = {
        "method": method,
        "baseline": claim.baseline,
        "baseline_settings": dict(sides["baseline"].settings),
        "claim": claim.text,
        "scale": scale,
        "task": comparison["task"],
        "metric": comparison["metric"],
        "data": str(data.resolve()),
        "scenes": scenes if scenes is None else dict(scenes),
        "preset": preset,
        "precision": comparison["precision"],
        "options": dict(options or {}),
        "command": ["labelwise", *sys.argv[1:]],
        "seeds": seeds,
        **_outcome(sides, comparison, seeds, margin),
        "published": [asdict(number) for number in methods.load(method).card.published],
        "comparison": "comparison/report.html",
    }
    page = write_reproduce_report(folder, reproduction)
    atomic_write(folder / f"reproduction-{method}.json", json.dumps(reproduction, indent=2))
    return reproduction | {"report": str(page)}


def _claim_of(method: str) -> Claim:
    claim = methods.load(method).card.claim
    if claim is None or (claim.baseline == method and claim.ceiling is None and not claim.baseline_settings):
        raise UserError(f"METHOD {method}: its card claims nothing that could be measured; name another method")
    return claim


def _taken_over(method: str, claim: Claim, preset: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the baseline takes over from the method, as `baseline.option`."""
    own = {key.removeprefix(f"{method}."): value for key, value in options.items()}
    known = set(option_names(methods.load(method)))
    _, config = prepare_method(method, preset, {key: value for key, value in own.items() if key in known})
    return {f"{claim.baseline}.{name}": getattr(config, name) for name in claim.baseline_options}


def _refuse_wrong_call(scale: str, data: Path | None, seeds: int, out: Path) -> None:
    if scale not in get_args(Scale):
        raise UserError(f"--scale {scale}: no such scale{did_you_mean(scale, get_args(Scale))}")
    if scale == "paper" and data is None:
        raise UserError("--data: a value is missing; --scale paper needs the data set of the paper's experiment")
    require_at_least("seeds", seeds, 1)
    if out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")


def _setting(name: str, value: Any) -> str:
    """An option as a few words, such as `output stride 32` or `without decoder`."""
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return f"{'with' if value else 'without'} {words}"
    return f"{words} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"


def _sides(method: str, claim: Claim, labels: str, options: Mapping[str, Any]) -> dict[str, Side]:
    """The sides `baseline`, `method` and, where there is one beside these, `ceiling`."""
    settings = dict(claim.baseline_settings)
    if method != claim.baseline:
        # What the call says about the baseline alone wins; of a method against itself it would speak of both sides.
        settings = {name: options.get(f"{claim.baseline}.{name}", value) for name, value in settings.items()}
    sides = {"baseline": Side(claim.baseline, labels, settings), "method": Side(method, labels)}
    if method == claim.baseline and not settings:
        if labels == claim.ceiling:
            raise UserError(f"--labels {labels}: '{method}' is measured with {labels} against fewer labels; name fewer")
        return sides | {"method": Side(method, str(claim.ceiling))}
    if claim.ceiling in (None, labels):
        return sides
    return sides | {"ceiling": Side(claim.baseline, str(claim.ceiling), settings)}


def _refuse_equal_sides(sides: Mapping[str, Side], preset: str, options: Mapping[str, Any]) -> None:
    """Refuse a preset or options that make the method its own baseline."""
    baseline, ours = sides["baseline"], sides["method"]
    if baseline.method != ours.method or baseline.labels != ours.labels:
        return
    chosen = options_of_forms({side.name: Form(side.method, side.settings) for side in (baseline, ours)}, options)
    if prepare_method(ours.method, preset, chosen[ours.name]) == prepare_method(
        baseline.method, preset, chosen[baseline.name]
    ):
        names = ", ".join(baseline.settings)
        raise UserError(
            f"METHOD {ours.method}: with this preset and these options it is '{baseline.name}', which it is measured "
            f"against; leave {names} to the claim"
        )


def _slug(*parts: object) -> str:
    """A readable name of a folder, such as `mini-masks-1-16`."""
    words = re.findall(r"[A-Za-z0-9.]+", " ".join(map(str, parts)))
    return "-".join(words)


def _drawn(folder: Path, options: ShapesOptions) -> Path:
    """The folder of the synthetic scenes; those that are complete are not drawn again."""
    if not _is_complete(folder, options):
        note(f"drawing {options.train + options.val} synthetic scenes into {folder}")
        shapes(folder, options)
    return folder


def _is_complete(folder: Path, options: ShapesOptions) -> bool:
    if read_json(folder / OPTIONS_FILE) != asdict(options):
        return False
    dataset = datasets.open(folder)
    # The lists of the splits are written when all scenes are.
    return all(
        split in dataset.splits and len(dataset.ids(split)) == getattr(options, split)
        for split in SPLITS
        if getattr(options, split)
    )


def _compared(sides: Mapping[str, Side], call: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Train every side; those of the same labels are one call of `compare`."""
    comparison: dict[str, Any] = {}
    for labels in dict.fromkeys(side.labels for side in sides.values()):
        forms = {side.name: Form(side.method, side.settings) for side in sides.values() if side.labels == labels}
        # The first call has refused every option that no side has.
        chosen = _having([form.method for form in forms.values()], options) if comparison else options
        comparison = compare(list(forms), labels=(labels,), options=chosen, forms=forms, **call)
    return comparison


def _having(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options, `option` or `method.option`, that one of these methods has."""
    known = {f"{name}.{option}" for name in names for option in option_names(methods.load(name))}
    return {key: value for key, value in options.items() if known & {key, *(f"{name}.{key}" for name in names)}}


def _outcome(sides: Mapping[str, Side], comparison: Mapping[str, Any], seeds: int, margin: float) -> dict[str, Any]:
    """What was measured on each side, and what it says about the claim."""
    runs = [run for run in comparison["runs"] if run["seed"] < seeds]
    rows = {(row["method"], row["labels"]): row for row in comparison_table({**comparison, "runs": runs})}
    scores = {(run["method"], run["labels"], run["seed"]): run["score"] for run in runs}
    outcome: dict[str, Any] = {}
    for name in SIDES:
        side = sides.get(name)
        row = rows[side.name, side.labels] if side else dict.fromkeys(_MEASURED)
        outcome[f"{name}_name"] = side.name if side else None
        outcome[f"{name}_labels"] = side.labels if side else None
        outcome[f"{name}_scores"] = [scores[side.name, side.labels, seed] for seed in range(seeds)] if side else None
        outcome |= {f"{name}_{key}": row[key] for key in _MEASURED}
    baseline, ours = outcome["baseline_scores"], outcome["method_scores"]
    difference = paired_difference(ours, baseline)
    return outcome | {
        "differences": [left - right for left, right in zip(ours, baseline, strict=True)],
        "difference_mean": difference.mean,
        "difference_half_width": difference.half_width,
        "margin": margin,
        "share_of_gap": _share_of_gap(outcome["baseline_mean"], outcome["method_mean"], outcome["ceiling_mean"]),
        "verdict": verdict(difference, margin),
    }


def _share_of_gap(baseline: float, ours: float, ceiling: float | None) -> float | None:
    """How much of the way from the baseline to the ceiling was made, 1 being all; None where there is no gap."""
    if ceiling is None or ceiling <= baseline:
        return None
    return (ours - baseline) / (ceiling - baseline)
