"""Prediction of images larger than the network's window."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Border = Literal["shift", "cut"]
Reduce = Literal["logits", "softmax"]


def sliding_window_logits(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    window: int,
    stride: int,
    border: Border = "shift",
    reduce: Reduce = "logits",
) -> Tensor:
    """Predict window by window and average what the windows say about each pixel.

    The papers sum; the average has the same arg-max and keeps the scale of logits or probabilities.

    Args:
        predict: [B, 3, h, w] -> logits [B, K, h, w].
        image: [B, 3, H, W].
        window: side of the square window in pixels.
        stride: step of the window in pixels, at most `window`.
        border: "shift" moves the last window back to end at the border, and pads an image that is smaller than the
            window with zeros to the window, centred (Cross Pseudo Supervision); "cut" starts a window at every
            multiple of the stride and cuts it short at the border (UniMatch on Cityscapes).
        reduce: average the windows' "logits", or their "softmax".

    Returns:
        [B, K, H, W] float32; with `reduce="softmax"` probabilities.

    Raises:
        ValueError: the stride is not between 1 and the window.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride {stride} is not between 1 and the window {window}")
    height, width = image.shape[2:]
    top, left = 0, 0
    if border == "shift":
        image, top, left = _pad_to(image, window)
    total, count = _accumulate(predict, image, window, stride, border, reduce)
    return (total / count)[:, :, top : top + height, left : left + width]


def _accumulate(
    predict: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, border: Border, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    height, width = image.shape[2:]
    total: Tensor | None = None
    count = torch.zeros(height, width, device=image.device)
    for y, x in product(_starts(height, window, stride, border), _starts(width, window, stride, border)):
        rows, columns = slice(y, y + window), slice(x, x + window)
        logits = predict(image[:, :, rows, columns]).float()
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], height, width)
        total[:, :, rows, columns] += logits.softmax(dim=1) if reduce == "softmax" else logits
        count[rows, columns] += 1
    assert total is not None  # every image has at least one window
    return total, count


def _starts(size: int, window: int, stride: int, border: Border) -> list[int]:
    if border == "cut":
        return list(range(0, size, stride))
    last = size - window
    return [*range(0, last, stride), last]


def _pad_to(image: Tensor, window: int) -> tuple[Tensor, int, int]:
    rows, columns = (max(0, window - size) for size in image.shape[2:])
    top, left = rows // 2, columns // 2
    return functional.pad(image, (left, columns - left, top, rows - top)), top, left
