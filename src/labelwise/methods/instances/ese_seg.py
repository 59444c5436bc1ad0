"""ESE-Seg: instance segmentation at the speed of a box detector, by outlines of about twenty numbers.

Idea. An object's outline is its radius as a function of the angle around an inner centre, divided by the diagonal of
its box; a short Chebyshev series fits that function. YOLOv3 regresses, beside box and class, the inner centre and the
coefficients of the series. Decoding is one matrix product for all objects, where other methods run a decoder network
for each. Chebyshev coefficients bear the errors of a regression far better than monomial ones of the same polynomial.

Citation. Wenqiang Xu, Haiyang Wang, Fubo Qi, Cewu Lu: Explicit Shape Encoding for Real-Time Instance Segmentation.
ICCV 2019. Joseph Redmon, Ali Farhadi: YOLOv3: An Incremental Improvement. 2018.

Needs: instances. Gives: instances, masks (in evaluation they tell the pixels that are no object's).

Published (VOC 2012, mAP^r at an overlap of 0.5, 20 coefficients): YOLOv3 62.6, pretrained on COCO's boxes 69.3; tiny
53.2. The released evaluator compares convex hulls of polygons with 11-point AP; ours compares pixels.

The defaults are those of the released code: 18 coefficients, absolute differences, every term summed over an image with
weight 1. `shape_loss l2` is the paper's. `shape_weight 0` is a training on boxes alone with the same head.

Departures: the released code flips boxes but not coefficients, resizes to a square without fitting the shapes anew, and
decodes one degree off; here shapes are encoded after the geometry of the augmentation. Inner centres are the paper's
(`center_rule code` is the code's); broken objects are joined by morphological closing. Images are scaled to the largest
training size and in the step to the size of the step, which is a function of its number. Darknet-53 is timm's, for its
ImageNet weights (slope 0.01 below zero). Backbones that are no Darknets have one grid, on their last feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from labelwise.detections import Detections
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Card, Claim, Needs, Published
from labelwise.models.boxes import clip_boxes, scale_boxes
from labelwise.models.darknet import create_darknet
from labelwise.models.shape_codec import (
    Basis,
    CenterRule,
    ShapeCodec,
    describe_shapes,
    diagonals,
    polygons_to_masks,
)
from labelwise.models.yolo_v3 import (
    Grids,
    Predictions,
    Targets,
    YoloV3,
    create_yolo,
    decode_centers,
    decode_predictions,
    object_weights,
    surest,
    yolo_loss,
    yolo_targets,
)
from labelwise.samples import Batch, Kind, Sample, Views
from labelwise.tasks.instances import InstanceConfig, InstanceMethod, boxes_of_instances, require_instances
from labelwise.tasks.optimization import in_backbone
from labelwise.transforms.canvas import StretchOnCanvas
from labelwise.transforms.views import without_vanished

CONSIDERED = 400
"""Pairs of box and class that non-maximum suppression looks at."""
SBD_OFFSET = 0.263289
"""The mean of the first Chebyshev coefficient on SBD."""
MEASURED_OBJECTS = 1000
"""The most objects on which the mean and spread of coefficients are measured."""
MOST_COEFFICIENTS = 90


@dataclass(frozen=True)
class Shapes:
    """The N objects of a batch, in pixels of the input.

    Attributes:
        images: [N] int64, positions in the batch.
        boxes: [N, 4].
        labels: [N] int64, columns.
        centers: [N, 2], inner centres.
        coefficients: [N, C].
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    centers: Tensor
    coefficients: Tensor


def center_targets(shapes: Shapes, sizes: Tensor) -> Tensor:
    """Logarithms of the inner centres' places in their boxes, at least a pixel from the corner, in anchors [N, 2]."""
    return ((shapes.centers - shapes.boxes[:, :2]).clamp(min=1) / sizes).log()


def shape_loss(
    predictions: Predictions, shapes: Shapes, scaled: Tensor, targets: Targets, grids: Grids, power: int
) -> dict[str, Tensor]:
    """Differences of inner centres and coefficients, summed over an image and averaged over the batch.

    Args:
        predictions: of B images.
        shapes: all objects of the batch.
        scaled: [N, C] their coefficients as they are regressed.
        targets: which predictor learns which object.
        grids: of the input's size.
        power: 1 for absolute differences (released code), 2 for squared ones (paper).

    Returns:
        `center` and `coefficients`, scalars.
    """
    positive, batch = (targets.images, targets.predictors), len(predictions.objectness)
    weight = object_weights(shapes.boxes, grids)[targets.objects, None]
    center = center_targets(shapes, grids.sizes.new_ones(2))[targets.objects] - grids.sizes[targets.predictors].log()
    return {
        "center": (weight * (predictions.centers[positive] - center).abs() ** power).sum() / batch,
        "coefficients": (weight * (predictions.coefficients[positive] - scaled[targets.objects]).abs() ** power).sum()
        / batch,
    }


class ShapeDetector(nn.Module):
    """YOLOv3 and what its coefficients mean."""

    def __init__(self, yolo: YoloV3, codec: ShapeCodec) -> None:
        super().__init__()
        self.yolo, self.codec = yolo, codec

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, P, V], see `YoloV3`."""
        return self.yolo(x)


class ESESeg(InstanceMethod):
    """YOLOv3 that also regresses an inner centre and the coefficients of an outline."""

    card = Card(
        name="ese_seg",
        title="Explicit shape encoding",
        task="instance segmentation",
        needs=Needs(frozenset({Kind.INSTANCES})),
        gives=frozenset({Kind.INSTANCES, Kind.MASKS}),
        paper="Xu, Wang, Qi, Lu: Explicit Shape Encoding for Real-Time Instance Segmentation, ICCV 2019",
        year=2019,
        idea="A detector regresses, beside each box, an inner centre and a short Chebyshev series of the outline's "
        "radius by angle.",
        published=(
            *(
                Published(setting, "mAP^r@0.5", value, "ICCV 2019; convex hulls, 11 points")
                for setting, value in (
                    ("VOC 2012, YOLOv3, 20 coefficients", 62.6),
                    ("VOC 2012, YOLOv3, 20 coefficients, pretrained on COCO's boxes", 69.3),
                    ("SBD val, YOLOv3, 20 coefficients, pretrained on COCO's boxes", 64.1),
                    ("VOC 2012, YOLOv3-tiny, 20 coefficients", 53.2),
                    ("VOC 2012, YOLOv3, 40 radii regressed directly", 52.6),
                    ("VOC 2012, YOLOv3, 20 monomial coefficients", 26.3),
                )
            ),
        ),
        claim=Claim(
            "Chebyshev coefficients are regressed better than monomial ones of the same fit, each standardised.",
            baseline="ese_seg",
            labels="instances:all",
            paper_labels="instances:all",
            scenes={"scenes": "objects", "size": 96, "train": 480, "val": 120},
            baseline_settings={"basis": "monomial", "coefficient_scale": "measured"},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(InstanceConfig):
        """Options of ESE-Seg; the defaults are those of the released code on SBD."""

        backbone: str = "darknet53"
        "darknet53 (three grids), darknet_tiny (two), or any other network (one grid on its last feature)"
        output_stride: int = 16
        "of a backbone that is no Darknet: pixels per cell"
        head_channels: int = 256
        "of the head on a backbone that is no Darknet"
        anchors: tuple[float, ...] = ()
        "width and height of each in pixels, the finest grid's first; none = the nine of YOLOv3, for tiny the last six"
        short_side: int = 416
        "side of the square to which images are stretched in evaluation"
        train_sizes: tuple[int, ...] = tuple(range(320, 609, 32))
        "sides of the square in training, one of them at a time; none = short_side"
        resize_every: int = 10
        "steps until the side changes"
        coefficients: int = 18
        "numbers per outline: 20 in the paper, 18 in the released code; 10 and 8 were tried as well"
        basis: Basis = "chebyshev"
        "what they multiply: chebyshev or monomial (polynomials), or polar (so many radii, interpolated)"
        coefficient_scale: Literal["sbd", "measured"] = "sbd"
        "sbd: the first less its mean on SBD, 0.263289; measured: each by its own mean and spread on the first objects"
        center_rule: CenterRule = "distance"
        "inner centre: deepest inside (distance), or as the released code has it (code)"
        shape_loss: Literal["l1", "l2"] = "l1"
        "absolute differences (released code) or squared ones (paper)"
        shape_weight: float = 1.0
        "of the shape terms; 0 = learn boxes alone"
        expand: float = 0.5
        "share of the images that are put on a larger canvas"
        color_jitter: bool = True
        "change brightness, contrast, saturation and hue"
        warm_up: float = 0.05
        "share of the steps in which the learning rate rises to its value"
        rate_drop: float = 0.8
        "share of the steps after which the learning rate falls to a tenth; after half of the rest to a hundredth"
        epochs: float = 200.0
        "passes over the labelled images"
        batch_size: int = 20
        "images per optimiser step, over all devices together"
        score_threshold: float = 0.01
        "least score of a detection"
        nms_threshold: float = 0.45
        "a detection is dropped if its IoU with a surer one of its class is above"

        def __post_init__(self) -> None:
            """Refuse numbers that no detector of shapes can have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name, least in (
                ("short_side", 16),
                ("head_channels", 1),
                ("resize_every", 1),
                ("coefficients", 1),
                ("shape_weight", 0),
            ):
                require_at_least(name, getattr(self, name), least)
            for name in ("expand", "warm_up"):
                require_share(name, getattr(self, name))
            if self.coefficients > MOST_COEFFICIENTS:
                raise UserError(f"--coefficients {self.coefficients}: must be at most {MOST_COEFFICIENTS}")
            if len(self.anchors) % 2 or any(side <= 0 for side in self.anchors):
                raise UserError("--anchors: must be widths and heights above 0, two numbers for each")
            if any(size < 16 for size in self.train_sizes):
                raise UserError("--train-sizes: each must be at least 16")
            if self.coefficient_scale == "sbd" and self.basis != "chebyshev":
                raise UserError(f"--basis {self.basis}: has no statistics of SBD; --coefficient-scale measured")

        @property
        def sides(self) -> tuple[int, ...]:
            """The sides of the training's inputs."""
            return self.train_sizes or (self.short_side,)

    config: Config
    network: ShapeDetector

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """YOLOv3 on the configured backbone, with a shape beside each box.

        Args:
            pretrained: load the configured backbone weights.
        """
        config = self.config
        weights = config.backbone_weights if pretrained else None
        backbone = create_darknet(config.backbone, config.output_stride, weights)
        for side in (config.short_side, *config.sides):
            if side % backbone.strides[-1]:
                raise UserError(f"--short-side, --train-sizes: {side} is no multiple of {backbone.strides[-1]}")
        offset = SBD_OFFSET if config.coefficient_scale == "sbd" else 0.0
        codec = ShapeCodec(config.basis, config.coefficients, offset)
        anchors = tuple(zip(config.anchors[::2], config.anchors[1::2], strict=True))
        classes = len(self.classes.objects)
        try:
            yolo = create_yolo(
                backbone, config.backbone, classes, config.coefficients, anchors, channels=config.head_channels
            )
        except ValueError as error:
            raise UserError(f"--anchors: {error}; give as many to each") from error
        return ShapeDetector(yolo, codec)

    # --------------------------------------------------------------- training

    def labeled_view(self, sample: Sample) -> Views:
        """The image with other colors, stretched to the largest training size, flipped or not; and its shapes, encoded.

        They are encoded after all geometry, by a loader: it takes milliseconds for each.
        """
        seen = without_vanished(_with_shapes(sample).transformed(self.geometric()))
        return Views(sample=Sample(id=seen.id, image=seen.image), targets=self.encoded(seen))

    def prepare(self, samples: Sequence[Sample], scratch: Path) -> None:
        """Measure the coefficients' mean and spread on the first training images, if they are to be measured.

        Raises:
            UserError: there are fewer than two objects.
        """
        if self.config.coefficient_scale == "sbd":
            return
        found: list[Tensor] = []
        stretch = StretchOnCanvas(max(self.config.sides), 0.0)
        for sample in samples:
            stretched = without_vanished(_with_shapes(sample).transformed(stretch))
            found.append(self.described(require_instances(stretched)[0])[2])
            if sum(map(len, found)) >= MEASURED_OBJECTS:
                break
        coefficients = torch.cat(found)
        if len(coefficients) < 2:
            raise UserError("--coefficient-scale measured: too few objects to measure; --coefficient-scale sbd")
        self.network.codec.measure(coefficients)

    def geometric(self) -> v2.Transform:
        """Colors, canvas, and a flip."""
        colors = [v2.RandomPhotometricDistort()] if self.config.color_jitter else []
        side = max(self.config.sides)
        return v2.Compose([*colors, StretchOnCanvas(side, self.config.expand), v2.RandomHorizontalFlip()])

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """The terms of YOLOv3, and those of the shapes."""
        config, yolo, codec = self.config, self.network.yolo, self.network.codec
        side = self.side_of_step()
        image = labeled.image
        if side != image.shape[-1]:
            image = resize(image, [side, side], antialias=True)
        shapes = self.shapes_of(labeled, side)
        predictions = yolo.split(self.network(self.normalize(image)))
        grids = yolo.grids((side, side))
        targets = yolo_targets(shapes.boxes, shapes.images, grids)
        terms = yolo_loss(predictions, shapes.boxes, shapes.labels, shapes.images, targets, grids)
        if config.shape_weight:
            scaled = codec.standardized(shapes.coefficients)
            power = {"l1": 1, "l2": 2}[config.shape_loss]
            of_shapes = shape_loss(predictions, shapes, scaled, targets, grids, power)
            terms |= {name: config.shape_weight * term for name, term in of_shapes.items()}
        return terms

    def side_of_step(self) -> int:
        """The side of this step's input, a function of the step alone, so that a resumed run goes on alike."""
        sides = self.config.sides
        block = torch.Generator().manual_seed(self.global_step // self.config.resize_every)
        return sides[int(torch.randint(len(sides), (), generator=block))]

    def encoded(self, sample: Sample) -> dict[str, Tensor]:
        """The shapes of an image by the names of `Shapes`, in its pixels."""
        masks, labels = require_instances(sample)
        boxes, centers, coefficients = self.described(masks)
        return {"boxes": boxes, "labels": self.columns(labels), "centers": centers, "coefficients": coefficients}

    def shapes_of(self, labeled: Batch, side: int) -> Shapes:
        """The shapes of a batch in pixels of a square input of this side; uniform scaling keeps their coefficients."""
        device, scale = labeled.image.device, side / labeled.image.shape[-1]
        counts = torch.tensor([len(each) for each in labeled.targets["labels"]], device=device)
        told = {name: torch.cat(parts) for name, parts in labeled.targets.items()}
        return Shapes(
            images=torch.arange(len(counts), device=device).repeat_interleave(counts),
            boxes=told["boxes"] * scale,
            labels=told["labels"],
            centers=told["centers"] * scale,
            coefficients=told["coefficients"],
        )

    def described(self, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [N, 4], inner centres [N, 2] and coefficients [N, C] of masks [N, H, W], in the main memory."""
        masks = masks.bool().cpu()
        boxes = boxes_of_instances(masks)
        centers, radii = map(torch.from_numpy, describe_shapes(masks.numpy(), self.config.center_rule))
        coefficients = self.network.codec.encode(radii, diagonals(boxes).double())
        return boxes, centers.float(), coefficients.float()

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """The learning rate of a parameter as a multiple; biases learn like weights."""
        return 1.0 if in_backbone(name) else self.config.head_multiplier

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0: rises, and falls twice to a tenth."""
        done, drop = step / self.total_steps, self.config.rate_drop
        if done < self.config.warm_up:
            return (step + 1) / (self.config.warm_up * self.total_steps + 1)
        return 1.0 if done < drop else 0.1 if done < (1 + drop) / 2 else 0.01

    # ------------------------------------------------------------- prediction

    def resize(self) -> v2.Transform:
        """Stretches an image to a square of `short_side`."""
        return v2.Resize([self.config.short_side] * 2, antialias=True)

    def detect(self, sample: Sample) -> Detections:
        """The objects of one image with their masks, surest first; masks are made of those that are kept alone.

        Args:
            sample: an image of any size.
        """
        found, outlines = self.find(sample.image)
        size, side = tuple(sample.image.shape[-2:]), self.config.short_side
        ratio = outlines.new_tensor([size[1] / side, size[0] / side])
        boxes = clip_boxes(scale_boxes(found.boxes, (side, side), size), size)
        return replace(found, boxes=boxes, masks=polygons_to_masks(outlines * ratio, size))

    def find(self, image: Tensor) -> tuple[Detections, Tensor]:
        """The objects of one image without masks, and their outlines [N, 360, 2], in pixels of the square input."""
        config, yolo = self.config, self.network.yolo
        predictions = yolo.split(self.network(self.resized(image)))
        grids = yolo.grids((config.short_side, config.short_side))
        boxes = decode_predictions(predictions.offsets[0], grids)
        scores = predictions.objectness[0].sigmoid()[:, None] * predictions.classes[0].sigmoid()
        chosen, columns, values = surest(
            boxes, scores, config.score_threshold, config.nms_threshold, CONSIDERED, config.max_detections
        )
        boxes = boxes[chosen]
        centers = decode_centers(predictions.centers[0, chosen], boxes, grids.sizes[chosen])
        outlines = self.network.codec.decode(predictions.coefficients[0, chosen], centers, boxes)
        return Detections(boxes=boxes, labels=self.class_numbers(columns), scores=values), outlines


def _with_shapes(sample: Sample) -> Sample:
    """The image and its shapes, without other labels."""
    instances, labels = require_instances(sample)
    return Sample(id=sample.id, image=sample.image, instances=tv_tensors.Mask(instances), instance_labels=labels)
