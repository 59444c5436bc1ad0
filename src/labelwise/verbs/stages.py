"""The runs that a method learns from: made where no finished one is named, checked in any case."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from labelwise import methods
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.method import Method, MethodConfig, Stage
from labelwise.runs import CONFIG, read_yaml
from labelwise.saved import load_model

FOLDER = "stages"
"""The folder within a run's that holds the runs before it."""

_SAME = ("data", "labels", "split", "seed")
"""What an earlier run must have in common with the one that learns from it: else labels would leak."""
LAUNCHERS = ("LOCAL_RANK", "SLURM_PROCID")
"""What launchers of several processes, such as torchrun, set in the environment of each."""

Train = Callable[[str, Path, Mapping[str, Any]], Any]
"""(method, folder, options) -> trains on the same data, labels and seed; a finished run is left as it is."""


def make_stages(method: type[Method], config: MethodConfig, run: Path, hardware: Hardware, train: Train) -> None:
    """Train the runs before this one that are not named by their option.

    Args:
        method: of the run that will learn from them.
        config: its options.
        run: its folder.
        hardware: where it computes.
        train: trains one of them.

    Raises:
        UserError: a launcher has started several processes, which cannot share several trainings.
    """
    for number, stage in enumerate(method.stages(config), start=1):
        if not is_made(stage, config):
            continue
        if hardware.world > 1 and any(name in os.environ for name in LAUNCHERS):
            flag = f"--{stage.option.replace('_', '-')}"
            raise UserError(
                f"{flag} {stage.word}: several processes of a launcher train one run; train '{stage.method}' "
                f"first and name its folder: {flag} RUN"
            )
        train(stage.method, stage_folder(run, number, stage), _options(stage, config))


def load_stages(
    method: type[Method], config: MethodConfig, run: Path, request: Mapping[str, Any], classes: Classes
) -> dict[str, Method]:
    """The trained methods before this run, by the option that names them.

    Raises:
        UserError: a named run is none, is of another task, knows other classes, or has seen other labels.
    """
    folders = {
        stage.option: stage_folder(run, number, stage) if is_made(stage, config) else _named(stage, config)
        for number, stage in enumerate(method.stages(config), start=1)
    }
    return {option: _checked(folder, option, method, request, classes) for option, folder in folders.items()}


def check_named(method: type[Method], config: MethodConfig, request: Mapping[str, Any], classes: Classes) -> None:
    """Refuse named runs from which this one cannot learn, before the others are made.

    Raises:
        UserError: as `load_stages`.
    """
    for stage in method.stages(config):
        if not is_made(stage, config):
            _checked(_named(stage, config), stage.option, method, request, classes)


def planned_runs(method: type[Method], config: MethodConfig) -> list[tuple[str, dict[str, Any]]]:
    """Method and options of each run that is ours to make before this one."""
    return [(stage.method, _options(stage, config)) for stage in method.stages(config) if is_made(stage, config)]


def is_made(stage: Stage, config: MethodConfig) -> bool:
    """Whether a stage is a run of ours, not one that is named."""
    return bool(getattr(config, stage.option) == stage.word)


def stage_folder(run: Path, number: int, stage: Stage) -> Path:
    """The folder of the stage of this number, counted from 1."""
    return run / FOLDER / f"{number}-{stage.option}"


def _named(stage: Stage, config: MethodConfig) -> Path:
    return Path(getattr(config, stage.option))


def _options(stage: Stage, config: MethodConfig) -> dict[str, Any]:
    known = {field.name for field in fields(methods.load(stage.method).Config)}
    shared = {name: value for name, value in asdict(config).items() if name in known}
    return {**shared, **stage.options}


def _checked(folder: Path, option: str, method: type[Method], request: Mapping[str, Any], classes: Classes) -> Method:
    what = f"--{option.replace('_', '-')} {folder}"
    try:
        model = load_model(folder)
        seen = read_yaml(folder / CONFIG)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    if model.card.task != method.card.task:
        raise UserError(f"{what}: is a run for {model.card.task}; name one for {method.card.task}")
    if model.classes.names != classes.names:
        ours, theirs = (", ".join(names) for names in (classes.names, model.classes.names))
        raise UserError(f"{what}: knows the classes {theirs}, the data set has {ours}; name a run of the same classes")
    other = [name for name in _SAME if seen.get(name) != request[name]]
    if other:
        name = other[0]
        raise UserError(
            f"{what}: was trained with {name} {seen.get(name)}, this run with {name} {request[name]}; name a run "
            "that saw the same, or its labels would reach this one"
        )
    return model
