"""Rounds of active learning: select, label, train again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labelwise
from labelwise.datasets.voc import VOC
from labelwise.hardware import Hardware
from labelwise.samples import Kind
from labelwise.verbs import rounds
from labelwise.verbs import train as training
from labelwise.verbs.train import train
from tests.conftest import Called
from tests.tiny_runs import MACHINE, OPTIONS, Cut, ended, outcome, start, train_words, wait_for

Call = Callable[..., Called]
ROUNDS: dict[str, Any] = {**OPTIONS, "steps": 2, "rounds": 3}


@pytest.fixture(scope="module")
def data(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training images and two to score on, with masks alone, so that any pixel can be asked for."""
    folder = tmp_path_factory.mktemp("rounds") / "data"
    source, target = VOC(shapes_folder), VOC.create(folder, VOC(shapes_folder).classes, durable=False)
    for split, count in (("train", 4), ("val", 2)):
        ids = source.ids(split)[:count]
        for id in ids:
            target.write(source.read(id, {Kind.MASKS}))
        target.write_split(split, ids)
    # Pixels without a class, which nobody may be asked for.
    sample = target.read(source.ids("train")[0], {Kind.MASKS})
    assert sample.mask is not None
    sample.mask[:, 8:] = 255
    target.write(sample)
    return folder


def learn(data: Path, out: Path, labels: str = "points:6", **options: Any) -> dict[str, Any]:
    return train("pixelpick", data=data, out=out, labels=labels, hardware=Hardware(**MACHINE), **{**ROUNDS, **options})


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three rounds of two clicks per image."""
    folder = tmp_path_factory.mktemp("runs") / "margin"
    learn(data, folder)
    return folder


def clicks(run: Path, number: int) -> dict[str, list[tuple[int, int, str]]]:
    """Image -> its clicks up to a round."""
    files = (run / "rounds" / str(number) / "points").iterdir()
    return {
        file.stem: [(row["x"], row["y"], row["class"]) for row in json.loads(file.read_text())["points"]]
        for file in files
    }


def test_each_round_adds_new_true_clicks_to_those_before(run: Path, data: Path) -> None:
    dataset = labelwise.open(data)
    ids = dataset.ids("train")
    for number in (1, 2, 3):
        found = clicks(run, number)
        assert found.keys() == set(ids)
        for id, points in found.items():
            mask = dataset.read(id, {Kind.MASKS}).mask
            assert mask is not None and len({(x, y) for x, y, _ in points}) == len(points) == 2 * number
            # A void pixel has no name.
            assert all(dataset.classes.names[mask[y, x]] == name for x, y, name in points)
            assert number == 1 or points[: 2 * number - 2] == clicks(run, number - 1)[id]


def test_the_first_round_is_the_run_on_as_many_random_clicks(run: Path, data: Path, tmp_path: Path) -> None:
    learn(data, tmp_path / "random", "points:2", rounds=1)
    before, now = outcome(tmp_path / "random"), outcome(run / "rounds" / "1" / "run")
    assert before[0] == now[0] and before[2] == now[2]
    assert not (tmp_path / "random" / "rounds").exists()


def test_random_clicks_need_no_rounds(data: Path, tmp_path: Path) -> None:
    learn(data, tmp_path / "one", rounds=1)
    learn(data, tmp_path / "three", strategy="random")
    assert outcome(tmp_path / "one") == outcome(tmp_path / "three")
    assert not (tmp_path / "three" / "rounds").exists()


@pytest.mark.parametrize("labels", ["points", "masks"])
def test_all_labels_leave_nothing_to_choose(data: Path, tmp_path: Path, labels: str) -> None:
    learn(data, tmp_path / "run", labels, steps=1)
    assert not (tmp_path / "run" / "rounds").exists()


def test_what_was_asked_and_learned_is_told(run: Path) -> None:
    recorded = json.loads((run / "rounds.json").read_text())["rounds"]
    assert [each["clicks_per_image"] for each in recorded] == [2, 4, 6]
    assert [each["clicks"] for each in recorded] == [8, 16, 24]
    assert [sum(each["histogram"].values()) for each in recorded] == [8, 8, 8]
    assert recorded[0]["entropy"] is None and recorded[1]["entropy"] > 0
    folders = [run / "rounds" / "1" / "run", run / "rounds" / "2" / "run", run]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert [each["miou"] for each in recorded] == [result["miou"] for result in results]
    assert results[-1]["protocol"] == "points:6, chosen by margin in 3 rounds, seed 0"
    assert results[-1]["labeled"] == 4
    assert "Score by clicks per image" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(rounds, "format_points", 6, id="while the clicks of a round are written"),
        pytest.param(rounds, "_record", 3, id="before a choice is noted"),
        pytest.param(rounds._Rounds, "learn", 2, id="before a training"),
        pytest.param(rounds, "_note", 2, id="before its score is noted"),
        pytest.param(training, "complete_rounds", 3, id="at the end"),
    ],
)
def test_a_cut_run_goes_on_to_the_same_result(
    run: Path, data: Path, tmp_path: Path, owner: object, name: str, call: int
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), call))
        with pytest.raises(Cut):
            learn(data, out)
    learn(data, out)
    assert_same(out, run)


def test_a_killed_run_goes_on_to_the_same_result(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(train_words("pixelpick", data, out, base=ROUNDS, labels="points:6"), tmp_path / "said")
    wait_for((out / "rounds" / "2" / "run" / "status.json").exists, process)
    process.kill()
    assert ended(process) == -9
    learn(data, out)
    assert_same(out, run)


def assert_same(out: Path, run: Path) -> None:
    """Neither weights nor scores nor clicks tell the runs apart, and the first is finished."""
    assert json.loads((out / "status.json").read_text())["status"] == "finished"
    assert outcome(out) == outcome(run)
    assert [clicks(out, number) for number in (1, 2, 3)] == [clicks(run, number) for number in (1, 2, 3)]
    assert (out / "rounds.json").read_text() == (run / "rounds.json").read_text()


def failing(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, which does not come back from this call."""
    made = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made == calls:
            raise Cut
        return function(*arguments, **named)

    return counted


def test_wrong_answers_name_another_class_of_the_same_pixels(data: Path, tmp_path: Path, run: Path) -> None:
    learn(data, tmp_path / "wrong", "points:6", error_rate=1.0, rounds=2, steps=1)
    right, wrong = clicks(run, 1), clicks(tmp_path / "wrong", 1)
    for id, points in wrong.items():
        # The first clicks are the same pixels.
        assert all(now[:2] == then[:2] and now[2] != then[2] for now, then in zip(points, right[id], strict=False))
    learn(data, tmp_path / "random", "points:3", error_rate=1.0, strategy="random", steps=1)
    assert clicks(tmp_path / "random", 1) == wrong
    results = json.loads((tmp_path / "random" / "results.json").read_text())
    assert results["protocol"] == "points:3, chosen by random in one round, 100 % of the answers wrong, seed 0"


def test_clicks_that_somebody_made_are_asked_for_until_there_are_none(data: Path, tmp_path: Path) -> None:
    clicked = Path(shutil.copytree(data, tmp_path / "data"))
    made = [{"x": 5, "y": y, "class": "background"} for y in (1, 9, 30)]
    (clicked / "Points").mkdir()
    for id in labelwise.open(clicked).ids("train"):
        (clicked / "Points" / f"{id}.json").write_text(json.dumps({"points": made}))
    learn(clicked, tmp_path / "run", "points:4", rounds=2, steps=1, share=1.0)
    for number, count in ((1, 2), (2, 3)):
        for points in clicks(tmp_path / "run", number).values():
            assert len(points) == count and {y for _, y, _ in points} <= {1, 9, 30}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "points:7"], "--labels points:7: 7 clicks cannot be divided among 3 rounds; ask for points:6"),
        (["--labels", "points:1"], "--labels points:1: 1 clicks cannot be divided among 3 rounds; ask for points:3"),
        (["--error-rate", 0.1], "--error-rate 0.1: is of a number of clicks per image; --labels points:N"),
    ],
)
def test_clicks_that_cannot_be_divided_are_refused(
    call: Call, data: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    refused = call("train", "pixelpick", "--data", data, "--rounds", 3, "--out", tmp_path / "run", *options)
    assert refused.message.startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_broken_mask_stops_the_rounds_or_is_skipped_in_all(call: Call, data: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    id = labelwise.open(broken).ids("train")[1]
    (broken / "SegmentationClass" / f"{id}.png").write_bytes(b"no picture")
    words = train_words(
        "pixelpick", broken, tmp_path / "run", base={**ROUNDS, "steps": 1, "rounds": 2}, labels="points:4"
    )
    refused = call(*words)
    assert refused.message.startswith(f"{broken}/SegmentationClass/{id}.png: ")
    assert not (tmp_path / "run").exists()
    assert call(*words, "--skip-broken").code == 0
    assert set(clicks(tmp_path / "run", 2)) == set(labelwise.open(data).ids("train")) - {id}


def test_a_broken_file_of_a_folder_of_clicks_stops_or_is_skipped(call: Call, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clicks"
    folder.mkdir()
    first, second, *_ = labelwise.open(data).ids("train")
    (folder / f"{first}.json").write_text('{"points": [{"x": 1, "y": 2, "class": "background"}]}')
    (folder / f"{second}.json").write_text('{"points": [{"x": 1, "y": 2, "class": "bakground"}]}')
    base = {**ROUNDS, "steps": 1, "rounds": 1}
    words = train_words("pixelpick", data, tmp_path / "run", base=base, labels=f"points:{folder}")
    refused = call(*words)
    assert refused.message == (
        f"{folder}/{second}.json: point 1 has the unknown class 'bakground'; correct the name; "
        "did you mean 'background'?"
    )
    assert not (tmp_path / "run").exists()
    called = call(*words, "--skip-broken", "--json")
    assert called.code == 0 and called.json["labeled"] == 1 and called.json["skipped"] == [second]
