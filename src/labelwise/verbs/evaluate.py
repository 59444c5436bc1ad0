"""`labelwise evaluate`: the task's protocol on a split of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.engine import build_trainer
from labelwise.errors import require_at_least
from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions
from labelwise.method import Method
from labelwise.saved import load_model
from labelwise.scoring import score
from labelwise.tasks.segmentation import SegmentationMethod
from labelwise.verbs.crf import tune_crf
from labelwise.verbs.preparation import broken_ids, labelled_ids, require_same_classes, usable


def evaluate(
    run: Path,
    *,
    data: Path,
    split: str = "val",
    skip_broken: bool = False,
    inference: InferenceOptions | None = None,
    tune_crf: int = 0,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Score a trained model.

    Args:
        run: the run's folder.
        data: the data set's folder.
        split: the split to score on.
        skip_broken: leave out images with broken files, and count them, instead of stopping.
        inference: scales, flip, sliding window, output stride and CRF of a segmenter; one plain pass unless given.
        tune_crf: search the numbers of `inference.crf` on so many images at the start of the split first, as the papers
            do; they are written into the run's folder and used.
        hardware: where and how fast to compute; any number of devices gives the same score.

    Returns:
        For semantic segmentation `miou`, `iou` (class -> percent, None where a class is absent), `pixel_accuracy`,
        `mean_accuracy`, `frequency_weighted_iou`, `boundary_iou` and `trimap_miou` (width of the band around class
        boundaries in pixels -> percent); for classification `map`, `ap` (class -> percent, None where no image shows
        it) and, where every image has one class, `top1` and `top5`; of both `images`, `skipped` and `protocol`.

    Raises:
        UserError: no such run, a data set of other classes, or no labelled image in the split.
        BadFile: a file is broken.
    """
    inference = inference or InferenceOptions()
    method = load_model(Path(run), inference)
    dataset = datasets.open(Path(data))
    require_same_classes(method.classes, dataset)
    require_at_least("tune_crf", tune_crf, 0)
    ids = labelled_ids(dataset, split, method.card.gives)
    broken = broken_ids(dataset, dict.fromkeys(ids, method.card.gives), skip_broken)
    kept = usable(ids, broken, f"split '{split}' of {data}")
    if tune_crf:
        method = _tuned(method, dataset, kept[:tune_crf], Path(run), inference)
    trainer = build_trainer(hardware or Hardware())
    results = score(method, dataset, kept, trainer)
    said = [f"split '{split}' of {dataset.root.name}", str(inference)]
    if tune_crf:
        said.append(f"CRF tuned on {len(kept[:tune_crf])} of these images")
    protocol = ", ".join(filter(None, said))
    return results | {"skipped": sorted(broken), "protocol": protocol}


def _tuned(method: Method, dataset: DataSet, ids: Sequence[str], run: Path, inference: InferenceOptions) -> Method:
    """The method with the CRF that suits these images best."""
    best = tune_crf(method, dataset, ids, inference.crf or "", run)
    assert isinstance(method, SegmentationMethod)
    method.inference = replace(method.inference, crf=best)
    return method
