"""Fast R-CNN: proposals are cut out of one feature map per image, classified and moved by one network.

Idea. The convolutions run once per image; a region-of-interest pooling layer cuts every proposal out of their feature
map. Fully connected layers then end in two siblings: a softmax over the K classes and the background, and offsets that
move the box, of its own for each class. Both are learned at once by a sum of two losses. A step takes few images and
many regions of each, so that the gradient can flow through the convolutions at the price of a few images.

Citation. Ross Girshick: Fast R-CNN. ICCV 2015; arXiv:1504.08083.

Needs: boxes; proposals come from the image alone. Gives: boxes.

Published (VOC 2007 test, mAP at 11 recalls, VGG-16): 66.9 trained on 07 trainval, 70.0 on 07+12; without the offsets
62.6; S (CaffeNet) 57.1, M (VGG_CNN_M_1024) 59.2. Training takes 9.5 h, R-CNN's 84 h; R-CNN reaches 66.0.

`--backbone vgg16`, `vgg_cnn_m_1024` and `caffenet` are L, M and S (S and M: `--roi-size 6 --frozen-stages 1`). Other
backbones have light layers of `head_width` on the regions. `--box-weight 0 --no-box-regression` is the paper's
"classification only", and `--no-box-regression` alone its multi-task training without boxes in the test.

Departures: difficult objects are not learned (as in the paper's row "07 minus difficult", 68.1; `use_difficult`).
Weights of VGG-16 are torchvision's, with their RGB input. Boxes are half-open, so a corner moves by less than a pixel
against the released code. The flip is drawn instead of doubling the images. After the training what is kept of an
image is as in the author's later code: scores above 0.05, suppression at IoU 0.3, 100 detections; the first release
keeps 40 per image and class by a threshold over the whole split. The statistics of the offsets stay beside the last
layer instead of being folded into its weights, which gives the same boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from labelwise.detections import Detections
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Card, Claim, Needs, Published
from labelwise.models.boxes import FIXED_DEVIATIONS, clip_boxes, decode_boxes, encode_boxes, scale_boxes, sides
from labelwise.models.detection_trunks import RegionNetwork, create_fully_connected, create_trunk, pixel_statistics
from labelwise.models.regions import (
    FullyConnected,
    RegionHead,
    as_rois,
    best_overlaps,
    distinct_rois,
    fast_rcnn_loss,
    roi_align_pool,
    roi_max_pool,
    sample_batch,
)
from labelwise.samples import Batch, Kind, Sample
from labelwise.tasks.detection import ScaledConfig, ScaledMethod
from labelwise.tasks.proposals import ProposalConfig, ProposalMethod

CANONICAL_AREA = 224.0**2
"""Of a region at the scale at which it is looked at, as of the images of ImageNet (section 2.4)."""


def offset_moments(proposals: Tensor, boxes: Tensor, labels: Tensor, classes: int, threshold: float) -> Tensor:
    """What one image adds to the statistics of the offsets to learn, of itself and of its mirror image.

    Args:
        proposals: [P, 4]; the objects' own boxes count as well.
        boxes: [M, 4].
        labels: [M] int64, 0..K-1.
        classes: K.
        threshold: least IoU with an object.

    Returns:
        [K + 1, 3, 4] float64: number, sum and sum of squares by class, background first.
    """
    moments = torch.zeros(classes + 1, 3, 4, dtype=torch.float64)
    candidates = torch.cat([proposals, boxes]).cpu()
    overlap, nearest = best_overlaps(candidates, boxes.cpu())
    chosen = overlap >= threshold
    if not bool(chosen.any()):
        return moments
    offsets = encode_boxes(candidates[chosen], boxes.cpu()[nearest[chosen]]).double()
    both = torch.cat([offsets, offsets * offsets.new_tensor([-1, 1, 1, 1])])
    powers = torch.stack([torch.ones_like(both), both, both.square()], dim=1)
    return moments.index_add_(0, labels.cpu()[nearest[chosen]].repeat(2) + 1, powers)


def offset_statistics(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by class of sums of `offset_moments`.

    Args:
        moments: [K + 1, 3, 4] float64.

    Returns:
        [K + 1, 4] and [K + 1, 4] float32; 0 and 1 for a class without regions, as for the background; where all
        offsets of a class are the same, the deviation is Faster R-CNN's.
    """
    count, total, squares = moments.unbind(1)
    seen = count.clamp(min=1)
    mean = total / seen
    variance = squares / seen - mean.square()
    fixed = moments.new_tensor(FIXED_DEVIATIONS).expand_as(mean)
    deviation = torch.where(variance > torch.finfo(torch.float32).eps, variance.clamp(min=0).sqrt(), fixed)
    return mean.float(), torch.where(count > 0, deviation, 1.0).float()


def nearest_scales(boxes: Tensor, factors: Sequence[float]) -> Tensor:
    """The scale at which each region is looked at: where its area comes nearest to 224^2 (section 2.4).

    Args:
        boxes: [P, 4] in pixels of the image.
        factors: pixels of each scaled image per pixel of the image.

    Returns:
        [P] int64, positions in `factors`.
    """
    areas = sides(boxes).prod(1, keepdim=True) * boxes.new_tensor(factors).square()
    return (areas - CANONICAL_AREA).abs().argmin(1)


class FastRCNN(ProposalMethod, ScaledMethod):
    """Fast R-CNN on given proposals."""

    card = Card(
        name="fast_rcnn",
        title="Fast R-CNN",
        task="detection",
        needs=Needs(frozenset({Kind.BOXES})),
        gives=frozenset({Kind.BOXES}),
        paper="Girshick: Fast R-CNN, ICCV 2015",
        year=2015,
        idea="Cut proposals out of one feature map per image; classify and move them with one network and one loss.",
        published=(
            Published("VOC07 test, VGG-16, trained on 07", "mAP", 66.9, "paper"),
            Published("VOC07 test, VGG-16, trained on 07 without difficult", "mAP", 68.1, "paper"),
            Published("VOC07 test, VGG-16, trained on 07+12", "mAP", 70.0, "paper"),
            Published("VOC10 test, VGG-16, trained on 07++12", "mAP", 68.8, "paper"),
            Published("VOC12 test, VGG-16, trained on 07++12", "mAP", 68.4, "paper"),
            Published("VOC07 test, VGG-16, classification only", "mAP", 62.6, "paper"),
            Published("VOC07 test, CaffeNet", "mAP", 57.1, "paper"),
            Published("VOC07 test, VGG_CNN_M_1024", "mAP", 59.2, "paper"),
        ),
        claim=Claim(
            "One network and one training are no worse than R-CNN's three stages on the same proposals.",
            baseline="rcnn",
            labels="boxes:all",
            paper_labels="boxes:all",
            margin=0.0,
            scenes={"scenes": "objects", "size": 96, "train": 240, "val": 120},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(ProposalConfig, ScaledConfig):
        """Options of Fast R-CNN; the defaults are those of the paper's network L on VOC 2007."""

        backbone: str = "vgg16"
        "vgg16, caffenet, vgg_cnn_m_1024, a timm name, or tiny, which trains on a CPU"
        backbone_weights: str = "imagenet"
        "imagenet, none, or a file: torchvision's or timm's, for caffenet and vgg_cnn_m_1024 Caffe's layer names"
        output_stride: int = 16
        "pixels per cell of the feature map; 8 or 16 where the backbone can have it"
        frozen_stages: int = 2
        "stages of the backbone that stay as they were loaded, from the image on; 1 for caffenet and vgg_cnn_m_1024"
        freeze_norms: bool = True
        roi_size: int = 7
        "bins along each side of a region; 6 for caffenet and vgg_cnn_m_1024"
        roi_align: bool = False
        "read regions between cells without rounding (Mask R-CNN), not by maxima of whole cells"
        head_width: int = 1024
        "units of each of the two layers on regions, of backbones without fully connected layers of their own"
        dropout: float = 0.5
        "after each of these layers"
        rois_per_image: int = 64
        "regions of each image that a step learns from"
        foreground_share: float = 0.25
        "the most of these regions that show an object"
        foreground_threshold: float = 0.5
        "least IoU of such a region with an object"
        background_low: float = 0.1
        "least IoU of a background region with the object that it overlaps most; above 0 it mines hard examples"
        background_high: float = 0.5
        "greatest such IoU, exclusive"
        box_regression: bool = True
        "move detections by the learned offsets; false = leave them at their proposals"
        box_weight: float = 1.0
        "weight of the offsets' loss, lambda in the paper; 0 = learn the classes alone"
        target_statistics: Literal["empirical", "fixed"] = "empirical"
        "offsets are normalised by their mean and deviation in each class, or by 0 and (0.1, 0.1, 0.2, 0.2)"
        scales: tuple[int, ...] = ()
        "shorter sides to train and test at, in the place of short_side: 480 576 688 864 1200, with long_side 2000"
        svd_ranks: tuple[int, int] = (0, 0)
        "cut the two layers on regions to these ranks after the training; 1024 256 in the paper, 0 = as they are"
        steps: int = 40_000
        batch_size: int = 2

        def __post_init__(self) -> None:
            """Refuse numbers that no Fast R-CNN can have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("roi_size", "head_width", "rois_per_image"):
                require_at_least(name, getattr(self, name), 1)
            for name in ("foreground_share", "foreground_threshold", "background_low", "background_high", "dropout"):
                require_share(name, getattr(self, name))
            require_at_least("box_weight", self.box_weight, 0)
            require_at_least("svd_ranks", min(self.svd_ranks), 0)
            if self.foreground_threshold < max(self.background_high, 1e-6):
                raise UserError(f"--background-high {self.background_high}: above --foreground-threshold")
            if self.box_regression and not self.box_weight:
                raise UserError("--box-weight 0: offsets that are not learned cannot be used; --no-box-regression")
            require_at_least("scales", min(self.short_sides), 16)
            if max(self.short_sides) >= self.long_side:
                raise UserError(
                    f"--long-side {self.long_side}: must be above {max(self.short_sides)}, the shorter side"
                )

        @property
        def short_sides(self) -> tuple[int, ...]:
            """The shorter sides to which an image is scaled."""
            return self.scales or (self.short_side,)

    config: Config

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Those of the backbone's weights."""
        return pixel_statistics(self.config.backbone) or super().pixel_statistics

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The trunk, and the head on its regions; a network that is only to predict is cut to `svd_ranks` already.

        Args:
            pretrained: load the configured backbone weights; False leaves them random.

        Raises:
            UserError: a backbone, a size of regions or ranks that do not fit together.
        """
        config = self.config
        weights = config.backbone_weights if pretrained else None
        trunk = create_trunk(
            config.backbone, weights, output_stride=config.output_stride, frozen_stages=config.frozen_stages
        )
        layers = create_fully_connected(
            config.backbone,
            weights,
            channels=trunk.channels,
            size=config.roi_size,
            width=config.head_width,
            dropout=config.dropout,
            ranks=(0, 0) if pretrained else config.svd_ranks,
        )
        if any(rank > most for rank, most in zip(config.svd_ranks, layers.full_ranks, strict=True)):
            asked, most = (" ".join(map(str, ranks)) for ranks in (config.svd_ranks, layers.full_ranks))
            raise UserError(f"--svd-ranks {asked}: the layers have ranks of at most {most}")
        head = RegionHead(layers, layers.width, len(self.object_names))
        head.set_statistics(torch.zeros(4), torch.tensor(FIXED_DEVIATIONS))
        return RegionNetwork(trunk, head)

    @property
    def head(self) -> RegionHead:
        """The network's head."""
        return cast(RegionNetwork, self.network).head

    # --------------------------------------------------------------- training

    def prepare(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Measure mean and deviation of the offsets in each class over all regions with an object (section 2.3)."""
        if self.config.target_statistics == "fixed":
            return
        classes, threshold = len(self.object_names), self.config.foreground_threshold
        moments = torch.zeros(classes + 1, 3, 4, dtype=torch.float64)
        for sample in samples:
            learned = self.with_learned_boxes(sample)
            assert learned.boxes is not None and learned.box_labels is not None
            boxes, labels = learned.boxes.as_subclass(Tensor), self.columns(learned.box_labels)
            moments += offset_moments(self.propose(sample), boxes.to(self.device), labels, classes, threshold)
        self.head.set_statistics(*offset_statistics(moments))

    def resize(self) -> v2.Transform:
        """Scales an image's shorter side to `short_side`, or to one of `scales`, drawn anew for each image."""
        return v2.RandomChoice([self.resize_to(side) for side in self.config.short_sides])

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """The two terms over the regions drawn from each image."""
        config = self.config
        assert labeled.boxes is not None and labeled.box_labels is not None and labeled.proposals is not None
        features = self.network(self.input_of(labeled))
        rois, labels, targets = sample_batch(
            labeled.proposals,
            labeled.boxes,
            [self.columns(each) for each in labeled.box_labels],
            count=config.rois_per_image,
            foreground_share=config.foreground_share,
            foreground_threshold=config.foreground_threshold,
            background_low=config.background_low,
            background_high=config.background_high,
        )
        logits, offsets = self.head(self.pool(features, as_rois(rois)))
        return fast_rcnn_loss(logits, offsets, labels, self.head.normalized(targets, labels), config.box_weight)

    def pool(self, features: Tensor, rois: Tensor) -> Tensor:
        """What the head sees of regions [R, 5] of feature maps [B, C, h, w]: [R, C, s, s]."""
        pool = roi_align_pool if self.config.roi_align else roi_max_pool
        return pool(features, rois, self.config.output_stride, self.config.roi_size)

    def complete(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Cut the layers on regions to `svd_ranks` (section 3.1)."""
        cast(FullyConnected, self.head.layers).compress(self.config.svd_ranks)

    # ------------------------------------------------------------- prediction

    def detect(self, sample: Sample) -> Detections:
        """The objects of one image, surest first."""
        proposals = self.propose(sample)
        if not len(proposals):
            return Detections.none(self.device)
        logits, offsets = self.score_regions(sample.image, proposals)
        boxes = proposals
        if self.config.box_regression:
            boxes = clip_boxes(decode_boxes(proposals, self.head.plain(offsets)[:, 1:]), sample.image.shape[-2:])
        return self.kept(boxes, logits.float().softmax(1)[:, 1:])

    def score_regions(self, image: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores and offsets of regions, each looked at where it has the size of its scale.

        Args:
            image: [3, H, W] uint8.
            proposals: [P, 4] in its pixels.

        Returns:
            logits [P, K + 1] and normalised offsets [P, 4 (K + 1)].
        """
        plain, size = image.as_subclass(Tensor).to(self.device), image.shape[-2:]
        scaled = [self.resize_to(side)(plain) for side in self.config.short_sides]
        scale = nearest_scales(proposals, [each.shape[-1] / size[-1] for each in scaled])
        order, found = [], []
        for number, each in enumerate(scaled):
            here = (scale == number).nonzero().squeeze(1)
            if len(here):
                order.append(here)
                found.append(self._scored_at(each, scale_boxes(proposals[here], size, each.shape[-2:])))
        back = torch.cat(order).argsort()
        logits, offsets = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
        return logits, offsets

    def _scored_at(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        features, rois = self.network(self.normalize(image[None])), as_rois([boxes])
        if self.config.roi_align:
            return self.head(self.pool(features, rois))
        distinct, position = distinct_rois(rois, self.config.output_stride)
        logits, offsets = self.head(self.pool(features, distinct))
        return logits[position], offsets[position]
