"""The commands that ask a person for labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from labelwise.commands.shared import Flag, Json, parsed_options
from labelwise.output import console, print_json


def label(
    data: Path,
    /,
    *,
    mode: Literal["points", "tags", "boxes", "masks", "browse"] = "points",
    split: str = "train",
    run: Path | None = None,
    pixels: int = 10,
    queries: Path | None = None,
    classes: str | None = None,
    no_background: Annotated[bool, Flag] = False,
    out: Path | None = None,
    port: int = 0,
    no_browser: Annotated[bool, Flag] = False,
    method: str = "pixelpick",
    preset: str | None = None,
    option: list[str] | None = None,
    json: Json = False,
) -> int:
    """Label images in the browser: pixels by one key each, tags, boxes, masks; Ctrl-C ends it, the same call goes on.

    Parameters
    ----------
    data
        the data set's folder, or a folder of images
    mode
        what the page opens with; only points are learnt from while labelling
    split
        whose images
    run
        a trained run: it chooses the pixels, and its predictions can be shown and corrected
    pixels
        of each image to ask for at a time
    queries
        a file of pixels to ask for, as `labelwise select` writes it
    classes
        names for images without labels, such as cat,dog; the background is put in front
    no_background
        the classes given are all there are: every pixel belongs to one of them
    out
        a new folder in VOC layout to label a copy of the images in; needed unless the data set has that layout
    port
        to listen on, on this machine only; 0 = any free one
    no_browser
        only print the address; other users of this machine could read it in the list of the browser's processes
    method
        what is trained on the points when the page asks for it
    preset
        of the method: mini, small, paper or a YAML file
    option
        NAME=VALUE, an option of the method or the machine for that training; may be given several times
    """
    from labelwise.verbs.label import label as serve

    result = serve(
        data,
        mode=mode,
        split=split,
        run=run,
        pixels=pixels,
        queries=queries,
        classes=classes.split(",") if classes is not None else (),
        background=not no_background,
        out=out,
        port=port,
        browser=not no_browser,
        method=method,
        preset=preset,
        options=parsed_options(option or []),
        ready=_say_address,
    )
    if json:
        print_json(result)
    else:
        console.print(f"the labels are in {result['data']}; repeat the same call to go on")
    return 128 + int(result["signal"])


def _say_address(address: str) -> None:
    # On standard error, like everything that is no result.
    sys.stderr.write(f"labelling at {address} (Ctrl-C ends it)\n")
