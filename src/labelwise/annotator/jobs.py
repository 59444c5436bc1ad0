"""Work beside the labelling: training on the labels, choosing the next pixels, predicting; one at a time.

Every step is a `labelwise` command of its own, in a process group of its own, so that a training can neither slow down
the answers nor take the labels along when it fails. What a step does can be read in its run's files and in
`Labelling/job.log`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labelwise.annotator.progress import last_line, read_losses, read_object, thinned, total_steps
from labelwise.datasets.listing import Listing
from labelwise.errors import UserError
from labelwise.files import atomic_write

if TYPE_CHECKING:
    from labelwise.annotator.session import AnnotationSession

Action = Literal["next", "select", "predict"]
"""Train and choose the next pixels; only choose them; predict the images."""

COMMAND = (sys.executable, "-m", "labelwise")
PREDICTIONS, QUERIES, LEARNT = "predictions", "queries.json", "points"
"""Within the labelling's folder: the predictions that are shown, the pixels that are asked for, and the points that the
newest training learns from."""
_PATIENCE = 30
"""Seconds that a process has to save its state when it is asked to end."""
_TICK = 0.1


class Busy(Exception):
    """Another job is at work."""


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What the commands are called with.

    Attributes:
        folder: where the labelling session keeps what is no label.
        split: the split that is labelled.
        pixels: how many pixels of each image are chosen at a time.
        method: the method that is trained.
        preset: its preset, or None for its own defaults.
        options: further words of `labelwise train`.
        run: a trained run to begin with, or None.
    """

    folder: Path
    split: str
    pixels: int = 10
    method: str = "pixelpick"
    preset: str | None = None
    options: tuple[str, ...] = ()
    run: Path | None = None


@dataclass(frozen=True)
class Step:
    """One command of a job.

    Attributes:
        what: it does.
        words: of the command, without the program's name.
        done: what is to be done when it has ended well.
        run: the folder of the run that it trains.
    """

    what: Literal["training", "selecting", "predicting"]
    words: tuple[str, ...]
    done: Callable[[], None] = field(default=lambda: None)
    run: Path | None = None


class Jobs:
    """The background job of a labelling session."""

    def __init__(self, session: AnnotationSession, settings: JobSettings) -> None:
        """Nothing runs yet.

        Args:
            session: whose labels are learnt from, and which shows what comes out.
            settings: what the commands are called with.
        """
        self.session, self.settings = session, settings
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = 0.0
        self._state, self._seconds = "idle", 0.0
        self._message: str | None = None
        self._step: Step | None = None
        self._trained: Path | None = None
        self._began = 0.0

    @property
    def model(self) -> Path | None:
        """The newest run that can be asked: the last that was trained here, else the one to begin with."""
        trained = [run for run in self._runs() if read_object(run / "status.json").get("status") == "finished"]
        return trained[-1] if trained else self.settings.run

    def start(self, action: Action) -> None:
        """Begin a job.

        Raises:
            Busy: one is running already, perhaps one that an earlier server left behind.
            ValueError: there is nothing to do it with.
        """
        with self._lock:
            if self._state == "running":
                raise Busy("a job is running already; stop it or wait for its end")
            if action == "next":
                self._refuse_survivor()
            steps = self._steps(action)
            self._state, self._message, self._stopping = "running", None, 0.0
            self._step, self._trained, self._began = steps[0], None, time.monotonic()
            self._thread = threading.Thread(target=self._work, args=(steps,), name="job", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask the job to save its state and end; nothing happens where none runs."""
        with self._lock:
            if self._state != "running" or self._stopping:
                return
            self._stopping = time.monotonic()
            if self._process is not None:
                # The leader alone: its loader processes must live until it has saved its state.
                self._process.terminate()

    def close(self) -> None:
        """End the job and wait until it has ended."""
        self.stop()
        if self._thread is None:
            return
        try:
            self._thread.join()
        except BaseException:
            # Somebody who asks a second time will not wait.
            if self._process is not None:
                _kill_group(self._process)
            raise

    def describe(self) -> dict[str, Any]:
        """The state of the job, as the page shows it.

        Returns:
            `state`, `what`, `step` and `steps` (0 where nothing is known), `losses` ([step, loss] pairs), `score` (of
            the last training, on the val split), `seconds`, `message` (why it failed).
        """
        with self._lock:
            step, run, state = self._step, self._trained, self._state
            seconds = time.monotonic() - self._began if state == "running" else self._seconds
            message = self._message
        losses = read_losses(run) if run else []
        score = read_object(run / "results.json").get("miou") if run else None
        done, total = self._progress(step, losses) if step else (0, 0)
        return {
            "state": state,
            "what": step.what if step else None,
            "step": done,
            "steps": total,
            "losses": thinned(losses),
            "score": score if isinstance(score, float) else None,
            "seconds": round(seconds, 1),
            "message": message,
        }

    # ------------------------------------------------------------------ steps

    def _steps(self, action: Action) -> list[Step]:
        if action == "predict":
            return [self._predicting()]
        if action == "select":
            return [self._selecting(self.model)]
        run = self._next_run()
        return [self._training(run), self._selecting(run)]

    def _training(self, run: Path) -> Step:
        words = [*self._train_words(), f"--out={run}"]
        return Step("training", ("train", *words), run=run)

    def _train_words(self) -> list[str]:
        settings = self.settings
        words = [
            settings.method,
            f"--data={self.session.dataset.root}",
            f"--labels=points:{settings.folder / LEARNT}",
            f"--split={settings.split}",
            "--skip-broken",
        ]
        words += [] if settings.preset is None else [f"--preset={settings.preset}"]
        return [*words, *settings.options]

    def _selecting(self, run: Path | None) -> Step:
        out = self.settings.folder / "queries.unfinished.json"

        def ask() -> None:
            self.session.load_queries(out)
            # Only now, because whoever starts again asks what this file holds.
            out.replace(self.settings.folder / QUERIES)

        words = [
            *([] if run is None else [str(run)]),
            f"--data={self.session.dataset.root}",
            f"--out={out}",
            f"--pixels={self.settings.pixels}",
            f"--split={self.settings.split}",
            "--skip-broken",
            # Each training's choice draws its own random numbers.
            *([f"--round={run.name}"] if run is not None and run.parent == self._own_runs else []),
        ]
        return Step("selecting", ("select", *words), done=ask)

    def _predicting(self) -> Step:
        model = self.model
        if model is None:
            raise ValueError("there is no model yet: train one, or start with --run RUN")
        unfinished, ready = self._unfinished, self.settings.folder / PREDICTIONS
        _remove_predictions(unfinished)
        words = (str(model), f"--data={self.session.dataset.root}", f"--out={unfinished}")

        def show() -> None:
            _remove_predictions(ready)
            unfinished.rename(ready)
            self.session.load_predictions(ready)

        return Step("predicting", ("annotate", *words, f"--split={self.settings.split}", "--skip-broken"), done=show)

    @property
    def _unfinished(self) -> Path:
        """Where predictions are made, so that those that are shown stay whole."""
        return self.settings.folder / f"{PREDICTIONS}.unfinished"

    # ------------------------------------------------------------------- runs

    @property
    def _own_runs(self) -> Path:
        return self.settings.folder / "runs"

    def _runs(self) -> list[Path]:
        """The trainings of this folder, the oldest first."""
        found = self._own_runs.iterdir() if self._own_runs.is_dir() else ()
        return sorted((run for run in found if run.name.isdecimal()), key=lambda run: int(run.name))

    def _next_run(self) -> Path:
        """The newest run, if it was trained by the same words on the same labels; else a new one.

        So a training that was stopped goes on where it was, unless there is more to learn from meanwhile. A new one
        gets a copy of the points, because labelling goes on beside it.

        Raises:
            ValueError: there is no point.
        """
        points = self.session.dataset.root / "Points"
        runs = self._runs()
        note = self.settings.folder / "job.json"
        request = {"words": self._train_words(), "labels": Listing([points]).digest}
        earlier = read_object(note)
        if runs and earlier == request | {"run": runs[-1].name}:
            return runs[-1]
        if not _copy_labels(points, self.settings.folder / LEARNT):
            raise ValueError("no pixel is labeled yet; label some, then train")
        run = self._own_runs / str(int(runs[-1].name) + 1 if runs else 1)
        atomic_write(note, json.dumps(request | {"run": run.name}))
        return run

    def _refuse_survivor(self) -> None:
        """Refuse to train beside a process that outlived the server which started it.

        Raises:
            Busy: there is one.
        """
        for run in self._runs()[-1:]:
            with suppress(FileNotFoundError), (run / ".lock").open("r+") as lock:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    process = read_object(run / "status.json").get("pid")
                    raise Busy(
                        f"a training of an earlier call is still at work in {run} (process {process}); "
                        "wait for it or end that process"
                    ) from None

    # ------------------------------------------------------------------- work

    def _work(self, steps: Sequence[Step]) -> None:
        """Run the steps one after the other; in a thread of its own."""
        state: str = "finished"
        message: str | None = None
        try:
            for step in steps:
                self._run(step)
                step.done()
        except _Stopped:
            state = "stopped"
        except Exception as error:
            # Whatever it was, the page has to show it: nobody else reads what a thread raises.
            state, message = "failed", " ".join(str(error).split()) or type(error).__name__
        with self._lock:
            self._state, self._message, self._process = state, message, None
            self._seconds = time.monotonic() - self._began

    def _run(self, step: Step) -> None:
        """Run one command to its end.

        Raises:
            _Stopped: it was asked to stop.
            UserError: it failed.
        """
        with self._log.open("wb") as log:
            with self._lock:
                if self._stopping:
                    raise _Stopped
                self._step = step
                self._trained = step.run or self._trained
                self._process = process = subprocess.Popen(
                    [*COMMAND, *step.words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                )
            code = self._ended(process)
        if self._stopping:
            raise _Stopped
        if code != 0:
            raise UserError(f"{step.what} failed: {last_line(self._log) or f'exit code {code}'}")

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code of a process, which is killed if it does not end when it is asked to."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(_TICK)
                _kill_group(process)
                return code
            if self._stopping and time.monotonic() - self._stopping > _PATIENCE:
                _kill_group(process)

    @property
    def _log(self) -> Path:
        return self.settings.folder / "job.log"

    def _progress(self, step: Step, losses: Sequence[tuple[int, float]]) -> tuple[int, int]:
        """How many steps or images are done, of how many; 0 where it is not known."""
        if step.what == "predicting":
            folder = self._unfinished / "SegmentationClass"
            return (len(os.listdir(folder)) if folder.is_dir() else 0), len(self.session.ids)  # noqa: PTH208
        if step.what == "selecting":
            return 0, 0
        return (losses[-1][0] if losses else 0), total_steps(step.run, self._log)


class _Stopped(Exception):
    """The job was asked to stop."""


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _copy_labels(source: Path, out: Path) -> bool:
    """Copy the label files of a folder, in place of those copied before; whether there are any."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in sorted(source.glob("*.json")):
        # The last point of an image may be taken back meanwhile.
        with suppress(FileNotFoundError):
            shutil.copyfile(file, out / file.name)
    return any(out.iterdir())


def _remove_predictions(folder: Path) -> None:
    """Remove earlier predictions.

    Raises:
        UserError: the folder holds something else.
    """
    if folder.is_dir() and not (folder / "annotate.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds something else than predictions; move it away")
    shutil.rmtree(folder, ignore_errors=True)
