"""Linear support vector machines on cached features, with hard negative mining (R-CNN, section 2.3 and appendix B).

scikit-learn's solver minimises exactly the objective of the released code; what is added is the mining: most windows of
an image are negatives, and all but a few of them are far from the margin and need not be kept.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC, LinearSVR

COST = 1e-3
POSITIVE_WEIGHT = 2.0
BIAS_SCALE = 10.0
HARD = -1.0001
"""A negative is hard above this score; slightly below -1, so that those on the margin are."""
EASY = -1.2
"""A cached negative is forgotten below this score."""
RETRAIN_AFTER = 2000
"""Hard negatives after which a machine is trained anew."""
_TOLERANCE = 1e-8
_REGRESSION_TOLERANCE = 1e-4
_REGRESSION_ITERATIONS = 2000
_ITERATIONS = 1_000_000


class LinearSVM(NamedTuple):
    """A trained machine: scores are `features @ weight + bias`."""

    weight: np.ndarray
    "[D] float32"
    bias: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """[N, D] -> [N]."""
        scores: np.ndarray = features @ self.weight + self.bias
        return scores


def fit_svm(
    positives: np.ndarray,
    negatives: np.ndarray,
    cost: float = COST,
    positive_weight: float = POSITIVE_WEIGHT,
    bias_scale: float = BIAS_SCALE,
) -> LinearSVM:
    """Minimise |w|^2 / 2 + (b / B)^2 / 2 + C (p sum of the positives' hinge losses + sum of the negatives').

    Args:
        positives: [P, D] features, P at least 1.
        negatives: [N, D], N at least 1.
        cost: C.
        positive_weight: p.
        bias_scale: B; the larger, the less the bias is drawn to zero.
    """
    solver = LinearSVC(
        loss="hinge",
        dual=True,
        C=cost,
        class_weight={1: positive_weight},
        intercept_scaling=bias_scale,
        tol=_TOLERANCE,
        max_iter=_ITERATIONS,
        random_state=0,
    )
    truth = np.repeat([1, -1], [len(positives), len(negatives)])
    # LIBLINEAR computes in float64.
    solver.fit(np.concatenate([positives, negatives]).astype(np.float64), truth)
    return LinearSVM(solver.coef_[0].astype(np.float32), float(solver.intercept_[0]))


def fit_svr(features: np.ndarray, targets: np.ndarray, cost: float, margin: float) -> LinearSVM:
    """Minimise |w|^2 / 2 + C sum of max(0, |x w + b - t| - margin): linear support vector regression.

    Args:
        features: [N, D], N at least 1.
        targets: [N].
        cost: C.
        margin: the error that costs nothing.

    Returns:
        the regressor, which after 2,000 passes over the data is taken as it is: with a large cost the last digits take
        forever.
    """
    solver = LinearSVR(
        loss="epsilon_insensitive",
        dual=True,
        C=cost,
        epsilon=margin,
        intercept_scaling=BIAS_SCALE,
        tol=_REGRESSION_TOLERANCE,
        max_iter=_REGRESSION_ITERATIONS,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(features.astype(np.float64), targets)
    return LinearSVM(solver.coef_.astype(np.float32), float(solver.intercept_[0]))


def svm_objective(
    machine: LinearSVM,
    positives: np.ndarray,
    negatives: np.ndarray,
    cost: float = COST,
    positive_weight: float = POSITIVE_WEIGHT,
    bias_scale: float = BIAS_SCALE,
) -> float:
    """The value that `fit_svm` minimises; the arguments are its."""
    size = float(machine.weight.astype(np.float64) @ machine.weight) + (machine.bias / bias_scale) ** 2
    hinge_positives = np.maximum(0, 1 - machine.scores(positives)).sum()
    hinge_negatives = np.maximum(0, 1 + machine.scores(negatives)).sum()
    return float(size / 2 + cost * (positive_weight * hinge_positives + hinge_negatives))


class HardNegativeCache:
    """The machine of one class, trained in a single pass over the images.

    Of the first image every negative is kept, of the others those that the machine of that moment finds hard. After
    `retrain_after` new ones, and after the last image, the machine is trained anew and easy negatives are forgotten.
    """

    def __init__(
        self,
        positives: np.ndarray,
        cost: float = COST,
        *,
        hard: float = HARD,
        easy: float = EASY,
        retrain_after: int = RETRAIN_AFTER,
    ) -> None:
        """Begin without negatives.

        Args:
            positives: [P, D] float32 features, P at least 1.
            cost: C of `fit_svm`.
            hard: score above which a negative is added.
            easy: score below which a cached one is dropped.
            retrain_after: how many are added before the next training.
        """
        self.positives, self.cost = positives, cost
        self.negatives = positives[:0]
        self.machine: LinearSVM | None = None
        self.hard, self.easy, self.retrain_after = hard, easy, retrain_after
        self._new: list[np.ndarray] = []
        self._added = 0

    def step(self, features: np.ndarray, *, last: bool = False) -> None:
        """See the next image.

        Args:
            features: [N, D] float32 of its negatives, each seen once only; N may be 0.
            last: it is the last one.
        """
        first = self.machine is None
        hard = features if self.machine is None else features[self.machine.scores(features) > self.hard]
        if len(hard):
            self._new.append(hard)
            self._added += len(hard)
        if self._added and (first or last or self._added > self.retrain_after):
            self._retrain()

    def _retrain(self) -> None:
        self.negatives = np.concatenate([self.negatives, *self._new])
        self._new, self._added = [], 0
        self.machine = fit_svm(self.positives, self.negatives, self.cost)
        self.negatives = self.negatives[self.machine.scores(self.negatives) >= self.easy]
