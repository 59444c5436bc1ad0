"""Nothing is lost: sessions that are killed before or after any of their writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelwise.annotator.recorder import APPLIED
from labelwise.annotator.session import AnnotationSession, Conflict
from labelwise.errors import BadFile
from tests.annotator.sessions import FIRST, SECOND, bare, files, journal, new, points_on_disk, queries, session

CAT, DOG = 1, 2

Step = Callable[[AnnotationSession], dict[str, Any]]


class Killed(BaseException):
    """The process is gone."""


class Killer:
    """Ends the session at a given one of its writes to the disk: the odd numbers before it, the even ones after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        monkeypatch.setattr("os.fsync", self._deadly(os.fsync))
        monkeypatch.setattr("os.pwrite", self._deadly(os.pwrite))
        monkeypatch.setattr(Path, "replace", self._deadly(Path.replace))

    def _deadly(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def deadly(*arguments: Any) -> Any:
            self._come_nearer()
            result = write(*arguments)
            self._come_nearer()
            return result

        return deadly

    def _come_nearer(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def current(step: Callable[[AnnotationSession, int], dict[str, Any]], id: str) -> Step:
    """A change as a page makes it: of what it has seen, which it looks at again after a conflict."""
    seen: list[int] = []

    def save(one: AnnotationSession) -> dict[str, Any]:
        if not seen:
            seen.append(one.labels(id)["revision"])
        try:
            return step(one, seen[-1])
        except Conflict as conflict:
            seen.append(conflict.revision)
            return step(one, seen[-1])

    return save


def script() -> list[Step]:
    """What a person does, one answer after the other, each with the same identifier whenever it is sent."""
    names = [f"step {number}" for number in range(8)]
    mask = np.full((24, 32), CAT, np.uint8)
    box = {"box": [1, 2, 9, 10], "class": CAT, "difficult": True}
    return [
        lambda one: one.answer_point(names[0], FIRST, 4, 5, CAT, 1.0),
        lambda one: one.answer_point(names[1], FIRST, 9, 6, DOG, 1.0),
        lambda one: one.undo(names[2]),
        lambda one: one.answer_point(names[3], FIRST, 9, 6, None, 1.0),
        lambda one: one.answer_point(names[4], FIRST, 20, 3, CAT, 1.0),
        current(lambda one, revision: one.set_tags(names[5], SECOND, revision, [CAT], 1.0), SECOND),
        current(lambda one, revision: one.set_boxes(names[6], SECOND, revision, [box], 1.0), SECOND),
        current(lambda one, revision: one.set_mask(names[7], SECOND, revision, mask, 1.0), SECOND),
    ]


def labels(folder: Path) -> dict[str, bytes]:
    """The label files, without what a kill left of unfinished ones."""
    return {name: content for name, content in files(folder).items() if not name.endswith(".tmp")}


def three_classes(folder: Path) -> Path:
    """A folder without labels and with three classes, so that tags are few files."""
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    return bare(folder)


def test_a_kill_before_or_after_any_write_loses_nothing_and_repeats_nothing(
    voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = three_classes(voc_folder), tmp_path / "after"
    batch = queries(voc_folder)
    killer = Killer(monkeypatch)
    kills = 0
    for number, step in enumerate(script()):
        shutil.copytree(before, after)
        with closing(session(after, queries=batch)) as one:
            step(one)
        for deadly in range(1, 1000):
            killed = tmp_path / "killed"
            shutil.copytree(before, killed)
            ended = kill(killer, killed, batch, number, deadly)
            assert labels(killed) == labels(after), f"step {number}, write {deadly}"
            assert [line["answer"] for line in journal(killed)] == [line["answer"] for line in journal(after)]
            assert int((killed / "Labelling" / APPLIED).read_text()) == number + 1
            shutil.rmtree(killed)
            if not ended:
                break
            kills += 1
        before, after = after, tmp_path / f"after {number}"
    assert points_on_disk(before) == [(4, 5, "cat"), (20, 3, "cat")]
    assert kills > 60, "every write was an end once"


def kill(killer: Killer, folder: Path, batch: Path, number: int, deadly: int) -> bool:
    """End a session at one of the writes of a step; start again, and send the answer again as the page does.

    Returns:
        Whether the step has so many writes.
    """
    step = script()[number]
    one = session(folder, queries=batch)
    killer.left = deadly
    try:
        step(one)
    except Killed:
        one.close()
        killer.left = -1
        one = session(folder, queries=batch)
        step(one)
        return True
    finally:
        killer.left = -1
        one.close()
    return False


def test_a_journal_line_that_never_reached_its_label_file_is_applied_at_the_start(voc_folder: Path) -> None:
    folder = three_classes(voc_folder)
    batch = queries(folder)
    one = session(folder, queries=batch)
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.answer_point(new(), FIRST, 9, 6, CAT, 1.0)
    one.close()
    (folder / "Labelling" / APPLIED).write_text("000000000001\n")
    path = folder / f"Points/{FIRST}.json"
    path.write_text('{"points": [{"x": 1, "y": 2, "class": "dog"}]}')
    session(folder, queries=batch).close()
    # The first answer was removed by hand after it had been applied, and the second had not been.
    assert points_on_disk(folder) == [(1, 2, "dog"), (9, 6, "cat")]
    path.unlink()
    session(folder, queries=batch).close()
    assert points_on_disk(folder) == []


def test_a_torn_line_was_never_acknowledged(voc_folder: Path) -> None:
    folder = three_classes(voc_folder)
    batch = queries(folder)
    one = session(folder, queries=batch)
    answers = [new(), new()]
    one.answer_point(answers[0], FIRST, 4, 5, CAT, 1.0)
    one.close()
    path = folder / "Labelling/journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"number": 2, "time": "2026-11-2')
    one = session(folder, queries=batch)
    assert one.queries(1)["done"] == 1
    one.answer_point(answers[1], FIRST, 9, 6, CAT, 1.0)
    assert [line["answer"] for line in journal(folder)] == answers


def test_an_answer_that_a_full_disk_kept_from_its_file_comes_before_all_others(
    voc_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = three_classes(voc_folder)
    one = session(folder, queries=queries(folder))
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    answer = new()
    with monkeypatch.context() as patch:

        def full(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            one.answer_point(answer, FIRST, 9, 6, CAT, 1.0)
        with pytest.raises(OSError, match="No space"):
            one.answer_point(new(), SECOND, 9, 6, CAT, 1.0)
    assert points_on_disk(folder) == [(4, 5, "cat")] and len(journal(folder)) == 2
    one.answer_point(answer, FIRST, 9, 6, CAT, 1.0)
    assert points_on_disk(folder) == [(4, 5, "cat"), (9, 6, "cat")] and len(journal(folder)) == 2


def test_nonsense_in_the_way_of_an_answer_stops_the_next_ones_until_it_is_mended(voc_folder: Path) -> None:
    folder = three_classes(voc_folder)
    batch = queries(folder)
    one = session(folder, queries=batch)
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.close()
    (folder / "Labelling" / APPLIED).write_text("000000000000\n")
    path = folder / f"Points/{FIRST}.json"
    path.write_text("nonsense")
    one = session(folder, queries=batch)
    with pytest.raises(BadFile, match=f"{FIRST}.json"):
        one.answer_point(new(), SECOND, 4, 5, CAT, 1.0)
    path.unlink()
    one.answer_point(new(), SECOND, 4, 5, CAT, 1.0)
    assert points_on_disk(folder) == points_on_disk(folder, SECOND) == [(4, 5, "cat")]


def test_an_answer_for_an_image_that_was_taken_away_is_passed_over(voc_folder: Path) -> None:
    folder = three_classes(voc_folder)
    one = session(folder)
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.close()
    (folder / "Labelling" / APPLIED).write_text("000000000000\n")
    (folder / f"Points/{FIRST}.json").unlink()
    (folder / f"JPEGImages/{FIRST}.jpg").unlink()
    lines = (folder / "ImageSets/Segmentation/train.txt").read_text().splitlines()
    (folder / "ImageSets/Segmentation/train.txt").write_text("\n".join(lines[1:]))
    session(folder).close()
    assert not (folder / f"Points/{FIRST}.json").exists()


def test_without_its_mark_nothing_is_written_again(voc_folder: Path) -> None:
    folder = three_classes(voc_folder)
    one = session(folder)
    one.answer_point(new(), FIRST, 4, 5, CAT, 1.0)
    one.close()
    (folder / "Labelling" / APPLIED).unlink()
    (folder / f"Points/{FIRST}.json").unlink()
    session(folder).close()
    assert points_on_disk(folder) == []
