"""Tuning the dense CRF of a trained segmenter on a few images with masks, as DeepLab v1 and v2 do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labelwise.datasets.base import DataSet
from labelwise.errors import UserError
from labelwise.files import atomic_write
from labelwise.method import Method
from labelwise.metrics.segmentation import SegmentationScores
from labelwise.models.crf_search import RANGES, Trial, search_crf
from labelwise.models.dense_crf import CRFParameters, format_crf, unary_from_logits
from labelwise.progress import console, watched
from labelwise.samples import Kind
from labelwise.tasks.segmentation import SegmentationMethod

PARAMETERS, TRIALS = "crf.yaml", "crf_search.json"
"""Files of the run's folder: the parameters that were found, and everything that was tried."""


def tune_crf(method: Method, dataset: DataSet, ids: Sequence[str], name: str, folder: Path) -> CRFParameters:
    """Search the CRF with the best mIoU over some images, and write it into the run's folder.

    Args:
        method: a trained segmenter whose `inference.crf` is where the search starts.
        dataset: where to read images and masks.
        ids: the images; their class scores are kept in memory, in half precision.
        name: what `--crf` named; one that begins with a paper's name searches that paper's ranges, others those of
            DeepLab v2.
        folder: where to write.

    Returns:
        The best parameters.

    Raises:
        UserError: the method has no CRF to start from.
    """
    if not isinstance(method, SegmentationMethod) or method.inference.crf is None:
        raise UserError("--tune-crf: there is no CRF to start from; name one with --crf, such as --crf deeplab_v2")
    start = method.inference.crf
    images, unaries, masks = _material(method, dataset, ids)

    def score(label_maps: Iterable[Tensor]) -> float:
        scores = SegmentationScores(method.classes.names).to(method.device)
        for label_map, mask in zip(label_maps, masks, strict=True):
            scores.update(label_map[None].to(torch.uint8), mask[None].to(label_map.device))
        return float(scores.compute().miou)

    ranges = RANGES["deeplab_v1" if name.startswith("deeplab_v1") else "deeplab_v2"]
    trials = search_crf(images, unaries, score, start=start, ranges=ranges, report=_tell)
    best = trials[0].parameters
    atomic_write(folder / PARAMETERS, format_crf(best))
    atomic_write(folder / TRIALS, json.dumps([_entry(trial) for trial in trials], indent=2))
    console.print(f"CRF tuned on {len(ids)} images: {trials[0].score:.2f} mIoU there; --crf {folder / PARAMETERS}")
    return best


@torch.no_grad()
def _material(
    method: SegmentationMethod, dataset: DataSet, ids: Sequence[str]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Images, energies without a CRF, and masks."""
    before, method.inference = method.inference, replace(method.inference, crf=None)
    images, unaries, masks = [], [], []
    for id in watched(ids, "predicting", len(ids)):
        sample = dataset.read(id, {Kind.MASKS})
        assert sample.mask is not None
        image = sample.image.as_subclass(Tensor)
        logits = method.predict(image[None].to(method.device))[0]
        images.append(image.to(method.device))
        unaries.append(unary_from_logits(logits).half())
        masks.append(sample.mask.as_subclass(Tensor))
    method.inference = before
    return images, unaries, masks


def _tell(trial: Trial) -> None:
    found = trial.parameters
    console.print(
        f"appearance weight {found.appearance_weight:g}, xy {found.appearance_xy:g}, rgb {found.appearance_rgb:g}: "
        f"{trial.score:.2f} mIoU"
    )


def _entry(trial: Trial) -> dict[str, Any]:
    return {"miou": trial.score, **asdict(trial.parameters)}
