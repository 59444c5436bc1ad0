"""Average precision of tags, against its definition written out, and the accuracies of single-label data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_average_precision

from labelwise.errors import UserError
from labelwise.metrics.tags import ClassificationScores, average_precision

RANKED = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 255])), min_size=1, max_size=30)


def by_definition(scores: np.ndarray, tags: np.ndarray) -> float | None:
    """Precision at each threshold, weighted by the recall that it adds; in a loop."""
    scores, present = scores[tags != 255], tags[tags != 255] == 1
    if not present.any():
        return None
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        hits = (chosen & present).sum()
        area += (hits / present.sum() - recall) * hits / chosen.sum()
        recall = hits / present.sum()
    return 100 * area


@given(RANKED)
def test_average_precision_is_the_area_under_its_steps(ranked: list[tuple[int, int]]) -> None:
    scores, tags = (np.array(column) for column in zip(*ranked, strict=True))
    found = average_precision(torch.tensor(scores).float(), torch.tensor(tags, dtype=torch.uint8))
    assert found == pytest.approx(by_definition(scores, tags))


def test_average_precision_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(500, generator=generator)
    tags = (torch.rand(500, generator=generator) < scores).to(torch.uint8)
    expected = 100 * binary_average_precision(scores, tags.long())
    assert average_precision(scores, tags) == pytest.approx(expected.item(), abs=1e-4)


@given(RANKED, st.randoms())
def test_the_order_of_the_images_makes_no_difference(ranked: list[tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(ranked, len(ranked))
    values = [
        average_precision(torch.tensor([s for s, _ in pairs]).float(), torch.tensor([t for _, t in pairs]).byte())
        for pairs in (ranked, shuffled)
    ]
    assert values[0] == values[1]


def test_difficult_images_neither_reward_nor_punish() -> None:
    scores, tags = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([255, 1, 0, 255], dtype=torch.uint8)
    assert average_precision(scores, tags) == 100


def filled(scores: list[list[float]], tags: list[list[int]]) -> ClassificationScores:
    metric = ClassificationScores(tuple(f"class {number}" for number in range(len(tags[0]))))
    for row, truth in zip(scores, tags, strict=True):
        metric.update(torch.tensor([row]), torch.tensor([truth], dtype=torch.uint8))
    return metric


def test_a_class_that_no_image_shows_is_left_out_of_the_mean() -> None:
    found = filled([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], [[1, 0, 0], [0, 0, 1]]).compute()
    assert found.ap == {"class 0": 100.0, "class 1": None, "class 2": 50.0}
    assert (found.map, found.images) == (75.0, 2)


def test_accuracies_of_images_of_one_class() -> None:
    scores = [[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [1.0, 6, 5, 4, 3, 2]]
    tags = [[int(number == true) for number in range(6)] for true in (0, 4, 5, 1)]
    found = filled(scores, tags).compute()
    assert (found.top1, found.top5) == (50.0, 75.0)


@pytest.mark.parametrize("tags", [[[1, 1], [0, 1]], [[1, 0], [0, 0]]])
def test_images_of_several_classes_or_none_have_no_accuracy(tags: list[list[int]]) -> None:
    assert filled([[1.0, 0.0], [0.0, 1.0]], tags).compute().top1 is None


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(UserError, match="no evaluated image shows any class"):
        filled([[1.0, 0.0]], [[0, 255]]).compute()
