from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from labelwise import cli
from labelwise.checkpoints import Interrupted
from labelwise.errors import BadFile, Problem, UserError
from labelwise.method import NonFiniteLoss
from tests.conftest import Called

Call = Callable[..., Called]

WITHOUT_DEFAULT = {
    "--out",
    "--preset",
    "--labels",
    "--task",
    "--option",
    "--window",
    "--output-stride",
    "--crf",
    "--split",
    "--strategy",
    "--round",
    "--run",
    "--queries",
    "--classes",
}
SWITCHES = {"--help", "--json", "--version"}
POSITIONAL = {
    "methods": ["NAME"],
    "shapes": ["FOLDER"],
    "inspect": ["DATA"],
    "convert": ["DATA"],
    "train": ["METHOD"],
    "run": ["RECIPE"],
    "evaluate": ["RUN"],
    "predict": ["RUN", "IMAGES"],
    "annotate": ["RUN"],
    "refine": ["DATA"],
    "select": ["RUN"],
    "label": ["DATA"],
    "mine-ood": ["RUN"],
    "compare": ["METHOD"],
    "reproduce": ["METHOD"],
    "report": ["RUNS"],
}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_help_takes_less_than_a_third_of_a_second() -> None:
    script = Path(sys.executable).parent / "labelwise"

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([script, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize("words", [["--help"], ["evaluate", "--help"], ["compare", "--help"], ["trian"]])
def test_help_and_a_wrong_verb_import_neither_torch_nor_lightning(words: list[str]) -> None:
    heavy = "{'torch', 'lightning', 'numpy', 'PIL'} & set(sys.modules)"
    assert python(f"import sys; from labelwise.cli import main; main({words}); print({heavy})").endswith("set()\n")


def test_importing_the_package_is_quick_and_lazy() -> None:
    code = (
        "import sys, time; began = time.process_time(); import labelwise; print(time.process_time() - began);"
        "print({'torch', 'cyclopts', 'numpy'} & set(sys.modules))"
    )
    seconds, heavy = python(code).splitlines()
    assert float(seconds) < 0.05
    assert heavy == "set()"


def test_the_package_runs_as_a_module() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "labelwise", "--version"], check=True, capture_output=True, text=True
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", answer.stdout)


def test_every_public_name_can_be_had() -> None:
    import labelwise

    assert all(callable(getattr(labelwise, name)) for name in labelwise.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = labelwise.nonsense


def test_help_lists_every_verb(call: Call) -> None:
    called = call("--help")
    assert called.code == 0
    assert all(re.search(rf"│ {verb} +{re.escape(text)}", called.out) for verb, text in cli.VERBS.items())


def test_without_any_word_the_help_is_shown(call: Call) -> None:
    assert call() == call("--help")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_a_verb_tells_meaning_type_and_default_of_each_option(call: Call, verb: str) -> None:
    called = call(verb, "--help")
    assert called.code == 0 and called.err == ""
    rows = options_of(called.out)
    assert all(name in rows for name in POSITIONAL[verb])
    for name, text in rows.items():
        assert re.search(r"[a-z]{2,}", text), f"{name} has no help"
        if name.startswith("--") and name not in SWITCHES:
            has_default = "[default: " in text or "[required]" in text
            # Without a default the option is off; these say so by their meaning.
            assert has_default or name in WITHOUT_DEFAULT, name
    assert "--empty-" not in called.out


def options_of(help_text: str) -> dict[str, str]:
    """Option or positional word -> the rest of its lines in a help page."""
    rows: dict[str, str] = {}
    name = ""
    for line in help_text.splitlines():
        found = re.match(r"│ [*]? {0,4}(--[\w-]+|[A-Z]+)\b(.*)│$", line)
        if found:
            name = found[1]
        if name and line.startswith("│"):
            rows[name] = f"{rows.get(name, '')} {line.strip('│ ')}"
    return rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'? (`labelwise --help` lists them)"),
        (["--foo"], "--foo: no such option; write `labelwise VERB ...` (`labelwise --help` lists the verbs)"),
        (["evaluate", "r", "--dta", "x"], "--dta: no such option; did you mean '--data'? (`labelwise eva"),
        (["evaluate", "r", "--zzz=3"], "--data: a value is missing; see `labelwise evaluate --help`"),
        (["evaluate", "r", "--data", "d", "--zzz=3"], "--zzz: no such option; see `labelwise evaluate --help`"),
        (["evaluate", "r"], "--data: a value is missing; see `labelwise evaluate --help`"),
        (["evaluate", "r", "--data"], "--data: a value is missing; see `labelwise evaluate --help`"),
        (["evaluate", "--data", "x"], "RUN: a value is missing; see `labelwise evaluate --help`"),
        (["evaluate", "r", "s", "--data", "x"], "'s': one word too many; see `labelwise evaluate --help`"),
        (["evaluate", "r", "--data", "x", "--data", "y"], "--data: given twice; give it once"),
        (["evaluate", "r", "--data", "x", "--devices", "two"], "--devices two: must be a whole number"),
        (["evaluate", "r", "--data", "x", "--devices", "1.5"], "--devices 1.5: must be a whole number"),
        (["evaluate", "r", "--data", "x", "--skip-broken=maybe"], "--skip-broken maybe: must be true or false"),
        (
            ["predict", "r", "i", "--out", "o", "--precision", "bf16"],
            "--precision bf16: must be one of auto, 32-true, bf16-mixed, 16-mixed; did you mean 'bf16-mixed'?",
        ),
        (
            ["predict", "r", "i", "--out", "o", "--devices", "2"],
            "--devices: no such option; see `labelwise predict --help`",
        ),
        (["annotate", "r", "--data", "d", "--out", "o", "--devices", "2"], "--devices: no such option"),
        (["report"], "RUNS: a value is missing; see `labelwise report --help`"),
        (["train"], "METHOD: a value is missing; see `labelwise train --help`"),
        (["train", "--data", "x", "cps"], "METHOD must be the first word after `train`"),
        (["train", "csp"], "unknown method 'csp'; did you mean 'cps'? (`labelwise methods` lists them)"),
        (["train", "cps"], "--data: a value is missing; see `labelwise train cps --help`"),
        (["train", "cps", "--data", "x", "--crosweight", "3"], "--crosweight: no such option; did you mean '--cross-w"),
        (["train", "cps", "--data", "x", "--crop", "1.5"], "--crop 1.5: must be a whole number"),
        (
            ["train", "cps", "--data", "x", "--optimizer", "adam"],
            "--optimizer adam: must be one of sgd, adamw; did you",
        ),
        (["train", "cps", "--preset", "mimi"], "--preset mimi: neither a preset of 'cps' nor a file; did you mean 'mi"),
        (["train", "cps", "--data", "x", "--learning-rate", "a"], "--learning-rate a: must be a number"),
        (
            ["shapes", "x", "--noise", "dilate"],
            "--noise dilate: must be one of none, dilated, eroded, uneven, shifted, missing",
        ),
    ],
)
def test_a_wrong_call_is_one_line_that_names_the_word_and_the_mend(call: Call, words: list[str], message: str) -> None:
    assert call(*words).message.startswith(message)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("x: wrong; mend it"), 2, "error: x: wrong; mend it\n"),
        (BadFile(Problem(Path("a.png"), "it is blue", "paint it")), 2, "error: a.png: it is blue; paint it\n"),
        (
            UserError("Caught UserError in worker\nlabelwise.errors.UserError: x: wrong; mend it"),
            2,
            "x: wrong; mend it",
        ),
        (Interrupted(signal.SIGTERM), 143, "error: stopped by SIGTERM; the state is saved: repeat the same call"),
        (Interrupted(signal.SIGINT), 130, "error: stopped by SIGINT; the state is saved"),
        (NonFiniteLoss("loss term 'cross' is nan"), 1, "error: loss term 'cross' is nan\n"),
        (KeyboardInterrupt(), 130, "error: stopped; repeat the same call to continue\n"),
        (BrokenPipeError(), 0, ""),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 2, "error: runs/a: the disk is full; free some"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the output: the disk is full; free some space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            2,
            "error: /a/b: may not be read or written; change",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a/.0f3e.tmp"), 2, "error: /a: may not be read or written;"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "error: a/b: not a directory; check the path"),
        (MemoryError(), 2, "error: the memory does not suffice; lower --batch-size or --crop"),
        (RuntimeError("operator torchvision::nms does not exist"), 2, "error: torch and torchvision are not of one re"),
        (subprocess.CalledProcessError(1, "labelwise"), 1, ""),
        (subprocess.CalledProcessError(-signal.SIGTERM, "labelwise"), 143, ""),
    ],
)
def test_every_known_end_has_its_exit_code(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    called = call("train")
    assert called.code == code
    assert text in called.err and called.out == ""
    assert called.err.count("\n") <= 1


@pytest.mark.parametrize("error", [ZeroDivisionError("a mistake of ours"), OSError(errno.ECHILD, "No child processes")])
def test_a_mistake_of_ours_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(type(error)):
        call("train")


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from labelwise.cli import main; sys.exit(main(['--version']))"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        answer = subprocess.run([sys.executable, "-c", code], stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert b"Traceback" not in answer.stderr
