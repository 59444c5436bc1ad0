"""The command line: verbs as import paths; neither torch nor lightning is imported for a help page."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownCommandError

VERBS = {
    "methods": "List the methods, or show one method's card.",
    "shapes": "Write a synthetic data set in VOC layout.",
    "inspect": "Show what labels a data set holds, which files are broken, which methods fit.",
    "train": "Train a method on the labels it may see; the same call again continues.",
    "evaluate": "Score a trained model by its task's protocol.",
    "predict": "Predict images: palette PNGs and overlays.",
    "annotate": "Write predictions as a new data set.",
    "compare": "Train several methods on the same labels and seeds; table, plot and page.",
    "report": "Write the HTML page of runs and comparisons anew.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of the process unless given.

    Returns:
        The exit code: 0, 1 (it ran; the answer is no), 2 (the call or the data is wrong), 128 + signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except CycloptsError as error:
        return _complain(_call_error(error, words))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _complain(f"{error.filename or 'disk'}: the disk is full; free some space and repeat the same call")
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _complain(
                f"{error.filename}: may not be written or read; change its permissions or name another folder"
            )
        raise
    except (RuntimeError, ImportError) as error:
        if "torchvision::" in str(error):
            return _complain(
                "torch and torchvision are not of one release; install the matching pair with "
                "`pip install --upgrade torch torchvision`"
            )
        return _known_end(error)
    except Exception as error:
        return _known_end(error)


def _run(words: list[str]) -> int:
    app = App(name="labelwise", help="Train vision models from whatever labels you have.", version=_version)
    for verb, text in VERBS.items():
        app.command(f"labelwise.commands:{verb}", name=verb, help=text)
    if words[:1] == ["shapes"]:
        from labelwise.commands import shapes_command

        app = App(name="labelwise", version=_version)
        app.command(shapes_command(), name="shapes")
    if len(words) > 1 and words[0] == "train" and not words[1].startswith("-"):
        # This method's own options take part in the parsing and in `--help`.
        from labelwise.commands import train_command

        app = App(name="labelwise", version=_version)
        app.command(train_command(words[1], words[2:]), name="train")
    code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    return code if isinstance(code, int) else 0


def _known_end(error: Exception) -> int:
    """The exit code of an error that has one; any other is raised again with its traceback."""
    from labelwise.errors import UserError

    if isinstance(error, UserError):
        # A loader process hands its error over with a traceback; the last line is the message.
        return _complain(str(error).strip().splitlines()[-1].removeprefix("labelwise.errors.BadFile: "))
    from labelwise.checkpoints import Interrupted
    from labelwise.method import NonFiniteLoss

    if isinstance(error, Interrupted):
        return _complain(
            f"stopped by {error}; the state is saved: repeat the same call to continue", 128 + error.signum
        )
    if isinstance(error, NonFiniteLoss):
        return _complain(str(error), 1)
    raise error


def _call_error(error: CycloptsError, words: list[str]) -> str:
    if isinstance(error, UnknownCommandError):
        from labelwise.errors import did_you_mean

        return f"unknown verb '{words[0]}'{did_you_mean(words[0], VERBS)} (`labelwise --help` lists them)"
    return " ".join(str(error).split())


def _complain(message: str, code: int = 2) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code


def _version() -> str:
    from importlib.metadata import version

    return version("labelwise")
