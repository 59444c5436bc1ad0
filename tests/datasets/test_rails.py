"""Rail scenes: labels that agree, rails under every train and under nothing else, rails alone in the split ood."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelwise import datasets
from labelwise.datasets.shapes import RAIL_CLASSES, ShapesOptions, rail_scene, write_shapes
from labelwise.errors import UserError
from labelwise.samples import Sample

RAILS = ShapesOptions(scenes="rails", size=64)
TRAIN = RAIL_CLASSES.number("train")
few = settings(max_examples=15, derandomize=True)
scenes = st.builds(
    lambda seed, index, size: rail_scene(replace(RAILS, seed=seed, size=size), "train", index),
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.sampled_from([40, 64, 97]),
)


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    return [rail_scene(RAILS, "train", index) for index in range(200)]


def bars(sample: Sample) -> torch.Tensor:
    """[H]: how much neighbouring pixels of a row differ on average, far from the noise where there are rails."""
    gray = sample.image.float().mean(0)
    return gray.diff(dim=1).abs().mean(1)


@few
@given(scenes)
def test_all_kinds_of_label_agree(sample: Sample) -> None:
    labels = sample.instance_labels.tolist()
    assert 1 <= len(labels) <= 2 and len(set(labels)) == len(labels)
    for instance, label in zip(sample.instances, labels, strict=True):
        assert (sample.mask[instance] == label).all()
    assert sample.tags.nonzero().flatten().tolist() == sorted(labels)


def test_rails_are_where_a_train_is_and_nowhere_else(many: list[Sample]) -> None:
    with_rails = torch.tensor([bool(bars(sample).max() > 22) for sample in many])
    with_train = torch.tensor([bool(sample.tags[TRAIN]) for sample in many])
    assert (with_rails == with_train).float().mean() > 0.97
    assert 0.3 < with_train.float().mean() < 0.7


def test_a_train_stands_on_its_rails(many: list[Sample]) -> None:
    for sample in many:
        if sample.instance_labels.tolist() == [TRAIN]:
            below = int(sample.boxes[0, 3])
            assert bars(sample)[below + 1 : below + 6].mean() > 20
            assert bars(sample)[: int(sample.boxes[0, 1])].mean() < 18


def test_scenes_of_no_class_show_rails_alone(tmp_path: Path) -> None:
    alone = [rail_scene(RAILS, "ood", index) for index in range(20)]
    assert all(bars(sample).max() > 22 for sample in alone)
    assert all(not sample.tags.any() and not sample.mask.any() and not len(sample.boxes) for sample in alone)
    write_shapes(tmp_path / "rails", replace(RAILS, train=2, val=1, ood=3))
    assert len(datasets.open(tmp_path / "rails").ids("ood")) == 3


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first = rail_scene(RAILS, "train", 2)
    assert torch.equal(first.image, rail_scene(replace(RAILS, train=900, ood=5), "train", 2).image)
    assert not torch.equal(first.image, rail_scene(RAILS, "val", 2).image)


def test_options_that_rail_scenes_cannot_have_are_refused() -> None:
    with pytest.raises(UserError, match="--scenes rails: have no --context, --parts or --single; leave them out"):
        replace(RAILS, context=0.5)
