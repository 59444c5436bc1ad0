"""The random walk over the pixels of an image that spreads score maps to pixels of the same object (PSA, IRNet).

With the symmetric affinities W of nearby pixels, W_ii = 1, the transition matrix is

    T = W^beta / (column sums of W^beta),    maps' = maps T^(2^log_steps)

where the power beta is taken of each element and the maps are row vectors. Since the columns sum to 1 and not the rows,
each new score is a weighted mean of the scores around, and the total is not kept.

The papers square a dense T; a map of 94 x 125 pixels has 11,750^2 elements, 0.55 GB. Here T stays sparse and is
multiplied 2^log_steps times with all maps of the image at once: the same result up to rounding in 15 MB.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from labelwise.models.pixel_affinity import neighbor_offsets, partners


def transition_matrix(affinity: Tensor, radius: int, beta: float) -> Tensor:
    """The transposed transition matrix T', whose rows sum to 1.

    Args:
        affinity: [n, h, w] of the pairs of `pixel_affinity.neighbor_offsets(radius)`, from 0 to 1.
        radius: of the pairs.
        beta: power of each affinity; 0 makes all neighbors equal.

    Returns:
        [h w, h w] float64, sparse (CSR), with 2 n + 1 elements per row away from the border.
    """
    height, width = affinity.shape[-2:]
    offsets = neighbor_offsets(radius).to(affinity.device)
    inside = partners(torch.ones_like(affinity[0]), radius, 0.0) > 0
    # In double precision: rows that sum to 1 up to 1e-7 would lose more than 1e-4 in 2^8 steps.
    later = torch.where(inside, affinity.double() ** beta, 0)
    # In the order of the columns, so that nothing needs to be sorted: the partners before a pixel, itself, those after.
    weights = torch.cat([_from_partner(later, offsets).flip(0), torch.ones_like(later[:1]), later])
    linked = torch.cat([_from_partner(inside, offsets).flip(0), torch.ones_like(inside[:1]), inside])
    steps = offsets[:, 0] * width + offsets[:, 1]
    steps = torch.cat([-steps.flip(0), steps.new_zeros(1), steps])
    columns = torch.arange(height * width, device=affinity.device)[:, None] + steps
    rows = linked.flatten(1).T
    values = (weights / weights.sum(0)).flatten(1).T[rows]
    ends = functional.pad(rows.sum(1).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        # torch calls the format a beta; what is used of it here, the product with a dense matrix, is tested.
        warnings.filterwarnings("ignore", message="Sparse CSR")
        return torch.sparse_csr_tensor(
            ends.int(), columns[rows].int(), values, (height * width, height * width), check_invariants=False
        )


def _from_partner(pairs: Tensor, offsets: Tensor) -> Tensor:
    """Values of pairs at their second pixel instead of their first. [n, h, w] -> [n, h, w], 0 where there is none."""
    height, width = pairs.shape[-2:]
    moved = torch.zeros_like(pairs)
    for place, (dy, dx) in enumerate(offsets.tolist()):
        rows, columns = max(0, height - dy), max(0, width - abs(dx))
        left, right = max(dx, 0), max(-dx, 0)
        moved[place, dy : dy + rows, left : left + columns] = pairs[place, :rows, right : right + columns]
    return moved


@torch.no_grad()
def random_walk(maps: Tensor, affinity: Tensor, *, radius: int, beta: float, log_steps: int) -> Tensor:
    """The maps after 2^log_steps steps.

    Args:
        maps: [N, h, w] scores.
        affinity: [n, h, w] of the pairs of `pixel_affinity.neighbor_offsets(radius)`, from 0 to 1.
        radius: of the pairs.
        beta: power of each affinity.
        log_steps: binary logarithm of the number of steps.

    Returns:
        [N, h, w] float32.
    """
    # Thousands of steps would add up the errors of half precision.
    with torch.autocast(maps.device.type, enabled=False):
        transition = transition_matrix(affinity, radius, beta)
        scores = maps.double().flatten(1).T.contiguous()
        for _ in range(2**log_steps):
            scores = transition @ scores
    return scores.T.reshape(maps.shape).float()
