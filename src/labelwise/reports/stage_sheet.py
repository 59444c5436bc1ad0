"""A sheet of a few images with what each stage of a recipe made of them: maps, masks, boxes, and the truth."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from labelwise.datasets.base import DataSet
from labelwise.errors import BadFile
from labelwise.files import atomic_file
from labelwise.reports.pictures import contact_sheet, draw_boxes, legend_entries, map_overlay, overlay
from labelwise.samples import Kind

_PICTURED = 6
_CELL = 160
TRUTH = "truth"


def write_stage_sheet(
    path: Path, dataset: DataSet, stages: Mapping[str, DataSet], split: str, count: int = _PICTURED
) -> None:
    """Write the sheet: a row for each image, the columns image, each stage, and truth where there is some.

    A stage with score maps has a column for these and one for its masks.

    Args:
        path: the PNG to write; its folder is made if need be.
        dataset: the data set that the recipe began with; its masks are the truth.
        stages: name -> the labels that a stage made, each with this split.
        split: whose images are shown.
        count: images on the sheet, spread over those that all stages have.
    """
    common = [id for id in dataset.ids(split) if all(id in stage.ids(split) for stage in stages.values())]
    chosen = [common[place] for place in np.linspace(0, len(common) - 1, min(count, len(common))).astype(int)]
    if not chosen:
        return
    columns = [(name, stage, kind) for name, stage in stages.items() for kind in _drawn(stage, split)]
    masks: list[np.ndarray] = []
    rows = [[_picture(dataset, id), *(_cell(stage, id, kind, masks) for _, stage, kind in columns)] for id in chosen]
    titles = ["image", *(f"{name}: maps" if kind is Kind.MAPS else name for name, _, kind in columns)]
    if Kind.MASKS in dataset.kinds(split):
        titles.append(TRUTH)
        for id, row in zip(chosen, rows, strict=True):
            # The recipe may never have read the truth, which must not stop it now.
            with suppress(BadFile):
                row.append(_cell(dataset, id, Kind.MASKS, masks))
    legend = legend_entries(masks, dataset.classes.names, dataset.classes.palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        contact_sheet(rows, titles, chosen, _CELL, legend).save(file, format="PNG")


def _drawn(stage: DataSet, split: str) -> list[Kind]:
    """The kinds of label that have a column."""
    kinds = stage.kinds(split)
    regions = next((kind for kind in (Kind.MASKS, Kind.BOXES) if kind in kinds), None)
    return [kind for kind in (Kind.MAPS, regions) if kind is not None and kind in kinds]


def _picture(dataset: DataSet, id: str) -> Image.Image:
    return Image.fromarray(np.asarray(dataset.read(id).image).transpose(1, 2, 0))


def _cell(dataset: DataSet, id: str, kind: Kind, masks: list[np.ndarray]) -> Image.Image:
    """The labels of one kind over their image; masks are added to the list, for the legend."""
    sample, classes = dataset.read(id, {kind}), dataset.classes
    image = np.asarray(sample.image)
    if kind is Kind.MAPS:
        if sample.maps is None:
            return _picture(dataset, id)
        return map_overlay(image, np.asarray(sample.maps.fine), np.asarray(sample.maps.labels), classes.palette)
    if kind is Kind.BOXES:
        if sample.boxes is None:
            return _picture(dataset, id)
        corners, numbers = np.asarray(sample.boxes), np.asarray(sample.box_labels)
        return draw_boxes(image, corners, numbers, classes.names, classes.palette)
    if sample.mask is None:
        return _picture(dataset, id)
    masks.append(np.asarray(sample.mask))
    return overlay(image, masks[-1], classes.palette, background=classes.background)
