"""The commands that use a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from labelwise.commands.shared import Flag, Flat, Inference, Json, Placement, SharedPlacement
from labelwise.hardware import process_rank
from labelwise.output import (
    console,
    print_json,
    print_result,
)

_PLACEMENT = Placement()


_SHARED = SharedPlacement()
_PLAIN = Inference()


def evaluate(
    run: Path,
    /,
    *,
    data: Path,
    split: str = "val",
    skip_broken: Annotated[bool, Flag] = False,
    out: Path | None = None,
    tune_crf: int = 0,
    inference: Annotated[Inference, Flat] = _PLAIN,
    placement: Annotated[SharedPlacement, Flat] = _SHARED,
    json: Json = False,
) -> None:
    """Score a trained model by its task's protocol.

    Parameters
    ----------
    run
        the run's folder
    data
        the data set's folder
    split
        the split to score on
    skip_broken
        leave out images with broken files, and count them, instead of stopping
    out
        also write the scores, pictures of predictions and a page with curves into this folder
    tune_crf
        search the numbers of the named CRF on N images of the split first; written to RUN/crf.yaml, and used
    """
    from labelwise.verbs.evaluate import evaluate as score

    result = score(
        run,
        data=data,
        split=split,
        skip_broken=skip_broken,
        out=out,
        tune_crf=tune_crf,
        inference=inference,
        hardware=placement.hardware(),
    )
    if process_rank() == 0:
        print_result(result, json)


def predict(
    run: Path,
    images: list[Path],
    /,
    *,
    out: Path,
    least_score: float = 0.5,
    inference: Annotated[Inference, Flat] = _PLAIN,
    placement: Annotated[Placement, Flat] = _PLACEMENT,
    json: Json = False,
) -> None:
    """Predict images: palette PNG, XML or JSON, and a picture of each.

    Parameters
    ----------
    run
        the run's folder
    images
        image files or folders of them
    out
        the folder to write into
    least_score
        of a detector's objects that are drawn and written as labels; the JSON file holds all
    """
    from labelwise.verbs.predict import predict as write

    result = write(run, images, out=out, inference=inference, least_score=least_score, hardware=placement.hardware())
    if json:
        print_json(result)
    else:
        console.print(f"{len(result['images'])} images predicted into {out}")


def annotate(
    run: Path,
    /,
    *,
    data: Path,
    out: Path,
    split: str = "train",
    skip_broken: Annotated[bool, Flag] = False,
    least_score: float = 0.5,
    inference: Annotated[Inference, Flat] = _PLAIN,
    placement: Annotated[Placement, Flat] = _PLACEMENT,
    json: Json = False,
) -> None:
    """Write the predictions on a split as a new data set in VOC layout.

    Parameters
    ----------
    run
        the run's folder
    data
        the data set's folder; its labels are not read
    out
        the new data set's folder; must be empty or not exist
    split
        the split to annotate
    skip_broken
        leave out images that cannot be read, and count them, instead of stopping
    least_score
        of a detector's objects that become labels
    """
    from labelwise.verbs.predict import annotate as write

    result = write(
        run,
        data=data,
        out=out,
        split=split,
        skip_broken=skip_broken,
        inference=inference,
        least_score=least_score,
        hardware=placement.hardware(),
    )
    if json:
        print_json(result)
    else:
        console.print(f"{result['images']} images with predicted labels in {out}")
