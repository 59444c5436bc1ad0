"""`labelwise run`: the stages of a recipe, each once; a changed input runs again what is downstream of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.errors import UserError, did_you_mean
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.progress import console
from labelwise.reports.page import duration
from labelwise.reports.recipe_page import RECIPE, STAGE_SHEET, write_recipe_report
from labelwise.reports.stage_sheet import write_stage_sheet
from labelwise.runs import RESULTS, locked, read_json
from labelwise.saved import WEIGHTS
from labelwise.stages import DATA, Recipe, Stage, fingerprint, load_recipe
from labelwise.verbs.preparation import require_seed
from labelwise.verbs.stage_kinds import KINDS, OOD_LIST, Call, Labels, Model, OodList, Output, Plan, Scores

_FINISHED, _RUNNING, _STOPPED, _REMOVED = "finished", "running", "stopped", "removed"
_UNCHANGED = "unchanged"
"""The status of a finished stage in a call that did not have to run it."""
_FILES: dict[type[Output], str] = {Model: WEIGHTS, OodList: OOD_LIST, Scores: RESULTS}
"""The file of a result that is no data set, of which other stages know."""
_LAUNCHERS = ("LOCAL_RANK", "SLURM_PROCID")


def run(
    recipe: str,
    *,
    data: Path,
    out: Path | None = None,
    seed: int = 0,
    preset: str | None = None,
    options: Mapping[str, Any] | None = None,
    until: str | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Run the stages of a recipe; the same call again continues.

    A stage that is finished is not run again, unless its options or what it reads have changed; labels that were
    edited by hand are such a change for the stages that read them.

    Args:
        recipe: a YAML file, or the name of a recipe that is shipped.
        data: the data set's folder; `data` in the recipe.
        out: the folder of all stages and the page; named after the call unless given.
        seed: of everything random.
        preset: of every training that names none: `mini`, `small`, `paper` or a file.
        options: options for every stage that has them, or `stage.option` for one; they win over the recipe.
        until: the last stage to run.
        hardware: where and how fast to compute.

    Returns:
        `recipe`, `folder`, `report` and `stages`: of each its `name`, `kind`, `status`, `seconds`, `score`, `results`
        and `folder`.

    Raises:
        UserError: the recipe, the call or the data is wrong, and nothing has been run; or what a stage says.
        Exception: whatever else stops a stage; its state is written, and nothing after it runs.
    """
    hardware = hardware or Hardware()
    require_seed(seed)
    read = load_recipe(recipe, {name: kind.keys for name, kind in KINDS.items()})
    dataset = datasets.open(Path(data))
    stages = with_options(read, options or {})
    if until is not None and until not in (names := [stage.name for stage in stages]):
        raise UserError(f"--until {until}: the recipe has no such stage{did_you_mean(until, names)}")
    plans = planned(stages, dataset, Call(seed, preset))
    _refuse_launcher()
    folder = Path(out) if out else Path("runs") / f"{read.name}-{dataset.root.resolve().name}-seed{seed}"
    _refuse_other_folder(folder)
    recipe_run = _RecipeRun(folder, dataset, plans, hardware)
    wanted = plans[: 1 + [plan.stage.name for plan in plans].index(until)] if until else plans
    recipe_run.rehearse(wanted)
    called: dict[str, Any] = {
        "recipe": read.name,
        "about": read.about,
        "text": read.text,
        "data": str(dataset.root.resolve()),
        "seed": seed,
        "preset": preset,
        "options": dict(options or {}),
        "until": until,
        "command": ["labelwise", *sys.argv[1:]],
    }
    with locked(folder):
        atomic_write(folder / RECIPE, json.dumps(called | {"stages": recipe_run.described()}, indent=2))
        try:
            done = [recipe_run.execute(plan) for plan in wanted]
            recipe_run.draw(wanted)
        finally:
            page = write_recipe_report(folder)
    return {"recipe": read.name, "folder": str(folder), "report": str(page), "stages": done}


def with_options(recipe: Recipe, options: Mapping[str, Any]) -> list[Stage]:
    """The stages with options that were given in the call: `option` where a stage has it, `stage.option` always.

    Raises:
        UserError: no stage has the option, or there is no such stage.
    """
    stages = {stage.name: stage for stage in recipe.stages}
    known = {stage.name: KINDS[stage.kind].options(stage) for stage in recipe.stages}
    for key, value in options.items():
        name, _, option = key.rpartition(".")
        if name and name not in stages:
            raise UserError(f"--option {key}: the recipe has no stage '{name}'{did_you_mean(name, stages)}")
        having = [name] if name else [stage for stage in stages if option in known[stage]]
        if not having:
            every = {each for names in known.values() for each in names}
            raise UserError(f"--option {key}: no stage of the recipe has it{did_you_mean(option, every)}")
        for each in having:
            stages[each] = stages[each].with_option(option, value, f"--option {key}")
    return list(stages.values())


def planned(stages: list[Stage], dataset: DataSet, call: Call) -> list[Plan]:
    """Every stage checked against what it will read.

    Args:
        stages: in an order in which they can run.
        dataset: what `data` means.
        call: what all share.

    Raises:
        UserError: a stage cannot be run; with the line.
    """
    outputs: dict[str, Output] = {DATA: Labels({split: dataset.kinds(split) for split in dataset.splits})}
    plans = []
    for stage in stages:
        given = {key: tuple(outputs[name] for name in names) for key, names in stage.reads.items()}
        plans.append(KINDS[stage.kind].plan(stage, given, call))
        outputs[stage.name] = plans[-1].gives
    return plans


@dataclass(frozen=True)
class _Place:
    """Where a stage's result lies, and its record beside it: the folder is an ordinary run or data set."""

    folder: Path

    @property
    def record_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the stage: its fingerprint, how far it came, its results; empty before it ran."""
        return read_json(self.record_file)

    def write(self, record: Mapping[str, Any]) -> None:
        atomic_write(self.record_file, json.dumps(record, indent=2))

    def update(self, **entries: Any) -> None:
        self.write(self.record | entries)


class _RecipeRun:
    """The stages of one call on the disk."""

    def __init__(self, folder: Path, dataset: DataSet, plans: Sequence[Plan], hardware: Hardware) -> None:
        """Find out where each stage lies; writes nothing."""
        self.folder, self.dataset, self.plans, self.hardware = folder, dataset, plans, hardware
        self.places = {
            plan.stage.name: _place(folder, plan.stage.name, number) for number, plan in enumerate(plans, start=1)
        }
        self.folders = {DATA: dataset.root} | {name: place.folder for name, place in self.places.items()}
        self.digests = {DATA: _data_digest(dataset)}
        self.changed = False

    def rehearse(self, plans: Sequence[Plan]) -> None:
        """Refuse what only building the networks can tell, before the first stage runs."""
        for plan in plans:
            if plan.rehearse is not None and self.places[plan.stage.name].record.get("status") != _FINISHED:
                plan.rehearse(self.dataset, self.hardware)

    def described(self) -> list[dict[str, Any]]:
        """All stages of the recipe in their order, as the page shows them."""
        return [
            {
                "name": plan.stage.name,
                "kind": plan.stage.kind,
                "subject": plan.stage.subject,
                "reads": [name for key, names in plan.stage.reads.items() if key != plan.stage.kind for name in names],
                "settings": plan.settings,
                "folder": self.places[plan.stage.name].folder.name,
            }
            for plan in self.plans
        ]

    def execute(self, plan: Plan) -> dict[str, Any]:
        """Run a stage, or find that it need not run.

        Raises:
            UserError: its folder holds what would be lost.
            Exception: whatever stops the stage.
        """
        stage, place = plan.stage, self.places[plan.stage.name]
        digests = {key: [self.digests[name] for name in names] for key, names in stage.reads.items()}
        record = {"stage": stage.name, "kind": stage.kind, "settings": plan.settings, "inputs": digests}
        record["fingerprint"] = fingerprint(stage.kind, plan.settings, digests)
        before = place.record
        same = before.get("fingerprint") == record["fingerprint"] and place.folder.is_dir()
        where = f"{self.plans.index(plan) + 1}/{len(self.plans)} {stage.name}:"
        if same and before["status"] == _FINISHED:
            status = _UNCHANGED
        else:
            status, self.changed = _FINISHED, True
            if not same:
                self._clear(plan, place)
            console.print(f"{where} {stage.kind} {stage.subject}")
            self._run(plan, place, record | {"seconds": before.get("seconds", 0.0) if same else 0.0}, where)
        self.digests[stage.name] = self._digest(plan)
        after = place.record
        took = "" if status == _UNCHANGED else f" in {duration(after['seconds'])}"
        console.print(f"{where} {status}{took}{_said_score(after['score'])}")
        told = {key: after[key] for key in ("seconds", "score", "results")}
        return {"name": stage.name, "kind": stage.kind, "status": status, **told, "folder": str(place.folder)}

    def draw(self, plans: Sequence[Plan]) -> None:
        """Draw what the stages made of a few images."""
        sheet = self.folder / STAGE_SHEET
        made = {plan.stage.name: plan.gives for plan in plans if isinstance(plan.gives, Labels)}
        if not made or (sheet.is_file() and not self.changed):
            return
        split = next(iter(next(iter(made.values())).kinds))
        shown = {name: datasets.open(self.folders[name]) for name, labels in made.items() if split in labels.kinds}
        write_stage_sheet(sheet, self.dataset, shown, split)

    def _run(self, plan: Plan, place: _Place, record: Mapping[str, Any], where: str) -> None:
        place.write({**record, "status": _RUNNING, "pid": os.getpid()})
        folders = {key: tuple(self.folders[name] for name in names) for key, names in plan.stage.reads.items()}
        began = time.monotonic()
        try:
            results = plan.execute(folders, place.folder, self.hardware)
        except BaseException as error:
            reason = str(error) or type(error).__name__
            place.update(status=_STOPPED, reason=reason, seconds=record["seconds"] + time.monotonic() - began)
            console.print(f"{where} stopped; nothing after it is run")
            raise
        place.update(
            status=_FINISHED,
            seconds=round(record["seconds"] + time.monotonic() - began, 1),
            score=_score(plan, results),
            results=results,
            output=self._digest(plan),
        )

    def _clear(self, plan: Plan, place: _Place) -> None:
        """Remove what an earlier call made here of other inputs.

        Raises:
            UserError: the folder is not of this recipe's making, or was edited since.
        """
        if not place.folder.exists():
            return
        before = place.record
        if not before:
            raise UserError(f"{place.folder}: is not of this recipe's making; move it away")
        if before["status"] == _FINISHED and before["output"] != self._digest(plan):
            raise UserError(
                f"{place.folder}: was edited by hand, and stage '{plan.stage.name}' has to run again because its "
                "options or inputs have changed; move the folder away, or undo that change"
            )
        # A call that is killed meanwhile must not leave half of it as if it were whole.
        place.update(status=_REMOVED, fingerprint=None)
        shutil.rmtree(place.folder)

    def _digest(self, plan: Plan) -> str:
        """What other stages can see of a result."""
        folder = self.folders[plan.stage.name]
        if isinstance(plan.gives, Labels):
            return _data_digest(datasets.open(folder))
        return _file_digest(folder / _FILES[type(plan.gives)])


def _place(folder: Path, name: str, number: int) -> _Place:
    """The folder that a stage has got already, so that a recipe that grows repeats nothing; else one of its number."""
    records = folder.glob(f"*-{name}.json")
    had = [record.with_suffix("") for record in sorted(records) if re.fullmatch(rf"\d+-{name}", record.stem)]
    return _Place(had[0] if had else folder / f"{number}-{name}")


def _data_digest(dataset: DataSet) -> str:
    """Changes when a file of a data set is changed, added or removed; relative, so that the set may be moved."""
    digest = hashlib.blake2b(repr(dataset.classes).encode(), digest_size=16)
    for folder in dataset.label_folders():
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # a link to nowhere
                status = entry.stat()
                line = f"{folder.name}/{entry.name}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _score(plan: Plan, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a stage is judged by, if it was scored."""
    if plan.score is None or results.get(plan.score.key) is None:
        return None
    return {"name": plan.score.name, "value": results[plan.score.key]}


def _said_score(score: Mapping[str, Any] | None) -> str:
    return f", {score['name']} {score['value']:.2f}" if score else ""


def _refuse_launcher() -> None:
    """Refuse to be one of several processes, which cannot share the stages."""
    if any(name in os.environ for name in _LAUNCHERS):
        raise UserError(
            "run: a launcher has started several processes, which cannot share a recipe; start one, with --devices"
        )


def _refuse_other_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file; name a folder")
    # Hidden files are the lock and what a killed process left of its writing.
    there = [item.name for item in folder.iterdir() if not item.name.startswith(".")] if folder.is_dir() else []
    if there and RECIPE not in there:
        raise UserError(f"--out {folder}: holds something else than a recipe's stages; name a new or empty folder")
