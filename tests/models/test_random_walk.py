from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labelwise.metrics.segmentation import SegmentationScores
from labelwise.models.cam import seed
from labelwise.models.pixel_affinity import affinity_from_boundary, neighbor_offsets
from labelwise.models.random_walk import random_walk, transition_matrix

RADIUS = 5


def random_affinity(height: int, width: int, radius: int, number: int) -> Tensor:
    boundary = torch.rand(height, width, generator=torch.Generator().manual_seed(number))
    return affinity_from_boundary(boundary, radius)


def dense_transition(affinity: Tensor, radius: int, beta: float) -> Tensor:
    """The papers' matrix, pair by pair: [h w, h w] with columns that sum to 1."""
    height, width = affinity.shape[1:]
    weights = torch.eye(height * width, dtype=torch.float64)
    for plane, (dy, dx) in zip(affinity.double(), neighbor_offsets(radius).tolist(), strict=True):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                first, second = y * width + x, (y + dy) * width + x + dx
                weights[first, second] = weights[second, first] = plane[y, x] ** beta
    return weights / weights.sum(0)


@given(st.integers(1, 7), st.integers(1, 8), st.integers(2, 5), st.integers(0, 2**31))
def test_the_sparse_walk_is_that_of_the_squared_dense_matrix(height: int, width: int, radius: int, number: int) -> None:
    affinity = random_affinity(height, width, radius, number)
    maps = torch.rand(2, height, width)
    squared = dense_transition(affinity, radius, 3.0)
    assert torch.allclose(transition_matrix(affinity, radius, 3.0).to_dense().double().T, squared, atol=1e-6)
    for _ in range(4):
        squared = squared @ squared
    walked = random_walk(maps, affinity, radius=radius, beta=3.0, log_steps=4)
    assert torch.allclose(walked.double().flatten(1), maps.double().flatten(1) @ squared, atol=1e-4)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 12))
def test_the_columns_of_the_transition_matrix_sum_to_one(height: int, width: int, beta: float) -> None:
    transposed = transition_matrix(random_affinity(height, width, RADIUS, 0), RADIUS, beta)
    ones = torch.ones(height * width, 1, dtype=transposed.dtype)
    assert torch.allclose(transposed @ ones, ones, atol=1e-6)


def test_without_boundaries_everything_becomes_one_score() -> None:
    maps = torch.rand(2, 9, 11)
    walked = random_walk(maps, affinity_from_boundary(torch.zeros(9, 11), RADIUS), radius=5, beta=10, log_steps=9)
    assert (walked.flatten(1).std(1) < 1e-4).all()
    assert (walked > 0.1).all()


def test_a_closed_contour_blocks_all_flow() -> None:
    boundary = torch.zeros(15, 15)
    boundary[4:11, 4:11] = 1
    boundary[5:10, 5:10] = 0
    maps = torch.zeros(1, 15, 15)
    maps[0, 7, 7] = 1
    walked = random_walk(maps, affinity_from_boundary(boundary, RADIUS), radius=5, beta=10, log_steps=8)[0]
    inside = torch.zeros(15, 15, dtype=torch.bool)
    inside[5:10, 5:10] = True
    assert (walked[~inside] == 0).all()
    assert (walked[inside] > 0.01).all()


def test_a_power_of_zero_gives_the_mean_of_the_neighborhood() -> None:
    maps = torch.rand(1, 9, 9)
    walked = random_walk(maps, random_affinity(9, 9, 2, 1), radius=2, beta=0, log_steps=0)
    means = torch.nn.functional.avg_pool2d(maps, 3, 1, padding=1, count_include_pad=False)
    assert torch.allclose(walked, means, atol=1e-6)


def test_half_precision_around_it_changes_nothing() -> None:
    affinity, maps = random_affinity(6, 7, 3, 2), torch.rand(2, 6, 7)
    plain = random_walk(maps, affinity, radius=3, beta=4, log_steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_walk(maps, affinity, radius=3, beta=4, log_steps=3), plain)


def test_no_map_at_all_stays_none() -> None:
    assert random_walk(torch.zeros(0, 4, 5), random_affinity(4, 5, 3, 0), radius=3, beta=1, log_steps=2).shape == (
        0,
        4,
        5,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units elsewhere")
def test_a_whole_image_takes_less_than_300_megabytes() -> None:
    code = (
        "import resource, torch; from labelwise.models import random_walk as walk, pixel_affinity as pairs;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "affinity = pairs.affinity_from_boundary(torch.rand(6, 6), 5);"
        "walk.random_walk(torch.rand(3, 6, 6), affinity, radius=5, beta=10, log_steps=1); before = peak();"
        "affinity = pairs.affinity_from_boundary(torch.rand(94, 125), 5);"
        "walk.random_walk(torch.rand(3, 94, 125), affinity, radius=5, beta=10, log_steps=2);"
        "print((peak() - before) / 1024)"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(answer.stdout) < 300


def scene(number: int, size: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """A mask with two objects, maps that are high on a part of each and reach beyond it, and the true boundary."""
    generator = torch.Generator().manual_seed(number)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask, maps = torch.zeros(size, size, dtype=torch.uint8), []
    for label, left in ((1, 2), (2, size // 2 + 2)):
        y, x = torch.randint(2, 10, (2,), generator=generator).tolist()
        height, width = torch.randint(12, 22, (2,), generator=generator).tolist()
        top, start = y + 4, left + x // 2
        mask[top : top + height, start : start + min(width, 16)] = label
        distance = (rows - top - 3) ** 2 + (columns - start - 3) ** 2
        maps.append(torch.exp(-distance / 60))
    classes = torch.nn.functional.one_hot(mask.long(), 3).permute(2, 0, 1).float()
    # Pixels of the background that touch an object, so that no object loses its own.
    near = torch.nn.functional.max_pool2d(classes[None, 1:], 3, 1, 1)[0].amax(0)
    return mask, torch.stack(maps), ((near > 0) & (mask == 0)).float()


def best_miou(boundaries: str) -> float:
    """The mIoU of seeds, or of masks after the walk, at the best constant score of the background."""
    thresholds = [number / 20 for number in range(1, 12)]
    scores = [SegmentationScores(("background", "one", "two")) for _ in thresholds]
    for number in range(4):
        mask, maps, boundary = scene(number)
        if boundaries != "none":
            boundary = boundary if boundaries == "true" else torch.full_like(boundary, 0.5)
            affinity = affinity_from_boundary(boundary, RADIUS)
            maps = random_walk(maps * (1 - boundary), affinity, radius=RADIUS, beta=10, log_steps=8)
            maps = maps / maps.max()
        for threshold, score in zip(thresholds, scores, strict=True):
            score.update(seed(maps, torch.tensor([1, 2]), threshold), mask)
    return max(float(score.compute().miou) for score in scores)


def test_the_true_boundaries_lift_masks_above_the_seeds_and_constant_ones_do_not() -> None:
    """The claim of IRNet at the smallest scale."""
    seeds = best_miou("none")
    assert best_miou("true") >= seeds + 3
    assert best_miou("constant") < seeds + 3
