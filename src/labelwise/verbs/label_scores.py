"""Scoring the labels of one data set by those of another: how good seeds and pseudo-masks are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.errors import UserError
from labelwise.files import atomic_file
from labelwise.metrics.seeds import SEED_THRESHOLDS, SeedScores, over_and_under_activation
from labelwise.metrics.segmentation import Scores, SegmentationScores
from labelwise.progress import watched
from labelwise.reports.pictures import contact_sheet, legend_entries, map_overlay, overlay
from labelwise.samples import IGNORE_INDEX, Kind, Sample
from labelwise.saved import WEIGHTS
from labelwise.verbs.preparation import broken_ids, labelled_ids, require_same_classes, usable

_PICTURED = 6


def is_label_folder(path: Path) -> bool:
    """Whether a folder is a data set, not a run."""
    if not path.is_dir() or (path / WEIGHTS).exists():
        return False
    try:
        datasets.open(path)
    except UserError:
        return False
    return True


def score_labels(labels: Path, data: Path, split: str, skip_broken: bool) -> dict[str, Any]:
    """Compare the masks of a data set, and the seeds of its score maps, with the true masks of another.

    Args:
        labels: a folder with masks or score maps of every image of the split that has a true mask.
        data: the data set with the true masks.
        split: of `data`.
        skip_broken: leave out images with broken files, and count them, instead of stopping.

    Returns:
        `miou`, `iou`, `pixel_accuracy`, `false_positive` and `false_negative` (over- and under-activation of the
        foreground) of the masks, in which 255 counts as background; of score maps `seed_miou` at the best constant of
        the background, `seed_threshold`, `seed_iou`, `seed_false_positive`, `seed_false_negative` and `seed_curve`;
        `images`, `skipped` and `protocol`.

    Raises:
        UserError: the classes differ, the split has no masks, or labels of an image are missing.
        BadFile: a file is broken.
    """
    made, truth = datasets.open(labels), datasets.open(data)
    require_same_classes(made.classes, truth)
    ids = labelled_ids(truth, split, {Kind.MASKS})
    kinds = _scored_kinds(made, ids, split)
    broken = broken_ids(truth, dict.fromkeys(ids, frozenset({Kind.MASKS})), skip_broken)
    broken |= broken_ids(made, dict.fromkeys(ids, kinds), skip_broken)
    kept = usable(ids, broken, f"split '{split}' of {data}")
    background = truth.classes.background
    masks = SegmentationScores(truth.classes.names)
    seeds = None
    if Kind.MAPS in kinds and background is not None:
        seeds = SeedScores(truth.classes.names, background, SEED_THRESHOLDS)
    for id in watched(kept, "scoring labels", len(kept)):
        sample, true = made.read(id, kinds), truth.read(id, {Kind.MASKS}).mask
        assert true is not None
        target = true.as_subclass(Tensor)
        _require_size(sample, target, made)
        if sample.mask is not None:
            masks.update(_told(sample.mask, background), target)
        if seeds is not None and sample.maps is not None:
            seeds.update(sample.maps.fine, sample.maps.labels, target)
    results: dict[str, Any] = {"images": len(kept)}
    if Kind.MASKS in kinds:
        results = _mask_results(masks.compute(), background) | results
    if seeds is not None:
        results |= seeds.compute().named()
    return results | {"skipped": sorted(broken), "protocol": f"labels against split '{split}' of {truth.root.name}"}


def write_label_sheet(labels: Path, data: Path, split: str, path: Path) -> None:
    """A sheet of image, score maps, labels and truth for a few images spread over a split.

    Args:
        labels: the data set with the labels.
        data: the data set with the true masks.
        split: of `data`.
        path: the PNG to write; its folder is made if need be.
    """
    made, truth = datasets.open(labels), datasets.open(data)
    ids = labelled_ids(truth, split, {Kind.MASKS})
    kinds = _scored_kinds(made, ids, split)
    chosen = [ids[position] for position in np.linspace(0, len(ids) - 1, min(_PICTURED, len(ids))).astype(int)]
    classes = truth.classes
    rows: list[list[Image.Image]] = []
    shown: list[np.ndarray] = []
    for id in chosen:
        sample, true = made.read(id, kinds), truth.read(id, {Kind.MASKS}).mask
        assert true is not None
        image = sample.image.numpy()
        row = [Image.fromarray(image.transpose(1, 2, 0))]
        if sample.maps is not None:
            row.append(map_overlay(image, sample.maps.fine.numpy(), sample.maps.labels.numpy(), classes.palette))
        masks = [true.numpy() if mask is true else mask.numpy() for mask in (sample.mask, true) if mask is not None]
        row += [overlay(image, mask, classes.palette, background=classes.background) for mask in masks]
        rows.append(row)
        shown += masks
    titles = ["image", *(["score maps"] if Kind.MAPS in kinds else []), *(["labels"] if Kind.MASKS in kinds else [])]
    legend = legend_entries(shown, classes.names, classes.palette)
    sheet = contact_sheet(rows, [*titles, "truth"], chosen, legend=legend)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        sheet.save(file, format="PNG")


def _scored_kinds(made: DataSet, ids: Sequence[str], split: str) -> frozenset[Kind]:
    """Masks, score maps or both: what every image has.

    Raises:
        UserError: some images have neither.
    """
    missing = {kind: sorted(set(ids) - made.having(kind, _known(made, ids))) for kind in (Kind.MASKS, Kind.MAPS)}
    kinds = frozenset(kind for kind, lacking in missing.items() if not lacking)
    if kinds:
        return kinds
    kind = min(missing, key=lambda kind: len(missing[kind]))
    lacking = missing[kind]
    raise UserError(
        f"{made.root}: has no {kind} of {len(lacking)} of the {len(ids)} images of split '{split}' with a true mask "
        f"({', '.join(lacking[:2])}{', ...' if len(lacking) > 2 else ''}); annotate them, or name another --split"
    )


def _known(made: DataSet, ids: Sequence[str]) -> list[str]:
    """Those of the ids that are images of the data set in any of its splits."""
    known = {id for split in made.splits for id in made.ids(split)}
    return [id for id in ids if id in known]


def _told(mask: Tensor, background: int | None) -> Tensor:
    """A pseudo-mask in which pixels of no label are background (IRNet's convention)."""
    mask = mask.as_subclass(Tensor)
    return mask if background is None else mask.masked_fill(mask == IGNORE_INDEX, background)


def _mask_results(scores: Scores, background: int | None) -> dict[str, Any]:
    results: dict[str, Any] = {"miou": scores.miou, "iou": scores.iou, "pixel_accuracy": scores.pixel_accuracy}
    if background is not None:
        over, under = over_and_under_activation(scores.histogram, background)
        results |= {"false_positive": over, "false_negative": under}
    return results


def _require_size(sample: Sample, target: Tensor, made: DataSet) -> None:
    found = torch.Size(sample.image.shape[-2:])
    if found != target.shape:
        raise UserError(
            f"{made.image_file(sample.id)}: is {found[1]}x{found[0]}, but the true mask {target.shape[1]}x"
            f"{target.shape[0]}; label the same images"
        )
