"""Pasting regions: who is on top, how many, how much may be covered; and their overlap with classes."""

from __future__ import annotations

import torch
from torch import Tensor

from labelwise.models.region_pasting import paste_regions, region_overlaps


def bars(*spans: tuple[int, int]) -> Tensor:
    """Regions of one row of ten pixels."""
    masks = torch.zeros(len(spans), 1, 10, dtype=torch.bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


def test_the_stronger_region_lies_on_top() -> None:
    scores = torch.tensor([[0.3, 0.0], [0.1, 0.8]])
    owner, strength = paste_regions(bars((0, 6), (4, 8)), scores, 0.2, 10, 0.5)
    assert owner[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1, -1]
    torch.testing.assert_close(strength[0], torch.tensor([0.3] * 4 + [0.8] * 4 + [0.0] * 2))


def test_a_region_that_is_covered_too_much_is_left_out() -> None:
    masks, scores = bars((0, 6), (3, 8)), torch.tensor([[0.9, 0.0], [0.0, 0.5]])
    assert (paste_regions(masks, scores, 0.2, 10, 0.5)[0] < 1).all()
    assert (paste_regions(masks, scores, 0.2, 10, 0.6)[0] == 1).sum() == 2


def test_weak_regions_and_those_beyond_the_most_are_not_pasted() -> None:
    masks, scores = bars((0, 2), (3, 5), (6, 8)), torch.tensor([[0.5], [0.2], [0.4]])
    assert (paste_regions(masks, scores, 0.2, 10, 0.5)[0] == 0).sum() == 4
    assert (paste_regions(masks, scores, 0.0, 1, 0.5)[0] == 0).nonzero()[:, 1].tolist() == [0, 1]


def test_no_regions_leave_background() -> None:
    owner, strength = paste_regions(torch.zeros(0, 2, 3, dtype=torch.bool), torch.zeros(0, 2), 0.2, 10, 0.5)
    assert owner.shape == (2, 3) and (owner == -1).all() and (strength == 0).all()


def test_overlaps_count_no_ignored_pixel() -> None:
    truth = torch.tensor([[1, 1, 1, 255, 255, 0, 0, 3, 3, 3]])
    overlaps = region_overlaps(bars((1, 5), (0, 10), (5, 7)), truth, torch.tensor([1, 2, 3]), 255)
    expected = torch.tensor([[2 / 3, 0.0, 0.0], [3 / 8, 0.0, 3 / 8], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(overlaps, expected)
