from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labelwise.models.pixel_affinity import (
    PairLabels,
    affinity_from_boundary,
    affinity_from_features,
    affinity_labels,
    affinity_losses,
    displacement_losses,
    line_pixels,
    neighbor_offsets,
    partners,
)

small_maps = st.tuples(st.integers(1, 7), st.integers(1, 8), st.integers(2, 5), st.integers(0, 2**31))


def random_map(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (5, 34), (10, 152)])
def test_there_are_as_many_offsets_as_in_the_papers(radius: int, count: int) -> None:
    assert neighbor_offsets(radius).shape == (count, 2)


def test_offsets_take_every_pair_below_the_radius_once() -> None:
    offsets = {tuple(offset) for offset in neighbor_offsets(5).tolist()}
    around = itertools.product(range(-5, 6), repeat=2)
    near = {(dy, dx) for dy, dx in around if 0 < dy * dy + dx * dx < 25}
    assert offsets | {(-dy, -dx) for dy, dx in offsets} == near
    assert len(near) == 2 * len(offsets)


def test_a_line_has_all_pixels_nearer_to_it_than_one() -> None:
    assert line_pixels(0, 3) == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert set(line_pixels(2, -2)) == {(0, 0), (0, -1), (1, 0), (1, -1), (1, -2), (2, -1), (2, -2)}
    assert (0, 2) not in line_pixels(4, 2)


@given(small_maps)
def test_an_affinity_is_what_the_greatest_boundary_of_the_line_leaves(shape: tuple[int, int, int, int]) -> None:
    height, width, radius, seed = shape
    boundary = random_map(height, width, seed)
    found = affinity_from_boundary(boundary, radius)
    for plane, (dy, dx) in zip(found, neighbor_offsets(radius).tolist(), strict=True):
        for y, x in itertools.product(range(height), range(width)):
            expected = 0.0
            if y + dy < height and 0 <= x + dx < width:
                expected = 1 - max(float(boundary[y + b, x + a]) for b, a in line_pixels(dy, dx))
            assert float(plane[y, x]) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_an_affinity_goes_to_the_pixel_that_decides() -> None:
    boundary = torch.tensor([[0.1, 0.9, 0.2]], requires_grad=True)
    across = neighbor_offsets(3).tolist().index([0, 2])
    affinity_from_boundary(boundary, 3)[across, 0, 0].backward()  # type: ignore[no-untyped-call]
    assert boundary.grad is not None and boundary.grad.tolist() == [[0, -1, 0]]


def test_equal_features_are_alike_and_others_by_their_mean_distance() -> None:
    features = torch.zeros(1, 4, 3, 3)
    features[0, :2, 0, 1] = 3.0
    affinity = affinity_from_features(features, 2)[0]
    right, below = (neighbor_offsets(2).tolist().index(offset) for offset in ([0, 1], [1, 0]))
    assert float(affinity[right, 0, 0]) == pytest.approx(math.exp(-1.5))
    assert float(affinity[below, 0, 0]) == 1
    assert float(affinity[right, 0, 2]) == 0


def test_the_gradient_of_features_is_that_of_their_definition() -> None:
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: affinity_from_features(values, 3), features)


def test_labels_of_pairs_leave_out_unsure_pixels_and_those_outside() -> None:
    labels = torch.tensor([[[0, 0, 3, 3, 5, 255, 0]]])
    pairs = affinity_labels(labels, 2)
    right = neighbor_offsets(2).tolist().index([0, 1])
    said = {name: getattr(pairs, name)[0, right, 0].int().tolist() for name in PairLabels._fields}
    assert said == {
        "background": [1, 0, 0, 0, 0, 0, 0],
        "foreground": [0, 0, 1, 0, 0, 0, 0],
        "negative": [0, 1, 0, 1, 0, 0, 0],
    }


@given(small_maps)
def test_a_pair_has_at_most_one_label_and_no_label_beyond_the_map(shape: tuple[int, int, int, int]) -> None:
    height, width, radius, seed = shape
    labels = (4 * random_map(height, width, seed)).to(torch.uint8)[None]
    labels[labels == 3] = 255
    pairs = affinity_labels(labels, radius)
    known = partners(labels, radius, 255) != 255
    assert (sum(part.int() for part in pairs) <= known.int()).all()  # type: ignore[union-attr]


def test_another_class_can_be_the_background() -> None:
    pairs = affinity_labels(torch.full((1, 2, 2), 7), 2, background=7)
    assert pairs.background.any() and not pairs.foreground.any()


def test_right_affinities_cost_nothing_and_wrong_ones_much() -> None:
    pairs = affinity_labels(torch.tensor([[[0, 0, 3, 3]]]), 2)
    right = (pairs.background | pairs.foreground).float()
    assert sum(affinity_losses(right, pairs).values()) == pytest.approx(0, abs=1e-4)
    wrong = affinity_losses(1 - right, pairs)
    each = -math.log(1e-5)
    weights = {"background": 0.25, "foreground": 0.25, "negative": 0.5}
    assert {name: float(value) for name, value in wrong.items()} == pytest.approx(
        {name: weight * each for name, weight in weights.items()}, rel=1e-3
    )


def test_losses_over_no_pair_are_zero() -> None:
    pairs = affinity_labels(torch.full((1, 4, 4), 255), 3)
    losses = affinity_losses(torch.full(pairs.negative.shape, 0.5), pairs)
    losses |= displacement_losses(torch.rand(1, 2, 4, 4), pairs, 3)
    assert all(float(value) == 0 for value in losses.values())


def test_displacements_to_one_centroid_cost_nothing_on_an_object() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    to_centroid = torch.stack([2.5 - rows, 2.0 - columns])[None]
    pairs = affinity_labels(torch.ones(1, 6, 5), 4)
    assert float(displacement_losses(to_centroid, pairs, 4)["displacement_foreground"]) == pytest.approx(0, abs=1e-6)
    assert float(displacement_losses(-to_centroid, pairs, 4)["displacement_foreground"]) > 0.5
    empty = affinity_labels(torch.zeros(1, 6, 5), 4)
    assert float(displacement_losses(torch.ones(1, 2, 6, 5), empty, 4)["displacement_background"]) == 0
