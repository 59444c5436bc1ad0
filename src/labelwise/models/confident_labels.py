"""Labels from score maps alone: what the dense CRF makes of a seed, and which pixels are sure enough to learn from.

IRNet (Ahn, Cho and Kwak, CVPR 2019) takes a seed that says little and one that says much, and believes them where they
agree; PSA (Ahn and Kwak, CVPR 2018) does so with a background score that is high and one that is low.

All labels here are numbers of rows: 0 is the background, n the n-th map, 255 unsure.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from labelwise.models.cam import seed
from labelwise.models.dense_crf import CRFParameters, dense_crf, unary_from_labels, unary_from_softmax

UNSURE = 255
CELL = 8
"""Side in pixels of the squares that get one label in PSA, the stride of its network."""


def seed_rows(maps: Tensor, background: float) -> Tensor:
    """The row of the highest score, 0 where none is above the background's. [N, H, W] -> [H, W] uint8."""
    return seed(maps, torch.arange(1, len(maps) + 1, device=maps.device), background)


def crf_labels(image: Tensor, maps: Tensor, background: float, parameters: CRFParameters) -> Tensor:
    """The seed after a dense CRF that trusts its labels with a probability of 0.7.

    Args:
        image: [3, H, W] uint8.
        maps: [N, H, W] from 0 to 1.
        background: the constant score of the background in the seed.
        parameters: of the CRF; in the papers `dense_crf.PRESETS["cam"]`.

    Returns:
        [H, W] uint8.
    """
    rows = seed_rows(maps, background)
    if not len(maps):
        return rows
    return dense_crf(image, unary_from_labels(rows, 1 + len(maps)), parameters).argmax(0).to(torch.uint8)


def confident_labels(
    image: Tensor, maps: Tensor, foreground: float, background: float, parameters: CRFParameters
) -> Tensor:
    """IRNet: the class where even a high background score leaves it, background where even a low one wins.

    Args:
        image: [3, H, W] uint8.
        maps: [N, H, W] from 0 to 1.
        foreground: the high score of the background, 0.30; what is above it is a class.
        background: the low one, 0.05; what is below it is background.
        parameters: of the CRF that follows each; in the papers `dense_crf.PRESETS["cam"]`.

    Returns:
        [H, W] uint8, with 255 between the two.
    """
    sure = crf_labels(image, maps, foreground, parameters)
    possible = crf_labels(image, maps, background, parameters)
    return sure.masked_fill((sure == 0) & (possible > 0), UNSURE)


def confident_cells(image: Tensor, maps: Tensor, low: float, high: float, parameters: CRFParameters) -> Tensor:
    """PSA: as `confident_labels`, with (1 - highest score)^alpha as the background's score, in cells of 8x8 pixels.

    Args:
        image: [3, H, W] uint8.
        maps: [N, H, W] from 0 to 1.
        low: the alpha that favors the background, 4; what is still a class is sure to be one.
        high: the alpha that favors the classes, 32 (24 in the paper's run).
        parameters: of the CRF that follows each; in the paper `dense_crf.PRESETS["pydensecrf"]`.

    Returns:
        [H, W] uint8, with 255 between the two; the pixels of a cell have one label.
    """
    if not len(maps):
        return seed_rows(maps, 0.0)
    sure, possible = (_cell_labels(image, maps, alpha, parameters) for alpha in (low, high))
    return sure.masked_fill((sure == 0) & (possible > 0), UNSURE)


def _cell_labels(image: Tensor, maps: Tensor, alpha: float, parameters: CRFParameters) -> Tensor:
    height, width = maps.shape[1:]
    empty = (1 - maps.amax(0, keepdim=True)).clamp(min=0) ** alpha
    probabilities = dense_crf(image, unary_from_softmax(torch.cat([empty, maps])), parameters)
    # Cells at the border are means over what the image has of them.
    cells = functional.avg_pool2d(probabilities[None], CELL, ceil_mode=True)[0].argmax(0).to(torch.uint8)
    return cells.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[:height, :width]
