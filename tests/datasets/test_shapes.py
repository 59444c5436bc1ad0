"""The synthetic scenes: reproducible, with labels of all kinds that agree, and as hard as the options say."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import masks_to_boxes

from labelwise import datasets
from labelwise.datasets.shapes import (
    CLASSES,
    CONTOUR_SIZE,
    FREQUENCIES,
    TRUE_MASKS,
    ShapesOptions,
    scene,
    with_noise,
    write_shapes,
)
from labelwise.datasets.shapes.backgrounds import GROUNDS
from labelwise.datasets.shapes.scene import class_at_home
from labelwise.errors import UserError
from labelwise.samples import IGNORE_INDEX, Kind, Sample

SMALL = ShapesOptions(train=3, val=2, size=48)
NOISY = ("dilated", "eroded", "uneven", "shifted", "missing", "wrong_class", "context")

few = settings(max_examples=12, deadline=None, derandomize=True, database=None)
scenes = st.builds(
    lambda seed, index, parts, size: scene(ShapesOptions(seed=seed, parts=parts, size=size), "train", index),
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.booleans(),
    st.sampled_from([48, 96, 131]),
)


def same(one: Sample, other: Sample) -> bool:
    """Whether two samples agree in every field."""
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(Sample))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    return [scene(ShapesOptions(size=64), "train", index) for index in range(300)]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------- scenes


@few
@given(scenes)
def test_all_kinds_of_label_agree(sample: Sample) -> None:
    mask, instances, labels = sample.mask, sample.instances, sample.instance_labels
    assert mask is not None and instances is not None and labels is not None
    assert len(instances) == len(labels) > 0
    assert instances.sum(dim=0).max() == 1
    for instance, label, box, point in zip(instances, labels, sample.boxes, sample.points, strict=True):
        assert (mask[instance] == label).all()
        assert torch.equal(box, masks_to_boxes(instance[None])[0] + torch.tensor([0, 0, 1, 1]))
        column, row = point.long()
        assert instance[row, column]
    uncovered = mask[~instances.any(dim=0)]
    assert ((uncovered == 0) | (uncovered == IGNORE_INDEX)).all()
    assert torch.equal(sample.box_labels, labels) and torch.equal(sample.point_labels, labels)
    assert set(sample.tags.nonzero().flatten().tolist()) == set(labels.tolist())


@few
@given(scenes)
def test_captions_name_the_objects_and_no_others(sample: Sample) -> None:
    words = " ".join(sample.captions).replace("leaves", "leaf").replace(",", "").split()
    named = {name for name in FREQUENCIES if name in words or f"{name}s" in words}
    assert named == {CLASSES.names[label] for label in sample.instance_labels}


def test_an_object_must_show_enough_of_itself(many: list[Sample]) -> None:
    assert min(int(instance.sum()) for sample in many for instance in sample.instances) >= 64 * 64 / 400


def test_objects_overlap(many: list[Sample]) -> None:
    """Boxes of different objects meet in a good part of the scenes."""
    meeting = 0
    for sample in many:
        x0, y0, x1, y1 = sample.boxes.as_subclass(Tensor).T
        apart = (x1[:, None] <= x0) | (x1 <= x0[:, None]) | (y1[:, None] <= y0) | (y1 <= y0[:, None])
        meeting += bool((~apart).sum() > len(apart))
    assert 0.2 < meeting / len(many) < 0.9


def test_contours_are_ignored_from_96_pixels_on() -> None:
    small, large = (scene(ShapesOptions(size=size), "val", 0).mask for size in (CONTOUR_SIZE - 1, CONTOUR_SIZE))
    assert not (small == IGNORE_INDEX).any()
    assert (large == IGNORE_INDEX).any()


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first = scene(SMALL, "train", 2)
    assert same(first, scene(replace(SMALL, train=900, val=5, ood=3, noise="missing"), "train", 2))
    others = [scene(SMALL, "train", 1), scene(SMALL, "val", 2), scene(replace(SMALL, seed=1), "train", 2)]
    assert not any(torch.equal(first.image, other.image) for other in others)


def test_classes_are_as_common_as_documented(many: list[Sample]) -> None:
    labels = torch.cat([sample.instance_labels for sample in many])
    shares = torch.bincount(labels, minlength=len(CLASSES)) / len(labels)
    assert sum(FREQUENCIES.values()) == pytest.approx(1)
    assert max(FREQUENCIES.values()) > 2.5 * min(FREQUENCIES.values())
    assert shares[1:].tolist() == pytest.approx(list(FREQUENCIES.values()), abs=0.04)


def test_color_hints_at_the_class_but_does_not_tell_it(many: list[Sample]) -> None:
    """Mean colors of objects: the nearest class mean guesses better than chance, and wrong for half of the objects."""
    colors = torch.stack([s.image[:, i].float().mean(dim=1) for s in many for i in s.instances])
    labels = torch.cat([sample.instance_labels for sample in many])
    half = len(labels) // 2
    means = torch.stack([colors[:half][labels[:half] == label].mean(dim=0) for label in CLASSES.objects])
    guessed = torch.cdist(colors[half:], means).argmin(dim=1) + 1
    right = (guessed == labels[half:]).float().mean()
    assert max(FREQUENCIES.values()) + 0.1 < right < 0.6


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="no split 'vall'; did you mean 'val'"):
        scene(SMALL, "vall", 0)


# --------------------------------------------------------------------- options


def ground_of(sample: Sample) -> str:
    """The adjective of the ground in the first caption."""
    return sample.captions[0].split()[-2]


def share_at_home(options: ShapesOptions) -> float:
    home = {name: adjective for name, (adjective, _) in GROUNDS.items()}
    at_home = [
        home[CLASSES.names[label]] == ground_of(sample)
        for sample in (scene(options, "train", index) for index in range(60))
        for label in sample.instance_labels
    ]
    return float(np.mean(at_home))


def test_context_ties_objects_to_their_ground() -> None:
    chance = sum(frequency**2 for frequency in FREQUENCIES.values())
    assert share_at_home(ShapesOptions(size=48)) == pytest.approx(chance, abs=0.1)
    assert share_at_home(ShapesOptions(size=48, context=0.8)) == pytest.approx(0.8 + 0.2 * chance, abs=0.1)
    assert share_at_home(ShapesOptions(size=48, context=1)) == 1


def test_ood_scenes_have_grounds_but_no_objects() -> None:
    adjectives = set()
    for index in range(40):
        sample = scene(SMALL, "ood", index)
        assert not sample.mask.any() and not sample.tags.any()
        assert len(sample.instances) == len(sample.boxes) == len(sample.points) == 0
        assert not any(name in caption.split() for name in FREQUENCIES for caption in sample.captions)
        adjectives.add(sample.captions[1].split()[-2])
    assert len(adjectives) >= 6


def surface_contrast(sample: Sample) -> list[float]:
    """For every object the range of brightness of the middle half of its pixels, however coarse its pattern is."""
    brightness = sample.image.float().mean(dim=0)
    quartiles = torch.tensor([0.25, 0.75])
    return [float(brightness[instance].quantile(quartiles).diff()) for instance in sample.instances]


def test_parts_leave_most_of_an_object_plain() -> None:
    with_parts, whole = (
        np.mean([step for index in range(40) for step in surface_contrast(scene(options, "train", index))])
        for options in (ShapesOptions(parts=True), ShapesOptions())
    )
    assert with_parts < 0.6 * whole


def test_parts_give_all_classes_a_similar_area() -> None:
    def spread(options: ShapesOptions) -> float:
        areas: dict[int, list[float]] = {label: [] for label in CLASSES.objects}
        for index in range(100):
            sample = scene(options, "train", index)
            for label, instance in zip(sample.instance_labels.tolist(), sample.instances, strict=True):
                areas[label].append(float(instance.sum()))
        medians = [float(np.median(values)) for values in areas.values()]
        return max(medians) / min(medians)

    assert spread(ShapesOptions(size=48, parts=True)) < 0.85 * spread(ShapesOptions(size=48))


def test_a_single_object_is_shown_in_each_picture_if_that_is_wanted(many: list[Sample]) -> None:
    alone = [scene(ShapesOptions(size=48, single=True), "train", index) for index in range(30)]
    assert {len(sample.instance_labels) for sample in alone} == {1}
    assert len({int(sample.instance_labels) for sample in alone}) > 4
    assert max(len(sample.instance_labels) for sample in many) > 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scenes": "heads", "single": True}, "--scenes heads: have no --context, --parts, --single or --ood"),
        ({"scenes": "rails", "context": 1}, "--scenes rails: have no --context, --parts or --single; leave them out"),
        ({"train": -1}, "--train -1: must be at least 0"),
        ({"size": 8}, "--size 8: must be between 48 and 2048 pixels"),
        ({"context": 1.5}, "--context 1.5: must be a share between 0 and 1"),
        ({"noise_amount": -0.1}, "--noise-amount -0.1: must be a share between 0 and 1"),
        ({"noise": "dilate"}, "unknown --noise 'dilate'; did you mean 'dilated'"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShapesOptions(**wrong)


# ----------------------------------------------------------------------- noise


def spoiled_pairs(noise: str, amount: float = 1.0, size: int = 64) -> list[tuple[Sample, Sample]]:
    options = ShapesOptions(size=size, noise=noise, noise_amount=amount, context=0.5)
    true = [scene(options, "train", index) for index in range(12)]
    return [(sample, with_noise(sample, options, "train", index, CLASSES)) for index, sample in enumerate(true)]


@pytest.mark.parametrize("noise", NOISY)
def test_noise_changes_the_mask_and_nothing_else(noise: str) -> None:
    pairs = spoiled_pairs(noise)
    assert all(same(true, replace(spoiled, mask=true.mask)) for true, spoiled in pairs)
    assert any(not torch.equal(true.mask, spoiled.mask) for true, spoiled in pairs)
    assert all(torch.equal(t.mask, s.mask) for t, s in spoiled_pairs(noise, amount=0))


@pytest.mark.parametrize("noise", NOISY)
def test_noise_is_repeatable_and_partial(noise: str) -> None:
    once, again = spoiled_pairs(noise, amount=0.5), spoiled_pairs(noise, amount=0.5)
    assert all(same(a, b) for (_, a), (_, b) in zip(once, again, strict=True))
    changed = [not torch.equal(true.mask, spoiled.mask) for true, spoiled in once]
    assert any(changed) and not all(changed)


def test_dilated_masks_grow_over_the_background_only() -> None:
    for true, spoiled in spoiled_pairs("dilated"):
        objects = true.mask != 0
        assert torch.equal(spoiled.mask[objects], true.mask[objects])
        assert ((spoiled.mask != 0).sum() > 1.1 * objects.sum()).item()


def test_eroded_masks_lose_pixels_and_gain_none() -> None:
    for true, spoiled in spoiled_pairs("eroded"):
        kept = spoiled.mask != 0
        assert torch.equal(spoiled.mask[kept], true.mask[kept])
        assert kept.sum() < 0.95 * (true.mask != 0).sum()


def test_uneven_masks_are_all_too_wide_or_all_too_narrow_in_an_image() -> None:
    kinds = set()
    for true, spoiled in spoiled_pairs("uneven"):
        before, after = true.mask != 0, spoiled.mask != 0
        wide, narrow = bool((before <= after).all()), bool((after <= before).all())
        assert wide != narrow
        assert torch.equal(spoiled.mask[before & after], true.mask[before & after])
        kinds.add(wide)
    assert kinds == {True, False}


def test_context_masks_hold_the_ground_below_objects_on_their_own_ground() -> None:
    grown = 0
    for index in range(12):
        options = ShapesOptions(size=64, noise="context", noise_amount=1.0, context=0.6)
        true = scene(options, "train", index)
        spoiled, home = with_noise(true, options, "train", index, CLASSES), class_at_home(options, "train", index)
        changed = spoiled.mask != true.mask
        assert (true.mask[changed] == 0).all() and (spoiled.mask[changed] == home).all()
        rows, columns = changed.nonzero(as_tuple=True)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            assert (true.mask[max(0, row - round(64 / 4)) : row, column] == home).any()
        grown += int(changed.sum())
    assert grown > 12 * 64 * 64 / 100


def test_other_scenes_have_no_ground_for_context_masks() -> None:
    with pytest.raises(UserError, match="--noise context: --scenes textures"):
        ShapesOptions(scenes="textures", noise="context")


def test_shifted_masks_keep_their_outline() -> None:
    """An object alone and off the border keeps its area and moves by 1/24 to 1/10 of the size."""
    moved = 0
    for true, spoiled in spoiled_pairs("shifted"):
        box = masks_to_boxes(true.mask[None] != 0)[0]
        if len(true.instance_labels) == 1 and box.min() > 7 and box.max() < 56:
            now = masks_to_boxes(spoiled.mask[None] != 0)[0]
            assert torch.equal(now - box, (now - box)[[0, 1, 0, 1]])
            assert 1.5 < (now - box)[:2].norm() < 7.5
            assert (true.mask != 0).sum() == (spoiled.mask != 0).sum()
            moved += 1
    assert moved


def test_missing_objects_become_background() -> None:
    assert all(not spoiled.mask.any() for _, spoiled in spoiled_pairs("missing"))
    for true, spoiled in spoiled_pairs("missing", amount=0.5):
        for instance, label in zip(true.instances, true.instance_labels, strict=True):
            assert spoiled.mask[instance].unique().tolist() in ([0], [label.item()])


def test_wrong_classes_have_the_right_outline() -> None:
    for true, spoiled in spoiled_pairs("wrong_class", size=96):
        assert torch.equal(true.mask == 0, spoiled.mask == 0)
        assert torch.equal(true.mask == IGNORE_INDEX, spoiled.mask == IGNORE_INDEX)
        assert (spoiled.mask[true.instances.any(dim=0)] != true.mask[true.instances.any(dim=0)]).all()
        assert spoiled.mask[spoiled.mask != IGNORE_INDEX].max() < len(CLASSES)


def test_the_contour_follows_the_spoiled_outline() -> None:
    assert all(not spoiled.mask.any() for _, spoiled in spoiled_pairs("missing", size=96))


# --------------------------------------------------------------------- on disk


def test_a_written_set_is_read_back_equal(tmp_path: Path) -> None:
    options = replace(SMALL, ood=1, size=96)
    write_shapes(tmp_path, options)
    dataset = datasets.open(tmp_path)
    assert dataset.layout == "VOC" and dataset.classes == CLASSES
    assert {split: len(dataset.ids(split)) for split in dataset.splits} == {"train": 3, "val": 2, "ood": 1}
    for split in ("train", "val", "ood"):
        for index, id in enumerate(dataset.ids(split)):
            true, read = scene(options, split, index), dataset.read(id, tuple(Kind))
            assert (true.image.int() - read.image.int()).abs().float().mean() < 8
            assert same(true, replace(read, image=true.image))


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path) -> None:
    write_shapes(tmp_path / "small", SMALL)
    before = files(tmp_path / "small")
    write_shapes(tmp_path / "small", replace(SMALL, train=5))
    write_shapes(tmp_path / "large", replace(SMALL, train=5))
    after = files(tmp_path / "small")
    assert after == files(tmp_path / "large")
    own = [name for name in before if "/" in name and not name.startswith("ImageSets")]
    assert own and all(after[name] == before[name] for name in own)


def test_true_masks_are_kept_beside_spoiled_ones(tmp_path: Path) -> None:
    options = replace(SMALL, noise="missing", noise_amount=1)
    write_shapes(tmp_path, options)
    dataset = datasets.open(tmp_path)
    train, val = dataset.ids("train"), dataset.ids("val")
    assert not any(dataset.read(id, [Kind.MASKS]).mask.any() for id in train)
    assert all(dataset.read(id, [Kind.MASKS]).mask.any() for id in val)
    assert {path.stem for path in (tmp_path / TRUE_MASKS).iterdir()} == set(train)
    assert not dataset.having(Kind.INSTANCES, train)
    (tmp_path / "SegmentationClass").rename(tmp_path / "spoiled")
    (tmp_path / TRUE_MASKS).rename(tmp_path / "SegmentationClass")
    for index, id in enumerate(train):
        read = datasets.open(tmp_path).read(id, [Kind.MASKS, Kind.BOXES, Kind.TAGS])
        true = scene(options, "train", index)
        assert torch.equal(read.mask, true.mask)
        assert torch.equal(read.boxes, true.boxes) and torch.equal(read.tags, true.tags)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", SMALL)
    before = files(tmp_path / "shapes")
    with pytest.raises(UserError, match="another seed"):
        write_shapes(tmp_path / "shapes", replace(SMALL, seed=1))
    (tmp_path / "shapes" / "shapes.json").unlink()
    with pytest.raises(UserError, match="other images"):
        write_shapes(tmp_path / "shapes", SMALL)
    del before["shapes.json"]
    assert files(tmp_path / "shapes") == before


def test_progress_sees_every_scene(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    write_shapes(tmp_path, SMALL, progress=lambda scenes: (seen.append(scene) or scene for scene in scenes))
    assert seen == [("train", 0), ("train", 1), ("train", 2), ("val", 0), ("val", 1)]
