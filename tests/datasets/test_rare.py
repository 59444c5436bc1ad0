"""Rare scenes: labels that agree, and classes that are as rare as they are said to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes

from labelwise import datasets
from labelwise.datasets.shapes import RARE_CLASSES, RARE_FREQUENCIES, ShapesOptions, rare_scene, write_shapes
from labelwise.errors import UserError
from labelwise.samples import Kind, Sample

RARE = ShapesOptions(scenes="rare", size=40, train=3, val=2)
few = settings(max_examples=15, derandomize=True)
scenes = st.builds(
    lambda seed, index, size: rare_scene(replace(RARE, seed=seed, size=size), "train", index),
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.sampled_from([40, 57, 96]),
)


@few
@given(scenes)
def test_all_kinds_of_label_agree(sample: Sample) -> None:
    mask, instances, labels = sample.mask, sample.instances, sample.instance_labels
    assert mask is not None and instances is not None and labels is not None
    assert 1 <= len(instances) == len(labels) <= 4
    assert instances.sum(dim=0).max() == 1
    for instance, label, box in zip(instances, labels, sample.boxes, strict=True):
        assert (mask[instance] == label).all()
        assert torch.equal(box, masks_to_boxes(instance[None])[0] + torch.tensor([0, 0, 1, 1]))
    uncovered = mask[~instances.any(dim=0)]
    assert ((uncovered == 0) | (uncovered == 255)).all()
    assert sorted(set(labels.tolist())) == sample.tags.nonzero().flatten().tolist()


def test_classes_are_as_rare_as_they_are_said_to_be() -> None:
    labels = torch.cat([rare_scene(RARE, "train", index).instance_labels for index in range(300)])
    shares = torch.bincount(labels, minlength=len(RARE_CLASSES))[1:] / len(labels)
    assert sum(RARE_FREQUENCIES) == pytest.approx(1)
    # Four standard deviations of the share of about 850 shapes are 0.07.
    assert shares.tolist() == pytest.approx(RARE_FREQUENCIES, abs=0.07)
    assert shares[0] > 4 * shares[-1]


def test_they_are_written_and_read_like_any_data_set(tmp_path: Path) -> None:
    write_shapes(tmp_path / "rare", RARE)
    dataset = datasets.open(tmp_path / "rare")
    assert dataset.classes.names == RARE_CLASSES.names
    sample, drawn = dataset.read("train_000001", {Kind.MASKS}), rare_scene(RARE, "train", 1)
    assert sample.mask is not None and drawn.mask is not None and torch.equal(sample.mask, drawn.mask)


def test_every_pixel_can_be_clicked(tmp_path: Path) -> None:
    write_shapes(tmp_path / "rare", RARE)
    sample = datasets.open(tmp_path / "rare").read("train_000000", {Kind.POINTS})
    mask = rare_scene(RARE, "train", 0).mask
    assert sample.point_labels is not None and mask is not None
    assert len(sample.point_labels) == int((mask != 255).sum())


def test_options_of_other_scenes_are_refused() -> None:
    with pytest.raises(UserError, match="--scenes rare: have no --context, --parts, --single or --ood"):
        ShapesOptions(scenes="rare", single=True)
