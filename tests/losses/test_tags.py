"""The binary cross-entropy of tags."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from labelwise.losses.tags import multi_label_loss


def test_it_is_the_mean_over_the_known_tags() -> None:
    logits = torch.tensor([[0.3, -2.0, 1.0], [4.0, 0.0, -1.0]])
    tags = torch.tensor([[1, 0, 255], [255, 1, 0]], dtype=torch.uint8)
    known = tags != 255
    expected = binary_cross_entropy_with_logits(logits[known], tags[known].float())
    torch.testing.assert_close(multi_label_loss(logits, tags), expected)


def test_ignored_tags_have_no_gradient() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    multi_label_loss(logits, torch.tensor([[1, 0, 255]], dtype=torch.uint8)).backward()
    assert logits.grad is not None and logits.grad[0].ne(0).tolist() == [True, True, False]


def test_without_a_known_tag_it_is_zero() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = multi_label_loss(logits, torch.full((2, 3), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
