"""Checkpoints are whole or not there, hold data only, and never hold a spoilt state."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from labelwise import methods
from labelwise.checkpoints import AtomicCheckpointIO, newest_intact, step_of
from labelwise.cli import main
from labelwise.method import Method, NonFiniteLoss
from tests.tiny_runs import cut, outcome, tiny_run, train_words

STATE = {"weights": torch.arange(1000.0), "step": 3}


def save(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lose_digest(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").unlink()


def garble_digest(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").write_bytes(b"\xff\xfe")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, lose_digest, garble_digest, empty])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before, newest = save(tmp_path, 9), save(tmp_path, 10)
    assert newest_intact(tmp_path) == newest
    damage(newest)
    said = io.StringIO()
    assert newest_intact(tmp_path, Console(file=said, width=1000)) == before
    assert f"{newest} is damaged" in said.getvalue()
    damage(before)
    assert newest_intact(tmp_path) is None


@pytest.fixture(scope="module")
def uninterrupted(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return outcome(tiny_run("supervised", shapes_folder, tmp_path_factory.mktemp("whole")))


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    shapes_folder: Path, tmp_path: Path, uninterrupted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with cut(4):
        tiny_run("supervised", shapes_folder, tmp_path)
    truncate(max(tmp_path.glob("checkpoints/*.ckpt")))
    tiny_run("supervised", shapes_folder, tmp_path)
    assert "step-00000004.ckpt is damaged" in capsys.readouterr().err
    assert outcome(tmp_path) == uninterrupted


def test_the_two_newest_are_kept_and_they_hold_data_only(shapes_folder: Path, tmp_path: Path) -> None:
    with cut(3):
        tiny_run("cps", shapes_folder, tmp_path)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"step-0000000{step}.ckpt{end}" for step in (2, 3) for end in ("", ".sha256")
    ]
    checkpoint = torch.load(folder / "step-00000003.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert any(name.startswith("second.") for name in checkpoint["state_dict"])


def test_damaged_leftovers_of_later_steps_do_not_push_good_checkpoints_out(shapes_folder: Path, tmp_path: Path) -> None:
    with cut(2):
        tiny_run("supervised", shapes_folder, tmp_path)
    for step in (97, 98):
        truncate(save(tmp_path / "checkpoints", step))
    with cut(4):
        tiny_run("supervised", shapes_folder, tmp_path)
    assert sorted(map(step_of, tmp_path.glob("checkpoints/*.ckpt"))) == [3, 4]


class FullDisk(io.BytesIO):
    """A file that takes a part of what is written."""

    def write(self, content: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_in_write(state: Any, _: IO[bytes], save: Callable[..., None] = torch.save) -> None:
    save(state, FullDisk())


def fail_in_sync(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("name", "failure"), [("torch.save", fail_in_write), ("os.fsync", fail_in_sync)])
def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failure: Callable[..., None]
) -> None:
    path = save(tmp_path, 1)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(name, failure)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_a_full_disk_ends_a_run_with_one_line_and_the_same_call_continues(
    shapes_folder: Path,
    tmp_path: Path,
    uninterrupted: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = train_words("supervised", shapes_folder, tmp_path, checkpoint_every=1)
    saved = AtomicCheckpointIO.save_checkpoint

    def save_until_full(self: AtomicCheckpointIO, state: dict[str, Any], path: Path, **rest: Any) -> None:
        if state["global_step"] == 4:
            monkeypatch.setattr("torch.save", fail_in_write)
        saved(self, state, path, **rest)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_until_full)
    assert main(words) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and "disk is full" in last
    assert not list(tmp_path.rglob("*.tmp"))
    assert newest_intact(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000003.ckpt"
    monkeypatch.undo()
    assert main(words) == 0
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("method", "term", "value"),
    [
        ("supervised", "supervised", math.nan),
        ("cps", "supervised_first", math.inf),
        ("cps", "supervised_second", math.nan),
        ("cps", "cross", math.inf),
    ],
)
def test_the_first_term_that_is_not_finite_stops_the_run(
    shapes_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
    term: str,
    value: float,
) -> None:
    learner = methods.load(method)
    losses, seen = learner.losses, []

    def spoilt(self: Method, **streams: Any) -> dict[str, Tensor]:
        terms = losses(self, **streams)
        seen.extend(streams["labeled"].ids)
        return terms if self.global_step < 2 else terms | {term: terms[term] * value}

    monkeypatch.setattr(learner, "losses", spoilt)
    words = train_words(method, shapes_folder, tmp_path, checkpoint_every=1, learning_rate=0.25, head_multiplier=1)
    assert main(words) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: loss term '{term}' is {value} at step 3 ")
    assert "with learning rate 0.174 on images" in line  # 0.25 (1 - 2 / 6)^0.9
    assert f"labeled: {', '.join(seen[-2:])}" in line
    assert newest_intact(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000002.ckpt"
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["status"] == "stopped" and term in status["reason"]


def test_weights_that_an_infinite_gradient_has_spoilt_are_not_saved(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Method) -> None:
        if self.trainer.global_step == 2:
            next(self.network.parameters()).data[0] = math.inf

    monkeypatch.setattr(methods.load("supervised"), "after_step", spoil)
    with pytest.raises(NonFiniteLoss, match=r"the weights 'network.*' are not finite after step 3"):
        tiny_run("supervised", shapes_folder, tmp_path)
    assert newest_intact(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000002.ckpt"
