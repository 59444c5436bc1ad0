"""Pixel-wise cross-entropy in the forms that segmentation methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = 255


def cross_entropy(logits: Tensor, mask: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored.

    Args:
        logits: [B, K, H, W] float.
        mask: [B, H, W] class numbers, uint8 or int64.
        ignore_index: the mask value of pixels that do not count.

    Returns:
        Scalar float32; 0, with zero gradients, where no pixel counts.
    """
    valid = mask != ignore_index
    return _mean(pixel_cross_entropy(logits, mask, ignore_index), valid.sum())


def ohem_cross_entropy(
    logits: Tensor, mask: Tensor, threshold: float, min_kept: int, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Mean cross-entropy over the hard pixels of the whole batch (online hard example mining).

    With q the probability of the true class, the pixels with q <= max(threshold, the min_kept-th smallest q) are kept.
    A batch with fewer than `min_kept` valid pixels keeps them all.

    Args:
        logits: [B, K, H, W] float.
        mask: [B, H, W] class numbers, uint8 or int64.
        threshold: probability up to which a pixel is hard.
        min_kept: the least number of pixels to keep.
        ignore_index: the mask value of pixels that do not count.

    Returns:
        Scalar float32; 0, with zero gradients, where no pixel is kept.
    """
    losses = pixel_cross_entropy(logits, mask, ignore_index)
    losses = losses[mask != ignore_index]
    if losses.numel() < min_kept:
        return losses.sum() / max(1, losses.numel())
    probability = torch.exp(-losses.detach())
    kept = probability <= threshold
    if kept.sum() < min_kept:
        # Sorted, since kthvalue has no deterministic CUDA implementation.
        kept = probability <= probability.sort().values[min_kept - 1]
    return _mean(losses * kept, kept.sum())


def masked_cross_entropy(logits: Tensor, label: Tensor, keep: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of the kept pixels, divided by the number of valid ones: sum(CE * keep * valid) / sum(valid).

    The loss on unlabelled pixels of the FixMatch family: an unsure pixel costs nothing but counts in the denominator.

    Args:
        logits: [B, K, H, W] float.
        label: [B, H, W] class numbers, uint8 or int64; pixels of 255 cost nothing.
        keep: [B, H, W] bool, or float weights.
        valid: [B, H, W] bool, False where there is no image (padding).

    Returns:
        Scalar float32; 0, with zero gradients, where no pixel is valid.
    """
    losses = pixel_cross_entropy(logits, label, IGNORE_INDEX)
    return _mean(losses * keep * valid, valid.sum())


@torch.no_grad()
def pseudo_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class of each pixel and its probability; carries no gradient.

    Args:
        logits: [B, K, H, W] float.

    Returns:
        label [B, H, W] int64 and confidence [B, H, W] float32 in (0, 1].
    """
    logits = logits.float()
    highest, label = logits.max(dim=1)
    return label, torch.exp(highest - logits.logsumexp(dim=1)).clamp(max=1)


def pixel_cross_entropy(logits: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
    """[B, K, H, W] logits and [B, H, W] class numbers -> [B, H, W] float32 losses, 0 where the mask is ignored."""
    # Summed by the caller: the reductions inside nll_loss2d are not deterministic on CUDA.
    return functional.cross_entropy(logits.float(), mask.long(), ignore_index=ignore_index, reduction="none")


def _mean(losses: Tensor, count: Tensor) -> Tensor:
    return losses.sum() / count.clamp(min=1)
