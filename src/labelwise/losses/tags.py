"""Losses on the tags of whole images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from labelwise.losses.pixel import IGNORE_INDEX


def multi_label_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Mean binary cross-entropy over all images and classes but the ignored ones.

    Args:
        logits: [B, K] float.
        tags: [B, K] uint8: 1 present, 0 absent, 255 ignored (only difficult objects).

    Returns:
        Scalar float32; 0, with zero gradients, where every tag is ignored.
    """
    valid = tags != IGNORE_INDEX
    losses = functional.binary_cross_entropy_with_logits(logits.float(), (tags == 1).float(), reduction="none")
    return (losses * valid).sum() / valid.sum().clamp(min=1)
