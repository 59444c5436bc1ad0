"""The permutohedral lattice: Gaussian filtering of N points in d dimensions in O(N d^2) (Adams, Baek and Davis, 2010).

Values are splatted onto the vertices of a lattice, blurred along its d + 1 axes, and sliced at the points again. The
result approximates ``sum_j exp(-|f_i - f_j|^2 / 2) v_j`` up to a factor that is nearly constant and that the
normalizations of the dense CRF cancel (`labelwise.models.dense_crf`).

The coordinates of a vertex are all congruent modulo d + 1, to its remainder q. It is known by one number,
``q + (d + 1) sum_i radix_i quotient_i``, of which its neighbors are a constant away.

Two implementations give the same filter: `CompiledLattice` on the CPU, `TensorLattice` on every other device. The
first sums in the same order whatever the number of threads; the second does under
`torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelwise.errors import UserError
from labelwise.models import permutohedral_kernels as kernels
from labelwise.models.permutohedral_kernels import Floats, Integers, Keys

_BLOCK = 1 << 14
"""Points that are embedded at a time, so that their corners are still in the cache when they are numbered."""
_WORTH_A_THREAD = 1 << 12
"""Rows below which handing work to a second thread takes longer than doing it."""
_VECTOR = 8
"""Numbers that the processor adds at once."""


@dataclass(frozen=True)
class _Geometry:
    """The scale of the space, and how the vertices around a set of points are numbered."""

    scale: Floats
    "[d], with which features are multiplied"
    low: Keys
    "[d], no vertex has a smaller quotient, nor has a neighbor of one"
    radices: Keys
    "[d + 1], times d + 1; 0 for the last coordinate, which the others imply"

    @classmethod
    def around(cls, least: NDArray[np.float64], most: NDArray[np.float64]) -> _Geometry:
        """The geometry for points between two corners [d].

        Raises:
            UserError: the vertices' numbers would not fit into 64 bits.
        """
        d = len(least)
        index = np.arange(d)
        scale = np.sqrt(2 / 3) * (d + 1) / np.sqrt((index + 1) * (index + 2))
        lowest, highest = scale * least, scale * most
        # Coordinate j is c_j + ... + c_(d-1) - j c_(j-1); c_(-1) meets the factor 0.
        below = np.cumsum(lowest[::-1])[::-1] - index * np.roll(highest, 1)
        above = np.cumsum(highest[::-1])[::-1] - index * np.roll(lowest, 1)
        # Four cells of margin: rounding, the simplex and the neighbors reach less than one each.
        low = np.floor(below / (d + 1)) - 4
        radices = [d + 1]
        for cells in np.ceil(above / (d + 1)) + 5 - low:
            radices.append(radices[-1] * int(cells))
        if radices[-1] >= 1 << 62:
            raise UserError("--crf: the standard deviations are too small for an image of this size; take larger ones")
        return cls(scale.astype(np.float32), low.astype(np.int64), np.array([*radices[:d], 0], np.int64))

    def steps(self, axis: int) -> tuple[int, int]:
        """From a vertex's number to its next neighbor's along an axis: if its remainder is 0, and if it is not."""
        step = int(self.radices[axis])
        return step - int(self.radices.sum()) + len(self.scale), step - 1


def _gain(dimensions: int) -> float:
    """By which slicing multiplies, so that blurring keeps the mass of a value about the same."""
    return 1 / (1 + 2.0**-dimensions)


class CompiledLattice:
    """The lattice on the CPU, computed by `torch.get_num_threads()` threads.

    Vertices that follow each other along an axis form a chain, which is blurred in place. Vertices without a neighbor
    are not touched at all; among the colors of an image, they are many.
    """

    def __init__(self, features: Tensor) -> None:
        points = np.ascontiguousarray(features.detach().numpy(), dtype=np.float32)
        dimensions = points.shape[1]
        geometry = _Geometry.around(points.min(axis=0).astype(np.float64), points.max(axis=0).astype(np.float64))
        self._corners, weights, table = _numbered(points, geometry)
        self.vertices = table.count

        def chains(axis: int) -> tuple[Integers, Integers]:
            numbers = table.numbers[: table.count]
            return kernels.find_chains(numbers, *geometry.steps(axis), dimensions + 1, table.keys, table.places)

        self._axes = _map(chains, range(dimensions + 1))
        self._starts, self._members = kernels.group_members(self._corners.reshape(-1), self.vertices)
        self._before = weights.reshape(-1)[self._members]
        self._members //= dimensions + 1
        self._after = weights * np.float32(_gain(dimensions))

    def row_sums(self) -> Tensor:
        """K 1: [N]."""
        return self.filter(torch.ones(len(self._corners), 1))[:, 0]

    def filter(self, values: Tensor, transpose: bool = False) -> Tensor:
        """K values: [N, C] float32 -> [N, C] float32; `transpose` blurs the axes in reversed order."""
        rows = np.ascontiguousarray(values.detach().numpy(), dtype=np.float32)
        result = np.zeros_like(rows)
        self.filter_onto(result, rows, result, np.empty((self.vertices, rows.shape[1]), np.float32), transpose)
        return torch.from_numpy(result)

    def filter_onto(self, base: Floats, rows: Floats, result: Floats, lattice: Floats, transpose: bool = False) -> None:
        """Write ``base + K rows``, all [N, C], into `result`, which may be `base`; work in `lattice`, [vertices, C]."""
        _share(kernels.splat, self._starts, self._starts, self._members, self._before, rows, lattice)
        for order, starts in reversed(self._axes) if transpose else self._axes:
            _share(kernels.blur, starts, order, starts, lattice)
        _share(kernels.interpolate, len(rows), base, self._corners, self._after, lattice, result)

    def weighted(self, before: Tensor, after: Tensor) -> CompiledLattice:
        """The filter ``diag(after) K diag(before)``; [N] each."""
        other = copy.copy(self)
        other._before = self._before * before.numpy()[self._members]
        other._after = self._after * after.numpy()[:, None]
        return other


def potts_mean_field(unary: Tensor, lattices: Sequence[CompiledLattice], iterations: int) -> Tensor:
    """`labelwise.models.dense_crf.mean_field` for the Potts model on the CPU, several times as fast.

    Args:
        unary: [N, K] energies.
        lattices: of each kernel, normalized and times its weight.
        iterations: updates.

    Returns:
        [N, K] float32, which sum to 1 over K.
    """
    count, labels = unary.shape
    # Rows of whole vectors; energies of infinity keep the added labels at 0.
    evidence = np.full((count, -labels % _VECTOR + labels), -np.inf, np.float32)
    np.negative(unary.detach().numpy(), out=evidence[:, :labels])
    agreement, q = np.empty_like(evidence), np.empty_like(evidence)
    work = [np.empty((lattice.vertices, evidence.shape[1]), np.float32) for lattice in lattices]
    _share(kernels.softmax_rows, count, evidence, q)
    for _ in range(iterations):
        base = evidence
        for lattice, memory in zip(lattices, work, strict=True):
            lattice.filter_onto(base, q, agreement, memory)
            base = agreement
        _share(kernels.softmax_rows, count, base, q)
    return torch.from_numpy(q[:, :labels])


class TensorLattice:
    """The lattice in whole-tensor operations, for any device."""

    def __init__(self, features: Tensor) -> None:
        points = features.detach().float()
        least, most = (bound.cpu().double().numpy() for bound in (points.amin(0), points.amax(0)))
        geometry = _Geometry.around(least, most)
        numbers, weights = _embedded(points, geometry)
        known, self._corners = numbers.unique(return_inverse=True)
        self.vertices = len(known)
        remainder = known % weights.shape[1]
        self._neighbors: list[tuple[Tensor, Tensor]] = []
        for axis in range(weights.shape[1]):
            from_zero, from_other = geometry.steps(axis)
            following = known + torch.where(remainder == 0, from_zero, from_other)
            previous = known - torch.where(remainder == weights.shape[1] - 1, from_zero, from_other)
            self._neighbors.append((_found(known, following), _found(known, previous)))
        self._before = weights
        self._after = weights * _gain(points.shape[1])

    def row_sums(self) -> Tensor:
        """K 1: [N]."""
        return self.filter(self._before.new_ones(len(self._corners), 1))[:, 0]

    def filter(self, values: Tensor, transpose: bool = False) -> Tensor:
        """K values: [N, C] float32 -> [N, C] float32; `transpose` blurs the axes in reversed order."""
        # The last row stands for every vertex that is not there.
        lattice = values.new_zeros(self.vertices + 1, values.shape[1])
        for corner, weight in zip(self._corners.unbind(1), self._before.unbind(1), strict=True):
            lattice.index_add_(0, corner, values * weight[:, None])
        for following, previous in reversed(self._neighbors) if transpose else self._neighbors:
            lattice[:-1] += 0.5 * (lattice[following] + lattice[previous])
        result = torch.zeros_like(values)
        for corner, weight in zip(self._corners.unbind(1), self._after.unbind(1), strict=True):
            result.addcmul_(lattice[corner], weight[:, None])
        return result

    def weighted(self, before: Tensor, after: Tensor) -> TensorLattice:
        """The filter ``diag(after) K diag(before)``; [N] each."""
        other = copy.copy(self)
        other._before, other._after = self._before * before[:, None], self._after * after[:, None]
        return other


def _found(known: Tensor, wanted: Tensor) -> Tensor:
    """Where sorted numbers hold the wanted ones; behind the last where they do not."""
    at = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
    return torch.where(known[at] == wanted, at, len(known))


def _embedded(points: Tensor, geometry: _Geometry) -> tuple[Tensor, Tensor]:
    """The corners of the simplex around each point: their numbers and barycentric weights, [N, d + 1] each."""
    count, dimensions = points.shape
    scaled = points * torch.from_numpy(geometry.scale).to(points)
    radices = torch.from_numpy(geometry.radices).to(points.device)
    coordinates = [points.new_zeros(count)] * (dimensions + 1)
    total = points.new_zeros(count)
    for axis in range(dimensions, 0, -1):
        coordinates[axis] = total - axis * scaled[:, axis - 1]
        total = total + scaled[:, axis - 1]
    coordinates[0] = total
    elevated = torch.stack(coordinates, dim=1)
    quotient = torch.round(elevated / (dimensions + 1))
    rest = elevated - quotient * (dimensions + 1)
    rank = rest.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # Rounding may leave the plane; the coordinates of the first or last ranks bring it back.
    rank += quotient.sum(dim=1, keepdim=True).long()
    back = (rank < 0).long() - (rank > dimensions).long()
    rank += back * (dimensions + 1)
    quotient = quotient.long() + back
    rest -= back * (dimensions + 1)
    order = rank.argsort(dim=1)
    falling = rest.gather(1, order) / (dimensions + 1)
    weights = falling.flip(1) - falling.roll(-1, dims=1).flip(1)
    weights[:, 0] += 1
    first = ((quotient[:, :-1] - torch.from_numpy(geometry.low).to(points.device)) * radices[:-1]).sum(dim=1)
    steps = 1 - radices[order.flip(1)[:, :-1]]
    return torch.cat([first[:, None], first[:, None] + steps.cumsum(dim=1)], dim=1), weights


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="lattice")


# A forked process inherits the pool without its threads, and would wait for them forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _map(function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
    threads = torch.get_num_threads()
    return list(_pool(threads).map(function, *items) if threads > 1 else map(function, *items))


def _share(kernel: Callable[..., Any], work: int | Integers, *arguments: Any) -> None:
    """Run ``kernel(first, last, *arguments)`` over all rows, divided among the threads.

    Args:
        kernel: a compiled function that writes only what belongs to its own rows.
        work: the number of rows; or the running total of the work before each row, and of all of it at the end.
        arguments: the rest of the kernel's arguments.
    """
    threads = torch.get_num_threads()
    rows = work if isinstance(work, int) else len(work) - 1
    amount = work if isinstance(work, int) else int(work[-1])
    if threads == 1 or amount < _WORTH_A_THREAD:
        kernel(0, rows, *arguments)
        return
    parts = np.linspace(0, amount, threads + 1).astype(np.int64)
    bounds = parts if isinstance(work, int) else np.searchsorted(work, parts)
    bounds[-1] = rows
    others = [_pool(threads).submit(kernel, first, last, *arguments) for first, last in pairwise(bounds[1:].tolist())]
    # The thread that waits for the others works too, which spares waking one.
    kernel(0, int(bounds[1]), *arguments)
    for other in others:
        other.result()


class _Table:
    """Numbers of vertices in the order in which they were met, and an open hash table from number to place."""

    def __init__(self, bits: int = 12) -> None:
        self._make(bits, np.empty(0, np.int64))

    def _make(self, bits: int, known: Keys) -> None:
        self.keys = np.full(1 << bits, -1, np.int64)
        self.places = np.empty(1 << bits, np.int32)
        self.numbers = np.empty(1 << (bits - 1), np.int64)
        self.count = kernels.insert_numbers(
            known, self.keys, self.places, self.numbers, 0, np.empty(len(known), np.int32), 1
        )

    def add(self, numbers: Keys, period: int, places: Integers) -> None:
        """Write each number's place into `places`; `period` numbers before is where the same number is expected."""
        if 2 * (self.count + len(numbers)) > len(self.keys):
            bits = (2 * (self.count + len(numbers))).bit_length()
            self._make(bits, self.numbers[: self.count])
        self.count = kernels.insert_numbers(numbers, self.keys, self.places, self.numbers, self.count, places, period)


def _numbered(points: Floats, geometry: _Geometry) -> tuple[Integers, Floats, _Table]:
    """The vertices around each point and their barycentric weights, [N, d + 1] each, and the table of all vertices."""
    count, dimensions = points.shape
    places = np.empty((count, dimensions + 1), np.int32)
    weights = np.empty((count, dimensions + 1), np.float32)
    numbers = np.empty((min(count, _BLOCK), dimensions + 1), np.int64)
    table = _Table()
    for first in range(0, count, _BLOCK):
        block = slice(first, first + _BLOCK)
        rows = len(points[block])
        _share(
            kernels.embed_points,
            rows,
            points[block],
            geometry.scale,
            geometry.low,
            geometry.radices,
            numbers,
            weights[block],
        )
        table.add(numbers[:rows].reshape(-1), dimensions + 1, places[block].reshape(-1))
    return places, weights, table
