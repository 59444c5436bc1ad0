"""Selective Search on VOC 2007: what the modes find, and `fast` against the fast mode of OpenCV contrib.

Agreement first: recall at IoU 0.5 of both sides' best boxes, as many of each image as the side with fewer has. Both are
given the image at R-CNN's 500 pixels of width, on one thread, and boxes below 20 pixels are dropped from both. Then the
boxes, recall and mean average best overlap (MABO: the mean over classes) of our modes on boxes that are not difficult,
beside what the paper tells of VOC 2007 test.

The environment variable LABELWISE_DATA names a folder with VOCdevkit/VOC2007. Without the peer, the modes alone.

    python benchmarks/selective_search.py [--images 36] [--quality-images 12]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from labelwise.datasets.voc import VOC
from labelwise.models.selective_search import MODES, Mode, selective_search_regions
from labelwise.samples import Kind, Sample
from timing import print_table

try:
    import cv2
except ImportError:
    cv2 = None

WIDTH, LEAST_SIDE = 500, 20
PAPER = {"single": "about 360, MABO 0.69", "fast": "about 2150, MABO 0.80", "quality": "about 10100, MABO 0.88"}
POINT, GATE = 1.0, 2.0


@dataclass
class Case:
    """An image [H, W, 3] at R-CNN's width, and its objects' boxes in it."""

    image: NDArray[np.uint8]
    boxes: torch.Tensor
    labels: list[int]


def cases(count: int) -> list[Case]:
    data = VOC(Path(os.environ["LABELWISE_DATA"]) / "VOCdevkit/VOC2007")
    ids = sorted(data.ids("val"))
    return [case_of(data.read(id, frozenset({Kind.BOXES}))) for id in ids[:: max(1, len(ids) // count)][:count]]


def case_of(sample: Sample) -> Case:
    assert sample.boxes is not None and sample.box_labels is not None and sample.difficult is not None
    height, width = sample.image.shape[-2:]
    picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    new_height = round(height * WIDTH / width)
    image = np.array(picture.resize((WIDTH, new_height), Image.Resampling.BICUBIC))
    ratio = torch.tensor([WIDTH / width, new_height / height] * 2)
    easy = ~sample.difficult
    return Case(image, sample.boxes.as_subclass(torch.Tensor)[easy] * ratio, sample.box_labels[easy].tolist())


def opencv_fast(image: NDArray[np.uint8]) -> torch.Tensor:
    search: Any = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    boxes = torch.from_numpy(search.process()).float()
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    return boxes[((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(dim=1)]


def ours(mode: Mode) -> Callable[[NDArray[np.uint8]], torch.Tensor]:
    return lambda image: torch.from_numpy(selective_search_regions(image, mode).boxes)


def timed(search: Callable[[NDArray[np.uint8]], torch.Tensor], case: Case) -> tuple[torch.Tensor, float]:
    start = time.process_time()
    boxes = search(case.image)
    return boxes, time.process_time() - start


def overlaps(found: Sequence[torch.Tensor], chosen: Sequence[Case]) -> tuple[float, float]:
    """Recall at IoU 0.5 in percent, and MABO."""
    best: dict[int, list[float]] = defaultdict(list)
    for boxes, case in zip(found, chosen, strict=True):
        for label, overlap in zip(case.labels, box_iou(case.boxes, boxes).amax(dim=1).tolist(), strict=True):
            best[label].append(overlap)
    every = [overlap for values in best.values() for overlap in values]
    recall = 100 * statistics.mean(overlap >= 0.5 for overlap in every)
    return recall, statistics.mean(statistics.mean(values) for values in best.values())


def show_modes(chosen: Sequence[Case], quality_images: int) -> None:
    rows = []
    for mode in MODES:
        part = chosen[:quality_images] if mode == "quality" else chosen
        results = [timed(ours(mode), case) for case in part]
        recall, mabo = overlaps([boxes for boxes, _ in results], part)
        count = statistics.mean(len(boxes) for boxes, _ in results)
        seconds = statistics.median(taken for _, taken in results)
        row = [mode, f"{len(part)}", f"{count:.0f}", f"{recall:.1f}", f"{mabo:.3f}", f"{seconds:.2f}", PAPER[mode]]
        rows.append(row)
    columns = ["mode", "images", "boxes", "recall, %", "MABO", "cpu, s", "paper, VOC 2007 test"]
    print_table("VOC 2007 val, boxes per image", columns, rows)


def compare(chosen: Sequence[Case]) -> bool:
    """Print both sides at the same number of boxes; whether recall and time are as they should be."""
    pairs = [(timed(ours("fast"), case), timed(opencv_fast, case)) for case in chosen]
    counts = [min(len(ours), len(peer)) for (ours, _), (peer, _) in pairs]
    rows, recalls, seconds = [], [], []
    for name, results in zip(("this", "OpenCV contrib"), zip(*pairs, strict=True), strict=True):
        all_recall, all_mabo = overlaps([boxes for boxes, _ in results], chosen)
        recall, mabo = overlaps([boxes[:count] for (boxes, _), count in zip(results, counts, strict=True)], chosen)
        count = statistics.mean(len(boxes) for boxes, _ in results)
        recalls.append(recall)
        seconds.append(sum(taken for _, taken in results))
        row = [name, f"{count:.0f}", f"{all_recall:.1f}", f"{all_mabo:.3f}"]
        rows.append([*row, f"{recall:.1f}", f"{mabo:.3f}", f"{1000 * seconds[-1] / len(chosen):.0f}"])
    columns = ["fast mode", "boxes", "recall, %", "MABO", "recall, same count", "MABO, same count", "cpu, ms per image"]
    print_table(
        f"{len(chosen)} images, {statistics.mean(counts):.0f} boxes each where counts are the same", columns, rows
    )
    ratio = seconds[0] / seconds[1]
    met = recalls[0] >= recalls[1] - POINT and ratio <= GATE
    gates = f"recall within {POINT:g} point, at most {GATE:g} times as long"
    print(f"time: {ratio:.2f} of the peer's; {gates}: {'met' if met else 'NOT MET'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=36)
    parser.add_argument("--quality-images", type=int, default=12)
    options = parser.parse_args()
    if not (Path(os.environ.get("LABELWISE_DATA", "")) / "VOCdevkit/VOC2007").is_dir():
        print("LABELWISE_DATA names no folder with VOCdevkit/VOC2007", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    chosen = cases(options.images)
    for mode in MODES:
        selective_search_regions(chosen[0].image[:64, :64], mode)
    met = True
    if cv2 is None:
        print("OpenCV contrib (opencv-contrib-python-headless) is not installed: our modes alone")
    else:
        cv2.setNumThreads(1)
        met = compare(chosen)
    show_modes(chosen, options.quality_images)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
