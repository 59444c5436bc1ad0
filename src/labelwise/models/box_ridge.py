"""Box regression by ridge regression on features of a classifier (R-CNN, appendix C)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PENALTY = 1000.0
_LEAST_VARIANCE = 0.001
_AT_ONCE = 4096


class BoxRidge(NamedTuple):
    """Maps features to offsets between boxes: `(features, 1) @ weight @ unwhiten + mean`."""

    weight: Tensor
    "[D + 1, 4]; the last row belongs to the constant 1"
    unwhiten: Tensor
    "[4, 4]"
    mean: Tensor
    "[4]"

    def offsets(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, 4], in the form that `models.boxes.decode_boxes` takes."""
        return (features @ self.weight[:-1] + self.weight[-1]) @ self.unwhiten + self.mean

    @classmethod
    def none(cls, dimensions: int) -> BoxRidge:
        """The one that leaves every box as it is."""
        return cls(torch.zeros(dimensions + 1, 4), torch.eye(4), torch.zeros(4))


def fit_box_ridge(features: Tensor, offsets: Tensor, penalty: float = PENALTY, *, whiten: bool = True) -> BoxRidge:
    """Minimise |X W - T|^2 + penalty |W|^2, the row of W for the constant included (as in the released code).

    Args:
        features: [N, D].
        offsets: [N, 4] from `models.boxes.encode_boxes`; N at least 1.
        penalty: lambda; 0 only where the features with the constant have full column rank.
        whiten: regress offsets of zero mean and unit covariance instead (released code).

    Returns:
        float32, on the CPU.
    """
    targets = offsets.double().cpu()
    mean, forward, backward = (
        _whitening(targets) if whiten else (torch.zeros(4).double(), *(torch.eye(4).double(),) * 2)
    )
    weight = _ridge(features.cpu(), (targets - mean) @ forward, penalty)
    return BoxRidge(weight.float(), backward.float(), mean.float())


def _whitening(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [4], and the matrices [4, 4] to and from targets of unit covariance."""
    mean = targets.mean(dim=0)
    centered = targets - mean
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(targets))
    deviations = (variances + _LEAST_VARIANCE).sqrt()
    return mean, axes / deviations @ axes.T, axes * deviations @ axes.T


def _ridge(features: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """The weights [D + 1, 4]; the system has the size of the smaller side of the matrix."""
    count, dimensions = features.shape
    if count <= dimensions:
        known = _with_constant(features)
        gram = known @ known.T + penalty * torch.eye(count, dtype=known.dtype)
        return known.T @ torch.linalg.solve(gram, wanted)
    gram = penalty * torch.eye(dimensions + 1, dtype=torch.float64)
    right = torch.zeros(dimensions + 1, 4, dtype=torch.float64)
    # Tens of thousands of windows fit into memory as they come, but not in float64.
    for part, its_targets in zip(features.split(_AT_ONCE), wanted.split(_AT_ONCE), strict=True):
        known = _with_constant(part)
        gram.addmm_(known.T, known)
        right.addmm_(known.T, its_targets)
    return torch.linalg.solve(gram, right)


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
