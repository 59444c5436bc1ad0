"""Average precision of detections: matching them with objects, and reading the precision-recall curve.

The protocols of PASCAL VOC (Everingham et al., IJCV 2010 and 2015), of simultaneous detection and segmentation
(Hariharan et al., ECCV 2014) and of COCO differ in three places, which are three functions each: which object a
detection may match (`match_best`, `match_free`), whether an overlap of exactly the threshold is enough (`inclusive`),
and how the average is read off the curve (`Reading`).

All functions take detections numbered by rank, over all images and classes at once; `ranked` gives that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelwise.errors import UserError

Floats = NDArray[Any]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Reading = Literal["voc07", "area", "coco101"]
"""Mean precision at 11 recalls (VOC 2007); area under the envelope (VOC 2010 and later); mean at 101 recalls (COCO)."""

CURVE_POINTS = 100


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The detections and objects of the same class and image that overlap; by detection, then by object."""

    detection: Integers
    "[P] ranks"
    object: Integers
    "[P]"
    overlap: Floats
    "[P] float64, above 0"

    def __getitem__(self, chosen: Booleans) -> Pairs:
        """Those where a [P] bool is true."""
        return Pairs(detection=self.detection[chosen], object=self.object[chosen], overlap=self.overlap[chosen])


@dataclass(frozen=True, kw_only=True)
class Matches:
    """What became of each detection, at each threshold."""

    hit: Booleans
    "[T, D]"
    counted: Booleans
    "[T, D] hits and false ones; a detection of a difficult object is neither"


def ranked(scores: Floats) -> Integers:
    """The numbers of detections [D] by falling score; equal scores keep their order."""
    return np.argsort(-scores, kind="stable")


def pairs_of_boxes(boxes: Floats, groups: Integers, object_boxes: Floats, object_groups: Integers) -> Pairs:
    """The boxes that overlap, with their intersection over union.

    Args:
        boxes: [D, 4] half-open XYXY.
        groups: [D] one number for each pair of image and class.
        object_boxes: [G, 4].
        object_groups: [G].
    """
    by_group = np.argsort(object_groups, kind="stable")
    sorted_groups = object_groups[by_group]
    first = np.searchsorted(sorted_groups, groups, side="left")
    count = np.searchsorted(sorted_groups, groups, side="right") - first
    detection = np.repeat(np.arange(len(boxes)), count)
    offset = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    chosen = by_group[np.repeat(first, count) + offset]
    overlap = _intersection_over_union(boxes.astype(np.float64)[detection], object_boxes.astype(np.float64)[chosen])
    near = overlap > 0
    return Pairs(detection=detection[near], object=chosen[near], overlap=overlap[near])


def pairs_of_matrix(overlaps: Floats) -> Pairs:
    """The pairs of a matrix [D, G], which is 0 where image or class differ."""
    detection, chosen = np.nonzero(overlaps > 0)
    return Pairs(detection=detection, object=chosen, overlap=overlaps[detection, chosen].astype(np.float64))


def match_best(
    pairs: Pairs, detections: int, difficult: Booleans, thresholds: Sequence[float], *, inclusive: bool = True
) -> Matches:
    """Match as PASCAL VOC does: each detection with the object that it overlaps most, whether taken or not.

    The first object counts where several overlap equally. The first detection of an object is a hit, every further
    one false, even if it overlaps another object enough. Detections of difficult objects are not counted.

    Args:
        pairs: the overlaps.
        detections: D.
        difficult: [G].
        thresholds: least overlaps, T of them, above 0.
        inclusive: an overlap of exactly the threshold is enough (VOC's devkit), or not (its port to Python).
    """
    overlap = np.zeros(detections)
    best = np.zeros(detections, dtype=np.int64)
    if len(pairs.overlap):
        starts = np.flatnonzero(np.diff(pairs.detection, prepend=-1))
        highest = np.maximum.reduceat(pairs.overlap, starts)
        lengths = np.diff(np.append(starts, len(pairs.overlap)))
        is_best = pairs.overlap == np.repeat(highest, lengths)
        found, first = np.unique(pairs.detection[is_best], return_index=True)
        overlap[found], best[found] = highest, pairs.object[is_best][first]
    hit, counted = [], []
    for threshold in thresholds:
        near = np.flatnonzero(overlap >= threshold if inclusive else overlap > threshold)
        ignored = difficult[best[near]]
        near, dropped = near[~ignored], near[ignored]
        _, first = np.unique(best[near], return_index=True)
        hit.append(_flags(detections, near[first]))
        counted.append(~_flags(detections, dropped))
    return Matches(hit=np.array(hit), counted=np.array(counted))


def match_free(
    pairs: Pairs,
    detections: int,
    objects: int,
    thresholds: Sequence[float],
    *,
    inclusive: bool = False,
    last_of_equal: bool = False,
) -> Matches:
    """Match as SDS and COCO do: each detection with the object that it overlaps most among those still free.

    Args:
        pairs: the overlaps.
        detections: D.
        objects: G.
        thresholds: least overlaps, T of them, above 0.
        inclusive: an overlap of exactly the threshold is enough (COCO), or not (SDS).
        last_of_equal: the last object counts where several overlap equally (COCO), not the first (SDS).
    """
    tie = -pairs.object if last_of_equal else pairs.object
    order = np.lexsort((tie, -pairs.overlap, pairs.detection))
    detection, chosen, overlap = pairs.detection[order], pairs.object[order], pairs.overlap[order]
    hit = []
    for threshold in thresholds:
        near = overlap >= threshold if inclusive else overlap > threshold
        holders = _first_come(detection[near], chosen[near], detections, objects)
        hit.append(_flags(detections, holders[holders < detections]))
    return Matches(hit=np.array(hit), counted=np.ones((len(thresholds), detections), dtype=np.bool_))


def _first_come(detection: Integers, chosen: Integers, detections: int, objects: int) -> Integers:
    """The detection that gets each object, [G]; D where none does.

    In order of rank every detection takes the first free object of its list. As all objects prefer the better rank,
    that is the one stable matching, which proposals in rounds (Gale and Shapley, 1962) find with few array operations.

    Args:
        detection: [P] ranks, rising.
        chosen: [P] objects, in each detection's order of preference.
        detections: D.
        objects: G.
    """
    holders = np.full(objects, detections, dtype=np.int64)
    ends = np.searchsorted(detection, np.arange(detections), side="right")
    position = np.searchsorted(detection, np.arange(detections), side="left")
    asking = np.flatnonzero(position < ends)
    while len(asking):
        wanted = chosen[position[asking]]
        before = np.unique(holders[wanted])
        np.minimum.at(holders, wanted, asking)
        refused = asking[holders[wanted] != asking]
        displaced = before[before < detections]
        displaced = displaced[holders[chosen[position[displaced]]] != displaced]
        asking = np.concatenate([refused, displaced])
        position[asking] += 1
        asking = asking[position[asking] < ends[asking]]
    return holders


def precision_at_hits(hit: Booleans, counted: Booleans) -> Floats:
    """The precision at the rank of each hit, [H] float64; recall there is 1/objects, 2/objects and so on.

    The highest precision at a recall or above is always reached at a hit, so no other point is needed.

    Args:
        hit: [D] in order of rank, of one class.
        counted: [D].
    """
    position = np.cumsum(counted)[hit]
    return np.arange(1, len(position) + 1) / position


def average_precision(precision: Floats, objects: int, reading: Reading, *, exact_grid: bool = False) -> float:
    """Average precision of one class, 0 to 1; NaN where there are no objects.

    Args:
        precision: [H] at each hit.
        objects: how many are to be found.
        reading: of the curve.
        exact_grid: for "voc07": compare recalls with tenths as integers. Without, 0.3, 0.6 and 0.7 are a little more,
            as in the code that published numbers come from, where a recall of exactly 3/10 is below 0.3.
    """
    if not objects:
        return float("nan")
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if reading == "area":
        return float(envelope.sum()) / objects
    hits = np.maximum(hits_needed(objects, reading, exact_grid=exact_grid), 1)
    return float(np.append(envelope, 0.0)[np.minimum(hits - 1, len(envelope))].mean())


def hits_needed(objects: int, reading: Reading, *, exact_grid: bool = False) -> Integers:
    """The hits that reach each recall of the grid: [11] for "voc07", [101] for "coco101"."""
    if exact_grid:
        return -(-np.arange(11) * objects // 10)
    grid = np.arange(0, 1.1, 0.1) if reading == "voc07" else np.linspace(0, 1, 101)
    return np.searchsorted(np.arange(objects + 1) / objects, grid, side="left")


def average_precisions(matches: Matches, labels: Integers, objects: Integers, reading: Reading) -> Floats:
    """Average precision at each threshold of each class, [T, K]; NaN for classes without objects.

    Args:
        matches: of D detections.
        labels: [D] classes of the detections, 0 to K - 1.
        objects: [K] how many of each class are to be found.
        reading: of the curves.
    """
    values = [
        [
            average_precision(precision, count, reading)
            for precision, count in zip(curves, objects.tolist(), strict=True)
        ]
        for curves in class_precisions(matches, labels, len(objects))
    ]
    return np.array(values)


def class_precisions(matches: Matches, labels: Integers, classes: int) -> list[list[Floats]]:
    """`precision_at_hits` of each class, at each threshold."""
    by_class = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[by_class], np.arange(classes), side="right")
    parts = [slice(first, last) for first, last in zip([0, *ends[:-1]], ends, strict=True)]
    hit, counted = matches.hit[:, by_class], matches.counted[:, by_class]
    return [
        [precision_at_hits(hits[part], counts[part]) for part in parts]
        for hits, counts in zip(hit, counted, strict=True)
    ]


def best_of_groups(groups: Integers, most: int) -> Booleans:
    """Which detections [D] are among the first `most` of their group, in order of rank."""
    by_group = np.argsort(groups, kind="stable")
    ordered = groups[by_group]
    position = np.arange(len(groups)) - np.searchsorted(ordered, ordered, side="left")
    return _flags(len(groups), by_group[position < most])


def percentages(names: Sequence[str], values: Floats) -> tuple[float, dict[str, float | None]]:
    """The mean over the classes that occur, and each class's value, in percent; None for a class that does not occur.

    Raises:
        UserError: no class occurs.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        raise UserError("nothing to score: no evaluated image shows an object that counts; give a split with objects")
    each = {name: None if np.isnan(value) else 100 * float(value) for name, value in zip(names, values, strict=True)}
    return 100 * float(present.mean()), each


def curve_points(precision: Floats, objects: int) -> dict[str, list[float]]:
    """A precision-recall curve for a chart, in percent: `recall` and `precision` at up to 100 of the hits."""
    chosen = np.unique(np.linspace(0, len(precision) - 1, min(CURVE_POINTS, len(precision))).astype(int))
    recall = 100 * (chosen + 1) / max(objects, 1)
    return {"recall": recall.round(2).tolist(), "precision": (100 * precision[chosen]).round(2).tolist()}


def _flags(length: int, chosen: Integers) -> Booleans:
    flags = np.zeros(length, dtype=np.bool_)
    flags[chosen] = True
    return flags


def _intersection_over_union(first: Floats, second: Floats) -> Floats:
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return common / np.maximum(areas[0] + areas[1] - common, np.finfo(np.float64).tiny)
