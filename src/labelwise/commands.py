"""What the shell sees of each verb: its options, and its result as text or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import Parameter

from labelwise.errors import UserError
from labelwise.hardware import Hardware, process_rank
from labelwise.output import (
    console,
    print_card,
    print_inspection,
    print_json,
    print_markdown_table,
    print_result,
    print_rows,
)

Flat = Parameter(name="*")
Json = Annotated[bool, Parameter(name="--json", negative="", help="print one JSON object")]
Flag = Parameter(negative="")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where to compute, for verbs that only use a trained model."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    "auto = a GPU where there is one"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    "auto = what was measured to be fastest on this kind of device"

    def hardware(self) -> Hardware:
        """The same as `Hardware`."""
        return Hardware(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class SharedPlacement(Placement):
    """Where to compute, for verbs that share their work among devices."""

    devices: int = 1
    "processes on this machine, one device each; any number gives the same result"


_PLACEMENT = Placement()
_SHARED = SharedPlacement()
_HARDWARE = Hardware()


def methods(
    name: str | None = None, /, *, labels: str | None = None, task: str | None = None, json: Json = False
) -> None:
    """List the methods, or show one method's card.

    Parameters
    ----------
    name
        show this method's card: idea, needs, published numbers, claim, the command to run
    labels
        only methods that can learn from these labels, such as masks:1/8 or tags
    task
        only methods of this task, such as "semantic segmentation"
    """
    from labelwise.verbs.catalogue import catalogue

    entries = catalogue(name, labels=labels, task=task)
    if json:
        print_json(entries)
    elif not entries:
        console.print("no method fits")
    elif name is None:
        print_rows([{key: entry[key] for key in ("name", "task", "needs", "gives", "year")} for entry in entries])
    else:
        print_card(entries[0])


def shapes_command() -> Callable[..., None]:
    """The command `shapes`, with the generator's options."""
    from labelwise.datasets.shapes import ShapesOptions

    defaults = ShapesOptions()

    def shapes(folder: Path, /, *, options: Any = defaults, json: Json = False) -> None:
        """Write a synthetic data set in VOC layout: masks, instances, boxes, tags, captions, points.

        Parameters
        ----------
        folder
            a new or empty folder, or an unfinished set of the same options
        """
        from labelwise.verbs.shapes import shapes as write

        result = write(folder, options)
        if json:
            print_json(result)
        else:
            console.print(f"{result['folder']}: {result['train']} training and {result['val']} validation images")

    shapes.__annotations__ = get_type_hints(shapes, globals(), locals(), include_extras=True) | {
        "options": Annotated[ShapesOptions, Flat]
    }
    return shapes


def inspect(data: Path, /, *, out: Path | None = None, json: Json = False) -> int:
    """Look at every file of a data set: labels, class balance, broken files, methods that fit.

    Exit code 2 if a file is broken.

    Parameters
    ----------
    data
        the data set's folder
    out
        also write a page with pictures, inspect.html, into this folder
    """
    from labelwise.verbs.inspect import inspect as look

    summary = look(data, out=out)
    if json:
        print_json(summary)
    else:
        print_inspection(summary)
    return 2 if summary["problems"] else 0


def train(method: str, /, *, data: Path, labels: str = "masks:all") -> None:
    """Train a method; `labelwise train METHOD --help` shows the method's own options.

    Parameters
    ----------
    method
        a name that `labelwise methods` lists
    data
        the data set's folder
    labels
        what the method may see: masks:1/8, masks:92, masks:all, masks:classic/183, masks:FILE, ...
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
    defaults, hardware_defaults = options_class(), Hardware()

    def command(
        method: str,
        /,
        *,
        data: Path,
        labels: str = "masks:all",
        preset: str | None = None,
        out: Path | None = None,
        split: str = "train",
        val_split: str = "val",
        seed: int = 0,
        skip_broken: Annotated[bool, Flag] = False,
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
    mini (CPU minutes), small (pretrained backbone, small real data), paper, or a YAML file
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
"""


def evaluate(
    run: Path,
    /,
    *,
    data: Path,
    split: str = "val",
    skip_broken: Annotated[bool, Flag] = False,
    placement: Annotated[SharedPlacement, Flat] = _SHARED,
    json: Json = False,
) -> None:
    """Score a trained model by its task's protocol.

    Parameters
    ----------
    run
        the run's folder
    data
        the data set's folder
    split
        the split to score on
    skip_broken
        leave out images with broken files, and count them, instead of stopping
    """
    from labelwise.verbs.evaluate import evaluate as score

    result = score(run, data=data, split=split, skip_broken=skip_broken, hardware=placement.hardware())
    if process_rank() == 0:
        print_result(result, json)


def predict(
    run: Path,
    images: list[Path],
    /,
    *,
    out: Path,
    placement: Annotated[Placement, Flat] = _PLACEMENT,
    json: Json = False,
) -> None:
    """Predict images: one palette PNG and one overlay each.

    Parameters
    ----------
    run
        the run's folder
    images
        image files or folders of them
    out
        the folder to write into
    """
    from labelwise.verbs.predict import predict as write

    result = write(run, images, out=out, hardware=placement.hardware())
    if json:
        print_json(result)
    else:
        console.print(f"{len(result['images'])} images predicted into {out}")


def annotate(
    run: Path,
    /,
    *,
    data: Path,
    out: Path,
    split: str = "train",
    skip_broken: Annotated[bool, Flag] = False,
    placement: Annotated[Placement, Flat] = _PLACEMENT,
    json: Json = False,
) -> None:
    """Write the predictions on a split as a new data set in VOC layout.

    Parameters
    ----------
    run
        the run's folder
    data
        the data set's folder; its labels are not read
    out
        the new data set's folder; must be empty or not exist
    split
        the split to annotate
    skip_broken
        leave out images that cannot be read, and count them, instead of stopping
    """
    from labelwise.verbs.predict import annotate as write

    result = write(run, data=data, out=out, split=split, skip_broken=skip_broken, hardware=placement.hardware())
    if json:
        print_json(result)
    else:
        console.print(f"{result['images']} images with predicted masks in {out}")


def compare(
    names: Annotated[list[str], Parameter(name="METHOD")],
    /,
    *,
    data: Path,
    labels: list[str] | None = None,
    seeds: int = 3,
    preset: str | None = None,
    out: Path | None = None,
    split: str = "train",
    val_split: str = "val",
    skip_broken: Annotated[bool, Flag] = False,
    option: list[str] | None = None,
    hardware: Annotated[Hardware, Flat] = _HARDWARE,
    json: Json = False,
) -> None:
    """Train several methods on the same data, labels and seeds; write table, plot and page.

    Parameters
    ----------
    names
        methods; the first is the baseline of the differences
    data
        the data set's folder
    labels
        what the methods may see; give it several times to compare over label budgets [default: masks:all]
    seeds
        seeds 0 to N-1
    preset
        mini, small, paper or a YAML file, for every method
    out
        the folder of runs, table and page; the same call again continues
    split
        the split to learn from
    val_split
        the split to score on
    skip_broken
        leave out images with broken files, and count them, instead of stopping
    option
        NAME=VALUE for every method that has this option, or METHOD.NAME=VALUE for one; may be given several times
    """
    from labelwise.reports.compare_page import comparison_markdown
    from labelwise.verbs.compare import compare as run

    comparison = run(
        names,
        data=data,
        labels=tuple(labels or ["masks:all"]),
        seeds=seeds,
        preset=preset,
        out=out,
        split=split,
        val_split=val_split,
        skip_broken=skip_broken,
        options=_parsed_options(option or []),
        hardware=hardware,
    )
    if json:
        print_json(comparison)
    else:
        print_markdown_table(comparison_markdown(comparison))
        console.print(f"report with pictures: {comparison['report']}")


def report(runs: list[Path], /, *, json: Json = False) -> None:
    """Write the HTML page of runs and comparisons anew.

    Parameters
    ----------
    runs
        folders that `train` or `compare` wrote
    """
    from labelwise.verbs.report import report as write

    result = write(runs)
    if json:
        print_json(result)
    else:
        for page in result["reports"]:
            console.print(page)


def _with_defaults(options: type[Any], values: Mapping[str, Any]) -> type[Any]:
    """The same dataclass with other defaults; its help stays."""
    hints = get_type_hints(options, include_extras=True)
    given = [(field.name, hints[field.name], values[field.name]) for field in fields(options)]
    made = make_dataclass(options.__name__, given, bases=(options,), frozen=True, kw_only=True)
    # cyclopts takes classes of the module `types`, where make_dataclass puts them, for built-in ones.
    made.__module__ = options.__module__
    return made


def _value_of(option: str, words: list[str]) -> str | None:
    for place, word in enumerate(words):
        if word == option:
            return next(iter(words[place + 1 :]), None)
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _parsed_options(pairs: Sequence[str]) -> dict[str, Any]:
    """The values of NAME=VALUE pairs, each in the type that YAML gives it.

    Raises:
        UserError: a pair is not of this form.
    """
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--option {pair}: must be NAME=VALUE, such as crop=64 or cps.cutmix=false")
        try:
            options[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--option {pair}: '{value}' is not a value; write a number, a word or [a, list]") from None
    return options
