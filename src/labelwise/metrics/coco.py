"""COCO's average precision of boxes, by the compiled evaluator of faster-coco-eval."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)
_AP50, _AP75 = 0, 5
"""Positions among the overlaps 0.5, 0.55, ... 0.95."""


def box_average_precision(detections: NDArray[Any], objects: NDArray[Any]) -> dict[str, float | None]:
    """AP over the overlaps 0.5, 0.55, ... 0.95, and at 0.5 and at 0.75, in percent.

    Of each image and class at most 100 detections count. COCO knows no difficult objects; they are treated as its
    crowds are: a detection does not count if it finds nothing else and lies inside one with enough of its area.

    Args:
        detections: [D, 7] image, class, score, and half-open XYXY box.
        objects: [G, 7] image, class, 1 if difficult or 0, and box.

    Returns:
        `coco_ap`, `coco_ap50`, `coco_ap75`; None if no object counts.
    """
    images = np.unique(np.concatenate([detections[:, 0], objects[:, 0]])).astype(int).tolist()
    classes = np.unique(objects[:, 1]).astype(int).tolist()
    crowds, scores = objects[:, 2].astype(int).tolist(), detections[:, 2].tolist()
    true = [row | {"iscrowd": crowd} for row, crowd in zip(_annotations(objects), crowds, strict=True)]
    found = [row | {"iscrowd": 0, "score": score} for row, score in zip(_annotations(detections), scores, strict=True)]
    evaluator = COCOeval_faster(
        _coco(images, classes, true), _coco(images, classes, found), "bbox", print_function=_LOG.debug
    )
    evaluator.evaluate()
    evaluator.accumulate()
    # [overlaps, recalls, classes, areas, numbers of detections]: of objects of all areas, of up to 100 detections.
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    return {
        "coco_ap": _mean(precision),
        "coco_ap50": _mean(precision[_AP50]),
        "coco_ap75": _mean(precision[_AP75]),
    }


def _annotations(rows: NDArray[Any]) -> list[dict[str, Any]]:
    corners = rows[:, 3:].astype(np.float64)
    sizes = corners[:, 2:] - corners[:, :2]
    columns = (
        rows[:, 0].astype(int).tolist(),
        rows[:, 1].astype(int).tolist(),
        np.concatenate([corners[:, :2], sizes], axis=1).tolist(),
        sizes.prod(axis=1).tolist(),
    )
    return [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": area}
        for number, (image, label, box, area) in enumerate(zip(*columns, strict=True), 1)
    ]


def _coco(images: list[int], classes: list[int], annotations: list[dict[str, Any]]) -> COCO:
    return COCO(
        {
            "images": [{"id": image} for image in images],
            "categories": [{"id": number, "name": str(number)} for number in classes],
            "annotations": annotations,
        }
    )


def _mean(precision: NDArray[Any]) -> float | None:
    # -1 stands for classes without objects.
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None
