from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from labelwise.datasets.camvid import CamVid
from labelwise.datasets.folders import Folders
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind
from tests.odd_images import exif


def image(path: Path, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def mask(path: Path, labels: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(labels, np.uint8)).save(path)


LABELS = [[0, 1, 1, 255], [0, 0, 2, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize(("images", "masks"), [("{}/images", "{}/masks"), ("images/{}", "masks/{}")])
def test_both_sorted_arrangements_are_read(tmp_path: Path, images: str, masks: str) -> None:
    for split, id in (("train", "a"), ("train", "b"), ("val", "c")):
        image(tmp_path / images.format(split) / f"{id}.JPG")
        if id != "b":
            mask(tmp_path / masks.format(split) / f"{id}.png", LABELS)
    data = Folders(tmp_path)
    assert data.splits == ("train", "val") and data.ids("train") == ("a", "b") and data.ids("val") == ("c",)
    assert data.having(Kind.MASKS, ("a", "b", "c")) == {"a", "c"}
    assert data.having(Kind.BOXES, ("a", "b", "c")) == frozenset()
    assert data.kinds("train") == {Kind.MASKS, Kind.TAGS, Kind.POINTS}
    assert data.classes.names == ("class_0", "class_1", "class_2") and data.classes.background == 0
    sample = data.read("a", Kind)
    assert sample.mask is not None and sample.mask.tolist() == LABELS
    assert sample.tags is not None and sample.tags.tolist() == [0, 1, 1]
    assert sample.points is not None and sample.points.shape == (11, 2)
    assert sample.point_labels is not None and sample.point_labels.bincount().tolist() == [7, 2, 2]
    assert data.read("b", Kind).mask is None


def test_a_mask_that_fits_a_turned_image_either_way_is_refused(tmp_path: Path) -> None:
    mask(tmp_path / "masks/a.png", LABELS)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "images/a.png", exif=exif(3))
    with pytest.raises(BadFile, match=r"images/a\.png: its EXIF orientation turns it, and nothing tells"):
        Folders(tmp_path).read("a", [Kind.MASKS])
    Image.new("RGB", (3, 4)).save(tmp_path / "images/a.png", exif=exif(6))
    assert Folders(tmp_path).read("a", [Kind.MASKS]).mask is not None


def test_unsorted_images_are_divided_by_their_names_alone(tmp_path: Path) -> None:
    for number in range(40):
        image(tmp_path / f"images/{number}.png")
    before = Folders(tmp_path)
    train, val = before.ids("train"), before.ids("val")
    assert not set(train) & set(val) and len(train) + len(val) == 40 and 2 <= len(val) <= 16
    image(tmp_path / "images/new.png")
    assert set(val) <= set(Folders(tmp_path).ids("val"))
    assert set(train) <= set(Folders(tmp_path).ids("train"))


def test_bare_images_need_no_classes_until_somebody_asks(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    data = Folders(tmp_path)
    assert data.read("a", Kind).mask is None and data.kinds("train") == frozenset()
    with pytest.raises(UserError, match=r"no masks, so its classes are unknown; add .*classes\.txt"):
        _ = data.classes
    (tmp_path / "classes.txt").write_text("background\nroad\t128 64 128\n".replace("background", "background\t0 0 0"))
    assert Folders(tmp_path).classes.names == ("background", "road")
    assert Folders(tmp_path).classes.colors == ((0, 0, 0), (128, 64, 128))


def test_the_same_name_in_two_splits_is_qualified(tmp_path: Path) -> None:
    for split, label in (("train", 1), ("val", 0)):
        image(tmp_path / split / "images/0001.png", (1, 1))
        mask(tmp_path / split / "masks/0001.png", [[label]])
    data = Folders(tmp_path)
    assert data.ids("train") == ("train_0001",) and data.ids("val") == ("val_0001",)
    assert [data.read(id, [Kind.MASKS]).mask.tolist() for id in ("train_0001", "val_0001")] == [[[1]], [[0]]]  # type: ignore[union-attr]


def test_masks_that_belong_to_no_image_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a_mask.png", LABELS)
    with pytest.raises(UserError, match=r"no mask has the name of an image \(there is a_mask\.png, .* a\)"):
        Folders(tmp_path).ids("train")


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", (5, 5))
    mask(tmp_path / "masks/a.png", LABELS)
    with pytest.raises(BadFile, match=r"masks/a\.png: it has 4x3 pixels, but the image has 5x5") as caught:
        Folders(tmp_path).read("a", [Kind.MASKS])
    assert caught.value.problem.id == "a"


def test_only_what_is_asked_for_is_opened(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_bytes(b"broken")
    (tmp_path / "classes.txt").write_text("background\nroad\n")
    data = Folders(tmp_path)
    assert data.read("a", [Kind.BOXES, Kind.CAPTIONS]).id == "a"
    with pytest.raises(BadFile):
        data.read("a", [Kind.TAGS])


def test_a_mask_can_be_added_to_an_image(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    (tmp_path / "classes.txt").write_text("background\nroad\ncar\n")
    data = Folders(tmp_path)
    sample = replace(data.read("a"), mask=tv_tensors.Mask(torch.tensor(LABELS, dtype=torch.uint8)))
    data.write(sample)
    assert data.read("a", [Kind.MASKS]).mask.tolist() == LABELS  # type: ignore[union-attr]
    with pytest.raises(UserError, match="plain folders take masks of their own images only"):
        data.write(replace(sample, id="b"))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "secret.png")
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadFile, match="leaves the data set's folder"):
        Folders(tmp_path / "data").read("a")


def test_an_unknown_split_or_image_is_named(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    with pytest.raises(UserError, match="no split 'vla'; did you mean 'val'"):
        Folders(tmp_path).ids("vla")
    with pytest.raises(BadFile, match="no such image"):
        Folders(tmp_path).read("../a")


def test_classes_files_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    for text, reason in (
        ("\n# nothing\n", "names 0 classes"),
        ("a\nb\na\n", "names 'a' twice"),
        ("a\t1 2\n", "'1 2' is not a color"),
        ("a\t1 2 3\nb\n", "only some classes have colors"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(BadFile, match=reason):
            _ = Folders(tmp_path).classes


def test_real_bare_folder_of_camvid_images(tmp_path: Path, real_data: Path) -> None:
    for name, folder in (("train", "images"), ("trainannot", "masks")):
        (tmp_path / folder).mkdir()
        for path in sorted((real_data / "camvid" / name).iterdir())[:3]:
            shutil.copy(path, tmp_path / folder)
    data = Folders(tmp_path)
    assert len(data.classes) == 12
    assert not [problem for id in data.ids("train") + data.ids("val") for problem in data.problems(id, [Kind.MASKS])]
    assert not CamVid.recognises(tmp_path)
