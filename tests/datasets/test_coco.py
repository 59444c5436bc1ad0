"""COCO folders as people have them, and as `COCO.create` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

import labelwise.datasets
from labelwise.datasets.base import Classes
from labelwise.datasets.coco import COCO
from labelwise.datasets.coco_file import Document
from labelwise.datasets.coco_labels import encode_rle
from labelwise.datasets.regions import masks_of_runs, runs_of_encoding
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind, Sample
from tests.coco_folders import CATEGORIES, HEIGHT, WIDTH, annotation, coco_folder, listed, save_image, write_json
from tests.odd_images import exif

OBJECT_KINDS = (Kind.INSTANCES, Kind.BOXES, Kind.MASKS, Kind.TAGS, Kind.POINTS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "coco")


def test_splits_images_classes_and_kinds(root: Path) -> None:
    data = COCO(root)
    assert data.splits == ("train2017", "val2017")
    assert data.ids("train2017") == ("a", "b", "c") and data.ids("val2017") == ("d",)
    assert data.classes == Classes(("background", "cat", "dog"))
    assert all(data.having(kind, "abcd") == set("abd") for kind in OBJECT_KINDS)
    assert data.having(Kind.CAPTIONS, "abcd") == {"a"}
    assert data.image_file("a") == (root / "train2017/a.jpg").resolve()
    assert labelwise.datasets.open(root).layout == "COCO"


def test_objects_of_an_image(root: Path) -> None:
    sample = COCO(root).read("a", Kind)
    assert sample.boxes is not None and sample.boxes.tolist() == [[2, 3, 6, 8], [1, 1, 11, 13], [18, 0, 20, 16]]
    assert sample.boxes.dtype == torch.float32
    assert sample.box_labels is not None and sample.box_labels.tolist() == [1, 2, 1]
    assert sample.difficult is not None and sample.difficult.tolist() == [False, False, True]
    assert sample.tags is not None and sample.tags.tolist() == [0, 1, 1]
    assert sample.captions == ("A cat on a dog.", "Pets.")
    # The larger object comes first, the crowd not at all.
    assert sample.instance_labels is not None and sample.instance_labels.tolist() == [2, 1]
    expected = np.zeros((2, HEIGHT, WIDTH), bool)
    expected[0, 1:13, 1:11] = expected[1, 3:8, 2:6] = True
    assert sample.instances is not None and np.array_equal(sample.instances.numpy(), expected)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[1:13, 1:11] = 2
    mask[3:8, 2:6] = 1
    mask[:, 18:] = 255
    assert sample.mask is not None and np.array_equal(sample.mask.numpy(), mask)
    assert sample.points is not None and len(sample.points) == (mask != 255).sum()


def test_a_listed_image_without_annotations_has_no_object_and_an_unlisted_one_no_labels(root: Path) -> None:
    data = COCO(root)
    empty = data.read("b", Kind)
    assert empty.boxes is not None and empty.boxes.shape == (0, 4)
    assert empty.instances is not None and empty.instances.shape == (0, HEIGHT, WIDTH)
    assert empty.mask is not None and not empty.mask.any() and empty.captions is None
    bare = data.read("c", Kind)
    assert bare == replace(bare, mask=None, boxes=None, tags=None, instances=None, captions=None)


def test_float_boxes_stay_floats(root: Path) -> None:
    sample = COCO(root).read("d", [Kind.BOXES])
    assert sample.boxes is not None and sample.boxes.tolist() == [[0.5, 1.25, 6, 7.25]]


def test_captions_open_no_instances_and_the_other_way_round(root: Path) -> None:
    (root / "annotations/instances_train2017.json").write_text("must not be opened")
    data = COCO(root)
    assert data.ids("train2017") == ("a", "b", "c")
    assert data.having(Kind.CAPTIONS, "abc") == {"a"}
    assert data.read("a", [Kind.CAPTIONS]).captions == ("A cat on a dog.", "Pets.")
    assert data.label_files("a", Kind.CAPTIONS) == ((root / "annotations/captions_train2017.json").resolve(),)
    coco_folder(root)
    (root / "annotations/captions_train2017.json").write_text("must not be opened")
    (root / "annotations/instances_val2017.json").unlink()
    data = COCO(root)
    assert data.read("a", OBJECT_KINDS).boxes is not None
    assert data.label_files("a", Kind.MASKS) == ((root / "annotations/instances_train2017.json").resolve(),)


def test_objects_without_an_outline_are_boxes_and_ignored_in_masks(root: Path) -> None:
    objects = [annotation(41, 3, (2, 3, 4, 5)), annotation(41, 7, (10.5, 1, 4, 4), segmentation=[], ignore=1)]
    boxed = annotation(40, 7, (1, 1, 4, 4))
    del boxed["segmentation"]
    images = [listed("a.jpg", 41), listed("b.jpg", 40)]
    write_json(root / "annotations/instances_train2017.json", images, [*objects, boxed])
    data = COCO(root)
    sample = data.read("a", Kind)
    assert sample.difficult is not None and sample.difficult.tolist() == [False, True]
    assert sample.instance_labels is not None and sample.instance_labels.tolist() == [1]
    assert sample.mask is not None and sample.mask[2, 10] == sample.mask[2, 14] == 255 and sample.mask[2, 15] == 0
    # An image with nothing but boxes says nothing about pixels.
    assert data.having(Kind.MASKS, "ab") == {"a"} and data.having(Kind.BOXES, "ab") == set("ab")


def test_files_of_boxes_alone_give_neither_instances_nor_masks(root: Path) -> None:
    rows = [annotation(41, 3, (2, 3, 4, 5), segmentation=[])]
    write_json(root / "annotations/instances_train2017.json", [listed("a.jpg", 41), listed("b.jpg", 40)], rows)
    data = COCO(root)
    assert data.kinds("train2017") == {Kind.BOXES, Kind.TAGS, Kind.CAPTIONS}


def test_images_in_one_folder_are_divided_by_the_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "unlisted"):
        save_image(tmp_path / f"images/sub/{name}.jpg")
    write_json(tmp_path / "annotations/train.json", [listed("sub/c.jpg", 1), listed("sub\\a.jpg", 2)], [])
    write_json(tmp_path / "annotations/instances_val.json", [listed("images/sub/b.jpg", 1)], [])
    data = labelwise.datasets.open(tmp_path)
    assert data.layout == "COCO" and data.splits == ("train", "val")
    assert data.ids("train") == ("c", "a") and data.ids("val") == ("b",)
    assert data.read("b", [Kind.BOXES]).boxes is not None


def test_an_export_of_roboflow(tmp_path: Path) -> None:
    for folder, name in (("train", "a"), ("valid", "a")):
        save_image(tmp_path / f"{folder}/{name}.jpg")
        write_json(tmp_path / f"{folder}/_annotations.coco.json", [listed(f"{name}.jpg", 0)], [])
    data = labelwise.datasets.open(tmp_path)
    assert data.layout == "COCO" and data.splits == ("train", "val")
    # The same name twice: the folder tells them apart.
    assert data.ids("train") == ("train_a",) and data.ids("val") == ("valid_a",)


def test_bare_images_in_a_folder_of_their_own_are_an_unlabelled_split(root: Path) -> None:
    save_image(root / "unlabeled2017/e.jpg")
    data = COCO(root)
    assert data.ids("unlabeled2017") == ("e",) and data.kinds("unlabeled2017") == frozenset()


def test_the_order_of_classes_may_be_given(root: Path) -> None:
    (root / "classes.txt").write_text("background\ndog\ncat\n")
    sample = COCO(root).read("a", [Kind.BOXES])
    assert sample.box_labels is not None and sample.box_labels.tolist() == [2, 1, 2]


def test_categories_of_several_files_are_put_together(root: Path) -> None:
    path = root / "annotations/instances_val2017.json"
    write_json(path, [listed("d.jpg", 1)], [], categories=[{"id": 5, "name": "emu"}, CATEGORIES[0]])
    assert COCO(root).classes.names == ("background", "cat", "emu", "dog")
    write_json(path, [listed("d.jpg", 1)], [], categories=[{"id": 3, "name": "emu"}])
    with pytest.raises(BadFile, match="category 3 is 'emu', but another file calls 3 'cat'"):
        _ = COCO(root).classes


def test_annotations_may_come_before_images_and_ids_may_be_words(root: Path) -> None:
    content = {
        "categories": CATEGORIES,
        "annotations": [annotation(0, 3, (1, 1, 2, 2)) | {"image_id": "x", "id": 1}],
        "licenses": [{"nested": [1, {"images": []}]}],
        "images": [listed("a.jpg", 0) | {"id": "x"}],
    }
    for indent in (None, 2):
        (root / "annotations/instances_train2017.json").write_text(json.dumps(content, indent=indent))
        assert COCO(root).read("a", [Kind.BOXES]).boxes.tolist() == [[1, 1, 3, 3]]  # type: ignore[union-attr]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=4), st.sampled_from([None, 1]), JSON)
def test_a_file_is_walked_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int | None, other: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "walked.json"
    rows = [row | {"image_id": number % 2} for number, row in enumerate(rows)]
    content = {"other": other, "annotations": rows, "images": [listed("a.jpg", 0), listed("b.jpg", 1)]}
    path.write_text(json.dumps(content, indent=indent))
    document = Document(path)
    assert document.annotations(0) == rows[::2] and document.annotations(1) == rows[1::2]


@pytest.mark.parametrize("cut", range(0, 90, 7))
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.json"
    write_json(path, [listed("a.jpg", 1)], [annotation(1, 3, (1, 1, 2, 2))])
    text = path.read_text()
    path.write_text(text[: len(text) * cut // 100])
    with pytest.raises(BadFile, match=r"cut\.json: (it is no whole json file|it is no json object)"):
        Document(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda all: all["images"].append(listed("b.jpg", 41)), r"image id 41 twice \('a.jpg' and 'b.jpg'\)"),
        (lambda all: all["images"].append(listed("a.jpg", 44)), "lists the image 'a.jpg' twice"),
        (lambda all: all["images"][0].update(width=-20), "states the width -20 and the height 16"),
        (lambda all: all["images"][0].update(height="16"), "states the width 20 and the height 16"),
        (lambda all: all["images"][0].pop("file_name"), "image 1 lacks an 'id' or a 'file_name'"),
        (lambda all: all["images"][0].update(id=[1]), "image 1 lacks an 'id' or a 'file_name'"),
        (lambda all: all["images"].append(3), "'images' holds something that is no object"),
        (lambda all: all.update(images={}), "'images' is no list"),
        (lambda all: all.pop("images"), "it lacks the list 'images'"),
        (lambda all: all["images"].append(listed("z.jpg", 44)), "lists 1 of 2 images that .*train2017 lacks: z.jpg"),
        (lambda all: all["images"].append(listed("../../z.jpg", 44)), "'../../z.jpg' leaves the data set's folder"),
        (lambda all: all["images"].append(listed("/etc/z.jpg", 44)), "'/etc/z.jpg' leaves the data set's folder"),
        (
            lambda all: all["annotations"][0].update(image_id=99),
            "annotation 1 is of the image id 99, which 'images' la",
        ),
        (lambda all: all["annotations"][0].pop("image_id"), "annotation 1 lacks an 'image_id'"),
        (lambda all: all["categories"].append({"id": 3, "name": "emu"}), r"lists the category 3 \('emu'\) twice"),
        (lambda all: all["categories"].append({"id": "3", "name": "emu"}), "category 3 lacks a number 'id'"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(
    root: Path, spoil: Callable[[dict[str, Any]], None], reason: str
) -> None:
    path = root / "annotations/instances_train2017.json"
    content = {"images": [listed("a.jpg", 41)], "annotations": [{"image_id": 41}], "categories": list(CATEGORIES)}
    spoil(content)
    path.write_text(json.dumps(content))
    data = COCO(root)
    with pytest.raises(BadFile, match=reason) as caught:
        data.having(Kind.BOXES, data.ids("train2017"))
    assert caught.value.problem.path.name == path.name and "\n" not in str(caught.value)


def test_a_member_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "images": []}')
    with pytest.raises(BadFile, match="it has 'images' twice"):
        Document(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(BadFile, match="no json object"):
        Document(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"x": ' + "[" * 100_000)
    with pytest.raises(BadFile, match="no whole json file"):
        Document(tmp_path / "a.json")


def test_an_image_that_is_turned_or_of_another_size_is_refused(root: Path) -> None:
    save_image(root / "train2017/a.jpg", exif=exif(3))
    with pytest.raises(BadFile, match="its EXIF orientation turns it, and nothing tells"):
        COCO(root).read("a", [Kind.BOXES])
    save_image(root / "train2017/a.jpg", (HEIGHT, WIDTH), exif=exif(6))
    assert COCO(root).read("a", [Kind.MASKS]).mask is not None
    save_image(root / "train2017/a.jpg", (WIDTH, HEIGHT + 1))
    with pytest.raises(BadFile, match=r"it states 20x16 pixels for 'a.jpg', which has 20x17; scale its annotations"):
        COCO(root).read("a", [Kind.BOXES])


def test_links_out_of_the_folder_are_refused(root: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "secret.jpg")
    (root / "train2017/a.jpg").unlink()
    (root / "train2017/a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(BadFile, match="leaves the data set's folder"):
        COCO(root).read("a")
    (root / "annotations/captions_val2017.json").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(BadFile, match="leaves the data set's folder"):
        COCO(root).having(Kind.CAPTIONS, ["d"])


# -------------------------------------------------------------------- writing


def drawn(id: str) -> Sample:
    """Two instances that overlap, one of them in two parts with a hole, and a box without one."""
    instances = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    instances[0, 2:12, 2:15] = True
    instances[0, 4:6, 4:6] = False
    instances[0, 14:, 18:] = True
    instances[1, 5:9, 8:12] = True
    boxes = torch.tensor([[8.25, 5, 12, 9], [0.1, 0.7, 3.3, 4.9], [2, 2, 20, 16]])
    return Sample(
        id=id,
        image=tv_tensors.Image(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)),
        instances=tv_tensors.Mask(instances),
        instance_labels=torch.tensor([2, 1]),
        boxes=tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(HEIGHT, WIDTH)),
        box_labels=torch.tensor([1, 1, 2]),
        difficult=torch.tensor([False, True, False]),
        captions=("Ein Bär — so groß.",),
    )


CLASSES = Classes(("background", "cat", "dog"), colors=((0, 0, 0), (1, 2, 3), (4, 5, 6)))


@pytest.mark.parametrize("classes", [CLASSES, Classes(("road", "cat", "dog"), background=None)])
def test_what_is_written_is_read_back(tmp_path: Path, classes: Classes) -> None:
    sample, bare = drawn("é 1"), replace(drawn("z"), boxes=None, instances=None, captions=None)
    writing = COCO.create(tmp_path / "new", classes)
    for written in (bare, sample):
        writing.write(written)
    writing.write_split("train", ("z", "é 1"))
    writing.write_split("val", ("é 1",))
    writing.finish()
    data = labelwise.datasets.open(tmp_path / "new")
    assert data.layout == "COCO" and data.classes == classes and data.splits == ("train", "val")
    assert data.ids("train") == ("z", "é 1") and data.ids("val") == ("é 1",)
    back = data.read("é 1", Kind)
    assert sample.boxes is not None and back.boxes is not None and torch.allclose(back.boxes, sample.boxes, atol=1e-4)
    for name in ("box_labels", "difficult", "instances", "instance_labels"):
        assert torch.equal(getattr(back, name), getattr(sample, name)), name
    assert back.captions == sample.captions
    assert data.having(Kind.BOXES, ("z", "é 1")) == {"é 1"}
    assert not list((tmp_path / "new").rglob("*unfinished*"))


def test_a_set_of_bare_images_keeps_its_lists(tmp_path: Path) -> None:
    writing = COCO.create(tmp_path / "new", CLASSES)
    writing.write(replace(drawn("z"), boxes=None, instances=None, captions=None))
    writing.write_split("train", ("z",))
    assert labelwise.datasets.open(tmp_path / "new").ids("train") == ("z",)


def test_other_tools_read_what_is_written(tmp_path: Path) -> None:
    from faster_coco_eval import COCO as Reference

    writing = COCO.create(tmp_path / "new", CLASSES)
    writing.write(drawn("a"))
    writing.write_split("train", ("a",))
    reference = Reference(str(tmp_path / "new/annotations/instances_train.json"))
    rows = reference.loadAnns(reference.getAnnIds())
    assert [row["category_id"] for row in rows] == [1, 1, 2]
    assert np.array_equal(reference.annToMask(rows[2]).astype(bool), drawn("a").instances[0].numpy())  # type: ignore[index]
    assert rows[2]["area"] == drawn("a").instances[0].sum()  # type: ignore[index]


def test_a_mask_becomes_run_lengths_for_a_json_file() -> None:
    mask = drawn("a").instances[0].as_subclass(torch.Tensor)  # type: ignore[index]
    encoding = json.loads(json.dumps(encode_rle(mask)))
    assert torch.equal(masks_of_runs([runs_of_encoding(encoding, (HEIGHT, WIDTH))], (HEIGHT, WIDTH))[0], mask)


def test_writing_goes_on_after_a_crash(tmp_path: Path) -> None:
    COCO.create(tmp_path / "new", CLASSES).write(drawn("a"))
    journal = tmp_path / "new/annotations/unfinished.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"id": "b", "obj')
    writing = COCO.create(tmp_path / "new", CLASSES)
    writing.write(drawn("b"))
    writing.write(replace(drawn("b"), captions=("anew",)))
    writing.write_split("train", ("a", "b"))
    data = COCO(tmp_path / "new")
    assert data.read("b", [Kind.CAPTIONS]).captions == ("anew",) and len(data.ids("train")) == 2


def test_what_cannot_be_written_is_refused(tmp_path: Path, root: Path) -> None:
    writing = COCO.create(tmp_path / "new", CLASSES)
    with pytest.raises(UserError, match="split 'train' names 1 images that were not written: a"):
        writing.write_split("train", ("a",))
    with pytest.raises(UserError, match="cannot be a file's name"):
        writing.write(drawn("../a"))
    with pytest.raises(ValueError, match="an object of class 0"):
        writing.write(replace(drawn("a"), box_labels=torch.tensor([0, 1, 2])))
    with pytest.raises(UserError, match="holds something else already"):
        COCO.create(tmp_path / "new", Classes(("background", "emu")))
    with pytest.raises(UserError, match="labels cannot be added to the files of COCO"):
        COCO(root).write(drawn("a"))


def test_real_images_of_coco(real_data: Path) -> None:
    data = COCO(real_data / "coco_mini")
    ids = data.ids("train2017")
    assert len(ids) == 80 and len(data.classes) == 81 and data.classes.names[-1] == "toothbrush"
    assert not [problem for id in ids for problem in data.problems(id, tuple(Kind))]
    assert sum(len(data.read(id, [Kind.BOXES]).boxes) for id in ids) == 739  # type: ignore[arg-type]
    assert all(len(data.read(id, [Kind.CAPTIONS]).captions or ()) == 5 for id in ids)
