"""The compiled loops of Selective Search (`labelwise.models.selective_search`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelwise.compiled import compiled

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]

_DIGIT = 11
"""Bits by which edges are sorted at a time: three rounds for a float32."""
_DEAD = -1.0
"""The similarity of an edge whose ends have become one region, or that another edge stands for."""


@compiled
def pixel_edges(image: Floats) -> tuple[Integers, Integers, Floats]:
    """The edges of the 8-neighbourhood of an image [H, W, C]: both pixels, and the Euclidean distance of their colours.

    Pixel by pixel: right, down, down right, up right.
    """
    height, width, channels = image.shape
    most = 4 * height * width
    first = np.empty(most, np.int32)
    second = np.empty(most, np.int32)
    weights = np.empty(most, np.float32)
    count = 0
    for row in range(height):
        for column in range(width):
            for direction in range(4):
                other_row = row + (0, 1, 1, -1)[direction]
                other_column = column + (1, 0, 1, 1)[direction]
                if 0 <= other_row < height and other_column < width:
                    total = np.float32(0)
                    for channel in range(channels):
                        difference = image[row, column, channel] - image[other_row, other_column, channel]
                        total += difference * difference
                    first[count] = row * width + column
                    second[count] = other_row * width + other_column
                    weights[count] = np.sqrt(total)
                    count += 1
    return first[:count], second[:count], weights[:count]


@compiled
def ascending(keys: Words) -> Integers:
    """The stable ascending order of numbers, by their digits; the bits of float32 numbers >= 0 have the same order."""
    count = len(keys)
    order = np.arange(count).astype(np.int32)
    other = np.empty(count, np.int32)
    mask = np.uint32((1 << _DIGIT) - 1)
    for shift in range(0, 32, _DIGIT):
        places = np.zeros((1 << _DIGIT) + 1, np.int64)
        for key in keys:
            places[((key >> np.uint32(shift)) & mask) + 1] += 1
        for digit in range(1, len(places)):
            places[digit] += places[digit - 1]
        for index in order:
            place = (keys[index] >> np.uint32(shift)) & mask
            other[places[place]] = index
            places[place] += 1
        order, other = other, order
    return order


@compiled
def join_pixels(
    first: Integers, second: Integers, weights: Floats, pixels: int, scale: float, min_size: int
) -> Integers:
    """The regions of a graph whose edges come by rising weight (Felzenszwalb and Huttenlocher, algorithm 1).

    Returns:
        [pixels]: numbers from 0, in the order in which regions are first met.
    """
    roots = np.arange(pixels).astype(np.int32)
    sizes = np.ones(pixels, np.int32)
    thresholds = np.full(pixels, np.float64(scale))
    for edge in range(len(weights)):
        one, two = _root(roots, first[edge]), _root(roots, second[edge])
        weight = weights[edge]
        if one != two and weight <= thresholds[one] and weight <= thresholds[two]:
            root = _join(roots, sizes, one, two)
            thresholds[root] = weight + scale / sizes[root]
    for edge in range(len(weights)):
        one, two = _root(roots, first[edge]), _root(roots, second[edge])
        if one != two and min(sizes[one], sizes[two]) < min_size:
            _join(roots, sizes, one, two)
    return _numbered(roots)


@compiled
def _root(roots: Integers, pixel: int) -> int:
    while roots[pixel] != pixel:
        roots[pixel] = roots[roots[pixel]]
        pixel = roots[pixel]
    return pixel


@compiled
def _join(roots: Integers, sizes: Integers, one: int, two: int) -> int:
    """Make one component of two roots; the root of it."""
    if sizes[one] < sizes[two]:
        one, two = two, one
    roots[two] = one
    sizes[one] += sizes[two]
    return one


@compiled
def _numbered(roots: Integers) -> Integers:
    numbers = np.full(len(roots), -1, np.int32)
    labels = np.empty(len(roots), np.int32)
    count = 0
    for pixel in range(len(roots)):
        root = _root(roots, pixel)
        if numbers[root] < 0:
            numbers[root] = count
            count += 1
        labels[pixel] = numbers[root]
    return labels


@compiled
def touching(labels: Integers) -> NDArray[np.int64]:
    """`smaller * count + larger` of the labels of neighbouring pixels, as often as they meet; 8-neighbourhood."""
    height, width = labels.shape
    count = labels.max() + 1
    found = np.empty(4 * height * width, np.int64)
    places = 0
    for row in range(height):
        for column in range(width):
            one = labels[row, column]
            for direction in range(4):
                other_row = row + (0, 1, 1, -1)[direction]
                other_column = column + (1, 0, 1, 1)[direction]
                if 0 <= other_row < height and other_column < width:
                    two = labels[other_row, other_column]
                    if one != two:
                        found[places] = np.int64(min(one, two)) * count + max(one, two)
                        places += 1
    return found[:places]


@compiled
def count_regions(labels: Integers, bins: Bytes, regions: int, ends: int) -> tuple[Integers, Integers, Integers]:
    """Sizes [n], half-open boxes [n, 4] and counts [n, ends] of the bins of each region's pixels.

    Args:
        labels: [H, W].
        bins: [H, W, M], the bin of each pixel in each of M histograms of the same length, one after the other.
        regions: n.
        ends: the number of bins of all histograms together.
    """
    height, width, histograms = bins.shape
    length = ends // histograms
    sizes = np.zeros(regions, np.int32)
    boxes = np.empty((regions, 4), np.int32)
    boxes[:, 0], boxes[:, 1] = width, height
    boxes[:, 2:] = 0
    counts = np.zeros((regions, ends), np.int32)
    for row in range(height):
        for column in range(width):
            region = labels[row, column]
            sizes[region] += 1
            boxes[region, 0] = min(boxes[region, 0], column)
            boxes[region, 1] = min(boxes[region, 1], row)
            boxes[region, 2] = max(boxes[region, 2], column + 1)
            boxes[region, 3] = max(boxes[region, 3], row + 1)
            for histogram in range(histograms):
                counts[region, histogram * length + bins[row, column, histogram]] += 1
    return sizes, boxes, counts


@compiled
def merge_regions(
    sizes: Integers,
    boxes: Integers,
    histograms: Floats,
    ends: Integers,
    parents: Integers,
    similarity: Doubles,
    image_size: int,
    by_size: bool,
    by_fill: bool,
) -> int:
    """Merge the most similar touching pair of regions until one is left.

    Args:
        sizes: [2n - 1] pixels; the first n are given, the others are filled in.
        boxes: [2n - 1, 4] half-open, as `sizes`.
        histograms: [2n - 1, D], as `sizes`; their intersections are added to the similarity; D may be 0.
        ends: [m, 2] touching regions, each pair once; changed.
        parents: [2n - 2], filled in.
        similarity: [n - 1] of the two regions at each merge, the sum of its terms; filled in.
        image_size: pixels of the image.
        by_size: add that small regions merge early.
        by_fill: add that regions that fit into each other merge early.

    Returns:
        the number of regions in the end: below 2n - 1 where the pairs do not connect all regions.
    """
    count, edges = len(similarity) + 1, len(ends)
    most = len(sizes)
    # An edge keeps its number while its ends become parts of others; its key is the similarity, or _DEAD.
    keys = np.empty(edges, np.float64)
    # The edges of a region are a chain of numbers 2 * edge + side; dead ones stay in it until they are met.
    heads = _filled(most)
    following = np.empty(2 * edges, np.int32)
    for edge in range(edges):
        keys[edge] = _similarity(sizes, boxes, histograms, ends[edge, 0], ends[edge, 1], image_size, by_size, by_fill)
        for side in range(2):
            following[2 * edge + side] = heads[ends[edge, side]]
            heads[ends[edge, side]] = 2 * edge + side
    heap = np.empty(edges, np.int32)
    places = np.empty(edges, np.int32)
    for edge in range(edges):
        heap[edge] = places[edge] = edge
    for edge in range(edges - 1, -1, -1):
        _sink(heap, places, keys, edge)
    seen = _filled(most)
    made = count
    while made < most and edges > 0 and keys[heap[0]] != _DEAD:
        one, two = ends[heap[0], 0], ends[heap[0], 1]
        parents[one] = parents[two] = made
        similarity[made - count] = keys[heap[0]]
        _merge(sizes, boxes, histograms, one, two, made)
        for region in (one, two):
            half = heads[region]
            while half >= 0:
                after, edge, side = following[half], half >> 1, half & 1
                other = ends[edge, 1 - side]
                if keys[edge] != _DEAD:
                    if other in (one, two) or seen[other] == made:
                        keys[edge] = _DEAD
                    else:
                        seen[other] = made
                        ends[edge, side] = made
                        keys[edge] = _similarity(sizes, boxes, histograms, other, made, image_size, by_size, by_fill)
                        following[half] = heads[made]
                        heads[made] = half
                    _rise(heap, places, keys, edge)
                    _sink(heap, places, keys, edge)
                half = after
        made += 1
    return made


@compiled
def _filled(count: int) -> Integers:
    """-1 for none."""
    values = np.empty(count, np.int32)
    for index in range(count):
        values[index] = -1
    return values


@compiled
def _before(keys: Doubles, one: int, two: int) -> bool:
    """Whether an edge merges before another; of the same similarity, the first."""
    return keys[one] > keys[two] or (keys[one] == keys[two] and one < two)


@compiled
def _rise(heap: Integers, places: Integers, keys: Doubles, edge: int) -> None:
    """Move an edge up the heap to where it belongs."""
    place = places[edge]
    while place > 0 and _before(keys, edge, heap[(place - 1) >> 1]):
        heap[place] = heap[(place - 1) >> 1]
        places[heap[place]] = place
        place = (place - 1) >> 1
    heap[place] = edge
    places[edge] = place


@compiled
def _sink(heap: Integers, places: Integers, keys: Doubles, edge: int) -> None:
    """Move an edge down the heap to where it belongs."""
    place = places[edge]
    while 2 * place + 1 < len(heap):
        child = 2 * place + 1
        if child + 1 < len(heap) and _before(keys, heap[child + 1], heap[child]):
            child += 1
        if not _before(keys, heap[child], edge):
            break
        heap[place] = heap[child]
        places[heap[place]] = place
        place = child
    heap[place] = edge
    places[edge] = place


@compiled
def _merge(sizes: Integers, boxes: Integers, histograms: Floats, one: int, two: int, made: int) -> None:
    """Describe the union of two regions by their descriptors."""
    sizes[made] = sizes[one] + sizes[two]
    share = np.float32(sizes[one] / sizes[made])
    rest = np.float32(sizes[two] / sizes[made])
    for bin in range(histograms.shape[1]):
        histograms[made, bin] = share * histograms[one, bin] + rest * histograms[two, bin]
    for side in range(2):
        boxes[made, side] = min(boxes[one, side], boxes[two, side])
        boxes[made, side + 2] = max(boxes[one, side + 2], boxes[two, side + 2])


@compiled
def _similarity(
    sizes: Integers,
    boxes: Integers,
    histograms: Floats,
    one: int,
    two: int,
    image_size: int,
    by_size: bool,
    by_fill: bool,
) -> float:
    total = 0.0
    for bin in range(histograms.shape[1]):
        total += min(histograms[one, bin], histograms[two, bin])
    both = np.int64(sizes[one]) + sizes[two]
    if by_size:
        total += 1 - both / image_size
    if by_fill:
        width = max(boxes[one, 2], boxes[two, 2]) - min(boxes[one, 0], boxes[two, 0])
        height = max(boxes[one, 3], boxes[two, 3]) - min(boxes[one, 1], boxes[two, 1])
        total += 1 - (np.int64(width) * height - both) / image_size
    return total
