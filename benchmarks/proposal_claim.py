"""The claim of region proposal networks: they cover the objects with far fewer boxes than Selective Search.

    python benchmarks/proposal_claim.py DATA RUN [RUN ...] [--number 50] [--split val]

For each run of `faster_rcnn`: the recall of its best proposals at IoU 0.5 and 0.7, beside that of as many of its
anchors, drawn at random and cut at the border, and of the first proposals of Selective Search, as many and ten times as
many; and how many of these have the same recall. The runs are one network trained with several seeds. Exit code 0 when,
in the mean over the runs, random anchors are 30 points behind and ten times as many boxes of Selective Search are not
ahead, both at IoU 0.5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

import labelwise
from labelwise.methods.boxes.faster_rcnn import FasterRCNN
from labelwise.models.boxes import clip_boxes, scale_boxes
from labelwise.samples import Kind, Sample
from labelwise.saved import load_model
from labelwise.tasks.proposal_sources import ProposalSource
from timing import print_table

THRESHOLDS = (0.5, 0.7)
LEAD = 30.0


def objects_of(sample: Sample) -> Tensor:
    """The boxes to find, [M, 4]: those that are not difficult."""
    assert sample.boxes is not None
    boxes = sample.boxes.as_subclass(Tensor)
    return boxes if sample.difficult is None else boxes[~sample.difficult]


def ranks(objects: Sequence[Tensor], proposals: Sequence[Tensor], threshold: float) -> Tensor:
    """How many proposals are needed for each object until one covers it; infinite if none does. [objects] float."""
    found = []
    for boxes, candidates in zip(objects, proposals, strict=True):
        # A last column of its own, so that an image may have no proposals.
        covered = functional.pad(box_iou(boxes, candidates) >= threshold, (0, 1), value=True)
        first = covered.float().argmax(dim=1) + 1.0
        found.append(first.masked_fill(first > len(candidates), float("inf")))
    return torch.cat(found)


def recall(needed: Tensor, number: int) -> float:
    return 100 * float((needed <= number).float().mean())


@torch.no_grad()
def proposals_and_random(method: FasterRCNN, sample: Sample, number: int) -> tuple[Tensor, Tensor]:
    """The method's best proposals of an image, and as many of its anchors, drawn at random."""
    image = method.resized(sample.image)
    anchors = torch.cat(method.network(image).anchors)
    chosen = clip_boxes(anchors[torch.randperm(len(anchors))[:number]], image.shape[-2:])
    return method.propose(sample)[:number], scale_boxes(chosen, image.shape[-2:], sample.image.shape[-2:])


def boxes_for(needed: Tensor, percent: float) -> str:
    """The least number of boxes with this recall, as text."""
    ordered = needed.sort().values
    index = max(0, round(percent / 100 * len(ordered)) - 1)
    return f"{ordered[index]:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--number", type=int, default=50)
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    number = options.number
    dataset = labelwise.open(options.data)
    samples = [dataset.read(id, [Kind.BOXES]) for id in dataset.ids(options.split)]
    objects, search = [objects_of(sample) for sample in samples], ProposalSource("fast")
    boxes = [search(sample) for sample in samples]
    searched = {threshold: ranks(objects, boxes, threshold) for threshold in THRESHOLDS}
    columns = ["run", "IoU", f"RPN, {number}", f"random, {number}", f"search, {number}", f"search, {10 * number}"]
    rows, leads, gaps = [], [], []
    for folder in options.runs:
        method = load_model(folder)
        assert isinstance(method, FasterRCNN), f"{folder}: is no run of faster_rcnn"
        method.eval()
        torch.manual_seed(0)
        proposed, drawn = zip(*(proposals_and_random(method, sample, number) for sample in samples), strict=True)
        for threshold in THRESHOLDS:
            ours, random = (recall(ranks(objects, each, threshold), number) for each in (proposed, drawn))
            few, many = (recall(searched[threshold], count) for count in (number, 10 * number))
            texts = [f"{value:.1f}" for value in (ours, random, few, many)]
            rows.append([str(folder.name), str(threshold), *texts, boxes_for(searched[threshold], ours)])
            if threshold == THRESHOLDS[0]:
                leads.append(ours - random)
                gaps.append(ours - many)
    print_table(
        f"Recall in percent, {len(samples)} images, number of boxes per image",
        [*columns, "search for the same"],
        rows,
    )
    met = mean(leads) >= LEAD and mean(gaps) >= 0
    print(
        f"ahead of random anchors by {mean(leads):.1f} points, of ten times as many searched boxes by {mean(gaps):.1f}"
    )
    print(f"{LEAD:.0f} points, and no less than a search of ten times as many: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
