"""STEGO's head: features that keep the correspondences of a self-supervised network and little else.

Hamilton, Zhang, Hariharan, Snavely, Freeman: Unsupervised Semantic Segmentation by Distilling Feature Correspondences,
ICLR 2022. Two places whose backbone features agree more than usual are drawn together in the head's space, others are
pushed to right angles. The backbone stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class StegoHead(nn.Module):
    """A linear map beside a small network, both of 1x1 convolutions."""

    def __init__(self, channels: int, dimensions: int = 70) -> None:
        """Build it with random weights.

        Args:
            channels: of the backbone's features.
            dimensions: of the head's.
        """
        super().__init__()
        self.linear = nn.Conv2d(channels, dimensions, 1)
        self.nonlinear = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, dimensions, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, d, h, w]."""
        return self.linear(features) + self.nonlinear(features)


@dataclass(frozen=True)
class Pairing:
    """How one kind of image pairs counts: weight of its loss, and what features must exceed to attract."""

    weight: float
    shift: float


SAME = Pairing(0.67, 0.13)
NEIGHBOR = Pairing(0.25, 0.07)
RANDOM = Pairing(0.63, 0.61)
"""The middles of the ranges that the paper uses."""
POINTS = 11
"""Random points along each side of an image's sample, 11 x 11 in all."""
NEIGHBORS = 7
RANDOM_PAIRS = 5


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of all pairs of places: [B, D, p], [B, D, q] -> [B, p, q]."""
    return torch.einsum("bdp,bdq->bpq", functional.normalize(first, dim=1), functional.normalize(second, dim=1))


def correspondence_loss(features: Tensor, codes: Tensor, shift: float) -> Tensor:
    """- mean(max(Cc, 0) (Fc - shift)), with Fc centred over the second image's places (equations 2 to 4).

    After the centring Fc gets its mean over everything back.

    Args:
        features: [B, p, q] cosines of backbone features, without gradients.
        codes: [B, p, q] cosines of the head's features at the same places.
        shift: below it, places are pushed apart.
    """
    centered = features - features.mean(2, keepdim=True)
    centered = centered - centered.mean() + features.mean()
    return -(codes.clamp(min=0) * (centered - shift)).mean()


def sample_points(features: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples: [B, D, h, w] at [B, n, 2] in -1..1 -> [B, D, n]."""
    return functional.grid_sample(features, places[:, None], padding_mode="border", align_corners=True)[:, :, 0]


def pair_loss(
    head: nn.Module, first: Tensor, second: Tensor, pairing: Pairing, generator: torch.Generator, dropout: float = 0.1
) -> Tensor:
    """The weighted loss of B pairs of images, each at its own random places.

    Args:
        head: [B, D, h, w] -> [B, d, h, w].
        first: [B, D, h, w] backbone features.
        second: of the partners.
        pairing: how this kind of pairs counts.
        generator: of the places and the dropout.
        dropout: share of backbone channels that the head does not see.
    """
    sampled: list[tuple[Tensor, Tensor]] = []
    for features in (first, second):
        places = 2 * torch.rand(len(features), POINTS**2, 2, generator=generator) - 1
        seen = (torch.rand(features.shape[:2], generator=generator) >= dropout) / (1 - dropout)
        codes = head(features * seen.to(features)[:, :, None, None])
        sampled.append((sample_points(features, places.to(features)), sample_points(codes, places.to(features))))
    (own, own_codes), (other, other_codes) = sampled
    loss = correspondence_loss(correlation(own, other), correlation(own_codes, other_codes), pairing.shift)
    return pairing.weight * loss


def train_head(
    head: nn.Module,
    features: Callable[[Sequence[int]], Tensor],
    images: int,
    *,
    steps: int,
    batch: int = 16,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> None:
    """Train a head on pairs of an image with itself, with a near neighbour and with others.

    Args:
        head: is changed in place; its initial weights are its own.
        features: backbone features of images by number, [B, D, h, w], all of one size.
        images: how many there are.
        steps: of Adam.
        batch: images per step.
        learning_rate: of Adam.
        seed: of everything random but the initial weights.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, images)
    near = nearest_images(torch.cat([features([number]).mean((2, 3)) for number in range(images)]))
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    head.train()
    for _ in range(steps):
        chosen = torch.randperm(images, generator=generator)[:batch]
        neighbors = near[chosen, torch.randint(near.shape[1], (batch,), generator=generator)]
        first, second = features(chosen.tolist()), features(neighbors.tolist())
        loss = pair_loss(head, first, first, SAME, generator) + pair_loss(head, first, second, NEIGHBOR, generator)
        for _ in range(RANDOM_PAIRS):
            other = first[(torch.arange(batch) + torch.randint(1, max(2, batch), (1,), generator=generator)) % batch]
            loss = loss + pair_loss(head, first, other, RANDOM, generator) / RANDOM_PAIRS
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()


def nearest_images(descriptions: Tensor, count: int = NEIGHBORS) -> Tensor:
    """The numbers of the images most like each one, without itself where there are others.

    Args:
        descriptions: [N, D], one vector per image.
        count: so many.

    Returns:
        [N, n] int64 with n = min(count, N - 1), at least 1.
    """
    unit = functional.normalize(descriptions, dim=1)
    found = []
    # In parts: the whole matrix of a large set does not fit into memory.
    for start in range(0, len(unit), 1024):
        similarity = unit[start : start + 1024] @ unit.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -2
        found.append(similarity.topk(max(1, min(count, len(unit) - 1)), dim=1).indices.cpu())
    return torch.cat(found)
