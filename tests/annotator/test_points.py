from __future__ import annotations

from pathlib import Path

import pytest

from labelwise.annotator import clicks
from labelwise.annotator.session import AnnotationSession, Conflict
from labelwise.datasets.journal import measured_costs
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile
from labelwise.samples import Kind
from tests.annotator.sessions import FIRST, SECOND, bare, journal, new, points_on_disk, queries, session
from tests.conftest import CAT, VOC_IDS

DOG = 12


@pytest.fixture
def folder(voc_folder: Path) -> Path:
    """A VOC folder without labels."""
    return bare(voc_folder)


def next_pixels(reply: dict) -> list[tuple[str, int, int]]:
    return [(query["id"], query["x"], query["y"]) for query in reply["queries"]]


def test_twenty_answers_are_on_the_disk_as_specified(folder: Path) -> None:
    with_queries = session(folder, queries=queries(folder))
    reply = with_queries.queries(8)
    assert reply["done"] == 0 and reply["total"] == 12 and (reply["round"], reply["strategy"]) == (2, "margin")
    for step in range(12):
        query = reply["queries"][0]
        reply = with_queries.answer_point(new(), query["id"], query["x"], query["y"], (CAT, DOG)[step % 2], 1.5)
        assert reply["done"] == step + 1
    assert reply["queries"] == [] and reply["passed_over"] == 0
    assert points_on_disk(folder) == [(4, 5, "cat"), (9, 6, "dog"), (20, 3, "cat")]
    sample = VOC(folder).read(FIRST, (Kind.POINTS,))
    assert sample.points is not None and sample.points.tolist() == [[4, 5], [9, 6], [20, 3]]
    lines = journal(folder)
    assert [line["number"] for line in lines] == list(range(1, 13))
    assert {name: lines[0][name] for name in ("kind", "id", "seconds", "x", "y", "class")} == {
        "kind": "points", "id": FIRST, "seconds": 1.5, "x": 4, "y": 5, "class": "cat"
    }  # fmt: skip
    assert measured_costs(folder)[Kind.POINTS].count == 12


def test_an_answer_that_comes_twice_is_acknowledged_twice_and_kept_once(folder: Path) -> None:
    one = session(folder, queries=queries(folder))
    answer = new()
    first = one.answer_point(answer, FIRST, 4, 5, CAT, 1.0)
    assert one.answer_point(answer, FIRST, 4, 5, CAT, 1.0) == first
    one.close()
    again = session(folder, queries=queries(folder))
    assert again.answer_point(answer, FIRST, 4, 5, CAT, 1.0) == first
    assert len(journal(folder)) == 1 and points_on_disk(folder) == [(4, 5, "cat")]
    with pytest.raises(ValueError, match="given to another question"):
        again.answer_point(answer, FIRST, 9, 6, CAT, 1.0)


def test_two_tabs_cannot_answer_one_question(folder: Path) -> None:
    one = session(folder, queries=queries(folder))
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.answer_point(new(), FIRST, 9, 6, None, 1.0)
    for x, y in ((4, 5), (9, 6)):
        with pytest.raises(Conflict) as caught:
            one.answer_point(new(), FIRST, x, y, DOG, 1.0)
        assert caught.value.revision == one.labels(FIRST)["revision"]
    assert points_on_disk(folder) == [(4, 5, "cat")] and len(journal(folder)) == 2


def test_a_skipped_question_is_done_and_not_asked_again(folder: Path) -> None:
    one = session(folder, queries=queries(folder))
    reply = one.answer_point(new(), FIRST, 4, 5, None, 3.0)
    assert reply["done"] == 1 and next_pixels(reply)[0] == (FIRST, 9, 6)
    one.close()
    again = session(folder, queries=queries(folder))
    assert next_pixels(again.queries(8))[0] == (FIRST, 9, 6)
    assert again.statistics()["points"]["skipped"] == 1
    assert points_on_disk(folder) == [] and journal(folder)[0]["skipped"] is True


@pytest.mark.parametrize("restart", [False, True])
def test_points_and_skips_are_taken_back_from_the_latest_on(folder: Path, restart: bool) -> None:
    one = session(folder, queries=queries(folder))
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.answer_point(new(), FIRST, 9, 6, None, 1.0)
    one.answer_point(new(), FIRST, 20, 3, DOG, 1.0)
    for undone, left in (
        ({"x": 20, "y": 3, "class": DOG}, [(4, 5, "cat")]),
        ({"x": 9, "y": 6, "class": None}, [(4, 5, "cat")]),
        ({"x": 4, "y": 5, "class": CAT}, []),
    ):
        if restart:
            one.close()
            one = session(folder, queries=queries(folder))
        answer = new()
        reply = one.undo(answer)
        assert reply["undone"] == {"id": FIRST} | undone
        assert next_pixels(reply)[0] == (FIRST, undone["x"], undone["y"])
        assert one.undo(answer)["undone"] == reply["undone"], "the same undo came twice"
        assert points_on_disk(folder) == left
    assert one.undo(new())["undone"] is None
    assert one.queries(1)["done"] == 0 and len(journal(folder)) == 6
    assert not (folder / f"Points/{FIRST}.json").exists()
    one.answer_point(new(), FIRST, 20, 3, CAT, 1.0)
    assert points_on_disk(folder) == [(20, 3, "cat")]


def test_an_undo_gives_back_the_label_that_was_there_and_spares_a_correction(folder: Path) -> None:
    path = folder / f"Points/{FIRST}.json"
    path.parent.mkdir()
    path.write_text('{"points": [{"x": 4, "y": 5, "class": "dog"}]}')
    one = session(folder, queries=queries(folder))
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.answer_point(new(), FIRST, 9, 6, CAT, 1.0)
    assert points_on_disk(folder) == [(4, 5, "cat"), (9, 6, "cat")]
    path.write_text(path.read_text().replace('9, "y": 6, "class": "cat"', '9, "y": 6, "class": "person"'))
    one.undo(new())
    assert points_on_disk(folder) == [(4, 5, "cat"), (9, 6, "person")]
    one.undo(new())
    assert points_on_disk(folder) == [(9, 6, "person"), (4, 5, "dog")]


@pytest.mark.parametrize(
    ("x", "y", "label", "words"),
    [
        (32, 0, CAT, "outside"),
        (0, 24, CAT, "outside"),
        (-1, 0, CAT, "outside"),
        (4, 5, 21, "class"),
        (4, 5, -1, "class"),
    ],
)
def test_a_point_that_cannot_be_is_refused_in_one_line(folder: Path, x: int, y: int, label: int, words: str) -> None:
    one = session(folder, queries=queries(folder))
    with pytest.raises(ValueError, match=words) as caught:
        one.answer_point(new(), FIRST, x, y, label, 1.0)
    assert "\n" not in str(caught.value) and journal(folder) == []


def test_the_background_can_be_named_and_pixels_that_nobody_asked_for_as_well(folder: Path) -> None:
    one = session(folder)
    told = one.queries(8)
    assert told.pop("batch")
    assert told == {"queries": [], "done": 0, "total": 0, "passed_over": 0, "round": 0, "strategy": "random"}
    one.answer_point(new(), FIRST, 1, 1, 0, 1.0)
    assert points_on_disk(folder) == [(1, 1, "background")]
    with pytest.raises(Conflict):
        one.answer_point(new(), FIRST, 1, 1, CAT, 1.0)


def test_the_next_batch_replaces_the_last_and_an_earlier_one_goes_on_where_it_was(folder: Path) -> None:
    first, second = queries(folder), queries(folder, (SECOND,), "second.json")
    one = session(folder, queries=first)
    one.answer_point(new(), SECOND, 4, 5, CAT, 1.0)
    one.load_queries(second)
    reply = one.queries(8)
    assert (reply["done"], reply["total"]) == (0, 3), "the answers of another batch do not count"
    one.answer_point(new(), SECOND, 4, 5, DOG, 1.0)
    assert points_on_disk(folder, SECOND) == [(4, 5, "dog")]
    one.load_queries(first)
    assert one.queries(8)["done"] == 1
    path = folder / "bad.json"
    path.write_text("nonsense")
    with pytest.raises(BadFile, match=r"bad\.json"):
        one.load_queries(path)
    assert one.queries(8)["done"] == 1


def test_a_question_that_the_next_batch_dropped_can_be_answered_and_taken_back(folder: Path) -> None:
    first, second = queries(folder), queries(folder, (SECOND,), "second.json")
    one = session(folder, queries=first)
    assert one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)["batch"] == one.queries(1)["batch"]
    one.load_queries(second)
    late = new()
    for _ in range(2):
        reply = one.answer_point(late, FIRST, 9, 6, DOG, 1.0)
        assert (reply["done"], reply["total"], next_pixels(reply)[0]) == (0, 3, (SECOND, 4, 5))
    one.answer_point(new(), FIRST, 20, 3, None, 1.0)
    assert points_on_disk(folder) == [(4, 5, "cat"), (9, 6, "dog")]
    for undone in ({"x": 20, "y": 3, "class": None}, {"x": 9, "y": 6, "class": DOG}, {"x": 4, "y": 5, "class": CAT}):
        reply = one.undo(new())
        assert reply["undone"] == {"id": FIRST} | undone and reply["done"] == 0
    assert points_on_disk(folder) == [] and one.undo(new())["undone"] is None
    one.answer_point(new(), FIRST, 4, 5, DOG, 1.0)
    one.close()
    again = session(folder, queries=first)
    assert again.queries(1)["done"] == 0, "the answer was no longer one of the first batch"
    assert points_on_disk(folder) == [(4, 5, "dog")]


def test_an_undo_in_one_batch_leaves_the_answers_of_another(folder: Path) -> None:
    first, second = queries(folder), queries(folder, (FIRST,), "second.json")
    one = session(folder, queries=first)
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.load_queries(second)
    one.answer_point(new(), FIRST, 4, 5, DOG, 1.0)
    one.undo(new())
    assert one.queries(1)["done"] == 0 and points_on_disk(folder) == [(4, 5, "cat")]
    one.load_queries(first)
    assert one.queries(1)["done"] == 1


def test_answers_about_images_of_another_split_are_not_taken_back(folder: Path) -> None:
    (folder / "ImageSets/Main/other.txt").write_text(f"{SECOND}\n")
    one = session(folder, queries=queries(folder))
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.close()
    other = AnnotationSession(VOC(folder), "Main/other", folder / "Labelling")
    assert other.undo(new())["undone"] is None and points_on_disk(folder) == [(4, 5, "cat")]


def test_so_many_of_the_latest_answers_can_be_taken_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clicks, "_KEPT", 2)
    one = session(folder, queries=queries(folder))
    for x, y in ((4, 5), (9, 6), (20, 3)):
        one.answer_point(new(), FIRST, x, y, CAT, 1.0)
    assert [one.undo(new())["undone"] is None for _ in range(3)] == [False, False, True]
    assert points_on_disk(folder) == [(4, 5, "cat")] and one.queries(1)["done"] == 1


def test_questions_of_images_that_cannot_be_labeled_are_passed_over_and_counted(folder: Path) -> None:
    (folder / f"JPEGImages/{FIRST}.jpg").write_bytes(b"no image")
    path = folder / f"JPEGImages/{SECOND}.jpg"
    path.write_bytes(path.read_bytes()[:300])
    one = session(folder, queries=queries(folder, (FIRST, SECOND, VOC_IDS[2], VOC_IDS[4])))
    reply = one.queries(8)
    assert {query["id"] for query in reply["queries"]} == {VOC_IDS[2]}
    assert (reply["done"], reply["total"], reply["passed_over"]) == (0, 12, 9)
    broken = one.images("broken", "", "list", 0, 9)["images"]
    assert [image["id"] for image in broken] == [FIRST, SECOND]
    assert all("\n" not in image["problem"] and ".jpg: " in image["problem"] for image in broken)
    with pytest.raises(BadFile, match=r"cannot be decoded|is not one of"):
        one.answer_point(new(), SECOND, 4, 5, CAT, 1.0)


def test_questions_about_an_image_of_another_size_are_passed_over(folder: Path) -> None:
    one = session(folder, queries=queries(folder, (FIRST,), height=48, width=64))
    assert one.queries(8)["queries"] == [] and one.queries(8)["passed_over"] == 3
