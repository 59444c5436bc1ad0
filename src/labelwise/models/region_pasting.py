"""From scored regions to a label of every pixel (the last step of O2P, which R-CNN takes over)."""

from __future__ import annotations

import torch
from torch import Tensor


def paste_regions(masks: Tensor, scores: Tensor, threshold: float, most: int, overlap: float) -> tuple[Tensor, Tensor]:
    """Paste the best regions, later ones only where no stronger one lies.

    Args:
        masks: [R, H, W] bool.
        scores: [R, K] of each class of objects.
        threshold: a region's best class has to score above it.
        most: the most regions that are pasted.
        overlap: a region is left out if more than this share of it is covered by stronger ones.

    Returns:
        [H, W] int64, the class of the region that each pixel belongs to, -1 of none; and [H, W], its score, 0 of none.
    """
    height, width = masks.shape[1:]
    owner = torch.full((height, width), -1, dtype=torch.int64, device=masks.device)
    strength = torch.zeros(height, width, device=masks.device)
    if not len(masks):
        return owner, strength
    best, classes = scores.max(dim=1)
    pasted = 0
    for region in best.argsort(descending=True, stable=True).tolist():
        if pasted == most or best[region] <= threshold:
            break
        mask = masks[region]
        free = mask & (owner < 0)
        if not free.any() or 1 - free.sum() / mask.sum() > overlap:
            continue
        owner[free] = classes[region]
        strength[free] = best[region].float()
        pasted += 1
    return owner, strength


def region_overlaps(masks: Tensor, truth: Tensor, classes: Tensor, ignore_index: int) -> Tensor:
    """IoU of regions with the masks of classes.

    Args:
        masks: [R, H, W] bool.
        truth: [H, W] class numbers.
        classes: [K] class numbers.
        ignore_index: value of pixels that do not count.

    Returns:
        [R, K] float32, 0 of a class that the image does not show.
    """
    counted = (truth != ignore_index).flatten()
    regions = masks.flatten(1)[:, counted].float()
    shown = (truth.flatten()[counted] == classes[:, None]).float()
    common = regions @ shown.T
    union = regions.sum(1)[:, None] + shown.sum(1) - common
    return common / union.clamp_min(1.0)
