"""PixelPick on real images: mIoU by the number of labelled pixels per image, and what choosing them costs.

    python benchmarks/pixelpick.py curve DATA OUT [--budgets 10 20 30 40] [--seeds 3] -- --preset small \
        --backbone-weights FILE [options of `labelwise train pixelpick`, but labels, seed, strategy and rounds]
    python benchmarks/pixelpick.py time DATA RUN [--split train] [--images N]

`curve` trains, one run after the other, pixels chosen by the margin in as many rounds as there are budgets, as many
random pixels, and dense masks. What is finished is not trained again, so that the work can be done in several calls;
after each run `OUT/pixelpick.json`, `.md` and `.png` tell of all that there is. The first round of the margin is the
same training as that of the first random budget, and counts for both. `time` chooses pixels of every image of a split
by a finished run, and tells the time in the network from that of the choice; exit code 0 if the choice takes less than
a tenth of the network's time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import labelwise
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.models.acquisition import Strategy
from labelwise.progress import watched
from labelwise.reports.curves import SERIES
from labelwise.reports.statistics import MeanInterval, mean_interval, paired_difference
from labelwise.runs import read_json
from labelwise.tasks.acquisition import AcquisitionConfig
from labelwise.verbs.select import load_picker

ALLOWED = 0.1
"""The share of the network's time that choosing may take."""
DENSE, MARGIN, RANDOM = "dense masks", "margin", "random"

Scores = dict[int, dict[int, float]]
"""Pixels per image -> seed -> mIoU."""


@dataclass(frozen=True)
class Curves:
    """The runs of one experiment.

    Attributes:
        data: the data set's folder.
        out: where the runs and the results lie.
        budgets: pixels per image, each as much more than the one before.
        seeds: how many.
        options: of the training.
    """

    data: Path
    out: Path
    budgets: Sequence[int]
    seeds: int
    options: Sequence[str]

    def make(self) -> None:
        """Train what is missing, and report after each run."""
        most, first = self.budgets[-1], self.budgets[0]
        for seed in range(self.seeds):
            rounds = ("--strategy=margin", f"--rounds={len(self.budgets)}")
            self._train(self.folder(seed, MARGIN, most), seed, f"points:{most}", *rounds)
            for budget in self.budgets:
                if budget != first:
                    folder = self.folder(seed, RANDOM, budget)
                    self._train(folder, seed, f"points:{budget}", "--strategy=random", "--rounds=1")
            self._train(self.folder(seed, DENSE, 0), seed, "masks", "--rounds=1")
        self.report()

    def folder(self, seed: int, how: str, budget: int) -> Path:
        """Where the run of a budget lies."""
        top = self.out / f"seed{seed}"
        if how == DENSE:
            return top / "dense"
        if how == RANDOM and budget != self.budgets[0]:
            return top / f"random-{budget}"
        number = self.budgets.index(budget) + 1
        return top / "margin" if number == len(self.budgets) else top / "margin" / "rounds" / str(number) / "run"

    def scores(self, how: str) -> Scores:
        """The mIoU of every finished run of a kind; that of dense masks under 0 pixels."""
        found: Scores = {}
        for budget in (0,) if how == DENSE else self.budgets:
            for seed in range(self.seeds):
                folder = self.folder(seed, how, budget)
                if is_finished(folder):
                    found.setdefault(budget, {})[seed] = read_json(folder / "results.json")["miou"]
        return found

    def report(self) -> None:
        """Write the table and the figure of all that is finished."""
        scores = {how: self.scores(how) for how in (MARGIN, RANDOM, DENSE)}
        # Where files lie is of no interest to whoever reads the results.
        options = [Path(word).name if Path(word).is_file() else word for word in self.options]
        said = {"data": self.data.name, "options": options, "scores": scores, "rounds": self._rounds()}
        atomic_write(self.out / "pixelpick.json", json.dumps(said, indent=2))
        atomic_write(self.out / "pixelpick.md", table(scores, self.budgets))
        draw(scores, self.data.name, self.out / "pixelpick.png")
        print(table(scores, self.budgets))

    def _train(self, folder: Path, seed: int, labels: str, *words: str) -> None:
        if is_finished(folder):
            return
        call = [sys.executable, "-m", "labelwise", "train", "pixelpick", f"--data={self.data}", f"--out={folder}"]
        subprocess.run([*call, *self.options, f"--labels={labels}", f"--seed={seed}", *words], check=True)
        self.report()

    def _rounds(self) -> dict[int, Any]:
        """Seed -> what the margin has asked for in each round."""
        files = {seed: self.out / f"seed{seed}" / "margin" / "rounds.json" for seed in range(self.seeds)}
        return {seed: read_json(file)["rounds"] for seed, file in files.items() if file.is_file()}


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return bool(read_json(folder / "status.json").get("status") == "finished")


def table(scores: Mapping[str, Scores], budgets: Sequence[int]) -> str:
    """Markdown: mean and 95 % interval of each budget; the difference is of the seeds that both have."""
    lines = ["| pixels per image | margin | random | margin - random | seeds |", "|---|---|---|---|---|"]
    for budget in budgets:
        margin, random = scores[MARGIN].get(budget, {}), scores[RANDOM].get(budget, {})
        both = sorted(margin.keys() & random.keys())
        difference = "-"
        if both and margin != random:
            found = paired_difference([margin[seed] for seed in both], [random[seed] for seed in both])
            difference = written(MeanInterval(found.mean, found.half_width), signed=True)
        cells = [f"{budget}", of(margin), of(random), difference, f"{len(both)}"]
        lines.append(f"| {' | '.join(cells)} |")
    dense = scores[DENSE].get(0, {})
    lines.append(f"| all ({DENSE}) | {of(dense)} | | | {len(dense)} |")
    return "\n".join(lines) + "\n"


def of(values: Mapping[int, float]) -> str:
    """Mean and interval over seeds."""
    return written(mean_interval(list(values.values()))) if values else "-"


def written(value: MeanInterval, signed: bool = False) -> str:
    """``51.2 ± 0.8``."""
    mean = f"{value.mean:+.1f}" if signed else f"{value.mean:.1f}"
    return mean if value.half_width is None else f"{mean} ± {value.half_width:.1f}"


def draw(scores: Mapping[str, Scores], title: str, path: Path) -> None:
    """The curves with 95 % intervals, and dense masks as a line across."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    budgets = sorted({budget for how in (MARGIN, RANDOM) for budget in scores[how]})
    # The intervals of one budget stand beside each other.
    beside = 0.006 * (budgets[-1] - budgets[0]) if budgets else 0.0
    for how, color, marker, shift in ((MARGIN, SERIES[0], "o", -beside), (RANDOM, SERIES[1], "s", beside)):
        found = {budget: mean_interval(list(values.values())) for budget, values in scores[how].items()}
        if found:
            means, widths = zip(*((each.mean, each.half_width or 0.0) for each in found.values()), strict=True)
            axes.errorbar(
                [budget + shift for budget in found], means, widths, color=color, marker=marker, capsize=3, label=how
            )
    dense = list(scores[DENSE].get(0, {}).values())
    if dense:
        mean, width = mean_interval(dense)
        axes.axhline(mean, color=SERIES[2], linestyle="--", label=DENSE)
        axes.axhspan(mean - (width or 0), mean + (width or 0), color=SERIES[2], alpha=0.12, linewidth=0)
    axes.set(xlabel="labelled pixels per image", ylabel="mIoU on val (%)", xticks=budgets)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


class Timed:
    """A prediction, and the seconds that all calls of it took."""

    def __init__(self, predict: Callable[[Tensor], Tensor]) -> None:
        """Start at 0."""
        self.predict, self.seconds = predict, 0.0

    def __call__(self, image: Tensor) -> Tensor:
        """Predict, and wait for the device."""
        began = time.perf_counter()
        logits = self.predict(image)
        if logits.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        return logits


def measure(data: Path, run: Path, split: str, images: int, pixels: int) -> int:
    """Print the milliseconds per image of network and choice for every strategy; 0 if none takes too long."""
    dataset = labelwise.open(data)
    ids = dataset.ids(split)[: images or None]
    shares = []
    print(f"{len(ids)} images of {data} ({split}), {pixels} pixels each, {torch.get_num_threads()} threads")
    print("| strategy | network ms | choice ms | share |\n|---|---|---|---|")
    for strategy in (name for name in get_args(Strategy) if name != "random"):
        picker = load_picker(run, AcquisitionConfig(strategy=strategy), 0, 1, Hardware(precision="32-true"))
        assert picker.output is not None
        timed = Timed(picker.output.method.predict)
        picker.output.method.predict = timed  # type: ignore[method-assign, assignment]
        picker.pick("first", dataset.read(ids[0]).image.as_subclass(Tensor), pixels)
        timed.seconds = total = 0.0
        for id in watched(ids, strategy, len(ids)):
            image = dataset.read(id).image.as_subclass(Tensor)
            began = time.perf_counter()
            picker.pick(id, image, pixels)
            total += time.perf_counter() - began
        choice = total - timed.seconds
        shares.append(choice / timed.seconds)
        network = 1000 * timed.seconds / len(ids)
        print(f"| {strategy} | {network:.1f} | {1000 * choice / len(ids):.2f} | {100 * shares[-1]:.1f} % |", flush=True)
    return 0 if max(shares) < ALLOWED else 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    curve = modes.add_parser("curve")
    curve.add_argument("data", type=Path)
    curve.add_argument("out", type=Path)
    curve.add_argument("--budgets", type=int, nargs="+", default=[10, 20, 30, 40])
    curve.add_argument("--seeds", type=int, default=3)
    timing = modes.add_parser("time")
    timing.add_argument("data", type=Path)
    timing.add_argument("run", type=Path)
    timing.add_argument("--split", default="train")
    timing.add_argument("--images", type=int, default=0, help="of the split; 0 = all")
    timing.add_argument("--pixels", type=int, default=10)
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:place])
    if arguments.mode == "time":
        return measure(arguments.data, arguments.run, arguments.split, arguments.images, arguments.pixels)
    step = arguments.budgets[0]
    if arguments.budgets != [step * number for number in range(1, len(arguments.budgets) + 1)]:
        parser.error(f"--budgets: must be multiples of the first in order, such as {step} {2 * step} {3 * step}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    Curves(arguments.data, arguments.out, arguments.budgets, arguments.seeds, words[place + 1 :]).make()
    return 0


if __name__ == "__main__":
    sys.exit(main())
