from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelwise.annotator.session import Conflict
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile
from labelwise.samples import Kind
from tests.annotator.sessions import FIRST, SECOND, bare, files, journal, new, points_on_disk, queries, session
from tests.conftest import CAT, PERSON

DOG = 12


@pytest.fixture
def folder(voc_folder: Path) -> Path:
    """A VOC folder without labels."""
    return bare(voc_folder)


def test_tags_boxes_and_a_mask_are_ordinary_labels_at_once(folder: Path) -> None:
    one = session(folder)
    revision = one.labels(FIRST)["revision"]
    revision = one.set_tags(new(), FIRST, revision, [PERSON, CAT, CAT], 4.0)["revision"]
    box = {"box": [1, 2, 9, 10.0], "class": CAT, "difficult": True}
    revision = one.set_boxes(new(), FIRST, revision, [box], 8.0)["revision"]
    mask = np.full((24, 32), 255, np.uint8)
    mask[3:9, 2:7] = CAT
    reply = one.set_mask(new(), FIRST, revision, mask, 60.0)
    assert reply["statistics"]["masks"]["answers"] == 1
    sample = VOC(folder).read(FIRST, (Kind.MASKS, Kind.BOXES, Kind.TAGS))
    assert sample.mask is not None and np.array_equal(sample.mask.numpy(), mask)
    assert sample.boxes is not None and sample.boxes.tolist() == [[1, 2, 9, 10]]
    assert sample.difficult is not None and sample.difficult.tolist() == [True]
    assert sample.tags is not None and sample.tags.nonzero().flatten().tolist() == [CAT, PERSON]
    with Image.open(folder / f"SegmentationClass/{FIRST}.png") as image:
        assert image.mode == "P"
    labels = one.labels(FIRST)
    assert labels["tags"] == [CAT, PERSON] and labels["boxes"] == [box] and labels["mask"] is True
    assert labels["revision"] == reply["revision"] and labels["problem"] is None
    assert np.array_equal(one.mask(FIRST, "labels"), mask)
    assert [line["kind"] for line in journal(folder)] == ["tags", "boxes", "masks"]
    assert one.images("all", "", "list", 0, 1)["images"][0]["kinds"] == ["tags", "boxes", "masks"]


def test_the_same_answer_twice_is_one_change(folder: Path) -> None:
    one = session(folder)
    mask = np.zeros((24, 32), np.uint8)
    tags, boxes, drawn = new(), new(), new()
    for _ in range(2):
        revision = one.labels(FIRST)["revision"]
        revision = one.set_tags(tags, FIRST, revision, [CAT], 1.0)["revision"]
        revision = one.set_boxes(boxes, FIRST, revision, [], 1.0)["revision"]
        assert one.set_mask(drawn, FIRST, revision, mask, 1.0)["revision"] == one.labels(FIRST)["revision"]
    assert len(journal(folder)) == 3


def test_nobody_saves_over_what_he_has_not_seen(folder: Path) -> None:
    one = session(folder)
    seen = one.labels(FIRST)["revision"]
    one.set_boxes(new(), FIRST, seen, [], 1.0)
    before = files(folder)
    for save in (
        lambda: one.set_tags(new(), FIRST, seen, [CAT], 1.0),
        lambda: one.set_boxes(new(), FIRST, seen, [], 1.0),
        lambda: one.set_mask(new(), FIRST, seen, np.zeros((24, 32), np.uint8), 1.0),
    ):
        with pytest.raises(Conflict) as caught:
            save()
        assert caught.value.revision == one.labels(FIRST)["revision"] != seen
    assert files(folder) == before and len(journal(folder)) == 1


def test_the_revision_tells_of_changes_by_anybody_and_of_this_image_only(folder: Path) -> None:
    one = session(folder, queries=queries(folder))
    other = one.labels(SECOND)["revision"]
    seen = [one.labels(FIRST)["revision"]]

    def changed() -> bool:
        seen.append(one.heartbeat(FIRST, "tab")["revision"])
        assert 0 <= seen[-1] < 2**31
        return seen[-1] not in seen[:-1]

    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    assert changed()
    one.set_tags(new(), FIRST, seen[-1], [CAT], 1.0)
    assert changed()
    path = folder / f"Points/{FIRST}.json"
    path.write_text(path.read_text() + "\n")
    assert changed()
    path.unlink()
    assert changed()
    one.close()
    one = session(folder, queries=queries(folder))
    assert not changed(), "a new start alone changes nothing"
    assert one.labels(SECOND)["revision"] == other


def test_difficult_tags_stay_until_they_are_changed(folder: Path) -> None:
    one = session(folder)
    one.set_tags(new(), FIRST, one.labels(FIRST)["revision"], [CAT], 1.0)
    (folder / "ImageSets/Main/dog_tagged.txt").write_text(f"{FIRST} 0\n")
    assert one.labels(FIRST)["tags"] == [CAT]
    one.set_tags(new(), FIRST, one.labels(FIRST)["revision"], [], 1.0)
    assert (folder / "ImageSets/Main/dog_tagged.txt").read_text() == f"{FIRST} 0\n"
    one.set_tags(new(), FIRST, one.labels(FIRST)["revision"], [DOG], 1.0)
    assert (folder / "ImageSets/Main/dog_tagged.txt").read_text() == f"{FIRST}  1\n"


@pytest.mark.parametrize("tag", [0, 21, -1])
def test_a_tag_that_is_none_is_refused(folder: Path, tag: int) -> None:
    one = session(folder)
    with pytest.raises(ValueError, match="no class that an image can show"):
        one.set_tags(new(), FIRST, one.labels(FIRST)["revision"], [CAT, tag], 1.0)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((32, 24), np.uint8), "24x32 pixels, but the image has 32x24"),
        (np.full((24, 32), 21, np.uint8), "label 21"),
        (np.zeros((24, 32), np.int64), "uint8"),
        (np.zeros((1, 24, 32), np.uint8), "uint8"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(folder: Path, mask: np.ndarray, words: str) -> None:
    one = session(folder)
    with pytest.raises(ValueError, match=words):
        one.set_mask(new(), FIRST, one.labels(FIRST)["revision"], mask, 1.0)
    assert journal(folder) == [] and not (folder / f"SegmentationClass/{FIRST}.png").exists()


def test_a_mask_of_the_further_ones_is_shown_and_saved_beside_them(folder: Path) -> None:
    mask = np.full((24, 32), CAT, np.uint8)
    (folder / "SegmentationClassAug").mkdir()
    aug = folder / f"SegmentationClassAug/{FIRST}.png"
    Image.fromarray(mask).save(aug)
    before = aug.read_bytes()
    one = session(folder)
    assert np.array_equal(one.mask(FIRST, "labels"), mask)
    one.set_mask(new(), FIRST, one.labels(FIRST)["revision"], mask * 0, 1.0)
    assert one.mask(FIRST, "labels").max() == 0 and aug.read_bytes() == before


def test_boxes_without_flags_of_the_page_and_an_image_without_objects(voc_folder: Path) -> None:
    one = session(voc_folder)
    boxes = one.labels(SECOND)["boxes"]
    assert [box["difficult"] for box in boxes] == [False, True]
    one.set_boxes(new(), SECOND, one.labels(SECOND)["revision"], [{"box": boxes[0]["box"], "class": CAT}], 1.0)
    assert one.labels(SECOND)["boxes"] == boxes[:1]
    one.set_boxes(new(), SECOND, one.labels(SECOND)["revision"], [], 1.0)
    sample = VOC(voc_folder).read(SECOND, (Kind.BOXES,))
    assert sample.boxes is not None and len(sample.boxes) == 0
    with pytest.raises(ValueError, match="box 1 is inverted"):
        one.set_boxes(
            new(),
            SECOND,
            one.labels(SECOND)["revision"],
            [{"box": [5, 5, 1, 1], "class": CAT, "difficult": False}],
            1.0,
        )


# ------------------------------------------------------ what others did by hand


def test_a_label_file_that_was_made_nonsense_of_is_listed_and_never_overwritten(voc_folder: Path) -> None:
    (voc_folder / "Points").mkdir()
    spoiled = {
        "points": voc_folder / f"Points/{FIRST}.json",
        "boxes": voc_folder / f"Annotations/{FIRST}.xml",
        "masks": voc_folder / f"SegmentationClass/{FIRST}.png",
    }
    good = {kind: path.read_bytes() for kind, path in spoiled.items() if path.exists()}
    for kind, path in spoiled.items():
        path.write_text("nonsense")
        one = session(voc_folder, queries=queries(voc_folder))
        revision = one.labels(FIRST)["revision"]
        save = {
            "points": lambda one=one: one.answer_point(new(), FIRST, 4, 5, CAT, 1.0),
            "boxes": lambda one=one, revision=revision: one.set_boxes(new(), FIRST, revision, [], 1.0),
            "masks": lambda one=one, revision=revision: one.set_mask(
                new(), FIRST, revision, np.zeros((24, 32), np.uint8), 1.0
            ),
        }[kind]
        problem = one.labels(FIRST)["problem"]
        assert problem.startswith(f"{path}: ") and "\n" not in problem
        assert one.images("broken", "", "list", 0, 9)["images"][0]["problem"] == problem
        with pytest.raises(BadFile) as caught:
            save()
        assert str(caught.value) == problem and path.read_text() == "nonsense" and journal(voc_folder) == []
        assert one.queries(1)["queries"][0]["id"] == (SECOND if kind == "points" else FIRST)
        assert one.thumbnail(FIRST, True).startswith(b"\xff\xd8")
        if kind in good:
            path.write_bytes(good[kind])
        else:
            path.unlink()
        assert one.images("all", "", "list", 0, 1)["images"][0]["problem"] is None, "it was mended"
        assert one.queries(1)["queries"][0]["id"] == FIRST
        one.close()


def test_points_that_were_added_by_hand_stay(folder: Path) -> None:
    one = session(folder, queries=queries(folder))
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.close()
    path = folder / f"Points/{FIRST}.json"
    path.write_text('{"points": [{"x": 30, "y": 20, "class": "dog"}]}')
    again = session(folder, queries=queries(folder))
    assert points_on_disk(folder) == [(30, 20, "dog")], "what was removed by hand does not come back"
    again.answer_point(new(), FIRST, 9, 6, CAT, 1.0)
    assert points_on_disk(folder) == [(30, 20, "dog"), (9, 6, "cat")]


def test_labels_that_appear_during_the_session_are_seen(folder: Path) -> None:
    one = session(folder)
    assert one.images("masks", "", "list", 0, 9)["total"] == 0
    Image.fromarray(np.full((24, 32), CAT, np.uint8)).save(folder / f"SegmentationClass/{FIRST}.png")
    assert one.images("masks", "", "list", 0, 9)["total"] == 1 and one.labels(FIRST)["mask"] is True
