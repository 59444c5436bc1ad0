"""What labels cost: seconds of a person's time for each kind of label, and the minutes that a label budget takes.

=============  =======  ==========  ==============================================================================
kind           seconds  for each    source
=============  =======  ==========  ==============================================================================
``masks``        239.7  image       Bearman et al., "What's the Point: Semantic Segmentation with Point Supervision",
                                    ECCV 2016: PASCAL VOC, 18.5 absent classes at 1 s and 2.8 objects at 79 s
``instances``     79.0  object      Lin et al., "Microsoft COCO", ECCV 2014: 22 hours for 1000 objects
``boxes``         34.5  box         Su, Deng, Fei-Fei, "Crowdsourcing Annotations for Visual Object Detection",
                                    AAAI workshop 2012: drawing and quality control
``points``         2.0  click       Shin et al., "All You Need Are a Few Pixels" (PixelPick), ICCV workshop 2021:
                                    the program chooses the pixel, the person names its class
``tags``          20.0  image       Bearman et al.: 20 classes at 1 s
``captions``      30.0  image       an estimate of our own for one sentence; no published figure
``maps``           0.0  image       none: a model makes them
=============  =======  ==========  ==============================================================================

The figures were measured on PASCAL VOC and COCO; `docs/label-costs.md` has others, and says how sure each of them is.
Where somebody has labelled the data set in the browser, the seconds that this took count instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from labelwise.datasets.journal import Measured
from labelwise.errors import UserError, did_you_mean
from labelwise.samples import DERIVABLE, Kind
from labelwise.supervision import Streams


@dataclass(frozen=True)
class Cost:
    """What one annotation of a kind takes.

    Attributes:
        seconds: a person's time.
        per: what is counted: image, object, box or click.
        source: where the figure was published.
    """

    seconds: float
    per: str
    source: str


COSTS: dict[Kind, Cost] = {
    Kind.MASKS: Cost(239.7, "image", "Bearman et al., ECCV 2016"),
    Kind.INSTANCES: Cost(79.0, "object", "Lin et al., ECCV 2014"),
    Kind.BOXES: Cost(34.5, "box", "Su et al., AAAI workshop 2012"),
    Kind.POINTS: Cost(2.0, "click", "Shin et al., ICCV workshop 2021"),
    Kind.TAGS: Cost(20.0, "image", "Bearman et al., ECCV 2016"),
    Kind.CAPTIONS: Cost(30.0, "image", "an estimate of our own"),
    Kind.MAPS: Cost(0.0, "image", "made by a model"),
}
"""The cost of every kind of label; the module's text has the sources in full."""


LEAST_MEASURED = 10
"""The fewest annotations of a kind whose mean time is taken for that of a person who knows the data."""


def parse_costs(pairs: Sequence[str]) -> dict[str, float]:
    """The seconds of ``KIND=SECONDS`` pairs, such as ``masks=60``.

    Raises:
        UserError: a pair is not of this form, or a kind comes twice.
    """
    costs: dict[str, float] = {}
    for pair in pairs:
        kind, equals, seconds = pair.partition("=")
        if not equals or not kind:
            raise UserError(f"--cost {pair}: must be KIND=SECONDS, such as masks=60")
        if kind in costs:
            raise UserError(f"--cost {pair}: gives {kind} twice; give it once")
        try:
            costs[kind] = float(seconds)
        except ValueError:
            raise UserError(f"--cost {pair}: '{seconds}' is no number of seconds; write {kind}=60") from None
    return costs


def sure_costs(measured: Mapping[Kind, Measured]) -> dict[str, float]:
    """Seconds for each kind of which somebody was timed on at least `LEAST_MEASURED` annotations."""
    return {kind.value: cost.seconds for kind, cost in measured.items() if cost.count >= LEAST_MEASURED}


def cost_table(own: Mapping[str, float], measured: Mapping[str, float] | None = None) -> dict[str, float]:
    """Seconds for each kind: the published ones, and those measured or given instead.

    Args:
        own: kind of label -> seconds for each image, object, box or click, as `COSTS` counts them.
        measured: the same, from `sure_costs`; what is given wins.

    Raises:
        UserError: an unknown kind, or no possible time.
    """
    for kind, seconds in own.items():
        if kind not in set(Kind):
            raise UserError(f"--cost {kind}={seconds:g}: no label kind '{kind}'{did_you_mean(kind, Kind)}")
        if not (math.isfinite(seconds) and seconds >= 0):
            raise UserError(f"--cost {kind}={seconds:g}: must be a finite number of seconds, 0 or more")
    return {kind.value: cost.seconds for kind, cost in COSTS.items()} | dict(measured or {}) | dict(own)


def drawn_kinds(streams: Streams, skipped: Collection[str] = ()) -> dict[str, frozenset[Kind]]:
    """For each image the kinds that a person has to draw.

    A kind that follows from another one on the same image takes no time: with ``masks:1/8+tags`` an image that has a
    mask needs no tags of its own.

    Args:
        streams: the images as a method may see them.
        skipped: ids that are left out.
    """
    kept = {id: kinds for id, kinds in streams.allowed.items() if id not in skipped}
    free = {kinds: kinds.difference(*(DERIVABLE[kind] for kind in kinds)) for kinds in set(kept.values())}
    return {id: free[kinds] for id, kinds in kept.items()}


def count_annotations(
    drawn: Mapping[str, frozenset[Kind]], objects: Mapping[str, int], clicks: Mapping[str, int]
) -> dict[str, int]:
    """How many annotations of each kind somebody has to make.

    Args:
        drawn: id -> kinds, from `drawn_kinds`.
        objects: id -> number of objects, for images with instances or boxes.
        clicks: id -> number of clicks, for images with points.

    Returns:
        kind -> number of what `COSTS` counts for it; kinds without any are left out.
    """
    counts: Counter[str] = Counter()
    for id, kinds in drawn.items():
        for kind in kinds:
            number = {"object": objects, "box": objects, "click": clicks}.get(COSTS[kind].per)
            counts[kind.value] += 1 if number is None else number[id]
    return {kind.value: counts[kind.value] for kind in Kind if counts[kind.value]}


def annotation_minutes(annotations: Mapping[str, int], costs: Mapping[str, float]) -> float:
    """Minutes of annotation: the sum over the kinds of number times seconds.

    Args:
        annotations: kind -> number, from `count_annotations`.
        costs: kind -> seconds, from `cost_table`.
    """
    return sum(number * costs[kind] for kind, number in annotations.items()) / 60
