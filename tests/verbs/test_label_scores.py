"""Labels scored against labels: masks, seeds, and what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

import labelwise
from labelwise.datasets.voc import VOC
from labelwise.samples import IGNORE_INDEX, Kind, Sample, ScoreMaps
from tests.conftest import Called

Call = Callable[..., Called]


def relabeled(source: Path, root: Path, change: Callable[[Sample], Sample]) -> Path:
    """A copy of the split train with other labels."""
    dataset = labelwise.open(source)
    made = VOC.create(root, dataset.classes)
    ids = dataset.ids("train")
    for id in ids:
        made.copy_image(id, dataset.image_file(id))
        made.write(change(dataset.read(id, {Kind.MASKS})))
    made.write_split("train", ids)
    return root


def with_mask(sample: Sample, mask: Tensor) -> Sample:
    return Sample(id=sample.id, image=sample.image, mask=tv_tensors.Mask(mask))


def with_true_maps(sample: Sample) -> Sample:
    """Maps that are 0.5 within the masks of the classes, which is their maximum divided by 2."""
    assert sample.mask is not None
    mask = sample.mask.as_subclass(Tensor)
    labels = torch.tensor([label for label in mask.unique().tolist() if label not in (0, IGNORE_INDEX)])
    fine = (mask == labels[:, None, None]).float() * 0.3
    coarse = torch.zeros(len(labels), -(-mask.shape[0] // 4), -(-mask.shape[1] // 4))
    return Sample(id=sample.id, image=sample.image, maps=ScoreMaps(labels=labels, fine=fine, coarse=coarse))


def test_true_masks_are_perfect_also_where_they_say_nothing_of_the_background(
    call: Call, shapes_folder: Path, tmp_path: Path
) -> None:
    def unsure(sample: Sample) -> Sample:
        assert sample.mask is not None
        mask = sample.mask.as_subclass(Tensor).clone()
        mask[mask == 0] = IGNORE_INDEX
        return with_mask(sample, mask)

    labels = relabeled(shapes_folder, tmp_path / "labels", unsure)
    scores = call("evaluate", labels, "--data", shapes_folder, "--split", "train", "--json").json
    assert scores["miou"] == 100 and scores["images"] == 12
    assert scores["false_positive"] == scores["false_negative"] == 0
    assert "seed_miou" not in scores and "labels against split 'train'" in scores["protocol"]


def test_labels_of_nothing_miss_every_object(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    def empty(sample: Sample) -> Sample:
        return with_mask(sample, torch.zeros(sample.image.shape[-2:], dtype=torch.uint8))

    labels = relabeled(shapes_folder, tmp_path / "labels", empty)
    scores = call("evaluate", labels, "--data", shapes_folder, "--split", "train", "--json").json
    assert scores["iou"]["ball"] in (0, None) and scores["false_negative"] == 100 and scores["false_positive"] == 0


def test_maps_are_scored_at_the_best_constant(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    labels = relabeled(shapes_folder, tmp_path / "labels", with_true_maps)
    out = tmp_path / "page"
    called = call("evaluate", labels, "--data", shapes_folder, "--split", "train", "--out", out, "--json")
    scores = called.json
    assert scores["seed_miou"] == 100 and scores["seed_threshold"] == pytest.approx(0.05)
    curve = dict(map(tuple, scores["seed_curve"]))
    assert curve[0.29] == 100 and curve[0.31] < 60
    assert (out / "report.html").is_file() and (out / "pictures" / "predictions.png").is_file()


def test_missing_labels_are_told_before_anything_is_scored(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    labels = relabeled(shapes_folder, tmp_path / "labels", lambda sample: sample)
    first = labelwise.open(labels).ids("train")[0]
    (labels / "SegmentationClass" / f"{first}.png").unlink()
    called = call("evaluate", labels, "--data", shapes_folder, "--split", "train")
    assert called.code == 2
    assert f"has no masks of 1 of the 12 images of split 'train' with a true mask ({first})" in called.err
    called = call("evaluate", labels, "--data", shapes_folder, "--split", "val")
    assert called.code == 2 and "of 4 of the 4 images" in called.err


def test_other_classes_and_options_of_models_are_refused(
    call: Call, shapes_folder: Path, voc_folder: Path, tmp_path: Path
) -> None:
    labels = relabeled(shapes_folder, tmp_path / "labels", lambda sample: sample)
    assert "take a data set with the same class list" in call("evaluate", labels, "--data", voc_folder).err
    called = call("evaluate", labels, "--data", shapes_folder, "--split", "train", "--flip")
    assert called.code == 2 and "holds labels, not a model" in called.err


def test_images_of_another_size_are_refused(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    labels = relabeled(shapes_folder, tmp_path / "labels", lambda sample: sample)
    first = labelwise.open(labels).ids("train")[0]
    other = Sample(
        id=first,
        image=tv_tensors.Image(torch.zeros(3, 20, 24, dtype=torch.uint8)),
        mask=tv_tensors.Mask(torch.zeros(20, 24, dtype=torch.uint8)),
    )
    (image,) = (labels / "JPEGImages").glob(f"{first}.*")
    image.unlink()
    VOC(labels).write(other)
    called = call("evaluate", labels, "--data", shapes_folder, "--split", "train")
    assert called.code == 2 and "is 24x20, but the true mask 48x48; label the same images" in called.err


def test_a_folder_that_is_neither_is_refused(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert call("evaluate", tmp_path / "nothing", "--data", shapes_folder).code == 2
    shutil.rmtree(tmp_path / "nothing")
    assert call("evaluate", tmp_path / "nothing", "--data", shapes_folder).code == 2
