"""The lattice against a direct reading of its definition, against Gaussian filters, and against itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labelwise.errors import UserError
from labelwise.models import permutohedral, permutohedral_kernels
from labelwise.models.dense_crf import bilateral_features, mean_field
from labelwise.models.permutohedral import CompiledLattice, TensorLattice, potts_mean_field

KINDS = [CompiledLattice, TensorLattice]


@pytest.fixture
def threads() -> Iterator[None]:
    """Give the tests' one thread back afterwards."""
    yield
    torch.set_num_threads(1)


def points(count: int, dimensions: int, spread: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, dimensions)) * spread).float()


def corners_of(point: np.ndarray) -> dict[tuple[int, ...], float]:
    """The vertices around a point, with all d + 1 coordinates, and their weights: the definition, step by step."""
    d = len(point)
    scaled = [x * np.sqrt(2 / 3) * (d + 1) / np.sqrt((i + 1) * (i + 2)) for i, x in enumerate(point)]
    elevated = [sum(scaled[j:]) - (j * scaled[j - 1] if j else 0) for j in range(d + 1)]
    nearest = [round(e / (d + 1)) for e in elevated]
    rest = np.array([e - r * (d + 1) for e, r in zip(elevated, nearest, strict=True)])
    rank = np.argsort(np.argsort(-rest, kind="stable")) + sum(nearest)
    for i in range(d + 1):
        turn = int(rank[i] < 0) - int(rank[i] > d)
        rank[i] += turn * (d + 1)
        nearest[i] += turn
        rest[i] -= turn * (d + 1)
    weights = np.zeros(d + 2)
    for i in range(d + 1):
        weights[d - rank[i]] += rest[i] / (d + 1)
        weights[d + 1 - rank[i]] -= rest[i] / (d + 1)
    weights[0] += 1 + weights[d + 1]
    return {
        tuple(nearest[i] * (d + 1) + (q if rank[i] <= d - q else q - d - 1) for i in range(d + 1)): weights[q]
        for q in range(d + 1)
    }


def definition(features: np.ndarray, values: np.ndarray, transpose: bool = False) -> np.ndarray:
    """Splat, blur and slice over a dictionary of vertices."""
    d = features.shape[1]
    corners = [corners_of(point) for point in features.astype(np.float64)]
    lattice: dict[tuple[int, ...], np.ndarray] = {}
    for around, value in zip(corners, values, strict=True):
        for key, weight in around.items():
            lattice[key] = lattice.get(key, 0) + weight * value
    none = np.zeros(values.shape[1])
    for axis in reversed(range(d + 1)) if transpose else range(d + 1):
        step = np.full(d + 1, -1)
        step[axis] = d
        beside = [[tuple(np.add(key, sign * step)) for sign in (1, -1)] for key in lattice]
        lattice = {
            key: lattice[key] + 0.5 * (lattice.get(one, none) + lattice.get(two, none))
            for key, (one, two) in zip(lattice, beside, strict=True)
        }
    gain = 1 / (1 + 2.0**-d)
    return np.stack([gain * sum(weight * lattice[key] for key, weight in around.items()) for around in corners])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dimensions", "transpose"), [(1, False), (2, False), (3, True), (5, False), (5, True)])
def test_it_filters_as_defined(kind: type, dimensions: int, transpose: bool) -> None:
    features, values = points(60, dimensions, 0.7), points(60, 2, 1.0, seed=1)
    wanted = definition(features.numpy(), values.numpy(), transpose)
    np.testing.assert_allclose(kind(features).filter(values, transpose).numpy(), wanted, rtol=1e-3, atol=1e-4)


@given(st.integers(1, 5), st.sampled_from([0.01, 1.0, 30.0]), st.integers(1, 40), st.integers(0, 99))
def test_both_implementations_agree_and_their_transpose_is_one(d: int, spread: float, count: int, seed: int) -> None:
    features, a, b = points(count, d, spread, seed), points(count, 3, 1.0, seed + 1), points(count, 3, 1.0, seed + 2)
    compiled, tensors = CompiledLattice(features), TensorLattice(features)
    assert compiled.vertices == tensors.vertices
    filtered = compiled.filter(b)
    torch.testing.assert_close(filtered, tensors.filter(b), rtol=1e-3, atol=1e-3)
    for lattice in (compiled, tensors):
        left, right = (a * lattice.filter(b)).sum(), (lattice.filter(a, transpose=True) * b).sum()
        assert torch.isclose(left, right, rtol=1e-3, atol=1e-2)


@given(st.integers(1, 5), st.integers(0, 99))
def test_a_point_is_shared_among_the_corners_of_its_simplex(d: int, seed: int) -> None:
    features = points(50, d, 5.0, seed)
    for kind in KINDS:
        lattice = kind(features)
        gain = 1 / (1 + 2.0**-d)
        assert (lattice._after >= -1e-4).all()
        np.testing.assert_allclose(lattice._after.sum(1), gain, rtol=1e-4)
        assert lattice._corners.max() == lattice.vertices - 1


def test_splatting_keeps_the_sum_of_the_values() -> None:
    values = points(500, 4, 1.0).numpy()
    lattice = CompiledLattice(points(500, 3, 2.0))
    splatted = np.empty((lattice.vertices, 4), np.float32)
    permutohedral_kernels.splat(
        0, lattice.vertices, lattice._starts, lattice._members, lattice._before, values, splatted
    )
    np.testing.assert_allclose(splatted.sum(0), values.sum(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("dimensions", "side", "deviation", "error"), [(1, 400, 12, 5e-4), (2, 60, 5, 2e-3)])
def test_normalized_by_row_it_is_a_gaussian_average(dimensions: int, side: int, deviation: int, error: float) -> None:
    grid = torch.tensor(list(product(range(side), repeat=dimensions))).float()
    features, values = grid / deviation, torch.sin(grid.sum(1, keepdim=True) / (0.25 * side * dimensions))
    kernel = torch.exp(-0.5 * torch.cdist(features.double(), features.double()) ** 2)
    wanted = (kernel @ values.double()) / kernel.sum(1, keepdim=True)
    inner = ((grid >= 3 * deviation) & (grid < side - 3 * deviation)).all(1)
    for kind in KINDS:
        lattice = kind(features)
        off = lattice.filter(values) / lattice.row_sums()[:, None] - wanted
        assert off[inner].square().mean().sqrt() < error


def test_factors_before_and_after_are_those_of_a_matrix() -> None:
    features, values = points(80, 2, 1.0), points(80, 3, 1.0, seed=1)
    before, after = points(80, 1, 1.0, seed=2)[:, 0], points(80, 1, 1.0, seed=3)[:, 0]
    for kind in KINDS:
        wanted = after[:, None] * kind(features).filter(before[:, None] * values)
        torch.testing.assert_close(kind(features).weighted(before, after).filter(values), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("labels", [1, 2, 8, 21])
def test_the_compiled_mean_field_is_the_mean_field(labels: int) -> None:
    lattices = [CompiledLattice(points(90, d, 1.0)).weighted(torch.ones(90), torch.full((90,), 0.05)) for d in (5, 2)]
    unary = points(90, labels, 3.0, seed=1)
    unary[:, 1:2] = torch.inf
    for iterations in (0, 1, 4):
        wanted = mean_field(unary, [lattice.filter for lattice in lattices], [1.0, 1.0], iterations)
        torch.testing.assert_close(potts_mean_field(unary, lattices, iterations), wanted, rtol=1e-4, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits(threads: None) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 90, 70), np.uint8))
    features, unary = bilateral_features(image, 9, 20), points(90 * 70, 5, 1.0)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        lattice = CompiledLattice(features)
        results.append((lattice.filter(unary), potts_mean_field(unary, [lattice], 2)))
    for filtered, fitted in results[1:]:
        assert torch.equal(filtered, results[0][0])
        assert torch.equal(fitted, results[0][1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_makes_threads_of_its_own(threads: None) -> None:
    torch.set_num_threads(2)
    assert permutohedral._map(abs, [-1, 2]) == [1, 2]
    child = os.fork()
    if not child:
        os._exit(0 if permutohedral._map(abs, [-1, 2]) == [1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_spread_that_cannot_be_numbered_is_refused() -> None:
    features = torch.tensor([[0.0] * 5, [1e7] * 5])
    for kind in KINDS:
        with pytest.raises(UserError, match="standard deviations are too small"):
            kind(features)
