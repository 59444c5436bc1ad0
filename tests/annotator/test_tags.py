from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from labelwise.annotator.tags import TagLists
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind
from tests.annotator.sessions import FIRST, SECOND, bare
from tests.conftest import CAT, PERSON, VOC_IDS


def tags(*present: int, difficult: tuple[int, ...] = ()) -> np.ndarray:
    values = np.zeros(21, np.uint8)
    values[list(present)] = 1
    values[list(difficult)] = 255
    return values


def write_lists(folder: Path, split: str, ids: tuple[str, ...], value: str = "-1") -> None:
    for name in VOC(folder).classes.names[1:]:
        lines = "".join(f"{id} {value}\n" for id in ids)
        (folder / f"ImageSets/Main/{name}_{split}.txt").write_text(lines)


def read(folder: Path, id: str) -> list[int]:
    sample = VOC(folder).read(id, (Kind.TAGS,))
    assert sample.tags is not None
    return sample.tags.tolist()


def test_the_first_tags_make_the_split_tagged(voc_folder: Path) -> None:
    bare(voc_folder)
    lists = TagLists(voc_folder)
    assert lists.of(FIRST) is None and lists.having() == set()
    lists.put(SECOND, tags(CAT))
    lists.put(FIRST, tags(PERSON, difficult=(CAT,)))
    assert (voc_folder / "ImageSets/Main/tagged.txt").read_text() == f"{SECOND}\n{FIRST}\n"
    assert (voc_folder / "ImageSets/Main/cat_tagged.txt").read_text() == f"{SECOND}  1\n{FIRST}  0\n"
    data = VOC(voc_folder)
    assert data.ids("Main/tagged") == (SECOND, FIRST) and set(data.splits) == {"train", "val", "tagged"}
    assert read(voc_folder, FIRST) == tags(PERSON, difficult=(CAT,)).tolist()
    again = TagLists(voc_folder)
    assert again.having() == lists.having() == {FIRST, SECOND}
    assert np.array_equal(again.of(FIRST), lists.of(FIRST))


def test_an_image_that_stands_in_lists_is_changed_there_and_nothing_else_is(voc_folder: Path) -> None:
    bare(voc_folder)
    write_lists(voc_folder, "train", VOC_IDS[:4])
    path = voc_folder / "ImageSets/Main/cat_train.txt"
    path.write_text(path.read_text().replace(f"{SECOND} -1", f"{SECOND}\t 1"))
    dog = voc_folder / "ImageSets/Main/dog_train.txt"
    stamp = dog.stat().st_mtime_ns
    TagLists(voc_folder).put(FIRST, tags(CAT))
    assert path.read_text().splitlines()[:2] == [f"{FIRST}  1", f"{SECOND}\t 1"]
    assert dog.stat().st_mtime_ns == stamp
    assert not (voc_folder / "ImageSets/Main/tagged.txt").exists()


def test_an_image_in_the_lists_of_two_splits_is_changed_in_both(voc_folder: Path) -> None:
    bare(voc_folder)
    (voc_folder / "ImageSets/Main/trainval.txt").write_text("".join(f"{id}\n" for id in VOC_IDS))
    write_lists(voc_folder, "train", VOC_IDS[:4])
    write_lists(voc_folder, "trainval", VOC_IDS)
    TagLists(voc_folder).put(FIRST, tags(CAT))
    for split in ("train", "trainval"):
        assert f"{FIRST}  1" in (voc_folder / f"ImageSets/Main/cat_{split}.txt").read_text()


@pytest.mark.parametrize("left", ["nothing", "folders", "a hidden file"])
def test_splits_that_no_list_names_are_kept_when_lists_begin(voc_folder: Path, left: str) -> None:
    bare(voc_folder)
    for path in (voc_folder / "ImageSets").rglob("*.txt"):
        path.unlink()
    if left == "nothing":
        shutil.rmtree(voc_folder / "ImageSets")
    elif left == "a hidden file":
        (voc_folder / "ImageSets/Main/.keep").touch()
    before = {split: VOC(voc_folder).ids(split) for split in ("train", "val")}
    TagLists(voc_folder).put(FIRST, tags(CAT))
    after = VOC(voc_folder)
    assert {split: after.ids(split) for split in ("train", "val")} == before
    assert after.ids("Main/tagged") == (FIRST,)
    assert not list((voc_folder / "ImageSets").glob(".*"))


def test_lists_that_a_kill_left_half_made_are_completed(voc_folder: Path) -> None:
    bare(voc_folder)
    TagLists(voc_folder).put(FIRST, tags(CAT))
    main = voc_folder / "ImageSets/Main"
    (main / "tagged.txt").unlink()
    (main / "dog_tagged.txt").unlink()
    TagLists(voc_folder).put(FIRST, tags(PERSON))
    assert read(voc_folder, FIRST) == tags(PERSON).tolist()
    assert (main / "cat_tagged.txt").read_text() == f"{FIRST} -1\n"


def test_a_list_that_somebody_changed_is_read_anew(voc_folder: Path) -> None:
    bare(voc_folder)
    lists = TagLists(voc_folder)
    lists.put(FIRST, tags(CAT))
    path = voc_folder / "ImageSets/Main/dog_tagged.txt"
    path.write_text(f"{FIRST} 1\n")
    found = lists.of(FIRST)
    assert found is not None and np.flatnonzero(found).tolist() == [CAT, 12]
    path.write_text("nonsense\n")
    for attempt in (lambda: lists.of(FIRST), lambda: lists.put(FIRST, tags()), lambda: lists.require_usable(SECOND)):
        with pytest.raises(BadFile, match=r"dog_tagged\.txt: line 1 is 'nonsense'"):
            attempt()
    assert path.read_text() == "nonsense\n"


def test_a_split_tagged_of_somebodys_own_is_not_taken_over(voc_folder: Path) -> None:
    bare(voc_folder)
    path = voc_folder / "ImageSets/Main/tagged.txt"
    path.write_text(f"{SECOND}\n")
    with pytest.raises(BadFile, match="complete the lists, or rename"):
        TagLists(voc_folder).put(FIRST, tags(CAT))
    assert path.read_text() == f"{SECOND}\n"


def test_a_class_that_no_file_can_be_named_after_is_refused(voc_folder: Path) -> None:
    bare(voc_folder)
    (voc_folder / "classes.txt").write_text("background\ncar/truck\n")
    with pytest.raises(UserError, match="'car/truck_tagged' cannot be a file's name"):
        TagLists(voc_folder).require_usable(FIRST)
