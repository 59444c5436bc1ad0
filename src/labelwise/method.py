"""The base of every method: its card, its configuration, its training step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import lightning
import torch
from torch import Tensor, nn

from labelwise.datasets.base import Classes
from labelwise.errors import UserError, require_at_least
from labelwise.samples import Batch, Kind, Sample, Views, with_derivable

TASKS = (
    "semantic segmentation",
    "detection",
    "instance segmentation",
    "classification",
    "localisation",
    "refinement",
    "pretraining",
)


class MainScore(NamedTuple):
    """The score of a task that runs are compared by.

    Attributes:
        key: its name among the results, in percent.
        name: as papers write it.
    """

    key: str
    name: str


MAIN_SCORES = {
    "semantic segmentation": MainScore("miou", "mIoU"),
    "classification": MainScore("map", "mAP"),
    "detection": MainScore("map", "mAP"),
    "instance segmentation": MainScore("map", "mAP^r"),
    "localisation": MainScore("seed_miou", "seed mIoU"),
    "refinement": MainScore("miou", "mask mIoU"),
}
"""The main score of each task that a method can be trained for."""


class Truth(NamedTuple):
    """The labels that predictions are scored on.

    Attributes:
        required: an image without these is not scored.
        optional: also read where an image has them; they allow further scores.
    """

    required: frozenset[Kind]
    optional: frozenset[Kind] = frozenset()

    @property
    def kinds(self) -> frozenset[Kind]:
        """Both."""
        return self.required | self.optional


TRUTHS = {
    "localisation": Truth(frozenset({Kind.TAGS}), frozenset({Kind.MASKS, Kind.BOXES})),
    "refinement": Truth(frozenset({Kind.MASKS, Kind.MAPS})),
}
"""What the tasks are scored on whose predictions are more, or others, than the labels that can be had."""


@dataclass(frozen=True)
class Needs:
    """What a method has to be given.

    Attributes:
        labels: the kinds of label it learns from.
        unlabeled: it also learns from bare images.
        ood: it also needs images in which no class occurs.
        dense: it learns from whole masks; other methods take points for masks that are silent everywhere else.
    """

    labels: frozenset[Kind]
    unlabeled: bool = False
    ood: bool = False
    dense: bool = False

    def fit(self, kinds: Collection[Kind]) -> bool:
        """Whether a data set with these kinds of label has all that is needed (weaker kinds are derived)."""
        given = with_derivable(kinds)
        return self.labels <= (given if self.dense or Kind.POINTS not in given else given | {Kind.MASKS})

    @property
    def all_labels(self) -> str:
        """The specification of every label that it learns from, such as `masks:all`."""
        return "+".join(f"{kind}:all" for kind in sorted(self.labels)) or "none"

    def __str__(self) -> str:
        parts = [str(kind) for kind in sorted(self.labels)] or ["no labels"]
        if self.unlabeled:
            parts = [f"few {part}" for part in parts] + ["bare images"]
        if self.ood:
            parts.append("images without any class")
        return " + ".join(parts)


@dataclass(frozen=True)
class Published:
    """A number that the paper (or its code) reports; never one of ours."""

    setting: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Claim:
    """The paper's central comparison, as `reproduce` runs it.

    Attributes:
        text: the claim in one sentence.
        baseline: the method it is measured against.
        labels: what both may see in the mini-scale experiment.
        paper_labels: what both may see in the paper's experiment.
        margin: the least difference, in points of the task's main score, for the claim to hold at mini scale;
            below 0 it is the loss that a claim of being no worse allows, at both scales.
        ceiling: labels with which the baseline is trained as well; the claim is also told as the share of the gap
            between the baseline's two scores.
        scenes: the synthetic data set of the mini-scale experiment, as options of the verb `shapes`.
        baseline_options: options that the baseline takes over from the method, such as the backbone of a light student.
        baseline_settings: options of the baseline that make it one, such as `{"stride": 32}` where a method is
            measured against a coarser form of itself.
        score: what it is measured by, if not the task's main score, such as `gt_known`.
    """

    text: str
    baseline: str
    labels: str
    paper_labels: str
    margin: float = 0.0
    ceiling: str | None = None
    scenes: Mapping[str, Any] = field(default_factory=dict)
    baseline_options: tuple[str, ...] = ()
    baseline_settings: Mapping[str, Any] = field(default_factory=dict)
    score: str | None = None


@dataclass(frozen=True)
class Card:
    """A method's contract: what it needs and gives, where it was published, what it claims."""

    name: str
    title: str
    task: str
    needs: Needs
    gives: frozenset[Kind]
    paper: str
    year: int
    idea: str
    published: tuple[Published, ...] = ()
    claim: Claim | None = None

    @property
    def main_score(self) -> MainScore:
        """The score that its runs are compared by."""
        return MAIN_SCORES[self.task]

    @property
    def truth(self) -> Truth:
        """The labels that its predictions are scored on: those that it gives, unless its task says otherwise."""
        return TRUTHS.get(self.task, Truth(self.gives))


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The options that every trained method has; each method's own `Config` adds its own."""

    steps: int = 0
    "optimiser steps; 0 = as many as the epochs say"
    epochs: float = 80.0
    "passes over the unlabelled or the labelled images, whichever are more"
    batch_size: int = 8
    "images per optimiser step and stream, over all devices together"
    eval_every: int = 0
    "steps between evaluations on the val split; 0 = at the end only"

    def __post_init__(self) -> None:
        """Refuse numbers that no training can have.

        Raises:
            UserError: names the option.
        """
        for name, least in (("steps", 0), ("batch_size", 1), ("eval_every", 0)):
            require_at_least(name, getattr(self, name), least)
        if not self.steps and self.epochs <= 0:
            raise UserError(f"--epochs {self.epochs}: must be above 0")

    def total_steps(self, images: int) -> int:
        """The number of optimiser steps: `steps`, or `epochs` times the whole batches of so many images."""
        return self.steps or max(1, int(self.epochs * max(1, images // self.batch_size)))


@dataclass(frozen=True)
class Stage:
    """A run that has to be finished before a method can learn from it, such as that of a teacher.

    It sees the same data, labels and seed as the method's own run, and lies in that run's folder.

    Attributes:
        option: the method's option that names the run: `word`, or the folder of a run that is finished already.
        word: the option's value for which the run is made.
        method: the method of the earlier run.
        options: its options; all others are those of this method's configuration where it has them.
    """

    option: str
    word: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """One of the loaders that a training step draws from.

    Attributes:
        source: which images: those with labels, those without, or images of no class.
        transform: from the sample as read to its augmented views; called with torch's random state seeded
            by (seed, stream, draw).
        share: images of this stream in a step, as a multiple of `batch_size`.
        copies: how often an image with these labels comes in one pass over the stream; once unless given.
        live: the transform reads what training steps change, such as corrected labels; it is then called by the
            training process itself, just before the step, whatever the number of loader workers.
    """

    source: Literal["labeled", "unlabeled", "ood"]
    transform: Callable[[Sample], Views]
    share: float = 1.0
    copies: Callable[[Sample], int] | None = None
    live: bool = False


class NonFiniteLoss(RuntimeError):
    """A loss term became infinite or not a number."""


class Method(lightning.LightningModule):
    """One published paper.

    A subclass gives its `card`, its `Config`, `build_network` (what prediction needs), `build_training` (what only
    training needs), `streams` and `losses`.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    config: MethodConfig
    network: nn.Module
    thorough: bool = False
    "whether a validation also computes the slow scores"
    results: dict[str, Any]
    "the scores of the last validation, as `evaluate --json` prints them"
    ood_samples: Sequence[Sample] = ()
    "the images of no class, read anew at each access; set before `prepare` where a method needs them"

    def __init__(
        self,
        config: MethodConfig,
        classes: Classes,
        *,
        training: bool = True,
        earlier: Mapping[str, Method] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Build the networks.

        Args:
            config: an instance of this method's `Config`.
            classes: the classes of the data set.
            training: False builds only what prediction needs and loads no pretrained weights.
            earlier: the trained methods of the `stages` before this run, by the stages' option.
            initial: weights of the network to start from, by name; all other weights stay as they are built.
        """
        super().__init__()
        # Not a module of this one: what it learns from it takes over in `build_training`.
        self.earlier = dict(earlier or {})
        self.config = config
        self.classes = classes
        self.total_steps = max(1, config.steps)
        self.results = {}
        self._observed: dict[str, Tensor] = {}
        self.network = self.build_network(pretrained=training)
        if initial:
            self.network.load_state_dict(initial, strict=False)
        if training:
            self.build_training()

    @abstractmethod
    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The network that is kept after training; its state is what `model.safetensors` holds."""

    def build_training(self) -> None:
        """Build what only training needs: further networks, teachers, projection heads."""

    @classmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """The runs that come before this one, in their order; none unless a method says otherwise.

        Args:
            config: an instance of this method's `Config`.
        """
        return ()

    @abstractmethod
    def streams(self) -> dict[str, Stream]:
        """The streams of a training step; the names are the keyword arguments of `losses`."""

    @abstractmethod
    def losses(self, *args: Any, **streams: Any) -> dict[str, Tensor]:
        """The named loss terms of one step, already weighted; their sum is minimised.

        Args:
            *args: nothing; methods name their streams as parameters.
            **streams: one `Batch` per stream, by the stream's name.
        """

    def after_step(self) -> None:
        """Called after each optimiser step (moving averages of weights, thresholds)."""

    def prepare(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Measure what the training has to know of all its images beforehand; nothing unless a method says so.

        It is called before the first step, and again where a run goes on, with the same images; what it measures
        belongs into the state of `network`, and has to be the same then.

        Args:
            samples: the labelled training images, read anew at each access; may be kept for passes during the training.
            scratch: a folder for files that the training needs, such as labels that it changes; it is the same where
                a run goes on, and removed when the run is finished.
        """

    def complete(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Fit what is not learned by gradient descent, once the training is over; nothing unless a method says so.

        What is fitted belongs into the state of `network`. It may be called again with the same images, of a run that
        was cut meanwhile, and has to come to the same result then.

        Args:
            samples: the labelled training images, read anew at each access.
            scratch: the folder of `prepare`, for files that are not needed afterwards, such as cached features.
        """

    def report(self, folder: Path) -> None:
        """Write what is to be told of the training beside its scores, as plain data; nothing unless a method says so.

        Args:
            folder: the run's; the report draws the files that it knows.
        """

    @abstractmethod
    def predict(self, image: Tensor) -> Any:
        """The task's scores for [B, 3, H, W] uint8 images; of detectors one `Detections` for each."""

    @property
    def progress(self) -> float:
        """The share of training steps that are done, from 0 to 1."""
        return self.global_step / self.total_steps

    def observe(self, **values: Tensor) -> None:
        """Note numbers of this step that are not minimised, such as a threshold, for `metrics.csv` and the report.

        Args:
            **values: scalars; `coverage` is logged as `pseudo/coverage`.
        """
        self._observed |= {f"pseudo/{name}": value.detach().float() for name, value in values.items()}

    def log_by_class(self, score: str, values: Mapping[str, float | None]) -> None:
        """Log a validation score of each class by name, such as `ap`; a class without one is left out."""
        for name, value in values.items():
            if value is not None:
                self.log(f"val/{score}/{name}", value, rank_zero_only=True)

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Sum and log the loss terms; stop at the first that is not finite."""
        terms = self.losses(**batch)
        values = torch.stack([term.detach().float() for term in terms.values()])
        self._require_finite(dict(zip(terms, values, strict=True)), batch)
        for name, value in zip(terms, values, strict=True):
            self.log(f"loss/{name}", value)
        for name, value in self._observed.items():
            self.log(name, value)
        self._observed = {}
        total = torch.stack(list(terms.values())).sum()
        self.log("loss", total.detach(), prog_bar=True)
        return total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, then let the method update what follows the weights."""
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def _require_finite(self, terms: dict[str, Tensor], batch: dict[str, Batch]) -> None:
        """Stop all processes together when a term of any is not finite; one alone would leave the others waiting."""
        finite = torch.stack(list(terms.values())).isfinite().all()
        world = self.trainer.world_size
        if world > 1:
            finite = self.trainer.strategy.reduce(finite.int(), reduce_op="min")
        if bool(finite):
            return
        complaints = [self._complaint(terms, batch)]
        if world > 1:
            mine, complaints = complaints[0], [""] * world
            torch.distributed.all_gather_object(complaints, mine)
        raise NonFiniteLoss(next(filter(None, complaints)))

    def _complaint(self, terms: dict[str, Tensor], batch: dict[str, Batch]) -> str:
        """What is wrong with the first term that is not finite; empty if all are."""
        name = next((name for name, term in terms.items() if not torch.isfinite(term)), None)
        if name is None:
            return ""
        rates = sorted({group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups})
        ids = "; ".join(f"{stream}: {', '.join(part.ids)}" for stream, part in batch.items())
        return (
            f"loss term '{name}' is {terms[name].item()} at step {self.global_step + 1} with learning rate "
            f"{', '.join(f'{rate:.3g}' for rate in rates)} on images {ids}; "
            "the last checkpoint is kept: lower the learning rate or look at these images"
        )
