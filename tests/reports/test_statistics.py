"""Means over seeds, intervals and paired differences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelwise.reports.statistics import (
    PairedDifference,
    mean_interval,
    paired_difference,
    student_t_quantile,
    verdict,
)

values = st.lists(st.floats(0, 100), min_size=2, max_size=8)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30, 200, 1001])
@pytest.mark.parametrize("confidence", [0.05, 0.5, 0.9, 0.95, 0.99, 0.9999])
def test_quantile_equals_scipy(degrees: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-8)


def test_quantile_has_the_closed_forms_of_one_and_two_degrees() -> None:
    assert student_t_quantile(0.95, 1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert student_t_quantile(0.95, 2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_quantile_refuses_what_has_none(confidence: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        student_t_quantile(confidence, degrees)


def test_interval_of_three_seeds_by_hand() -> None:
    mean, half_width = mean_interval([40.0, 42.0, 44.0])
    assert mean == 42
    assert half_width == pytest.approx(4.302652729911 * 2 / math.sqrt(3))


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([41.5]) == (41.5, None)


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


@settings(max_examples=40, deadline=None)
@given(values, st.floats(-50, 50))
def test_interval_moves_with_the_values_and_keeps_its_width(scores: list[float], shift: float) -> None:
    mean, half_width = mean_interval(scores)
    moved = mean_interval([score + shift for score in scores])
    assert moved.mean == pytest.approx(mean + shift, abs=1e-9)
    assert moved.half_width == pytest.approx(half_width, abs=1e-6)


def test_pairing_removes_what_the_seeds_share() -> None:
    mean, half_width, pairs = paired_difference([12.0, 52.0, 92.0], [10.0, 50.0, 90.0])
    assert (mean, half_width, pairs) == (2.0, 0.0, 3)


@settings(max_examples=40, deadline=None)
@given(values)
def test_difference_changes_sign_with_its_sides(scores: list[float]) -> None:
    other = [score / 2 + 1 for score in scores]
    forth, back = paired_difference(scores, other), paired_difference(other, scores)
    assert forth.mean == pytest.approx(-back.mean, abs=1e-12)
    assert forth.half_width == pytest.approx(back.half_width, abs=1e-12)


def test_pairs_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("mean", "half_width", "margin", "expected"),
    [
        (3.0, 2.0, 0.0, "holds"),
        (3.0, 2.0, 3.0, "holds"),
        (3.0, 2.0, 3.1, "undecided"),
        (3.0, 2.0, 5.0, "undecided"),
        (3.0, 2.0, 5.1, "does not hold"),
        (3.0, 3.0, 0.0, "undecided"),
        (3.0, 4.0, 2.0, "undecided"),
        (-1.0, 2.0, 0.0, "undecided"),
        (-1.0, 2.0, 1.5, "does not hold"),
        (-2.0, 2.0, 0.0, "does not hold"),
        (0.0, 0.0, 0.0, "does not hold"),
        (9.0, None, 0.0, "undecided"),
        (-9.0, None, 1.0, "undecided"),
        (-1.0, 0.9, -2.0, "holds"),
        (1.0, 2.9, -2.0, "holds"),
        (-1.0, 1.0, -2.0, "undecided"),
        (-3.0, 1.1, -2.0, "undecided"),
        (-3.0, 1.0, -2.0, "does not hold"),
        (-9.0, None, -2.0, "undecided"),
    ],
)
def test_verdict_follows_from_mean_interval_and_margin(
    mean: float, half_width: float | None, margin: float, expected: str
) -> None:
    assert verdict(PairedDifference(mean, half_width, 3), margin) == expected


def test_verdict_of_three_seeds_by_hand() -> None:
    # Differences 1, 2, 3: the half width is 4.3027 / sqrt(3) = 2.484, more than the mean of 2.
    assert verdict(paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])) == "undecided"
    # Differences 2, 2, 3: the half width is 4.3027 / 3 = 1.434, less than the mean of 2.333.
    close = paired_difference([12.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert verdict(close) == "holds" and verdict(close, 2.33) == "holds"
    assert verdict(close, 2.34) == "undecided" and verdict(close, 3.77) == "does not hold"


@given(st.floats(-50, 50), st.floats(0, 50), st.floats(-20, 20), st.floats(0, 20))
def test_a_larger_margin_never_helps_a_claim(mean: float, half_width: float, margin: float, more: float) -> None:
    order = ("does not hold", "undecided", "holds")
    difference = PairedDifference(mean, half_width, 3)
    assert order.index(verdict(difference, margin + more)) <= order.index(verdict(difference, margin))


@given(st.floats(0.01, 50), st.floats(0, 0.99))
def test_where_a_claim_holds_its_opposite_does_not(mean: float, share: float) -> None:
    assert verdict(PairedDifference(mean, share * mean, 3)) == "holds"
    assert verdict(PairedDifference(-mean, share * mean, 3)) == "does not hold"


@given(st.floats(-50, 50), st.floats(0, 50), st.floats(-20, 0))
def test_an_allowed_loss_moves_the_claim_along(mean: float, half_width: float, margin: float) -> None:
    interval = PairedDifference(mean, half_width, 3)
    low, high = mean - half_width, mean + half_width
    expected = "holds" if low > margin else "does not hold" if high <= margin else "undecided"
    assert verdict(interval, margin) == expected
