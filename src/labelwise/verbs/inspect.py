"""`labelwise inspect`: what a data set holds, what is broken, what can be done with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labelwise import datasets, methods
from labelwise.datasets.base import DataSet
from labelwise.datasets.index import Index
from labelwise.errors import UserError
from labelwise.progress import watched
from labelwise.reports.inspect_page import write_inspect_report
from labelwise.reports.pictures import contact_sheet, draw_boxes, legend_entries, overlay
from labelwise.samples import Kind
from labelwise.verbs.preparation import checked_index, fitting_methods

_READ_FOR_BALANCE = (Kind.MASKS, Kind.BOXES, Kind.TAGS)


def inspect(data: Path, *, out: Path | None = None) -> dict[str, Any]:
    """Look at every file of a data set.

    Args:
        data: the data set's folder.
        out: write a page with pictures, `inspect.html`, into this folder.

    Returns:
        `layout`, `classes`, `splits` (images of each), `kinds` (label kind -> split -> images), `balance`
        (class -> images, share of the pixels in percent, objects), `sizes` (height and width), `problems` (path,
        reason, mend), `methods` with whether each fits, and `page` if one was written.

    Raises:
        UserError: no such folder, not a known layout, or `out` is a file.
    """
    if out is not None and Path(out).is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    dataset = datasets.open(Path(data))
    splits = {split: dataset.ids(split) for split in dataset.splits}
    ids = tuple(dict.fromkeys(id for names in splits.values() for id in names))
    having = {kind: dataset.having(kind, ids) for kind in Kind}
    wanted = {id: frozenset(kind for kind in Kind if id in having[kind]) for id in ids}
    index = checked_index(dataset, wanted)
    usable = [id for id in ids if id not in index.broken]
    fitting = set(fitting_methods([kind for kind in Kind if having[kind]]))
    summary: dict[str, Any] = {
        "data": str(dataset.root),
        "layout": dataset.layout,
        "classes": list(dataset.classes.names),
        "background": dataset.classes.background,
        "splits": {split: len(names) for split, names in splits.items()},
        "kinds": {
            str(kind): {split: sum(id in having[kind] for id in names) for split, names in splits.items()}
            for kind in Kind
            if having[kind]
        },
        "balance": _balance(dataset, usable, having),
        "sizes": _sizes(index),
        "problems": [
            {"path": str(problem.path), "reason": problem.reason, "mend": problem.mend} for problem in index.problems
        ],
        "methods": [
            {"name": card.name, "title": card.title, "needs": str(card.needs), "fits": card.name in fitting}
            for card in (methods.load(name).card for name in methods.METHODS)
        ],
    }
    if out is not None:
        page = Path(out) / "inspect.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        pictures = {"samples with their labels": sheet} if (sheet := _sheet(dataset, usable, having)) else {}
        colors = dataset.classes.palette[: len(dataset.classes)].tolist()
        sizes = [(width, height) for height, width in _known_sizes(index).tolist()]
        write_inspect_report(page, summary | {"pictures": pictures, "colors": colors, "sizes": sizes})
        summary["page"] = str(page)
    return summary


def _balance(dataset: DataSet, ids: list[str], having: dict[Kind, frozenset[str]]) -> dict[str, dict[str, float]]:
    """Per class: images that show it, its share of the labelled pixels in percent, and its boxes."""
    count = len(dataset.classes)
    images, boxes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    pixels = np.zeros(256, np.int64)
    for id in watched(ids, "counting classes", len(ids)):
        kinds = [kind for kind in _READ_FOR_BALANCE if id in having[kind]]
        if not kinds:
            continue
        sample = dataset.read(id, kinds)
        shown = np.zeros(count, bool)
        if sample.mask is not None:
            histogram = np.bincount(sample.mask.numpy().ravel(), minlength=256)
            pixels += histogram
            shown |= histogram[:count] > 0
        if sample.tags is not None:
            shown |= sample.tags.numpy() == 1
        if sample.box_labels is not None:
            boxes += np.bincount(sample.box_labels.numpy(), minlength=count)
        images += shown
    share = 100 * pixels[:count] / max(1, pixels[:count].sum())
    return {
        name: {"images": int(images[number]), "pixels": round(float(share[number]), 2), "objects": int(boxes[number])}
        for number, name in enumerate(dataset.classes.names)
    }


def _sizes(index: Index) -> dict[str, Any]:
    sizes = _known_sizes(index)
    if not len(sizes):
        return {}
    common = Counter(map(tuple, sizes.tolist())).most_common(5)
    return {
        "smallest": sizes.min(0).tolist(),
        "median": np.median(sizes, 0).astype(int).tolist(),
        "largest": sizes.max(0).tolist(),
        "common": [{"size": list(size), "images": images} for size, images in common],
    }


def _known_sizes(index: Index) -> np.ndarray:
    """[M, 2] height and width of the images that can be read."""
    return index.sizes[(index.sizes > 0).all(1)]


def _sheet(dataset: DataSet, ids: list[str], having: dict[Kind, frozenset[str]]) -> Image.Image | None:
    """Eight images spread over the data set, with their masks and boxes."""
    classes = dataset.classes
    positions = np.linspace(0, len(ids) - 1, min(8, len(ids))).astype(int)
    chosen = [ids[position] for position in positions]
    rows, masks = [], []
    for id in chosen:
        sample = dataset.read(id, [kind for kind in (Kind.MASKS, Kind.BOXES) if id in having[kind]])
        image = sample.image.numpy()
        row = [Image.fromarray(image.transpose(1, 2, 0))]
        if sample.mask is not None:
            masks.append(sample.mask.numpy())
            row.append(overlay(image, masks[-1], classes.palette, background=classes.background))
        if sample.boxes is not None and sample.box_labels is not None:
            boxes, labels = sample.boxes.numpy(), sample.box_labels.numpy()
            row.append(draw_boxes(image, boxes, labels, classes.names, classes.palette))
        rows.append(row)
    legend = legend_entries(masks, classes.names, classes.palette)
    return contact_sheet(rows, row_titles=chosen, legend=legend) if rows else None
