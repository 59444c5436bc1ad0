"""Which part of a class's masks is the object."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from labelwise.models.debiasing import (
    background_distance,
    debiased_centroids,
    image_centroids,
    reduce_mask,
    target_similarity,
)

GRASS, RAIL, TRAIN = torch.eye(6)[:3]


def vectors(count: int, seed: int, size: int = 5) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_a_cell_takes_its_most_frequent_class_and_ignores_255() -> None:
    mask = torch.tensor([[1, 1, 0, 255], [1, 2, 255, 255], [255, 255, 2, 2], [255, 255, 0, 2]], dtype=torch.uint8)
    assert reduce_mask(mask, (2, 2)).tolist() == [[1, 0], [255, 2]]
    assert reduce_mask(torch.full((4, 4), 255, dtype=torch.uint8), (2, 2)).eq(255).all()


def test_two_means_split_a_region_into_its_two_looks() -> None:
    features = torch.stack([RAIL, RAIL, TRAIN, TRAIN, GRASS, GRASS], 1)[:, None]
    mask = torch.tensor([[7, 7, 7, 7, 0, 0]], dtype=torch.uint8)
    found = image_centroids(features, mask, [7], 0)
    assert sorted(found[7].round().tolist()) == sorted([RAIL.tolist(), TRAIN.tolist()])
    assert found[0].round().unique(dim=0).tolist() == [GRASS.tolist()]


def test_a_region_of_few_pixels_gives_its_mean_and_an_empty_one_nothing() -> None:
    features = torch.stack([TRAIN, RAIL], 1)[:, None]
    found = image_centroids(features, torch.tensor([[3, 255]], dtype=torch.uint8), [3, 4], 0)
    assert found.keys() == {3} and found[3].tolist() == [TRAIN.tolist()]


@given(st.integers(0, 100))
def test_the_distance_is_the_mean_over_all_pairs_and_lies_between_0_and_1(seed: int) -> None:
    own, theirs = vectors(4, seed), vectors(7, seed + 1)
    pairs = (1 - functional.cosine_similarity(own[:, None], theirs[None], dim=2)) / 2
    torch.testing.assert_close(background_distance(own, theirs), pairs.mean(1))
    torch.testing.assert_close(background_distance(own, theirs, "min"), pairs.amin(1))
    assert pairs.min() >= 0 and pairs.max() <= 1


@given(st.integers(0, 100))
def test_with_all_parts_kept_a_centroid_is_their_mean(seed: int) -> None:
    parts = vectors(9, seed)
    torch.testing.assert_close(debiased_centroids({1: parts}, vectors(5, seed + 1), 1.0)[1], parts.mean(0))


def test_the_share_of_kept_parts_is_rounded_up() -> None:
    parts, background = torch.stack([TRAIN, RAIL, RAIL]), RAIL[None]
    assert debiased_centroids({1: parts}, background, 1 / 3)[1].tolist() == TRAIN.tolist()
    assert debiased_centroids({1: parts}, background, 0.34)[1].tolist() == ((TRAIN + RAIL) / 2).tolist()


def test_parts_that_are_background_elsewhere_are_left_out() -> None:
    """Half of the parts of trains are rails, which are also seen without a train."""
    noise = 0.1 * vectors(40, 0, 6)
    parts = torch.cat([TRAIN + noise[:10], RAIL + noise[10:20]])
    background = torch.cat([GRASS + noise[20:30], RAIL + noise[30:]])
    for kept in (0.1, 0.4, 0.5):
        centroid = debiased_centroids({1: parts}, background, kept)[1]
        assert functional.cosine_similarity(centroid, TRAIN, dim=0) > 0.97


def test_the_similarity_is_the_highest_of_any_centroid_and_never_negative() -> None:
    features = torch.stack([2 * TRAIN, RAIL, -TRAIN], 1)[:, None]
    similarity = target_similarity(features, torch.stack([3 * TRAIN, TRAIN + RAIL]))
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.5**0.5, 0.0]]))
