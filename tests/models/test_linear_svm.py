"""Linear machines: the objective's optimum, and what hard negative mining leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from labelwise.models.linear_svm import HARD, HardNegativeCache, LinearSVM, fit_svm, fit_svr, svm_objective


def features(positives: int, negatives: int, dimensions: int = 6, gap: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Two clouds that overlap somewhat."""
    random = np.random.default_rng(0)
    center = np.zeros(dimensions)
    center[0] = gap
    clouds = random.normal(center, 5.0, (positives, dimensions)), random.normal(-center, 5.0, (negatives, dimensions))
    return clouds[0].astype(np.float32), clouds[1].astype(np.float32)


def test_the_machine_is_the_optimum_of_the_objective() -> None:
    positives, negatives = features(15, 60)

    def value(parameters: np.ndarray) -> float:
        return svm_objective(LinearSVM(parameters[:-1], float(parameters[-1])), positives, negatives)

    machine = fit_svm(positives, negatives)
    start = np.append(machine.weight.astype(np.float64), machine.bias)
    best = value(start)
    assert best < value(np.zeros_like(start))
    # The objective is convex: no step in any direction leads down.
    for direction in np.random.default_rng(1).normal(size=(50, len(start))):
        assert value(start + 1e-3 * direction) >= best - 1e-6
    assert minimize(value, start, method="Nelder-Mead", options={"maxiter": 300}).fun >= best - 1e-5


def test_positives_weigh_twice() -> None:
    positives, negatives = features(15, 60)
    weighted = fit_svm(positives, negatives)
    repeated = fit_svm(np.concatenate([positives, positives]), negatives, positive_weight=1.0)
    np.testing.assert_allclose(weighted.weight, repeated.weight, atol=1e-5)
    assert weighted.bias == pytest.approx(repeated.bias, abs=1e-5)


def test_more_negatives_never_lower_the_objective() -> None:
    positives, negatives = features(15, 80)
    values = []
    for count in (10, 30, 50, 80):
        machine = fit_svm(positives, negatives[:count])
        values.append(svm_objective(machine, positives, negatives[:count]))
    assert values == sorted(values)


def test_mining_without_forgetting_equals_one_machine_on_all_negatives() -> None:
    positives, negatives = features(15, 90, gap=8.0)
    cache = HardNegativeCache(positives, easy=-np.inf, retrain_after=0)
    # Those on the wrong side first: later machines find none of the skipped ones hard.
    images = np.split(negatives[np.argsort(-negatives[:, 0])], 6)
    for number, image in enumerate(images):
        cache.step(image, last=number == 5)
    assert cache.machine is not None
    whole = fit_svm(positives, negatives)
    skipped = len(negatives) - len(cache.negatives)
    assert skipped > 0
    np.testing.assert_allclose(cache.machine.weight, whole.weight, atol=1e-4)
    assert cache.machine.bias == pytest.approx(whole.bias, abs=1e-3)


def test_every_hard_negative_since_the_last_training_but_one_is_cached() -> None:
    positives, negatives = features(15, 90)
    cache = HardNegativeCache(positives, retrain_after=1000)
    cache.step(negatives[:30])
    before = cache.machine
    assert before is not None
    cache.step(negatives[30:60])
    assert cache.machine is before, "not yet"
    cache.step(negatives[60:], last=True)
    assert cache.machine is not before
    assert cache.machine is not None
    cached = {row.tobytes() for row in cache.negatives}
    later = negatives[30:]
    hard = later[(before.scores(later) > HARD) & (cache.machine.scores(later) >= -1.2)]
    assert len(hard) and all(row.tobytes() in cached for row in hard)


def test_easy_negatives_are_forgotten() -> None:
    positives, negatives = features(15, 60)
    far = negatives - np.array([200.0, 0, 0, 0, 0, 0], np.float32)
    cache = HardNegativeCache(positives)
    cache.step(np.concatenate([negatives, far]))
    assert cache.machine is not None
    assert 0 < len(cache.negatives) <= len(negatives)
    assert (cache.machine.scores(cache.negatives) >= -1.2).all()


def test_the_first_image_with_negatives_counts_as_the_first() -> None:
    positives, negatives = features(5, 20)
    cache = HardNegativeCache(positives)
    cache.step(negatives[:0])
    assert cache.machine is None
    cache.step(negatives)
    assert cache.machine is not None


def test_regression_recovers_linear_targets_within_its_margin() -> None:
    features_, _ = features(60, 1)
    targets = features_ @ np.linspace(-0.02, 0.03, 6).astype(np.float32) + 0.4
    machine = fit_svr(features_, targets, cost=10.0, margin=0.01)
    assert np.abs(machine.scores(features_) - targets).max() <= 0.02
    # Within a wide margin nothing is to be learned.
    flat = fit_svr(features_, targets, cost=10.0, margin=10.0)
    assert np.abs(flat.weight).max() < 1e-6
