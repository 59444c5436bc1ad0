"""COCO AP over 1,000 images and 50,000 boxes against pycocotools: agreement first, then times.

Both start from the same rows of numbers and build their annotations from them; ours then hands them to
faster-coco-eval. The peer is no dependency: `pip install pycocotools` for this benchmark alone.

    python benchmarks/coco_ap.py [--repetitions 3]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from typing import Any

import numpy as np
import torch

from labelwise.metrics.coco import box_average_precision
from timing import medians_ms, print_table
from voc_ap import CLASSES, IMAGES, Array, scenes

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError:
    COCO = None

GATE, DIGITS = 1.0, 9


def peer_average_precision(detections: Array, objects: Array) -> dict[str, float]:
    """AP, AP50 and AP75 in percent by pycocotools."""
    truth: Any = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(IMAGES)],
        "categories": [{"id": label} for label in range(CLASSES)],
        "annotations": [
            {
                "id": number,
                "image_id": int(row[0]),
                "category_id": int(row[1]),
                "iscrowd": int(row[2]),
                "bbox": [row[3], row[4], row[5] - row[3], row[6] - row[4]],
                "area": (row[5] - row[3]) * (row[6] - row[4]),
            }
            for number, row in enumerate(objects.astype(np.float64).tolist(), 1)
        ],
    }
    corners = detections[:, 3:].astype(np.float64)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(np.column_stack([detections[:, 0], boxes, detections[:, 2], detections[:, 1]]))
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    parts = {"coco_ap": precision, "coco_ap50": precision[0], "coco_ap75": precision[5]}
    return {name: 100 * float(part[part > -1].mean()) for name, part in parts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    if COCO is None:
        print("pycocotools is not installed; pip install pycocotools")
        return 2
    torch.set_num_threads(1)
    detections, objects = scenes()
    print(f"{IMAGES} images, {len(detections)} detections, {len(objects)} objects, {CLASSES} classes")
    mine, theirs = box_average_precision(detections, objects), peer_average_precision(detections, objects)
    difference = max(abs((mine[name] or 0.0) - value) for name, value in theirs.items())
    equal = difference < 0.5 * 10**-DIGITS
    print(f"largest difference of AP, AP50 and AP75, in percent: {difference:.1e}; equal to {DIGITS} decimals: {equal}")
    functions = {
        "ours": lambda: box_average_precision(detections, objects),
        "peer": lambda: peer_average_precision(detections, objects),
    }
    taken = medians_ms(functions, repetitions, clock=time.process_time, warm_up=0)
    ratio = taken["peer"] / taken["ours"]
    row = [f"{taken['peer']:.0f}", f"{taken['ours']:.0f}", f"{ratio:.1f}x", f"{GATE:g}x"]
    print_table("Processor time, ms", ["", "pycocotools", "ours", "ratio", "gate"], [["ten overlaps", *row]])
    met = equal and ratio >= GATE
    print("all gates met" if met else "NOT MET")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
