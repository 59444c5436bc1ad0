"""`labelwise convert`: there and back again, and a note for everything that a layout cannot hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import labelwise
from labelwise.datasets.base import DataSet
from labelwise.samples import Kind, Sample
from labelwise.verbs import preparation
from tests.coco_folders import annotation, coco_folder, listed, write_json, yolo_folder
from tests.conftest import VOC_IDS, Called, voc_xml

Call = Callable[..., Called]
FIRST = VOC_IDS[0]


@pytest.fixture(autouse=True)
def first_time() -> None:
    """Notes are said once per process; let this be a new one."""
    preparation.note.cache_clear()


def converted(data: Path, to: str, out: Path) -> DataSet:
    labelwise.convert(data, to=to, out=out)
    dataset = labelwise.open(out)
    assert dataset.layout == to.upper()
    return dataset


def same(left: Sample, right: Sample, *names: str) -> None:
    for name in names:
        ours, theirs = getattr(left, name), getattr(right, name)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs), name
        else:
            assert ours == theirs, name


def test_voc_to_coco_and_back(voc_folder: Path, tmp_path: Path) -> None:
    captions = voc_folder / "Captions"
    captions.mkdir()
    (captions / f"{FIRST}.txt").write_text("A cat.\nA person and a cat.\n")
    coco = converted(voc_folder, "coco", tmp_path / "coco")
    back = converted(tmp_path / "coco", "voc", tmp_path / "back")
    source = labelwise.open(voc_folder)
    assert back.classes == coco.classes == source.classes
    for split in ("train", "val"):
        assert back.ids(split) == coco.ids(split) == source.ids(split)
    for id in VOC_IDS:
        first, middle, last = (data.read(id, Kind) for data in (source, coco, back))
        for other in (middle, last):
            same(first, other, "boxes", "box_labels", "difficult", "tags", "captions")
            assert other.instances is not None and first.instances is not None
            order = [first.instance_labels.tolist().index(label) for label in other.instance_labels.tolist()]  # type: ignore[union-attr]
            assert torch.equal(other.instances, first.instances[order])
        # The contour alone cannot be said by objects.
        known = first.mask.numpy() != 255  # type: ignore[union-attr]
        assert np.array_equal(last.mask.numpy()[known], first.mask.numpy()[known])  # type: ignore[union-attr]
        assert back.image_file(id).read_bytes() == source.image_file(id).read_bytes()


def test_voc_to_yolo_and_back_by_outlines(voc_folder: Path, tmp_path: Path) -> None:
    for number, id in enumerate(VOC_IDS):
        boxes = [("cat", (4, 3, 14, 10 + number), 0), ("person", (19, 7, 29, 22), 0)]
        (voc_folder / f"Annotations/{id}.xml").write_text(voc_xml(id, *boxes))
    yolo = converted(voc_folder, "yolo", tmp_path / "yolo")
    back = converted(tmp_path / "yolo", "voc", tmp_path / "back")
    source = labelwise.open(voc_folder)
    assert yolo.kinds("train") >= {Kind.INSTANCES, Kind.MASKS}
    for id in VOC_IDS:
        first, middle, last = (data.read(id, Kind) for data in (source, yolo, back))
        same(first, last, "boxes", "box_labels", "difficult", "tags")
        assert first.boxes is not None and torch.allclose(first.boxes, middle.boxes, atol=1e-4)  # type: ignore[arg-type]
        assert {mask.numpy().tobytes() for mask in first.instances} == {
            mask.numpy().tobytes() for mask in last.instances
        }  # type: ignore[union-attr]
    assert back.ids("val") == source.ids("val")


def test_voc_to_yolo_and_back_by_boxes(voc_folder: Path, tmp_path: Path) -> None:
    (voc_folder / f"SegmentationObject/{FIRST}.png").unlink()
    result = labelwise.convert(voc_folder, to="yolo", out=tmp_path / "yolo")
    # Outlines of some images and boxes of others would be a data set of neither.
    assert result["lost"] == {"masks": 6, "instances": 5, "difficult": 3}
    back, source = converted(tmp_path / "yolo", "voc", tmp_path / "back"), labelwise.open(voc_folder)
    for id in VOC_IDS:
        same(source.read(id, [Kind.BOXES]), back.read(id, [Kind.BOXES]), "boxes", "box_labels")
    assert back.kinds("train") == {Kind.BOXES, Kind.TAGS}


def test_everything_that_shapes_draw(shapes_folder: Path, tmp_path: Path, call: Call) -> None:
    called = call("convert", shapes_folder, "--to", "coco", "--out", tmp_path / "coco", "--json")
    assert called.code == 0 and called.json["images"] == 16 and called.json["splits"] == {"train": 12, "val": 4}
    assert called.json["lost"] == {"points": 16}
    assert [line for line in called.err.splitlines() if line.startswith("note: ")] == [
        "note: 16 images lose something that coco cannot hold: points"
    ]
    coco, source = labelwise.open(tmp_path / "coco"), labelwise.open(shapes_folder)
    for id in source.ids("train"):
        first, last = (data.read(id, Kind) for data in (source, coco))
        same(first, last, "mask", "boxes", "box_labels", "tags", "captions")


def test_the_lossless_way_says_nothing(shapes_folder: Path, tmp_path: Path, call: Call) -> None:
    called = call("convert", shapes_folder, "--to", "voc", "--out", tmp_path / "copy")
    assert called.code == 0 and called.err == ""
    assert called.out == f"16 images in VOC layout in {tmp_path / 'copy'}\n"
    for path in (shapes_folder / "JPEGImages").iterdir():
        assert (tmp_path / "copy/JPEGImages" / path.name).read_bytes() == path.read_bytes()
    source, copy = labelwise.open(shapes_folder), labelwise.open(tmp_path / "copy")
    for id in source.ids("val"):
        first, last = source.read(id, Kind), copy.read(id, Kind)
        same(first, last, "mask", "instances", "boxes", "difficult", "tags", "points", "point_labels", "captions")


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_what_objects_cannot_say_is_counted(voc_folder: Path, tmp_path: Path, call: Call, to: str) -> None:
    (voc_folder / "Captions").mkdir()
    (voc_folder / f"Captions/{FIRST}.txt").write_text("A cat.\n")
    called = call("convert", voc_folder, "--to", to, "--out", tmp_path / "out", "--json")
    expected = {"masks": 6} if to == "coco" else {"masks": 6, "difficult": 3, "captions": 1}
    assert called.json["lost"] == expected
    assert called.err.count("note: ") == len(expected)


def test_objects_that_overlap_and_fractions_are_told_of_voc(tmp_path: Path, call: Call) -> None:
    root = coco_folder(tmp_path / "coco")
    called = call("convert", root, "--to", "voc", "--out", tmp_path / "voc", "--json")
    assert called.json["lost"] == {"hidden": 1, "fractions": 1}
    assert "note: 1 images lose something that voc cannot hold: pixels of instances that others cover" in called.err
    source, out = labelwise.open(root), labelwise.open(tmp_path / "voc")
    first, last = source.read("a", Kind), out.read("a", Kind)
    same(first, last, "mask", "boxes", "box_labels", "difficult", "tags", "captions")
    assert out.read("d", [Kind.BOXES]).boxes.tolist() == [[0, 1, 6, 7]]  # type: ignore[union-attr]
    # What is unlabelled stays so.
    assert out.ids("train2017") == ("a", "b", "c") and out.having(Kind.BOXES, "abc") == {"a", "b"}


def test_more_objects_than_a_picture_can_number(tmp_path: Path) -> None:
    root = coco_folder(tmp_path / "coco")
    rows = [annotation(1, 3, (number % 20, number // 20, 1, 1)) for number in range(255)]
    write_json(root / "annotations/instances_train2017.json", [listed("a.jpg", 1)], rows)
    assert labelwise.convert(root, to="voc", out=tmp_path / "voc")["lost"] == {"many": 1, "fractions": 1}
    out = labelwise.open(tmp_path / "voc")
    assert out.having(Kind.INSTANCES, ["a"]) == frozenset()
    sample = out.read("a", [Kind.BOXES, Kind.MASKS])
    assert len(sample.boxes) == 255 and int((sample.mask == 1).sum()) == 255  # type: ignore[arg-type]


def test_an_unlabelled_image_stays_unlabelled(tmp_path: Path) -> None:
    root = yolo_folder(tmp_path / "yolo")
    for to in ("coco", "voc", "yolo"):
        data = converted(root, to, tmp_path / to / "out")
        assert data.ids("train") == ("a", "b", "c") and data.having(Kind.BOXES, "abc") == {"a", "b"}


def test_some_splits(voc_folder: Path, tmp_path: Path, call: Call) -> None:
    words = ["--to", "coco", "--out", tmp_path / "out", "--split", "Main/val", "--json"]
    assert call("convert", voc_folder, *words).json["splits"] == {"val": 2}
    assert labelwise.open(tmp_path / "out").splits == ("val",)
    message = call("convert", voc_folder, "--to", "coco", "--out", tmp_path / "b", "--split", "vla").message
    assert message == f"{voc_folder}: no split 'vla'; did you mean 'val'?"


def test_an_image_that_exif_turns_is_stored_upright(voc_folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(voc_folder / f"JPEGImages/{FIRST}.jpg").resize((24, 32)).save(
        voc_folder / f"JPEGImages/{FIRST}.jpg", exif=exif
    )
    data = converted(voc_folder, "coco", tmp_path / "out")
    assert data.read(FIRST, [Kind.BOXES]).image.shape == (3, 24, 32)


@pytest.mark.parametrize("to", ["voc", "coco", "yolo"])
def test_a_stopped_conversion_goes_on(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    whole = converted(shapes_folder, to, tmp_path / "whole")
    copied: list[str] = []
    copy = type(whole).copy_image  # type: ignore[attr-defined]

    def interrupted(self: DataSet, id: str, source: Path) -> None:
        if len(copied) == 5:
            raise KeyboardInterrupt
        copied.append(id)
        copy(self, id, source)

    monkeypatch.setattr(type(whole), "copy_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        labelwise.convert(shapes_folder, to=to, out=tmp_path / "out")
    first = list(copied)
    copied.clear()
    monkeypatch.setattr(type(whole), "copy_image", lambda self, id, source: copied.append(id) or copy(self, id, source))
    result = labelwise.convert(shapes_folder, to=to, out=tmp_path / "out")
    assert len(copied) == 11 and not set(copied) & set(first)
    assert result["lost"] == json.loads((tmp_path / "whole/convert.json").read_text())["result"]["lost"]
    files = {path.relative_to(tmp_path / "whole"): path for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(
        files
    )
    for name, path in files.items():
        if name.name != "convert.json":
            assert (tmp_path / "out" / name).read_bytes() == path.read_bytes(), name
    # The same call once more has nothing to do.
    copied.clear()
    assert labelwise.convert(shapes_folder, to=to, out=tmp_path / "out") == result and not copied


def test_what_cannot_be_converted_is_one_line(call: Call, voc_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("convert", voc_folder, "--to", "coc", "--out", out).message.startswith(
        "--to coc: must be one of voc, coco, yolo; did you mean 'coco'?"
    )
    assert call("convert", voc_folder, "--to", "coco", "--out", voc_folder).message == (
        f"--out {voc_folder}: holds something else than this call's data set; name a new or empty folder"
    )
    file = tmp_path / "file"
    file.write_text("")
    assert call("convert", voc_folder, "--to", "coco", "--out", file).message.startswith(f"--out {file}: is a file")
    (voc_folder / f"SegmentationClass/{FIRST}.png").write_bytes(b"broken")
    assert f"{FIRST}.png: " in call("convert", voc_folder, "--to", "coco", "--out", out).message
    assert not out.exists()


def test_a_finished_conversion_of_something_else_is_refused(call: Call, voc_folder: Path, tmp_path: Path) -> None:
    labelwise.convert(voc_folder, to="coco", out=tmp_path / "out")
    message = call("convert", voc_folder, "--to", "yolo", "--out", tmp_path / "out").message
    assert "holds something else than this call's data set" in message


def some_of_coco(source: Path, root: Path, count: int) -> Path:
    """The images of COCO with crowds, filled up with others, and their annotations."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    chosen: set[int] = set()
    for name in ("instances_train2017.json", "captions_train2017.json"):
        content = json.loads((source / "annotations" / name).read_text())
        if not chosen:
            ranked = sorted(content["annotations"], key=lambda row: (-row["iscrowd"], row["image_id"]))
            chosen = set(list(dict.fromkeys(row["image_id"] for row in ranked))[:count])
        for key, field in (("images", "id"), ("annotations", "image_id")):
            content[key] = [row for row in content[key] if row[field] in chosen]
        (root / "annotations" / name).write_text(json.dumps(content))
    for row in content["images"]:
        shutil.copy(source / "train2017" / row["file_name"], root / "train2017")
    return root


def test_real_images_of_coco_go_to_voc_and_back(real_data: Path, tmp_path: Path) -> None:
    few = some_of_coco(real_data / "coco_mini", tmp_path / "few", 6)
    voc = converted(few, "voc", tmp_path / "voc")
    back = converted(tmp_path / "voc", "coco", tmp_path / "coco")
    source = labelwise.open(few)
    for id in source.ids("train2017"):
        first, middle, last = (data.read(id, [Kind.BOXES, Kind.MASKS, Kind.CAPTIONS]) for data in (source, voc, back))
        same(first, middle, "mask", "box_labels", "difficult", "captions")
        same(first, last, "box_labels", "difficult", "captions")
        assert torch.equal(middle.boxes, last.boxes)  # type: ignore[arg-type]
        assert first.boxes is None or (first.boxes - last.boxes).abs().max() <= 1  # type: ignore[operator]
