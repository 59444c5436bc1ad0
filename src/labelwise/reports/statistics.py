"""Means over seeds with Student-t intervals, differences paired by seed, and what they say about a claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

NO_INTERVAL = "one seed: no interval"
"""What is printed where an interval would stand."""

Verdict = Literal["holds", "does not hold", "undecided"]
"""What an experiment says about a claim."""


class MeanInterval(NamedTuple):
    """A mean and the half width of its confidence interval, None for a single value."""

    mean: float
    half_width: float | None


class PairedDifference(NamedTuple):
    """The mean of the differences of pairs, the half width of its confidence interval, the number of pairs."""

    mean: float
    half_width: float | None
    pairs: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """The mean of independent values and the half width of its Student-t interval.

    Args:
        values: one value per seed.
        confidence: the probability that the interval covers the true mean, between 0 and 1.

    Returns:
        mean and half width, `t * s / sqrt(n)` with `n - 1` degrees of freedom; the half width of one value is None.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return MeanInterval(mean, None)
    error = statistics.stdev(values, mean) / math.sqrt(len(values))
    return MeanInterval(mean, student_t_quantile(confidence, len(values) - 1) * error)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """The mean of `a - b` over pairs (same seed, same labeled images) and its interval.

    Args:
        a: one value per seed.
        b: the values it is compared with, in the same order of seeds.
        confidence: the probability that the interval covers the true difference.

    Raises:
        ValueError: the lengths differ, or there are no pairs.
    """
    differences = [left - right for left, right in zip(a, b, strict=True)]
    return PairedDifference(*mean_interval(differences, confidence), len(differences))


def verdict(difference: PairedDifference, margin: float = 0.0) -> Verdict:
    """What paired differences say about the claim "better, and by at least the margin".

    * "holds": the mean is at least the margin, and the whole interval lies above 0;
    * "does not hold": the whole interval lies below the margin, or nowhere above 0;
    * "undecided": anything else, and always with a single pair, which has no interval.

    The first two exclude each other. A margin below 0 makes the claim "worse by less than that" and takes the place of
    the 0 as well.

    Args:
        difference: method minus baseline, in points of a score of which more is better.
        margin: the least mean difference of a claim that holds.
    """
    if difference.half_width is None:
        return "undecided"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    least = bound(margin)
    if difference.mean >= margin and low > least:
        return "holds"
    return "does not hold" if high < margin or high <= least else "undecided"


def bound(margin: float) -> float:
    """What the whole interval of a claim that holds lies above: 0, or a margin below that."""
    return min(margin, 0.0)


@lru_cache(maxsize=256)
def student_t_quantile(confidence: float, degrees: int) -> float:
    """The t for which Student's distribution has the probability `confidence` between -t and t.

    With `t = sqrt(degrees) * tan(angle)` that probability is a finite sum (Abramowitz & Stegun, 26.7.3 and 26.7.4),
    increasing in the angle, which is found by halving.

    Args:
        confidence: two-sided probability, between 0 and 1.
        degrees: degrees of freedom, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"no t quantile for confidence {confidence} and {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _central_probability(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(high)


def _central_probability(angle: float, degrees: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(2 + odd, degrees, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
