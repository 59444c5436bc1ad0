"""`labelwise evaluate`: the task's protocol on a split of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labelwise import datasets
from labelwise.engine import build_trainer
from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions
from labelwise.saved import load_model
from labelwise.scoring import score
from labelwise.verbs.preparation import broken_ids, labelled_ids, require_same_classes, usable


def evaluate(
    run: Path,
    *,
    data: Path,
    split: str = "val",
    skip_broken: bool = False,
    inference: InferenceOptions | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Score a trained model.

    Args:
        run: the run's folder.
        data: the data set's folder.
        split: the split to score on.
        skip_broken: leave out images with broken files, and count them, instead of stopping.
        inference: scales, flip, sliding window, output stride and CRF of a segmenter; one plain pass unless given.
        hardware: where and how fast to compute; any number of devices gives the same score.

    Returns:
        For semantic segmentation `miou`, `iou` (class -> percent, None where a class is absent), `pixel_accuracy`,
        `boundary_iou`, `images`, `skipped` and `protocol`.

    Raises:
        UserError: no such run, a data set of other classes, or no labelled image in the split.
        BadFile: a file is broken.
    """
    inference = inference or InferenceOptions()
    method = load_model(Path(run), inference)
    dataset = datasets.open(Path(data))
    require_same_classes(method.classes, dataset)
    ids = labelled_ids(dataset, split, method.card.gives)
    broken = broken_ids(dataset, dict.fromkeys(ids, method.card.gives), skip_broken)
    kept = usable(ids, broken, f"split '{split}' of {data}")
    trainer = build_trainer(hardware or Hardware())
    results = score(method, dataset, kept, trainer)
    protocol = ", ".join(filter(None, [f"split '{split}' of {dataset.root.name}", str(inference)]))
    return results | {"skipped": sorted(broken), "protocol": protocol}
