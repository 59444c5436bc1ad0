"""Sessions on the small VOC folder of `conftest`, and what a person or a kill may do to its files meanwhile."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

from labelwise.annotator.session import AnnotationSession
from labelwise.datasets.queries import Query, QueryFile, write_queries
from labelwise.datasets.voc import VOC
from tests.conftest import VOC_IDS

FIRST, SECOND = VOC_IDS[:2]
PIXELS = ((20, 3), (4, 5), (9, 6))
"""Column and row of the queried pixels of every image; from left to right they are the second, third and first."""

_numbers = itertools.count()


def new() -> str:
    """An identifier for an answer."""
    return f"answer-{next(_numbers)}"


def queries(folder: Path, ids: tuple[str, ...] = VOC_IDS[:4], name: str = "queries.json", **changed: Any) -> Path:
    """A batch of three pixels for each image; the later an image, the surer the model."""
    path = folder / name
    size = {"height": 24, "width": 32} | changed
    x, y = zip(*PIXELS, strict=True)
    images = [Query(id, **size, x=x, y=y, uncertainty=1 - place / 10) for place, id in enumerate(ids)]
    write_queries(path, QueryFile(tuple(images), "margin", "run", 2))
    return path


def bare(folder: Path) -> Path:
    """Take all labels out of a VOC folder."""
    for name in ("SegmentationClass", "SegmentationObject", "Annotations"):
        for path in (folder / name).iterdir():
            path.unlink()
    return folder


def session(folder: Path, **options: Any) -> AnnotationSession:
    """A session on the split train."""
    return AnnotationSession(VOC(folder), "train", folder / "Labelling", **options)


def points_on_disk(folder: Path, id: str = FIRST) -> list[tuple[int, int, str]]:
    """The points in the file of an image."""
    path = folder / f"Points/{id}.json"
    if not path.exists():
        return []
    return [(point["x"], point["y"], point["class"]) for point in json.loads(path.read_text())["points"]]


def journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of the journal."""
    return [json.loads(line) for line in (folder / "Labelling/journal.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """The content of every label file."""
    kept = ("Points", "Annotations", "SegmentationClass", "ImageSets")
    paths = [path for name in kept for path in (folder / name).rglob("*") if path.is_file()]
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in paths}
