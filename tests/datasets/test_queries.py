"""Files of queries: which pixels of each image are to be labelled next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise.datasets.queries import Query, QueryFile, format_queries, merge_queries, read_queries, write_queries
from labelwise.errors import BadFile, UserError

ROW = {"image": "a", "height": 4, "width": 6, "x": [5, 0], "y": [3, 0], "uncertainty": 0.25}


def query(
    id: str = "a", *pixels: tuple[int, int], size: tuple[int, int] = (4, 6), unsure: float | None = None
) -> Query:
    x, y = zip(*pixels, strict=True) if pixels else ((), ())
    return Query(id, *size, tuple(x), tuple(y), unsure)


@st.composite
def query_files(draw: st.DrawFn) -> QueryFile:
    queries = []
    for id in draw(st.lists(st.text(min_size=1, max_size=4), max_size=3, unique=True)):
        height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        every = [(x, y) for x in range(width) for y in range(height)]
        pixels = draw(st.lists(st.sampled_from(every), unique=True))
        unsure = draw(st.none() | st.floats(0, 1))
        queries.append(query(id, *pixels, size=(height, width), unsure=unsure))
    model = draw(st.none() | st.text(max_size=5))
    return QueryFile(tuple(queries), draw(st.text(max_size=5)), model, draw(st.integers(0, 9)))


@given(file=query_files())
def test_what_is_written_reads_back_equal(file: QueryFile, tmp_path: Path) -> None:
    path = tmp_path / "queries.json"
    write_queries(path, file)
    assert read_queries(path) == file


def test_the_file_has_one_readable_line_per_image(tmp_path: Path) -> None:
    file = QueryFile((query("a", (5, 3)), query("é", unsure=0.5)), "margin", "runs/1", 2)
    assert file.pixels == 1
    assert format_queries(file).splitlines() == [
        '{"strategy": "margin", "model": "runs/1", "round": 2, "images": [',
        '  {"image": "a", "height": 4, "width": 6, "x": [5], "y": [3]},',
        '  {"image": "é", "height": 4, "width": 6, "x": [], "y": [], "uncertainty": 0.5}',
        "]}",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": ""}, "entry 1 names no image"),
        ({"height": 0}, "image 'a' has no height and width in pixels"),
        ({"width": True}, "image 'a' has no height and width in pixels"),
        ({"x": [5]}, "the x and y of image 'a' are not two lists of whole numbers of one length"),
        ({"x": [5, 0.5]}, "the x and y of image 'a' are not two lists of whole numbers of one length"),
        ({"x": [-1, 0]}, "the x and y of image 'a' are not two lists of whole numbers of one length"),
        ({"x": [6, 0]}, "pixel (6, 3) lies outside the 6x4 image 'a'"),
        ({"y": [3, 4]}, "pixel (0, 4) lies outside the 6x4 image 'a'"),
        ({"x": [5, 5], "y": [3, 3]}, "image 'a' has a pixel twice"),
        ({"uncertainty": -1}, "the uncertainty of image 'a' is no number from 0 on"),
        ({"uncertainty": float("nan")}, "the uncertainty of image 'a' is no number from 0 on"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, json.dumps({"images": [ROW | change]}), reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not a file of queries"),
        ("[]", 'it is not a file of queries (no list "images")'),
        ('{"images": {}}', 'it is not a file of queries (no list "images")'),
        ('{"images": [3]}', "entry 1 names no image"),
        ('{"images": [], "round": "two"}', "its strategy, model or round is no word or number"),
        ('{"images": [], "model": 3}', "its strategy, model or round is no word or number"),
        (json.dumps({"images": [ROW, ROW]}), "image 'a' is there twice"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, text, reason)


def assert_refused(folder: Path, text: str, reason: str) -> None:
    path = folder / "queries.json"
    path.write_text(text)
    with pytest.raises(BadFile) as caught:
        read_queries(path)
    problem = caught.value.problem
    assert problem.path == path and problem.reason.startswith(reason) and problem.mend
    assert "\n" not in str(caught.value)


def test_merging_keeps_each_pixel_once_and_the_later_knowledge() -> None:
    first = QueryFile((query("a", (5, 3), (0, 0), unsure=0.5), query("b", (1, 1))), "random", None, 0)
    second = QueryFile((query("c", (2, 2)), query("a", (0, 0), (4, 1))), "margin", "run", 1)
    merged = merge_queries([first, second])
    assert merged.images == (query("a", (5, 3), (0, 0), (4, 1), unsure=0.5), query("b", (1, 1)), query("c", (2, 2)))
    assert (merged.strategy, merged.model, merged.round) == ("margin", "run", 1)
    assert merge_queries([first]) == first


def test_files_about_images_of_other_sizes_are_not_merged() -> None:
    files = [QueryFile((query("a", size=size),), "random", None, 0) for size in ((4, 6), (6, 4))]
    with pytest.raises(UserError, match="queries of 'a': one file says 6x4 pixels, another 4x6"):
        merge_queries(files)
