from __future__ import annotations

import io
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelwise.annotator.session import AnnotationSession, UnknownImage
from labelwise.datasets.queries import Query, QueryFile, write_queries
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind
from tests.annotator.sessions import FIRST, SECOND, bare, journal, new, points_on_disk, queries, session
from tests.conftest import CAT, VOC_IDS
from tests.odd_images import exif

DOG = 12


@pytest.fixture
def folder(voc_folder: Path) -> Path:
    """A VOC folder without labels."""
    return bare(voc_folder)


def test_a_data_set_without_images_is_refused(folder: Path) -> None:
    (folder / "ImageSets/Segmentation/train.txt").write_text("")
    with pytest.raises(UserError, match="split 'train' has no image to label"):
        session(folder)


@pytest.mark.parametrize("place", ["Labelling", "Points", "."])
def test_a_folder_that_cannot_be_written_to_is_named_at_the_start(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = __import__("tempfile").TemporaryFile
    (folder / "Points").mkdir()

    def refuse(dir: Path) -> object:
        if dir == folder / place:
            raise OSError(30, "Read-only file system")
        return real(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError) as caught:
        session(folder)
    assert str(caught.value).startswith(f"{folder / place}: cannot be written to (Read-only file system); ")
    assert not (folder / "Labelling/journal.jsonl").exists()


def test_one_session_at_a_time(folder: Path) -> None:
    one = session(folder)
    with pytest.raises(UserError, match="another labelwise labels this data set already"):
        session(folder)
    one.close()
    session(folder).close()


def test_an_unknown_split_and_a_bad_journal_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="no split 'trian'"):
        AnnotationSession(VOC(folder), "trian", folder / "Labelling")
    session(folder).close()
    (folder / "Labelling/journal.jsonl").write_text("nonsense\n")
    with pytest.raises(BadFile, match=r"journal\.jsonl: line 1"):
        session(folder)


# -------------------------------------------------------------- what is shown


def test_the_listing_filters_searches_orders_and_pages(folder: Path) -> None:
    one = session(folder, queries=queries(folder, VOC_IDS[3::-1]))
    one.answer_point(new(), SECOND, 4, 5, CAT, 1.0)

    def ids(filter: str = "all", search: str = "", order: str = "list", offset: int = 0, count: int = 9) -> list[str]:
        return [image["id"] for image in one.images(filter, search, order, offset, count)["images"]]

    assert ids() == list(VOC_IDS[:4]) and ids(order="least_sure") == list(VOC_IDS[3::-1])
    assert ids(offset=1, count=2) == list(VOC_IDS[1:3]) and ids(offset=9) == [] == ids(count=0)
    assert ids("points") == [SECOND] and ids("unlabeled") == [FIRST, *VOC_IDS[2:4]]
    assert ids(search="000002") == [SECOND] and ids("points", search="000001") == []
    assert one.images("all", "", "list", 0, 1) == {
        "total": 4,
        "images": [{"id": FIRST, "height": 24, "width": 32, "kinds": [], "problem": None, "uncertainty": 0.7}],
    }
    for wrong in ({"filter": "captions"}, {"order": "size"}):
        with pytest.raises(ValueError, match=r"'captions' is none of|'size' is neither"):
            ids(**wrong)


def test_the_description_has_colors_and_keys(folder: Path) -> None:
    told = session(folder, queries=queries(folder)).describe()
    assert told["classes"][CAT] == {"number": 8, "name": "cat", "key": "o", "position": None, "color": "#400000"}
    assert (told["images"], told["split"], told["round"], told["ignore"], told["background"]) == (4, "train", 2, 255, 0)
    assert told["has_predictions"] is False


def test_more_classes_than_keys_leave_some_without_a_key(folder: Path) -> None:
    (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(50)))
    classes = session(folder).describe()["classes"]
    assert len(classes) == 50 and sum(entry["key"] is None for entry in classes) == 14


@pytest.mark.parametrize("call", ["labels", "mask", "thumbnail", "image_file", "heartbeat", "answer", "tags"])
def test_only_the_images_of_the_split_are_known(folder: Path, call: str) -> None:
    one = session(folder)
    for id in (VOC_IDS[5], "../secret", ""):
        with pytest.raises(UnknownImage) as caught:
            {
                "labels": lambda: one.labels(id),  # noqa: B023
                "mask": lambda: one.mask(id, "labels"),  # noqa: B023
                "thumbnail": lambda: one.thumbnail(id, False),  # noqa: B023
                "image_file": lambda: one.image_file(id),  # noqa: B023
                "heartbeat": lambda: one.heartbeat(id, "t"),  # noqa: B023
                "answer": lambda: one.answer_point(new(), id, 0, 0, 1, 1.0),  # noqa: B023
                "tags": lambda: one.set_tags(new(), id, 0, [], 1.0),  # noqa: B023
            }[call]()
        assert str(caught.value) == f"there is no image '{id}' in split 'train'"


def test_the_masks_of_a_model_are_shown(folder: Path, tmp_path: Path) -> None:
    one = session(folder)
    with pytest.raises(UnknownImage, match="no mask"):
        one.mask(FIRST, "labels")
    with pytest.raises(UnknownImage, match="no mask"):
        one.mask(FIRST, "prediction")
    predicted = tmp_path / "predicted"
    VOC.create(predicted, VOC(folder).classes)
    (predicted / "SegmentationClass").mkdir()
    Image.fromarray(np.full((24, 32), CAT, np.uint8)).save(predicted / f"SegmentationClass/{FIRST}.png")
    one.load_predictions(predicted)
    assert one.mask(FIRST, "prediction").max() == CAT and one.labels(FIRST)["prediction"] is True
    assert one.labels(FIRST)["mask"] is False and one.labels(SECOND)["prediction"] is False
    (predicted / "classes.txt").write_text("background\nother\n")
    with pytest.raises(UserError, match="its classes are not those of"):
        one.load_predictions(predicted)


def test_tabs_learn_of_each_other_until_they_are_silent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    one = session(folder)
    assert one.heartbeat(FIRST, "a")["others"] is False
    assert one.heartbeat(FIRST, "b")["others"] is True and one.heartbeat(FIRST, "a")["others"] is True
    assert one.heartbeat(SECOND, "b")["others"] is False
    assert one.heartbeat(FIRST, "a")["others"] is False, "the other tab went to another image"
    one.heartbeat(FIRST, "b")
    now += 16
    assert one.heartbeat(FIRST, "a")["others"] is False


@pytest.mark.parametrize(("orientation", "told"), [(6, True), (8, True), (3, False), (2, False)])
def test_a_turned_image_is_labeled_upright_or_not_at_all(folder: Path, orientation: int, told: bool) -> None:
    path = folder / f"JPEGImages/{FIRST}.jpg"
    Image.new("RGB", (32, 24), (9, 9, 9)).save(path, exif=exif(orientation))
    one = session(folder)
    size = (32, 24) if told else (24, 32)
    labels = one.labels(FIRST)
    assert (labels["height"], labels["width"]) == size
    mask = np.full(size, CAT, np.uint8)
    if not told:
        assert "EXIF orientation" in labels["problem"]
        with pytest.raises(BadFile, match="store it without EXIF orientation"):
            one.answer_point(new(), FIRST, 3, 20, CAT, 1.0)
        one.set_tags(new(), FIRST, labels["revision"], [CAT], 1.0)
        return
    assert labels["problem"] is None
    one.answer_point(new(), FIRST, 3, 30, CAT, 1.0)
    revision = one.labels(FIRST)["revision"]
    revision = one.set_boxes(new(), FIRST, revision, [{"box": [1, 2, 20, 31], "class": CAT}], 1.0)["revision"]
    one.set_mask(new(), FIRST, revision, mask, 1.0)
    sample = VOC(folder).read(FIRST, (Kind.POINTS, Kind.BOXES, Kind.MASKS))
    assert sample.points is not None and sample.points.tolist() == [[3, 30]]
    assert sample.boxes is not None and sample.boxes.tolist() == [[1, 2, 20, 31]]
    assert one.labels(FIRST)["points"] == [{"x": 3, "y": 30, "class": CAT}]
    with Image.open(io.BytesIO(one.thumbnail(FIRST, True))) as thumbnail:
        assert thumbnail.size == (24, 32)


# -------------------------------------------------------- many, and at one time


def many(folder: Path, count: int, pixels: int) -> Path:
    """Give the split train this many images, each with some queries."""
    for place in range(count):
        shutil.copy(folder / f"JPEGImages/{FIRST}.jpg", folder / f"JPEGImages/many_{place}.jpg")
    ids = [f"many_{place}" for place in range(count)]
    (folder / "ImageSets/Segmentation/train.txt").write_text("".join(f"{id}\n" for id in ids))
    rows = [Query(id, 24, 32, tuple(range(pixels)), (0,) * pixels) for id in ids]
    write_queries(folder / "many.json", QueryFile(tuple(rows), "random", None, 0))
    return folder / "many.json"


def test_memory_stays_flat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    one = session(folder, queries=many(folder, 20, 30))
    reply = one.queries(8)

    def label(count: int) -> None:
        nonlocal reply
        for _ in range(count):
            query = reply["queries"][0]
            reply = one.answer_point(new(), query["id"], query["x"], query["y"], CAT, 1.0)

    label(60)
    tracemalloc.start()
    label(200)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 200 * 1000, f"{grown / 200:.0f} bytes for each answer"


def test_threads_lose_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    one = session(folder, queries=many(folder, 8, 10))
    failures: list[BaseException] = []

    def label(place: int) -> None:
        try:
            for x in range(10):
                one.answer_point(new(), f"many_{place}", x, 0, CAT, 1.0)
                one.labels(f"many_{(place + 1) % 8}")
                one.images("points", "", "list", 0, 5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=label, args=(place,)) for place in range(8)]
    one.start_checking()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    assert not failures
    assert [line["number"] for line in journal(folder)] == list(range(1, 81))
    for place in range(8):
        assert [x for x, *_ in points_on_disk(folder, f"many_{place}")] == list(range(10))


def test_checking_finds_what_nobody_has_looked_at(folder: Path) -> None:
    (folder / f"JPEGImages/{SECOND}.jpg").write_bytes(b"no image")
    one = session(folder)
    assert one.images("broken", "", "list", 0, 9)["total"] == 0
    one.check()
    assert [image["id"] for image in one.images("broken", "", "list", 0, 9)["images"]] == [SECOND]
    assert one.labels(SECOND)["width"] == 0
