from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelwise.annotator import jobs as module
from labelwise.annotator.jobs import Busy, Jobs, JobSettings
from labelwise.annotator.progress import thinned
from labelwise.runs import Run

PATIENCE = 60

FAKE = """
import json, os, signal, sys, time
from pathlib import Path
options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
here = Path(options["--data"])
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
ways = json.loads((here / "ways").read_text())
way = ways.get(sys.argv[1], "")
out = Path(options["--out"])
if sys.argv[1] == "train":
    out.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{step},{2 / 2**step}\\n" for step in range(1, 4))
    (out / "metrics.csv").write_text("step,loss\\n" + rows)
    sys.stderr.write("pixelpick: step 2/8  loss 0.5\\n")
    sys.stderr.flush()
if sys.argv[1] == "select":
    out.write_text("chosen")
if sys.argv[1] == "annotate":
    (out / "SegmentationClass").mkdir(parents=True)
    (out / "annotate.json").write_text("{}")
    (out / "SegmentationClass" / "a.png").write_text("new")
if way == "fail":
    sys.stderr.write("note: something\\nerror: the disk is full;  free some space\\n\\n")
    sys.exit(2)
if way == "silent":
    sys.exit(3)
if way == "traceback":
    raise RuntimeError("boom")
if way in ("wait", "deaf"):
    if way == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if child == 0:
            time.sleep(600)
        (here / "child").write_text(str(child))
    (here / "waiting").touch()
    time.sleep(600)
if sys.argv[1] == "train":
    (out / "status.json").write_text(json.dumps({"status": "finished", "step": 8, "steps": 8}))
    (out / "results.json").write_text(json.dumps({"miou": 12.5}))
"""


class Session:
    """What the jobs know of a labelling session."""

    def __init__(self, root: Path) -> None:
        self.dataset = self
        self.root = root
        self.ids = ("a", "b", "c")
        self.loaded: list[Path] = []
        self.wrong: Exception | None = None

    def load_queries(self, path: Path) -> None:
        if self.wrong is not None:
            raise self.wrong
        self.loaded.append(path)

    load_predictions = load_queries


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose commands are faked, in the way that is asked for."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    (tmp_path / "Labelling").mkdir()
    (tmp_path / "Points").mkdir()
    (tmp_path / "Points" / "a.json").write_text("labels")
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-S", str(script)))
    session = Session(tmp_path)
    behave(session)
    return session


def behave(session: Session, **ways: str) -> None:
    (session.root / "ways").write_text(json.dumps(ways))


def made(session: Session, **settings: Any) -> Jobs:
    return Jobs(session, JobSettings(folder=session.root / "Labelling", split="train", **settings))  # type: ignore[arg-type]


def calls(session: Session) -> list[list[str]]:
    return [json.loads(line) for line in (session.root / "calls").read_text().splitlines()]


def ended(jobs: Jobs) -> dict[str, Any]:
    """The state of a job that has to end."""
    wait_for(lambda: jobs.describe()["state"] != "running")
    return jobs.describe()


def wait_for(condition: Callable[[], Any]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, "nothing happens"
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_before_any_job_nothing_is_told(session: Session) -> None:
    assert made(session).describe() == {
        "state": "idle", "what": None, "step": 0, "steps": 0, "losses": [], "score": None, "seconds": 0.0,
        "message": None,
    }  # fmt: skip


def test_the_next_batch_is_trained_then_selected_then_loaded(session: Session) -> None:
    jobs = made(session, pixels=7, method="supervised", preset="mini", options=("--steps=8", "--crop=32"))
    jobs.start("next")
    told = ended(jobs)
    root, folder = session.root, session.root / "Labelling"
    run, queries = folder / "runs" / "1", folder / "queries.unfinished.json"
    assert calls(session) == [
        ["train", "supervised", f"--data={root}", f"--labels=points:{folder}/points", "--split=train",
         "--skip-broken", "--preset=mini", "--steps=8", "--crop=32", f"--out={run}"],
        ["select", str(run), f"--data={root}", f"--out={queries}", "--pixels=7", "--split=train", "--skip-broken",
         "--round=1"],
    ]  # fmt: skip
    assert session.loaded == [queries] and not queries.exists()
    assert (folder / "queries.json").read_text() == "chosen"
    assert (told["state"], told["what"], told["message"]) == ("finished", "selecting", None)
    assert told["losses"] == [(1, 1.0), (2, 0.5), (3, 0.25)] and told["score"] == 12.5
    assert jobs.model == run


def test_progress_is_read_while_a_training_runs(session: Session) -> None:
    behave(session, train="wait")
    jobs = made(session)
    jobs.start("next")
    wait_for((session.root / "waiting").exists)
    told = jobs.describe()
    assert (told["state"], told["what"], told["step"], told["steps"]) == ("running", "training", 3, 8)
    assert told["losses"][-1][0] == 3 and told["score"] is None and told["message"] is None
    for steps, shown in ((0, 8), (12, 12)):
        (session.root / "Labelling/runs/1/config.yaml").write_text(f"options: {{steps: {steps}}}")
        assert jobs.describe()["steps"] == shown
    jobs.close()
    assert jobs.describe()["state"] == "stopped" and session.loaded == []


def test_a_second_job_is_refused_while_one_runs(session: Session) -> None:
    behave(session, train="wait")
    jobs = made(session)
    jobs.start("next")
    with pytest.raises(Busy, match="a job is running already"):
        jobs.start("select")
    wait_for((session.root / "waiting").exists)
    jobs.close()
    behave(session)
    jobs.start("select")
    assert ended(jobs)["state"] == "finished"
    assert [words[0] for words in calls(session)] == ["train", "select"]


def test_a_job_that_is_stopped_before_it_has_begun_does_nothing(session: Session) -> None:
    behave(session, train="wait", select="wait")
    jobs = made(session)
    for action in ("next", "select", "next"):
        jobs.start(action)  # type: ignore[arg-type]
        jobs.close()
        assert jobs.describe()["state"] == "stopped"
    jobs.stop()
    assert jobs.describe()["state"] == "stopped" and session.loaded == []


def test_of_many_starts_at_once_one_wins(session: Session) -> None:
    behave(session, select="wait")
    jobs, refused = made(session), []

    def start() -> None:
        try:
            jobs.start("select")
        except Busy:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for((session.root / "waiting").exists)
    jobs.close()
    assert len(refused) == 7 and len(calls(session)) == 1


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("fail", "training failed: the disk is full; free some space"),
        ("silent", "training failed: pixelpick: step 2/8 loss 0.5"),
        ("traceback", "training failed: RuntimeError: boom"),
    ],
)
def test_a_failure_is_told_by_the_last_line_of_the_command(session: Session, way: str, message: str) -> None:
    behave(session, train=way)
    jobs = made(session)
    jobs.start("next")
    told = ended(jobs)
    assert (told["state"], told["what"], told["message"]) == ("failed", "training", message)
    assert [words[0] for words in calls(session)] == ["train"] and session.loaded == []


def test_a_command_that_says_nothing_fails_by_its_exit_code(session: Session) -> None:
    behave(session, select="silent")
    jobs = made(session)
    jobs.start("select")
    assert ended(jobs)["message"] == "selecting failed: exit code 3"


def test_what_cannot_be_loaded_is_a_failure_too(session: Session) -> None:
    session.wrong = ValueError("no\nqueries")
    jobs = made(session)
    jobs.start("select")
    told = ended(jobs)
    assert (told["state"], told["message"]) == ("failed", "no queries")
    assert not (session.root / "Labelling" / "queries.json").exists()


def test_a_process_that_will_not_end_is_killed_with_all_that_it_started(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    behave(session, train="deaf")
    jobs = made(session)
    jobs.start("next")
    wait_for((session.root / "waiting").exists)
    child = int((session.root / "child").read_text())
    assert is_alive(child)
    jobs.close()
    assert jobs.describe()["state"] == "stopped"
    wait_for(lambda: not is_alive(child))


def test_a_job_runs_in_a_process_group_of_its_own(session: Session) -> None:
    # Or Ctrl-C in the terminal would reach it before it could be asked to save its state.
    behave(session, train="wait")
    jobs = made(session)
    jobs.start("next")
    wait_for((session.root / "waiting").exists)
    assert jobs._process is not None and os.getpgid(jobs._process.pid) == jobs._process.pid != os.getpgid(0)
    os.kill(jobs._process.pid, signal.SIGKILL)
    assert ended(jobs)["state"] == "failed"


def test_a_stopped_training_goes_on_and_one_with_new_labels_begins(session: Session) -> None:
    def trained() -> str:
        behave(session, train="wait")
        (session.root / "waiting").unlink(missing_ok=True)
        jobs = made(session)
        jobs.start("next")
        wait_for((session.root / "waiting").exists)
        jobs.close()
        return calls(session)[-1][-1].rpartition("/")[2]

    assert (trained(), trained()) == ("1", "1")
    (session.root / "Points" / "b.json").write_text("{}")
    assert (trained(), trained()) == ("2", "2")
    (session.root / "Points" / "b.json").write_text("{ }")
    assert trained() == "3"
    (session.root / "Labelling" / "job.json").write_text("torn")
    assert trained() == "4"


def test_other_options_begin_another_run(session: Session) -> None:
    for steps, run in ((4, "1"), (8, "2"), (8, "2")):
        jobs = made(session, options=(f"--steps={steps}",))
        jobs.start("next")
        assert ended(jobs)["state"] == "finished"
        assert calls(session)[-2][-1].endswith(f"/runs/{run}")


def test_a_training_that_outlived_its_server_is_noticed(session: Session) -> None:
    folder = session.root / "Labelling" / "runs" / "10"
    (session.root / "Labelling" / "runs" / "9").mkdir(parents=True)
    reading, writing = os.pipe()
    survivor = os.fork()
    if survivor == 0:
        with Run(folder, {"method": "pixelpick"}).locked():
            os.write(writing, b"1")
            time.sleep(PATIENCE)
        os._exit(0)
    os.read(reading, 1)
    (folder / "status.json").write_text(json.dumps({"status": "running", "pid": survivor}))
    jobs = made(session)
    with pytest.raises(Busy, match=rf"still at work in .*runs/10 \(process {survivor}\)"):
        jobs.start("next")
    assert jobs.describe()["state"] == "idle"
    jobs.start("select")
    assert ended(jobs)["state"] == "finished"
    os.kill(survivor, signal.SIGKILL)
    os.waitpid(survivor, 0)
    jobs.start("next")
    assert ended(jobs)["state"] == "finished" and calls(session)[1][-1].endswith("/runs/11")


def test_the_first_pixels_are_random_or_those_of_the_run_given(session: Session, tmp_path: Path) -> None:
    for run in (None, tmp_path / "run"):
        jobs = made(session, run=run)
        jobs.start("select")
        assert ended(jobs)["state"] == "finished"
    first, second = calls(session)
    assert first[1].startswith("--data=") and second[1] == str(tmp_path / "run")
    assert not any(word.startswith("--round") for word in first + second)


def test_predictions_are_made_beside_those_that_are_shown(session: Session, tmp_path: Path) -> None:
    shown = session.root / "Labelling" / "predictions"
    shown.mkdir()
    (shown / "annotate.json").write_text("{}")
    (shown / "old.png").write_text("old")
    behave(session, annotate="wait")
    jobs = made(session, run=tmp_path / "run")
    jobs.start("predict")
    wait_for((session.root / "waiting").exists)
    told = jobs.describe()
    assert (told["what"], told["step"], told["steps"]) == ("predicting", 1, 3)
    jobs.close()
    assert (shown / "old.png").is_file() and session.loaded == []
    behave(session)
    jobs.start("predict")
    assert ended(jobs)["state"] == "finished"
    assert session.loaded == [shown] and not (shown / "old.png").exists()
    assert (shown / "SegmentationClass" / "a.png").read_text() == "new"
    words = ["annotate", str(tmp_path / "run"), f"--data={session.root}", f"--out={shown}.unfinished"]
    assert calls(session)[-1] == [*words, "--split=train", "--skip-broken"]


def test_a_folder_that_holds_no_predictions_is_not_removed(session: Session, tmp_path: Path) -> None:
    shown = session.root / "Labelling" / "predictions"
    shown.mkdir()
    (shown / "thesis.txt").write_text("mine")
    jobs = made(session, run=tmp_path / "run")
    jobs.start("predict")
    assert "holds something else than predictions" in ended(jobs)["message"]
    assert (shown / "thesis.txt").read_text() == "mine"


def test_without_a_model_nothing_is_predicted_and_without_points_nothing_trained(session: Session) -> None:
    with pytest.raises(ValueError, match="there is no model yet"):
        made(session).start("predict")
    (session.root / "Points" / "a.json").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match="no pixel is labeled yet"):
            made(session).start("next")
        assert not (session.root / "Labelling" / "job.json").exists()
        (session.root / "Points").rmdir() if (session.root / "Points").exists() else None


def test_a_training_learns_from_the_points_as_they_were_when_it_began(session: Session) -> None:
    behave(session, train="wait")
    jobs = made(session)
    jobs.start("next")
    learnt = session.root / "Labelling" / "points"
    (session.root / "Points" / "a.json").unlink()
    (session.root / "Points" / "b.json").write_text("new")
    assert {file.name: file.read_text() for file in learnt.iterdir()} == {"a.json": "labels"}
    jobs.close()
    jobs.start("next")
    assert {file.name: file.read_text() for file in learnt.iterdir()} == {"b.json": "new"}
    jobs.close()


def test_the_newest_finished_training_is_the_model(session: Session, tmp_path: Path) -> None:
    jobs = made(session, run=tmp_path / "run")
    assert jobs.model == tmp_path / "run"
    for name, status in (("2", "finished"), ("10", "finished"), ("11", "stopped"), ("notes", "finished")):
        folder = session.root / "Labelling" / "runs" / name
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"status": status}))
    assert jobs.model is not None and jobs.model.name == "10"


def test_long_curves_are_thinned_to_their_end() -> None:
    losses = [(step, 0.5) for step in range(1, 1002)]
    shown = thinned(losses)
    assert len(shown) <= 200 and shown[-1] == (1001, 0.5)
    assert thinned(losses[:150]) == losses[:150] and thinned([]) == []
