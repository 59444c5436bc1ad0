from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.images import is_turned
from labelwise.datasets.voc import VOC, VOC_NAMES
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind, Sample
from tests.conftest import save_palette
from tests.odd_images import exif

FIRST = "2007_000001"
CAT, PERSON = 8, 15
EVERYTHING = tuple(Kind)


def refusal(data: VOC, *kinds: Kind, id: str = FIRST) -> str:
    """The message of reading a bad file, which is one line that starts with the file."""
    with pytest.raises(BadFile) as caught:
        data.read(id, kinds)
    message = str(caught.value)
    assert caught.value.problem.id == id and caught.value.problem.mend and "\n" not in message
    assert message.startswith(f"{data.root}/")
    return message.removeprefix(f"{data.root}/")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def annotation(folder: Path) -> Path:
    return folder / f"Annotations/{FIRST}.xml"


def write_list(folder: Path, name: str, content: str) -> None:
    path = folder / "ImageSets" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


def same(a: Sample, b: Sample) -> None:
    for name in ("mask", "instances", "instance_labels", "boxes", "box_labels", "difficult", "tags", "points"):
        one, other = getattr(a, name), getattr(b, name)
        assert one is not None and other is not None and torch.equal(torch.as_tensor(one), torch.as_tensor(other)), name


# ---------------------------------------------------------------------------------------------------------- reading


def test_every_kind_of_a_sample_is_read(voc_folder: Path) -> None:
    data = VOC(voc_folder)
    sample = data.read(FIRST, EVERYTHING)
    assert sample.image.shape == (3, 24, 32)
    assert sample.mask is not None and sample.mask[3, 5] == CAT and sample.mask[5, 20] == 255
    assert sample.instances is not None and sample.instances.dtype == torch.bool
    assert sample.instances.sum(dim=(1, 2)).tolist() == [8 * 11, 16 * 11]
    assert sample.instance_labels is not None and sample.instance_labels.tolist() == [CAT, PERSON]
    assert sample.boxes is not None and sample.boxes.tolist() == [[3, 2, 14, 10], [18, 6, 29, 22]]
    assert sample.boxes.canvas_size == (24, 32)
    assert sample.box_labels is not None and sample.box_labels.tolist() == [CAT, PERSON]
    assert sample.difficult is not None and sample.difficult.tolist() == [False, False]
    assert sample.tags is not None and sample.tags.nonzero().flatten().tolist() == [CAT, PERSON]
    assert sample.points is not None and len(sample.points) == 24 * 32 - 11
    assert sample.captions is None


def test_only_kinds_asked_for_are_filled(voc_folder: Path) -> None:
    sample = VOC(voc_folder).read(FIRST, [Kind.BOXES])
    assert sample.boxes is not None
    assert sample.mask is sample.tags is sample.instances is sample.points is None


def test_difficult_objects_alone_make_neither_present_nor_absent(voc_folder: Path) -> None:
    tags = VOC(voc_folder).read("2007_000002", [Kind.TAGS]).tags
    assert tags is not None and (tags[CAT], tags[PERSON], tags[0], tags[1]) == (1, 255, 0, 0)


@pytest.mark.parametrize("kind", EVERYTHING)
def test_labels_of_other_kinds_are_never_opened(voc_folder: Path, kind: Kind) -> None:
    whole = VOC(voc_folder)
    expected = whole.read(FIRST, [kind])
    allowed = {whole.image_file(FIRST), *whole.label_files(FIRST, kind)}
    for path in voc_folder.rglob("*.*"):
        if path not in allowed and "ImageSets" not in path.parts:
            path.write_bytes(b"forbidden")
    again = VOC(voc_folder).read(FIRST, [kind])
    for name in ("image", "mask", "instances", "boxes", "tags", "points"):
        one, other = getattr(expected, name), getattr(again, name)
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), name


def test_bare_images_are_read_when_all_other_folders_are_gone(voc_folder: Path) -> None:
    ids = VOC(voc_folder).ids("train")
    for folder in ("Annotations", "SegmentationClass", "SegmentationObject", "ImageSets"):
        shutil.rmtree(voc_folder / folder)
    data = VOC(voc_folder)
    assert data.read(ids[0], EVERYTHING).tags is None
    assert data.splits == ("train", "val") and not data.kinds("train")
    assert sorted(data.ids("train") + data.ids("val")) == [f"2007_00000{number}" for number in range(1, 7)]


def test_the_second_folder_of_masks_counts_only_without_the_first(voc_folder: Path) -> None:
    (voc_folder / "SegmentationClassAug").mkdir()
    for id in (FIRST, "2007_000002"):
        Image.fromarray(np.full((24, 32), 20, np.uint8)).save(voc_folder / f"SegmentationClassAug/{id}.png")
    (voc_folder / "SegmentationClass/2007_000002.png").unlink()
    data = VOC(voc_folder)
    first, second = (data.read(id, [Kind.MASKS]).mask for id in (FIRST, "2007_000002"))
    assert first is not None and first.max() == 255
    assert second is not None and second.unique().tolist() == [20]


def test_weaker_kinds_come_from_what_is_left(voc_folder: Path) -> None:
    expected = VOC(voc_folder).read(FIRST, EVERYTHING)
    shutil.rmtree(voc_folder / "Annotations")
    same(VOC(voc_folder).read(FIRST, EVERYTHING), expected)
    shutil.rmtree(voc_folder / "SegmentationObject")
    data = VOC(voc_folder)
    assert data.kinds("train") == {Kind.MASKS, Kind.TAGS, Kind.POINTS}
    tags = data.read(FIRST, [Kind.TAGS]).tags
    assert tags is not None and expected.tags is not None and torch.equal(tags, expected.tags)


def test_points_and_captions_have_files_of_their_own(voc_folder: Path) -> None:
    for folder, name, text in (
        ("Points", f"{FIRST}.json", '{"image": "x", "points": [{"x": 3, "y": 23, "class": "cat"}]}'),
        ("Captions", f"{FIRST}.txt", "a cat\r\n\r\na cat and a man \n"),
    ):
        (voc_folder / folder).mkdir()
        (voc_folder / folder / name).write_text(text)
    sample = VOC(voc_folder).read(FIRST, EVERYTHING)
    assert sample.points is not None and sample.points.tolist() == [[3, 23]]
    assert sample.point_labels is not None and sample.point_labels.tolist() == [CAT]
    assert sample.captions == ("a cat", "a cat and a man")
    shutil.rmtree(voc_folder / "Annotations")
    shutil.rmtree(voc_folder / "SegmentationClass")
    tags = VOC(voc_folder).read(FIRST, [Kind.TAGS]).tags
    assert tags is not None and tags.nonzero().flatten().tolist() == [CAT]


def test_tag_lists_win_over_annotations(voc_folder: Path) -> None:
    ids = VOC(voc_folder).ids("train")
    for name in VOC_NAMES[1:]:
        values = {"dog": "1", "cow": "0"}.get(name, "-1")
        write_list(voc_folder, f"Main/{name}_train", "".join(f"{id} {values:>2}\n" for id in ids))
    data = VOC(voc_folder)
    assert data.splits == ("train", "val")
    tags = data.read(FIRST, [Kind.TAGS]).tags
    assert tags is not None
    assert {VOC_NAMES[number]: int(tags[number]) for number in tags.nonzero().flatten()} == {"dog": 1, "cow": 255}
    assert len(data.label_files(FIRST, Kind.TAGS)) == 20
    for folder in ("Annotations", "SegmentationClass", "SegmentationObject"):
        shutil.rmtree(voc_folder / folder)
    alone = VOC(voc_folder)
    assert alone.kinds("train") == {Kind.TAGS} and not alone.kinds("val")
    again = alone.read(FIRST, [Kind.TAGS]).tags
    assert again is not None and torch.equal(again, tags)
    write_list(voc_folder, "Main/dog_train", f"{FIRST} yes\n")
    assert "Main/dog_train.txt: line 1 is '2007_000001 yes'" in refusal(VOC(voc_folder), Kind.TAGS)
    write_list(voc_folder, "Main/dog_train", "2007_000002 1\n")
    assert "dog_train.txt: it lacks the image '2007_000001'" in refusal(VOC(voc_folder), Kind.TAGS)


def test_an_image_turned_by_exif_takes_a_mask_of_the_turned_size(voc_folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 32)).save(voc_folder / f"JPEGImages/{FIRST}.jpg", exif=exif)
    sample = VOC(voc_folder).read(FIRST, [Kind.MASKS])
    assert sample.image.shape[1:] == (24, 32)
    Image.new("RGB", (32, 24)).save(voc_folder / f"JPEGImages/{FIRST}.jpg", exif=exif)
    message = refusal(VOC(voc_folder), Kind.MASKS)
    assert "it has 32x24 pixels, but the image has 24x32; turn it as the image's EXIF" in message


def turned(root: Path, orientation: int, size: tuple[int, int] = (32, 24)) -> None:
    """Store the first image with this width and height and EXIF orientation."""
    Image.new("RGB", size).save(root / f"JPEGImages/{FIRST}.jpg", exif=exif(orientation))


UNTOLD = (
    f"JPEGImages/{FIRST}.jpg: its EXIF orientation turns it, and nothing tells whether its labels are turned with it; "
    "store it without EXIF orientation, so that the labels fit"
)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_labels_that_fit_a_turned_image_either_way_are_refused(voc_folder: Path, orientation: int) -> None:
    turned(voc_folder, orientation)
    (voc_folder / "Points").mkdir()
    point = {"x": 3, "y": 4, "class": "cat"}
    (voc_folder / f"Points/{FIRST}.json").write_text(json.dumps({"image": FIRST, "points": [point]}))
    for kind in (Kind.MASKS, Kind.INSTANCES, Kind.BOXES, Kind.POINTS):
        assert refusal(VOC(voc_folder), kind) == UNTOLD
    assert VOC(voc_folder).read(FIRST).image.shape == (3, 24, 32)


def test_masks_of_a_turned_square_are_refused(voc_folder: Path) -> None:
    turned(voc_folder, 6, (24, 24))
    save_palette(voc_folder / f"SegmentationClass/{FIRST}.png", np.zeros((24, 24)))
    assert refusal(VOC(voc_folder), Kind.MASKS) == UNTOLD


def test_boxes_of_a_turned_image_are_taken_if_they_state_its_upright_size(voc_folder: Path) -> None:
    turned(voc_folder, 8)
    assert refusal(VOC(voc_folder), Kind.BOXES) == UNTOLD
    turned(voc_folder, 8, (24, 32))
    assert VOC(voc_folder).read(FIRST, [Kind.BOXES]).boxes is not None
    annotation(voc_folder).write_text(re.sub(r"<size>.*</size>", "", annotation(voc_folder).read_text()))
    assert refusal(VOC(voc_folder), Kind.BOXES) == UNTOLD


def test_a_turned_image_is_taken_over_upright(tmp_path: Path, voc_folder: Path) -> None:
    turned(voc_folder, 3)
    source = VOC(voc_folder)
    target = VOC.create(tmp_path / "new", source.classes)
    target.copy_image(FIRST, source.image_file(FIRST))
    assert not is_turned(target.image_file(FIRST)) and is_turned(source.image_file(FIRST))
    mask = tv_tensors.Mask(torch.zeros(24, 32, dtype=torch.uint8))
    target.write(replace(source.read(FIRST), mask=mask))
    assert target.read(FIRST, [Kind.MASKS]).mask is not None


# ---------------------------------------------------------------------------------------------------------- classes


def test_classes_are_found_in_annotations_where_there_is_no_mask(voc_folder: Path) -> None:
    shutil.rmtree(voc_folder / "SegmentationClass")
    for path in (voc_folder / "Annotations").iterdir():
        change(path, "<name>cat<", "<name>WBC<")
    assert VOC(voc_folder).classes.names == ("background", "WBC", "person")


def test_masks_without_a_list_of_classes_are_vocs(voc_folder: Path) -> None:
    change(annotation(voc_folder), "<name>cat<", "<name>WBC<")
    assert VOC(voc_folder).classes.names == VOC_NAMES
    assert "object 1 has the unknown class 'WBC'; correct the name, or list" in refusal(VOC(voc_folder), Kind.BOXES)


def test_a_list_of_classes_is_followed(voc_folder: Path) -> None:
    (voc_folder / "classes.txt").write_text("\ufeffnothing\r\nperson\r\ncat\r\n", encoding="utf-8")
    data = VOC(voc_folder)
    assert data.classes.names == ("nothing", "person", "cat")
    labels = data.read(FIRST, [Kind.BOXES]).box_labels
    assert labels is not None and labels.tolist() == [2, 1]


# ------------------------------------------------------------------------------------------------------------ splits


def test_id_lists_as_they_are_found_in_the_world(voc_folder: Path) -> None:
    shutil.copy(voc_folder / f"JPEGImages/{FIRST}.jpg", voc_folder / "JPEGImages/my image.v2.JPEG")
    content = (
        f"\ufeff{FIRST}\r\n\r\n  2007_000002.jpg \r\n2007_000003  1\r\n{FIRST}\r\nmy image.v2\r\nmy image.v2 -1\r\n"
    )
    write_list(voc_folder, "Main/odd", content)
    data = VOC(voc_folder)
    assert data.ids("odd") == (FIRST, "2007_000002", "2007_000003", "my image.v2")
    assert data.image_file("my image.v2").name == "my image.v2.JPEG"


def test_segmentation_lists_win_and_either_can_be_named(voc_folder: Path) -> None:
    write_list(voc_folder, "Main/train", "2007_000006\n")
    write_list(voc_folder, "Main/train_aug", "2007_000005\n")
    write_list(voc_folder, "Main/cat_train", "2007_000005 1\n")
    data = VOC(voc_folder)
    assert data.splits == ("train", "val", "train_aug")
    assert len(data.ids("train")) == 4 == len(data.ids("Segmentation/train"))
    assert data.ids("Main/train") == ("2007_000006",)
    with pytest.raises(UserError, match="no split 'trian'; did you mean 'train'"):
        data.ids("trian")
    with pytest.raises(UserError, match="no split 'Segmentation/train_aug'"):
        data.ids("Segmentation/train_aug")


def test_a_split_that_names_missing_images_is_refused(voc_folder: Path) -> None:
    write_list(voc_folder, "Segmentation/train", f"{FIRST}\nghost\nspirit 1\n")
    with pytest.raises(UserError) as caught:
        VOC(voc_folder).ids("train")
    message = str(caught.value)
    assert message.startswith(f"{voc_folder}/ImageSets/Segmentation/train.txt: split 'train' names 2 of 3 images")
    assert "ghost, spirit" in message and "\n" not in message


@pytest.mark.parametrize("id", ["../secret", "../../secret", "/etc/passwd", "..", "../../../VOCdevkit/VOC2012x/a"])
def test_ids_that_leave_the_folder_are_refused(voc_folder: Path, id: str) -> None:
    write_list(voc_folder, "Segmentation/train", f"{id}\n")
    data = VOC(voc_folder)
    with pytest.raises(UserError, match=r"train\.txt: '.*' leaves the data set's folder .*; use names below"):
        data.ids("train")
    with pytest.raises(BadFile, match="leaves the data set's folder"):
        data.image_file(id)
    assert data.having(Kind.MASKS, [id]) == frozenset()


# ----------------------------------------------------------------------------------------------------------- oddities


def test_annotations_as_they_are_found_in_the_world(voc_folder: Path) -> None:
    annotation(voc_folder).write_text(
        "<annotation><filename>other.png</filename>"
        "<object><name> cat </name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        "<bndbox><xmax>45.70000076293945</xmax><xmin>0</xmin><ymax>24.0</ymax><ymin>-3</ymin></bndbox></object>"
        "<object><name>person</name><difficult></difficult>"
        "<bndbox><xmin>7</xmin><ymin>9</ymin><xmax>7</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    sample = VOC(voc_folder).read(FIRST, [Kind.BOXES])
    assert sample.boxes is not None and sample.boxes.tolist() == [[0, 0, 32, 24], [6, 8, 7, 9]]
    assert sample.difficult is not None and sample.difficult.tolist() == [False, False]


def test_an_annotation_without_objects_has_no_boxes(voc_folder: Path) -> None:
    annotation(voc_folder).write_text("<annotation/>")
    sample = VOC(voc_folder).read(FIRST, [Kind.BOXES, Kind.TAGS])
    assert sample.boxes is not None and sample.boxes.shape == (0, 4)
    assert sample.tags is not None and not sample.tags.any()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<xmin>4<", "<xmin>40<", "object 1 ('cat') has an inverted box (xmin 40, ymin 3, xmax 14, ymax 10)"),
        ("<xmin>4<", "<xmin>15<", "object 1 ('cat') has an inverted box"),
        ("<xmin>4<", "<xmin>four<", "object 1 ('cat') has 'four' for xmin"),
        ("<xmin>4<", "<xmin>nan<", "object 1 ('cat') has 'nan' for xmin"),
        ("<xmin>4</xmin>", "", "object 1 ('cat') has no <xmin>"),
        (
            "<xmin>4</xmin><ymin>3</ymin><xmax>14<",
            "<xmin>40</xmin><ymin>3</ymin><xmax>50<",
            "object 1 ('cat') has a box outside the 32x24 image",
        ),
        ("<name>cat<", "<name>catt<", "object 1 has the unknown class 'catt'; correct the name"),
        ("<name>cat</name>", "", "object 1 ('') has no <name>"),
        ("bndbox", "box", "it is not well-formed XML"),
        ("<annotation>", "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation>", "it holds <!DOCTYPE"),
        ("<annotation>", "<html><annotation>", "it is not well-formed XML"),
    ],
)
def test_bad_annotations_are_refused(voc_folder: Path, old: str, new: str, reason: str) -> None:
    change(annotation(voc_folder), old, new)
    assert refusal(VOC(voc_folder), Kind.BOXES).startswith(f"Annotations/{FIRST}.xml: {reason}")


def test_a_document_type_cannot_hide_behind_an_encoding(voc_folder: Path) -> None:
    text = '<?xml version="1.0" encoding="{}"?><!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    for encoding in ("utf-16", "utf-8-sig", "latin-1"):
        annotation(voc_folder).write_bytes(text.format(encoding).encode(encoding))
        assert "it holds <!DOCTYPE" in refusal(VOC(voc_folder), Kind.BOXES)
    declared = '<?xml version="1.0" encoding="cp037"?>'
    annotation(voc_folder).write_bytes(declared.encode() + text.partition("?>")[2].encode("cp037"))
    assert "not well-formed" in refusal(VOC(voc_folder), Kind.BOXES)


def test_annotations_of_absurd_size_are_refused(voc_folder: Path) -> None:
    annotation(voc_folder).write_text("<annotation>" + " " * 1_000_000 + "</annotation>")
    assert "larger than 1,000,000 bytes" in refusal(VOC(voc_folder), Kind.BOXES)
    annotation(voc_folder).write_text("<annotation>" + "<object/>" * 10_001 + "</annotation>")
    assert "it has 10001 objects, more than 10,000" in refusal(VOC(voc_folder), Kind.BOXES)


def test_boxes_for_an_image_of_another_size_are_refused(voc_folder: Path) -> None:
    change(annotation(voc_folder), "<width>32</width><height>24<", "<width>320</width><height>240<")
    assert VOC(voc_folder).read(FIRST, [Kind.BOXES]).boxes is not None
    change(annotation(voc_folder), "<xmax>14<", "<xmax>140<")
    assert "its boxes are for an image of 320x240 pixels, but the image has 32x24" in refusal(
        VOC(voc_folder), Kind.BOXES
    )


def test_bad_masks_are_refused(voc_folder: Path) -> None:
    path = voc_folder / f"SegmentationClass/{FIRST}.png"
    Image.fromarray(np.zeros((24, 31), np.uint8)).save(path)
    assert "it has 31x24 pixels, but the image has 32x24; make it anew" in refusal(
        VOC(voc_folder), Kind.TAGS, Kind.MASKS
    )
    Image.fromarray(np.full((24, 32), 37, np.uint8)).save(path)
    assert f"SegmentationClass/{FIRST}.png: label 37, but there are 21 classes" in refusal(VOC(voc_folder), Kind.MASKS)
    Image.new("RGB", (32, 24)).save(path)
    assert "classes' colors instead of class numbers" in refusal(VOC(voc_folder), Kind.MASKS)


def test_an_object_without_class_is_refused(voc_folder: Path) -> None:
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(voc_folder / f"SegmentationClass/{FIRST}.png")
    assert "object 1 has no class in" in refusal(VOC(voc_folder), Kind.INSTANCES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "it is not a file of points (JSONDecodeError"),
        ('{"points": [{"x": 1}]}', "it is not a file of points (KeyError"),
        ('{"points": [{"x": "far", "y": 1, "class": "cat"}]}', "it is not a file of points (ValueError"),
        ('{"points": [{"x": 32, "y": 1, "class": "cat"}]}', "point 1 at (32, 1) lies outside the 32x24 image"),
        ('{"points": [{"x": NaN, "y": 1, "class": "cat"}]}', "point 1 at (nan, 1) lies outside the 32x24 image"),
        (
            '{"points": [{"x": 1, "y": 1, "class": "catt"}]}',
            "point 1 has the unknown class 'catt'; correct the name; did",
        ),
        ('{"points": ' + "[" * 100_000, "it is not a file of points (RecursionError"),
    ],
)
def test_bad_points_are_refused(voc_folder: Path, text: str, reason: str) -> None:
    (voc_folder / "Points").mkdir()
    (voc_folder / f"Points/{FIRST}.json").write_text(text)
    assert refusal(VOC(voc_folder), Kind.POINTS).startswith(f"Points/{FIRST}.json: {reason}")


def test_bad_captions_are_refused(voc_folder: Path) -> None:
    (voc_folder / "Captions").mkdir()
    for content, reason in ((b"\n \n", "it holds no caption"), (b"\xff\xfe\xfa", "it is not UTF-8 text")):
        (voc_folder / f"Captions/{FIRST}.txt").write_bytes(content)
        assert refusal(VOC(voc_folder), Kind.CAPTIONS).startswith(f"Captions/{FIRST}.txt: {reason}")


def test_every_problem_of_an_image_is_listed(voc_folder: Path) -> None:
    annotation(voc_folder).write_text("<annotation>")
    Image.fromarray(np.full((24, 32), 37, np.uint8)).save(voc_folder / f"SegmentationClass/{FIRST}.png")
    data = VOC(voc_folder)
    found = [str(problem) for problem in data.problems(FIRST, EVERYTHING)]
    assert len(found) == 2 and "label 37" in found[0] and "not well-formed" in found[1]
    assert data.problems("2007_000002", EVERYTHING) == []
    (voc_folder / f"JPEGImages/{FIRST}.jpg").write_bytes(b"")
    assert [problem.reason for problem in data.problems(FIRST, EVERYTHING)] == ["it is empty"]


# ------------------------------------------------------------------------------------------------------------ writing


def test_what_is_written_is_read_again(tmp_path: Path, voc_folder: Path) -> None:
    source = VOC(voc_folder)
    sample = replace(source.read("2007_000002", EVERYTHING), captions=("one\nline", "two"))
    target = VOC.create(tmp_path / "new", source.classes)
    target.write(sample)
    target.write_split("train", [sample.id])
    for data in (target, VOC(tmp_path / "new")):
        assert data.ids("train") == (sample.id,) and data.ids("Main/train") == (sample.id,)
        again = data.read(sample.id, EVERYTHING)
        same(again, sample)
        assert again.captions == ("one line", "two")
    assert (tmp_path / f"new/JPEGImages/{sample.id}.jpg").is_file()
    assert (tmp_path / "new/ImageSets/Main/person_train.txt").read_text() == f"{sample.id}  0\n"


def test_images_can_be_taken_over_byte_by_byte(tmp_path: Path, voc_folder: Path) -> None:
    source = VOC(voc_folder)
    target = VOC.create(tmp_path / "new", source.classes)
    target.copy_image(FIRST, source.image_file(FIRST))
    target.write(source.read(FIRST, [Kind.MASKS]))
    assert target.image_file(FIRST).read_bytes() == source.image_file(FIRST).read_bytes()
    with pytest.raises(BadFile, match="does not end like an image"):
        target.copy_image("a", annotation(voc_folder))


def test_masks_are_painted_from_instances_where_there_is_none(tmp_path: Path, voc_folder: Path) -> None:
    source = VOC(voc_folder)
    sample = source.read(FIRST, [Kind.INSTANCES])
    target = VOC.create(tmp_path / "new", source.classes)
    target.write(sample)
    again = target.read(FIRST, [Kind.INSTANCES, Kind.MASKS])
    assert again.mask is not None and again.mask.unique().tolist() == [0, CAT, PERSON]
    assert (
        again.instances is not None and sample.instances is not None and torch.equal(again.instances, sample.instances)
    )


def test_going_on_with_a_data_set_needs_the_same_classes(tmp_path: Path) -> None:
    root = tmp_path / "new"
    colored = Classes(("sky", "road"), background=None, colors=((1, 2, 3), (4, 5, 6)))
    assert VOC.create(root, colored).classes == colored == VOC.create(root, colored).classes
    with pytest.raises(UserError, match="holds a data set with other classes"):
        VOC.create(root, Classes(("sky", "road")))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds something else already"):
        VOC.create(tmp_path / "other", colored)
    with pytest.raises(UserError, match="is a file"):
        VOC.create(tmp_path / "other/thesis.txt", colored)


@pytest.mark.parametrize("id", ["../a", "a/b", "", ".hidden", "a\nb", "c:d"])
def test_ids_that_cannot_be_file_names_are_not_written(tmp_path: Path, id: str) -> None:
    data = VOC.create(tmp_path / "new", Classes(VOC_NAMES))
    with pytest.raises(UserError, match="cannot be a file's name"):
        data.write(Sample(id=id, image=tv_tensors.Image(torch.zeros(3, 2, 2, dtype=torch.uint8))))
    with pytest.raises(UserError, match=r"split 'train' names 1 images that .* lacks: ghost"):
        data.write_split("train", ["ghost"])


def boxes_within(height: int, width: int) -> st.SearchStrategy[list[list[int]]]:
    def interval(size: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True).map(sorted).map(tuple)  # type: ignore[arg-type]

    box = st.tuples(interval(width), interval(height)).map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]])
    return st.lists(box, max_size=6)


@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40))
def test_boxes_survive_writing_and_reading(tmp_path: Path, data: st.DataObject, height: int, width: int) -> None:
    boxes = data.draw(boxes_within(height, width))
    labels = data.draw(st.lists(st.integers(1, 20), min_size=len(boxes), max_size=len(boxes)))
    difficult = data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    folder = VOC.create(tmp_path / "new", Classes(VOC_NAMES))
    (folder.root / "JPEGImages/a.jpg").unlink(missing_ok=True)
    sample = Sample(
        id="a",
        image=tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8)),
        boxes=tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        box_labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.tensor(difficult, dtype=torch.bool),
    )
    folder = VOC(folder.root)
    folder.write(sample)
    again = folder.read("a", [Kind.BOXES])
    for name in ("boxes", "box_labels", "difficult"):
        assert torch.equal(getattr(again, name), getattr(sample, name))


# ---------------------------------------------------------------------------------------------------------- real data


def test_real_voc2012(real_data: Path) -> None:
    data = VOC(real_data / "VOCdevkit/VOC2012")
    assert (len(data.ids("train")), len(data.ids("val"))) == (330, 146)
    assert data.kinds("val") == {Kind.MASKS, Kind.BOXES, Kind.TAGS, Kind.POINTS}
    for id in data.ids("val")[:10]:
        sample = data.read(id, [Kind.MASKS, Kind.BOXES, Kind.TAGS])
        assert sample.mask is not None and sample.box_labels is not None and sample.mask.shape == sample.image.shape[1:]
        assert set(sample.mask.unique().tolist()) - {0, 255} <= set(sample.box_labels.tolist())


def test_real_sets_with_boxes_only(real_data: Path) -> None:
    cells = VOC(real_data / "bccd")
    assert cells.classes.names == ("background", "Platelets", "RBC", "WBC")
    assert cells.splits == ("train", "val", "trainval", "test")
    assert sum(len(cells.read(id, [Kind.BOXES]).boxes) for id in cells.ids("val")[:5]) > 20  # type: ignore[arg-type]
    voc2007 = VOC(real_data / "VOCdevkit/VOC2007")
    assert voc2007.classes.names == VOC_NAMES and len(voc2007.ids("train")) == 676
    assert voc2007.kinds("train") == {Kind.BOXES, Kind.TAGS}


def test_a_relative_folder_is_read_wherever_it_is_named_from(voc_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(voc_folder, voc_folder.parent / "copy/VOC2012")
    for place in (voc_folder.parent, voc_folder.parent / "copy"):
        monkeypatch.chdir(place)
        assert VOC("VOC2012").read(FIRST, [Kind.MASKS]).mask is not None


def test_a_link_out_of_the_folder_is_refused(voc_folder: Path) -> None:
    path = voc_folder / f"SegmentationClass/{FIRST}.png"
    outside = shutil.move(path, voc_folder.parent / "outside.png")
    path.symlink_to(outside)
    with pytest.raises(BadFile, match="leaves the data set's folder"):
        VOC(voc_folder).read(FIRST, [Kind.MASKS])
