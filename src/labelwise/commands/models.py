"""The commands that use a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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


def refine(
    data: list[Path],
    /,
    *,
    by: Literal["confident", "psa_confident", "crf", "sum", "threshold"],
    out: Path,
    split: str = "train",
    background: float = 0.15,
    sure_foreground: float = 0.30,
    sure_background: float = 0.05,
    low_alpha: float = 4.0,
    high_alpha: float = 32.0,
    crf: str | None = None,
    skip_broken: Annotated[bool, Flag] = False,
    json: Json = False,
) -> None:
    """Make other labels of a data set's score maps, without training, and write them as a new data set.

    Parameters
    ----------
    data
        the folder of a data set with score maps, as `annotate` writes it; several for `--by sum`
    by
        confident: masks of the pixels that two seeds agree on after a CRF, unsure elsewhere (IRNet);
        psa_confident: the same by two powers of the background's score (PSA); crf: the seed after a CRF;
        sum: the maps of several data sets added, and their seed; threshold: the seed at another constant
    out
        the new data set's folder; must be empty or not exist
    split
        the split to refine
    background
        constant score of the background in a seed, for crf, sum and threshold
    sure_foreground
        the same for what is sure to be a class, for confident
    sure_background
        the same for what is sure to be background, for confident; 0.15 in W-OoD, 0.17 in BAS
    low_alpha
        power of the background's score for what is sure to be a class, for psa_confident
    high_alpha
        the same for what is sure to be background, for psa_confident
    crf
        a preset, a preset with changes (cam:iterations=5) or a file; that of the papers unless given
    skip_broken
        leave out images with broken files, and count them, instead of stopping
    """
    from labelwise.verbs.refine import refine as write

    result = write(
        by,
        data=data,
        out=out,
        split=split,
        background=background,
        sure_foreground=sure_foreground,
        sure_background=sure_background,
        low_alpha=low_alpha,
        high_alpha=high_alpha,
        crf=crf,
        skip_broken=skip_broken,
    )
    if json:
        print_json(result)
    else:
        console.print(f"{result['images']} images with refined labels in {out}")


def select(
    run: Path | None = None,
    /,
    *,
    data: Path,
    out: Path,
    pixels: int,
    split: str = "train",
    strategy: Literal["margin", "entropy", "least_confidence", "random"] | None = None,
    share: float = 0.05,
    choice: Literal["share_then_random", "best", "random_then_best"] = "share_then_random",
    votes: int = 0,
    round: int | None = None,
    seed: int = 0,
    skip_broken: Annotated[bool, Flag] = False,
    placement: Annotated[Placement, Flat] = _PLACEMENT,
    json: Json = False,
) -> None:
    """Choose the pixels of each image that a person is to label next, and write them as a file of queries.

    Parameters
    ----------
    run
        the folder of a segmenter's run; without one the pixels are random
    data
        the data set's folder; of its labels the clicks in Points alone are read, to ask for other pixels
    out
        the file to write, JSON; an earlier file of queries is replaced
    pixels
        how many of each image
    split
        the split whose images are to be labelled
    strategy
        by what the model is taken to be unsure; margin unless given, random without a run
    share
        of an image's pixels, the least sure that are candidates
    choice
        at random from the least sure share, the least sure of all, or the least sure of a random share
    votes
        passes with random dropout whose scores are averaged (query by committee); 0 = one pass without
    round
        how many models were trained before this choice, for the record; 0 without a run, else 1, unless given
    seed
        of all that is random
    skip_broken
        leave out images with broken files, and count them, instead of stopping
    """
    from labelwise.verbs.select import select as choose

    result = choose(
        run,
        data=data,
        out=out,
        pixels=pixels,
        split=split,
        strategy=strategy,
        share=share,
        choice=choice,
        votes=votes,
        round=round,
        seed=seed,
        skip_broken=skip_broken,
        hardware=placement.hardware(),
    )
    if json:
        print_json(result)
    else:
        console.print(f"{result['pixels']} pixels of {result['images']} images to label in {out}")


def mine_ood(
    run: Path,
    /,
    *,
    data: Path,
    out: Path,
    split: str = "train",
    least_score: float = 0.5,
    most: int = 0,
    placement: Annotated[Placement, Flat] = _PLACEMENT,
    json: Json = False,
) -> None:
    """List images of no class on which a classifier of tags fires, for a person to look through.

    Parameters
    ----------
    run
        the folder of a run that predicts tags, such as one of cam
    data
        a folder of images; or a data set, whose images without any of the classes, and parts beside all boxes, count
    out
        the list to write, a .txt file; a picture of the same name shows the first images of each class
    split
        the split of the data set
    least_score
        the probability of a class above which an image is listed
    most
        images of each class at most; 0 = all
    """
    from labelwise.verbs.mine_ood import mine_ood as mine

    result = mine(
        run, data=data, out=out, split=split, least_score=least_score, most=most, hardware=placement.hardware()
    )
    if json:
        print_json(result)
    else:
        console.print(f"{result['images']} of {result['candidates']} images listed in {out}; see {result['picture']}")
