from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise.datasets.journal import FOLDER, JOURNAL, LONGEST, Entry, Journal, Measured, measured_costs, read_journal
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind

POINT = {"x": 3, "y": 4, "class": "cat"}


def write(path: Path, *answers: tuple[Kind, str, float, dict[str, Any]]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Journal(path) as journal:
        for number, (kind, id, seconds, content) in enumerate(answers):
            journal.append(f"answer {number}", kind, id, seconds, content)
    return path.read_bytes()


def read(path: Path) -> list[Entry]:
    return list(read_journal(path))


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, (Kind.POINTS, "öne\nname", 1.84, POINT), (Kind.TAGS, "b", 2.0, {"tags": ["cat"]}))
    first, second = read(path)
    assert (first.number, first.answer, first.kind, first.id, first.seconds) == (
        1, "answer 0", Kind.POINTS, "öne\nname", 1.84
    )  # fmt: skip
    assert first.content == POINT and first.time.endswith("Z")
    assert second.number == 2 and second.content == {"tags": ["cat"]}
    assert list(json.loads(path.read_text().splitlines()[0])) == [
        "number", "time", "answer", "kind", "id", "seconds", "x", "y", "class"
    ]  # fmt: skip


def test_a_line_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    synced: list[bytes] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(path.read_bytes()))
    written = write(path, (Kind.POINTS, "a", 1.0, POINT))
    assert synced == [written]


@given(cut=st.integers(1, 400))
def test_a_kill_in_the_middle_of_a_line_loses_this_line_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    content = write(path, *[(Kind.POINTS, "a", 1.0, POINT)] * 3)
    whole = content[: max(len(content) - cut, 0)]
    path.write_bytes(whole)
    # A line that lacks nothing but its end is whole.
    kept = whole.count(b"\n") + (whole[-1:] == b"}")
    assert [entry.number for entry in read(path)] == list(range(1, kept + 1))
    with Journal(path) as journal:
        assert path.read_bytes() == whole, "opening alone changes nothing"
        assert journal.append("next", Kind.POINTS, "b", 2.0, POINT).number == kept + 1
    assert [(entry.number, entry.id) for entry in read(path)][-1] == (kept + 1, "b")
    assert len(read(path)) == kept + 1 and path.read_bytes().endswith(b"\n")


def test_zeros_that_a_power_cut_left_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    content = write(path, (Kind.POINTS, "a", 1.0, POINT))
    path.write_bytes(content + b"\0" * 50 + b"\n")
    assert len(read(path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "{}",
        '{"number": 2, "time": "t", "answer": "a", "kind": "captions", "id": "a", "seconds": 1}',
        '{"number": 2, "time": "t", "answer": "a", "kind": "points", "id": "a", "seconds": 1}',
        '{"number": 2, "time": "t", "answer": "a", "kind": "points", "id": "a", "seconds": 1, "undo": "x"}',
        '{"number": 2, "time": "t", "answer": "a", "kind": "boxes", "id": "a", "seconds": 1, "boxes": 3}',
        '{"number": 2, "time": "t", "answer": "a", "kind": "masks", "id": "a", "seconds": "long", "sha256": ""}',
        '{"number": 1, "time": "t", "answer": "a", "kind": "tags", "id": "a", "seconds": 1, "tags": []}',
        '{"number": 2, "time": 5, "answer": "a", "kind": "tags", "id": "a", "seconds": 1, "tags": []}',
    ],
)
def test_a_line_that_somebody_made_nonsense_of_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / FOLDER / JOURNAL
    content = write(path, (Kind.POINTS, "a", 1.0, POINT))
    path.write_bytes(content + line.encode() + b"\n")
    with pytest.raises(BadFile, match=r"line 2 .*; correct or remove the line") as caught:
        measured_costs(tmp_path)
    assert caught.value.problem.path == path and "\n" not in str(caught.value)


def test_a_removed_line_leaves_a_journal_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path, *[(Kind.POINTS, "a", 1.0, POINT)] * 3).splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with Journal(path) as journal:
        assert journal.append("next", Kind.POINTS, "a", 1.0, POINT).number == 4
    assert [entry.number for entry in read(path)] == [1, 3, 4]


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = (
        "import sys; from pathlib import Path; from labelwise.datasets.journal import Journal\n"
        "from labelwise.errors import UserError\n"
        "try:\n    Journal(Path(sys.argv[1]))\nexcept UserError as error:\n    print(error)"
    )
    with Journal(path):
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: another labelwise labels this data set already; use its page, or stop it\n"
    Journal(path).close()


def test_what_a_full_disk_left_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("one", Kind.POINTS, "a", 1.0, POINT)
        with monkeypatch.context() as patch:

            def fail(descriptor: int) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr("os.fsync", fail)
            with pytest.raises(OSError, match="No space") as caught:
                journal.append("two", Kind.POINTS, "a", 1.0, POINT)
            assert caught.value.filename == str(path)
        journal.append("three", Kind.POINTS, "a", 1.0, POINT)
    assert [(entry.number, entry.answer) for entry in read(path)] == [(1, "one"), (2, "three")]


@pytest.mark.parametrize(("given_seconds", "counted"), [(-1, 0), (float("nan"), 0), (1e9, LONGEST), (1.23456, 1.235)])
def test_seconds_are_those_of_somebody_who_labels(tmp_path: Path, given_seconds: float, counted: float) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, (Kind.POINTS, "a", given_seconds, POINT))
    assert read(path)[0].seconds == counted


def test_costs_are_counted_by_click_image_and_box(tmp_path: Path) -> None:
    box = {"box": [1, 2, 3, 4], "class": "cat", "difficult": False}
    write(
        tmp_path / FOLDER / JOURNAL,
        (Kind.POINTS, "a", 1.0, POINT),
        (Kind.POINTS, "a", 2.0, POINT),
        (Kind.POINTS, "a", 3.0, {"x": 1, "y": 1, "skipped": True}),
        (Kind.POINTS, "a", 0.0, {"undo": 2}),
        (Kind.POINTS, "a", 0.0, {"undo": 2}),
        (Kind.TAGS, "a", 4.0, {"tags": ["cat"]}),
        (Kind.TAGS, "a", 2.0, {"tags": []}),
        (Kind.BOXES, "a", 10.0, {"boxes": [box]}),
        (Kind.BOXES, "a", 5.0, {"boxes": [box, box]}),
        (Kind.BOXES, "b", 5.0, {"boxes": [box, box]}),
        (Kind.MASKS, "a", 60.0, {"sha256": "0"}),
        (Kind.MASKS, "a", 30.0, {"sha256": "1"}),
        (Kind.MASKS, "b", 30.0, {"sha256": "2"}),
    )
    assert measured_costs(tmp_path) == {
        Kind.POINTS: Measured(6.0, 1),
        Kind.TAGS: Measured(6.0, 1),
        Kind.BOXES: Measured(5.0, 4),
        Kind.MASKS: Measured(60.0, 2),
    }


def test_a_skip_that_was_taken_back_takes_no_click_away(tmp_path: Path) -> None:
    skip = {"x": 1, "y": 1, "skipped": True}
    write(
        tmp_path / FOLDER / JOURNAL,
        (Kind.POINTS, "a", 1.0, POINT),
        (Kind.POINTS, "a", 1.0, skip),
        (Kind.POINTS, "a", 0.0, {"undo": 2} | skip),
    )
    assert measured_costs(tmp_path) == {Kind.POINTS: Measured(2.0, 1)}


def test_where_nobody_has_labeled_nothing_was_measured(tmp_path: Path) -> None:
    assert measured_costs(tmp_path) == {}
    write(tmp_path / FOLDER / JOURNAL, (Kind.POINTS, "a", 1.0, {"x": 1, "y": 1, "skipped": True}))
    assert measured_costs(tmp_path) == {}


def test_a_journal_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / FOLDER / JOURNAL).mkdir(parents=True)
    with pytest.raises(UserError, match=r"journal\.jsonl: it cannot be read"):
        measured_costs(tmp_path)
