"""Cross-entropy of the hardest pixels of a batch (hard-pixel mining of DeepLab's official training code)."""

from __future__ import annotations

from torch import Tensor

from labelwise.losses.pixel import IGNORE_INDEX, pixel_cross_entropy


def mined_share(share: float, step: int, mining_steps: int) -> float:
    """The share of pixels that is kept at a step: from all of them down to `share` over so many steps."""
    progress = min(1.0, step / mining_steps) if mining_steps else 1.0
    return progress * share + 1 - progress


def hard_pixel_cross_entropy(logits: Tensor, mask: Tensor, share: float, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean cross-entropy of the pixels with the largest losses.

    The k largest of all pixels' losses are kept, k being `share` of all pixels of the batch, the ignored ones included,
    whose loss is 0; their sum is divided by the number of those that are not 0.

    Args:
        logits: [B, K, H, W] float.
        mask: [B, H, W] class numbers, uint8 or int64.
        share: of the pixels, above 0 and up to 1; 1 is plain cross-entropy.
        ignore_index: the mask value of pixels that do not count.

    Returns:
        Scalar float32; 0, with zero gradients, where no pixel counts.
    """
    losses = pixel_cross_entropy(logits, mask, ignore_index).flatten()
    hardest = losses.topk(max(1, int(share * losses.numel())), sorted=False).values
    return hardest.sum() / (hardest > 0).sum().clamp_min(1)
