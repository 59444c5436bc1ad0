"""Weaker labels from stronger ones: masks from instances, tags and points from masks, boxes from instances."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from labelwise.datasets.base import Classes
from labelwise.samples import IGNORE_INDEX, Kind, Sample

ORIGINS: dict[Kind, tuple[Kind, ...]] = {
    Kind.MASKS: (Kind.MASKS,),
    Kind.INSTANCES: (Kind.INSTANCES,),
    Kind.BOXES: (Kind.BOXES, Kind.INSTANCES),
    Kind.TAGS: (Kind.TAGS, Kind.BOXES, Kind.MAPS, Kind.MASKS, Kind.POINTS),
    Kind.POINTS: (Kind.POINTS, Kind.MASKS),
    Kind.CAPTIONS: (Kind.CAPTIONS,),
    Kind.MAPS: (Kind.MAPS,),
}
"""Where a kind comes from, best first: its own files, or the labels that it can be derived from.

Score maps are made from tags, which their seed may have lost. Masks, tags and points never come from instances, because
in every layout that is read an image with instances has a mask as well.
"""


def instance_labels(objects: np.ndarray, mask: np.ndarray, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """The objects of an instance picture and the class that most of their pixels have in the mask.

    Args:
        objects: [H, W] uint8 object numbers; 0 is no object, 255 a contour.
        mask: [H, W] uint8 class numbers.
        classes: the classes; neither the background nor 255 votes.

    Returns:
        Object numbers [N] and class numbers [N]; -1 is the class of an object without any vote.
    """
    pairs = objects.astype(np.int64) * 256 + mask
    votes = np.bincount(pairs.ravel(), minlength=256 * 256).reshape(256, 256)
    numbers = np.flatnonzero(votes.sum(axis=1))
    numbers = numbers[(numbers != 0) & (numbers != IGNORE_INDEX)]
    votes[:, IGNORE_INDEX] = 0
    if classes.background is not None:
        votes[:, classes.background] = 0
    labels = votes[numbers].argmax(axis=1)
    return numbers, np.where(votes[numbers].any(axis=1), labels, -1)


def mask_of_instances(instances: Tensor, labels: Tensor, background: int | None) -> Tensor:
    """Paint objects into a mask; a later object covers an earlier one.

    Args:
        instances: [N, H, W] bool.
        labels: [N] int64.
        background: the value where no object is; 255 where it is None.

    Returns:
        [H, W] uint8.
    """
    top = top_instance(instances)
    values = torch.cat([torch.tensor([IGNORE_INDEX if background is None else background]), labels.cpu()])
    return values[top.long()].to(torch.uint8)


def top_instance(instances: Tensor) -> Tensor:
    """The number (from 1) of the last object that covers a pixel, 0 where none does. [N, H, W] bool -> [H, W] int16."""
    numbers = torch.arange(1, len(instances) + 1, dtype=torch.int16).view(-1, 1, 1)
    stacked = torch.cat([torch.zeros(1, *instances.shape[1:], dtype=torch.int16), instances.cpu() * numbers])
    return stacked.amax(dim=0)


def boxes_of_instances(instances: Tensor) -> Tensor:
    """The smallest half-open box around each object. [N, H, W] bool -> [N, 4] float32."""
    boxes = masks_to_boxes(instances) if len(instances) else torch.zeros(0, 4)
    return boxes.float() + torch.tensor([0.0, 0.0, 1.0, 1.0])


def with_derived(sample: Sample, kinds: Collection[Kind], classes: Classes) -> Sample:
    """The sample with masks, boxes and tags as well, if they are among the kinds and it has labels that tell them.

    Points tell a mask that is 255 everywhere else.
    """
    if Kind.MASKS in kinds and sample.instances is None:
        sample = with_sparse_mask(sample)
    if Kind.TAGS in kinds and sample.tags is None and sample.mask is not None:
        sample = replace(sample, tags=tags_of_mask(sample.mask, classes))
    instances, labels = sample.instances, sample.instance_labels
    if instances is None or labels is None:
        return sample
    shapes = instances.as_subclass(Tensor).bool()
    if Kind.MASKS in kinds and sample.mask is None:
        mask = mask_of_instances(shapes, labels, classes.background)
        sample = replace(sample, mask=tv_tensors.Mask(mask))
    if Kind.BOXES in kinds and sample.boxes is None:
        boxes = tv_tensors.BoundingBoxes(
            boxes_of_instances(shapes),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(shapes.shape[-2], shapes.shape[-1]),
        )
        difficult = torch.zeros(len(labels), dtype=torch.bool)
        sample = replace(sample, boxes=boxes, box_labels=labels, difficult=difficult)
    return sample


def with_sparse_mask(sample: Sample) -> Sample:
    """The sample with a mask that knows its points alone, if it has points and no mask."""
    if sample.mask is not None or sample.points is None or sample.point_labels is None:
        return sample
    size = (sample.image.shape[-2], sample.image.shape[-1])
    mask = sparse_mask(sample.points.as_subclass(Tensor), sample.point_labels, size)
    return replace(sample, mask=tv_tensors.Mask(mask))


def tags_of_labels(labels: Tensor, classes: Classes, difficult: Tensor | None = None) -> Tensor:
    """Which classes occur among the labels.

    Args:
        labels: [N] class numbers; 255 counts as none.
        classes: the classes.
        difficult: [N] bool; a class of which all objects are difficult is neither present nor absent.

    Returns:
        [C] uint8: 1 present, 0 absent, 255 only difficult objects; the background's entry is 0.
    """
    tags = torch.zeros(len(classes), dtype=torch.uint8)
    labels = labels.long()
    if difficult is None:
        difficult = torch.zeros_like(labels, dtype=torch.bool)
    tags[labels[difficult & (labels != IGNORE_INDEX)]] = IGNORE_INDEX
    tags[labels[~difficult & (labels != IGNORE_INDEX)]] = 1
    if classes.background is not None:
        tags[classes.background] = 0
    return tags


def tags_of_mask(mask: Tensor, classes: Classes) -> Tensor:
    """Which classes occur in a mask. [H, W] uint8 -> [C] uint8, as `tags_of_labels`."""
    counts = torch.bincount(mask.as_subclass(Tensor).flatten(), minlength=256)
    return tags_of_labels(counts.nonzero().flatten(), classes)


def points_of_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every pixel that has a class, as a point.

    Args:
        mask: [H, W] uint8.

    Returns:
        Points [P, 2] float32 (x, y) in row order, and their classes [P] int64.
    """
    rows, columns = (mask.as_subclass(Tensor) != IGNORE_INDEX).nonzero(as_tuple=True)
    return torch.stack([columns, rows], dim=1).float(), mask.as_subclass(Tensor)[rows, columns].long()


def sparse_mask(points: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask of which nothing but some pixels is known; `points_of_mask` gives them back.

    Args:
        points: [P, 2] float (x, y) within the image; of several on a pixel the last counts.
        labels: [P] int64.
        size: height and width.

    Returns:
        [H, W] uint8, 255 where there is no point.
    """
    mask = np.full(size, IGNORE_INDEX, dtype=np.uint8)
    columns, rows = points.long().numpy().T
    mask[rows, columns] = labels.numpy()
    return torch.from_numpy(mask)


def sample_points(mask: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw pixels of known class uniformly and without replacement, as an annotator asked for them at random would.

    Args:
        mask: [H, W] uint8.
        count: how many; all of them where the mask has fewer.
        seed: the same seed and mask give the same points.

    Returns:
        Points [P, 2] float32 (x, y) and their classes [P] int64.
    """
    points, labels = points_of_mask(mask)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:count]
    return points[order], labels[order]
