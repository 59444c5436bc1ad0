from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from labelwise.annotator.annotations import Boxes, boxes_of, format_boxes, require_boxes, update_boxes
from labelwise.datasets.base import Classes
from labelwise.datasets.voc import VOC_NAMES
from labelwise.datasets.voc_xml import read_annotation
from labelwise.errors import UserError

CLASSES = Classes(VOC_NAMES)
SIZE = (24, 32)
CAT, DOG = 8, 12
XML = """<annotation><folder>mine</folder><filename>a.jpg</filename><note>by hand</note>
<size><width>32</width><height>24</height><depth>3</depth></size><segmented>1</segmented>
<object><name>cat</name><pose>Left</pose><occluded>1</occluded>
<bndbox><xmin>4.25</xmin><ymin>3</ymin><xmax>14</xmax><ymax>10</ymax></bndbox>
<part><name>head</name><bndbox><xmin>5</xmin><ymin>4</ymin><xmax>7</xmax><ymax>6</ymax></bndbox></part></object>
<object><name>dog</name><pose>Right</pose><difficult>1</difficult>
<bndbox><xmin>19</xmin><ymin>7</ymin><xmax>29</xmax><ymax>22</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.xml"
    file.write_text(XML)
    return file


def boxes(*rows: tuple[list[float], int, bool]) -> Boxes:
    return Boxes(
        np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        np.array([label for _, label, _ in rows], np.int64),
        np.array([difficult for *_, difficult in rows], bool),
    )


def updated(path: Path, *rows: tuple[list[float], int, bool]) -> ElementTree.Element:
    path.write_bytes(update_boxes(path, SIZE, boxes(*rows), CLASSES))
    return ElementTree.parse(path).getroot()


def flat(element: ElementTree.Element) -> list[tuple[str, str]]:
    return [(child.tag, (child.text or "").strip()) for child in element.iter()]


def test_boxes_that_did_not_change_keep_their_elements_to_the_letter(path: Path) -> None:
    before = ElementTree.parse(path).getroot()
    after = updated(path, ([3.25, 2, 14, 10], CAT, False), ([18, 6, 29, 22], DOG, True))
    assert flat(after) == flat(before)


def test_a_box_that_was_moved_keeps_its_pose_and_parts(path: Path) -> None:
    cat = updated(path, ([5, 2, 16, 10], CAT, True)).find("object")
    assert cat is not None
    assert (cat.findtext("pose"), cat.findtext("part/name"), cat.findtext("occluded")) == ("Left", "head", "1")
    assert cat.findtext("bndbox/xmin") == "6" and cat.findtext("difficult") == "1"
    assert [child.tag for child in cat][:4] == ["name", "pose", "occluded", "bndbox"]


def test_a_removed_box_goes_and_a_new_one_comes(path: Path) -> None:
    root = updated(path, ([0, 0, 5, 5], DOG, False), ([18, 6, 29, 22], DOG, False))
    first, second = root.findall("object")
    assert (first.findtext("pose"), first.findtext("bndbox/xmax")) == ("Unspecified", "5")
    assert (second.findtext("pose"), second.findtext("difficult")) == ("Right", "0")
    assert root.findtext("note") == "by hand" and root.findtext("folder") == "mine"


def test_a_box_of_another_class_is_another_object(path: Path) -> None:
    (only,) = updated(path, ([3.25, 2, 14, 10], DOG, False)).findall("object")
    assert (only.findtext("name"), only.findtext("pose"), only.find("part")) == ("dog", "Unspecified", None)


def test_of_two_boxes_at_one_place_the_flags_tell_which_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(format_boxes("a.jpg", SIZE, boxes(([1, 1, 9, 9], CAT, False), ([1, 1, 9, 9], CAT, True)), CLASSES,
                                  segmented=False))  # fmt: skip
    path.write_text(path.read_text().replace("Unspecified", "Left", 1))
    first, second = updated(path, ([1, 1, 9, 9], CAT, True), ([1, 1, 9, 9], CAT, False)).findall("object")
    assert (first.findtext("pose"), second.findtext("pose")) == ("Unspecified", "Left")


def test_no_box_leaves_an_annotation_without_objects(path: Path) -> None:
    root = updated(path)
    assert root.findall("object") == [] and root.findtext("note") == "by hand"
    assert len(read_annotation(path).names) == 0


def test_a_missing_size_is_stated(path: Path) -> None:
    path.write_text("<annotation><filename>a</filename></annotation>")
    updated(path, ([1, 1, 9, 9], CAT, False))
    assert read_annotation(path).size == SIZE


def test_a_new_annotation_is_read_as_it_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(format_boxes("a.jpg", SIZE, boxes(([1, 2, 9, 10], CAT, True)), CLASSES, segmented=True))
    annotation = read_annotation(path)
    assert annotation.boxes.tolist() == [[1, 2, 9, 10]] and annotation.difficult.tolist() == [True]
    assert annotation.names == ("cat",) and annotation.size == SIZE


@pytest.mark.parametrize(
    ("box", "label", "words"),
    [
        ([1, 2, 3, 4], 0, "class"),
        ([1, 2, 3, 4], 21, "class"),
        ([3, 2, 3, 4], CAT, "inverted"),
        ([3, 5, 4, 4], CAT, "inverted"),
        ([0, 0, float("nan"), 4], CAT, "inverted"),
        ([32, 2, 40, 4], CAT, "outside"),
        ([-5, 2, 0, 4], CAT, "outside"),
    ],
)
def test_a_box_that_cannot_be_is_refused_in_one_line(box: list[float], label: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"box 2.*{words}|{words}.*box 2|of box 2") as caught:
        require_boxes([{"box": [0, 0, 1, 1], "class": CAT}, {"box": box, "class": label}], SIZE, CLASSES)
    assert "\n" not in str(caught.value)


def test_the_boxes_of_a_journal_need_known_classes() -> None:
    row = {"box": [1, 2, 3, 4], "class": "dog", "difficult": True}
    assert boxes_of([row], CLASSES).labels.tolist() == [DOG]
    assert boxes_of([], CLASSES).boxes.shape == (0, 4)
    with pytest.raises(UserError, match="unknown class 'yeti'"):
        boxes_of([row | {"class": "yeti"}], CLASSES)
