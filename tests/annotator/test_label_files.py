from __future__ import annotations

from pathlib import Path

import pytest

from labelwise.annotator.label_files import LabelFiles
from labelwise.errors import BadFile
from labelwise.samples import Kind


def test_files_of_others_are_seen_and_keep_their_names(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path)
    assert files.find(Kind.BOXES, "a") is None and files.having(Kind.BOXES) == set()
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.XML").write_text("old")
    assert files.having(Kind.BOXES) == {"a"}
    files.put(Kind.BOXES, "a", b"new")
    assert [path.name for path in (tmp_path / "Annotations").iterdir()] == ["a.XML"]
    files.put(Kind.BOXES, "b", b"new")
    assert files.find(Kind.BOXES, "b") == tmp_path / "Annotations/b.xml" and files.having(Kind.BOXES) == {"a", "b"}
    (tmp_path / "Annotations/b.xml").unlink()
    assert files.having(Kind.BOXES) == {"a"} and files.stamp(Kind.BOXES, "b") is None


def test_a_removed_file_is_gone(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path)
    files.remove(Kind.POINTS, "a")
    files.put(Kind.POINTS, "a", b"{}")
    files.remove(Kind.POINTS, "a")
    assert files.find(Kind.POINTS, "a") is None and not (tmp_path / "Points/a.json").exists()


def test_another_content_has_another_stamp(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path)
    stamps = set()
    for _ in range(5):
        files.put(Kind.POINTS, "a", b"same size")
        stamps.add(files.stamp(Kind.POINTS, "a"))
    assert len(stamps) > 1 and None not in stamps


@pytest.mark.parametrize("write", [False, True])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, write: bool) -> None:
    (tmp_path / "data/Points").mkdir(parents=True)
    secret = tmp_path / "secret.json"
    secret.write_text("mine")
    (tmp_path / "data/Points/a.json").symlink_to(secret)
    files = LabelFiles(tmp_path / "data")
    with pytest.raises(BadFile, match=r"a\.json: it leads out of the data set's folder"):
        files.put(Kind.POINTS, "a", b"theirs") if write else files.find(Kind.POINTS, "a")
    assert secret.read_text() == "mine"
