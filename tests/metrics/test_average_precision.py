"""Matching, and reading the curve: the rules of the protocols, by hand and against plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise.errors import UserError
from labelwise.metrics.average_precision import (
    Matches,
    Reading,
    average_precision,
    average_precisions,
    best_of_groups,
    class_precisions,
    curve_points,
    hits_needed,
    match_best,
    match_free,
    pairs_of_boxes,
    pairs_of_matrix,
    percentages,
    precision_at_hits,
    ranked,
)

READINGS: tuple[Reading, ...] = ("voc07", "area")
Box = tuple[int, int, int, int]


@dataclass
class Case:
    """One class: detections (image, score, box) and objects (image, box, difficult); boxes with both ends inside."""

    detections: list[tuple[int, float, Box]]
    objects: list[tuple[int, Box, bool]]
    order: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.order = ranked(np.array([score for _, score, _ in self.detections]))
        found = [self.detections[number] for number in self.order]
        self.pairs = pairs_of_boxes(
            half_open([box for *_, box in found]),
            np.array([image for image, *_ in found], dtype=np.int64),
            half_open([box for _, box, _ in self.objects]),
            np.array([image for image, *_ in self.objects], dtype=np.int64),
        )
        self.difficult = np.array([difficult for *_, difficult in self.objects], dtype=bool)
        self.count = int((~self.difficult).sum())

    def matches(self, *, inclusive: bool = True) -> Matches:
        return match_best(self.pairs, len(self.detections), self.difficult, [0.5], inclusive=inclusive)

    def free(self, *, inclusive: bool = False) -> Matches:
        return match_free(self.pairs, len(self.detections), len(self.objects), [0.5], inclusive=inclusive)

    def ap(self, reading: Reading, matches: Matches | None = None) -> float:
        matches = matches or self.matches()
        return average_precision(precision_at_hits(matches.hit[0], matches.counted[0]), self.count, reading)


def half_open(boxes: Sequence[Box]) -> np.ndarray:
    return np.array(boxes, dtype=np.float32).reshape(-1, 4) + np.array([0, 0, 1, 1], dtype=np.float32)


DIFFICULT = Case(
    [
        (1, 0.9, (100, 100, 149, 149)),
        (1, 0.8, (10, 10, 59, 59)),
        (1, 0.7, (12, 10, 61, 59)),
        (1, 0.6, (100, 100, 149, 149)),
        (3, 0.5, (20, 20, 69, 69)),
        (2, 0.4, (20, 20, 69, 69)),
        (2, 0.3, (200, 200, 220, 220)),
    ],
    [(1, (10, 10, 59, 59), False), (1, (100, 100, 149, 149), True), (2, (20, 20, 69, 69), False)],
)
SECOND_CHOICE = Case(
    [(1, 0.9, (10, 10, 109, 109)), (1, 0.8, (10, 14, 109, 113))],
    [(1, (10, 10, 109, 109), False), (1, (10, 30, 109, 129), False)],
)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("reading", [*READINGS, "coco101"])
def test_perfect_detections_score_one(order: tuple[int, ...], reading: Reading) -> None:
    boxes: list[tuple[int, Box]] = [(1, (5, 5, 40, 40)), (1, (60, 60, 90, 95)), (2, (5, 5, 40, 40))]
    case = Case(
        [(image, 0.9 - 0.1 * place, box) for place, (image, box) in zip(order, boxes, strict=True)],
        [(image, box, False) for image, box in boxes],
    )
    assert case.ap(reading) == 1.0


def test_difficult_objects_and_duplicates() -> None:
    matches = DIFFICULT.matches()
    assert matches.hit[0].tolist() == [False, True, False, False, False, True, False]
    assert matches.counted[0].tolist() == [False, True, True, False, True, True, True]
    assert DIFFICULT.ap("area") == pytest.approx(0.75)
    assert DIFFICULT.ap("voc07") == pytest.approx(0.772727, abs=1e-6)


def test_voc_has_no_second_choice_and_sds_has() -> None:
    assert SECOND_CHOICE.ap("area") == pytest.approx(0.5)
    assert SECOND_CHOICE.ap("area", SECOND_CHOICE.free()) == pytest.approx(1.0)


@pytest.mark.parametrize(("inclusive", "expected"), [(True, 1.0), (False, 0.0)])
def test_overlap_of_exactly_the_threshold(inclusive: bool, expected: float) -> None:
    case = Case([(1, 0.9, (1, 1, 10, 10))], [(1, (1, 1, 20, 10), False)])
    assert case.pairs.overlap.tolist() == [0.5]
    assert case.ap("area", case.matches(inclusive=inclusive)) == expected
    assert case.ap("area", case.free(inclusive=inclusive)) == expected


@pytest.mark.parametrize("reading", READINGS)
def test_detection_of_a_difficult_object_before_the_first_counted_one(reading: Reading) -> None:
    case = Case(DIFFICULT.detections[:2], DIFFICULT.objects[:2])
    assert case.ap(reading) == 1.0


def test_pixels_of_inclusive_boxes_overlap_as_in_the_devkit() -> None:
    assert Case([(1, 1.0, (0, 0, 9, 9))], [(1, (0, 0, 9, 19), False)]).pairs.overlap.tolist() == [0.5]


def test_only_boxes_of_the_same_group_are_compared() -> None:
    box = half_open([(0, 0, 9, 9)])
    assert len(pairs_of_boxes(box, np.array([3]), box, np.array([4])).overlap) == 0


def test_boxes_without_area_overlap_nothing() -> None:
    point = np.array([[5, 5, 5, 5]], dtype=np.float32)
    group = np.array([0])
    assert len(pairs_of_boxes(point, group, point, group).overlap) == 0


def test_first_of_equal_overlaps_is_taken() -> None:
    matrix = np.array([[0.6, 0.6], [0.6, 0.0]])
    none = np.zeros(2, dtype=bool)
    assert match_best(pairs_of_matrix(matrix), 2, none, [0.5]).hit[0].tolist() == [True, False]
    assert match_free(pairs_of_matrix(matrix), 2, 2, [0.5]).hit[0].tolist() == [True, False]
    assert match_free(pairs_of_matrix(matrix), 2, 2, [0.5], last_of_equal=True).hit[0].tolist() == [True, True]


def test_equal_scores_keep_their_order() -> None:
    assert ranked(np.array([0.5, 0.9, 0.5, 0.9] * 10)).tolist() == [*range(1, 40, 2), *range(0, 40, 2)]


@pytest.mark.parametrize("tenths", [3, 6, 7])
def test_grid_of_published_numbers_lies_a_little_above_some_tenths(tenths: int) -> None:
    precision = np.ones(tenths)
    assert average_precision(precision, 10, "voc07") == pytest.approx(tenths / 11)
    assert average_precision(precision, 10, "voc07", exact_grid=True) == pytest.approx((tenths + 1) / 11)


@pytest.mark.parametrize(("reading", "length"), [("voc07", 11), ("coco101", 101)])
@pytest.mark.parametrize("objects", [1, 7, 10, 12032])
def test_grid_is_that_of_comparing_recalls(reading: Reading, length: int, objects: int) -> None:
    recall = np.arange(objects + 1) / objects
    grid = np.arange(0, 1.1, 0.1) if reading == "voc07" else np.linspace(0, 1, 101)
    expected = [int(np.flatnonzero(recall >= value)[0]) for value in grid]
    assert hits_needed(objects, reading).tolist() == expected and len(expected) == length


@pytest.mark.parametrize("reading", [*READINGS, "coco101"])
def test_class_without_objects_or_without_hits(reading: Reading) -> None:
    assert np.isnan(average_precision(np.zeros(0), 0, reading))
    assert average_precision(np.zeros(0), 4, reading) == 0.0


def test_mean_leaves_out_classes_without_objects() -> None:
    mean, each = percentages(("a", "b", "c"), np.array([0.5, np.nan, 1.0]))
    assert mean == 75.0 and each == {"a": 50.0, "b": None, "c": 100.0}
    with pytest.raises(UserError, match="nothing to score"):
        percentages(("a",), np.array([np.nan]))


def test_classes_are_read_apart() -> None:
    matches = Matches(hit=np.array([[True, True, False]]), counted=np.array([[True, True, True]]))
    curves = class_precisions(matches, np.array([1, 0, 1]), 3)[0]
    assert [curve.tolist() for curve in curves] == [[1.0], [1.0], []]
    values = average_precisions(matches, np.array([1, 0, 1]), np.array([2, 1, 0]), "area")
    assert values[0, :2].tolist() == [0.5, 1.0] and np.isnan(values[0, 2])


def test_only_the_best_of_a_group_are_kept() -> None:
    assert best_of_groups(np.array([4, 1, 4, 4, 1]), 2).tolist() == [True, True, True, False, True]


def test_curve_for_a_chart_keeps_its_ends_and_is_short() -> None:
    curve = curve_points(np.linspace(1, 0.5, 1000), 2000)
    assert len(curve["recall"]) == len(curve["precision"]) == 100
    assert (curve["recall"][0], curve["recall"][-1]) == (0.05, 50.0)
    assert (curve["precision"][0], curve["precision"][-1]) == (100.0, 50.0)
    assert curve_points(np.zeros(0), 3) == {"recall": [], "precision": []}


# ------------------------------------------------------------ against plain loops


@st.composite
def overlap_tables(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.integers(0, 8)), draw(st.integers(0, 5))
    levels = st.sampled_from([0.0, 0.0, 0.3, 0.5, 0.6, 0.8])
    return np.array([[draw(levels) for _ in range(shape[1])] for _ in range(shape[0])]).reshape(shape)


def classical(table: np.ndarray, difficult: np.ndarray, inclusive: bool) -> tuple[list[bool], list[bool]]:
    """VOC's rules, one detection after the other: hit, and counted."""
    hit, counted, taken = [], [], set()
    for row in table:
        best = int(row.argmax()) if len(row) else -1
        passes = len(row) > 0 and (row[best] >= 0.5 if inclusive else row[best] > 0.5)
        ignored = passes and bool(difficult[best])
        hit.append(passes and not ignored and best not in taken)
        counted.append(not ignored)
        if hit[-1]:
            taken.add(best)
    return hit, counted


def greedy(table: np.ndarray, inclusive: bool, last_of_equal: bool) -> list[bool]:
    """Rules of SDS and COCO, one detection after the other."""
    free, hit = set(range(table.shape[1])), []
    for row in table:
        near = [number for number in sorted(free) if (row[number] >= 0.5 if inclusive else row[number] > 0.5)]
        best = max(near, key=lambda number: (row[number], number if last_of_equal else -number), default=None)
        hit.append(best is not None)
        free -= {best}
    return hit


def plain_ap(hit: Sequence[bool], counted: Sequence[bool], objects: int, reading: Reading) -> float:
    true = np.cumsum(hit)
    false = np.cumsum([also and not own for own, also in zip(hit, counted, strict=True)])
    recall, precision = true / objects, true / np.maximum(true + false, 1)
    if reading == "voc07":
        return sum(precision[recall >= tenth].max(initial=0) for tenth in np.arange(0, 1.1, 0.1)) / 11
    recall = np.concatenate([[0], recall, [1]])
    precision = np.concatenate([[0], precision, [0]])
    envelope = np.array([precision[place:].max() for place in range(len(precision))])
    return float((np.diff(recall) * envelope[1:]).sum())


@given(overlap_tables(), st.data())
def test_matching_equals_the_plain_loops(table: np.ndarray, data: st.DataObject) -> None:
    detections, objects = table.shape
    inclusive, last = data.draw(st.booleans()), data.draw(st.booleans())
    difficult = np.array([data.draw(st.booleans()) for _ in range(objects)], dtype=bool)
    pairs = pairs_of_matrix(table)
    best = match_best(pairs, detections, difficult, [0.5], inclusive=inclusive)
    assert (best.hit[0].tolist(), best.counted[0].tolist()) == classical(table, difficult, inclusive)
    free = match_free(pairs, detections, objects, [0.5], inclusive=inclusive, last_of_equal=last)
    assert free.hit[0].tolist() == greedy(table, inclusive, last)
    assert free.counted.all()


@given(overlap_tables())
def test_several_thresholds_at_once_are_those_one_by_one(table: np.ndarray) -> None:
    thresholds, none = [0.25, 0.5, 0.7], np.zeros(table.shape[1], dtype=bool)
    pairs = pairs_of_matrix(table)
    together = match_best(pairs, len(table), none, thresholds)
    free = match_free(pairs, *table.shape, thresholds)
    for place, threshold in enumerate(thresholds):
        assert together.hit[place].tolist() == match_best(pairs, len(table), none, [threshold]).hit[0].tolist()
        assert free.hit[place].tolist() == match_free(pairs, *table.shape, [threshold]).hit[0].tolist()


HITS = st.lists(st.sampled_from(["hit", "false", "dropped"]), max_size=30)


@given(HITS, st.integers(0, 12), st.sampled_from(READINGS))
def test_reading_equals_the_plain_formulas(outcomes: list[str], missed: int, reading: Reading) -> None:
    hit, counted = np.array([o == "hit" for o in outcomes], bool), np.array([o != "dropped" for o in outcomes], bool)
    objects = int(hit.sum()) + missed
    ap = average_precision(precision_at_hits(hit, counted), objects, reading)
    assert ap == pytest.approx(plain_ap(hit, counted, objects, reading), abs=1e-12) if objects else np.isnan(ap)


@given(HITS, st.integers(1, 12), st.sampled_from([*READINGS, "coco101"]))
def test_dropping_the_lowest_false_detection_never_hurts(outcomes: list[str], missed: int, reading: Reading) -> None:
    hit, false = np.array([o == "hit" for o in outcomes], bool), np.array([o == "false" for o in outcomes], bool)
    objects = int(hit.sum()) + missed
    before = average_precision(precision_at_hits(hit, hit | false), objects, reading)
    if false.any():
        false[np.flatnonzero(false)[-1]] = False
    assert average_precision(precision_at_hits(hit, hit | false), objects, reading) >= before


@given(st.lists(st.booleans(), max_size=40).filter(lambda hits: sum(hits) <= 11))
def test_with_eleven_objects_both_readings_of_voc_are_equal(hits: list[bool]) -> None:
    precision = precision_at_hits(np.array(hits, dtype=bool), np.ones(len(hits), dtype=bool))
    area, mean = (average_precision(precision, 11, reading) for reading in ("area", "voc07"))
    assert area == pytest.approx(mean, abs=1e-12)


@given(overlap_tables())
def test_second_choice_can_only_help(table: np.ndarray) -> None:
    detections, objects = table.shape
    pairs, none = pairs_of_matrix(table), np.zeros(objects, dtype=bool)
    best = match_best(pairs, detections, none, [0.4])
    free = match_free(pairs, detections, objects, [0.4], inclusive=True)
    for reading in READINGS:
        values = [
            average_precision(precision_at_hits(found.hit[0], found.counted[0]), max(objects, 1), reading)
            for found in (best, free)
        ]
        assert values[1] >= values[0] - 1e-12


@given(st.lists(st.integers(-20, 20), max_size=20))
def test_increasing_transforms_of_the_scores_keep_the_order(scores: list[int]) -> None:
    values = np.array(scores, dtype=np.float64)
    assert ranked(values).tolist() == ranked(np.exp(values / 4)).tolist() == ranked(3 * values + 7).tolist()
