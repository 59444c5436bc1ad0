from __future__ import annotations

import re
from pathlib import Path

import pytest

from labelwise.annotator.gallery import Gallery
from labelwise.annotator.store import LabelStore
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile
from tests.annotator.sessions import FIRST, bare, points_on_disk
from tests.conftest import CAT

DOG = 12


@pytest.fixture
def store(voc_folder: Path) -> LabelStore:
    return LabelStore(VOC(bare(voc_folder)))


def test_a_pixel_has_one_point(store: LabelStore) -> None:
    header = Gallery(store.dataset).header(FIRST)
    store.set_point(FIRST, header, 4, 5, CAT)
    store.set_point(FIRST, header, 4, 5, DOG)
    assert store.points(FIRST, header) == [(4, 5, DOG)] and store.label_at(FIRST, header, 4, 5) == DOG
    store.set_point(FIRST, header, 4, 5, None)
    assert store.label_at(FIRST, header, 4, 5) is None and points_on_disk(store.dataset.root) == []


def test_the_same_point_again_writes_nothing(store: LabelStore) -> None:
    header = Gallery(store.dataset).header(FIRST)
    store.set_point(FIRST, header, 4, 5, CAT)
    path = store.dataset.root / f"Points/{FIRST}.json"
    before = path.stat()
    store.set_point(FIRST, header, 4, 5, CAT)
    store.set_point(FIRST, header, 7, 7, None)
    assert path.stat().st_ino == before.st_ino


def test_a_point_between_pixels_belongs_to_the_pixel_it_lies_in(store: LabelStore) -> None:
    header = Gallery(store.dataset).header(FIRST)
    path = store.dataset.root / f"Points/{FIRST}.json"
    path.parent.mkdir()
    path.write_text('{"points": [{"x": 4.5, "y": 5.9, "class": "cat"}, {"x": 1, "y": 1, "class": "cat"}]}')
    assert store.label_at(FIRST, header, 4, 5) == CAT
    store.set_point(FIRST, header, 4, 5, DOG)
    assert points_on_disk(store.dataset.root) == [(1, 1, "cat"), (4, 5, "dog")]


def test_a_verdict_holds_until_the_file_changes(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    header = Gallery(store.dataset).header(FIRST)
    path = store.dataset.root / f"Annotations/{FIRST}.xml"
    path.write_text("<annotation><object><name>yeti</name></object></annotation>")
    problem = store.problem(FIRST, header)
    assert problem is not None and problem.path == path
    with monkeypatch.context() as patch:
        patch.setattr("labelwise.annotator.store.read_annotation", lambda path: pytest.fail("it was read again"))
        assert store.problem(FIRST, header) == problem
    with pytest.raises(BadFile, match=re.escape(problem.reason)):
        store.boxes(FIRST, header)
    path.unlink()
    assert store.problem(FIRST, header) is None
