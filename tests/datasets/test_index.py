from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelwise.datasets import images, index
from labelwise.datasets.folders import Folders
from labelwise.datasets.index import Index
from labelwise.datasets.voc import VOC
from labelwise.samples import Kind, Sample

FIRST = "2007_000001"
BOXES = frozenset({Kind.BOXES})
MASKS = frozenset({Kind.MASKS})
BARE: frozenset[Kind] = frozenset()


class Counting(VOC):
    """Remembers which images were read for which kinds."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: dict[str, frozenset[Kind]] = {}

    def read(self, id: str, kinds: Iterable[Kind] = ()) -> Sample:
        self.reads[id] = self.reads.get(id, frozenset()) | frozenset(kinds)
        return super().read(id, tuple(kinds))


def wanted(folder: Path, kinds: frozenset[Kind]) -> dict[str, frozenset[Kind]]:
    return {path.stem: kinds for path in sorted((folder / "JPEGImages").iterdir())}


def test_the_index_agrees_with_reading(voc_folder: Path) -> None:
    data = VOC(voc_folder)
    found = Index.build(data, wanted(voc_folder, frozenset({Kind.BOXES, Kind.CAPTIONS})))
    assert found.ids == tuple(wanted(voc_folder, BOXES)) and not found.problems and not found.broken
    assert found.sizes.tolist() == [[24, 32]] * 6 and found.size(FIRST) == (24, 32)
    for id in found.ids:
        sample = data.read(id, [Kind.BOXES])
        for ours, read in zip(found.boxes(id), (sample.boxes, sample.box_labels, sample.difficult), strict=True):
            assert read is not None and np.array_equal(ours, read.numpy()) and ours.dtype == read.numpy().dtype
        assert found.kinds(id) == BOXES


def test_a_warm_start_opens_nothing(voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path / "cache")

    def forbidden(*arguments: object) -> bytes:
        raise AssertionError(f"opened {arguments[0]}")

    for name in ("voc.read_oriented", "voc_labels.read_annotation"):
        monkeypatch.setattr(f"labelwise.datasets.{name}", forbidden)
    monkeypatch.setattr(images, "read_bytes", forbidden)
    warm = Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path / "cache", forbidden)  # type: ignore[arg-type]
    assert warm.ids == cold.ids and np.array_equal(warm.sizes, cold.sizes)
    assert all(np.array_equal(a, b) for id in cold.ids for a, b in zip(cold.boxes(id), warm.boxes(id), strict=True))


def test_only_changed_files_are_read_again(voc_folder: Path, tmp_path: Path) -> None:
    Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path)
    path = voc_folder / f"Annotations/{FIRST}.xml"
    path.write_text(path.read_text().replace("<xmax>14<", "<xmax>13<"))
    (voc_folder / "JPEGImages/2007_000002.jpg").write_bytes(b"")
    data = Counting(voc_folder)
    found = Index.build(data, wanted(voc_folder, BOXES), tmp_path)
    assert set(data.reads) == {FIRST, "2007_000002"}
    assert found.boxes(FIRST)[0][0].tolist() == [3, 2, 13, 10]
    assert [problem.reason for problem in found.problems] == ["it is empty"] and found.broken == {"2007_000002"}
    assert found.size("2007_000002") == (0, 0) and len(found.boxes("2007_000002")[0]) == 0
    again = Index.build(data := Counting(voc_folder), wanted(voc_folder, BOXES), tmp_path)
    assert not data.reads and again.problems == found.problems


def test_a_file_of_the_same_size_and_another_time_is_read_again(voc_folder: Path, tmp_path: Path) -> None:
    Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path)
    os.utime(voc_folder / f"Annotations/{FIRST}.xml", ns=(1, 1))
    data = Counting(voc_folder)
    Index.build(data, wanted(voc_folder, BOXES), tmp_path)
    assert set(data.reads) == {FIRST}


def test_labels_that_are_not_wanted_are_never_opened(voc_folder: Path, tmp_path: Path) -> None:
    for path in [*(voc_folder / "SegmentationClass").iterdir(), *(voc_folder / "SegmentationObject").iterdir()]:
        path.write_bytes(b"forbidden")
    (voc_folder / "Annotations/2007_000002.xml").write_bytes(b"forbidden")
    plan = wanted(voc_folder, BOXES) | {"2007_000002": BARE}
    found = Index.build(VOC(voc_folder), plan, tmp_path)
    assert not found.problems and found.kinds("2007_000002") == BARE


def test_wanting_more_reads_only_what_is_new(voc_folder: Path, tmp_path: Path) -> None:
    Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path)
    data = Counting(voc_folder)
    plan = wanted(voc_folder, BOXES) | {FIRST: BOXES | MASKS}
    found = Index.build(data, plan, tmp_path)
    assert data.reads == {FIRST: MASKS}
    assert found.kinds(FIRST) == BOXES | MASKS and len(found.boxes(FIRST)[0]) == 2
    data = Counting(voc_folder)
    some = Index.build(data, {"2007_000003": BARE, FIRST: MASKS}, tmp_path)
    assert not data.reads and some.ids == ("2007_000003", FIRST) and some.kinds("2007_000003") == BARE


def test_problems_of_wanted_kinds_alone_are_told(voc_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((24, 32), 37, np.uint8)).save(voc_folder / f"SegmentationClass/{FIRST}.png")
    everything = frozenset(Kind)
    found = Index.build(VOC(voc_folder), wanted(voc_folder, everything), tmp_path)
    assert {problem.id for problem in found.problems} == {FIRST}
    assert all("label 37" in problem.reason for problem in found.problems)
    assert len(found.boxes(FIRST)[0]) == 2 and found.size(FIRST) == (24, 32)
    data = Counting(voc_folder)
    assert not Index.build(data, wanted(voc_folder, BOXES), tmp_path).problems and not data.reads


def test_a_mask_that_appears_or_vanishes_is_noticed(voc_folder: Path, tmp_path: Path) -> None:
    path = voc_folder / f"SegmentationClass/{FIRST}.png"
    moved = shutil.move(path, tmp_path / "kept.png")
    assert Index.build(VOC(voc_folder), wanted(voc_folder, MASKS), tmp_path).kinds(FIRST) == BARE
    shutil.move(moved, path)
    assert Index.build(VOC(voc_folder), wanted(voc_folder, MASKS), tmp_path).kinds(FIRST) == MASKS


def test_a_damaged_file_of_the_index_is_made_anew(voc_folder: Path, tmp_path: Path) -> None:
    Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path)
    (file,) = tmp_path.glob("index-*.npz")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", b"nonsense", whole[: len(whole) // 2], bytes(flipped)):
        file.write_bytes(content)
        found = Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path)
        assert not found.problems and len(found.boxes(FIRST)[0]) == 2


def test_other_classes_have_an_index_of_their_own(voc_folder: Path, tmp_path: Path) -> None:
    Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path)
    (voc_folder / "classes.txt").write_text("background\ncat\nperson\n")
    assert Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path).boxes(FIRST)[1].tolist() == [1, 2]


def test_progress_wraps_the_images_that_are_opened(voc_folder: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(ids: Iterable[str], total: int) -> Iterator[str]:
        assert total == 6
        for id in ids:
            seen.append(id)
            yield id

    found = Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path, progress)
    assert seen == list(found.ids)


def test_nothing_is_kept_without_a_folder(voc_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "atomic_write", lambda *_: pytest.fail("wrote a file"))
    assert Index.build(VOC(voc_folder), {}).ids == ()
    assert len(Index.build(VOC(voc_folder), wanted(voc_folder, MASKS)).ids) == 6


def test_bare_images_without_known_classes_have_an_index(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "images/a.png")
    assert Index.build(Folders(tmp_path), {"a": BARE}, tmp_path / "cache").size("a") == (4, 5)


def test_an_image_that_is_gone_is_a_problem(voc_folder: Path, tmp_path: Path) -> None:
    Index.build(VOC(voc_folder), wanted(voc_folder, BOXES), tmp_path)
    plan = wanted(voc_folder, BOXES)
    (voc_folder / f"JPEGImages/{FIRST}.jpg").unlink()
    for _ in range(2):
        found = Index.build(VOC(voc_folder), plan, tmp_path)
        assert [(problem.id, problem.reason) for problem in found.problems] == [(FIRST, "there is no such image")]
