"""`labelwise evaluate`: the task's protocol on a split of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.engine import build_trainer
from labelwise.errors import UserError, require_at_least
from labelwise.files import atomic_write
from labelwise.hardware import Hardware, process_rank
from labelwise.inference_options import InferenceOptions
from labelwise.method import Method
from labelwise.reports.run_page import PAGE, write_run_report
from labelwise.runs import RESULTS
from labelwise.saved import for_prediction, load_model
from labelwise.scoring import score, write_prediction_sheet
from labelwise.tasks.segmentation import SegmentationMethod
from labelwise.verbs.crf import tune_crf
from labelwise.verbs.label_scores import is_label_folder, score_labels, write_label_sheet
from labelwise.verbs.preparation import broken_ids, labelled_ids, require_same_classes, usable


def evaluate(
    run: Path,
    *,
    data: Path,
    split: str = "val",
    skip_broken: bool = False,
    out: Path | None = None,
    inference: InferenceOptions | None = None,
    tune_crf: int = 0,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Score a trained model; or the labels of a data set, such as pseudo-labels, against those of another.

    Args:
        run: the run's folder, or a data set's with masks or score maps.
        data: the data set's folder.
        split: the split to score on.
        skip_broken: leave out images with broken files, and count them, instead of stopping.
        out: a new or empty folder, or that of an earlier evaluation, for `results.json`, pictures and `report.html`.
        inference: scales, flip, sliding window, output stride and CRF of a segmenter; one plain pass unless given.
        tune_crf: search the numbers of `inference.crf` on so many images at the start of the split first, as the papers
            do; they are written into the run's folder and used.
        hardware: where and how fast to compute; any number of devices gives the same score.

    Returns:
        For semantic segmentation `miou`, `iou` (class -> percent, None where a class is absent), `pixel_accuracy`,
        `mean_accuracy`, `frequency_weighted_iou`, `boundary_iou` and `trimap_miou` (width of the band around class
        boundaries in pixels -> percent); for classification `map`, `ap` (class -> percent, None where no image shows
        it) and, where every image has one class, `top1` and `top5`; for detection `map` and `ap` as the model's
        configuration reads them, both readings of VOC, COCO's, the precision-recall `curves` and the recall of the
        `proposals`; for instance segmentation `map` and `ap` (AP^r of SDS at 0.5), `map_r` of each variant, `curves`
        and the scores of the `boxes`; of labels see `score_labels`; of all `images`, `skipped` and `protocol`.

    Raises:
        UserError: no such run, a data set of other classes, or no labelled image in the split.
        BadFile: a file is broken.
    """
    inference, hardware = inference or InferenceOptions(), hardware or Hardware()
    _refuse_other_folder(out)
    if is_label_folder(Path(run)):
        if tune_crf or inference.changed:
            raise UserError(f"{run}: holds labels, not a model; it takes no {inference or 'CRF'}")
        results = score_labels(Path(run), Path(data), split, skip_broken)
        if out is not None:
            _write_page(Path(out), results, partial(write_label_sheet, Path(run), Path(data), split))
        return results
    method = for_prediction(load_model(Path(run), inference), hardware.resolved_precision())
    dataset = datasets.open(Path(data))
    require_same_classes(method.classes, dataset)
    require_at_least("tune_crf", tune_crf, 0)
    truth = method.card.truth
    ids = labelled_ids(dataset, split, truth.required)
    broken = broken_ids(dataset, dict.fromkeys(ids, truth.kinds), skip_broken)
    kept = usable(ids, broken, f"split '{split}' of {data}")
    if tune_crf:
        method = _tuned(method, dataset, kept[:tune_crf], Path(run), inference)
    trainer = build_trainer(hardware)
    results = score(method, dataset, kept, trainer)
    said = [f"split '{split}' of {dataset.root.name}", str(inference)]
    if tune_crf:
        said.append(f"CRF tuned on {len(kept[:tune_crf])} of these images")
    protocol = ", ".join(filter(None, said))
    results |= {"skipped": sorted(broken), "protocol": protocol}
    if out is not None and process_rank() == 0:
        sheet = partial(write_prediction_sheet, {method.card.name: method}, dataset, kept)
        _write_page(Path(out), results, sheet)
    return results


def _refuse_other_folder(out: Path | None) -> None:
    """Refuse a folder of anything but an evaluation, before an hour is spent on scores that could not be written."""
    if out is None or not Path(out).exists():
        return
    names = [path.name for path in Path(out).iterdir()] if Path(out).is_dir() else ["a file"]
    if names and not {RESULTS} <= set(names) <= {RESULTS, PAGE, "pictures"}:
        raise UserError(f"--out {out}: holds something else than an evaluation; name a new or empty folder")


def _write_page(out: Path, results: dict[str, Any], write_sheet: Callable[[Path], None]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / RESULTS, json.dumps(results, indent=2))
    write_sheet(out / "pictures" / "predictions.png")
    write_run_report(out)


def _tuned(method: Method, dataset: DataSet, ids: Sequence[str], run: Path, inference: InferenceOptions) -> Method:
    """The method with the CRF that suits these images best."""
    best = tune_crf(method, dataset, ids, inference.crf or "", run)
    assert isinstance(method, SegmentationMethod)
    method.inference = replace(method.inference, crf=best)
    return method
