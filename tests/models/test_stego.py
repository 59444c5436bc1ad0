"""A head that is trained on correspondences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labelwise.models.stego import (
    SAME,
    StegoHead,
    correlation,
    correspondence_loss,
    nearest_images,
    pair_loss,
    sample_points,
    train_head,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_correlations_are_cosines() -> None:
    first, second = normal(2, 5, 3), normal(2, 5, 4, seed=1)
    found = correlation(first, second)
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(found[1, 2, 3], torch.cosine_similarity(first[1, :, 2], second[1, :, 3], dim=0))


def test_the_loss_by_hand() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    codes = torch.tensor([[[1.0, -1.0], [0.5, 0.0]]])
    # Rows lose their mean 0.5 and get the mean of all back, which is 0.5 as well.
    expected = -(1 * (1 - 0.2) + 0.5 * (0.5 - 0.2)) / 4
    torch.testing.assert_close(correspondence_loss(features, codes, 0.2), torch.tensor(expected))


def test_like_places_are_drawn_together_and_unlike_ones_apart() -> None:
    codes = torch.zeros(1, 1, 2).add(0.5).requires_grad_()
    correspondence_loss(torch.tensor([[[0.9, 0.1]]]), codes, 0.5).backward()
    assert codes.grad[0, 0, 0] < 0 < codes.grad[0, 0, 1]


def test_points_are_sampled_between_pixels() -> None:
    features = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
    places = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [0.0, 0.0]]])
    assert sample_points(features, places).tolist() == [[[0.0, 2.0, 3.0]]]


def test_near_images_are_alike_and_not_the_image_itself() -> None:
    descriptions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    assert nearest_images(descriptions, 1).tolist() == [[2], [3], [0], [1]]
    assert nearest_images(descriptions, 7).shape == (4, 3)
    assert nearest_images(descriptions[:1]).tolist() == [[0]]


def test_training_separates_two_looks_and_repeats_itself() -> None:
    """Two kinds of patches, noisily told apart by the backbone, that every image has side by side."""
    looks = torch.zeros(4, 16, 4, 4)
    looks[:, 0, :, :2] = looks[:, 1, :, 2:] = 1
    looks += 0.15 * normal(4, 16, 4, 4)

    def features(numbers: Sequence[int]) -> Tensor:
        return looks[list(numbers)]

    def trained(steps: int) -> StegoHead:
        torch.manual_seed(0)
        head = StegoHead(16, 6)
        train_head(head, features, 4, steps=steps, batch=4, learning_rate=5e-3)
        return head

    def contrast(head: StegoHead) -> Tensor:
        with torch.no_grad():
            left, right = head(looks)[..., :2].flatten(2), head(looks)[..., 2:].flatten(2)
        return correlation(left, left).mean() - correlation(left, right).mean()

    head = trained(30)
    assert contrast(head) > contrast(trained(0)) + 0.2
    assert torch.equal(head.linear.weight, trained(30).linear.weight) and not head.training


def test_only_the_head_gets_gradients() -> None:
    head, features = StegoHead(6, 3), normal(2, 6, 4, 4).requires_grad_()
    pair_loss(head, features.detach(), features.detach(), SAME, torch.Generator().manual_seed(0)).backward()
    assert all(parameter.grad is not None for parameter in head.parameters()) and features.grad is None
