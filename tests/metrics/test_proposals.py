"""Recall of proposals by their number, and mean average best overlap."""

from __future__ import annotations

import pytest
import torch

from labelwise.metrics.proposals import NUMBERS, ProposalRecall, best_overlaps

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
HALF = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
AWAY = BOX + 100


def test_best_overlap_grows_with_the_number_of_proposals() -> None:
    proposals = torch.cat([AWAY, HALF, *[AWAY] * 60, BOX])
    overlaps = best_overlaps(proposals, torch.cat([BOX, AWAY + 500]))
    assert overlaps[0].tolist() == [0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert not overlaps[1].any()


def test_all_proposals_count_for_the_mean_best_overlap() -> None:
    proposals = torch.cat([AWAY.repeat(NUMBERS[-1], 1), BOX])
    assert best_overlaps(proposals, BOX)[0].tolist() == [0.0] * len(NUMBERS) + [1.0]


def test_recall_of_all_objects_and_mean_over_classes() -> None:
    metric = ProposalRecall(("cat", "dog", "cow"))
    metric.update(1, torch.cat([HALF, BOX]), torch.cat([BOX, BOX, AWAY]), torch.tensor([0, 0, 1]))
    metric.update(0, AWAY[:0], BOX, torch.tensor([0]))
    metric.update(2, AWAY, BOX[:0], torch.zeros(0, dtype=torch.int64))
    results = metric.compute()
    assert results["recall"]["0.5"] == {"1": 50.0} | {str(number): 50.0 for number in NUMBERS[1:]}
    assert results["recall"]["0.7"] == {"1": 0.0} | {str(number): 50.0 for number in NUMBERS[1:]}
    # Of cats 1, 1 and 0, of dogs 0; cows do not occur.
    assert results["mabo"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert (results["mean_number"], results["images"]) == (1.0, 3)


def test_seven_tenths_are_seven_tenths() -> None:
    metric = ProposalRecall(("cat",))
    metric.update(0, torch.tensor([[0.0, 0.0, 10.0, 7.0]]), BOX, torch.tensor([0]))
    assert metric.compute()["recall"]["0.7"]["1"] == 100.0


def test_without_objects_there_is_no_recall() -> None:
    metric = ProposalRecall(("cat",))
    metric.update(0, BOX, BOX[:0], torch.zeros(0, dtype=torch.int64))
    assert metric.compute() == {}
