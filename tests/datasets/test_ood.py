"""Images of no class: from a split, a folder or a list of files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import labelwise
from labelwise.datasets.base import DataSet
from labelwise.datasets.images import write_image
from labelwise.datasets.ood import OodImages
from labelwise.errors import UserError


@pytest.fixture
def dataset(shapes_folder: Path) -> DataSet:
    return labelwise.open(shapes_folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bare").mkdir()
    for shade, name in enumerate(("b", "a"), start=1):
        write_image(tmp_path / "bare" / f"{name}.png", torch.full((3, 5, 7), 10 * shade, dtype=torch.uint8))
    (tmp_path / "bare" / "notes.txt").write_text("no image")
    return tmp_path / "bare"


def test_a_split_gives_its_images_without_labels(dataset: DataSet) -> None:
    images = OodImages(dataset, "val")
    assert images.ids == dataset.ids("val")
    sample = images.read(images.ids[0])
    assert sample.mask is None and sample.tags is None and images.check(images.ids[0]) is None


def test_a_folder_gives_its_images_in_order(dataset: DataSet, folder: Path) -> None:
    images = OodImages(dataset, str(folder))
    assert [Path(id).name for id in images.ids] == ["a.png", "b.png"]
    assert images.read(images.ids[0]).image.float().mean() == 20


def test_a_list_names_files_beside_it(dataset: DataSet, folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("# mined\nbare/b.png\t0.93 train\n\nbare/b.png\n")
    images = OodImages(dataset, str(listed))
    assert [Path(id).name for id in images.ids] == ["b.png"]
    assert images.read(images.ids[0]).image.shape == (3, 5, 7)


def test_a_missing_image_is_told(dataset: DataSet, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("gone.jpg\n")
    images = OodImages(dataset, str(listed))
    error = images.check(images.ids[0])
    assert error is not None and "gone.jpg" in str(error)


@pytest.mark.parametrize("source", ["ood", "nowhere/list.txt"])
def test_what_is_neither_split_nor_folder_nor_file_is_refused(dataset: DataSet, source: str) -> None:
    with pytest.raises(UserError, match=f"--ood {source}: is no split"):
        OodImages(dataset, source)


def test_a_source_without_images_is_refused(dataset: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        OodImages(dataset, str(tmp_path))
