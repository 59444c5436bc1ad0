"""COCO's AP of boxes."""

from __future__ import annotations

import numpy as np
import pytest

from labelwise.metrics.average_precision import (
    average_precisions,
    best_of_groups,
    match_free,
    pairs_of_boxes,
    ranked,
)
from labelwise.metrics.coco import box_average_precision

OVERLAPS = np.linspace(0.5, 0.95, 10).tolist()


def rows(*content: tuple[float, ...]) -> np.ndarray:
    return np.array(content, dtype=np.float32).reshape(-1, 7)


def test_boxes_are_read_as_corners() -> None:
    # Overlap 0.8 of boxes that do not begin at 0.
    objects = rows((0, 0, 0, 10, 20, 20, 30))
    values = box_average_precision(rows((0, 0, 0.9, 10, 20, 20, 28)), objects)
    assert values == {"coco_ap": pytest.approx(70.0), "coco_ap50": 100.0, "coco_ap75": 100.0}


def test_difficult_object_is_neither_to_be_found_nor_wrong_to_find() -> None:
    objects = rows((0, 0, 0, 0, 0, 10, 10), (0, 0, 1, 50, 50, 90, 90))
    hit, on_difficult = (0, 0, 0.5, 0, 0, 10, 10), (0, 0, 0.9, 55, 55, 85, 85)
    assert box_average_precision(rows(on_difficult, hit), objects)["coco_ap"] == pytest.approx(100.0)


def test_no_detection_and_no_object() -> None:
    objects = rows((0, 0, 0, 0, 0, 10, 10))
    assert box_average_precision(rows(), objects)["coco_ap"] == 0.0
    assert box_average_precision(rows((0, 0, 0.9, 0, 0, 9, 9)), rows())["coco_ap"] is None
    assert (
        box_average_precision(rows((0, 0, 0.9, 0, 0, 9, 9)), objects * [1, 1, 0, 1, 1, 1, 1] + [0, 0, 1, 0, 0, 0, 0])[
            "coco_ap"
        ]
        is None
    )


def test_second_choice_and_the_reading_at_101_recalls_are_those_of_the_own_functions() -> None:
    random = np.random.default_rng(3)
    objects = np.zeros((40, 7))
    objects[:, 0], objects[:, 1] = np.repeat(np.arange(10), 4), random.integers(0, 3, 40)
    objects[:, 3:5] = random.integers(0, 20, (40, 2))
    objects[:, 5:] = objects[:, 3:5] + random.integers(5, 20, (40, 2))
    detections = objects.repeat(8, axis=0)
    detections[:, 3:] += random.integers(-3, 4, (len(detections), 4))
    detections[:, 2] = random.integers(0, 50, len(detections)) / 50
    detections = detections[ranked(detections[:, 2])]
    labels = detections[:, 1].astype(np.int64)
    groups, own = ((table[:, 0] * 3 + table[:, 1]).astype(np.int64) for table in (detections, objects))
    assert best_of_groups(groups, 100).all()
    pairs = pairs_of_boxes(detections[:, 3:], groups, objects[:, 3:], own)
    matches = match_free(pairs, len(detections), 40, OVERLAPS, inclusive=True, last_of_equal=True)
    values = average_precisions(matches, labels, np.bincount(objects[:, 1].astype(int), minlength=3), "coco101")
    expected = {"coco_ap": values.mean(), "coco_ap50": values[0].mean(), "coco_ap75": values[5].mean()}
    assert box_average_precision(detections, objects) == pytest.approx({k: 100 * v for k, v in expected.items()})
