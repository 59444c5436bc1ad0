"""Wrong labels of some classes replaced by confident predictions (Liu et al., CVPR 2022, section 3.1).

On photographs only the new class has to be one whose labels are corrected; on CT scans (SegTHOR) the old one has to be
too, and the background has a threshold of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = 255
LARGEST_BACKGROUND = 0.95
LEAST_KEPT_FOREGROUND = 0.5


def may_correct(mask: Tensor, active: Tensor, background: int | None) -> bool:
    """Whether an image's labels are looked at: it has an active object class, or no object at all.

    Args:
        mask: [H, W] uint8, 255 = ignore.
        active: [K] bool.
        background: number of the class that is no object.
    """
    objects = _present(mask, len(active))
    if background is not None:
        objects[background] = False
    return bool((objects & active).any()) or not bool(objects.any())


def correct_labels(
    mask: Tensor,
    probability: Tensor,
    active: Tensor,
    *,
    threshold: float = 0.8,
    background: int | None = 0,
    class_constraint: bool = True,
) -> Tensor:
    """Replace labels by confident predictions of active classes, as on VOC.

    Only the new class has to be active. With the class constraint, an image that has objects gets no class that its
    mask does not have. A correction that leaves fewer than half of the object pixels and more than 95 % background is
    not made at all.

    Args:
        mask: [H, W] uint8, 255 = ignore; ignored pixels may be filled.
        probability: [K, H, W] float.
        active: [K] bool, the background's entry included.
        threshold: tau in the paper.
        background: number of the class that is no object.
        class_constraint: apply it.

    Returns:
        [H, W] uint8.
    """
    if not may_correct(mask, active, background):
        return mask
    confidence, predicted = probability.max(0)
    change = (predicted != mask) & (confidence > threshold) & active[predicted]
    if class_constraint and bool(_is_object(mask, background).any()):
        change &= _present(mask, len(active))[predicted]
    corrected = torch.where(change, predicted.to(mask.dtype), mask)
    before, after = (_is_object(each, background).sum() for each in (mask, corrected))
    nearly_all = background is not None and (corrected == background).float().mean() > LARGEST_BACKGROUND
    return mask if nearly_all and after < LEAST_KEPT_FOREGROUND * before else corrected


def correct_scan_labels(
    mask: Tensor,
    probability: Tensor,
    active: Tensor,
    *,
    threshold: float = 0.7,
    background_threshold: float = 0.7,
    background: int | None = 0,
    class_constraint: bool = True,
) -> Tensor:
    """Replace labels by confident predictions where old and new class are active, as on CT scans (SegTHOR).

    A pixel is confident where the largest probability of an object exceeds `threshold`, or that of the background
    `background_threshold`. With the class constraint, a slice that has objects gets no object class that its mask does
    not have.

    Args:
        mask: [H, W] uint8, 255 = ignore; ignored pixels stay.
        probability: [K, H, W] float.
        active: [K] bool, the background's entry included.
        threshold: tau_fg.
        background_threshold: tau_bg.
        background: number of the class that is no object.
        class_constraint: apply it.

    Returns:
        [H, W] uint8.
    """
    thresholds = probability.new_full((len(probability), 1, 1), threshold)
    if background is not None:
        thresholds[background] = background_threshold
    predicted = probability.argmax(0)
    active_here = torch.cat([active, active.new_zeros(IGNORE_INDEX + 1 - len(active))])[mask.long()]
    change = (probability > thresholds).any(0) & active_here & active[predicted]
    if class_constraint and bool(_is_object(mask, background).any()):
        allowed = _present(mask, len(active))
        if background is not None:
            allowed[background] = True
        change &= allowed[predicted]
    return torch.where(change, predicted.to(mask.dtype), mask)


def _present(mask: Tensor, classes: int) -> Tensor:
    return torch.bincount(mask.flatten().long(), minlength=IGNORE_INDEX + 1)[:classes] > 0


def _is_object(mask: Tensor, background: int | None) -> Tensor:
    objects = mask != IGNORE_INDEX
    return objects if background is None else objects & (mask != background)
