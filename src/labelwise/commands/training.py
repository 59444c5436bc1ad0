"""The command `train`, with the options of the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from labelwise.commands.shared import Flag, Flat, Json, Several
from labelwise.errors import UserError
from labelwise.hardware import Hardware, process_rank
from labelwise.output import (
    print_result,
)


def train(method: str, /, *, data: Path, labels: str | None = None) -> None:
    """Train a method; `labelwise train METHOD --help` shows the method's own options.

    Parameters
    ----------
    method
        a name that `labelwise methods` lists
    data
        the data set's folder
    labels
        what the method may see: masks:1/8, masks:92, masks:all, masks:classic/183, masks:FILE, tags:all, ... [default:
        every label of the kind that it needs]
    """
    raise UserError("METHOD must be the first word after `train`, as in `labelwise train cps --data DATA`")


def train_command(name: str, words: list[str]) -> Callable[..., None]:
    """The command `train` for one method: its options with the preset's values as defaults.

    Args:
        name: of the method.
        words: the rest of the call, in which `--preset` is looked for.

    Raises:
        UserError: no such method or preset.
    """
    from labelwise import methods as listing
    from labelwise.configuration import load_preset, make_config

    method = listing.load(name)
    config = make_config(method, load_preset(method, _value_of("--preset", words)), {})
    options_class = _with_defaults(method.Config, {field.name: getattr(config, field.name) for field in fields(config)})
    defaults, hardware_defaults, all_labels = options_class(), Hardware(), method.card.needs.all_labels

    def command(
        method: str,
        /,
        *,
        data: Path,
        labels: str = all_labels,
        preset: str | None = None,
        out: Path | None = None,
        split: str = "train",
        val_split: str = "val",
        seed: int = 0,
        skip_broken: Annotated[bool, Flag] = False,
        monitor: int = 0,
        start_from: Path | None = None,
        start_partly: Annotated[bool, Flag] = False,
        options: Any = defaults,
        hardware: Any = hardware_defaults,
        json: Json = False,
    ) -> None:
        """Replaced below."""
        from labelwise.verbs.train import train as run

        chosen = {field.name: getattr(options, field.name) for field in fields(options)}
        result = run(
            method,
            data=data,
            labels=labels,
            preset=preset,
            out=out,
            split=split,
            val_split=val_split,
            seed=seed,
            skip_broken=skip_broken,
            monitor=monitor,
            start_from=start_from,
            start_partly=start_partly,
            hardware=hardware,
            **chosen,
        )
        if process_rank() == 0:
            print_result(result, json)

    command.__annotations__ = get_type_hints(command, include_extras=True) | {
        "options": Annotated[options_class, Flat],
        "hardware": Annotated[Hardware, Flat],
    }
    command.__doc__ = f"{method.card.title}: {method.card.idea}\n{_TRAIN_PARAMETERS}"
    return command


_TRAIN_PARAMETERS = """
Parameters
----------
method
    the method
data
    the data set's folder
labels
    what the method may see: masks:1/8, masks:92, masks:all, masks:classic/183, masks:FILE, tags, ...
preset
    mini (CPU minutes), small (pretrained backbone, small real data), paper, cityscapes, or a YAML file
out
    the run's folder; the same call again continues an unfinished run
split
    the split to learn from
val_split
    the split to score on
seed
    of everything random, the choice of the labelled images included
skip_broken
    leave out images with broken files, and count them, instead of stopping
monitor
    watch the pseudo-labels of N unlabelled images: reads their hidden masks for the report, never for the training
start_from
    the folder of a finished run whose weights the network starts from
start_partly
    leave out layers of that run that do not fit, such as the classifier of other classes, and say which
"""


def _with_defaults(options: type[Any], values: Mapping[str, Any]) -> type[Any]:
    """The same dataclass with other defaults; its help stays."""
    hints = get_type_hints(options, include_extras=True)
    given = [(field.name, _with_several(hints[field.name]), values[field.name]) for field in fields(options)]
    made = make_dataclass(options.__name__, given, bases=(options,), frozen=True, kw_only=True)
    # cyclopts takes classes of the module `types`, where make_dataclass puts them, for built-in ones.
    made.__module__ = options.__module__
    return made


def _with_several(hint: Any) -> Any:
    """Options of any number of values take them all after one flag."""
    return Annotated[hint, Several] if Ellipsis in get_args(hint) else hint


def _value_of(option: str, words: list[str]) -> str | None:
    for place, word in enumerate(words):
        if word == option:
            return next(iter(words[place + 1 :]), None)
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
