"""The numbers of a run in `metrics.csv`, and what is said while it goes on."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from labelwise import progress
from labelwise.errors import UserError
from labelwise.metrics.segmentation import Scores, SegmentationScores
from labelwise.progress import MetricsCsv, TrainingProgress, watched
from tests.tiny_runs import cut, tiny_run


def rows(run: Path) -> dict[int, dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return {
            int(row.pop("step")): {name: value for name, value in row.items() if value} for row in csv.DictReader(file)
        }


def state(step: int, **metrics: float) -> Any:
    """What the callbacks look at in a trainer."""
    return SimpleNamespace(
        global_step=step,
        max_steps=20,
        accumulate_grad_batches=1,
        is_global_zero=True,
        callback_metrics={name.replace("_", "/"): torch.tensor(value) for name, value in metrics.items()},
    )


def log(table: MetricsCsv, *steps: int) -> None:
    for step in steps:
        table.on_train_batch_end(state(step, loss_cross=step / 3, val_miou=1.0), None, {}, None, step - 1)


def test_a_row_is_the_number_of_steps_done_with_its_losses_and_scores(shapes_folder: Path, tmp_path: Path) -> None:
    tiny_run("cps", shapes_folder, tmp_path, {"accumulate": 2}, steps=5, eval_every=2)
    table = rows(tmp_path)
    assert list(table) == [1, 2, 3, 4, 5]
    losses = {"loss", "loss/supervised_first", "loss/supervised_second", "loss/cross"}
    assert all(losses <= row.keys() for row in table.values())
    assert [step for step, row in table.items() if "val/miou" in row] == [2, 4, 5]


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log(MetricsCsv(path, every=2), 1, 2, 3, 4, 5, 6)
    assert list(rows(tmp_path)) == [2, 4, 6]
    log(MetricsCsv(path, every=2, resumed_at=4), 5)
    assert list(rows(tmp_path)) == [2, 4, 6], "nothing is written before there is something new"
    log(MetricsCsv(path, every=2, resumed_at=4), 8)
    assert list(rows(tmp_path)) == [2, 4, 8]
    assert rows(tmp_path)[4] == {"loss/cross": "1.33333"}


def test_a_score_that_was_not_measured_this_time_is_left_out(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = SegmentationScores.compute

    def without_one(self: SegmentationScores) -> Scores:
        scores = score(self)
        absent = "ball" if len(rows(tmp_path)) == 2 else "ring"
        return replace(scores, iou=scores.iou | {"ball": 1.0, "ring": 1.0} | {absent: None})

    monkeypatch.setattr(SegmentationScores, "compute", without_one)
    tiny_run("supervised", shapes_folder, tmp_path, steps=3, eval_every=1)
    assert ["val/iou/ball" in row for row in rows(tmp_path).values()] == [True, False, True]
    assert ["val/iou/ring" in row for row in rows(tmp_path).values()] == [False, True, False]


def test_scores_are_told_from_losses_and_belong_to_the_steps_done(tmp_path: Path) -> None:
    table = MetricsCsv(tmp_path / "metrics.csv", every=1)
    log(table, 1, 2)
    assert not table.has_evaluation(2)
    table.on_validation_end(state(2, loss_cross=9.0, val_miou=50.0), None)
    assert table.has_evaluation(2)
    assert rows(tmp_path)[2] == {"loss/cross": "0.666667", "val/miou": "50"}
    resumed = MetricsCsv(tmp_path / "metrics.csv", every=1, resumed_at=1)
    resumed.on_validation_end(state(0, val_miou=40.0), None)
    assert rows(tmp_path) == {1: {"loss/cross": "0.333333", "val/miou": "40"}}


@pytest.mark.parametrize("content", ["loss\n1\n", "step,loss\nlater,1\n", "step\n1,2,3\n\n,\n"])
def test_a_table_that_is_not_ours_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv: is not what `labelwise train` wrote .*; delete it"):
        MetricsCsv(path, every=1)


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    said = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=said, force_terminal=True, width=120))
    return said


def test_without_a_terminal_every_tenth_of_the_steps_is_one_line(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run("supervised", shapes_folder, tmp_path, {"accumulate": 2, "checkpoint_every": 50}, steps=20)
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps/s" in line]
    assert [line.split()[2] for line in lines] == [f"{step}/20" for step in range(2, 21, 2)]


def test_in_a_terminal_a_bar_is_shown_and_closed_even_when_the_run_breaks(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, bars = terminal(monkeypatch), []
    began = TrainingProgress.on_train_start

    def remember(self: TrainingProgress, *rest: Any) -> None:
        began(self, *rest)
        bars.append(self._bar)

    monkeypatch.setattr(TrainingProgress, "on_train_start", remember)
    with cut(2):
        tiny_run("supervised", shapes_folder, tmp_path, steps=3)
    tiny_run("supervised", shapes_folder, tmp_path, steps=3)
    assert [bar.finished for bar in bars] == [False, True]
    assert not any(bar.live.is_started for bar in bars)
    assert "step 3/3" in said.getvalue()


def test_watching_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(watched("abc", "letters")) == ["a", "b", "c"]
    said = terminal(monkeypatch)
    assert list(watched("abc", "letters", total=3)) == ["a", "b", "c"]
    assert "letters" in said.getvalue()
