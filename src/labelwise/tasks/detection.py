"""What the methods of object detection share: views, prediction, validation, schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from labelwise.datasets.base import Classes
from labelwise.detections import Detections
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Method, Stream
from labelwise.metrics.detection import DetectionScores
from labelwise.metrics.proposals import ProposalRecall
from labelwise.models.boxes import best_boxes
from labelwise.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from labelwise.samples import Batch, Sample, Views
from labelwise.tasks.optimization import OptimizationConfig, OptimizedMethod


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(OptimizationConfig):
    """Options of every trained detector; the defaults are those of R-CNN's family on VOC 2007."""

    use_difficult: bool = False
    "learn difficult objects as well"
    head_multiplier: float = 1.0
    "learning rate of everything but the backbone, as a multiple"
    weight_decay: float = 5e-4
    "on weights, not on biases"
    rate_drop: float = 0.75
    "share of the steps after which the learning rate falls to a tenth; 1 = never"
    score_threshold: float = 0.05
    "least score of a detection"
    nms_threshold: float = 0.3
    "a detection is dropped if its IoU with a surer one of its class is above"
    max_detections: int = 100
    "the most detections per image"
    average_precision: Literal["voc07", "area"] = "voc07"
    "how the main score reads the precision-recall curve: at 11 recalls (VOC 2007), or its area (VOC 2010 and later)"

    def __post_init__(self) -> None:
        """Refuse numbers that no detector can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("max_detections", self.max_detections, 1)
        for name in ("rate_drop", "score_threshold", "nms_threshold"):
            require_share(name, getattr(self, name))


class DetectionMethod(OptimizedMethod):
    """A method that ends in boxes with a class and a score.

    A subclass gives `build_network`, `streams`, `losses` and `detect`.
    """

    config: DetectionConfig
    Config = DetectionConfig

    def __init__(
        self,
        config: DetectionConfig,
        classes: Classes,
        *,
        training: bool = True,
        earlier: Mapping[str, Method] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `Method`; also makes the validation scores."""
        super().__init__(config, classes, training=training, earlier=earlier, initial=initial)
        self.normalize = PixelNormalization(*self.pixel_statistics)
        self.scores = DetectionScores(self.object_names, config.average_precision)
        self.recall = ProposalRecall(self.object_names)

    @property
    def object_names(self) -> tuple[str, ...]:
        """The names of the K classes of objects: all but the background."""
        return tuple(self.classes.names[number] for number in self.classes.objects)

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of RGB in 0..1, with which the backbone's weights were trained."""
        return IMAGENET_MEAN, IMAGENET_STD

    def columns(self, labels: Tensor) -> Tensor:
        """Class numbers [N] -> positions among `object_names`, [N] int64.

        Raises:
            UserError: a label is the background.
        """
        return object_columns(self.classes, labels)

    def class_numbers(self, columns: Tensor) -> Tensor:
        """Positions among `object_names` [N] -> class numbers, [N] int64; the inverse of `columns`."""
        return torch.tensor(self.classes.objects, dtype=torch.int64, device=columns.device)[columns]

    # --------------------------------------------------------------- training

    def streams(self) -> dict[str, Stream]:
        """One stream of images with boxes, scaled, half of them flipped."""
        return {"labeled": Stream("labeled", self.labeled_view)}

    def labeled_view(self, sample: Sample) -> Views:
        """The image with the boxes to learn, and proposals if it has any, scaled to the input size, flipped or not."""
        return Views(sample=self.with_learned_boxes(sample).transformed(self.geometric()))

    def geometric(self) -> v2.Transform:
        """The geometric augmentation: to the input's size, and a flip."""
        return v2.Compose([self.resize(), v2.RandomHorizontalFlip()])

    def resize(self) -> v2.Transform:
        """Brings an image to the size that the network wants; any does unless a method says otherwise."""
        return v2.Identity()

    def with_learned_boxes(self, sample: Sample) -> Sample:
        """The sample without difficult objects, unless they are to be learned, and with no other label than boxes.

        Raises:
            UserError: it has no boxes.
        """
        boxes, labels, difficult = sample.boxes, sample.box_labels, sample.difficult
        if boxes is None or labels is None:
            raise UserError(f"image '{sample.id}' has no boxes; --labels boxes:all")
        if difficult is not None and not self.config.use_difficult:
            boxes, labels = tv_tensors.wrap(boxes[~difficult], like=boxes), labels[~difficult]
        return Sample(id=sample.id, image=sample.image, boxes=boxes, box_labels=labels, proposals=sample.proposals)

    def input_of(self, labeled: Batch) -> Tensor:
        """The network's input [B, 3, H, W]: normalised images, 0 where one is smaller than the largest."""
        pixels = self.normalize(labeled.image)
        return pixels if labeled.padding is None else pixels.masked_fill(labeled.padding[:, None], 0.0)

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """As of every method with a backbone, and twice that for biases (Fast R-CNN, section 2.3)."""
        return super().rate_multiplier(name, parameter) * (2.0 if name.endswith("bias") else 1.0)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay acts on everything but biases."""
        return not name.endswith("bias")

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0: a tenth after `rate_drop` of the steps."""
        return 1.0 if step < self.config.rate_drop * self.total_steps else 0.1

    # ------------------------------------------------------------- prediction

    @abstractmethod
    def detect(self, sample: Sample) -> Detections:
        """The objects of one image, surest first. Only the sample's id and image are looked at.

        Args:
            sample: an image of any size, on any device; its id names the file of its proposals, if they are given.
        """

    def propose(self, sample: Sample) -> Tensor | None:
        """Where objects of any class may be: [P, 4] in the image's pixels, best first; None of methods without."""
        return None

    def predict(self, image: Tensor) -> list[Detections]:
        """The objects of each of [B, 3, H, W] uint8 images."""
        return [self.detect(Sample(id="", image=tv_tensors.Image(each))) for each in image]

    def resized(self, image: Tensor) -> Tensor:
        """One image [3, H, W] uint8 as the network's input [1, 3, h, w]: scaled and normalised."""
        plain = image.as_subclass(Tensor).to(self.device)
        return self.normalize(self.resize()(plain)[None])

    def kept(self, boxes: Tensor, scores: Tensor) -> Detections:
        """The detections among boxes [N, K, 4] or [N, 4] with scores [N, K] of the K classes of objects."""
        config = self.config
        found = best_boxes(boxes, scores, config.score_threshold, config.nms_threshold, config.max_detections)
        return Detections(boxes=found[0].float(), labels=self.class_numbers(found[1]), scores=found[2].float())

    # ------------------------------------------------------------- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the detections of one image, and of the last validation also its proposals."""
        assert batch.boxes is not None and batch.box_labels is not None
        sample = Sample(id=batch.ids[0], image=tv_tensors.Image(batch.image[0]))
        boxes, labels = batch.boxes[0], self.columns(batch.box_labels[0])
        difficult = torch.zeros_like(labels, dtype=torch.bool) if batch.difficult is None else batch.difficult[0]
        place = self.place(batch_idx)
        self.scores.update(place, self.by_column(self.detect(sample)), boxes, labels, difficult)
        proposals = self.propose(sample) if self.thorough else None
        if proposals is not None:
            self.recall.update(place, proposals, boxes[~difficult], labels[~difficult])

    def place(self, batch_idx: int) -> int:
        """The position of a validation image among all, however many processes share them."""
        return batch_idx * self.trainer.world_size + self.trainer.global_rank

    def by_column(self, found: Detections) -> Detections:
        """The detections with positions among `object_names` instead of class numbers, as the scores want them."""
        return replace(found, labels=self.columns(found.labels))

    def on_validation_epoch_end(self) -> None:
        """Log mean average precision and that of each class."""
        self.results = self.scores.results(thorough=self.thorough)
        self.scores.reset()
        if self.thorough and self.recall.images:
            self.results["proposals"] = self.recall.compute()
        self.recall.reset()
        self.log("val/map", self.results["map"], prog_bar=True, rank_zero_only=True)
        self.log_by_class("ap", self.results["ap"])


@dataclass(frozen=True, kw_only=True)
class ScaledConfig(DetectionConfig):
    """Options of every detector that scales images; the defaults are those of Fast and Faster R-CNN."""

    short_side: int = 600
    "pixels to which an image's shorter side is scaled"
    long_side: int = 1000
    "pixels that an image's longer side is at most scaled to"

    def __post_init__(self) -> None:
        """Refuse sizes that no image can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("short_side", self.short_side, 16)
        require_at_least("long_side", self.long_side, self.short_side + 1)


class ScaledMethod(DetectionMethod):
    """A detector that scales images, with their aspect ratio kept."""

    config: ScaledConfig
    Config = ScaledConfig

    def resize(self) -> v2.Transform:
        """Scales an image's shorter side to `short_side`, unless the longer one became more than `long_side`."""
        return self.resize_to(self.config.short_side)

    def resize_to(self, side: int) -> v2.Transform:
        """Scales an image's shorter side to so many pixels, unless the longer one became more than `long_side`."""
        return v2.Resize([side], max_size=self.config.long_side, antialias=True)


def object_columns(classes: Classes, labels: Tensor) -> Tensor:
    """Class numbers [N] -> positions among the classes of objects, [N] int64.

    Raises:
        UserError: a label is the background.
    """
    table = torch.full((len(classes),), -1, dtype=torch.int64, device=labels.device)
    table[list(classes.objects)] = torch.arange(len(classes.objects), device=labels.device)
    columns = table[labels]
    if bool((columns < 0).any()):
        raise UserError("a box is labelled as background; correct its class")
    return columns
