"""When a network begins to memorise wrong labels, told by its learning curve (Liu et al., CVPR 2022, section 3).

The IoU between predictions and the labels that are learned from rises fast while the network learns what the labels
have in common, and slowly while it learns their errors by heart. A class's curve is fitted by a saturation, and the
epoch is sought at which the fit's slope has lost most of what it had after the first epoch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from torch import Tensor, nn

IGNORE_INDEX = 255
_JUST_AFTER = 1e-6
"""Added to the time at which a slope is taken: at 0 it may be infinite."""
_LEAST_POINTS = 3


class Saturation(NamedTuple):
    """f(t) = A (1 - exp(-t^B / C)); t in epochs."""

    a: float
    b: float
    c: float

    def __call__(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fitted IoU."""
        return _saturation(time, *self)


def _saturation(time: NDArray[np.float64], a: float, b: float, c: float) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        return a * (1 - np.exp(-(time**b) / c))


def fit_saturation(time: NDArray[np.float64], iou: NDArray[np.float64]) -> Saturation | None:
    """Fit a curve by weighted least squares with 0 <= A, B <= 1 and C >= 0.

    Points count by standard deviations that fall geometrically from 1 to 0.1: the last weighs a hundred times the
    first.

    Args:
        time: [n] epochs, rising from 0.
        iou: [n] shares.

    Returns:
        The fit, or None where there are fewer than three points or no fit was found.
    """
    if len(time) < _LEAST_POINTS or not np.isfinite(iou).all():
        return None
    deviations = np.geomspace(1, 0.1, len(time))
    bounds: Any = ([0, 0, 0], [1, 1, np.inf])
    try:
        with warnings.catch_warnings():
            # Of the fit's own covariance, which nobody asks for; three points leave it open.
            warnings.simplefilter("ignore", OptimizeWarning)
            found, _ = curve_fit(_saturation, time, iou, p0=(1, 1, 1), sigma=deviations, method="trf", bounds=bounds)
    except (RuntimeError, ValueError):
        return None
    return Saturation(*map(float, found))


def slope(time: NDArray[np.float64], fit: Saturation) -> NDArray[np.float64]:
    """The fit's derivative A B / C exp(-t^B / C) t^(B - 1): [n] -> [n]; not finite where the fit has none."""
    a, b, c = fit
    time = time + _JUST_AFTER
    with np.errstate(all="ignore"):
        return a * b / c * np.exp(-(time**b) / c) * time ** (b - 1)


def update_epoch(iou: Sequence[float], points_per_epoch: float, ratio: float = 0.9, horizon: int = 15) -> int:
    """The first whole epoch at which the slope has lost more than a share of its value after the first epoch.

    With s_k = |f'(k)| and the loss (s_1 - s_k) / s_1, it is 1 + the number of k in 1..horizon whose loss does not
    exceed `ratio`. As in the released code, a slope more than twice the first has lost nothing, nor has one that is not
    a number.

    Args:
        iou: the curve so far, from the start of training.
        points_per_epoch: of the curve.
        ratio: r in the paper.
        horizon: the last epoch that is asked for.

    Returns:
        From 2 to horizon + 1, the latter where the slope never falls so far or nothing can be fitted.
    """
    curve = np.asarray(iou, dtype=np.float64)
    fit = fit_saturation(np.linspace(0, len(curve) / points_per_epoch, len(curve)), curve)
    if fit is None or not curve.any():
        return horizon + 1
    slopes = np.abs(slope(np.arange(1.0, horizon + 1), fit))
    with np.errstate(all="ignore"):
        lost = np.abs(slopes - slopes[0]) / slopes[0]
    return 1 + int(np.sum(~((lost > ratio) & (lost <= 1))))


def update_epoch_after_start(iou: Sequence[float], ratio: float = 0.9, horizon: int = 99, rise: float = 0.1) -> int:
    """As `update_epoch` of a curve with a point per epoch, without the flat start (the paper's SegTHOR variant).

    The curve begins at its first point from which the next one rises by `rise`, the epochs are counted from there.

    Returns:
        The epoch, counted from the start of training; horizon + 1 and more where it is not reached.
    """
    curve = np.asarray(iou, dtype=np.float64)
    rising = np.flatnonzero(np.diff(curve) >= rise)
    if not len(rising):
        return horizon + 1
    first = int(rising[0])
    return first + update_epoch(curve[first:].tolist(), 1.0, ratio, horizon)


class MemorizationMonitor(nn.Module):
    """The learning curves of all classes and the epoch from which each is being memorised; all of it is state."""

    counts: Tensor
    since: Tensor

    def __init__(self, classes: int) -> None:
        """Begin with empty curves.

        Args:
            classes: K.
        """
        super().__init__()
        self.points: list[list[float]] = []
        # True positives, predicted and labeled pixels since the last point.
        self.register_buffer("counts", torch.zeros(3, classes, dtype=torch.int64))
        # The epoch after which memorisation was found; -1 is not yet.
        self.register_buffer("since", torch.full((classes,), -1, dtype=torch.int64))

    @torch.no_grad()
    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Count the pixels of a step.

        Args:
            predicted: [B, H, W] int64 class numbers.
            label: [B, H, W] uint8 or int64 class numbers; 255 does not count.
        """
        counted = label != IGNORE_INDEX
        predicted, label = predicted[counted], label[counted].long()
        for row, numbers in enumerate((predicted[predicted == label], predicted, label)):
            self.counts[row] += torch.bincount(numbers, minlength=self.counts.shape[1])

    def add_point(self, counts: Tensor | None = None) -> None:
        """Add the IoU of every class since the last point to its curve.

        Args:
            counts: [3, K] of all devices; those of this one unless given.
        """
        hit, predicted, labeled = (self.counts if counts is None else counts).double()
        self.points.append((hit / (predicted + labeled - hit + 1e-10)).tolist())
        self.counts.zero_()

    def curve(self, number: int) -> list[float]:
        """The learning curve of a class."""
        return [point[number] for point in self.points]

    @property
    def active(self) -> Tensor:
        """[K] bool: the classes that are being memorised."""
        return self.since >= 0

    def activate(self, number: int, epoch: int) -> None:
        """Note that a class is being memorised; once is for ever."""
        if self.since[number] < 0:
            self.since[number] = epoch

    def due(self, epoch: int, every: int = 1) -> Tensor:
        """[K] bool: the classes to correct after an epoch: every so many epochs from that of their activation on."""
        return self.active & ((epoch - self.since) % every == 0)

    def get_extra_state(self) -> dict[str, Any]:
        """The curves, for the checkpoint."""
        return {"points": self.points}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with the curves of a checkpoint."""
        self.points = [list(point) for point in state["points"]]
