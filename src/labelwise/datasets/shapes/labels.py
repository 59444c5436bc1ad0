"""Every kind of label of a drawn scene, from one map of the visible pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.samples import IGNORE_INDEX, Sample

CONTOUR_SIZE = 96
"""From this image size on, background pixels that touch an object are 255, as on VOC's contours."""


def class_mask(visible: np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """The classes of a map of visible objects.

    Args:
        visible: [H, W] int64, 0 = background, k = the k-th object.
        labels: the class of every object.

    Returns:
        [H, W] uint8; from `CONTOUR_SIZE` on, background pixels beside an object are 255.
    """
    mask = np.array([0, *labels], dtype=np.uint8)[visible]
    if len(mask) < CONTOUR_SIZE:
        return mask
    occupied = np.pad(mask > 0, 1)
    beside = occupied[:-2, 1:-1] | occupied[2:, 1:-1] | occupied[1:-1, :-2] | occupied[1:-1, 2:]
    mask[beside & (mask == 0)] = IGNORE_INDEX
    return mask


def labeled_sample(
    id: str,
    pixels: np.ndarray,
    visible: np.ndarray,
    labels: Sequence[int],
    sentences: tuple[str, ...],
    classes: Classes,
) -> Sample:
    """A sample with every field set.

    Args:
        id: of the image.
        pixels: [H, W, 3] uint8.
        visible: [H, W] int64 map of the visible objects, 0 = background, k = the k-th object.
        labels: the class of every object.
        sentences: captions.
        classes: of the data set.
    """
    instances = visible[None] == np.arange(1, len(labels) + 1)[:, None, None]
    numbers = torch.tensor(list(labels), dtype=torch.int64)
    tags = torch.zeros(len(classes), dtype=torch.uint8)
    tags[numbers] = 1
    return Sample(
        id=id,
        image=tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous()),
        mask=tv_tensors.Mask(torch.from_numpy(class_mask(visible, labels))),
        instances=tv_tensors.Mask(torch.from_numpy(instances)),
        instance_labels=numbers,
        boxes=tv_tensors.BoundingBoxes(_boxes(instances), format="XYXY", canvas_size=visible.shape),
        box_labels=numbers.clone(),
        difficult=torch.zeros(len(labels), dtype=torch.bool),
        tags=tags,
        points=tv_tensors.KeyPoints(_points(instances), canvas_size=visible.shape),
        point_labels=numbers.clone(),
        captions=sentences,
    )


def _boxes(instances: np.ndarray) -> torch.Tensor:
    """[N, 4] float32: the tight half-open boxes around [N, H, W] masks."""
    sides = [np.asarray(instances.any(axis=axis)) for axis in (1, 2)]
    ends = [side.shape[1] - side[:, ::-1].argmax(axis=1) for side in sides]
    boxes = np.stack([*(side.argmax(axis=1) for side in sides), *ends], axis=1)
    return torch.from_numpy(boxes.astype(np.float32))


def _points(instances: np.ndarray) -> torch.Tensor:
    """[N, 2] float32: a pixel (column, row) well inside each of [N, H, W] masks, as a person would click."""
    return torch.tensor([_click(mask) for mask in instances], dtype=torch.float32).reshape(-1, 2)


def _click(mask: np.ndarray) -> tuple[int, int]:
    """Of the pixels with most of the mask around them, the nearest to the mask's middle."""
    near = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(max(1, len(mask) // 32)))
    depth = np.where(mask, np.asarray(near, dtype=np.float64), -1)
    rows, columns = np.nonzero(depth >= 0.95 * depth.max())
    middle = np.argwhere(mask).mean(axis=0)
    nearest = np.hypot(rows - middle[0], columns - middle[1]).argmin()
    return int(columns[nearest]), int(rows[nearest])


def without_hidden(visible: np.ndarray, count: int) -> tuple[np.ndarray, list[int]]:
    """Number the things that are to be seen from 1 on; also returns their former numbers less 1."""
    seen = np.bincount(visible.ravel(), minlength=count + 1)[1:] > 0
    numbers = np.concatenate([[0], np.cumsum(seen)])
    return numbers[visible], np.flatnonzero(seen).tolist()
