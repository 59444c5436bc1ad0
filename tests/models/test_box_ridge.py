"""Box regression: limits of its penalty, both forms of the system, and the box itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labelwise.models.box_ridge import BoxRidge, fit_box_ridge
from labelwise.models.boxes import decode_boxes


def linear_data(count: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Features, and offsets that depend on them linearly."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, dimensions, generator=generator)
    weight = torch.randn(dimensions, 4, generator=generator)
    return features, features @ weight + torch.tensor([0.1, -0.2, 0.3, 0.0])


def test_an_endless_penalty_leaves_the_mean() -> None:
    features, offsets = linear_data(40, 5)
    ridge = fit_box_ridge(features, offsets, penalty=1e12)
    torch.testing.assert_close(ridge.offsets(features), offsets.mean(0).expand(40, 4), atol=1e-4, rtol=0)
    plain = fit_box_ridge(features, offsets, penalty=1e12, whiten=False)
    torch.testing.assert_close(plain.offsets(features), torch.zeros(40, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("whiten", [True, False])
def test_without_a_penalty_linear_data_are_recovered(whiten: bool) -> None:
    features, offsets = linear_data(40, 5)
    ridge = fit_box_ridge(features, offsets, penalty=0.0, whiten=whiten)
    torch.testing.assert_close(ridge.offsets(features), offsets, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [3, 8, 9, 30])
def test_both_forms_of_the_system_have_the_solution_of_the_definition(count: int) -> None:
    features, offsets = linear_data(count, 8)
    ridge = fit_box_ridge(features, offsets, penalty=2.0, whiten=False)
    known = torch.cat([features, torch.ones(count, 1)], dim=1).double()
    gradient = known.T @ (known @ ridge.weight.double() - offsets.double()) + 2.0 * ridge.weight.double()
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)


def test_zero_targets_return_the_box() -> None:
    features, _ = linear_data(20, 5)
    boxes = torch.tensor([[3.0, 4.0, 10.0, 20.0]]).expand(20, 4)
    for ridge in (fit_box_ridge(features, torch.zeros(20, 4)), BoxRidge.none(5)):
        torch.testing.assert_close(decode_boxes(boxes, ridge.offsets(features)), boxes)


def test_half_precision_features_are_taken() -> None:
    features, offsets = linear_data(40, 5)
    half = fit_box_ridge(features.half(), offsets)
    torch.testing.assert_close(half.weight, fit_box_ridge(features, offsets).weight, atol=1e-3, rtol=1e-2)
