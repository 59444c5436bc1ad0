"""`labelwise select`: which pixels of each image a person is to label next."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.datasets.derive import sparse_mask
from labelwise.datasets.journal import skipped_pixels
from labelwise.datasets.queries import Query, QueryFile, read_queries, write_queries
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, UserError, require_at_least
from labelwise.hardware import Hardware
from labelwise.models.acquisition import LARGEST, SHARE, Choice, Strategy, select_pixels, vote
from labelwise.progress import watched
from labelwise.samples import IGNORE_INDEX, Kind, Sample
from labelwise.tasks.acquisition import AcquisitionConfig
from labelwise.tasks.segmentation import SegmentationMethod
from labelwise.verbs.outputs import Output
from labelwise.verbs.predict import LEAST_SCORE, load_output
from labelwise.verbs.preparation import broken_ids, require_seed, usable


class Picked(NamedTuple):
    """The pixels that were chosen in one image.

    Attributes:
        pixels: [n, 2] int64 (x, y), in the order in which they were chosen.
        uncertainty: mean over the image of how unsure the model is, from 0 to 1; None without a model.
        probabilities: [K, H, W] float32 of the model; None without one.
    """

    pixels: Tensor
    uncertainty: float | None
    probabilities: Tensor | None


@dataclass(frozen=True)
class Picker:
    """Chooses pixels of images, by what a trained model thinks of them or at random.

    Attributes:
        output: the model; None chooses at random.
        acquisition: how to choose.
        seed: of all that is random; with it and the round each image has its own numbers.
        round: how many choices were made before.
    """

    output: Output | None
    acquisition: AcquisitionConfig
    seed: int
    round: int

    def pick(self, id: str, image: Tensor, count: int, exclude: Tensor | None = None) -> Picked:
        """Choose pixels of one image.

        Args:
            id: the image's.
            image: [3, H, W] uint8.
            count: how many pixels.
            exclude: [H, W] bool, pixels that must not be chosen.

        Raises:
            UserError: votes are asked for of a network without dropout.
        """
        size = (image.shape[-2], image.shape[-1])
        score, probabilities = self._scores(id, image) if self.output is not None else (torch.zeros(size), None)
        acquisition = self.acquisition
        pixels = select_pixels(
            score,
            count,
            largest=LARGEST[acquisition.strategy],
            share=acquisition.candidate_share,
            exclude=exclude,
            generator=torch.Generator().manual_seed(self._number("pixels", id)),
            mode=acquisition.choice,
        )
        unsure = None if probabilities is None else mean_uncertainty(score, acquisition.strategy, len(probabilities))
        return Picked(pixels, unsure, probabilities)

    def generator(self, purpose: str, id: str) -> torch.Generator:
        """The random numbers of an image in this round, for something else than choosing its pixels."""
        return torch.Generator().manual_seed(self._number(purpose, id))

    def _scores(self, id: str, image: Tensor) -> tuple[Tensor, Tensor]:
        """The score [H, W] and the probabilities [K, H, W] of every pixel, by one pass or a committee."""
        assert self.output is not None
        method, acquisition = self.output.method, self.acquisition
        devices = [method.device] if method.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self.output.computing():
            torch.manual_seed(self._number("votes", id))
            try:
                voted = vote(
                    method.predict,
                    image[None].to(method.device),
                    acquisition.strategy,
                    network=method.network,
                    votes=acquisition.votes,
                )
            except ValueError as error:
                raise UserError(f"--votes {acquisition.votes}: {error}; leave it out") from None
        return voted.score[0], voted.probabilities[0]

    def _number(self, purpose: str, id: str) -> int:
        key = hashlib.sha256(f"{purpose}/{self.seed}/{self.round}/{id}".encode()).digest()
        return int.from_bytes(key[:8], "big") >> 1


def mean_uncertainty(score: Tensor, strategy: Strategy, classes: int) -> float:
    """How unsure a model is of an image: 0 = of no pixel, 1 = of all pixels as much as can be.

    Args:
        score: [H, W], as of `models.acquisition.uncertainty`.
        strategy: which score it is.
        classes: how many classes there are, at least two.
    """
    mean = float(score.float().mean())
    if strategy == "margin":
        return max(0.0, 1 - mean)
    return max(0.0, mean / (math.log(classes) if strategy == "entropy" else 1 - 1 / classes))


def load_picker(run: Path | None, acquisition: AcquisitionConfig, seed: int, round: int, hardware: Hardware) -> Picker:
    """A picker by a finished run, or at random without one.

    Raises:
        UserError: no such run, or it is no segmenter's.
    """
    if run is None or acquisition.strategy == "random":
        return Picker(None, acquisition, seed, round)
    output = load_output(run, hardware, None, LEAST_SCORE)
    if not isinstance(output.method, SegmentationMethod):
        raise UserError(
            f"{run}: is a run of '{output.method.card.name}', which knows no class of every pixel; name a segmenter's, "
            "or leave it out for random pixels"
        )
    return Picker(output, acquisition, seed, round)


def select(
    run: Path | None = None,
    *,
    data: Path,
    out: Path,
    pixels: int,
    split: str = "train",
    strategy: Strategy | None = None,
    share: float = SHARE,
    choice: Choice = "share_then_random",
    votes: int = 0,
    round: int | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Choose the pixels of each image of a split that are to be labelled next, and write them as a file of queries.

    Pixels that have a click in the data set's `Points` are left out, and those that somebody has skipped in the label
    page; no other label is read.

    Args:
        run: the folder of a finished run of any segmenter; None chooses at random.
        data: the data set's folder.
        out: the file to write, JSON; an earlier file of queries is replaced.
        pixels: how many of each image.
        split: whose images.
        strategy: `margin`, `entropy`, `least_confidence` or `random`; margin with a run, random without, unless given.
        share: of an image's pixels, the candidates from which is chosen.
        choice: how, from the candidates; see `models.acquisition.select_pixels`.
        votes: passes with random dropout whose scores are averaged; 0 = one pass without.
        round: how many models were trained before, for the record; 0 without a run and 1 with one unless given.
        seed: of all that is random.
        skip_broken: leave out images with broken files instead of stopping.
        hardware: where to compute, and how precisely.

    Returns:
        `images`, `pixels` asked for in all, `strategy`, `skipped` and the file `out`.

    Raises:
        UserError: no such run, data set or split, an option is wrong, or `out` holds something else.
        BadFile: a file is broken and `skip_broken` is not set.
    """
    require_at_least("pixels", pixels, 1)
    require_seed(seed)
    number = (0 if run is None else 1) if round is None else round
    require_at_least("round", number, 0)
    strategy = strategy or ("random" if run is None else "margin")
    if run is None and strategy != "random":
        raise UserError(f"--strategy {strategy}: needs a model; name a run, or leave it out for random pixels")
    _refuse_other_file(Path(out))
    acquisition = AcquisitionConfig(strategy=strategy, share=share, choice=choice, votes=votes)
    picker = load_picker(None if run is None else Path(run), acquisition, seed, number, hardware or Hardware())
    dataset = datasets.open(Path(data))
    wanted = {id: _clicked(dataset, id) for id in dataset.ids(split)}
    broken = broken_ids(dataset, wanted, skip_broken)
    ids = usable(list(wanted), broken, f"split '{split}' of {data}")
    skipped = skipped_pixels(dataset.root)
    watch = watched(ids, "selecting", len(ids))
    queries = tuple(
        _query(picker, dataset.read(id, _standing(dataset, id, wanted[id])), pixels, skipped.get(id, []))
        for id in watch
    )
    model = None if picker.output is None else str(run)
    chosen = QueryFile(queries, strategy, model, number)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_queries(Path(out), chosen)
    return {
        "images": len(ids),
        "pixels": chosen.pixels,
        "strategy": strategy,
        "skipped": sorted(broken),
        "out": str(out),
    }


def occupied(points: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels on which there are points. [P, 2] (x, y) -> [H, W] bool."""
    labels = torch.zeros(len(points), dtype=torch.int64)
    return sparse_mask(points.as_subclass(Tensor), labels, size) != IGNORE_INDEX


def _query(picker: Picker, sample: Sample, pixels: int, skipped: Sequence[tuple[int, int]]) -> Query:
    height, width = sample.image.shape[-2:]
    size = (height, width)
    # The image may have been replaced by a smaller one since.
    told = [(x, y) for x, y in skipped if x < width and y < height]
    taken = occupied(torch.tensor(told).reshape(-1, 2), size)
    if sample.points is not None:
        taken |= occupied(sample.points, size)
    picked = picker.pick(sample.id, sample.image.as_subclass(Tensor), pixels, taken)
    x, y = picked.pixels.T.tolist()
    unsure = None if picked.uncertainty is None else round(picked.uncertainty, 6)
    return Query(sample.id, height, width, tuple(x), tuple(y), unsure)


def _clicked(dataset: DataSet, id: str) -> frozenset[Kind]:
    """Points, where the image has a file of its own for them; points that follow from a mask do not count."""
    own = isinstance(dataset, VOC) and dataset.origin(id, Kind.POINTS) is Kind.POINTS
    return frozenset({Kind.POINTS} if own else ())


def _standing(dataset: DataSet, id: str, kinds: frozenset[Kind]) -> frozenset[Kind]:
    """The kinds whose files are still there: in the label page somebody may take the last point back meanwhile."""
    return frozenset(kind for kind in kinds if all(path.exists() for path in dataset.label_files(id, kind)))


def _refuse_other_file(out: Path) -> None:
    """Refuse to replace what is no file of queries.

    Raises:
        UserError: the path is a folder or another file.
    """
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a .json file")
    if not out.exists():
        return
    try:
        read_queries(out)
    except BadFile:
        raise UserError(f"--out {out}: holds something else than queries; name another file") from None
