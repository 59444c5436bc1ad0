"""Active learning of pixels: how unsure a network is of each, and which of them to ask for next.

After PixelPick (Shin, Xie, Albanie: All You Need Are a Few Pixels, ICCV 2021 workshop ILDAV), section 3. All that is
random comes from the generator that is given, but the votes of a committee, which draw from torch's global one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Strategy = Literal["margin", "entropy", "least_confidence", "random"]
Choice = Literal["share_then_random", "best", "random_then_best"]

LARGEST: dict[Strategy, bool] = {"margin": False, "entropy": True, "least_confidence": True, "random": True}
"""Whether the pixels of the largest score are those that the network is least sure of."""
SHARE = 0.05
"""The share of an image's pixels from which the paper picks."""
VOTES = 20
"""The stochastic passes of the paper's committee."""
DROPOUT = 0.2
"""The share that its members drop."""


def uncertainty(probabilities: Tensor, strategy: Strategy) -> Tensor:
    """The score of each pixel; `LARGEST` says which end of it is the unsure one.

    Margin p(1) - p(2) and least confidence 1 - p(1) of the highest probabilities p(1) >= p(2); entropy -sum p log p in
    nats, in which a probability of 0 counts nothing. All pixels are alike at random, and of equals `select_pixels`
    draws.

    Args:
        probabilities: [B, K, H, W] float, each pixel's add up to 1; K at least 2.
        strategy: which score.

    Returns:
        [B, H, W] of the same dtype.
    """
    if strategy == "random":
        return torch.zeros_like(probabilities[:, 0])
    if strategy == "entropy":
        return torch.special.entr(probabilities).sum(1)
    if strategy == "least_confidence":
        return 1 - probabilities.amax(1)
    first, second = probabilities[:, 0], torch.full_like(probabilities[:, 0], -torch.inf)
    # Ten times as fast as `topk` over so few values, which lie far apart in memory.
    for other in probabilities.unbind(1)[1:]:
        first, second = torch.maximum(first, other), torch.maximum(second, torch.minimum(first, other))
    return first - second


def select_pixels(
    score: Tensor,
    count: int,
    *,
    largest: bool,
    share: float = SHARE,
    exclude: Tensor | None = None,
    generator: torch.Generator | None = None,
    mode: Choice = "share_then_random",
) -> Tensor:
    """Choose pixels of one image.

    Of n pixels the candidates are int(share * n), at least one. Excluded ones never are among them, so there may be
    fewer; then, and where more pixels are asked for than there are candidates, all candidates are taken.

    Args:
        score: [H, W] float; pixels of equal score come in random order.
        count: how many pixels to choose.
        largest: whether a large score is wanted, or a small one; `LARGEST` has it for each strategy.
        share: the candidates' share of all pixels of the image, labelled and void ones counted in.
        exclude: [H, W] bool, pixels that must not be chosen; None excludes none.
        generator: of the CPU, from which all randomness comes; None is torch's global one.
        mode: "share_then_random" draws from the best candidates (the paper's), "best" takes the best of all,
            "random_then_best" the best of candidates that are drawn from all.

    Returns:
        [n, 2] int64 (x, y) on the CPU, none twice, in the order chosen; n is `count` unless there are fewer candidates.

    Raises:
        ValueError: a score is not a number, the share is not above 0 and at most 1, or `count` is below 0.
    """
    if count < 0 or not 0 < share <= 1:
        raise ValueError(f"cannot choose {count} pixels from a share of {share}")
    scores = score.detach().float().flatten().cpu()
    if scores.isnan().any():
        raise ValueError("a score is not a number")
    allowed = torch.arange(len(scores)) if exclude is None else (~exclude).flatten().cpu().nonzero().squeeze(1)
    candidates = max(1, int(share * len(scores)))
    if mode == "share_then_random":
        pool = _best_set(scores, allowed, candidates, largest, generator)
        chosen = pool[torch.randperm(len(pool), generator=generator)[:count]]
    else:
        # In random order, so that ties are broken at random.
        allowed = allowed[torch.randperm(len(allowed), generator=generator)]
        chosen = _best(scores, allowed if mode == "best" else allowed[:candidates], count, largest)
    width = score.shape[1]
    return torch.stack([chosen % width, chosen // width], dim=1)


def _best(scores: Tensor, pixels: Tensor, count: int, largest: bool) -> Tensor:
    """Those of the pixels that have the best scores, the best first."""
    return pixels[scores[pixels].topk(min(count, len(pixels)), largest=largest).indices]


def _best_set(scores: Tensor, pixels: Tensor, count: int, largest: bool, generator: torch.Generator | None) -> Tensor:
    """The same in no order, several times as fast where they are many; of equals some are drawn."""
    if count >= len(pixels):
        return pixels
    values = scores[pixels] if largest else -scores[pixels]
    least = values.kthvalue(len(values) - count + 1).values
    better = (values > least).nonzero().squeeze(1)
    equal = (values == least).nonzero().squeeze(1)
    drawn = equal[torch.randperm(len(equal), generator=generator)[: count - len(better)]]
    return pixels[torch.cat([better, drawn])]


@contextmanager
def monte_carlo_dropout(network: nn.Module, share: float = DROPOUT) -> Iterator[None]:
    """Make a network's dropout act in evaluation, so that each pass is the vote of another member of a committee.

    Inside, everything else is in evaluation; afterwards all is as it was.

    Args:
        network: with at least one dropout.
        share: of the values that every dropout drops.

    Raises:
        ValueError: the network has no dropout: all votes would be the same.
    """
    modes = {module: module.training for module in network.modules()}
    dropouts = [module for module in modes if isinstance(module, nn.Dropout | nn.Dropout2d)]
    if not dropouts:
        raise ValueError("the network has no dropout")
    shares = [dropout.p for dropout in dropouts]
    network.eval()
    for dropout in dropouts:
        dropout.p = share
        dropout.train()
    try:
        yield
    finally:
        for dropout, before in zip(dropouts, shares, strict=True):
            dropout.p = before
        for module, training in modes.items():
            module.training = training


class Vote(NamedTuple):
    """What a network thinks of the pixels of some images.

    Attributes:
        score: [B, H, W] float32, as of `uncertainty`; of a committee the mean over its members.
        probabilities: [B, K, H, W] float32, likewise.
    """

    score: Tensor
    probabilities: Tensor


@torch.no_grad()
def vote(
    predict: Callable[[Tensor], Tensor], image: Tensor, strategy: Strategy, *, network: nn.Module, votes: int = 0
) -> Vote:
    """Score the pixels of images by one pass, or by a committee: one network whose dropout acts (soft vote).

    Args:
        predict: from the images to logits [B, K, H, W]; the network in evaluation.
        image: [B, 3, H, W].
        strategy: the score.
        network: whose dropout makes the members of the committee.
        votes: the members, 20 in the paper; 0 is one pass without dropout.

    Raises:
        ValueError: votes are wanted of a network without dropout.
    """
    if not votes:
        probabilities = predict(image).float().softmax(1)
        return Vote(uncertainty(probabilities, strategy), probabilities)
    with monte_carlo_dropout(network):
        members = (predict(image).float().softmax(1) for _ in range(votes))
        first = next(members)
        score, mean = uncertainty(first, strategy), first
        for probabilities in members:
            score = score + uncertainty(probabilities, strategy)
            mean = mean + probabilities
    return Vote(score / votes, mean / votes)


def with_errors(labels: Tensor, error_rate: float, classes: int, generator: torch.Generator | None = None) -> Tensor:
    """What an annotator who errs answers: each label is replaced with this probability by any other class.

    Args:
        labels: [n] int64 class numbers.
        error_rate: between 0 and 1.
        classes: how many classes there are; with a single one nothing can be replaced.
        generator: of the CPU; None is torch's global one.

    Returns:
        [n] int64.
    """
    # Both are drawn whatever the rate, so that a lower rate errs at a part of the same pixels.
    errs = torch.rand(len(labels), generator=generator) < error_rate
    shift = torch.randint(1, max(2, classes), (len(labels),), generator=generator)
    return torch.where(errs, (labels + shift) % classes, labels)


def spatial_coverage(points: Tensor) -> float:
    """The mean Euclidean distance in pixels between all pairs of points of one image.

    Args:
        points: [n, 2] (x, y).

    Returns:
        Not a number for fewer than two points.
    """
    return float(torch.pdist(points.double()).mean()) if len(points) > 1 else float("nan")


class Summary(NamedTuple):
    """What has been picked in a round.

    Attributes:
        histogram: labels of each class.
        entropy: mean entropy of the picked pixels in nats; None without predictions.
        distinct_classes: mean number of different classes among the labels of an image.
        coverage: mean `spatial_coverage` of the images with two points or more, in pixels; None if there are none.
    """

    histogram: tuple[int, ...]
    entropy: float | None
    distinct_classes: float
    coverage: float | None


class QueryStatistics:
    """Collects what has been picked, image by image."""

    def __init__(self, classes: int) -> None:
        """Start with nothing.

        Args:
            classes: how many classes there are.
        """
        self._histogram = torch.zeros(classes, dtype=torch.int64)
        self._entropies: list[Tensor] = []
        self._distinct: list[int] = []
        self._coverages: list[float] = []

    def update(self, points: Tensor, labels: Tensor, probabilities: Tensor | None = None) -> None:
        """Add the pixels picked in one image.

        Args:
            points: [n, 2] int64 (x, y).
            labels: [n] int64 class numbers.
            probabilities: [K, H, W] with which they were picked; None without a network.
        """
        self._histogram += labels.cpu().bincount(minlength=len(self._histogram))
        self._distinct.append(len(labels.unique()))
        if len(points) > 1:
            self._coverages.append(spatial_coverage(points))
        if probabilities is not None:
            picked = probabilities[:, points[:, 1], points[:, 0]]
            self._entropies.append(torch.special.entr(picked).sum(0).double().cpu())

    def compute(self) -> Summary:
        """The figures over all images so far."""
        entropies = torch.cat([*self._entropies, torch.empty(0, dtype=torch.float64)])
        return Summary(
            tuple(self._histogram.tolist()),
            float(entropies.mean()) if len(entropies) else None,
            sum(self._distinct) / max(1, len(self._distinct)),
            sum(self._coverages) / len(self._coverages) if self._coverages else None,
        )
