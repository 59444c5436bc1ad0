"""Faster R-CNN: a region proposal network on the features of the detector.

Idea. A small convolutional network slides over the detector's own feature map. At each cell it tells for nine reference
boxes, the anchors, of three sizes and three shapes, whether an object is there and how it deviates from the anchor. The
best 300 of these boxes go to the head of Fast R-CNN, which pools each from the same map, classifies it and moves it
again. Proposals so cost next to nothing, and learn with the detector: by the sum of both losses, the proposals'
coordinates taken as constants ("approximate joint training"), or by four trainings in turn, after which proposer and
detector share their convolutions.

Citation. Shaoqing Ren, Kaiming He, Ross Girshick, Jian Sun: Faster R-CNN: Towards Real-Time Object Detection with
Region Proposal Networks. NIPS 2015; TPAMI 39(6), 2017.

Needs: boxes. Gives: boxes.

Published (VOC 2007 test, VGG-16, 300 proposals, mean AP): 69.9 trained on VOC 2007, 73.2 with VOC 2012 as well; without
shared convolutions 68.5; Fast R-CNN with 2,000 proposals of Selective Search 66.9 and 70.0.

`--training alternating` takes the paper's four steps, each a run in the folder of the next (`alternating_schedule` has
them as data): 1. the proposer, from ImageNet; 2. the detector, from ImageNet again, on the proposals of 1; 3. the
proposer anew, on the frozen convolutions of 2; 4. the head of 2, on the same convolutions and the proposals of 3.
`--steps` are then those of a detector; a proposer takes twice as many, of half the images. In joint training a step of
two images (`--batch-size 2`) is the released code's accumulation of two; `--accumulate 2` computes one after the other.
`--pyramid` puts a feature pyramid (Lin et al., CVPR 2017) under both, with regions pooled by bilinear sampling, one
anchor size per map, and anchors beyond the border in the training; `--preset fpn` has the usual settings.

Departures: the defaults are those of the released Python code where it differs from the paper: both terms of the
proposer's loss are divided by the anchors drawn and weigh the same, with sigma 3. Weights of VGG-16 and their RGB input
are torchvision's. The least side of a proposal is in pixels of the scaled image; 16 pixels before scaling are about 25.
Proposals for a flipped image are made from the flipped image. An object that no anchor touches makes none positive,
where in the code all anchors tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from labelwise.detections import Detections
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Card, Claim, Needs, Published, Stage, Stream
from labelwise.models.anchors import RATIOS, anchor_targets
from labelwise.models.boxes import FIXED_DEVIATIONS, clip_boxes, decode_boxes, scale_boxes
from labelwise.models.detection_trunks import (
    ClassifierTrunk,
    FeatureTrunk,
    create_fully_connected,
    create_trunk,
    pixel_statistics,
)
from labelwise.models.faster_rcnn import FasterRCNN as Network
from labelwise.models.faster_rcnn import RegionProposer, ScoredAnchors, anchors_of, strides_of
from labelwise.models.feature_pyramid import FeaturePyramid
from labelwise.models.region_proposals import rpn_loss
from labelwise.models.regions import RegionHead, fast_rcnn_loss, sample_batch
from labelwise.samples import Batch, Kind, Sample
from labelwise.tasks.detection import ScaledConfig, ScaledMethod

PREVIOUS = "previous"
FOREGROUND_SHARE, FOREGROUND, BACKGROUND = 0.25, 0.5, (0.0, 0.5)
"""Regions that the head learns from: the most that show objects, their least IoU, and the range of the others'."""
_CODE = "py-faster-rcnn"


@dataclass(frozen=True)
class TrainingStep:
    """What one training learns, and from where it starts.

    Attributes:
        losses: `rpn`, `head` or both.
        trained: parts of the network that learn; the others are frozen.
        taken_over: parts whose weights are those of the step before; the others start anew, the backbone from ImageNet.
        proposals: of the network itself, or of that of the step before.
        share: images in an optimiser step, as a multiple of `batch_size`; the steps are more accordingly.
    """

    losses: tuple[str, ...]
    trained: tuple[str, ...]
    taken_over: tuple[str, ...] = ()
    proposals: Literal["own", "before"] = "own"
    share: float = 1.0


_FEATURES = ("backbone", "pyramid")
JOINT = TrainingStep(("rpn", "head"), (*_FEATURES, "rpn", "head"))


def alternating_schedule() -> tuple[TrainingStep, ...]:
    """The four steps of alternating training (section 3.2), in their order."""
    return (
        TrainingStep(("rpn",), (*_FEATURES, "rpn"), share=0.5),
        TrainingStep(("head",), (*_FEATURES, "head"), proposals="before"),
        TrainingStep(("rpn",), ("rpn",), taken_over=(*_FEATURES, "head"), share=0.5),
        TrainingStep(("head",), ("head",), taken_over=(*_FEATURES, "rpn", "head")),
    )


class FasterRCNN(ScaledMethod):
    """Faster R-CNN, trained jointly or in four steps."""

    card = Card(
        name="faster_rcnn",
        title="Faster R-CNN",
        task="detection",
        needs=Needs(frozenset({Kind.BOXES})),
        gives=frozenset({Kind.BOXES}),
        paper="Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, "
        "NIPS 2015; TPAMI 2017",
        year=2015,
        idea="A small network on the detector's own features proposes where objects are, so that proposals cost next "
        "to nothing and are learned.",
        published=(
            *(
                Published(f"VOC 2007 test, VGG-16, trained on {data}", "mAP", value, "paper")
                for data, value in (("07", 69.9), ("07, unshared", 68.5), ("07+12", 73.2), ("COCO+07+12", 78.8))
            ),
            *(
                Published(f"VOC 2012 test, VGG-16, trained on {data}", "mAP", value, "paper")
                for data, value in (("12", 67.0), ("07++12", 70.4), ("COCO+07++12", 75.9))
            ),
            Published("VOC 2007 test, ZF, trained on 07", "mAP", 59.9, "paper"),
            Published("VOC 2007 test, VGG-16, 07, joint training", "mAP", 69.9, _CODE),
        ),
        claim=Claim(
            "With its own few proposals, Faster R-CNN is no worse than Fast R-CNN with those of Selective Search.",
            baseline="fast_rcnn",
            labels="boxes:all",
            paper_labels="boxes:all",
            scenes={"scenes": "objects", "size": 96, "train": 240, "val": 120},
            baseline_options=("backbone", "output_stride", "roi_size", "head_width", "steps", "batch_size"),
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(ScaledConfig):
        """Options of Faster R-CNN; the defaults are those of joint training on VOC 2007."""

        training: Literal["joint", "alternating"] = "joint"
        "proposer and detector at once, or in four steps that end with shared convolutions"
        alternating_step: Literal[1, 2, 3, 4] = 4
        "alternating: the last step to take; the ones before are runs of their own"
        start: str = PREVIOUS
        "alternating: previous = a run of the step before, made first; or the folder of such a run"
        pyramid: bool = False
        "detect on a feature pyramid, by a backbone with features to stride 32; one anchor size per map"
        anchor_sizes: tuple[int, ...] = (128, 256, 512)
        "sides of the square anchors in pixels of the scaled image"
        anchor_ratios: tuple[float, ...] = RATIOS
        "heights of the anchors over their widths"
        rpn_channels: int = 512
        "channels of the region proposal network: 512 for VGG-16, 256 for ZF"
        min_side: float = 16.0
        "least side of a proposal in pixels of the scaled image"
        before_nms: int = 6000
        "the most proposals, by score, before near duplicates are dropped"
        max_proposals: int = 300
        "the most proposals per image, the best ones"
        train_before_nms: int = 12_000
        "as before_nms, in training; alternating training has no limit there"
        train_proposals: int = 2000
        "as max_proposals, in training"
        rois_per_image: int = 128
        "regions of each image that the head learns from; 64 in alternating training"
        backbone: str = "vgg16"
        "vgg16, caffenet, vgg_cnn_m_1024, zf, or a backbone of any other method"
        output_stride: Literal[4, 8, 16, 32] = 16
        "input pixels per feature pixel; with a pyramid of the coarsest feature"
        frozen_stages: int = 2
        "stages of the backbone from the image on that are not trained: 2 = to conv2_2 of VGG-16"
        freeze_norms: bool = True
        roi_size: int = 7
        "bins along each side of a pooled region: 7 vgg16, 6 caffenet, vgg_cnn_m_1024 and zf"
        head_width: int = 1024
        "outputs of each of the two layers on a region, of backbones that have none of their own"
        dropout: float = 0.5
        "after each of these layers"
        steps: int = 70_000
        batch_size: int = 2
        rate_drop: float = 5 / 7

        def __post_init__(self) -> None:
            """Refuse numbers that no detector can have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("rpn_channels", "before_nms", "max_proposals", "train_before_nms", "train_proposals"):
                require_at_least(name, getattr(self, name), 1)
            for name in ("roi_size", "head_width", "rois_per_image"):
                require_at_least(name, getattr(self, name), 1)
            require_at_least("min_side", self.min_side, 0)
            require_share("dropout", self.dropout)
            if not self.anchor_sizes or not self.anchor_ratios:
                raise UserError("--anchor-sizes and --anchor-ratios: want at least one number each")
            if min(*self.anchor_sizes, *self.anchor_ratios) <= 0:
                raise UserError("--anchor-sizes and --anchor-ratios: must be above 0")
            if self.training == "joint" and (self.alternating_step, self.start) != (4, PREVIOUS):
                raise UserError("--training joint: is one run; leave out --alternating-step and --start")
            if self.batch_size * self.plan.share % 1:
                raise UserError(f"--batch-size {self.batch_size}: its half is for the proposer; take an even one")

        @property
        def plan(self) -> TrainingStep:
            """What the run learns."""
            return JOINT if self.training == "joint" else alternating_schedule()[self.alternating_step - 1]

        def total_steps(self, images: int) -> int:
            """As of every method, but more where a step has fewer images."""
            return round(super().total_steps(images) / self.plan.share)

    config: Config
    network: Network

    @classmethod
    def stages(cls, config: FasterRCNN.Config) -> tuple[Stage, ...]:
        """The run of the step before, which has one before it in turn."""
        if config.training == "joint" or config.alternating_step == 1:
            return ()
        return (Stage("start", PREVIOUS, "faster_rcnn", {"alternating_step": config.alternating_step - 1}),)

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Those of the backbone's weights."""
        return pixel_statistics(self.config.backbone) or super().pixel_statistics

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """Backbone, proposer and head; in the second of four steps also the proposer of the first.

        Args:
            pretrained: load the configured backbone weights; False leaves them random.

        Raises:
            UserError: a backbone that cannot have a pyramid, or as many maps as there are anchor sizes.
        """
        config = self.config
        weights = config.backbone_weights if pretrained else None
        proposer = RegionProposer(*self._proposer_parts(None)) if config.plan.proposals == "before" else None
        parts = self._proposer_parts(weights)
        layers = create_fully_connected(
            config.backbone,
            weights,
            channels=parts[1].channels if parts[1] else parts[0].channels,
            size=config.roi_size,
            width=config.head_width,
            dropout=config.dropout,
        )
        head = RegionHead(layers, layers.width, len(self.object_names))
        head.set_statistics(torch.zeros(4), torch.tensor(FIXED_DEVIATIONS))
        return Network(*parts, head=head, roi_size=config.roi_size, proposer=proposer)

    def _proposer_parts(
        self, weights: str | None
    ) -> tuple[ClassifierTrunk | FeatureTrunk, FeaturePyramid | None, list[Tensor], int]:
        config = self.config
        backbone = create_trunk(
            config.backbone, weights, output_stride=config.output_stride, frozen_stages=config.frozen_stages
        )
        pyramid = self._pyramid(backbone) if config.pyramid else None
        try:
            anchors = anchors_of(strides_of(backbone, pyramid), config.anchor_sizes, config.anchor_ratios)
        except ValueError as error:
            raise UserError(f"--anchor-sizes {' '.join(map(str, config.anchor_sizes))}: {error}") from error
        return backbone, pyramid, anchors, config.rpn_channels

    def _pyramid(self, backbone: ClassifierTrunk | FeatureTrunk) -> FeaturePyramid:
        name = self.config.backbone
        if not isinstance(backbone, FeatureTrunk):
            raise UserError(f"--pyramid: backbone '{name}' has one map alone; --backbone resnet50 or mobilenetv2_100")
        try:
            return FeaturePyramid(backbone.features.channels, backbone.features.strides)
        except ValueError as error:
            raise UserError(f"--pyramid: backbone '{name}' {error}; --output-stride 32") from error

    def build_training(self) -> None:
        """Take over what the step before has learned, and freeze what this one does not learn."""
        plan = self.config.plan
        if plan.taken_over or plan.proposals == "before":
            self._take_over(self._step_before())
        for name, part in self.network.named_children():
            if name not in plan.trained:
                part.requires_grad_(False)

    def _step_before(self) -> Network:
        before, ours = self.earlier["start"], self.config
        if not isinstance(before, FasterRCNN) or not _continues(before.config, ours):
            raise UserError(
                f"--start {ours.start}: is no step {ours.alternating_step - 1} of alternating training with the same "
                f"network; name such a run, or --start {PREVIOUS}"
            )
        return before.network

    def _take_over(self, before: Network) -> None:
        for name in self.config.plan.taken_over:
            copy_part(before, self.network, name)
        if self.network.proposer is not None:
            for name in (*_FEATURES, "rpn"):
                copy_part(before, self.network.proposer, name)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen parts stay in evaluation."""
        super().train(mode)
        for name, part in self.network.named_children():
            if name not in self.config.plan.trained:
                part.eval()
        return self

    def streams(self) -> dict[str, Stream]:
        """One stream of images with boxes, scaled, half of them flipped."""
        return {"labeled": Stream("labeled", self.labeled_view, self.config.plan.share)}

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Those of the proposer, of the head, or of both."""
        plan, image = self.config.plan, self.input_of(labeled)
        maps = self.network.maps(image)
        scored = self.network.scored(image, maps)
        terms = self.proposer_losses(scored, labeled) if "rpn" in plan.losses else {}
        return terms | self.head_losses(maps, scored, labeled) if "head" in plan.losses else terms

    def proposer_losses(self, scored: ScoredAnchors, labeled: Batch) -> dict[str, Tensor]:
        """`rpn_loss` over the anchors drawn of all images."""
        assert labeled.boxes is not None
        anchors = torch.cat(scored.anchors)
        borders = [None if self.config.pyramid else size for size in labeled.sizes]
        drawn = [anchor_targets(anchors, *each) for each in zip(labeled.boxes, borders, strict=True)]
        labels, targets = (torch.cat(each) for each in zip(*drawn, strict=True))
        terms = rpn_loss(scored.logits.flatten(0, 1), scored.offsets.flatten(0, 1), labels, targets)
        return {f"rpn_{name}": term for name, term in terms.items()}

    def head_losses(self, maps: Sequence[Tensor], scored: ScoredAnchors, labeled: Batch) -> dict[str, Tensor]:
        """`fast_rcnn_loss` over the regions drawn of all images, from proposals and objects."""
        assert labeled.boxes is not None and labeled.box_labels is not None
        config, head = self.config, self.network.head
        proposals = self.network.propose(
            scored,
            labeled.sizes,
            min_side=config.min_side,
            before=config.train_before_nms,
            after=config.train_proposals,
        )
        rois, labels, targets = sample_batch(
            [found for found, _ in proposals],
            labeled.boxes,
            [self.columns(each) for each in labeled.box_labels],
            count=config.rois_per_image,
            foreground_share=FOREGROUND_SHARE,
            foreground_threshold=FOREGROUND,
            background_low=BACKGROUND[0],
            background_high=BACKGROUND[1],
        )
        logits, offsets = self.network.classify(maps, rois, labeled.image.shape[-2:])
        return fast_rcnn_loss(logits, offsets, labels, head.normalized(targets, labels))

    def detect(self, sample: Sample) -> Detections:
        """The objects of one image, surest first."""
        image = self.resized(sample.image)
        maps = self.network.maps(image)
        proposals = self._proposals(image, maps)
        size, original = image.shape[-2:], sample.image.shape[-2:]
        logits, offsets = self.network.classify(maps, [proposals], size)
        moved = decode_boxes(proposals, self.network.head.plain(offsets)[:, 1:])
        boxes = clip_boxes(scale_boxes(moved, size, original), original)
        return self.kept(boxes, logits.float().softmax(dim=1)[:, 1:])

    def propose(self, sample: Sample) -> Tensor:
        """The proposals of an image: [P, 4] float32 in its pixels, best first."""
        image = self.resized(sample.image)
        proposals = self._proposals(image, self.network.maps(image))
        return scale_boxes(proposals, image.shape[-2:], sample.image.shape[-2:])

    def _proposals(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """The proposals [P, 4] of one input image [1, 3, h, w], in its pixels."""
        config = self.config
        limits = {"min_side": config.min_side, "before": config.before_nms, "after": config.max_proposals}
        ((boxes, _),) = self.network.propose(self.network.scored(image, maps), [image.shape[-2:]], **limits)
        return boxes


_SAME = (
    "training",
    "backbone",
    "output_stride",
    "pyramid",
    "anchor_sizes",
    "anchor_ratios",
    "rpn_channels",
    "roi_size",
    "head_width",
)


def _continues(before: FasterRCNN.Config, ours: FasterRCNN.Config) -> bool:
    same = all(getattr(before, name) == getattr(ours, name) for name in _SAME)
    return same and before.alternating_step == ours.alternating_step - 1


def copy_part(source: nn.Module, target: nn.Module, name: str) -> None:
    """Copy the weights of a part of one network to that of another; nothing where both lack it."""
    part = getattr(source, name)
    if part is not None:
        getattr(target, name).load_state_dict(part.state_dict())
