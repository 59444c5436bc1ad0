"""Texture scenes: labels that agree, classes told apart by their pattern alone, and their place among the shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torchvision.ops import masks_to_boxes

from labelwise import datasets
from labelwise.datasets.shapes import PATCH_CLASSES, ShapesOptions, patch_scene, with_noise, write_shapes
from labelwise.datasets.shapes.labels import without_hidden
from labelwise.errors import UserError
from labelwise.samples import Kind, Sample
from tests.conftest import Called

TEXTURES = ShapesOptions(scenes="textures", size=40, train=3, val=2)
few = settings(max_examples=15, derandomize=True)
scenes = st.builds(
    lambda seed, index, size: patch_scene(replace(TEXTURES, seed=seed, size=size), "train", index),
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.sampled_from([32, 40, 97]),
)


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    return [patch_scene(TEXTURES, "train", index) for index in range(300)]


def same(one: Sample, other: Sample) -> bool:
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(Sample))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@few
@given(scenes)
def test_all_kinds_of_label_agree(sample: Sample) -> None:
    mask, instances, labels = sample.mask, sample.instances, sample.instance_labels
    assert mask is not None and instances is not None and labels is not None
    assert 1 <= len(instances) == len(labels) <= 4
    assert instances.sum(dim=0).max() == 1
    for instance, label, box, point in zip(instances, labels, sample.boxes, sample.points, strict=True):
        assert (mask[instance] == label).all()
        assert torch.equal(box, masks_to_boxes(instance[None])[0] + torch.tensor([0, 0, 1, 1]))
        column, row = point.long()
        assert instance[row, column]
    uncovered = mask[~instances.any(dim=0)]
    assert ((uncovered == 0) | (uncovered == 255)).all()
    assert set(sample.tags.nonzero().flatten().tolist()) == set(labels.tolist())
    assert labels.min() >= 1 and labels.max() < len(PATCH_CLASSES)


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first = patch_scene(TEXTURES, "train", 2)
    assert same(first, patch_scene(replace(TEXTURES, train=900, val=5, noise="missing"), "train", 2))
    others = [("train", 1, 0), ("val", 2, 0), ("train", 2, 1)]
    for split, index, seed in others:
        assert not torch.equal(first.image, patch_scene(replace(TEXTURES, seed=seed), split, index).image)


def test_all_classes_are_equally_common(many: list[Sample]) -> None:
    labels = torch.cat([sample.instance_labels for sample in many])
    shares = torch.bincount(labels, minlength=len(PATCH_CLASSES)) / len(labels)
    assert shares[0] == 0
    assert shares[1:].tolist() == pytest.approx([0.25] * 4, abs=0.05)


def changes(sample: Sample, number: int) -> tuple[float, float]:
    """Mean change of brightness over half a period, down and to the right, within an object."""
    pixels, inside = sample.image.float().mean(0), sample.instances[number]
    down = (pixels[3:] - pixels[:-3]).abs()[inside[3:] & inside[:-3]]
    right = (pixels[:, 3:] - pixels[:, :-3]).abs()[inside[:, 3:] & inside[:, :-3]]
    return float(down.mean()), float(right.mean())


def test_the_class_is_the_direction_in_which_the_pattern_changes(many: list[Sample]) -> None:
    found: dict[int, list[tuple[float, float]]] = {label: [] for label in PATCH_CLASSES.objects}
    for sample in many:
        for number, label in enumerate(sample.instance_labels.tolist()):
            if sample.instances[number].sum() > 60:
                found[label].append(changes(sample, number))
    rows, columns, checks, plain = (np.nanmean(found[label], axis=0) for label in (1, 2, 3, 4))
    flat = plain.mean()
    assert plain == pytest.approx([flat, flat], rel=0.1)
    assert rows[0] > 2 * flat and rows[1] == pytest.approx(flat, rel=0.15)
    assert columns[1] > 2 * flat and columns[0] == pytest.approx(flat, rel=0.15)
    assert checks.min() > 2 * flat


def test_color_does_not_tell_the_class(many: list[Sample]) -> None:
    """The class whose mean color is nearest is hardly right more often than one of four by chance."""
    colors = torch.stack([s.image[:, i].float().mean(dim=1) for s in many for i in s.instances])
    labels = torch.cat([sample.instance_labels for sample in many])
    half = len(labels) // 2
    means = torch.stack([colors[:half][labels[:half] == label].mean(dim=0) for label in PATCH_CLASSES.objects])
    guessed = torch.cdist(colors[half:], means).argmin(dim=1) + 1
    assert (guessed == labels[half:]).float().mean() < 0.36


@given(arrays("int64", (4, 5), elements=st.integers(0, 4)))
def test_hidden_patches_are_left_out_and_the_others_numbered_on(visible: np.ndarray) -> None:
    numbered, kept = without_hidden(visible, 4)
    assert kept == [number - 1 for number in sorted(set(visible.ravel().tolist()) - {0})]
    assert set(numbered.ravel().tolist()) - {0} == set(range(1, len(kept) + 1))
    for new, old in enumerate(kept, start=1):
        assert np.array_equal(numbered == new, visible == old + 1)


def test_captions_are_sentences(many: list[Sample]) -> None:
    words = {1: "patch of rows", 2: "patch of columns", 3: "patch of checks", 4: "plain patch"}
    for sample in many[:60]:
        first, second = sample.captions
        for label in PATCH_CLASSES.objects:
            count = int((sample.instance_labels == label).sum())
            assert first.count(words[label]) == count
            assert (f"a {words[label]}" in second) == (count == 1)
            assert (words[label].replace("patch", "patches") in second) == (count > 1)


# The options, and the data set on disk.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 31}, "--size 31: must be between 32 and 2048 pixels"),
        ({"context": 0.5}, "--scenes textures: have no --context, --parts, --single or --ood; leave them out"),
        ({"parts": True}, "--scenes textures: have no --context"),
        ({"ood": 1}, "--scenes textures: have no --context"),
        ({"scenes": "texture"}, "unknown --scenes 'texture'; did you mean 'textures'"),
    ],
)
def test_options_that_texture_scenes_cannot_have_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TEXTURES, **wrong)
    assert replace(TEXTURES, size=32).size == 32
    with pytest.raises(UserError, match="--size 32: must be between 48"):
        ShapesOptions(size=32)


def test_a_written_set_is_read_back_equal(tmp_path: Path) -> None:
    write_shapes(tmp_path, TEXTURES)
    dataset = datasets.open(tmp_path)
    assert dataset.classes == PATCH_CLASSES
    for split, count in (("train", 3), ("val", 2)):
        assert len(dataset.ids(split)) == count
        for index, id in enumerate(dataset.ids(split)):
            true, read = patch_scene(TEXTURES, split, index), dataset.read(id, tuple(Kind))
            assert (true.image.int() - read.image.int()).abs().float().mean() < 16
            assert same(true, replace(read, image=true.image))


def test_a_larger_set_begins_with_the_smaller_one_and_objects_are_another_set(tmp_path: Path) -> None:
    write_shapes(tmp_path, TEXTURES)
    before = {path: path.read_bytes() for path in tmp_path.rglob("train_00000*")}
    assert before
    write_shapes(tmp_path, replace(TEXTURES, train=5))
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(datasets.open(tmp_path).ids("train")) == 5
    with pytest.raises(UserError, match="other classes already"):
        write_shapes(tmp_path, ShapesOptions(train=3, val=2, size=48))


def test_wrong_classes_are_those_of_the_patches() -> None:
    options = replace(TEXTURES, noise="wrong_class", noise_amount=1)
    seen: set[int] = set()
    for index in range(20):
        true = patch_scene(options, "train", index)
        spoiled = with_noise(true, options, "train", index, PATCH_CLASSES)
        assert torch.equal(true.mask == 0, spoiled.mask == 0)
        assert (spoiled.mask[true.mask > 0] != true.mask[true.mask > 0]).all()
        seen |= set(spoiled.mask.unique().tolist())
    assert seen == set(range(len(PATCH_CLASSES)))


def test_the_verb_writes_them(call: Callable[..., Called], tmp_path: Path) -> None:
    words = ("shapes", tmp_path / "set", "--scenes", "textures", "--train", 2, "--val", 1, "--size", 40)
    assert call(*words, "--json").json["train"] == 2
    assert datasets.open(tmp_path / "set").classes == PATCH_CLASSES
    refused = call("shapes", tmp_path / "other", "--scenes", "textures", "--ood", 1)
    assert refused.message.startswith("--scenes textures: have no --context, --parts, --single or --ood")
    assert not (tmp_path / "other").exists()
