"""Metrics that keep rows of numbers, such as all detections of a set, and rank them at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Rows = NDArray[Any]


class RowsMetric(Metric):
    """Keeps rows that begin with the place of their image among all; their order is that of one single process.

    A place is kept as a float of 32 bits where the other columns are floats, exactly up to 16.7 million.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    images: Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._columns: dict[str, tuple[int, torch.dtype]] = {}
        self._totals: list[str] = []
        self.keep_total("images")

    def keep_total(self, name: str) -> None:
        """Keep a whole number under a name."""
        self._totals.append(name)
        self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def keep_rows(self, name: str, columns: int, dtype: torch.dtype = torch.float32) -> None:
        """Keep rows of so many columns, the image's place included, under a name."""
        self._columns[name] = columns, dtype
        self.add_state(name, [], dist_reduce_fx="cat")

    def add_rows(self, name: str, place: int, *columns: Tensor) -> None:
        """Add the rows of one image.

        Args:
            name: which rows.
            place: of the image among all, however many processes share them.
            columns: [N] or [N, C] each, of one N.
        """
        width, dtype = self._columns[name]
        first = torch.full((len(columns[0]), 1), place, dtype=dtype, device=columns[0].device)
        rows = torch.cat([first, *(part if part.ndim == 2 else part[:, None] for part in columns)], dim=1)
        assert rows.shape[1] == width
        getattr(self, name).append(rows.to(self.device, dtype))

    def sync(self, *args: Any, **options: Any) -> None:
        """As of every metric; a process without any row first says how wide and of which type its rows are."""
        for name in self._columns:
            setattr(self, name, [self._joined(name)])
        super().sync(*args, **options)

    def kept(self) -> tuple[dict[str, int], dict[str, Rows]]:
        """All totals and all rows by name; rows by place, then in the order they were added.

        Of this process, or of all while the metric is synchronised, as it is within `compute`.
        """
        totals = {name: int(getattr(self, name)) for name in self._totals}
        rows = {name: self._joined(name).cpu().numpy() for name in self._columns}
        return totals, {name: values[np.argsort(values[:, 0], kind="stable")] for name, values in rows.items()}

    def gathered(self) -> tuple[dict[str, int], dict[str, Rows]]:
        """`kept` of all processes; every process must call it."""
        with self.sync_context():
            return self.kept()

    def _joined(self, name: str) -> Tensor:
        width, dtype = self._columns[name]
        rows = getattr(self, name)
        # A list of the rows of each image, one tensor once it is synchronised.
        if isinstance(rows, list) and not rows:
            return torch.zeros(0, width, dtype=dtype, device=self.device)
        return dim_zero_cat(rows)
