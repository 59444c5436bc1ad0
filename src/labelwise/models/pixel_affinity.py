"""Affinities of nearby pixels: which pairs there are, what labels say of them, and what a network learns from that.

AffinityNet (PSA; Ahn and Kwak, CVPR 2018) compares two pixels by their features; IRNet (Ahn, Cho and Kwak, CVPR 2019)
by the strongest class boundary on the line between them. Every pair of pixels with a distance below the radius is
taken once: its second pixel lies below the first, or to the right in the same row.

Maps of pairs are [..., n, h, w]: one plane for each of the n offsets, with the pair's first pixel at its place. A pair
whose second pixel lies outside the map has an affinity of 0 and no label.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = 255
EPSILON = 1e-5
"""Keeps logarithms and means over no pair at all finite."""


class PairLabels(NamedTuple):
    """What a label map says of each pair; bool maps of pairs [B, n, h, w].

    Attributes:
        background: both pixels are background.
        foreground: both are of the same class.
        negative: the two are of different classes, one of which may be the background.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


@cache
def _offsets(radius: int) -> tuple[tuple[int, int], ...]:
    return tuple(
        (dy, dx)
        for dy in range(radius)
        for dx in range(-radius + 1, radius)
        if (dy > 0 or dx > 0) and dy * dy + dx * dx < radius * radius
    )


def neighbor_offsets(radius: int) -> Tensor:
    """Where the second pixel of a pair lies, as seen from the first.

    Args:
        radius: the least distance in pixels at which there are no pairs any more.

    Returns:
        [n, 2] int64, (dy, dx) with dy > 0, or dy = 0 and dx > 0; 34 for a radius of 5 and 152 for 10.
    """
    return torch.tensor(_offsets(radius), dtype=torch.int64).reshape(-1, 2)


@cache
def line_pixels(dy: int, dx: int) -> tuple[tuple[int, int], ...]:
    """The pixels of the discrete line to an offset, both ends included (IRNet).

    Those (y, x) of the rectangle between the ends whose distance from the line is below 1.
    """
    rows, columns = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    length = dy * dy + dx * dx
    return tuple((y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < length)


def _padded(maps: Tensor, radius: int, outside: float) -> Tensor:
    """[..., h, w] with `outside` where pairs reach beyond it: on the left, on the right and below."""
    reach = radius - 1
    return functional.pad(maps, (reach, reach, 0, reach), value=outside)


def _shifted(padded: Tensor, radius: int, dy: int, dx: int) -> Tensor:
    """What lies at an offset from each pixel: a padded map -> [..., h, w], without a copy."""
    reach = radius - 1
    height, width = padded.shape[-2] - reach, padded.shape[-1] - 2 * reach
    return padded[..., dy : dy + height, reach + dx : reach + dx + width]


def partners(maps: Tensor, radius: int, outside: float) -> Tensor:
    """The value at the second pixel of each pair.

    Args:
        maps: [..., h, w].
        radius: of the pairs.
        outside: the value beyond the map.

    Returns:
        [..., n, h, w].
    """
    padded = _padded(maps, radius, outside)
    return torch.stack([_shifted(padded, radius, dy, dx) for dy, dx in _offsets(radius)], dim=-3)


def affinity_from_boundary(boundary: Tensor, radius: int) -> Tensor:
    """IRNet: 1 - the greatest boundary on the line between the pixels of each pair, their own included.

    Args:
        boundary: [..., h, w] float from 0 to 1.
        radius: of the pairs.

    Returns:
        [..., n, h, w] from 0 to 1; its gradient goes to the one pixel that decides.
    """
    padded = _padded(boundary, radius, 1.0)
    # The search keeps no graph: a slice of the whole map for every pixel of every line would be far more than needed.
    places = torch.stack([_greatest(padded.detach(), radius, dy, dx) for dy, dx in _offsets(radius)], dim=-3)
    deciding = padded.flatten(-2).gather(-1, places.flatten(-3))
    return 1 - deciding.unflatten(-1, places.shape[-3:])


def _greatest(padded: Tensor, radius: int, dy: int, dx: int) -> Tensor:
    """Where on each pixel's line the greatest value lies, as a place in the flattened padded map: [..., h, w] int64."""
    line = line_pixels(dy, dx)
    number = torch.stack([_shifted(padded, radius, y, x) for y, x in line]).argmax(dim=0)
    steps = torch.tensor([y * padded.shape[-1] + x for y, x in line], device=padded.device)
    places = torch.arange(padded.shape[-2] * padded.shape[-1], device=padded.device).reshape(padded.shape[-2:])
    return steps[number] + _shifted(places, radius, 0, 0)


def affinity_from_features(features: Tensor, radius: int) -> Tensor:
    """PSA: exp(-mean over the channels of |f_i - f_j|).

    Args:
        features: [B, C, h, w].
        radius: of the pairs.

    Returns:
        [B, n, h, w] from 0 to 1.
    """
    inside = partners(torch.ones_like(features[0, 0]), radius, 0.0)
    distances: Tensor = _MeanDistance.apply(features, radius)
    return distances.neg().exp() * inside


class _MeanDistance(torch.autograd.Function):
    """Mean absolute difference of the pairs' features, [B, C, h, w] -> [B, n, h, w], one offset at a time.

    The gradient is written out, since autograd would keep the differences of every offset, [B, C, n, h, w].
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(features)
        ctx.radius = radius
        padded = _padded(features, radius, 0.0)
        means = [(_shifted(padded, radius, dy, dx) - features).abs_().mean(1) for dy, dx in _offsets(radius)]
        return torch.stack(means, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (features,), radius = ctx.saved_tensors, ctx.radius
        padded = _padded(features, radius, 0.0)
        at_second = torch.zeros_like(padded)
        at_first = torch.zeros_like(features)
        for place, (dy, dx) in enumerate(_offsets(radius)):
            sign = (_shifted(padded, radius, dy, dx) - features).sign_()
            part = sign.mul_(gradients[0][:, place, None] / features.shape[1])
            _shifted(at_second, radius, dy, dx).add_(part)
            at_first -= part
        return at_first + _shifted(at_second, radius, 0, 0), None


def affinity_labels(labels: Tensor, radius: int, background: int = 0) -> PairLabels:
    """What a label map says of the pairs; of a pair with an unsure pixel nothing.

    Args:
        labels: [B, h, w] uint8 or int64 class numbers, 255 where unsure.
        radius: of the pairs.
        background: its class number.
    """
    first = labels.unsqueeze(-3)
    second = partners(labels, radius, IGNORE_INDEX)
    sure = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    same = sure & (first == second)
    empty = first == background
    return PairLabels(background=same & empty, foreground=same & ~empty, negative=sure & (first != second))


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean over the chosen pairs, a scalar; 0 of none."""
    return (values * chosen).sum() / (chosen.sum() + EPSILON)


def affinity_losses(affinity: Tensor, pairs: PairLabels) -> dict[str, Tensor]:
    """The losses of PSA and IRNet: -log a of pairs of one class, -log(1 - a) of pairs of two, a half for each kind.

    Args:
        affinity: [B, n, h, w] from 0 to 1.
        pairs: their labels.

    Returns:
        `background` and `foreground` with a weight of 1/4 each, `negative` with 1/2.
    """
    affinity = affinity.float()
    alike, apart = -(affinity + EPSILON).log(), -(1 + EPSILON - affinity).log()
    return {
        "background": mean_of(alike, pairs.background) / 4,
        "foreground": mean_of(alike, pairs.foreground) / 4,
        "negative": mean_of(apart, pairs.negative) / 2,
    }


def displacement_losses(displacement: Tensor, pairs: PairLabels, radius: int) -> dict[str, Tensor]:
    """IRNet: pixels of one object point to the same centroid, so that d_i - d_j is the way from i to j.

    Args:
        displacement: [B, 2, h, w] float, (dy, dx) to the centroid, in pixels of the map.
        pairs: labels of the pairs.
        radius: of the pairs.

    Returns:
        `displacement_foreground`, the mean |d_i - d_j - (j - i)|_1 / 2, and `displacement_background`, the mean
        |d_i - d_j|_1 / 2, with a weight of 1/2 each.
    """
    displacement = displacement.float()
    difference = displacement.unsqueeze(2) - partners(displacement, radius, 0.0)
    way = neighbor_offsets(radius).to(difference).T[:, :, None, None]
    return {
        "displacement_foreground": mean_of((difference - way).abs().mean(1), pairs.foreground) / 2,
        "displacement_background": mean_of(difference.abs().mean(1), pairs.background) / 2,
    }
