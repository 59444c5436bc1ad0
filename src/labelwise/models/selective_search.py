"""Selective Search: where objects may be, from the image alone.

Idea. An image is split into small regions; the two most similar neighbors are merged until one region is left, and
every region met on the way proposes its box. Doing so in several color spaces, with several measures of similarity and
several sizes of the first regions gives proposals that miss few objects.

Citation. Uijlings, van de Sande, Gevers, Smeulders: Selective Search for Object Recognition, IJCV 2013. The first
regions: Felzenszwalb, Huttenlocher: Efficient Graph-Based Image Segmentation, IJCV 2004. Scaled images and small
boxes: Girshick et al.: Rich feature hierarchies for accurate object detection, CVPR 2014 (R-CNN).

Published: VOC 2007 test, mean average best overlap 0.69 with about 360 boxes per image (`single`), 0.80 with 2,150
(`fast`), 0.88 with 10,100 (`quality`).

Departures. Boxes are half-open. Of pairs that are equally similar the one that was listed first is merged; the public
code leaves it open. The similarity is the mean of its terms, as in the public code; the paper's sum merges the same
pairs. R-CNN scales every image to 500 pixels of width; here a small image is at most doubled, because larger copies
show no more and cost more, and a long one ends at 2,000 pixels of height. Boxes below 20 pixels at a width of 500 (4 %
of the width at any other) are dropped, less where the image itself is as flat. The first regions come from our own
loops: those of scikit-image agree, but take almost three times as long and sort the edges anew for every scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from labelwise.models.region_descriptors import (
    ColorSpace,
    RegionDescriptors,
    convert_color,
    describe_regions,
    descriptor_bins,
)
from labelwise.models.selective_search_kernels import ascending, join_pixels, merge_regions, pixel_edges, touching

Mode = Literal["single", "fast", "quality"]
Mix = Literal["CTSF", "TSF", "F", "S"]
Bytes = NDArray[np.uint8]
Integers = NDArray[np.int32]
Edges = tuple[Integers, Integers, NDArray[np.float32]]

SIGMA = 0.8
"""Standard deviation of the smoothing before the first regions, in pixels."""
WIDTH, MOST_HEIGHT, MOST_SCALE = 500, 2000, 2.0
LEAST_SIDE = 20
"""Pixels of a box at `WIDTH`."""


@dataclass(frozen=True)
class Strategies:
    """Which hierarchies a mode makes: all combinations."""

    spaces: tuple[ColorSpace, ...]
    mixes: tuple[Mix, ...]
    scales: tuple[int, ...]
    "the k of the first regions, and their least size in pixels"


MODES: dict[Mode, Strategies] = {
    "single": Strategies(("hsv",), ("CTSF",), (100,)),
    "fast": Strategies(("hsv", "lab"), ("CTSF", "TSF"), (50, 100)),
    "quality": Strategies(("hsv", "lab", "rgi", "hue", "intensity"), ("CTSF", "TSF", "F", "S"), (50, 100, 150, 300)),
}


@dataclass(frozen=True)
class Hierarchy:
    """The regions of one strategy: n first ones, then n - 1 that were made of two earlier ones each."""

    labels: Integers
    "[H, W], the first regions"
    boxes: Integers
    "[2n - 1, 4] half-open"
    parent: Integers
    "[2n - 2], the region that each became a part of; the last region has none"
    similarity: NDArray[np.float64]
    "[n - 1], 0..1, of the two regions at each merge"

    @property
    def priority(self) -> NDArray[np.int64]:
        """[2n - 1]: 1 for the last region that was made, n - 1 for the first, n for those that were there before."""
        first = len(self.similarity) + 1
        return np.minimum(len(self.boxes) - np.arange(len(self.boxes)), first)


@dataclass(frozen=True)
class Regions:
    """Ranked regions of an image, no two of the same box."""

    boxes: NDArray[np.float32]
    "[N, 4] half-open, in pixels of the image, best first"
    size: tuple[int, int]
    "height and width of the image"
    hierarchies: Sequence[Hierarchy]
    "of the image at the size at which it was searched"
    origin: NDArray[np.int64]
    "[N, 2]: number of the hierarchy and of the region in it"

    def __len__(self) -> int:
        """How many regions."""
        return len(self.boxes)

    def masks(self, chosen: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """The pixels of the regions of these ranks. [M] -> [M, H, W].

        Of an image that was searched at a larger size, parts that are thinner than a pixel may be lost.
        """
        origin = self.origin[np.asarray(chosen, np.int64)]
        masks = np.empty((len(origin), *self.size), np.bool_)
        for number in np.unique(origin[:, 0]):
            hierarchy = self.hierarchies[number]
            place, start, stop = leaf_spans(hierarchy.parent)
            places = place[_nearest(hierarchy.labels, self.size)]
            for rank in np.flatnonzero(origin[:, 0] == number):
                region = origin[rank, 1]
                masks[rank] = (places >= start[region]) & (places < stop[region])
        return masks


def selective_search(
    image: Bytes, mode: Mode = "fast", random: np.random.Generator | None = None, *, legacy_texture: bool = False
) -> NDArray[np.float32]:
    """The ranked boxes of an image as it is, of any size.

    Args:
        image: [H, W, 3] RGB.
        mode: `single`, `fast` or `quality`.
        random: mixes large and small regions; by default made from the image, so that it always has the same boxes.
        legacy_texture: as in `region_descriptors`.

    Returns:
        [N, 4] half-open, best first, no two the same.
    """
    hierarchies = region_hierarchies(image, mode, legacy_texture=legacy_texture)
    boxes, _ = _ranked(hierarchies, generator_of(image) if random is None else random)
    return boxes.astype(np.float32)


def selective_search_regions(image: Bytes, mode: Mode = "fast") -> Regions:
    """The ranked regions of an image in the way of R-CNN: scaled, without small ones, and back in the image's pixels.

    Args:
        image: [H, W, 3] RGB.
        mode: `single`, `fast` or `quality`.
    """
    height, width = image.shape[:2]
    scaled = _scaled(image)
    hierarchies = region_hierarchies(scaled, mode)
    boxes, origin = _ranked(hierarchies, generator_of(image))
    large = _large(boxes, scaled.shape[:2])
    ratio = np.array([width / scaled.shape[1], height / scaled.shape[0]] * 2)
    return Regions((boxes[large] * ratio).astype(np.float32), (height, width), hierarchies, origin[large])


def region_hierarchies(image: Bytes, mode: Mode, *, legacy_texture: bool = False) -> list[Hierarchy]:
    """The hierarchies of all strategies of a mode for an image [H, W, 3]."""
    strategies = MODES[mode]
    found = []
    for space in strategies.spaces:
        converted = convert_color(image, space)
        edges = sorted_edges(converted, SIGMA)
        bins = descriptor_bins(converted, legacy_texture=legacy_texture)
        for scale in strategies.scales:
            labels = _joined(edges, image.shape[:2], scale, scale)
            descriptors, pairs = describe_regions(labels, bins), adjacency(labels)
            found += [Hierarchy(labels, *group(descriptors, pairs, labels.size, mix)) for mix in strategies.mixes]
    return found


def felzenszwalb_labels(image: Bytes, scale: float, sigma: float, min_size: int) -> Integers:
    """The regions of Felzenszwalb and Huttenlocher.

    Args:
        image: [H, W, C] of values 0..255.
        scale: the paper's k, in units of the image's values; larger gives larger regions.
        sigma: standard deviation of the smoothing, in pixels; 0 leaves it out.
        min_size: smaller regions are joined to the neighbor that is most like them at one pixel.

    Returns:
        [H, W]: 0..n - 1.
    """
    return _joined(sorted_edges(image, sigma), image.shape[:2], scale, min_size)


def sorted_edges(image: Bytes, sigma: float) -> Edges:
    """The edges between pixels of the smoothed image by rising weight; what all scales have in common.

    Returns:
        the two pixels' numbers, [E] each, and the weights [E].
    """
    smooth = image.astype(np.float32)
    if sigma > 0:
        radius = int(np.ceil(4 * sigma))
        smooth = ndimage.gaussian_filter(smooth, (sigma, sigma, 0), mode="nearest", radius=(radius, radius, 0))
    first, second, weights = pixel_edges(smooth)
    order = ascending(weights.view(np.uint32))
    return first[order], second[order], weights[order]


def adjacency(labels: Integers) -> Integers:
    """The pairs of regions that touch, at corners too. [H, W] -> [m, 2], the smaller number first, each pair once."""
    return np.stack(np.divmod(np.unique(touching(labels)), int(labels.max()) + 1), axis=1).astype(np.int32)


def group(
    descriptors: RegionDescriptors, pairs: Integers, image_size: int, mix: Mix
) -> tuple[Integers, Integers, NDArray[np.float64]]:
    """Merge the most similar pair of touching regions until one is left (algorithm 1).

    Args:
        descriptors: of n regions.
        pairs: [m, 2] regions that touch, each pair once; they connect all regions.
        image_size: pixels.
        mix: which similarities count: C color, T texture, S size, F fill.

    Returns:
        boxes [2n - 1, 4], parents [2n - 2] and similarities [n - 1], as in `Hierarchy`.

    Raises:
        ValueError: the pairs do not connect all regions.
    """
    count = len(descriptors.size)
    chosen = [descriptors.color] * ("C" in mix) + [descriptors.texture] * ("T" in mix)
    histogram = np.concatenate(chosen or [descriptors.color[:, :0]], axis=1)
    sizes, boxes, histograms = (_with_room(values) for values in (descriptors.size, descriptors.box, histogram))
    parent, similarity = np.empty(2 * count - 2, np.int32), np.empty(count - 1)
    made = merge_regions(sizes, boxes, histograms, pairs.copy(), parent, similarity, image_size, "S" in mix, "F" in mix)
    if made < len(boxes):
        raise ValueError("the pairs do not connect all regions")
    return boxes, parent, similarity / len(mix)


def region_mask(labels: Integers, parent: Integers, region: int) -> NDArray[np.bool_]:
    """The pixels of a region of a hierarchy. [H, W] -> [H, W]."""
    place, start, stop = leaf_spans(parent)
    return (place[labels] >= start[region]) & (place[labels] < stop[region])


def leaf_spans(parent: Integers) -> tuple[Integers, Integers, Integers]:
    """An order of the n first regions in which every region of the hierarchy is a run.

    Returns:
        the place of each first region [n], and where the run of each region starts and stops [2n - 1].
    """
    count = len(parent) // 2 + 1
    leaves = np.zeros(2 * count - 1, np.int32)
    leaves[:count] = 1
    for region, above in enumerate(parent.tolist()):
        leaves[above] += leaves[region]
    start = np.zeros_like(leaves)
    taken = np.zeros_like(leaves)
    for region in range(len(parent) - 1, -1, -1):
        above = parent[region]
        start[region] = start[above] + taken[above]
        taken[above] += leaves[region]
    return start[:count], start, start + leaves


def generator_of(image: Bytes) -> np.random.Generator:
    """Random numbers that depend on the image alone."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes() + str(image.shape).encode(), digest_size=8)
    return np.random.default_rng(int.from_bytes(digest.digest(), "little"))


def _ranked(hierarchies: Sequence[Hierarchy], random: np.random.Generator) -> tuple[Integers, NDArray[np.int64]]:
    """The boxes of all hierarchies by rank, each once, and which hierarchy and region each comes from."""
    boxes = np.concatenate([hierarchy.boxes for hierarchy in hierarchies])
    origin = np.concatenate(
        [
            np.stack([np.full(len(one.boxes), number), np.arange(len(one.boxes))], axis=1)
            for number, one in enumerate(hierarchies)
        ]
    )
    priority = np.concatenate([hierarchy.priority for hierarchy in hierarchies])
    order = np.argsort(priority * random.random(len(priority)), kind="stable")
    _, first = np.unique(boxes[order], axis=0, return_index=True)
    kept = order[np.sort(first)]
    return boxes[kept], origin[kept]


def _joined(edges: Edges, size: tuple[int, ...], scale: float, min_size: int) -> Integers:
    return join_pixels(*edges, size[0] * size[1], float(scale), min_size).reshape(size)


def _with_room(values: NDArray) -> NDArray:
    """Rows for n regions and for the n - 1 that will be made of them."""
    return np.concatenate([values, np.empty_like(values[1:])])


def _scaled(image: Bytes) -> Bytes:
    height, width = image.shape[:2]
    scale = min(WIDTH / width, MOST_HEIGHT / height, MOST_SCALE)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _large(boxes: Integers, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which boxes of an image of this size are large enough; that of the whole image always is."""
    least = min(LEAST_SIDE * size[1] / WIDTH, *size)
    return np.all(boxes[:, 2:] - boxes[:, :2] >= least, axis=1)


def _nearest(labels: Integers, size: tuple[int, int]) -> Integers:
    """A label map at another size, by the nearest pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]
