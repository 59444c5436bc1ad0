"""YOLO folders as people have them, and as `YOLO.create` writes them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import labelwise.datasets
from labelwise.datasets.base import Classes
from labelwise.datasets.yolo import YOLO
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind
from tests.coco_folders import HEIGHT, WIDTH, save_image, yolo_folder
from tests.datasets.test_coco import CLASSES, drawn
from tests.odd_images import exif

POLYGON = "1 0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.75\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return yolo_folder(tmp_path / "yolo")


def test_splits_images_classes_and_kinds(root: Path) -> None:
    data = labelwise.datasets.open(root)
    assert data.layout == "YOLO" and data.splits == ("train", "val")
    assert data.ids("train") == ("a", "b", "c") and data.ids("val") == ("d",)
    assert data.classes == Classes(("background", "cat", "dog"))
    # An empty file says that there is nothing, a missing one says nothing.
    assert data.having(Kind.BOXES, "abcd") == data.having(Kind.TAGS, "abcd") == set("abd")
    assert data.kinds("train") == {Kind.BOXES, Kind.TAGS}
    assert data.label_files("a", Kind.BOXES) == ((root / "labels/train/a.txt").resolve(),)
    assert data.label_files("c", Kind.BOXES) == ()


def test_boxes_of_an_image(root: Path) -> None:
    data = YOLO(root)
    sample = data.read("a", Kind)
    assert sample.boxes is not None and np.allclose(sample.boxes, [[8, 6, 12, 10], [0, 0, 4, 4]], atol=1e-5)
    assert sample.box_labels is not None and sample.box_labels.tolist() == [1, 2]
    assert sample.difficult is not None and not sample.difficult.any()
    assert sample.tags is not None and sample.tags.tolist() == [0, 1, 1]
    assert sample.instances is None and sample.mask is None
    empty = data.read("b", [Kind.BOXES])
    assert empty.boxes is not None and empty.boxes.shape == (0, 4)
    assert data.read("c", Kind).boxes is None


def test_polygons_of_an_image(tmp_path: Path) -> None:
    data = YOLO(yolo_folder(tmp_path, POLYGON + "0 0.9 0.5 0.2 1\n"))
    sample = data.read("a", Kind)
    assert sample.boxes is not None and np.allclose(sample.boxes, [[2, 4, 10, 12], [16, 0, 20, 16]], atol=1e-5)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:12, 2:10] = 2
    assert sample.instances is not None and np.array_equal(sample.instances.numpy(), mask[None] == 2)
    assert sample.instance_labels is not None and sample.instance_labels.tolist() == [2]
    # An object with a box only might be anywhere in it.
    mask[:, 16:] = 255
    assert sample.mask is not None and np.array_equal(sample.mask.numpy(), mask)
    empty = data.read("b", Kind)
    assert empty.instances is not None and len(empty.instances) == 0 and empty.mask is not None and not empty.mask.any()


def test_only_what_is_asked_for_is_opened(root: Path) -> None:
    (root / "labels/train/a.txt").write_text("broken")
    assert YOLO(root).read("a", [Kind.CAPTIONS]).id == "a"
    with pytest.raises(BadFile):
        YOLO(root).read("a", [Kind.TAGS])


@pytest.mark.parametrize("split", ["val", "valid"])
def test_folders_are_found_without_settings(tmp_path: Path, split: str) -> None:
    for name, folder in (("a", "train"), ("b", split)):
        save_image(tmp_path / f"{folder}/images/{name}.jpg")
        (tmp_path / f"{folder}/labels").mkdir()
        (tmp_path / f"{folder}/labels/{name}.txt").write_text("0 0.5 0.5 1 1")
    data = labelwise.datasets.open(tmp_path)
    assert data.layout == "YOLO" and data.ids("train") == ("a",) and data.ids("val") == ("b",)
    with pytest.raises(UserError, match=r"its classes have no names; add .*classes\.txt"):
        _ = data.classes
    (tmp_path / "obj.names").write_text("cat\n")
    assert labelwise.datasets.open(tmp_path).read("b", [Kind.BOXES]).boxes is not None


def test_settings_of_roboflow(tmp_path: Path) -> None:
    save_image(tmp_path / "train/images/a.jpg")
    save_image(tmp_path / "valid/images/b.jpg")
    text = (
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']\nroboflow:\n  v: 1\n"
    )
    (tmp_path / "data.yaml").write_text(text)
    data = labelwise.datasets.open(tmp_path)
    assert data.splits == ("train", "val") and data.ids("val") == ("b",)


def test_lists_of_images_and_names_by_number(root: Path) -> None:
    (root / "some.txt").write_text("./images/train/c.jpg\nimages/train/a.jpg\n")
    text = "path: .\ntrain: [some.txt, images/val]\nval: images/val\ntest:\nmini: some.txt\nnames: {0: cat, 1: 5}\n"
    (root / "data.yaml").write_text(text)
    data = YOLO(root)
    assert data.splits == ("train", "val", "mini") and data.ids("train") == ("c", "a", "d")
    assert data.ids("mini") == ("c", "a") and data.classes.names == ("background", "cat", "5")


def test_images_in_one_folder_are_divided_by_their_names(tmp_path: Path) -> None:
    for number in range(20):
        save_image(tmp_path / f"images/{number}.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/0.txt").write_text("")
    data = labelwise.datasets.open(tmp_path)
    train, val = data.ids("train"), data.ids("val")
    assert data.layout == "YOLO" and len(train) + len(val) == 20 and not set(train) & set(val) and val


def test_folders_of_masks_stay_what_they_are(tmp_path: Path) -> None:
    for folder in ("images", "masks", "labels"):
        save_image(tmp_path / folder / "train/a.png")
    assert labelwise.datasets.open(tmp_path).layout == "folders"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [cat", "it is no YAML"),
        ("- cat", "it is not a list of settings"),
        ("names: [cat, cat]", "2 names, 1 of them different"),
        ("names: []", "0 names"),
        ("names: [yes, no]", "its names are no list of words; .* quotes around yes, no"),
        ("names: cat", "its names are no list of words"),
        ("names: {1: cat, 2: dog}", "its names have the numbers .'1', '2'."),
        ("names: [cat, dog]\nnc: 3", "2 names, but nc is 3"),
        ("names: !!python/object/apply:os.system ['echo']", "it is no YAML"),
        ("names: &a [*a]", "its names are no list of words"),
    ],
)
def test_settings_that_make_no_sense_are_refused(root: Path, text: str, reason: str) -> None:
    (root / "data.yaml").write_text(text)
    with pytest.raises(BadFile, match=reason) as caught:
        _ = YOLO(root).classes
    assert caught.value.problem.path == root / "data.yaml" and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ("/etc", "'/etc' is an absolute path"),
        ("images/../../x", "'images/../../x' leaves the data set's folder"),
        ("list.txt", "'../../secret.jpg' leaves the data set's folder"),
    ],
)
def test_paths_out_of_the_folder_are_refused(root: Path, train: str, reason: str) -> None:
    (root / "list.txt").write_text("../../secret.jpg\n")
    (root / "data.yaml").write_text(f"train: {train}\nnames: [cat]\n")
    with pytest.raises(BadFile, match=reason):
        YOLO(root).ids("train")


def test_a_list_that_names_missing_images_is_refused(root: Path) -> None:
    (root / "list.txt").write_text("images/train/a.jpg\nimages/train/z.jpg\n")
    (root / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    with pytest.raises(BadFile, match=r"list\.txt: it lists 1 of 2 images that are missing: images/train/z\.jpg"):
        YOLO(root).ids("train")


def test_a_turned_image_is_refused(root: Path) -> None:
    save_image(root / "images/train/a.jpg", exif=exif(6))
    with pytest.raises(BadFile, match="its EXIF orientation turns it, and nothing tells"):
        YOLO(root).read("a", [Kind.BOXES])
    assert YOLO(root).read("a").id == "a"


def test_links_out_of_the_folder_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "labels/train/a.txt", tmp_path / "a.txt")
    (root / "labels/train/a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(BadFile, match="leaves the data set's folder"):
        YOLO(root).read("a", [Kind.BOXES])


# -------------------------------------------------------------------- writing


def test_boxes_that_are_written_are_read_back(tmp_path: Path) -> None:
    sample = drawn("é 1")
    writing = YOLO.create(tmp_path / "new", CLASSES)
    writing.write(sample)
    writing.write(replace(drawn("z"), boxes=None, instances=None))
    writing.write_split("train", ("z", "é 1"))
    data = labelwise.datasets.open(tmp_path / "new")
    assert data.layout == "YOLO" and data.ids("train") == ("z", "é 1") and data.classes.names == CLASSES.names
    back = data.read("é 1", Kind)
    assert sample.boxes is not None and back.boxes is not None and torch.allclose(back.boxes, sample.boxes, atol=1e-5)
    assert sample.box_labels is not None and torch.equal(back.box_labels, sample.box_labels)  # type: ignore[arg-type]
    assert data.having(Kind.BOXES, ("z", "é 1")) == {"é 1"} and back.instances is None


def test_instances_of_several_parts_are_one_polygon_without_loss(tmp_path: Path) -> None:
    sample = drawn("a")
    writing = YOLO.create(tmp_path / "new", CLASSES, polygons=True)
    writing.write(sample)
    writing.write_split("train", ("a",))
    lines = (tmp_path / "new/labels/a.txt").read_text().splitlines()
    assert [len(line.split()) > 5 for line in lines] == [True, False, True]
    back = labelwise.datasets.open(tmp_path / "new").read("a", Kind)
    assert torch.equal(back.instances, sample.instances) and torch.equal(back.instance_labels, sample.instance_labels)  # type: ignore[arg-type]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    writing = YOLO.create(tmp_path / "new", CLASSES)
    with pytest.raises(UserError, match=r"split .train. names 1 images that .* lacks: a"):
        writing.write_split("train", ("a",))
    with pytest.raises(ValueError, match="an object of class 0"):
        writing.write(replace(drawn("a"), box_labels=torch.tensor([0, 1, 2])))
    with pytest.raises(UserError, match="holds something else already"):
        YOLO.create(tmp_path / "new", Classes(("background", "emu")))
