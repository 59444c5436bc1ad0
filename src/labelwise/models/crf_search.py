"""Tuning the dense CRF on a few labeled images, coarse to fine, as DeepLab does on 100 images of the validation set.

The smoothness kernel stays as it is; the weight of the appearance kernel and its two standard deviations are searched
(Chen et al., arXiv:1412.7062, section 5.1, and arXiv:1606.00915, section 4.1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from labelwise.models.dense_crf import Backend, CRFParameters, dense_crf

Score = Callable[[Iterable[Tensor]], float]
_Cell = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SearchRanges:
    """The values to choose from, in ascending order."""

    appearance_weight: tuple[float, ...]
    appearance_xy: tuple[float, ...]
    appearance_rgb: tuple[float, ...]


RANGES = {
    "deeplab_v1": SearchRanges(
        appearance_weight=tuple(range(5, 11)),
        appearance_xy=tuple(range(50, 101, 10)),
        appearance_rgb=tuple(range(3, 11)),
    ),
    "deeplab_v2": SearchRanges(
        appearance_weight=tuple(range(3, 7)),
        appearance_xy=tuple(range(30, 101, 10)),
        appearance_rgb=tuple(range(3, 7)),
    ),
}
"""The ranges of the papers."""


@dataclass(frozen=True)
class Trial:
    """Parameters that were tried, and their score."""

    parameters: CRFParameters
    score: float


def search_crf(
    images: Sequence[Tensor],
    unaries: Sequence[Tensor],
    score: Score,
    *,
    start: CRFParameters,
    ranges: SearchRanges,
    backend: Backend = "lattice",
    report: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """Try every second value of each range, then the neighbors of the best combination.

    Args:
        images: [3, H, W] uint8 each; sequences may read lazily, since one image is used at a time.
        unaries: [K, H, W] energies of each image.
        score: of the label maps [H, W] int64 of all images, in order; larger is better. For a score over the whole
            set, such as mIoU, it adds the maps up as they come.
        start: gives what is not searched: the smoothness kernel, iterations, normalization.
        ranges: what is searched.
        backend: see `dense_crf`.
        report: called after every trial.

    Returns:
        All trials, the best first; of equal ones, the one that was tried first.

    Raises:
        ValueError: no image, or not as many unaries as images.
    """
    if not images or len(images) != len(unaries):
        raise ValueError(f"{len(images)} images with {len(unaries)} unaries: give at least one, and one for each")
    axes = (ranges.appearance_weight, ranges.appearance_xy, ranges.appearance_rgb)
    trials: dict[_Cell, Trial] = {}

    def label_maps(parameters: CRFParameters) -> Iterator[Tensor]:
        for index in range(len(images)):
            yield dense_crf(images[index], unaries[index], parameters, backend).argmax(dim=0)

    def attempt(cells: Iterable[_Cell]) -> _Cell:
        for cell in cells:
            if cell in trials:
                continue
            weight, xy, rgb = (axis[index] for axis, index in zip(axes, cell, strict=True))
            parameters = replace(start, appearance_weight=weight, appearance_xy=xy, appearance_rgb=rgb)
            trials[cell] = Trial(parameters, score(label_maps(parameters)))
            if report:
                report(trials[cell])
        return max(trials, key=lambda cell: trials[cell].score)

    best = attempt((a, b, c) for a, b, c in product(*(range(0, len(axis), 2) for axis in axes)))
    attempt(_around(best, axes))
    return sorted(trials.values(), key=lambda trial: -trial.score)


def _around(cell: _Cell, axes: Sequence[Sequence[float]]) -> Iterator[_Cell]:
    near = [range(max(index - 1, 0), min(index + 2, len(axis))) for index, axis in zip(cell, axes, strict=True)]
    yield from ((a, b, c) for a, b, c in product(*near))
