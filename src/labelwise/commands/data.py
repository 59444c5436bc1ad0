"""The commands about methods and data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from labelwise.commands.shared import Flat, Json, Several
from labelwise.output import (
    console,
    print_card,
    print_inspection,
    print_json,
    print_rows,
)


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


def convert(
    data: Path,
    /,
    *,
    to: Literal["voc", "coco", "yolo"],
    out: Path,
    split: Annotated[tuple[str, ...], Several] = (),
    json: Json = False,
) -> None:
    """Write a data set in another layout, with a note for everything that the layout cannot hold.

    Parameters
    ----------
    data
        the data set's folder
    to
        the layout to write
    out
        the new data set's folder; must be empty or not exist
    split
        only these splits; all of them unless given
    """
    from labelwise.verbs.convert import convert as write

    result = write(data, to=to, out=out, splits=split)
    if json:
        print_json(result)
    else:
        console.print(f"{result['images']} images in {to.upper()} layout in {out}")
