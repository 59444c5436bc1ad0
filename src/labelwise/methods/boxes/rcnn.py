"""R-CNN: regions with CNN features.

Idea. Some two thousand boxes where objects may be are proposed without any learning. Each is warped to the input size
of a network that was trained to classify ImageNet, and that learns on to tell the windows of K classes and background
apart. Its classifier is then thrown away: one linear machine per class is trained on the features, with the objects'
own boxes as positives and hard negatives mined image by image, and one ridge regression per class moves the boxes.

Citation. Ross Girshick, Jeff Donahue, Trevor Darrell, Jitendra Malik: Rich feature hierarchies for accurate object
detection and semantic segmentation. CVPR 2014; the tech report arXiv:1311.2524 (v5) has the appendices.

Needs: boxes. Gives: boxes.

Published (VOC 2007 test, trained on its trainval, mean AP at 11 recalls): fc7 without fine-tuning 44.7, with it 54.2,
with box regression 58.5; with VGG-16 62.2 and 66.0. The classifier in place of the machines: 50.9.

The gradient training is the fine-tuning. Afterwards `complete` computes the features of every proposal of every
training image once, keeps them on the disk, and fits machines and ridges, which are saved with the network. Evaluations
during the training, before there are any, score by the classifier. Without fine-tuning is `--learning-rate 0
--freeze-norms --steps 1`.

Departures: a detection's score is the logistic function of its machine's margin, so that it lies in 0..1 as those of
other detectors; average precision sees the order alone. Every class keeps its 100 best proposals of an image; the
released code also raises a threshold until 40 boxes per image and class are left on average, which one image alone
cannot know. Pixels have the mean color of ImageNet subtracted, not the mean image. Features are kept in half precision,
and the mean norm by which they are scaled is that of all windows, not of a sample. Backbones other than VGG-16,
CaffeNet and AlexNet have no fc6 and fc7: the mean of the last map stands for both, a small grid of it for pool5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from labelwise.detections import Detections
from labelwise.errors import UserError, require_at_least
from labelwise.method import Card, Claim, Needs, Published, Stream
from labelwise.models.boxes import clip_boxes, decode_boxes, encode_boxes
from labelwise.models.fcn_networks import pixel_statistics
from labelwise.models.linear_svm import COST
from labelwise.models.window_fitting import CachedWindows, fit_machines, fit_ridges, fit_scales
from labelwise.models.window_network import Layer, WindowFeatures, WindowNetwork
from labelwise.samples import Batch, Kind, Sample
from labelwise.tasks.proposals import ProposalConfig, ProposalMethod
from labelwise.tasks.windows import FineTuning, WindowConfig, window_body

NEAR = 0.6
"""IoU above which a window takes part in box regression."""


def regression_pairs(boxes: Tensor, objects: Tensor, columns: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which boxes teach box regression of which class, and what (appendix C).

    Args:
        boxes: [N, 4].
        objects: [M, 4].
        columns: [M] int64.
        overlap: [N, K] from `class_overlaps`.

    Returns:
        rows [R] of `boxes`, classes [R] and offsets [R, 4] to the class's object of the largest IoU.
    """
    rows, classes = (overlap > NEAR).nonzero(as_tuple=True)
    iou = box_iou(boxes[rows], objects).masked_fill(columns[None] != classes[:, None], -1.0)
    nearest = iou.argmax(dim=1) if len(objects) else rows
    return rows, classes, encode_boxes(boxes[rows], objects[nearest])


class RCNN(ProposalMethod):
    """A window classifier on proposals, then a machine and a ridge per class."""

    card = Card(
        name="rcnn",
        title="R-CNN",
        task="detection",
        needs=Needs(frozenset({Kind.BOXES})),
        gives=frozenset({Kind.BOXES}),
        paper="Girshick, Donahue, Darrell, Malik: Rich feature hierarchies for accurate object detection and semantic "
        "segmentation, CVPR 2014",
        year=2014,
        idea="Warp proposals to a pretrained network that is fine-tuned on windows; linear machines with hard "
        "negatives score its features, ridge regression moves the boxes.",
        published=(
            *(
                Published(f"VOC 2007 test, {setting}", "mAP", value, "CVPR 2014, arXiv v5")
                for setting, value in (
                    ("fc7, no fine-tuning", 44.7),
                    ("fc7, fine-tuned", 54.2),
                    ("fc7, fine-tuned, softmax", 50.9),
                    ("fc7, fine-tuned, box regression", 58.5),
                    ("VGG-16, fine-tuned", 62.2),
                    ("VGG-16, fine-tuned, box regression", 66.0),
                )
            ),
            Published("VOC 2010 test, fine-tuned, box regression", "mAP", 53.7, "CVPR 2014, arXiv v5"),
        ),
        claim=Claim(
            "Box regression on the features of the proposals finds more objects than the proposals themselves.",
            baseline="rcnn",
            labels="boxes:all",
            paper_labels="boxes:all",
            scenes={"scenes": "objects", "size": 96, "train": 240, "val": 120},
            baseline_settings={"box_regression": False},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(ProposalConfig, WindowConfig):
        """Options of R-CNN; the defaults are those of the paper on VOC 2007."""

        scorer: Literal["svm", "softmax"] = "svm"
        "what scores a window: linear machines on its features, or the fine-tuned classifier"
        layer: Layer = "fc7"
        "whose features the machines see; box regression always sees pool5"
        svm_cost: float = COST
        "C of the machines: how much errors weigh against their size; more for few objects"
        box_regression: bool = True
        "move the boxes by ridge regression"
        boxes_per_class: int = 100
        "of each class the best proposals of an image, before those that overlap are dropped"
        backbone: str = "caffenet"
        "caffenet, vgg16, alexnet_tv, or a backbone of any other method"
        use_difficult: bool = True
        "difficult objects count as objects in the training, as in the released code"
        steps: int = 70_000
        batch_size: int = 128
        "windows per optimiser step, over all devices together"
        head_multiplier: float = 10.0
        rate_drop: float = 2 / 7
        "share of the steps after each of which the learning rate falls to a tenth; 1 = never"
        score_threshold: float = 0.0
        max_detections: int = 2000

        def __post_init__(self) -> None:
            """Refuse numbers that no R-CNN can have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            require_at_least("boxes_per_class", self.boxes_per_class, 1)
            for name in ("rate_drop", "svm_cost"):
                if getattr(self, name) <= 0:
                    raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")

    config: Config
    network: WindowNetwork

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Those of the backbone's weights."""
        return pixel_statistics(self.config.backbone) or super().pixel_statistics

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The classifier of windows, with room for machines and ridges."""
        body = window_body(self.config, pretrained=pretrained)
        return WindowNetwork(body, len(self.object_names), self.config.layer)

    @property
    def fine_tuning(self) -> FineTuning:
        """What draws the windows."""
        return FineTuning(self.config, self.classes, self.propose, self.config.use_difficult)

    def streams(self) -> dict[str, Stream]:
        """Windows that show an object, and windows that show none."""
        return self.fine_tuning.streams()

    def losses(self, foreground: Batch, background: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the windows."""
        return {"windows": self.fine_tuning.loss(self.network, self.normalize, foreground, background)}

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0: a tenth after each `rate_drop` of the steps."""
        if self.config.rate_drop >= 1:
            return 1.0
        return float(0.1 ** int(step / (self.config.rate_drop * self.total_steps)))

    # ------------------------------------------------- machines and ridges

    @torch.no_grad()
    def complete(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Fit the machines and the ridges on features of the fine-tuned network; files of a cut call are used."""
        self.eval()
        files = [scratch / f"{number}.npz" for number in range(len(samples))]
        for number, file in enumerate(files):
            if not file.exists():
                self.cached(samples[number]).save(file)
        fit_scales(self.network, files)
        if self.config.scorer == "svm":
            for column in fit_machines(self.network, files, self.config.svm_cost):
                name = self.object_names[column]
                warnings.warn(f"no training image shows '{name}': it will never be detected", stacklevel=2)
        if self.config.box_regression:
            fit_ridges(self.network, files)
        self.network.fitted.fill_(True)

    def cached(self, sample: Sample) -> CachedWindows:
        """The windows of an image and their features."""
        objects, columns = self.fine_tuning.objects(sample)
        boxes, overlap = self.fine_tuning.windows(sample)
        rows, classes, offsets = regression_pairs(boxes, objects, columns, overlap)
        # What moves an object's own box is nothing.
        proposed = rows >= len(objects)
        found = [
            (features.layer(self.config.layer).cpu(), features.pool5.cpu())
            for _, features in self.features(sample.image, boxes)
        ]
        layer, pool5 = map(torch.cat, zip(*found, strict=True)) if found else self._no_features()
        return CachedWindows(
            features=layer.half().numpy(),
            norms=torch.stack([layer.norm(dim=1), pool5.norm(dim=1)], dim=1).numpy(),
            overlap=overlap.numpy(),
            objects=columns.numpy(),
            pool5=pool5[rows[proposed]].half().numpy(),
            classes=classes[proposed].numpy(),
            offsets=offsets[proposed].numpy(),
        )

    def _no_features(self) -> tuple[Tensor, Tensor]:
        network = self.network
        return torch.zeros(0, len(network.svm_weight)), torch.zeros(0, network.ridge_weight.shape[1] - 1)

    def features(self, image: Tensor, boxes: Tensor) -> Iterator[tuple[Tensor, WindowFeatures]]:
        """The features of boxes [N, 4] of an image [3, H, W] uint8, with their boxes, some at a time."""
        config = self.config
        pixels = self.normalize(image.as_subclass(Tensor).to(self.device)[None])[0]
        return self.network.features(pixels, boxes.to(self.device), config.crop, config.context, config.warp)

    # ------------------------------------------------------------- prediction

    def detect(self, sample: Sample) -> Detections:
        """Score and move the proposals, then drop those that overlap a better one of their class."""
        height, width = sample.image.shape[-2:]
        scores, boxes = [], []
        for part, features in self.features(sample.image, self.propose(sample)):
            scores.append(self.probabilities(features))
            boxes.append(clip_boxes(decode_boxes(part, self.network.offsets(features)), (height, width)))
        if not scores:
            return Detections.none(self.device)
        return self.kept(torch.cat(boxes), best_of_each(torch.cat(scores), self.config.boxes_per_class))

    def probabilities(self, features: WindowFeatures) -> Tensor:
        """How sure it is of each class, [N, K] in 0..1; by the classifier as long as there are no machines."""
        if self.config.scorer == "softmax" or not self.network.fitted:
            return self.network.classified(features).softmax(dim=1)[:, 1:]
        return self.network.margins(features).sigmoid()


def best_of_each(scores: Tensor, most: int) -> Tensor:
    """The scores [N, K] with all but the `most` best of each class set to 0."""
    best = scores.topk(min(most, len(scores)), dim=0)
    return torch.zeros_like(scores).scatter(0, best.indices, best.values)
