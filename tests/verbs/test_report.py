from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import labelwise
from tests.conftest import Called

Call = Callable[..., Called]


def test_the_page_of_a_run_is_written_anew(call: Call, trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "report.html").unlink()
    called = call("report", run)
    assert called.out == f"{run / 'report.html'}\n" and called.err == ""
    assert "mean IoU" in (run / "report.html").read_text()
    assert labelwise.report([run]) == {"reports": [str(run / "report.html")]}


def test_the_page_of_a_comparison_is_written_anew(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "comparison"
    words = [
        "--data",
        shapes_folder,
        "--out",
        out,
        "--seeds",
        1,
        "--workers",
        0,
        "--preset",
        trained_run / "config.yaml",
    ]
    assert call("compare", "supervised", *words).code == 0
    (out / "report.html").unlink()
    run = out / "runs" / "supervised-shapes-masks-all-seed0"
    called = call("report", out, run, "--json")
    assert called.json == {"reports": [str(out / "report.html"), str(run / "report.html")]}
    assert "One seed: no interval." in (out / "report.html").read_text()


def test_a_page_is_written_for_an_unfinished_run(call: Call, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained_run / "config.yaml", run)
    assert call("report", run).code == 0
    assert "supervised on masks:all" in (run / "report.html").read_text()


def test_nothing_is_written_if_one_of_the_folders_is_wrong(call: Call, trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "report.html").unlink()
    refused = call("report", run, tmp_path)
    assert (
        refused.message
        == f"{tmp_path}: is neither a run nor a comparison nor a recipe's; name a folder that `train`, `compare` or "
        "`run` wrote"
    )
    assert not (run / "report.html").exists()


def test_damaged_files_are_named(call: Call, trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "results.json").write_text("{")
    assert call("report", run).message.startswith(f"{run / 'results.json'}: not readable")
    (run / "comparison.json").write_text("[]")
    assert call("report", run).message.startswith(f"{run / 'comparison.json'}: holds no JSON object")
