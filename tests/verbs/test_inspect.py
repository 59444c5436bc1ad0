from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import labelwise
from labelwise import methods
from labelwise.datasets.voc import VOC_NAMES
from tests.conftest import CAT, PERSON, VOC_IDS, Called, save_palette, voc_xml

Call = Callable[..., Called]


def test_labels_are_counted_per_kind_and_split(call: Call, voc_folder: Path) -> None:
    (voc_folder / f"Annotations/{VOC_IDS[0]}.xml").unlink()
    (voc_folder / f"SegmentationObject/{VOC_IDS[0]}.png").unlink()
    (voc_folder / f"SegmentationClass/{VOC_IDS[5]}.png").unlink()
    found = call("inspect", voc_folder, "--json")
    assert found.code == 0 and found.err == ""
    summary = found.json
    assert summary["data"] == str(voc_folder) and summary["layout"] == "VOC"
    assert summary["classes"] == list(VOC_NAMES) and summary["background"] == 0
    assert summary["splits"] == {"train": 4, "val": 2}
    assert summary["kinds"]["masks"] == {"train": 4, "val": 1}
    assert summary["kinds"]["instances"] == {"train": 3, "val": 1}
    assert summary["kinds"]["boxes"] == {"train": 3, "val": 2}
    assert summary["kinds"]["tags"] == {"train": 4, "val": 2}
    assert "captions" not in summary["kinds"]
    assert summary["problems"] == []


def test_classes_are_counted_in_images_pixels_and_objects(call: Call, voc_folder: Path) -> None:
    balance = call("inspect", voc_folder, "--json").json["balance"]
    masks = [np.array(Image.open(path)) for path in sorted((voc_folder / "SegmentationClass").iterdir())]
    labelled = sum((mask != 255).sum() for mask in masks)
    for number, name in ((0, "background"), (CAT, "cat"), (PERSON, "person"), (3, "bird")):
        share = 100 * sum((mask == number).sum() for mask in masks) / labelled
        assert balance[name]["pixels"] == pytest.approx(share, abs=0.005)
    assert [balance[name]["images"] for name in ("background", "cat", "person", "bird")] == [6, 6, 6, 0]
    assert [balance[name]["objects"] for name in ("background", "cat", "person", "bird")] == [0, 6, 6, 0]


def test_sizes_are_height_and_width(call: Call, voc_folder: Path) -> None:
    Image.new("RGB", (50, 40)).save(voc_folder / f"JPEGImages/{VOC_IDS[0]}.jpg")
    for folder in ("SegmentationClass", "SegmentationObject"):
        save_palette(voc_folder / folder / f"{VOC_IDS[0]}.png", np.zeros((40, 50)))
    (voc_folder / f"Annotations/{VOC_IDS[0]}.xml").unlink()
    found = call("inspect", voc_folder, "--json", "--out", voc_folder.parent)
    assert "50 × 40" in (voc_folder.parent / "inspect.html").read_text()
    assert found.json["sizes"] == {
        "smallest": [24, 32],
        "median": [24, 32],
        "largest": [40, 50],
        "common": [{"size": [24, 32], "images": 5}, {"size": [40, 50], "images": 1}],
    }


def test_methods_that_fit_are_told(call: Call, voc_folder: Path) -> None:
    found = call("inspect", voc_folder, "--json").json["methods"]
    assert {method["name"]: method["fits"] for method in found} == dict.fromkeys(methods.METHODS, True)
    for folder in ("SegmentationClass", "SegmentationObject"):
        shutil.rmtree(voc_folder / folder)
    found = call("inspect", voc_folder, "--json").json
    # Boxes are left, and the tags that follow from them.
    names = ["bas", "cam", "fast_rcnn", "faster_rcnn", "fd_mobilenet", "rcnn", "w_ood"]
    assert [method["name"] for method in found["methods"] if method["fits"]] == names
    assert f"methods that fit: {', '.join(names)}\n" in call("inspect", voc_folder).out


def break_files(root: Path) -> dict[str, str]:
    """Break a file in six ways; file -> a part of the reason."""
    image = root / f"JPEGImages/{VOC_IDS[0]}.jpg"
    image.write_bytes(image.read_bytes()[:400])
    Image.new("RGB", (32, 24), (1, 2, 3)).save(root / f"SegmentationClass/{VOC_IDS[1]}.png")
    save_palette(root / f"SegmentationClass/{VOC_IDS[2]}.png", np.full((24, 32), 37))
    save_palette(root / f"SegmentationClass/{VOC_IDS[3]}.png", np.zeros((24, 30)))
    inverted = voc_xml(VOC_IDS[4], ("cat", (14, 3, 4, 10), 0))
    (root / f"Annotations/{VOC_IDS[4]}.xml").write_text(inverted)
    (root / f"Annotations/{VOC_IDS[5]}.xml").write_text("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>")
    return {
        f"JPEGImages/{VOC_IDS[0]}.jpg": "cannot be decoded",
        f"SegmentationClass/{VOC_IDS[1]}.png": "color picture",
        f"SegmentationClass/{VOC_IDS[2]}.png": "label 37",
        f"SegmentationClass/{VOC_IDS[3]}.png": "30x24 pixels, but the image has 32x24",
        f"Annotations/{VOC_IDS[4]}.xml": "object 1",
        f"Annotations/{VOC_IDS[5]}.xml": "<!DOCTYPE",
    }


def test_every_broken_file_is_listed_with_reason_and_mend(call: Call, voc_folder: Path, tmp_path: Path) -> None:
    reasons = break_files(voc_folder)
    found = call("inspect", voc_folder, "--json", "--out", tmp_path / "page")
    assert found.code == 2
    problems = {Path(problem["path"]).relative_to(voc_folder).as_posix(): problem for problem in found.json["problems"]}
    assert problems.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in problems[name]["reason"] and problems[name]["mend"]
    # The counts are those of the sound images.
    assert found.json["balance"]["cat"]["images"] == 0
    text = call("inspect", voc_folder)
    assert text.code == 2
    assert text.out.count("broken: ") == 6
    page = (tmp_path / "page" / "inspect.html").read_text()
    assert all(Path(name).name in page for name in reasons)


def test_float_boxes_are_taken_and_rounded_boxes_stay_inside(call: Call, voc_folder: Path) -> None:
    floats = voc_xml(VOC_IDS[0], ("cat", (4.5, 3.25, "13.75", 9.5), 0))
    (voc_folder / f"Annotations/{VOC_IDS[0]}.xml").write_text(floats)
    assert call("inspect", voc_folder).code == 0


def test_the_page_shows_pictures_and_reads_as_html(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    found = call("inspect", shapes_folder, "--out", tmp_path / "a" / "b", "--json")
    page = tmp_path / "a" / "b" / "inspect.html"
    assert found.json["page"] == str(page)
    text = page.read_text()
    assert "data:image/png;base64," in text and "ladder" in text and "48 × 48" in text
    assert f"pictures: {page}" in call("inspect", shapes_folder, "--out", tmp_path / "a" / "b").out


def test_a_page_in_place_of_a_file_is_refused(call: Call, shapes_folder: Path) -> None:
    path = shapes_folder / "classes.txt"
    assert call("inspect", shapes_folder, "--out", path).message == f"--out {path}: is a file; name a folder"


def test_bare_images_are_a_data_set_without_labels(call: Call, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    for number in range(6):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"images/{number}.png")
    found = call("inspect", tmp_path, "--json", "--out", tmp_path / "page").json
    assert found["kinds"] == {} and sum(found["splits"].values()) == 6
    assert found["balance"]["thing"] == {"images": 0, "pixels": 0.0, "objects": 0}


def test_the_summary_is_the_same_from_python(call: Call, voc_folder: Path) -> None:
    assert labelwise.inspect(voc_folder) == call("inspect", voc_folder, "--json").json
