from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import labelwise
from labelwise.datasets.shapes import ShapesOptions
from tests.conftest import Called

Call = Callable[..., Called]

SMALL = ("--train", 2, "--val", 1, "--size", 48)


def test_the_options_of_the_generator_are_those_of_the_verb(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "set"
    called = call("shapes", out, *SMALL, "--seed", 7, "--noise", "shifted", "--context", 0.5, "--parts", "--json")
    assert called.json == {"folder": str(out), "train": 2, "val": 1}
    assert called.err == ""
    expected = ShapesOptions(train=2, val=1, size=48, seed=7, noise="shifted", context=0.5, parts=True)
    assert ShapesOptions(**json.loads((out / "shapes.json").read_text())) == expected
    dataset = labelwise.open(out)
    assert {split: len(dataset.ids(split)) for split in dataset.splits} == {"train": 2, "val": 1}


def test_the_same_call_again_changes_nothing(call: Call, tmp_path: Path) -> None:
    assert call("shapes", tmp_path, *SMALL).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert call("shapes", tmp_path, *SMALL).code == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_from_python_it_is_the_same(tmp_path: Path) -> None:
    made = labelwise.shapes(tmp_path, ShapesOptions(train=1, val=1, size=48))
    assert made == {"folder": str(tmp_path), "train": 1, "val": 1}


def test_other_options_and_other_content_are_refused(call: Call, tmp_path: Path) -> None:
    call("shapes", tmp_path / "set", *SMALL)
    refused = call("shapes", tmp_path / "set", *SMALL, "--seed", 1)
    assert refused.message == f"{tmp_path / 'set'}: holds shapes with another seed; name a new or empty folder"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    refused = call("shapes", tmp_path / "other", *SMALL)
    assert refused.message == f"{tmp_path / 'other'}: holds something else already; name a new or empty folder"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_a_value_out_of_range_writes_nothing(call: Call, tmp_path: Path) -> None:
    assert "--size 20: must be between 48" in call("shapes", tmp_path / "set", "--size", 20).message
    assert not (tmp_path / "set").exists()
