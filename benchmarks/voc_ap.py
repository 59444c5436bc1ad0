"""VOC AP over 1,000 images and 50,000 boxes against the classical evaluator in Python: agreement first, then times.

The classical evaluator is the one most detection code bases carry: for each class, sort the detections, take them one
by one, compare each with the objects of its image, accumulate. It is written here after the protocol, with the devkit's
"at least the threshold". It gets its rows already sorted into classes and images, ours gets them as they come. "Image
by image" is the whole metric with an update for each image, against the classical evaluator with that sorting.

    python benchmarks/voc_ap.py [--repetitions 7]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelwise.detections import Detections
from labelwise.metrics.average_precision import Reading, average_precisions, match_best, pairs_of_boxes, ranked
from labelwise.metrics.detection import DetectionScores
from timing import medians_ms, print_table

IMAGES, BOXES, CLASSES = 1000, 50, 20
TEN = tuple(np.linspace(0.5, 0.95, 10).tolist())
GATE, WHOLE_GATE, DIGITS = 10.0, 3.0, 6
Array = NDArray[Any]


def scenes() -> tuple[Array, Array]:
    """Rows of image, class, score and box of the detections, and of image, class, difficult and box of the objects."""
    random = np.random.default_rng(0)
    count = random.integers(1, 6, size=IMAGES)
    image = np.repeat(np.arange(IMAGES), count)
    corner, size = random.integers(0, 300, size=(len(image), 2)), random.integers(20, 200, size=(len(image), 2))
    label, difficult = random.integers(0, CLASSES, size=len(image)), random.random(len(image)) < 0.15
    objects = np.column_stack([image, label, difficult, corner, corner + size]).astype(np.float32)
    first = np.cumsum(count) - count
    chosen = np.repeat(first, BOXES) + random.integers(0, 1000, size=IMAGES * BOXES) % np.repeat(count, BOXES)
    moved = objects[chosen, 3:] + random.normal(0, 15, size=(len(chosen), 4))
    box = np.concatenate([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 1)], axis=1)
    wrong = random.random(len(chosen)) < 0.4
    found = np.where(wrong, random.integers(0, CLASSES, size=len(chosen)), objects[chosen, 1])
    # Of two digits, so that there are ties.
    score = np.round(random.random(len(chosen)) * np.where(wrong, 0.7, 1.0), 2)
    return np.column_stack([objects[chosen, 0], found, score, box]).astype(np.float32), objects


def sorted_by_class(detections: Array, objects: Array) -> list[tuple[Array, dict[int, tuple[Array, Array]]]]:
    """Of each class the detections, and image -> boxes and difficult of the objects."""
    classes = []
    for label in range(CLASSES):
        own = objects[objects[:, 1] == label].astype(np.float64)
        by_image = {int(image): own[own[:, 0] == image] for image in np.unique(own[:, 0])}
        truth = {image: (rows[:, 3:], rows[:, 2] > 0) for image, rows in by_image.items()}
        classes.append((detections[detections[:, 1] == label].astype(np.float64), truth))
    return classes


def classical_precision(
    detections: Array, truth: dict[int, tuple[Array, Array]], threshold: float
) -> tuple[Array, Array]:
    """Recall and precision after each detection of one class, one detection after the other."""
    taken = {image: np.zeros(len(boxes), dtype=bool) for image, (boxes, _) in truth.items()}
    objects = sum(int((~difficult).sum()) for _, difficult in truth.values())
    true, false = np.zeros(len(detections)), np.zeros(len(detections))
    for rank, row in enumerate(detections[np.argsort(-detections[:, 2], kind="stable")]):
        boxes, difficult = truth.get(int(row[0]), (np.zeros((0, 4)), np.zeros(0, dtype=bool)))
        best = -np.inf
        if len(boxes):
            width = np.maximum(np.minimum(boxes[:, 2], row[5]) - np.maximum(boxes[:, 0], row[3]), 0)
            height = np.maximum(np.minimum(boxes[:, 3], row[6]) - np.maximum(boxes[:, 1], row[4]), 0)
            common = width * height
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            overlaps = common / ((row[5] - row[3]) * (row[6] - row[4]) + areas - common)
            best, position = overlaps.max(), overlaps.argmax()
        if best < threshold:
            false[rank] = 1
        elif not difficult[position]:
            false[rank] = taken[int(row[0])][position]
            true[rank] = not false[rank]
            taken[int(row[0])][position] = True
    true, false = true.cumsum(), false.cumsum()
    return true / objects, true / np.maximum(true + false, np.finfo(np.float64).eps)


def classical_ap(recall: Array, precision: Array, reading: Reading) -> float:
    if reading == "voc07":
        tops = [precision[recall >= tenth].max(initial=0) for tenth in np.arange(0, 1.1, 0.1)]
        return sum(tops) / 11
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for position in range(len(precision) - 1, 0, -1):
        precision[position - 1] = max(precision[position - 1], precision[position])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())


def classical(classes: Sequence[Any], thresholds: Sequence[float], reading: Reading) -> Array:
    """Average precision at each threshold of each class."""
    return np.array(
        [
            [classical_ap(*classical_precision(*rows, threshold), reading) for rows in classes]
            for threshold in thresholds
        ]
    )


def ours(detections: Array, objects: Array, thresholds: Sequence[float], reading: Reading) -> Array:
    """Average precision at each threshold of each class."""
    detections = detections[ranked(detections[:, 2])]
    (image, label), (object_image, object_label) = (rows[:, :2].astype(np.int64).T for rows in (detections, objects))
    pairs = pairs_of_boxes(
        detections[:, 3:], image * CLASSES + label, objects[:, 3:], object_image * CLASSES + object_label
    )
    difficult = objects[:, 2] > 0
    matches = match_best(pairs, len(detections), difficult, thresholds)
    counts = np.bincount(object_label[~difficult], minlength=CLASSES)
    return average_precisions(matches, label, counts, reading)


def whole_metric(detections: Array, objects: Array) -> Callable[[], dict[str, Any]]:
    """All updates and the result, as in a validation."""
    rows, own = torch.from_numpy(detections), torch.from_numpy(objects)
    ends = [np.searchsorted(table[:, 0], np.arange(IMAGES + 1)).tolist() for table in (detections, objects)]
    images = []
    for image in range(IMAGES):
        found, true = rows[ends[0][image] : ends[0][image + 1]], own[ends[1][image] : ends[1][image + 1]]
        detected = Detections(boxes=found[:, 3:], labels=found[:, 1].long(), scores=found[:, 2])
        images.append((detected, true[:, 3:], true[:, 1].long(), true[:, 2] > 0))

    def run() -> dict[str, Any]:
        metric = DetectionScores([str(number) for number in range(CLASSES)], "voc07")
        for place, image in enumerate(images):
            metric.update(place, *image)
        return metric.results(thorough=False)

    return run


def agreement(detections: Array, objects: Array, metric: Callable[[], dict[str, Any]]) -> float:
    """The largest difference of any class's average precision, over ten thresholds and both readings."""
    classes = sorted_by_class(detections, objects)
    readings: tuple[Reading, ...] = ("voc07", "area")
    theirs = {reading: classical(classes, TEN, reading) for reading in readings}
    differences = [np.abs(ours(detections, objects, TEN, reading) - values).max() for reading, values in theirs.items()]
    whole = np.array(list(metric()["ap"].values())) / 100
    return float(max(*differences, np.abs(whole - theirs["voc07"][0]).max()))


def compared(
    name: str, functions: dict[str, Callable[[], object]], repetitions: int, gate: float
) -> tuple[list[str], bool]:
    """The table's row of one case, and whether its gate is met."""
    taken = medians_ms(functions, repetitions, clock=time.process_time)
    ratio = taken["classical"] / taken["ours"]
    row = [name, f"{taken['classical']:.0f}", f"{taken['ours']:.1f}", f"{ratio:.1f}x", f"{gate:g}x"]
    return row, ratio >= gate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    detections, objects = scenes()
    classes = sorted_by_class(detections, objects)
    metric = whole_metric(detections, objects)
    print(f"{IMAGES} images, {len(detections)} detections, {len(objects)} objects, {CLASSES} classes")
    difference = agreement(detections, objects, metric)
    met = difference < 0.5 * 10**-DIGITS
    print(f"largest difference of a class's AP: {difference:.1e}; equal to {DIGITS} decimals: {met}")

    def evaluators(thresholds: Sequence[float]) -> dict[str, Callable[[], object]]:
        return {
            "ours": lambda: ours(detections, objects, thresholds, "voc07"),
            "classical": lambda: classical(classes, thresholds, "voc07"),
        }

    whole = {"ours": metric, "classical": lambda: classical(sorted_by_class(detections, objects), TEN[:1], "voc07")}
    cases = [
        compared("one threshold", evaluators(TEN[:1]), repetitions, GATE),
        compared("ten thresholds", evaluators(TEN), max(1, repetitions // 3), GATE),
        compared("one threshold, image by image", whole, repetitions, WHOLE_GATE),
    ]
    print_table("Processor time, ms", ["", "classical", "ours", "ratio", "gate"], [row for row, _ in cases])
    met = met and all(good for _, good in cases)
    print("all gates met" if met else "NOT MET")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
