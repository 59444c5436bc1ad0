"""Which labels confident predictions replace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from labelwise.models.label_correction import correct_labels, correct_scan_labels, may_correct

ALL = torch.ones(3, dtype=torch.bool)
BOTH = pytest.mark.parametrize("correct", [correct_labels, correct_scan_labels])


def sure(predicted: Tensor, confidence: float = 1.0) -> Tensor:
    """[3, H, W] probabilities: the prediction's, and the rest evenly."""
    other = (1 - confidence) / 2
    return other + (confidence - other) * functional.one_hot(predicted, 3).permute(2, 0, 1).float()


def labels(seed: int) -> Tensor:
    mask = torch.randint(4, (8, 8), generator=torch.Generator().manual_seed(seed))
    return mask.masked_fill(mask == 3, 255).to(torch.uint8)


@BOTH
@given(seed=st.integers(0, 200))
def test_nothing_changes_without_a_reason_to(correct: Callable[..., Tensor], seed: int) -> None:
    mask, predicted = labels(seed), labels(seed + 1).clamp(max=2).long()
    assert torch.equal(correct(mask.clamp(max=2), sure(mask.clamp(max=2).long()), ALL), mask.clamp(max=2))
    assert torch.equal(correct(mask, sure(predicted, 0.6), ALL), mask)
    alone = torch.tensor([True, False, False])
    assert torch.equal(correct(mask, sure(predicted), alone), mask)


def test_the_new_class_has_to_be_active_the_old_one_not() -> None:
    mask = torch.tensor([[1, 2, 2, 255, 0, 0]], dtype=torch.uint8)
    predicted = torch.tensor([[2, 1, 0, 1, 2, 1]])
    corrected = correct_labels(mask, sure(predicted), torch.tensor([True, True, False]))
    assert corrected.tolist() == [[1, 1, 0, 1, 0, 1]]
    assert corrected.dtype == torch.uint8


def test_of_scans_old_and_new_class_have_to_be_active() -> None:
    mask = torch.tensor([[1, 2, 2, 255, 0, 0, 1]], dtype=torch.uint8)
    predicted = torch.tensor([[2, 1, 0, 1, 2, 1, 0]])
    corrected = correct_scan_labels(mask, sure(predicted), torch.tensor([True, True, False]))
    assert corrected.tolist() == [[1, 2, 2, 255, 0, 1, 0]]
    assert corrected.dtype == torch.uint8


def test_of_scans_objects_and_background_have_thresholds_of_their_own() -> None:
    mask = torch.tensor([[0, 1]], dtype=torch.uint8)
    unsure = sure(torch.tensor([[1, 0]]), 0.75)
    assert correct_scan_labels(mask, unsure, ALL).tolist() == [[1, 0]]
    assert correct_scan_labels(mask, unsure, ALL, threshold=0.8).tolist() == [[0, 0]]
    assert correct_scan_labels(mask, unsure, ALL, background_threshold=0.8).tolist() == [[1, 1]]
    assert correct_scan_labels(mask, unsure, ALL, background_threshold=0.8, background=None).tolist() == [[1, 0]]


@BOTH
def test_an_image_with_objects_gets_no_class_that_it_does_not_have(correct: Callable[..., Tensor]) -> None:
    mask, predicted = torch.tensor([[1, 1, 0, 0]], dtype=torch.uint8), torch.tensor([[1, 2, 2, 2]])
    assert correct(mask, sure(predicted), ALL).tolist() == [[1, 1, 0, 0]]
    assert correct(mask, sure(predicted), ALL, class_constraint=False).tolist() == [[1, 2, 2, 2]]
    empty = torch.tensor([[0, 0, 0, 255]], dtype=torch.uint8)
    assert correct(empty, sure(predicted), ALL)[0, :3].tolist() == [1, 2, 2]


def test_of_scans_the_background_is_always_a_class_of_the_image() -> None:
    mask, predicted = torch.tensor([[1, 1]], dtype=torch.uint8), torch.tensor([[1, 0]])
    assert correct_scan_labels(mask, sure(predicted), ALL).tolist() == [[1, 0]]
    assert correct_labels(mask, sure(predicted), ALL).tolist() == [[1, 1]]


def test_images_without_an_active_class_are_passed_over_unless_they_are_empty() -> None:
    active = torch.tensor([True, True, False])
    assert may_correct(torch.tensor([[0, 1]], dtype=torch.uint8), active, 0)
    assert not may_correct(torch.tensor([[0, 2]], dtype=torch.uint8), active, 0)
    assert may_correct(torch.tensor([[0, 255]], dtype=torch.uint8), active, 0)


@pytest.mark.parametrize(("kept", "changes"), [(12, False), (18, True)])
def test_an_object_does_not_vanish(kept: int, changes: bool) -> None:
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[:6, :6] = 1
    predicted = torch.zeros(1600, dtype=torch.long)
    predicted[:6] = predicted[40:46] = 1
    predicted[80 : 80 + kept - 12] = 1
    corrected = correct_labels(mask, sure(predicted.view(40, 40)), ALL)
    assert (not torch.equal(corrected, mask)) == changes
