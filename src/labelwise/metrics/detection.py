"""Average precision of boxes by the protocol of PASCAL VOC, and COCO's beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from labelwise.detections import Detections
from labelwise.metrics.average_precision import (
    Matches,
    average_precisions,
    class_precisions,
    curve_points,
    match_best,
    pairs_of_boxes,
    percentages,
    ranked,
)
from labelwise.metrics.coco import box_average_precision
from labelwise.metrics.rows import Rows, RowsMetric

THRESHOLDS = (0.5, 0.7)


class DetectionScores(RowsMetric):
    """Keeps all detections and objects; a class ranks the detections of the whole set.

    An overlap of exactly the threshold is enough, as in VOC's devkit.
    """

    def __init__(self, names: Sequence[str], reading: Literal["voc07", "area"]) -> None:
        """Start empty.

        Args:
            names: of the K classes.
            reading: of the precision-recall curve: at 11 recalls (VOC 2007), or its area (VOC 2010 and later).
        """
        super().__init__()
        self.names = tuple(names)
        self.reading = reading
        # Place, class, score, box; place, class, difficult, box.
        self.keep_rows("detections", 7)
        self.keep_rows("objects", 7)

    def update(self, place: int, detections: Detections, boxes: Tensor, labels: Tensor, difficult: Tensor) -> None:
        """Add one image, also one without detections or objects.

        Args:
            place: the image's position among all, however many processes share them; breaks ties of scores.
            detections: what was found; labels are classes 0 to K - 1.
            boxes: [G, 4] half-open XYXY, the objects.
            labels: [G] their classes, 0 to K - 1.
            difficult: [G] bool; such objects are neither to be found nor wrong to find.
        """
        self.add_rows("detections", place, detections.labels, detections.scores, detections.boxes)
        self.add_rows("objects", place, labels, difficult, boxes)
        self.images += 1

    def compute(self) -> dict[str, Any]:
        """`results` without the thorough ones."""
        return self._scores(*self.kept(), thorough=False)

    def results(self, *, thorough: bool) -> dict[str, Any]:
        """The scores of everything added so far, over all processes; every process must call it.

        Args:
            thorough: also the other protocols, and curves.

        Returns:
            in percent: `map`, `ap` (class -> percent; None for a class without objects that count) and `images` (a
            number); if thorough also `map_voc07` and `map_area` (by both readings), `map_70` (at an overlap of 0.7),
            `coco_ap`, `coco_ap50` and `coco_ap75`, and `curves` (class -> `recall` and `precision`).

        Raises:
            UserError: there is no object that counts.
        """
        return self._scores(*self.gathered(), thorough=thorough)

    def _scores(self, totals: Mapping[str, int], rows: Mapping[str, Rows], *, thorough: bool) -> dict[str, Any]:
        detections, objects = rows["detections"], rows["objects"]
        detections = detections[ranked(detections[:, 2])]
        labels = detections[:, 1].astype(np.int64)
        matches = self._matches(detections, objects, THRESHOLDS if thorough else THRESHOLDS[:1])
        counts = np.bincount(objects[objects[:, 2] == 0, 1].astype(np.int64), minlength=len(self.names))
        values = average_precisions(matches, labels, counts, self.reading)
        mean, each = percentages(self.names, values[0])
        results: dict[str, Any] = {"map": mean, "ap": each, **totals}
        if not thorough:
            return results
        for reading in ("voc07", "area"):
            read = average_precisions(matches, labels, counts, reading)[0]
            results[f"map_{reading}"] = percentages(self.names, read)[0]
        results["map_70"] = percentages(self.names, values[1])[0]
        results |= box_average_precision(detections, objects)
        curves = zip(self.names, class_precisions(matches, labels, len(counts))[0], counts.tolist(), strict=True)
        results["curves"] = {name: curve_points(curve, count) for name, curve, count in curves if count}
        return results

    def _matches(self, detections: np.ndarray, objects: np.ndarray, thresholds: Sequence[float]) -> Matches:
        groups, object_groups = (
            (rows[:, 0].astype(np.int64) * len(self.names) + rows[:, 1].astype(np.int64))
            for rows in (detections, objects)
        )
        pairs = pairs_of_boxes(detections[:, 3:], groups, objects[:, 3:], object_groups)
        return match_best(pairs, len(detections), objects[:, 2] != 0, thresholds)
