"""Grids of thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def increasing(thresholds: Sequence[float]) -> Tensor:
    """Thresholds as [T] float64.

    Raises:
        ValueError: there is none, or they do not increase.
    """
    values = torch.tensor(thresholds, dtype=torch.float64)
    if not len(values) or (values.diff() <= 0).any():
        raise ValueError("thresholds must increase")
    return values
