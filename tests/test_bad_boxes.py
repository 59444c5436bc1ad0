"""Odd and wrong boxes in each layout, as a person meets them: `inspect` names the file and the mend, or all is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labelwise
from labelwise.samples import Kind
from tests.coco_folders import HEIGHT, WIDTH, annotation, coco_folder, listed, rectangle, write_json, yolo_folder
from tests.conftest import VOC_IDS, Called, voc_xml

Call = Callable[..., Called]
FIRST = VOC_IDS[0]


def objects(root: Path, *rows: dict[str, Any]) -> Path:
    """Give the first image of a COCO folder these annotations."""
    path = coco_folder(root) / "annotations/instances_train2017.json"
    write_json(path, [listed("a.jpg", 1)], list(rows))
    return path


def refused(call: Call, data: Path, file: Path, reason: str) -> None:
    """`inspect` lists the one broken file with its reason and a mend, and training refuses it in one line."""
    inspected = call("inspect", data, "--json")
    assert inspected.code == 2, inspected.err
    (problem,) = inspected.json["problems"]
    assert problem["path"] == str(file.resolve()) and problem["mend"]
    assert reason in problem["reason"] and "\n" not in problem["reason"]
    message = call("convert", data, "--to", "voc", "--out", data.parent / "out").message
    assert message == f"{problem['path']}: {problem['reason']}; {problem['mend']}"
    assert not (data.parent / "out").exists()


# ------------------------------------------------------------------------ VOC


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((40, 3, 50, 10), "a box outside the 32x24 image"),
        ((-9, 3, -2, 10), "a box outside the 32x24 image"),
        ((14, 3, 13, 10), "an inverted box"),
        ((14, 3, 4, 10), "an inverted box"),
        (("nan", 3, 14, 10), "'nan' for xmin"),
        (("1e999", 3, 14, 10), "'1e999' for xmin"),
    ],
)
def test_voc_boxes_that_are_none(call: Call, voc_folder: Path, box: tuple[object, ...], reason: str) -> None:
    path = voc_folder / f"Annotations/{FIRST}.xml"
    path.write_text(voc_xml(FIRST, ("cat", box, 0)))
    refused(call, voc_folder, path, f"object 1 ('cat') has {reason}")


def test_voc_objects_of_an_unknown_class(call: Call, voc_folder: Path) -> None:
    path = voc_folder / f"Annotations/{FIRST}.xml"
    path.write_text(voc_xml(FIRST, ("snake", (4, 3, 14, 10), 0)))
    refused(call, voc_folder, path, "object 1 has the unknown class 'snake'")


@pytest.mark.parametrize(
    "objects", [(), (("cat", (4.5, 3.25, 14, 10), 0),), (("cat", (4, 3, 14, 10), 1),), (("cat", (-3, 3, 40, 10), 0),)]
)
def test_voc_annotations_that_are_fine(call: Call, voc_folder: Path, objects: tuple[Any, ...]) -> None:
    (voc_folder / f"Annotations/{FIRST}.xml").write_text(voc_xml(FIRST, *objects))
    assert call("inspect", voc_folder).code == 0
    sample = labelwise.open(voc_folder).read(FIRST, [Kind.BOXES, Kind.TAGS])
    assert len(sample.boxes) == len(objects)
    expected = 255 if objects and objects[0][2] else len(objects)
    assert sample.tags[8] == expected


# ----------------------------------------------------------------------- COCO


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [30, 1, 5, 5]}, "a box outside the 20x16 image"),
        ({"bbox": [-9, 1, 5, 5]}, "a box outside the 20x16 image"),
        ({"bbox": [1, 1, 0, 5]}, "a box of width 0 and height 5"),
        ({"bbox": [9, 9, -4, 5]}, "a box of width -4 and height 5"),
        ({"bbox": [1, 1, float("nan"), 5]}, "no box of four numbers (x, y, width, height) but [1, 1, NaN, 5]"),
        ({"bbox": [1, 1, 5]}, "no box of four numbers (x, y, width, height) but [1, 1, 5]"),
        ({"bbox": ["1", 1, 5, 5]}, "no box of four numbers"),
        ({"bbox": None}, "no box of four numbers (x, y, width, height) but null"),
        ({"category_id": 99}, "the unknown category id 99"),
        ({"category_id": [3]}, "the unknown category id [3]"),
        ({"category_id": None}, "the unknown category id null"),
        ({"iscrowd": 2}, "an 'iscrowd' or 'ignore' that is neither 0 nor 1"),
        ({"segmentation": [[1, 1, 2, 2, 3]]}, "a polygon of 5 coordinates, which is an odd number"),
        ({"segmentation": [[1, 1, 2, 2]]}, "a polygon of 2 points"),
        ({"segmentation": [[1, 1, 2, 2, 3, float("inf")]]}, "a polygon with a coordinate that is no finite number"),
        ({"segmentation": [[1, 1, 2, 2, 3, 10**12]]}, "a polygon far outside the 20x16 image"),
        ({"segmentation": {"size": [16, 21], "counts": [336]}}, "a run-length mask of size [16, 21] in an image of"),
        ({"segmentation": {"size": [10**6, 10**6], "counts": [10**12]}}, "a run-length mask of size [1000000"),
        ({"segmentation": {"size": [16, 20], "counts": [300]}}, "run lengths that do not add up"),
        ({"segmentation": {"size": [16, 20], "counts": "oooooooooooooooo"}}, "run lengths that are damaged"),
        ({"segmentation": "all of it"}, "a segmentation that is neither a list of polygons nor an object"),
    ],
)
def test_coco_annotations_that_are_none(call: Call, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = objects(tmp_path / "coco", annotation(1, 3, (2, 2, 4, 4)), annotation(1, 3, (1, 1, 5, 5)) | changes)
    found = call("inspect", tmp_path / "coco", "--json")
    assert found.code == 2
    # Boxes, outlines and masks come from one file, so that one fault may be a problem of several kinds of label.
    (problem,) = found.json["problems"]
    assert problem["path"] == str(path.resolve())
    assert problem["reason"].startswith("object 2 of 'a.jpg' (") and reason in problem["reason"]
    refused(call, tmp_path / "coco", path, reason)


@pytest.mark.parametrize(
    "row",
    [
        None,
        annotation(1, 3, (2.5, 2.25, 4.125, 4)),
        annotation(1, 3, (2, 2, 4, 4), iscrowd=1),
        annotation(1, 3, (-2, 2, 400, 4), segmentation=[rectangle(-2, 2, 30, 4)]),
        annotation(1, 3, (2, 2, 0.2, 0.2)),
    ],
)
def test_coco_annotations_that_are_fine(call: Call, tmp_path: Path, row: dict[str, Any] | None) -> None:
    objects(tmp_path / "coco", *([] if row is None else [row]))
    assert call("inspect", tmp_path / "coco").code == 0
    sample = labelwise.open(tmp_path / "coco").read("a", [Kind.BOXES])
    assert len(sample.boxes) == (row is not None)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in sample.boxes.reshape(-1, 2).tolist())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"images": [', "it is no whole json file"),
        ("[]", "it is no json object"),
        (
            json.dumps({"images": [listed("a.jpg", 1)], "annotations": [{"image_id": 2}]}),
            "annotation 1 is of the image",
        ),
        (json.dumps({"images": [listed("a.jpg", 1), listed("b.jpg", 1)]}), "it lists the image id 1 twice"),
        (json.dumps({"images": [listed("a.jpg", 1) | {"width": -1}]}), "image 1 ('a.jpg') states the width -1"),
    ],
)
def test_a_coco_file_that_is_none(call: Call, tmp_path: Path, content: str, reason: str) -> None:
    path = coco_folder(tmp_path / "coco") / "annotations/instances_train2017.json"
    path.write_text(content)
    for words in (["inspect"], ["convert", "--to=voc", f"--out={tmp_path / 'out'}"]):
        message = call(words[0], tmp_path / "coco", *words[1:]).message
        assert message.startswith(f"{path.resolve()}: {reason}") and message.count("; ") >= 1


def test_an_image_of_too_many_objects(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from labelwise.datasets import coco_labels, regions

    path = objects(tmp_path / "coco", *[annotation(1, 3, (2, 2, 4, 4))] * 3)
    monkeypatch.setattr(regions, "PIXEL_LIMIT", 2 * WIDTH * HEIGHT)
    refused(call, tmp_path / "coco", path, "'a.jpg' has 3 masks of 20x16 pixels")
    monkeypatch.setattr(coco_labels, "OBJECT_LIMIT", 2)
    path.write_text(path.read_text() + "\n")
    refused(call, tmp_path / "coco", path, "'a.jpg' has 3 objects, more than 2")


# ----------------------------------------------------------------------- YOLO


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 1.5 0.5 0.2 0.2", "line 2 has 1.5, which is not from 0 to 1"),
        ("0 12 8 4 4", "line 2 has 12, which is not from 0 to 1"),
        ("0 0.5 0.5 0 0.2", "line 2 has a box of width 0 and height 0.2"),
        ("0 0.5 0.5 -0.2 0.2", "line 2 has a box of width -0.2 and height 0.2"),
        ("0 nan 0.5 0.2 0.2", "line 2 has a number that is not finite"),
        ("0 0.5 0.5 0.2", "line 2 has 4 numbers instead of 5 (a box)"),
        ("0 0.5 0.5 0.2 0.2 0.9", "line 2 has 6 numbers instead of 5"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.1 0.4", "line 2 has 8 numbers instead of 5"),
        ("0 0.1 0.1 0.2 0.1 0.3 0.1", "line 2 has no area within the image"),
        ("0 1.01 0.5 0.02 0.2", "line 2 has no area within the image"),
        ("cat 0.5 0.5 0.2 0.2", "line 2 has something that is no number"),
        ("0.5 0.5 0.5 0.2 0.2", "line 2 has the class '0.5', which is no whole number"),
        ("-1 0.5 0.5 0.2 0.2", "line 2 has the class '-1', which is no whole number"),
        ("2 0.5 0.5 0.2 0.2", "line 2 has the class 2, but there are 2 classes"),
    ],
)
def test_yolo_lines_that_are_none(call: Call, tmp_path: Path, line: str, reason: str) -> None:
    root = yolo_folder(tmp_path / "yolo", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    refused(call, root, root / "labels/train/a.txt", reason)


@pytest.mark.parametrize("text", ["", "\n", "0 0.5 0.5 1.004 1.004\n", "1.0 0.5 0.5 0.25 0.25\r\n"])
def test_yolo_files_that_are_fine(call: Call, tmp_path: Path, text: str) -> None:
    root = yolo_folder(tmp_path / "yolo", text)
    assert call("inspect", root).code == 0
    sample = labelwise.open(root).read("a", [Kind.BOXES])
    assert len(sample.boxes) == bool(text.strip())
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in sample.boxes.reshape(-1, 2).tolist())
