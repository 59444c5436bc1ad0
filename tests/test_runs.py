"""A run folder belongs to one request, and to one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise.cli import main
from labelwise.configuration import load_preset, make_config
from labelwise.errors import UserError
from labelwise.methods.few_masks.cps import CPS
from labelwise.runs import Run, read_json, read_yaml
from tests.tiny_runs import OPTIONS, cut, tiny_run, train_words

REQUEST = {"method": "cps", "seed": 0, "options": {"crop": 32, "learning_rate": 1e-5, "scale_range": (0.5, 2.0)}}

words = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", REQUEST)
    made.start()
    return made


def test_the_same_request_continues(run: Run) -> None:
    again = Run(run.folder, REQUEST)
    assert again.status["status"] == "running" and not again.finished
    again.record(status="finished")
    assert Run(run.folder, REQUEST).finished


@given(options=st.dictionaries(words, plain, max_size=4))
def test_any_plain_request_is_recognised_after_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    Run(folder, {"method": "cps", "options": options}).start()
    Run(folder, {"method": "cps", "options": options})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "supervised"}, "holds a run of 'cps', not of 'supervised'"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"options": {"crop": 48, "learning_rate": 1e-5}}, r"options.crop: 32 -> 48; options.scale_range: .* -> None"),
    ],
)
def test_another_request_is_refused_with_the_differences(run: Run, change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Run(run.folder, REQUEST | change)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "thesis.tex"
    file.write_text("years of work")
    for out in (tmp_path, file):
        with pytest.raises(UserError, match=r"--out .*: (holds something else than a run|is a file); name a"):
            Run(out, REQUEST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_killed_process_left_half_written_is_no_obstacle_and_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", ".0123.tmp"):
        (folder / name).touch()
    Run(folder, REQUEST).start()
    (folder / "checkpoints" / ".4567.tmp").touch()
    Run(folder, REQUEST).start()
    assert not list(folder.rglob("*.tmp"))


def test_looking_at_a_folder_writes_nothing(tmp_path: Path) -> None:
    Run(tmp_path / "run", REQUEST)
    assert not (tmp_path / "run").exists()


def test_a_second_process_is_kept_out_until_the_first_has_ended(run: Run) -> None:
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, run.folder / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline()
    with pytest.raises(UserError, match="another process is at work in this run"), run.locked():
        pass
    other.kill()
    other.wait()
    with run.locked():
        pass


def test_a_locked_run_ends_the_command_with_one_line(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert main(train_words("supervised", shapes_folder, tmp_path / "run")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --out {tmp_path / 'run'}: another process is at work")


def test_a_finished_run_gives_its_results_without_training(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run("supervised", shapes_folder, tmp_path, steps=1)
    monkeypatch.setattr("labelwise.verbs.train.Training", None)
    capsys.readouterr()
    assert main([*train_words("supervised", shapes_folder, tmp_path, steps=1), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((tmp_path / "results.json").read_text())
    assert "finished already" in said.err


def test_a_stopped_run_says_so_until_it_goes_on(shapes_folder: Path, tmp_path: Path) -> None:
    with cut(1):
        tiny_run("supervised", shapes_folder, tmp_path, steps=2)
    status = read_json(tmp_path / "status.json")
    assert (status["status"], status["step"], status["steps"]) == ("stopped", 1, 2)
    assert status["reason"]
    tiny_run("supervised", shapes_folder, tmp_path, steps=2)
    status = read_json(tmp_path / "status.json")
    assert (status["status"], status["step"], status["reason"]) == ("finished", 2, None)


def test_the_configuration_of_a_run_is_a_preset_for_the_next(shapes_folder: Path, tmp_path: Path) -> None:
    options = OPTIONS | {"cross_weight": 1e-5, "steps": 1}
    tiny_run("cps", shapes_folder, tmp_path / "first", **options)
    config = make_config(CPS, load_preset(CPS, str(tmp_path / "first" / "config.yaml")), {})
    assert config == CPS.Config(**options)
    # JSON knows no tuples.
    assert read_yaml(tmp_path / "first" / "config.yaml")["options"] == json.loads(json.dumps(asdict(config)))


def test_the_environment_is_recorded(run: Run) -> None:
    environment = read_json(run.folder / "environment.json")
    assert environment["versions"]["torch"]
    assert {"command", "python", "commit", "platform", "processor", "gpus"} <= environment.keys()


@pytest.mark.parametrize("content", ["{", "[1]", "nothing"])
def test_a_status_that_is_not_ours_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(UserError, match=r"status\.json: (is not JSON|holds no JSON object)"):
        read_json(tmp_path / "status.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [", "not usable YAML"),
        ("a: 1\na: 2", "key given twice"),
        ("- 1", "must hold `name: value` lines"),
        ("a: !!python/object/apply:os.system [ls]", "not usable YAML"),
    ],
)
def test_yaml_is_data_and_strict(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=reason):
        read_yaml(path)
