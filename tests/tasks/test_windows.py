"""Windows for the fine-tuning: which there are, what a view shows, the loss on them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise import datasets
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.models.pixels import PixelNormalization
from labelwise.models.region_warp import warp_regions
from labelwise.samples import Kind, Sample, collate
from labelwise.tasks.windows import FineTuning, WindowConfig, class_overlaps

CONFIG = WindowConfig(crop=16, context=1, batch_size=8)
_CORNERS = torch.cartesian_prod(*[torch.tensor([0.0, 11.0, 22.0])] * 2)
PROPOSALS = torch.cat([torch.cat([_CORNERS, _CORNERS + side], dim=1) for side in (14.0, 26.0)])
"""Boxes on a grid of an image of 48 pixels."""


class Recorder(nn.Module):
    """A classifier that remembers what it saw and knows nothing."""

    seen: Tensor

    def forward(self, windows: Tensor) -> Tensor:
        self.seen = windows
        return torch.zeros(len(windows), 9)


def without_objects(sample: Sample) -> Sample:
    assert sample.boxes is not None and sample.box_labels is not None
    boxes = tv_tensors.wrap(sample.boxes[:0], like=sample.boxes)
    difficult = None if sample.difficult is None else sample.difficult[:0]
    return replace(sample, boxes=boxes, box_labels=sample.box_labels[:0], difficult=difficult)


def fine_tuning(classes: Classes, *, use_difficult: bool = True) -> FineTuning:
    return FineTuning(CONFIG, classes, lambda sample: PROPOSALS, use_difficult)


@pytest.fixture
def classes(shapes_folder: Path) -> Classes:
    return datasets.open(shapes_folder).classes


@pytest.fixture
def windows_of(classes: Classes) -> FineTuning:
    return fine_tuning(classes)


@pytest.fixture
def samples(shapes_folder: Path) -> list[Sample]:
    dataset = datasets.open(shapes_folder)
    return [dataset.read(id, {Kind.BOXES}) for id in dataset.ids("train")[:6]]


def test_overlaps_are_the_largest_of_each_class() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    objects = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    overlap = class_overlaps(boxes, objects, torch.tensor([1, 1, 0]), 3)
    torch.testing.assert_close(overlap, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert (class_overlaps(boxes, objects[:0], torch.zeros(0, dtype=torch.int64), 3) == 0).all()


def test_both_kinds_of_windows_together_are_all(windows_of: FineTuning, samples: list[Sample]) -> None:
    for sample in samples:
        counts = [windows_of.count(sample, foreground=kind) for kind in (True, False)]
        assert sample.boxes is not None
        assert sum(counts) == len(sample.boxes) + len(windows_of.propose(sample))
        assert counts[0] >= len(sample.boxes)


def test_a_view_is_a_window_of_its_kind_with_its_label(windows_of: FineTuning, samples: list[Sample]) -> None:
    sample = samples[0]
    windows = windows_of.windows(sample)
    warped, outside = warp_regions(sample.image.as_subclass(Tensor).float(), windows.boxes, 16, 1)
    labels = windows.overlap.argmax(1) + 1
    for foreground in (True, False):
        chosen = windows.foreground == foreground
        for seed in range(8):
            torch.manual_seed(seed)
            view = windows_of.view(sample, foreground=foreground)
            image = view.sample.image.as_subclass(Tensor).float()
            assert view.padding is not None and view.sample.box_labels is not None
            same = [
                (images - image).flatten(1).abs().amax(1).le(0.5)
                & (paddings == view.padding).flatten(1).all(1)
                & chosen
                for images, paddings in ((warped, outside), (warped.flip(-1), outside.flip(-1)))
            ]
            match = same[0] | same[1]
            assert match.any()
            label = int(view.sample.box_labels)
            assert label in labels[match].tolist() if foreground else label == 0


def test_where_a_window_leaves_the_image_the_input_is_zero(windows_of: FineTuning, samples: list[Sample]) -> None:
    views = [windows_of.view(sample, foreground=False) for sample in samples for _ in range(5)]
    batch = collate(views)
    assert batch.padding is not None and batch.padding.any()
    network = Recorder()
    windows_of.loss(network, PixelNormalization(), batch, batch)  # type: ignore[arg-type]
    padding = torch.cat([batch.padding, batch.padding])[:, None]
    assert (network.seen.masked_select(padding) == 0).all()
    assert (network.seen != 0).any()


def test_an_image_without_objects_has_background_windows_only(windows_of: FineTuning, samples: list[Sample]) -> None:
    sample = without_objects(samples[0])
    assert windows_of.count(sample, foreground=True) == 0
    assert windows_of.count(sample, foreground=False) == len(windows_of.propose(sample))


def test_difficult_objects_are_objects_unless_told_otherwise(classes: Classes, samples: list[Sample]) -> None:
    assert samples[0].boxes is not None
    all_difficult = replace(samples[0], difficult=torch.ones(len(samples[0].boxes), dtype=torch.bool))
    counts = [len(fine_tuning(classes, use_difficult=use).objects(all_difficult)[0]) for use in (True, False)]
    assert counts == [len(samples[0].boxes), 0]


def test_a_sample_without_boxes_is_refused(windows_of: FineTuning, samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="--labels boxes:all"):
        windows_of.objects(replace(samples[0], boxes=None, box_labels=None))


def test_the_loss_is_the_mean_over_the_windows_of_both_kinds(windows_of: FineTuning, samples: list[Sample]) -> None:
    batches = [collate([windows_of.view(sample, foreground=kind) for sample in samples[:2]]) for kind in (True, False)]
    loss = windows_of.loss(Recorder(), PixelNormalization(), *batches)  # type: ignore[arg-type]
    # The recorder is as sure of every class.
    assert float(loss) == pytest.approx(math.log(len(windows_of.classes)))


def test_proposals_of_an_image_are_made_once(classes: Classes, samples: list[Sample]) -> None:
    asked: list[str] = []

    def propose(sample: Sample) -> Tensor:
        asked.append(sample.id)
        return PROPOSALS

    windows_of = FineTuning(CONFIG, classes, propose)
    for _ in range(3):
        windows_of.count(samples[0], foreground=True)
    assert asked == [samples[0].id]
