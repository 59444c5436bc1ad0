"""YOLOv3: boxes, and whatever else is regressed beside them, predicted by every cell of a few grids.

Redmon, Farhadi: YOLOv3, 2018, as ESE-Seg extends it: each anchor of each cell gives 4 values of its box, then of its
shape 2 values of the inner centre and some coefficients, objectness, and a score for each class. Predictors, which are
the anchors of all cells of all grids, are numbered grid by grid, finest first, cell by cell, anchor by anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms, box_iou

from labelwise.models.backbones import Backbone
from labelwise.models.boxes import LONGEST_STEP
from labelwise.models.darknet import DARKNET53, DARKNET_TINY, conv_norm_leaky

ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
"""Widths and heights in pixels, clustered on COCO: three for each of the strides 8, 16 and 32."""
IGNORED_OVERLAP = 0.7
"""A predictor whose box overlaps an object by more, but which is not the object's own, is not taught to be silent."""


class Predictions(NamedTuple):
    """What P predictors say of each of B images, before any activation.

    Attributes:
        offsets: [B, P, 4], place in the cell and logarithmic size.
        centers: [B, P, 2], logarithmic place of the inner centre in the box; [B, P, 0] without shapes.
        coefficients: [B, P, C].
        objectness: [B, P].
        classes: [B, P, K].
    """

    offsets: Tensor
    centers: Tensor
    coefficients: Tensor
    objectness: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Grids:
    """Where the predictors of an input of one size stand.

    Attributes:
        corners: [P, 2], the upper left corner of each predictor's cell in cells.
        strides: [P], pixels per cell.
        sizes: [P, 2], width and height of each predictor's anchor in pixels.
        anchors: [A, 2], the anchors of all grids.
        anchor_strides: [A], pixels per cell of each anchor's grid.
        first: [A] int64, each anchor's first predictor.
        columns: [A] int64, cells in a row of each anchor's grid.
        rows: [A] int64, cells in a column.
        per_cell: [A] int64, anchors in each cell of its grid.
    """

    corners: Tensor
    strides: Tensor
    sizes: Tensor
    anchors: Tensor
    anchor_strides: Tensor
    first: Tensor
    columns: Tensor
    rows: Tensor
    per_cell: Tensor


class Targets(NamedTuple):
    """Which predictor learns which object.

    Attributes:
        images: [T] int64, positions in the batch.
        predictors: [T] int64.
        objects: [T] int64, positions among the objects of the whole batch; of several that share a predictor the last.
    """

    images: Tensor
    predictors: Tensor
    objects: Tensor


class YoloHead(nn.Module):
    """The layers of one grid: in the large form five convolutions and a tip, in the small one a tip alone."""

    def __init__(self, inputs: int, channels: int, outputs: int, *, large: bool) -> None:
        """Build it.

        Args:
            inputs: channels of the features.
            channels: of the narrow layers in the large form, whose wide ones have twice as many; of the tip in the
                small form.
            outputs: values of one cell.
            large: the form.
        """
        super().__init__()
        wide = 2 * channels if large else channels
        sizes = ((inputs, channels, 1), (channels, wide, 3), (wide, channels, 1), (channels, wide, 3))
        layers = [conv_norm_leaky(*size) for size in (*sizes, (wide, channels, 1))] if large else []
        self.body = nn.Sequential(*layers)
        self.route_channels = channels if large else inputs
        self.tip = conv_norm_leaky(self.route_channels, wide, 3)
        self.predict = nn.Conv2d(wide, outputs, 1)
        nn.init.normal_(self.predict.weight, std=0.01)
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, inputs, H, W] -> what the next finer grid is given, and the values of each cell [B, outputs, H, W]."""
        route = self.body(features)
        return route, self.predict(self.tip(route))


class YoloV3(nn.Module):
    """A backbone with a head on each of its coarsest features; the finer ones see the coarser ones enlarged."""

    anchors: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head_channels: Sequence[int],
        anchors: Sequence[tuple[float, float]],
        classes: int,
        coefficients: int = 0,
        *,
        large: bool = True,
    ) -> None:
        """Build it.

        Args:
            backbone: its last features are used.
            head_channels: of the head on each feature, the finest first (`YoloHead`).
            anchors: widths and heights in pixels, the finest grid's first; each grid has as many.
            classes: K.
            coefficients: C, of a shape; 0 is a detector of boxes alone.
            large: the heads' form.

        Raises:
            ValueError: the anchors cannot be shared by the grids.
        """
        super().__init__()
        if not anchors or len(anchors) % len(head_channels):
            raise ValueError(f"{len(anchors)} anchors cannot be shared by {len(head_channels)} grids")
        self.backbone = backbone
        self.strides = tuple(backbone.strides[-len(head_channels) :])
        self.per_cell = len(anchors) // len(head_channels)
        self.parts = (4, 2 if coefficients else 0, coefficients, 1, classes)
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32), persistent=False)
        outputs = self.per_cell * sum(self.parts)
        heads: list[YoloHead] = []
        bridges: list[nn.Module] = []
        coarser = 0
        # The coarsest first, as they are computed.
        for channels, inputs in reversed(
            list(zip(head_channels, backbone.channels[-len(head_channels) :], strict=True))
        ):
            heads.append(YoloHead(inputs + coarser, channels, outputs, large=large))
            coarser = heads[-1].route_channels // 2
            bridges.append(conv_norm_leaky(heads[-1].route_channels, coarser, 1))
        self.heads, self.bridges = nn.ModuleList(heads), nn.ModuleList(bridges[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], sides multiples of the coarsest stride -> [B, P, V], the values of each predictor."""
        features = self.backbone(x)[-len(self.heads) :][::-1]
        found = []
        route: Tensor | None = None
        for number, (head, feature) in enumerate(zip(self.heads, features, strict=True)):
            if route is not None:
                enlarged = functional.interpolate(self.bridges[number - 1](route), size=feature.shape[-2:])
                feature = torch.cat([enlarged, feature], dim=1)
            route, values = head(feature)
            found.append(values.permute(0, 2, 3, 1).reshape(len(x), -1, sum(self.parts)))
        return torch.cat(found[::-1], dim=1)

    def split(self, values: Tensor) -> Predictions:
        """[B, P, V] -> its parts, in single precision."""
        offsets, centers, coefficients, objectness, classes = values.float().split(self.parts, dim=-1)
        return Predictions(offsets, centers, coefficients, objectness[..., 0], classes)

    def grids(self, size: Sequence[int]) -> Grids:
        """The predictors of inputs of this height and width."""
        shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in self.strides]
        return make_grids(self.anchors, shapes, self.strides)


def create_yolo(
    backbone: Backbone,
    name: str,
    classes: int,
    coefficients: int,
    anchors: Sequence[tuple[float, float]] = (),
    channels: int = 256,
) -> YoloV3:
    """YOLOv3 on a backbone.

    Args:
        backbone: "darknet53" has three grids and large heads, "darknet_tiny" two grids and small heads; any other has
            one grid, on its last feature, and a small head.
        name: of the backbone.
        classes: K.
        coefficients: C, of a shape; 0 is a detector of boxes alone.
        anchors: see `YoloV3`; the paper's unless given, of which the tiny network has the six larger ones.
        channels: of the head of any other backbone.

    Raises:
        ValueError: the anchors cannot be shared by the grids.
    """
    if name == DARKNET53:
        return YoloV3(backbone, (128, 256, 512), anchors or ANCHORS, classes, coefficients)
    if name == DARKNET_TINY:
        return YoloV3(backbone, (256, 512), anchors or ANCHORS[3:], classes, coefficients, large=False)
    return YoloV3(backbone, (channels,), anchors or ANCHORS, classes, coefficients, large=False)


def make_grids(anchors: Tensor, shapes: Sequence[tuple[int, int]], strides: Sequence[int]) -> Grids:
    """The predictors of grids of these (rows, columns), which share the anchors [A, 2] evenly."""
    per_cell, device = len(anchors) // len(shapes), anchors.device
    cells = [rows * columns for rows, columns in shapes]
    corners = [
        torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device)).flip(-1)
        for rows, columns in shapes
    ]
    sizes = [chosen.repeat(count, 1) for chosen, count in zip(anchors.chunk(len(shapes)), cells, strict=True)]

    def of_anchors(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device).repeat_interleave(per_cell)

    predictors = torch.tensor([per_cell * count for count in cells], device=device)
    starts = [per_cell * sum(cells[:grid]) for grid in range(len(cells))]
    return Grids(
        corners=torch.cat(corners).repeat_interleave(per_cell, dim=0).float(),
        strides=torch.tensor(strides, device=device).repeat_interleave(predictors).float(),
        sizes=torch.cat(sizes),
        anchors=anchors,
        anchor_strides=of_anchors(strides).float(),
        first=of_anchors(starts) + torch.arange(per_cell, device=device).repeat(len(cells)),
        columns=of_anchors([columns for _, columns in shapes]),
        rows=of_anchors([rows for rows, _ in shapes]),
        per_cell=torch.full((len(anchors),), per_cell, device=device),
    )


def decode_predictions(offsets: Tensor, grids: Grids) -> Tensor:
    """The boxes that predictors mean. [..., P, 4] -> [..., P, 4] XYXY in pixels of the input."""
    middle = (offsets[..., :2].sigmoid() + grids.corners) * grids.strides[:, None]
    half = _grown(offsets[..., 2:], grids.sizes) / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def decode_centers(centers: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
    """The inner centres [..., 2] in pixels, measured from the corner of the predicted boxes [..., 4] in anchors."""
    return _grown(centers, sizes) + boxes[..., :2]


def _grown(logarithms: Tensor, sizes: Tensor) -> Tensor:
    return logarithms.clamp(max=LONGEST_STEP).exp() * sizes


def shape_overlap(sizes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes about one centre, by width and height. [N, 2], [M, 2] -> [N, M]."""
    common = torch.minimum(sizes[:, None], others).prod(-1)
    return common / (sizes.prod(-1)[:, None] + others.prod(-1) - common)


def yolo_targets(boxes: Tensor, images: Tensor, grids: Grids) -> Targets:
    """The predictor of each object: in the cell of its middle, the anchor whose form is most like its own.

    Args:
        boxes: [N, 4] of all objects of a batch, in pixels of the input.
        images: [N] int64, the position in the batch of each object's image.
        grids: of the input's size.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    anchor = shape_overlap(size, grids.anchors).argmax(dim=1)
    cell = ((boxes[:, :2] + boxes[:, 2:]) / 2 / grids.anchor_strides[anchor][:, None]).long()
    column = torch.minimum(cell[:, 0], grids.columns[anchor] - 1).clamp(min=0)
    row = torch.minimum(cell[:, 1], grids.rows[anchor] - 1).clamp(min=0)
    predictor = grids.first[anchor] + (row * grids.columns[anchor] + column) * grids.per_cell[anchor]
    keys, which = (images * len(grids.corners) + predictor).unique(return_inverse=True)
    numbers = torch.arange(len(boxes), device=boxes.device)
    last = torch.zeros_like(keys).scatter_reduce(0, which, numbers, "amax")
    return Targets(images[last], predictor[last], last)


def yolo_loss(
    predictions: Predictions, boxes: Tensor, labels: Tensor, images: Tensor, targets: Targets, grids: Grids
) -> dict[str, Tensor]:
    """The terms of YOLOv3, each summed over an image and averaged over the batch (released code of ESE-Seg).

    Args:
        predictions: of B images.
        boxes: [N, 4] of all objects, in pixels of the input.
        labels: [N] int64, columns of the class scores.
        images: [N] int64, the position in the batch of each object's image.
        targets: of `yolo_targets`.
        grids: of the input's size.

    Returns:
        `objectness`, `place`, `size` and `class`, scalars.
    """
    batch = len(predictions.objectness)
    chosen, positive = boxes[targets.objects], (targets.images, targets.predictors)
    offsets, sizes = predictions.offsets[positive], grids.sizes[targets.predictors]
    weight = object_weights(chosen, grids)[:, None]
    middle = (chosen[:, :2] + chosen[:, 2:]) / 2 / grids.strides[targets.predictors][:, None]
    place = (middle - grids.corners[targets.predictors]).clamp(0, 1)
    size = ((chosen[:, 2:] - chosen[:, :2]).clamp(min=1e-3) / sizes).log()
    truth = functional.one_hot(labels[targets.objects], predictions.classes.shape[-1]).float()
    cross_entropy = functional.binary_cross_entropy_with_logits
    return {
        "objectness": _objectness_loss(predictions, boxes, images, positive, grids) / batch,
        "place": (weight * cross_entropy(offsets[:, :2], place, reduction="none")).sum() / batch,
        "size": (weight * (offsets[:, 2:] - size).abs()).sum() / batch,
        "class": cross_entropy(predictions.classes[positive], truth, reduction="sum") / batch,
    }


def object_weights(boxes: Tensor, grids: Grids) -> Tensor:
    """The weight of each object's regression terms: 2 less its box's share of the input. [N, 4] -> [N]."""
    area = grids.anchor_strides[0] ** 2 * grids.columns[0] * grids.rows[0]
    return 2 - (boxes[:, 2:] - boxes[:, :2]).prod(-1) / area


def _objectness_loss(
    predictions: Predictions, boxes: Tensor, images: Tensor, positive: tuple[Tensor, Tensor], grids: Grids
) -> Tensor:
    """Cross-entropy summed over all predictors but those that see an object well and are not its own."""
    objectness = predictions.objectness
    with torch.no_grad():
        found = decode_predictions(predictions.offsets, grids)
        counted = best_overlap(found, boxes, images) <= IGNORED_OVERLAP
        truth = torch.zeros_like(objectness)
        truth[positive] = 1
        counted[positive] = True
    return functional.binary_cross_entropy_with_logits(objectness, truth, counted.float(), reduction="sum")


def best_overlap(found: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
    """The best IoU of boxes [B, P, 4] with those [N, 4] of the objects of their own images [N]. Returns [B, P]."""
    counts = torch.bincount(images, minlength=len(found)).tolist()
    if not len(boxes):
        return found.new_zeros(found.shape[:2])
    # Objects come image by image; a box without area overlaps nothing.
    padded = pad_sequence(list(boxes.split(counts)), batch_first=True)
    return torch.vmap(box_iou)(found, padded).amax(dim=2)


def surest(
    boxes: Tensor, scores: Tensor, threshold: float, nms_threshold: float, considered: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept of the predictors' boxes: the surest, then non-maximum suppression of each class.

    Args:
        boxes: [P, 4].
        scores: [P, K].
        threshold: least score, exclusive.
        nms_threshold: a box is dropped if its IoU with a surer one of its class is above.
        considered: only so many of the surest pairs of box and class are looked at.
        most: the most that are kept.

    Returns:
        predictors [M] int64, columns of `scores` [M] int64 and scores [M], by falling score.
    """
    values, order = scores.flatten().topk(min(considered, scores.numel()))
    above = values > threshold
    values, predictor, column = values[above], order[above] // scores.shape[1], order[above] % scores.shape[1]
    kept = batched_nms(boxes[predictor], values, column, nms_threshold)[:most]
    return predictor[kept], column[kept], values[kept]
