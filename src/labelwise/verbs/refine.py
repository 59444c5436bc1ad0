"""`labelwise refine`: other labels from score maps, without training anything, as a new data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.datasets.voc import VOC
from labelwise.errors import UserError, did_you_mean, require_at_least, require_share
from labelwise.models.cam import LEAST_MAXIMUM
from labelwise.models.confident_labels import UNSURE, confident_cells, confident_labels, crf_labels, seed_rows
from labelwise.models.dense_crf import CRFParameters, parse_crf
from labelwise.progress import watched
from labelwise.samples import Kind, Sample, ScoreMaps
from labelwise.verbs.predict import refuse_other_data, started
from labelwise.verbs.preparation import broken_ids, usable

By = Literal["confident", "psa_confident", "crf", "sum", "threshold"]
"""The ways to refine."""

ORIGIN = "refine.json"
"""The file of a refined data set that says what it was made from, and how."""

_CRF = {"confident": "cam", "crf": "cam", "psa_confident": "pydensecrf"}
WITH_MAPS = ("sum", "threshold")
"""Ways whose data set has score maps again, that of which the masks are the seeds."""


def refine(
    by: By,
    *,
    data: Path | Sequence[Path],
    out: Path,
    split: str = "train",
    background: float = 0.15,
    sure_foreground: float = 0.30,
    sure_background: float = 0.05,
    low_alpha: float = 4.0,
    high_alpha: float = 32.0,
    crf: str | None = None,
    skip_broken: bool = False,
) -> dict[str, Any]:
    """Make other labels of a data set's score maps, and write them with the images as a new data set in VOC layout.

    An unfinished data set is completed when the same call is made again.

    Args:
        by: `confident`: masks of the pixels that two seeds agree on after a CRF, 255 elsewhere (IRNet);
            `psa_confident`: the same by two powers of the background's score (PSA); `crf`: the seed after a CRF;
            `sum`: the maps of several data sets added, and their seed; `threshold`: the seed at another constant.
        data: a data set with score maps, as `annotate` writes it; several for `sum`, with the same images.
        out: the new data set's folder, which must be empty or not exist.
        split: the split to refine; the new data set has a split of the same name.
        background: the constant score of the background in a seed, for `crf`, `sum` and `threshold`.
        sure_foreground: the same for what is sure to be a class in `confident`.
        sure_background: the same for what is sure to be background in `confident`; 0.15 in W-OoD, 0.17 in BAS.
        low_alpha: of `psa_confident`, the power for what is sure to be a class.
        high_alpha: of `psa_confident`, the power for what is sure to be background.
        crf: parameters of the CRF, see `dense_crf.parse_crf`; those of the papers unless given.
        skip_broken: leave out images with broken files instead of stopping.

    Returns:
        `images` refined, `skipped` and the folder `out`.

    Raises:
        UserError: no such way, data set or split, an image without score maps, or `out` holds something else.
        BadFile: a file is broken and `skip_broken` is not set.
    """
    if by not in get_args(By):
        raise UserError(f"--by {by}: no such way to refine{did_you_mean(by, get_args(By))}")
    options = {
        "background": background,
        "sure_foreground": sure_foreground,
        "sure_background": sure_background,
        "low_alpha": low_alpha,
        "high_alpha": high_alpha,
    }
    check_options(options)
    parameters = parse_crf(crf or _CRF[by]) if by in _CRF else None
    sources = _opened(by, [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data])
    origin = {
        "by": by,
        "data": [str(source.root.resolve()) for source in sources],
        "split": split,
        **options,
        "crf": str(parameters),
    }
    refuse_other_data(Path(out), origin, ORIGIN)
    ids = sources[0].ids(split)
    broken: frozenset[str] = frozenset()
    for source in sources:
        _require_maps(source, ids, split)
        broken |= broken_ids(source, dict.fromkeys(ids, frozenset({Kind.MAPS, Kind.TAGS})), skip_broken)
    kept = usable(ids, broken, f"split '{split}' of {sources[0].root}")
    refined = started(Path(out), sources[0].classes, origin, ORIGIN)
    _write_all(refined, sources, kept, by, options, parameters)
    refined.write_split(split, kept)
    return {"images": len(kept), "skipped": sorted(broken), "out": str(out)}


def _write_all(
    refined: VOC,
    sources: Sequence[DataSet],
    ids: Sequence[str],
    by: By,
    options: Mapping[str, float],
    parameters: CRFParameters | None,
) -> None:
    done = refined.having(Kind.MASKS, ids)
    for id in watched(ids, "refining", len(ids)):
        if id in done:
            # The lists of tags are those of the whole split.
            refined.write(sources[0].read(id, {Kind.TAGS}))
            continue
        samples = [source.read(id, {Kind.MAPS, Kind.TAGS}) for source in sources]
        _require_one_size(samples, sources)
        maps = _summed([_maps(sample) for sample in samples])
        labels = _labels(samples[0].image.as_subclass(Tensor), maps.fine, by, options, parameters)
        mask = tv_tensors.Mask(_numbers(labels, maps, refined))
        refined.copy_image(id, sources[0].image_file(id))
        # The maps first: an image counts as done by its mask.
        if by in WITH_MAPS:
            refined.write(replace(samples[0], maps=maps))
        refined.write(replace(samples[0], maps=None, mask=mask))


def _labels(
    image: Tensor, fine: Tensor, by: By, options: Mapping[str, float], parameters: CRFParameters | None
) -> Tensor:
    """The labels of one image as rows of its maps, [H, W] uint8."""
    if parameters is None:
        return seed_rows(fine, options["background"])
    if by == "crf":
        return crf_labels(image, fine, options["background"], parameters)
    if by == "psa_confident":
        return confident_cells(image, fine, options["low_alpha"], options["high_alpha"], parameters)
    return confident_labels(image, fine, options["sure_foreground"], options["sure_background"], parameters)


def _numbers(rows: Tensor, maps: ScoreMaps, dataset: DataSet) -> Tensor:
    """Rows of maps as class numbers. [H, W] uint8 -> [H, W] uint8."""
    background = dataset.classes.background
    assert background is not None
    table = torch.full((UNSURE + 1,), UNSURE, dtype=torch.uint8)
    table[: 1 + len(maps.labels)] = torch.tensor([background, *maps.labels.tolist()], dtype=torch.uint8)
    return table[rows.long()]


def _summed(several: Sequence[ScoreMaps]) -> ScoreMaps:
    """The sum of the maps of each class, divided by its maximum; the maps themselves of one data set."""
    if len(several) == 1:
        return several[0]
    labels = torch.unique(torch.cat([maps.labels for maps in several]))
    fine, coarse = (
        _scaled(torch.stack([_spread(getattr(maps, part), maps.labels, labels) for maps in several]).sum(0))
        for part in ("fine", "coarse")
    )
    return ScoreMaps(labels=labels, fine=fine, coarse=coarse)


def _spread(maps: Tensor, own: Tensor, labels: Tensor) -> Tensor:
    """Maps in the order of more labels, 0 for those that they lack."""
    spread = maps.new_zeros(len(labels), *maps.shape[1:])
    spread[torch.searchsorted(labels, own)] = maps
    return spread


def _scaled(maps: Tensor) -> Tensor:
    return maps / (maps.flatten(1).amax(1)[:, None, None] + LEAST_MAXIMUM) if len(maps) else maps


def _maps(sample: Sample) -> ScoreMaps:
    assert sample.maps is not None
    return sample.maps


def _opened(by: By, data: Sequence[Path]) -> list[DataSet]:
    """The data sets, in order.

    Raises:
        UserError: too few or too many, no data set, or other classes than the first one has.
    """
    if by == "sum" and len(data) < 2:
        raise UserError("--by sum: takes the maps of two or more data sets; name them all")
    if by != "sum" and len(data) != 1:
        raise UserError(f"--by {by}: takes one data set, not {len(data)}; --by sum adds the maps of several")
    sources = [datasets.open(path) for path in data]
    if sources[0].classes.background is None:
        raise UserError(f"{sources[0].root}: has no background, which masks need; take another data set")
    for source in sources[1:]:
        if source.classes.names != sources[0].classes.names:
            raise UserError(f"{source.root}: has other classes than {sources[0].root}; take data sets of the same list")
    return sources


def _require_maps(source: DataSet, ids: Sequence[str], split: str) -> None:
    having = source.having(Kind.MAPS, ids)
    missing = [id for id in ids if id not in having]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{source.root}: image '{missing[0]}'{more} of split '{split}' has no score maps; make them with "
            f"`labelwise annotate RUN --data DATA --split {split}`"
        )


def _require_one_size(samples: Sequence[Sample], sources: Sequence[DataSet]) -> None:
    for sample, source in zip(samples[1:], sources[1:], strict=True):
        if sample.image.shape != samples[0].image.shape:
            raise UserError(
                f"{source.root}: image '{sample.id}' has another size than in {sources[0].root}; "
                "take data sets made of the same images"
            )


def check_options(options: Mapping[str, float]) -> None:
    """Refuse numbers that no way of refining takes.

    Args:
        options: the numbers among the options of `refine`, all of them.

    Raises:
        UserError: names the option.
    """
    for name in ("background", "sure_foreground", "sure_background"):
        require_share(name, options[name])
    for name in ("low_alpha", "high_alpha"):
        require_at_least(name, options[name], 0)
    for low, high in (("sure_background", "sure_foreground"), ("low_alpha", "high_alpha")):
        if options[low] > options[high]:
            flags = [f"--{name.replace('_', '-')} {options[name]:g}" for name in (low, high)]
            raise UserError(f"{flags[0]}: must not be above {flags[1]}")
