"""Selective Search against the algorithms written plainly, against scikit-image, and on images with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.draw import ellipse
from skimage.segmentation import felzenszwalb
from sklearn.metrics import rand_score
from torchvision.ops import box_iou

from labelwise.models import selective_search_kernels
from labelwise.models.region_descriptors import RegionDescriptors, convert_color, region_descriptors
from labelwise.models.selective_search import (
    MODES,
    Hierarchy,
    Mix,
    adjacency,
    felzenszwalb_labels,
    generator_of,
    group,
    leaf_spans,
    region_hierarchies,
    region_mask,
    selective_search,
    selective_search_regions,
)

MIXES: list[Mix] = ["CTSF", "TSF", "F", "S"]


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def halves(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """Dark green on the left, light red on the right."""
    image = np.full((height, width, 3), (30, 90, 40), np.uint8)
    image[:, width // 2 :] = (220, 120, 100)
    return image


def scene(seed: int, height: int = 96, width: int = 128) -> tuple[NDArray[np.uint8], NDArray]:
    """Ellipses and rectangles of one color each, with noise and a gradient of light; and their boxes, as seen."""
    random = np.random.default_rng(seed)
    image = np.ones((height, width, 3)) * random.uniform(40, 215, 3)
    shown = np.zeros((height, width), int)
    for number in range(1, 5):
        y, x = random.integers(15, height - 15), random.integers(15, width - 15)
        tall, wide = random.integers(8, 25), random.integers(8, 25)
        if number % 2:
            rows, columns = ellipse(y, x, tall, wide, shape=(height, width))
        else:
            rows, columns = np.mgrid[max(y - tall, 0) : min(y + tall, height), max(x - wide, 0) : min(x + wide, width)]
        image[rows, columns] = random.uniform(60, 195, 3)
        shown[rows, columns] = number
    light = 1 + 0.3 * np.linspace(-1, 1, width)[None, :, None]
    pixels = np.clip(image * light + random.normal(0, 15, image.shape), 0, 255).astype(np.uint8)
    places = [np.nonzero(shown == number) for number in range(1, 5) if (shown == number).sum() > 100]
    return pixels, np.array([(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in places], np.float32)


def same_partition(one: NDArray, other: NDArray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return pairs.shape[1] == one.max() + 1 == len(np.unique(other))


# The first regions.


def test_a_constant_image_is_one_region_and_halves_are_two() -> None:
    assert felzenszwalb_labels(np.full((9, 7, 3), 80, np.uint8), 50, 0.8, 5).max() == 0
    labels = felzenszwalb_labels(halves(), 50, 0.8, 50)
    assert labels.dtype == np.int32 and labels.shape == (24, 32)
    assert same_partition(labels, np.arange(32)[None].repeat(24, 0) // 16)


def test_the_scale_decides_between_every_pixel_and_one_region() -> None:
    image = noise(12, 15)
    assert len(np.unique(felzenszwalb_labels(image, 0, 0.8, 0))) == 12 * 15
    assert felzenszwalb_labels(image, 1e9, 0.8, 0).max() == 0
    assert felzenszwalb_labels(image, 0, 0.8, 12 * 15).max() == 0


@given(seed=st.integers(0, 99), scale=st.sampled_from([5, 40, 150]), least=st.integers(0, 30))
def test_regions_are_those_of_scikit_image_on_a_smooth_image(seed: int, scale: int, least: int) -> None:
    # Both are given the same pixels, because they smooth differently at the border.
    image = noise(14, 17, seed)
    ours = felzenszwalb_labels(image, scale, 0, least)
    assert same_partition(ours, felzenszwalb(image, scale, sigma=0, min_size=least))


def test_regions_are_nearly_those_of_scikit_image_with_smoothing() -> None:
    image = convert_color(scene(3)[0], "lab")
    ours, theirs = felzenszwalb_labels(image, 50, 0.8, 50), felzenszwalb(image, 50, sigma=0.8, min_size=50)
    assert rand_score(ours.ravel(), theirs.ravel()) > 0.97


def test_twice_the_contrast_and_twice_the_scale_are_the_same() -> None:
    image = noise(20, 20) // 2
    one, two = felzenszwalb_labels(image, 30, 0.8, 6), felzenszwalb_labels(2 * image, 60, 0.8, 6)
    assert one.max() > 3 and (one == two).all()


@given(st.integers(0, 99))
def test_every_region_has_its_least_size_and_the_next_number(seed: int) -> None:
    labels = felzenszwalb_labels(noise(10, 11, seed), 20, 0.8, 7)
    first_met = labels.ravel()[np.sort(np.unique(labels, return_index=True)[1])]
    assert (first_met == np.arange(labels.max() + 1)).all()
    assert np.bincount(labels.ravel()).min() >= 7


@given(st.lists(st.floats(0, 442, width=32), min_size=1, max_size=200))
def test_the_order_of_edges_is_stable(weights: list[float]) -> None:
    values = np.array(weights, np.float32)
    assert (selective_search_kernels.ascending(values.view(np.uint32)) == np.argsort(values, kind="stable")).all()


# Which regions touch.


def test_regions_that_meet_at_a_corner_touch() -> None:
    assert adjacency(np.array([[0, 1], [2, 3]], np.int32)).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert adjacency(np.array([[0, 1, 2]], np.int32)).tolist() == [[0, 1], [1, 2]]
    assert adjacency(np.zeros((3, 3), np.int32)).shape == (0, 2)


# Grouping.


def random_regions(seed: int, count: int = 12) -> tuple[RegionDescriptors, NDArray[np.int32], int]:
    """Descriptors without ties of the regions of random label map, and which touch."""
    random = np.random.default_rng(seed)
    places = random.integers(0, 30, (count, 2))
    grid = np.stack(np.mgrid[:30, :30], axis=-1)
    labels = np.linalg.norm(grid[:, :, None] - places, axis=-1).argmin(axis=2)
    labels = np.unique(labels, return_inverse=True)[1].reshape(30, 30).astype(np.int32)
    found = region_descriptors(labels, noise(30, 30, seed))
    color, texture = (random.dirichlet(np.ones(length), len(found.size)) for length in (75, 240))
    described = RegionDescriptors(found.size, found.box, color.astype(np.float32), texture.astype(np.float32))
    return described, adjacency(labels), labels.size


def group_plainly(
    described: RegionDescriptors, pairs: NDArray[np.int32], image_size: int, mix: str
) -> tuple[list[list[int]], list[int], list[float]]:
    """The algorithm of the paper, all pairs looked at before each merge."""
    regions = [
        {"size": int(size), "box": box.tolist(), "C": color.astype(float), "T": texture.astype(float)}
        for size, box, color, texture in zip(
            described.size, described.box, described.color, described.texture, strict=True
        )
    ]
    touching = {frozenset(pair) for pair in pairs.tolist()}
    parent, merged_at = [-1] * (2 * len(regions) - 2), []

    def union(a: dict, b: dict) -> list[int]:
        low = [min(a["box"][side], b["box"][side]) for side in (0, 1)]
        return low + [max(a["box"][side], b["box"][side]) for side in (2, 3)]

    def similarity(pair: frozenset[int]) -> float:
        a, b = (regions[number] for number in pair)
        both, (x1, y1, x2, y2) = a["size"] + b["size"], union(a, b)
        terms = {name: float(np.minimum(a[name], b[name]).sum()) for name in "CT"}
        terms |= {"S": 1 - both / image_size, "F": 1 - ((x2 - x1) * (y2 - y1) - both) / image_size}
        return sum(terms[name] for name in mix) / len(mix)

    while touching:
        best = max(touching, key=similarity)
        merged_at.append(similarity(best))
        a, b = (regions[number] for number in best)
        both, new = a["size"] + b["size"], len(regions)
        made = {name: (a["size"] * a[name] + b["size"] * b[name]) / both for name in "CT"}
        regions.append(made | {"size": both, "box": union(a, b)})
        for number in best:
            parent[number] = new
        neighbors = {number for pair in touching if pair & best for number in pair - best}
        touching = {pair for pair in touching if not pair & best} | {frozenset({new, number}) for number in neighbors}
    return [region["box"] for region in regions], parent, merged_at


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("seed", range(4))
def test_grouping_is_the_plain_algorithm(mix: Mix, seed: int) -> None:
    described, pairs, _ = random_regions(seed)
    # Sizes that are powers of two never tie, however they are added.
    sizes = np.random.default_rng(seed).permutation(2 ** np.arange(len(described.size), dtype=np.int32))
    described, image_size = replace(described, size=sizes), int(sizes.sum())
    boxes, parent, merged_at = group(described, pairs, image_size, mix)
    plain_boxes, plain_parent, plain_merged_at = group_plainly(described, pairs, image_size, mix)
    assert merged_at.tolist() == pytest.approx(plain_merged_at, abs=1e-6)
    assert boxes.tolist() == plain_boxes and parent.tolist() == plain_parent


@given(seed=st.integers(0, 10_000), mix=st.sampled_from(MIXES))
def test_a_hierarchy_is_a_tree_of_unions(seed: int, mix: Mix) -> None:
    described, pairs, image_size = random_regions(seed)
    boxes, parent, merged_at = group(described, pairs, image_size, mix)
    count = len(described.size)
    assert (boxes.shape, parent.shape, merged_at.shape) == ((2 * count - 1, 4), (2 * count - 2,), (count - 1,))
    assert (parent > np.arange(len(parent))).all() and boxes[-1].tolist() == [0, 0, 30, 30]
    assert (merged_at >= 0).all() and (merged_at <= 1 + 1e-6).all()
    for made in range(count, 2 * count - 1):
        one, two = np.flatnonzero(parent == made)
        corners = [*np.minimum(boxes[one, :2], boxes[two, :2]), *np.maximum(boxes[one, 2:], boxes[two, 2:])]
        assert boxes[made].tolist() == corners


def test_merged_descriptors_are_means_by_size() -> None:
    described, _, _ = random_regions(0, count=3)
    sizes, boxes = np.resize(described.size, 4), np.resize(described.box, (4, 4))
    histograms = np.resize(described.color, (4, 75))
    selective_search_kernels._merge(sizes, boxes, histograms, 0, 1, 3)
    mean = np.average(described.color[:2], axis=0, weights=described.size[:2])
    assert sizes[3] == described.size[:2].sum()
    assert histograms[3] == pytest.approx(mean, abs=1e-6) and histograms[3].sum() == pytest.approx(1, abs=1e-5)


def test_halves_of_one_color_are_alike_and_fill_their_box() -> None:
    labels = (np.arange(8)[None].repeat(6, 0) // 4).astype(np.int32)
    described, pairs = region_descriptors(labels, np.full((6, 8, 3), 99, np.uint8)), adjacency(labels)
    similarity = {mix: group(described, pairs, labels.size, mix)[2].item() for mix in MIXES}
    assert similarity == pytest.approx({"CTSF": 0.75, "TSF": 2 / 3, "F": 1, "S": 0})


def test_regions_that_nothing_connects_are_refused() -> None:
    described, pairs, image_size = random_regions(0)
    with pytest.raises(ValueError, match="connect"):
        group(described, pairs[:0], image_size, "CTSF")


# Masks.


def test_masks_of_a_hierarchy() -> None:
    hierarchy = region_hierarchies(scene(1)[0], "single")[0]
    count = len(hierarchy.similarity) + 1
    for region in range(2 * count - 1):
        mask = region_mask(hierarchy.labels, hierarchy.parent, region)
        rows, columns = np.nonzero(mask)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == hierarchy.boxes[region].tolist()
        if region < count:
            assert (mask == (hierarchy.labels == region)).all()
        else:
            parts = [
                region_mask(hierarchy.labels, hierarchy.parent, part)
                for part in np.flatnonzero(hierarchy.parent == region)
            ]
            assert (mask == parts[0] ^ parts[1]).all()
    assert mask.all()


def test_a_single_region_has_a_span() -> None:
    place, start, stop = leaf_spans(np.empty(0, np.int32))
    assert (place.tolist(), start.tolist(), stop.tolist()) == ([0], [0], [1])


@pytest.mark.parametrize(("shape", "tolerance"), [((60, 500), 0), ((96, 128), 3)], ids=["as searched", "doubled"])
def test_masks_are_given_at_the_size_of_the_image(shape: tuple[int, int], tolerance: int) -> None:
    image, _ = scene(2, *shape)
    regions = selective_search_regions(image)
    chosen = [0, len(regions) - 1, 3]
    masks = regions.masks(chosen)
    assert masks.shape == (3, *shape) and masks.dtype == np.bool_
    for mask, box in zip(masks, regions.boxes[chosen], strict=True):
        rows, columns = np.nonzero(mask)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert seen == pytest.approx(box.tolist(), abs=tolerance)
    assert regions.masks([]).shape == (0, *shape)


# Boxes.


def test_a_constant_image_has_one_box_and_halves_have_three() -> None:
    assert selective_search(np.full((30, 40, 3), 7, np.uint8), "fast").tolist() == [[0, 0, 40, 30]]
    found = selective_search(halves(), "single").tolist()
    assert sorted(found) == [[0, 0, 16, 24], [0, 0, 32, 24], [16, 0, 32, 24]]


def test_priorities_run_from_the_last_merge_to_the_first() -> None:
    hierarchy = Hierarchy(np.zeros((1, 1), np.int32), np.zeros((7, 4), np.int32), np.zeros(6, np.int32), np.zeros(3))
    assert hierarchy.priority.tolist() == [4, 4, 4, 4, 3, 2, 1]


def test_boxes_are_mixed_and_each_is_given_once() -> None:
    image, _ = scene(5)
    boxes = selective_search(image, "fast")
    assert boxes.dtype == np.float32 and len(np.unique(boxes, axis=0)) == len(boxes)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    first, last = np.array_split(areas, 2)
    assert first.mean() > last.mean() and first.min() < last.max()


def test_the_same_image_has_the_same_boxes_and_other_random_numbers_another_order() -> None:
    image, _ = scene(6)
    boxes = selective_search(image, "single")
    assert (selective_search(image.copy(), "single") == boxes).all()
    other = selective_search(image, "single", np.random.default_rng(1))
    assert not (other == boxes).all()
    assert (np.unique(other, axis=0) == np.unique(boxes, axis=0)).all()
    assert generator_of(image).random() != generator_of(image.reshape(128, 96, 3)).random()


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_makes_all_its_hierarchies(mode: str) -> None:
    assert len(region_hierarchies(halves(), mode)) == {"single": 1, "fast": 8, "quality": 80}[mode]  # type: ignore[arg-type]


def test_legacy_texture_gives_other_hierarchies() -> None:
    image, _ = scene(0)
    paper, code = (region_hierarchies(image, "single", legacy_texture=legacy)[0] for legacy in (False, True))
    assert (paper.labels == code.labels).all() and not np.array_equal(paper.parent, code.parent)


@pytest.mark.parametrize(
    ("shape", "least"),
    [((100, 500), 20), ((100, 1000), 40), ((60, 100), 4), ((8, 1000), 8), ((3000, 300), 12), ((1, 1), 1)],
    ids=["as R-CNN", "reduced", "doubled", "flat", "long", "one pixel"],
)
def test_proposals_lie_in_the_image_and_are_not_too_small(shape: tuple[int, int], least: float) -> None:
    height, width = shape
    image = noise(-(-height // 10), -(-width // 10), 3).repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
    boxes = selective_search_regions(image, "single").boxes
    assert boxes.dtype == np.float32 and len(boxes) > (0 if min(shape) < 10 else 5)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (width, height)).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= least - 1e-3
    assert [0, 0, width, height] in boxes.tolist()


def recall(find: Callable[[int, NDArray[np.uint8]], NDArray]) -> tuple[float, list[int]]:
    """The share of the objects of some scenes that a search finds, and how many boxes it gives each."""
    found, counts = [], []
    for seed in range(20):
        image, objects = scene(seed)
        boxes = find(seed, image)
        counts.append(len(boxes))
        found += (box_iou(torch.from_numpy(objects), torch.from_numpy(boxes)).amax(dim=1) >= 0.5).tolist()
    return sum(found) / len(found), counts


def random_boxes(seed: int, count: int) -> NDArray[np.float32]:
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)), axis=1) * (128, 96)
    return corners.reshape(count, 4).astype(np.float32)


def test_more_strategies_find_more_objects_and_random_boxes_far_fewer() -> None:
    single, few = recall(lambda _, image: selective_search(image, "single"))
    fast, many = recall(lambda _, image: selective_search(image, "fast"))
    assert fast > single > 2 * recall(lambda seed, _: random_boxes(seed, few[seed]))[0]
    assert fast > 2 * recall(lambda seed, _: random_boxes(seed, many[seed]))[0]
    assert sum(many) > 2 * sum(few)
