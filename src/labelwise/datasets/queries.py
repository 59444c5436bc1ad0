"""Queries: the pixels of each image that are to be labelled next, as one JSON file for a data set.

.. code-block:: json

    {"strategy": "margin", "model": "runs/pixelpick", "round": 2, "images": [
      {"image": "2007_000032", "height": 281, "width": 500, "x": [12, 40], "y": [7, 99], "uncertainty": 0.31}
    ]}

`x` and `y` are columns and rows of the upright image, from 0, in the order in which the pixels were chosen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labelwise.datasets.base import unique
from labelwise.datasets.images import read_text, refuse
from labelwise.errors import UserError
from labelwise.files import atomic_write

QUERIES_LIMIT = 200_000_000
"""The most bytes of a file of queries."""

_MEND = "make it anew with `labelwise select`"
_EXAMPLE = 'write {"image": "id", "height": 281, "width": 500, "x": [12], "y": [7]}'


@dataclass(frozen=True)
class Query:
    """The pixels of one image that are to be labelled.

    Attributes:
        id: the image.
        height: of the upright image in pixels.
        width: of the upright image in pixels.
        x: columns of the pixels, in the order in which they were chosen.
        y: their rows.
        uncertainty: mean over the image's pixels of how unsure the model is, 0 = sure, larger = less sure; None where
            no model was asked.
    """

    id: str
    height: int
    width: int
    x: tuple[int, ...]
    y: tuple[int, ...]
    uncertainty: float | None = None


@dataclass(frozen=True)
class QueryFile:
    """The queries of a data set and where they come from.

    Attributes:
        images: one query per image.
        strategy: by which the pixels were chosen, such as `margin`.
        model: the run that was asked, or None.
        round: how many models were trained before this choice, from 0.
    """

    images: tuple[Query, ...]
    strategy: str
    model: str | None
    round: int

    @property
    def pixels(self) -> int:
        """How many pixels are asked for."""
        return sum(len(query.x) for query in self.images)


def read_queries(path: Path) -> QueryFile:
    """Read a file of queries.

    Raises:
        BadFile: the file is missing or not of this form, or a pixel lies outside its image or is there twice.
    """
    try:
        content = json.loads(read_text(path, QUERIES_LIMIT))
    except (ValueError, RecursionError) as error:
        refuse(path, f"it is not a file of queries ({error})", _MEND)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        refuse(path, 'it is not a file of queries (no list "images")', _MEND)
    strategy, model, number = content.get("strategy", "random"), content.get("model"), content.get("round", 0)
    if not isinstance(strategy, str) or not isinstance(model, str | None) or not _is_count(number):
        refuse(path, "its strategy, model or round is no word or number", _MEND)
    images = tuple(_query(path, place, row) for place, row in enumerate(content["images"], start=1))
    if len({query.id for query in images}) < len(images):
        ids = [query.id for query in images]
        twice = next(id for id in ids if ids.count(id) > 1)
        refuse(path, f"image '{twice}' is there twice", "join its pixels in one entry")
    return QueryFile(images, strategy, model, number)


def write_queries(path: Path, queries: QueryFile) -> None:
    """Write a file of queries, atomically; `read_queries` gives them back."""
    atomic_write(path, format_queries(queries))


def format_queries(queries: QueryFile) -> str:
    """The content of a file of queries, one image a line."""
    head = {"strategy": queries.strategy, "model": queries.model, "round": queries.round}
    rows = [f"  {json.dumps(_row(query), ensure_ascii=False)}" for query in queries.images]
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "images": [\n' + ",\n".join(rows) + "\n]}\n"


def merge_queries(files: Sequence[QueryFile]) -> QueryFile:
    """Join the queries of several rounds: each image once, with every pixel of it once, the earlier file's first.

    Args:
        files: one or more; strategy, model, round and uncertainty are those of the last that knows of them.

    Raises:
        UserError: two files disagree about the size of an image.
    """
    merged: dict[str, Query] = {}
    for query in (query for file in files for query in file.images):
        merged[query.id] = _joined(merged[query.id], query) if query.id in merged else query
    return replace(files[-1], images=tuple(merged.values()))


def _joined(before: Query, after: Query) -> Query:
    if (before.height, before.width) != (after.height, after.width):
        raise UserError(
            f"queries of '{after.id}': one file says {before.width}x{before.height} pixels, another "
            f"{after.width}x{after.height}; make them anew with `labelwise select`"
        )
    pixels = dict.fromkeys([*zip(before.x, before.y, strict=True), *zip(after.x, after.y, strict=True)])
    return replace(
        after,
        x=tuple(x for x, _ in pixels),
        y=tuple(y for _, y in pixels),
        uncertainty=before.uncertainty if after.uncertainty is None else after.uncertainty,
    )


def _row(query: Query) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image": query.id,
        "height": query.height,
        "width": query.width,
        "x": query.x,
        "y": query.y,
    }
    return row if query.uncertainty is None else row | {"uncertainty": query.uncertainty}


def _query(path: Path, place: int, row: Any) -> Query:
    """One image's entry.

    Raises:
        BadFile: it is wrong.
    """
    if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not row["image"]:
        refuse(path, f"entry {place} names no image", _EXAMPLE)
    id = row["image"]
    height, width, x, y = (row.get(name) for name in ("height", "width", "x", "y"))
    if not _is_count(height) or not _is_count(width) or not height or not width:
        refuse(path, f"image '{id}' has no height and width in pixels", _EXAMPLE)
    if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y) or not all(map(_is_count, [*x, *y])):
        refuse(path, f"the x and y of image '{id}' are not two lists of whole numbers of one length", _EXAMPLE)
    pixels = tuple(zip(x, y, strict=True))
    outside = next(((a, b) for a, b in pixels if a >= width or b >= height), None)
    if outside is not None:
        reason = f"pixel ({outside[0]}, {outside[1]}) lies outside the {width}x{height} image '{id}'"
        refuse(path, reason, "correct or remove it")
    if len(unique([f"{a} {b}" for a, b in pixels])) < len(pixels):
        refuse(path, f"image '{id}' has a pixel twice", "remove one of them")
    uncertainty = row.get("uncertainty")
    if uncertainty is not None and not (_is_number(uncertainty) and math.isfinite(uncertainty) and uncertainty >= 0):
        refuse(path, f"the uncertainty of image '{id}' is no number from 0 on", "correct or remove it")
    return Query(id, height, width, tuple(x), tuple(y), None if uncertainty is None else float(uncertainty))


def _is_count(value: object) -> bool:
    """Whether this is a whole number from 0 on; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
