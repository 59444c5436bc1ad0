"""Rounds of active learning: train, let the model choose pixels, label them, train again (PixelPick, section 3).

Whoever labels is the data set itself, which knows the class of every pixel of its masks, or of its clicks. Within the
folder of a run of R rounds lie

=======================  ===============================================================================
``rounds/<k>/points``    all clicks up to round k, one ``<id>.json`` per image
``rounds/<k>/run``       the run that learned from them, for k < R; the last one is the run itself
``rounds.json``          what was asked for in each round, and the score of what was learned from it
=======================  ===============================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelwise.datasets.derive import sparse_mask
from labelwise.datasets.voc_labels import format_points, read_points
from labelwise.errors import UserError
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.method import Method, MethodConfig
from labelwise.models.acquisition import QueryStatistics, Summary, with_errors
from labelwise.progress import console, watched
from labelwise.reports.rounds import ROUNDS
from labelwise.runs import Run, read_json
from labelwise.samples import IGNORE_INDEX, Kind, Sample
from labelwise.supervision import Supervision
from labelwise.tasks.acquisition import AcquisitionConfig
from labelwise.verbs.preparation import Material, prepare_material
from labelwise.verbs.select import Picker, load_picker, occupied
from labelwise.verbs.stages import LAUNCHERS

FOLDER = "rounds"
"""The folder within a run's that holds its rounds."""

Train = Callable[[str, Path, str, Mapping[str, Any]], Mapping[str, Any]]
"""(method, folder, labels, options) -> trains on the same data and seed; the results, also of a finished run."""


class Answered(NamedTuple):
    """The clicks of one image after a round.

    Attributes:
        points: [P, 2] float32 (x, y), those of earlier rounds first.
        labels: [P] int64, as answered.
        size: height and width of the image.
        new: the number of clicks of this round, which are the last.
        probabilities: [K, H, W] float32 by which they were chosen; None in the first round.
    """

    points: Tensor
    labels: Tensor
    size: tuple[int, int]
    new: int
    probabilities: Tensor | None


def rounds_of(config: MethodConfig, labels: str) -> int:
    """How often clicks are asked for; 0 where a run learns from those that supervision gives as they are.

    Random clicks do not depend on a model, so that all are asked for at once; all clicks that there are leave nothing
    to choose.

    Raises:
        UserError: the number of clicks cannot be divided among the rounds, or there is none where answers are wrong.
    """
    if not isinstance(config, AcquisitionConfig):
        return 0
    total = Supervision.parse(labels).clicks_per_image
    if total is None and config.error_rate:
        raise UserError(f"--error-rate {config.error_rate}: is of a number of clicks per image; --labels points:N")
    rounds = 1 if config.strategy == "random" else config.rounds
    if total is None or (rounds == 1 and not config.error_rate):
        return 0
    if total % rounds:
        near = max(1, round(total / rounds)) * rounds
        raise UserError(
            f"--labels {labels}: {total} clicks cannot be divided among {rounds} rounds; ask for points:{near}, or "
            "change --rounds"
        )
    return rounds


def last_labels(folder: Path, rounds: int) -> str:
    """The labels of the last of so many rounds, as `train` takes them."""
    return _labels(folder, rounds)


def with_protocol(material: Material, config: MethodConfig, labels: str) -> Material:
    """The material of the last round, which says how its clicks were chosen instead of where they lie."""
    assert isinstance(config, AcquisitionConfig)
    streams = material.streams
    count = rounds_of(config, labels)
    errors = f", {100 * config.error_rate:g} % of the answers wrong" if config.error_rate else ""
    rounds = f"{count} rounds" if count > 1 else "one round"
    protocol = f"{labels}, chosen by {config.strategy} in {rounds}{errors}, seed {streams.seed}"
    return replace(material, streams=replace(streams, protocol=protocol))


def make_rounds(run: Run, method: type[Method], config: MethodConfig, hardware: Hardware, train: Train) -> None:
    """Ask for the clicks of all rounds, and train all of them but the last.

    What is finished is left as it is. The choice of a round depends on the run before it, the seed and the image alone,
    so that a killed call goes on to the same result.

    Args:
        run: with a number of clicks as its labels; in its folder everything is made.
        method: of the run.
        config: its options, for which `rounds_of` is above 0 with these labels.
        hardware: where to compute.
        train: trains one round.

    Raises:
        UserError: a launcher has started several processes, or the data does not fit.
        BadFile: a file is broken and is not to be skipped.
    """
    assert isinstance(config, AcquisitionConfig)
    if hardware.world > 1 and any(name in os.environ for name in LAUNCHERS):
        raise UserError(
            f"--rounds {config.rounds}: several processes of a launcher train one run, not several; "
            "start it as one command with --devices"
        )
    rounds = _Rounds(run, method, config, hardware)
    with run.locked():
        run.start()
        try:
            for number in range(1, rounds.count + 1):
                rounds.ask(number)
                if number < rounds.count:
                    rounds.learn(number, train)
        except BaseException as error:
            run.record(status="stopped", reason=str(error) or type(error).__name__)
            raise


def complete_rounds(run: Run, method: type[Method], results: Mapping[str, Any]) -> None:
    """Note the score of the last round, which is the run itself; nothing where there are no rounds."""
    rounds = _recorded(run)
    if rounds:
        _note(run, len(rounds), method, results)


class _Rounds:
    """The rounds of one run."""

    def __init__(self, run: Run, method: type[Method], config: AcquisitionConfig, hardware: Hardware) -> None:
        self.run, self.method, self.config, self.hardware = run, method, config, hardware
        assert isinstance(config, MethodConfig)
        labels = run.request["labels"]
        self.count, self.seed = rounds_of(config, labels), int(run.request["seed"])
        self.clicks = (Supervision.parse(labels).clicks_per_image or 0) // self.count
        # The answers are wrong already: learning from them adds no errors.
        self.options = asdict(config) | {"rounds": 1, "error_rate": 0.0}
        self.material = self._first_material()
        self.dataset = self.material.dataset

    def ask(self, number: int) -> None:
        """Choose the clicks of a round and have them answered; written with all clicks before them."""
        if len(_recorded(self.run)) >= number:
            return
        earlier = None if number == 1 else _run_folder(self.run.folder, number - 1)
        picker = load_picker(earlier, self.config, self.seed, number - 1, self.hardware)
        folder = _points_folder(self.run.folder, number)
        folder.mkdir(parents=True, exist_ok=True)
        statistics = QueryStatistics(len(self.dataset.classes))
        ids, total = self.material.sources["labeled"], 0
        for id in watched(ids, f"choosing pixels, round {number}", len(ids)):
            answered = self._first(picker, id) if number == 1 else self._next(picker, id, number)
            content = format_points(id, answered.points, answered.labels, self.dataset.classes, answered.size)
            atomic_write(folder / f"{id}.json", content)
            begin = len(answered.points) - answered.new
            statistics.update(answered.points[begin:].long(), answered.labels[begin:], answered.probabilities)
            total += len(answered.points)
        console.print(f"round {number} of {self.count}: {total} clicks on {len(ids)} images")
        asked = {"round": number, "clicks_per_image": number * self.clicks, "clicks": total}
        _record(self.run, [*_recorded(self.run), asked | self._written(statistics.compute())])

    def learn(self, number: int, train: Train) -> None:
        """Train a round that is not the last."""
        folder = _run_folder(self.run.folder, number)
        results = train(self.method.card.name, folder, _labels(self.run.folder, number), self.options)
        _note(self.run, number, self.method, results)

    def _first(self, picker: Picker, id: str) -> Answered:
        """The random clicks of an image that a run with so many of them has."""
        sample = self.material.streams.read(self.dataset, id)
        assert sample.points is not None and sample.point_labels is not None
        points = sample.points.as_subclass(Tensor)
        labels = self._answers(picker, id, sample.point_labels)
        return Answered(points, labels, _size(sample), len(points), None)

    def _next(self, picker: Picker, id: str, number: int) -> Answered:
        """The clicks of an image with those that the model before asks for; void pixels are never asked."""
        sample = self.dataset.read(id, {Kind.POINTS})
        assert sample.points is not None and sample.point_labels is not None
        size = _size(sample)
        known = sparse_mask(sample.points.as_subclass(Tensor), sample.point_labels, size)
        before = _points_folder(self.run.folder, number - 1) / f"{id}.json"
        points, labels = read_points(before, self.dataset.classes, size)
        exclude = (known == IGNORE_INDEX) | occupied(points, size)
        picked = picker.pick(id, sample.image.as_subclass(Tensor), self.clicks, exclude)
        columns, rows = picked.pixels.unbind(1)
        answers = self._answers(picker, id, known[rows, columns].long())
        points, labels = torch.cat([points, picked.pixels.float()]), torch.cat([labels, answers])
        return Answered(points, labels, size, len(answers), picked.probabilities)

    def _answers(self, picker: Picker, id: str, labels: Tensor) -> Tensor:
        """What the oracle says of pixels of these classes."""
        generator = picker.generator("answers", id)
        return with_errors(labels, self.config.error_rate, len(self.dataset.classes), generator)

    def _first_material(self) -> Material:
        """The images, with the clicks of the first round; all files that will be read are checked."""
        request = self.run.request
        return prepare_material(
            self.method,
            Path(request["data"]),
            f"{Kind.POINTS}:{self.clicks}",
            request["split"],
            request["val_split"],
            self.seed,
            request["skip_broken"],
        )

    def _written(self, summary: Summary) -> dict[str, Any]:
        names = self.dataset.classes.names
        return summary._asdict() | {"histogram": dict(zip(names, summary.histogram, strict=True))}


def _size(sample: Sample) -> tuple[int, int]:
    return sample.image.shape[-2], sample.image.shape[-1]


def _points_folder(folder: Path, number: int) -> Path:
    return folder / FOLDER / str(number) / "points"


def _run_folder(folder: Path, number: int) -> Path:
    return folder / FOLDER / str(number) / "run"


def _labels(folder: Path, number: int) -> str:
    return f"{Kind.POINTS}:{_points_folder(folder, number).resolve()}"


def _recorded(run: Run) -> list[dict[str, Any]]:
    """The rounds whose clicks are all there."""
    recorded: list[dict[str, Any]] = read_json(run.folder / ROUNDS).get("rounds", [])
    return recorded


def _record(run: Run, rounds: list[dict[str, Any]]) -> None:
    atomic_write(run.folder / ROUNDS, json.dumps({"rounds": rounds}, indent=2))


def _note(run: Run, number: int, method: type[Method], results: Mapping[str, Any]) -> None:
    """Add what was learned in a round to what was asked."""
    rounds = _recorded(run)
    key = method.card.main_score.key
    if key in results:
        rounds[number - 1] |= {key: results[key]}
        _record(run, rounds)
