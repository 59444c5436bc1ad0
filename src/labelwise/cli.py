"""The command line: verbs as import paths; neither torch nor lightning is imported for a help page."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cyclopts import App, CycloptsError, Parameter, convert
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

VERBS = {
    "methods": "List the methods, or show one method's card.",
    "shapes": "Write a synthetic data set in VOC layout.",
    "inspect": "Show what labels a data set holds, which files are broken, which methods fit.",
    "convert": "Write a data set in another layout: VOC, COCO or YOLO.",
    "train": "Train a method on the labels it may see; the same call again continues.",
    "run": "Run a recipe: a chain of trainings, labels and scores.",
    "evaluate": "Score a trained model by its task's protocol.",
    "predict": "Predict images: palette PNGs and overlays.",
    "annotate": "Write predictions as a new data set.",
    "refine": "Make other labels of score maps, without training, as a new data set.",
    "select": "Choose the pixels of each image to label next, by a trained model or at random.",
    "label": "Label images in the browser: pixels, tags, boxes, masks.",
    "mine-ood": "List images of no class that look like one to a classifier.",
    "compare": "Train several methods on the same labels and seeds; table, plot and page.",
    "reproduce": "Run a method's claim, paired over seeds, and say whether it holds.",
    "report": "Write the HTML page of runs and comparisons anew.",
}
_MODULES = {
    "data": ("methods", "shapes", "inspect", "convert"),
    "training": ("train",),
    "recipes": ("run",),
    "models": ("evaluate", "predict", "annotate", "refine", "select", "mine-ood"),
    "annotation": ("label",),
    "experiments": ("compare", "reproduce", "report"),
}
"""In which module of `labelwise.commands` a verb's command is."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EROFS, errno.EPERM)
_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
_ERROR_NAME = re.compile(r"^labelwise\.\w+\.\w+: ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of the process unless given.

    Returns:
        The exit code: 0, 1 (it ran; the answer is no), 2 (the call or the data is wrong), 128 + signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Set before torch is imported. OpenMP's threads spin while they wait: without a bound, a training step of a small
    # network took 4.4 s instead of 0.6 s on a machine with other work; this bound costs nothing on an idle one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        return _run(words)
    except CycloptsError as error:
        return _complain(_call_error(error, words))
    except KeyboardInterrupt:
        return _complain("stopped; repeat the same call to continue", 130)
    except BrokenPipeError:
        return 0
    except OSError as error:
        message = _file_error(error)
        if message is None:
            raise
        return _complain(message)
    except Exception as error:
        return _known_end(error)


def _run(words: list[str]) -> int:
    # Options take one value each, so that nothing after them is swallowed, and lists need no option to empty them.
    common = Parameter(negative_iterable=(), converter=_converted)
    app = App(
        name="labelwise",
        help="Train vision models from whatever labels you have.",
        version=_version,
        default_parameter=common,
        suppress_keyboard_interrupt=False,
    )
    if words[:1] == ["shapes"]:
        from labelwise.commands.data import shapes_command

        app.command(shapes_command(), name="shapes")
    elif _names_method(words):
        # This method's own options take part in the parsing and in `--help`.
        from labelwise.commands.training import train_command

        app.command(train_command(words[1], words[2:]), name="train")
    else:
        modules = {verb: module for module, verbs in _MODULES.items() for verb in verbs}
        for verb, text in VERBS.items():
            app.command(f"labelwise.commands.{modules[verb]}:{verb.replace('-', '_')}", name=verb, help=text)
    code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    return code if isinstance(code, int) else 0


def _converted(kind: Any, tokens: Sequence[Any]) -> Any:
    """The value of an option; whole numbers have to be whole, where cyclopts would round."""
    if kind is int:
        int(tokens[0].value)
    return convert(kind, tokens)


def _known_end(error: Exception) -> int:
    """The exit code of an error that has one; any other is raised again with its traceback."""
    from labelwise.errors import UserError

    # A loader process hands its error over with a traceback; the last line is the message.
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, UserError):
        return _complain(_ERROR_NAME.sub("", lines[-1]))
    if "torchvision::" in str(error):
        return _complain(
            "torch and torchvision are not of one release; install the matching pair with "
            "`pip install --upgrade torch torchvision`"
        )
    if _is_out_of_memory(error):
        return _complain("the memory does not suffice; lower --batch-size or --crop, or raise --accumulate")
    from subprocess import CalledProcessError

    if isinstance(error, CalledProcessError):
        # The process has said itself what was wrong.
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    from labelwise.checkpoints import Interrupted
    from labelwise.method import NonFiniteLoss

    if isinstance(error, Interrupted):
        return _complain(
            f"stopped by {error}; the state is saved: repeat the same call to continue", 128 + error.signum
        )
    if isinstance(error, NonFiniteLoss):
        return _complain(str(error), 1)
    raise error


def _is_out_of_memory(error: Exception) -> bool:
    names = ("OutOfMemoryError", "MemoryError")
    return type(error).__name__ in names or "can't allocate memory" in str(error)


def _file_error(error: OSError) -> str | None:
    """What is wrong with a file, as one line; None if no file or disk is to blame."""
    where = _named(error)
    if error.errno in _FULL:
        return f"{where or 'the output'}: the disk is full; free some space and repeat the same call"
    if where is None:
        return None
    if error.errno in _FORBIDDEN:
        return f"{where}: may not be read or written; change its permissions or name another folder"
    return f"{where}: {(error.strerror or 'cannot be used').lower()}; check the path"


def _named(error: OSError) -> Path | None:
    """The file that an error is about; the folder where it is one of our temporary files."""
    if error.filename is None:
        return None
    path = Path(str(error.filename))
    return path.parent if path.name.startswith(".") and path.suffix == ".tmp" else path


def _call_error(error: CycloptsError, words: list[str]) -> str:
    """What is wrong with the call, in the form of all other messages: the word, the reason, the mend."""
    if isinstance(error, UnknownCommandError):
        if words[0].startswith("-"):
            return f"{words[0]}: no such option; write `labelwise VERB ...` (`labelwise --help` lists the verbs)"
        from labelwise.errors import did_you_mean

        return f"unknown verb '{words[0]}'{did_you_mean(words[0], VERBS)} (`labelwise --help` lists them)"
    see = _help_call(words)
    match error:
        case UnknownOptionError():
            option = (error.token.keyword or error.token.value).partition("=")[0]
            return _no_such_option(option, [name for known in error.argument_collection for name in known.names], see)
        case MissingArgumentError(argument=argument) if argument is not None:
            # A misspelt option leaves the one that was meant without a value.
            given = [word.partition("=")[0] for word in error.unused_tokens or () if word.startswith("--")]
            near = get_close_matches(argument.name, given, n=1)
            if near and near[0] not in argument.names:
                return _no_such_option(near[0], argument.names, see)
            return f"{argument.name}: a value is missing; see {see}"
        case UnusedCliTokensError(unused_tokens=[first, *_]):
            return f"'{first}': one word too many; see {see}"
        case RepeatArgumentError():
            return f"{error.token.keyword}: given twice; give it once"
        case CoercionError(token=token, argument=argument) if token is not None and argument is not None:
            return f"{token.keyword or argument.name} {token.value}: {_expected(error.target_type, token.value)}"
    return " ".join(str(error).split())


def _no_such_option(option: str, known: Sequence[str], see: str) -> str:
    near = get_close_matches(option, known, n=1)
    return f"{option}: no such option; " + (f"did you mean '{near[0]}'? ({see} lists them)" if near else f"see {see}")


def _help_call(words: Sequence[str]) -> str:
    return f"`labelwise {' '.join(words[: 2 if _names_method(words) else 1])} --help`"


def _names_method(words: Sequence[str]) -> bool:
    return words[:1] == ["train"] and len(words) > 1 and not words[1].startswith("-")


def _expected(kind: Any, word: str) -> str:
    if get_origin(kind) is not Literal:
        return f"must be {_TYPES.get(kind, kind)}"
    choices = list(map(str, get_args(kind)))
    near = get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"must be one of {', '.join(choices)}" + (f"; did you mean '{near[0]}'?" if near else "")


def _complain(message: str, code: int = 2) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code


def _version() -> str:
    from importlib.metadata import version

    return version("labelwise")
