"""The compiled loops of the permutohedral lattice on the CPU (`labelwise.models.permutohedral`).

Each works on the rows from `first` to `last` and writes nothing else, so that threads can share the rows. No loop may
reorder a sum: the result has the same bits for any number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelwise.compiled import compiled

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Keys = NDArray[np.int64]

_SOFTMAX_ROWS = 64


@compiled
def embed_points(
    first: int, last: int, points: Floats, scale: Floats, low: Keys, radices: Keys, numbers: Keys, weights: Floats
) -> None:
    """The corners of the simplex around each point: their numbers and barycentric weights, [N, d + 1] each."""
    dimensions = points.shape[1]
    side = np.float32(dimensions + 1)
    rest = np.empty(dimensions + 1, np.float32)
    quotient = np.empty(dimensions + 1, np.int64)
    rank = np.empty(dimensions + 1, np.int64)
    barycentric = np.empty(dimensions + 2, np.float32)
    radix_of_rank = np.empty(dimensions + 1, np.int64)
    for point in range(first, last):
        total = np.float32(0)
        for axis in range(dimensions, 0, -1):
            coordinate = points[point, axis - 1] * scale[axis - 1]
            rest[axis] = total - np.float32(axis) * coordinate
            total += coordinate
        rest[0] = total
        off = 0
        for axis in range(dimensions + 1):
            nearest = np.rint(rest[axis] / side)
            quotient[axis] = np.int64(nearest)
            off += quotient[axis]
            rest[axis] -= nearest * side
            rank[axis] = 0
        for axis in range(dimensions):
            for other in range(axis + 1, dimensions + 1):
                if rest[axis] < rest[other]:
                    rank[axis] += 1
                else:
                    rank[other] += 1
        barycentric[:] = 0
        number = 0
        for axis in range(dimensions + 1):
            # Rounding may leave the plane; the coordinates of the first or last ranks bring it back.
            rank[axis] += off
            if rank[axis] < 0:
                rank[axis] += dimensions + 1
                quotient[axis] += 1
                rest[axis] -= side
            elif rank[axis] > dimensions:
                rank[axis] -= dimensions + 1
                quotient[axis] -= 1
                rest[axis] += side
            share = rest[axis] / side
            barycentric[dimensions - rank[axis]] += share
            barycentric[dimensions + 1 - rank[axis]] -= share
            radix_of_rank[rank[axis]] = radices[axis]
            if axis < dimensions:
                number += radices[axis] * (quotient[axis] - low[axis])
        barycentric[0] += 1 + barycentric[dimensions + 1]
        for corner in range(dimensions + 1):
            weights[point, corner] = barycentric[corner]
            numbers[point, corner] = number
            number += 1 - radix_of_rank[dimensions - corner]


@compiled
def _slot(number: int, keys: Keys) -> int:
    """Where a table holds a number, or the free place where it belongs."""
    mixed = np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(33)) & (len(keys) - 1)
    while keys[slot] != number and keys[slot] != -1:
        slot = (slot + 1) & (len(keys) - 1)
    return int(slot)


@compiled
def insert_numbers(
    wanted: Keys, keys: Keys, places: Integers, numbers: Keys, count: int, result: Integers, period: int
) -> int:
    """Look numbers up, and add those that are new; the new count."""
    for index in range(len(wanted)):
        number = wanted[index]
        if index >= period and wanted[index - period] == number:
            result[index] = result[index - period]
            continue
        slot = _slot(number, keys)
        if keys[slot] == -1:
            keys[slot] = number
            places[slot] = count
            numbers[count] = number
            count += 1
        result[index] = places[slot]
    return count


@compiled
def find_chains(
    numbers: Keys, from_zero: int, from_other: int, modulus: int, keys: Keys, places: Integers
) -> tuple[Integers, Integers]:
    """The chains of neighbors along an axis, one after the other, and where each starts; no chain has one vertex."""
    count = len(numbers)
    following = np.empty(count, np.int32)
    is_head = np.ones(count, np.bool_)
    links = 0
    for vertex in range(count):
        number = numbers[vertex]
        slot = _slot(number + (from_zero if number % modulus == 0 else from_other), keys)
        following[vertex] = -1
        if keys[slot] != -1:
            following[vertex] = places[slot]
            is_head[places[slot]] = False
            links += 1
    heads = 0
    for vertex in range(count):
        is_head[vertex] &= following[vertex] >= 0
        heads += is_head[vertex]
    order = np.empty(links + heads, np.int32)
    starts = np.empty(heads + 1, np.int32)
    filled = 0
    chain = 0
    for head in range(count):
        if is_head[head]:
            starts[chain] = filled
            chain += 1
            vertex = head
            while vertex >= 0:
                order[filled] = vertex
                filled += 1
                vertex = following[vertex]
    starts[chain] = filled
    return order, starts


@compiled
def group_members(groups: Integers, count: int) -> tuple[Integers, Integers]:
    """The members of each group, group by group in ascending order, and where each group starts."""
    starts = np.zeros(count + 1, np.int32)
    for member in range(len(groups)):
        starts[groups[member] + 1] += 1
    for group in range(count):
        starts[group + 1] += starts[group]
    filled = starts[:-1].copy()
    members = np.empty(len(groups), np.int32)
    for member in range(len(groups)):
        group = groups[member]
        members[filled[group]] = member
        filled[group] += 1
    return starts, members


@compiled
def splat(
    first: int, last: int, starts: Integers, points: Integers, weights: Floats, rows: Floats, lattice: Floats
) -> None:
    """Sum for every vertex the values of its points."""
    channels = rows.shape[1]
    for vertex in range(first, last):
        for channel in range(channels):
            lattice[vertex, channel] = 0
        for member in range(starts[vertex], starts[vertex + 1]):
            weight, point = weights[member], points[member]
            for channel in range(channels):
                lattice[vertex, channel] += weight * rows[point, channel]


@compiled
def blur(first: int, last: int, order: Integers, starts: Integers, lattice: Floats) -> None:
    """Add to every vertex half of its two neighbors' old values, along the chains of one axis."""
    channels = lattice.shape[1]
    previous = np.empty(channels, np.float32)
    for chain in range(first, last):
        previous[:] = 0
        end = starts[chain + 1] - 1
        for index in range(starts[chain], end):
            vertex, following = order[index], order[index + 1]
            for channel in range(channels):
                old = lattice[vertex, channel]
                around = previous[channel] + lattice[following, channel]
                lattice[vertex, channel] = old + np.float32(0.5) * around
                previous[channel] = old
        vertex = order[end]
        for channel in range(channels):
            lattice[vertex, channel] += np.float32(0.5) * previous[channel]


@compiled
def interpolate(
    first: int, last: int, base: Floats, corners: Integers, weights: Floats, lattice: Floats, result: Floats
) -> None:
    """Add to the base at every point what lies between the vertices around it."""
    channels = lattice.shape[1]
    for point in range(first, last):
        for channel in range(channels):
            result[point, channel] = base[point, channel]
        for corner in range(corners.shape[1]):
            weight, vertex = weights[point, corner], corners[point, corner]
            for channel in range(channels):
                result[point, channel] += weight * lattice[vertex, channel]


@compiled
def softmax_rows(first: int, last: int, logits: Floats, result: Floats) -> None:
    """The softmax of every row; exponentials below 1e-36 are 0."""
    labels = logits.shape[1]
    for block in range(first, last, _SOFTMAX_ROWS):
        end = min(block + _SOFTMAX_ROWS, last)
        for row in range(block, end):
            largest = logits[row, 0]
            for label in range(1, labels):
                largest = max(largest, logits[row, label])
            for label in range(labels):
                result[row, label] = logits[row, label] - largest
        exponents = result[block:end].reshape(-1)
        for index in range(len(exponents)):
            exponents[index] = _exp(exponents[index])
        for row in range(block, end):
            total = np.float32(0)
            for label in range(labels):
                total += result[row, label]
            scale = np.float32(1) / total
            for label in range(labels):
                result[row, label] *= scale


@compiled
def _exp(x: np.float32) -> np.float32:
    """exp(x) of a float32 x <= 0; unlike the library's, the compiler makes vectors of it."""
    clipped = max(x, np.float32(-85))
    power = np.rint(clipped * np.float32(1.44269504))
    # ln 2 in two parts, the first of few digits, so that its multiples are exact.
    rest = (clipped - power * np.float32(0.693359375)) + power * np.float32(2.12194440e-4)
    series = rest * np.float32(1 / 720) + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(0.5)
    series = series * rest + np.float32(1)
    series = series * rest + np.float32(1)
    two_to_power = np.int32((np.int32(power) + 127) << 23).view(np.float32)
    return two_to_power * series if x > np.float32(-85) else np.float32(0)
