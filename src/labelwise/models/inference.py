"""Prediction beyond one pass: several scales, mirrored copies, and the dense CRF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from labelwise.models.dense_crf import CRFParameters, dense_crf, unary_from_logits

_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a segmenter predicts; the defaults are one pass over the image as it is."""

    scales: tuple[float, ...] = (1.0,)
    "factors of the image's size whose probabilities are averaged"
    flip: bool = False
    "average with the mirrored image as well"
    window: int | None = None
    "side of the sliding window in pixels, 0 = the whole image; None = as the model was trained to"
    crf: CRFParameters | None = None
    "dense CRF over the probabilities, at the image's own size"

    @property
    def passes(self) -> bool:
        """Whether there is more than one pass over the image."""
        return self.flip or self.scales != (1.0,)

    def scores(self, predict: Callable[[Tensor], Tensor], image: Tensor, normalized: Tensor) -> Tensor:
        """Predict images in this way.

        Args:
            predict: [B, 3, h, w] normalised images -> logits [B, K, h, w].
            image: [B, 3, H, W] uint8, which the CRF looks at.
            normalized: the same images, [B, 3, H, W] float.

        Returns:
            [B, K, H, W] float32: logits; with several passes or a CRF logarithms of probabilities.
        """
        scores = (
            multi_scale_log_probabilities(predict, normalized, self.scales, self.flip)
            if self.passes
            else predict(normalized)
        )
        if self.crf is None:
            return scores
        refined = [dense_crf(one, unary_from_logits(its), self.crf) for one, its in zip(image, scores, strict=True)]
        return torch.stack(refined).clamp_min(_LEAST_PROBABILITY).log()


def scaled_size(size: int, scale: float) -> int:
    """Pixels of a side at a scale when the corners stay aligned: `(n - 1) s + 1` (DeepLab v2, v3).

    513 at 0.5 is 257, so that the grids of an atrous network stay on one another.
    """
    return max(1, int((size - 1) * scale + 1))


def multi_scale_log_probabilities(
    predict: Callable[[Tensor], Tensor], image: Tensor, scales: tuple[float, ...], flip: bool
) -> Tensor:
    """The mean of the soft-max maps of scaled and mirrored copies (DeepLab v3, section 4).

    Args:
        predict: [B, 3, h, w] -> logits [B, K, h, w].
        image: [B, 3, H, W] float, normalised.
        scales: factors of the size.
        flip: take the mirrored copy of each as well.

    Returns:
        [B, K, H, W] float32 logarithms of the mean probabilities.
    """
    size = image.shape[-2:]
    copies = list(product(scales, (False, True) if flip else (False,)))
    total: Tensor | float = 0.0
    for scale, mirrored in copies:
        target = [scaled_size(side, scale) for side in size]
        copy = functional.interpolate(image, target, mode="bilinear", align_corners=True) if scale != 1 else image
        logits = predict(copy.flip(-1)).flip(-1) if mirrored else predict(copy)
        total = total + functional.interpolate(logits, size, mode="bilinear", align_corners=True).float().softmax(1)
    assert isinstance(total, Tensor)
    return (total / len(copies)).clamp_min(_LEAST_PROBABILITY).log()
