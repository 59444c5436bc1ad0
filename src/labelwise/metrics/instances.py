"""Average precision of masks, AP^r, in the three variants that papers on PASCAL VOC report, and COCO's.

SDS (Hariharan et al., ECCV 2014): a detection takes the object that it overlaps most among those not found yet; the
overlap must be above the threshold; area under the curve. MNC (Dai et al., CVPR 2016): as VOC's boxes of 2007, a
detection may only take the object that it overlaps most; 11 recalls. ESE-Seg (Xu et al., ICCV 2019; its published
code): as MNC, but of convex hulls instead of masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from labelwise.detections import Detections
from labelwise.errors import UserError
from labelwise.metrics.average_precision import (
    Floats,
    Integers,
    Matches,
    Pairs,
    Reading,
    average_precisions,
    best_of_groups,
    class_precisions,
    curve_points,
    match_best,
    match_free,
    percentages,
    ranked,
)
from labelwise.metrics.hulls import hull_overlaps
from labelwise.metrics.rows import Rows, RowsMetric

THRESHOLDS = (0.5, 0.7)
VOLUME = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""Over which AP^r_vol is the mean."""
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
COCO_MOST = 100
"""Detections per image and class that COCO looks at."""
Protocol = Literal["sds", "mnc", "ese_seg", "coco"]
PROTOCOLS: dict[Protocol, Reading] = {"sds": "area", "mnc": "voc07", "ese_seg": "voc07"}
"""The variants of AP^r and how they read the curve."""

_BLOCK = 2**24
"""Pixels of masks that are turned into floats at a time."""


class InstanceScores(RowsMetric):
    """Keeps what overlaps by how many pixels, never the masks."""

    images_with_hulls: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        """Start empty.

        Args:
            names: of the K classes.
        """
        super().__init__()
        self.names = tuple(names)
        # Place, class, score; place, class; place, detection, object, pixels of both and of either; ..., overlap.
        self.keep_rows("detections", 3)
        self.keep_rows("objects", 2)
        self.keep_rows("pairs", 5, torch.int64)
        self.keep_rows("hulls", 4)
        self.keep_total("images_with_hulls")

    def update(
        self,
        place: int,
        detections: Detections,
        instances: Tensor,
        labels: Tensor,
        void: Tensor | None = None,
        *,
        hulls: bool = False,
    ) -> None:
        """Add one image, also one without detections or objects.

        Args:
            place: the image's position among all, however many processes share them; breaks ties of scores.
            detections: what was found, with masks; labels are classes 0 to K - 1.
            instances: [G, H, W] bool, the objects.
            labels: [G] their classes, 0 to K - 1.
            void: [H, W] bool, pixels that are taken out of both masks first.
            hulls: also compare convex hulls, for the variant of ESE-Seg.

        Raises:
            UserError: the detections' masks have another size than the objects'.
        """
        masks = instances[:0] if detections.masks is None else detections.masks.to(instances.device)
        if masks.shape[1:] != instances.shape[1:]:
            raise UserError("the masks found differ from the image in size; predict at the image's own size")
        if void is not None:
            masks, instances = masks & ~void, instances & ~void
        same = detections.labels.to(labels.device)[:, None] == labels
        common, either = intersection_and_union(masks, instances)
        detection, chosen = ((common > 0) & same).nonzero(as_tuple=True)
        self.add_rows("detections", place, detections.labels, detections.scores)
        self.add_rows("objects", place, labels)
        self.add_rows("pairs", place, detection, chosen, common[detection, chosen], either[detection, chosen])
        self.images += 1
        if hulls:
            self.add_rows("hulls", place, *hull_overlaps(masks, instances, same, least=VOLUME[0]))
            self.images_with_hulls += 1

    def compute(self) -> dict[str, Any]:
        """`results` without the thorough ones."""
        return self._scores(*self.kept(), thorough=False)

    def results(self, *, thorough: bool) -> dict[str, Any]:
        """The scores of everything added so far, over all processes; every process must call it.

        Args:
            thorough: also the other variants, and curves.

        Returns:
            in percent: `map` (AP^r at 0.5 by the protocol of SDS), `ap` (class -> percent; None for a class without
            objects) and `images` (a number); if thorough also `map_r` (variant -> "0.5", "0.7" and "vol" -> percent;
            that of ESE-Seg if hulls were compared), `coco_ap`, `coco_ap50` and `coco_ap75`, and `curves` (class ->
            `recall` and `precision`).

        Raises:
            UserError: there is no object.
        """
        return self._scores(*self.gathered(), thorough=thorough)

    def _scores(self, totals: Mapping[str, int], rows: Mapping[str, Rows], *, thorough: bool) -> dict[str, Any]:
        ranking = _Ranking(rows, len(self.names))
        matches = ranking.matches("sds", (0.5,))
        mean, each = percentages(self.names, ranking.read(matches, "area")[0])
        results: dict[str, Any] = {"map": mean, "ap": each, "images": totals["images"]}
        if not thorough:
            return results
        known = [name for name in PROTOCOLS if name != "ese_seg" or totals["images_with_hulls"] == totals["images"]]
        results["map_r"] = {name: self._region_scores(ranking, name) for name in known}
        results |= self._coco_scores(ranking)
        precisions = class_precisions(matches, ranking.labels, len(self.names))[0]
        curves = zip(self.names, precisions, ranking.objects.tolist(), strict=True)
        results["curves"] = {name: curve_points(curve, count) for name, curve, count in curves if count}
        return results

    def _region_scores(self, ranking: _Ranking, protocol: Protocol) -> dict[str, float]:
        values = ranking.read(ranking.matches(protocol, VOLUME), PROTOCOLS[protocol])
        means = [percentages(self.names, value)[0] for value in values]
        return {"0.5": means[4], "0.7": means[6], "vol": sum(means) / len(means)}

    def _coco_scores(self, ranking: _Ranking) -> dict[str, float]:
        values = ranking.read(ranking.matches("coco", COCO_THRESHOLDS), "coco101")
        means = [percentages(self.names, value)[0] for value in values]
        return {"coco_ap": sum(means) / len(means), "coco_ap50": means[0], "coco_ap75": means[5]}


class _Ranking:
    """The detections of all images by rank, and what they overlap."""

    def __init__(self, rows: Mapping[str, Rows], classes: int) -> None:
        """Rank the rows that `InstanceScores` keeps, which are sorted by place."""
        detections, objects = rows["detections"], rows["objects"]
        order = ranked(detections[:, 2])
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self.labels = detections[order, 1].astype(np.int64)
        self.groups = detections[order, 0].astype(np.int64) * classes + self.labels
        self.objects = np.bincount(objects[:, 1].astype(np.int64), minlength=classes)
        self._places = detections[:, 0], objects[:, 0]
        self._rank = rank
        pairs, hulls = rows["pairs"], rows["hulls"]
        self.pixels = self._pairs(pairs, pairs[:, 3] / np.maximum(pairs[:, 4], 1))
        self.hulls = self._pairs(hulls.astype(np.int64), hulls[:, 3].astype(np.float64))

    def matches(self, protocol: Protocol, thresholds: Sequence[float]) -> Matches:
        """What became of the detections at each threshold."""
        pairs = self.hulls if protocol == "ese_seg" else self.pixels
        return match_masks(protocol, pairs, self.groups, int(self.objects.sum()), thresholds)

    def read(self, matches: Matches, reading: Reading) -> Floats:
        """Average precision at each threshold of each class, [T, K]."""
        return average_precisions(matches, self.labels, self.objects, reading)

    def _pairs(self, rows: Rows, overlap: Floats) -> Pairs:
        """Pairs of rows of place, detection and object, both numbered within their image."""
        firsts = [np.searchsorted(places, rows[:, 0], side="left") for places in self._places]
        detection, chosen = self._rank[firsts[0] + rows[:, 1]], firsts[1] + rows[:, 2]
        order = np.lexsort((chosen, detection))
        return Pairs(detection=detection[order], object=chosen[order], overlap=overlap[order])


def match_masks(
    protocol: Protocol, pairs: Pairs, groups: Integers, objects: int, thresholds: Sequence[float]
) -> Matches:
    """Match masks as one of the protocols does.

    Args:
        protocol: how.
        pairs: the overlaps, of pixels or of convex hulls (ESE-Seg).
        groups: [D] one number for each pair of image and class, of the detections by rank.
        objects: G.
        thresholds: overlaps, T of them.
    """
    detections = len(groups)
    if protocol == "sds":
        return match_free(pairs, detections, objects, thresholds)
    if protocol != "coco":
        return match_best(pairs, detections, np.zeros(objects, dtype=np.bool_), thresholds)
    seen = best_of_groups(groups, COCO_MOST)
    found = match_free(
        pairs[seen[pairs.detection]], detections, objects, thresholds, inclusive=True, last_of_equal=True
    )
    return Matches(hit=found.hit, counted=found.counted & seen)


def intersection_and_union(masks: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that pairs of masks share, and those of either. [N, H, W], [M, H, W] bool -> [N, M] int64 twice."""
    areas, other_areas = (values.flatten(1).sum(dim=1) for values in (masks, others))
    pixels = max(1, masks.shape[1] * masks.shape[2])
    # Products of floats are fast; they stay exact where autocast does not round them.
    with torch.autocast(masks.device.type, enabled=False):
        columns = others.flatten(1).float().t()
        blocks = masks.flatten(1).split(max(1, _BLOCK // pixels))
        common = torch.cat([block.float() @ columns for block in blocks]).round().long()
    return common, areas[:, None] + other_areas - common


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """IoU of pairs of masks; 0 where both are empty. [N, H, W], [M, H, W] bool -> [N, M] float64."""
    common, either = intersection_and_union(masks, others)
    return common.double() / either.clamp(min=1)
