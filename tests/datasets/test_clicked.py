"""A data set with the clicks of another folder instead of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labelwise.datasets.clicked import Clicked
from labelwise.datasets.index import Index
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile
from labelwise.samples import Kind
from tests.conftest import CAT, VOC_IDS

POINTS = frozenset({Kind.POINTS})


@pytest.fixture
def clicked(voc_folder: Path, tmp_path: Path) -> Clicked:
    """The first image has two clicks in the folder; all have masks of their own."""
    folder = tmp_path / "clicks"
    folder.mkdir()
    write(folder, '[{"x": 31, "y": 23, "class": "cat"}, {"x": 0, "y": 1, "class": "background"}]')
    return Clicked(VOC(voc_folder), folder)


def write(folder: Path, points: str, id: str = VOC_IDS[0]) -> None:
    (folder / f"{id}.json").write_text(f'{{"points": {points}}}')


def test_points_are_those_of_the_folder_and_nothing_else_changes(clicked: Clicked) -> None:
    assert clicked.having(Kind.POINTS, VOC_IDS) == {VOC_IDS[0]}
    assert clicked.having(Kind.MASKS, VOC_IDS) == frozenset(VOC_IDS)
    assert (clicked.classes, clicked.splits, clicked.ids("train")) == (
        clicked.dataset.classes,
        clicked.dataset.splits,
        clicked.dataset.ids("train"),
    )
    sample = clicked.read(VOC_IDS[0], {Kind.POINTS, Kind.MASKS})
    assert sample.points is not None and sample.points.tolist() == [[31, 23], [0, 1]]
    assert sample.point_labels is not None and sample.point_labels.tolist() == [CAT, 0]
    assert sample.mask is not None and torch.equal(sample.mask, clicked.dataset.read(VOC_IDS[0], {Kind.MASKS}).mask)
    assert clicked.read(VOC_IDS[1], POINTS).points is None


def test_no_other_label_file_is_opened(clicked: Clicked, voc_folder: Path) -> None:
    for mask in (voc_folder / "SegmentationClass").iterdir():
        mask.write_bytes(b"")
    assert clicked.read(VOC_IDS[0], POINTS).points is not None
    assert clicked.label_files(VOC_IDS[0], Kind.POINTS) == (clicked.folder / f"{VOC_IDS[0]}.json",)
    assert clicked.label_files(VOC_IDS[1], Kind.POINTS) == ()


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ('[{"x": 32, "y": 0, "class": "cat"}]', "point 1 at (32, 0) lies outside the 32x24 image"),
        ('[{"x": 3, "y": 0, "class": "kat"}]', "point 1 has the unknown class 'kat'"),
        ("[3]", "it is not a file of points"),
    ],
)
def test_a_bad_file_is_named(clicked: Clicked, points: str, reason: str) -> None:
    write(clicked.folder, points)
    with pytest.raises(BadFile) as caught:
        clicked.read(VOC_IDS[0], POINTS)
    problem = caught.value.problem
    assert problem.path == clicked.folder / f"{VOC_IDS[0]}.json" and problem.id == VOC_IDS[0]
    assert problem.reason.startswith(reason)


def test_an_index_notices_that_clicks_have_changed(clicked: Clicked, tmp_path: Path) -> None:
    def problems(dataset: Clicked) -> int:
        return len(Index.build(dataset, {VOC_IDS[0]: POINTS}, tmp_path / "index").problems)

    assert problems(clicked) == 0
    write(clicked.folder, '[{"x": 99, "y": 0, "class": "cat"}]')
    assert problems(clicked) == 1
    other = tmp_path / "others"
    other.mkdir()
    write(other, "[]")
    assert problems(Clicked(clicked.dataset, other)) == 0
    assert problems(clicked) == 1
