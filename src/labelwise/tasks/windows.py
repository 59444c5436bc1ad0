"""The fine-tuning of R-CNN: a network learns to classify warped windows of images with boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision import tv_tensors
from torchvision.ops import box_iou

from labelwise.datasets.base import Classes
from labelwise.errors import UserError, require_at_least
from labelwise.method import Stream
from labelwise.models.region_warp import CONTEXT, SIDE, WarpMode, warp_regions
from labelwise.models.window_network import ClassifierBody, PooledBody, WindowClassifier, create_window_body
from labelwise.samples import Batch, Sample, Views
from labelwise.tasks.detection import object_columns
from labelwise.tasks.optimization import OptimizationConfig

FOREGROUND = 0.5
"""IoU from which on a window shows an object."""
_REMEMBERED = 1000
"""Images whose proposals are kept in memory: of 2,000 proposals and 20 classes some 200 MB."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig(OptimizationConfig):
    """Options of every method that learns from windows; the defaults are those of R-CNN on VOC 2007."""

    context: int = CONTEXT
    "pixels around the box in a warped window; 0 = none"
    warp: WarpMode = "warp"
    "warp = each side by its own factor; square = the tightest square around the box"
    foreground_share: float = 0.25
    "of the windows in a step, those that show an object"
    output_stride: Literal[4, 8, 16, 32] = 32
    "input pixels per feature pixel of a backbone other than caffenet, vgg16 and alexnet_tv"
    crop: int = SIDE
    "side of the warped windows in pixels: 227 caffenet, 224 vgg16 and alexnet_tv"

    def __post_init__(self) -> None:
        """Refuse numbers that no windows can have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("crop", self.crop, 8)
        require_at_least("context", self.context, 0)
        if 4 * self.context > self.crop:
            raise UserError(f"--context {self.context}: leaves little of windows of {self.crop} pixels")
        if not 0 < round(self.foreground_share * self.batch_size) < self.batch_size:
            raise UserError(f"--foreground-share {self.foreground_share}: each step needs windows of both kinds")


class Windows(NamedTuple):
    """The boxes of an image that may become windows, and what they overlap."""

    boxes: Tensor
    "[N, 4]: the objects, then the proposals"
    overlap: Tensor
    "[N, K] as of `class_overlaps`"

    @property
    def foreground(self) -> Tensor:
        """[N] bool: windows that show an object."""
        return (self.overlap >= FOREGROUND).any(dim=1)


def class_overlaps(boxes: Tensor, objects: Tensor, columns: Tensor, classes: int) -> Tensor:
    """The largest IoU with an object of each class.

    Args:
        boxes: [N, 4].
        objects: [M, 4]; M may be 0.
        columns: [M] int64, the objects' classes among K.
        classes: K.

    Returns:
        [N, K], 0 of a class without objects.
    """
    overlap = torch.zeros(len(boxes), classes, device=boxes.device)
    index = columns.expand(len(boxes), -1)
    return overlap.scatter_reduce(1, index, box_iou(boxes, objects), "amax")


def window_body(config: WindowConfig, *, pretrained: bool) -> ClassifierBody | PooledBody:
    """The part of the network that a configuration names, with its pretrained weights or without any."""
    weights = config.backbone_weights if pretrained else None
    return create_window_body(config.backbone, config.crop, config.output_stride, weights)


@dataclass(frozen=True)
class FineTuning:
    """Draws windows, and gives the loss of a classifier on them.

    Attributes:
        config: how windows are made.
        classes: of the data set.
        propose: a sample -> boxes [P, 4] where objects may be.
        use_difficult: whether difficult objects are objects.
    """

    config: WindowConfig
    classes: Classes
    propose: Callable[[Sample], Tensor]
    use_difficult: bool = True
    _known: dict[str, Windows] = field(default_factory=dict, init=False, repr=False, compare=False)

    def streams(self) -> dict[str, Stream]:
        """Windows with an object and windows without; each is drawn as often as any other of its kind."""
        share = self.config.foreground_share
        return {
            name: Stream(
                "labeled",
                partial(self.view, foreground=foreground),
                share if foreground else 1 - share,
                partial(self.count, foreground=foreground),
            )
            for name, foreground in (("foreground", True), ("background", False))
        }

    def objects(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Boxes [M, 4] and classes [M] among the K of objects that an image shows.

        Raises:
            UserError: the sample has no boxes.
        """
        if sample.boxes is None or sample.box_labels is None:
            raise UserError(f"image '{sample.id}' has no boxes; --labels boxes:all")
        boxes, columns = sample.boxes.as_subclass(Tensor), object_columns(self.classes, sample.box_labels)
        if sample.difficult is None or self.use_difficult:
            return boxes, columns
        return boxes[~sample.difficult], columns[~sample.difficult]

    def windows(self, sample: Sample) -> Windows:
        """The objects and proposals of an image; of a small data set they are remembered."""
        if sample.id not in self._known:
            objects, columns = self.objects(sample)
            boxes = torch.cat([objects, self.propose(sample).cpu()])
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            overlap = class_overlaps(boxes, objects, columns, len(self.classes.objects))
            self._known[sample.id] = Windows(boxes, overlap)
        return self._known[sample.id]

    def count(self, sample: Sample, *, foreground: bool) -> int:
        """How many windows of a kind an image has."""
        return int((self.windows(sample).foreground == foreground).sum())

    def view(self, sample: Sample, *, foreground: bool) -> Views:
        """One window of a kind, drawn at random, mirrored or not; its label is 0, or 1 + the class's column."""
        config, windows = self.config, self.windows(sample)
        among = (windows.foreground == foreground).nonzero()[:, 0]
        chosen = among[torch.randint(len(among), (1,))]
        label = windows.overlap[chosen].argmax(dim=1) + 1 if foreground else torch.zeros(1, dtype=torch.int64)
        pixels = sample.image.as_subclass(Tensor).float()
        warped, padding = warp_regions(pixels, windows.boxes[chosen], config.crop, config.context, config.warp)
        window, outside = warped[0].round().to(torch.uint8), padding[0]
        if torch.rand(()) < 0.5:
            window, outside = window.flip(-1), outside.flip(-1)
        return Views(sample=Sample(id=sample.id, image=tv_tensors.Image(window), box_labels=label), padding=outside)

    def loss(
        self, network: WindowClassifier, normalize: Callable[[Tensor], Tensor], foreground: Batch, background: Batch
    ) -> Tensor:
        """Cross-entropy of the windows of a step.

        Args:
            network: the classifier.
            normalize: images [B, 3, s, s] uint8 -> float.
            foreground: windows that show an object.
            background: windows that show none.
        """
        inputs, labels = [], []
        for batch in (foreground, background):
            assert batch.padding is not None and batch.box_labels is not None
            # The mean color, where a window lies outside its image.
            inputs.append(normalize(batch.image).masked_fill(batch.padding[:, None], 0.0))
            labels += batch.box_labels
        return cross_entropy(network(torch.cat(inputs)).float(), torch.cat(labels))
