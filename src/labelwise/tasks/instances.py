"""What the methods of instance segmentation add to detection: shapes, and their score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.derive import boxes_of_instances
from labelwise.errors import UserError
from labelwise.method import Method
from labelwise.metrics.instances import InstanceScores
from labelwise.samples import IGNORE_INDEX, Batch, Sample
from labelwise.tasks.detection import DetectionConfig, DetectionMethod


@dataclass(frozen=True, kw_only=True)
class InstanceConfig(DetectionConfig):
    """Options of every trained method of instance segmentation."""


class InstanceMethod(DetectionMethod):
    """A method whose detections have masks; validation reads instances, and masks for the pixels of no object's."""

    config: InstanceConfig
    Config = InstanceConfig

    def __init__(
        self,
        config: InstanceConfig,
        classes: Classes,
        *,
        training: bool = True,
        earlier: Mapping[str, Method] | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `Method`; also makes the validation scores of shapes."""
        super().__init__(config, classes, training=training, earlier=earlier, initial=initial)
        self.shape_scores = InstanceScores(self.object_names)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the shapes found in one image, and their boxes against those of the true shapes."""
        assert batch.instances is not None and batch.instance_labels is not None
        sample = Sample(id=batch.ids[0], image=tv_tensors.Image(batch.image[0]))
        instances, labels = batch.instances[0].bool(), self.columns(batch.instance_labels[0])
        void = None if batch.mask is None else batch.mask[0] == IGNORE_INDEX
        place = self.place(batch_idx)
        found = self.by_column(self.detect(sample))
        self.shape_scores.update(place, found, instances, labels, void, hulls=self.thorough)
        self.scores.update(
            place, found, boxes_of_instances(instances), labels, torch.zeros_like(labels, dtype=torch.bool)
        )

    def on_validation_epoch_end(self) -> None:
        """Log mean AP^r at an overlap of 0.5 and that of each class; the boxes' scores are `boxes`."""
        boxes = self.scores.results(thorough=self.thorough)
        self.results = self.shape_scores.results(thorough=self.thorough) | {"boxes": boxes}
        self.scores.reset()
        self.shape_scores.reset()
        self.log("val/map", self.results["map"], prog_bar=True, rank_zero_only=True)
        self.log("val/box_map", boxes["map"], rank_zero_only=True)
        self.log_by_class("ap", self.results["ap"])


def require_instances(sample: Sample) -> tuple[Tensor, Tensor]:
    """The shapes [N, H, W] bool and their class numbers [N] of a sample.

    Raises:
        UserError: it has none.
    """
    if sample.instances is None or sample.instance_labels is None:
        raise UserError(f"image '{sample.id}' has no instances; --labels instances:all")
    return sample.instances.as_subclass(Tensor).bool(), sample.instance_labels
