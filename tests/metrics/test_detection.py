"""Boxes by the protocol of VOC, over updates and over processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from labelwise.detections import Detections
from labelwise.errors import UserError
from labelwise.metrics.detection import DetectionScores
from labelwise.metrics.instances import InstanceScores
from labelwise.metrics.proposals import ProposalRecall

NAMES = ("cat", "dog", "cow")
Image = tuple[Detections, Tensor, Tensor, Tensor]


def image(seed: int, *, found: int = 6, objects: int = 3) -> Image:
    """Objects and detections near them, with scores of one digit so that there are ties."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 40, (objects, 2), generator=random).float()
    boxes = torch.cat([corner, corner + torch.randint(10, 24, (objects, 2), generator=random)], dim=1)
    labels = torch.randint(0, 2, (objects,), generator=random)
    difficult = torch.rand(objects, generator=random) < 0.2
    if not objects:
        return Detections.none(), boxes, labels, difficult
    chosen = torch.randint(0, objects, (found,), generator=random)
    detections = Detections(
        boxes=boxes[chosen] + torch.randint(-3, 4, (found, 4), generator=random),
        labels=labels[chosen],
        scores=torch.randint(1, 10, (found,), generator=random) / 10,
    )
    return detections, boxes, labels, difficult


def images() -> list[Image]:
    """With one image without objects, and one without detections."""
    return [image(0), image(1, objects=0), image(2, found=0), image(3, found=9), image(4)]


def scored(images: Sequence[tuple[int, Image]], *, thorough: bool = True) -> dict[str, Any]:
    metric = DetectionScores(NAMES, "voc07")
    for place, content in images:
        metric.update(place, *content)
    return metric.results(thorough=thorough)


def test_hand_case_of_difficult_objects() -> None:
    box, hard, shifted = (10.0, 10.0, 60.0, 60.0), (100.0, 100.0, 150.0, 150.0), (12.0, 10.0, 62.0, 60.0)
    metric = DetectionScores(("cat",), "voc07")
    none, one = torch.zeros(0, 4), torch.zeros(1, dtype=torch.int64)

    def found(*rows: tuple[float, tuple[float, ...]]) -> Detections:
        return Detections(
            boxes=torch.tensor([box for _, box in rows]),
            labels=torch.zeros(len(rows), dtype=torch.int64),
            scores=torch.tensor([score for score, _ in rows]),
        )

    metric.update(
        0,
        found((0.9, hard), (0.8, box), (0.7, shifted), (0.6, hard)),
        torch.tensor([box, hard]),
        torch.tensor([0, 0]),
        torch.tensor([False, True]),
    )
    second = (20.0, 20.0, 70.0, 70.0)
    metric.update(2, found((0.5, second)), none, one[:0], torch.zeros(0, dtype=torch.bool))
    missed = found((0.4, second), (0.3, (200.0, 200.0, 221.0, 221.0)))
    metric.update(1, missed, torch.tensor([second]), one, torch.tensor([False]))
    results = metric.results(thorough=True)
    assert results["images"] == 3
    assert results["map"] == results["map_voc07"] == pytest.approx(77.2727, abs=1e-4)
    assert results["map_area"] == pytest.approx(75.0)
    assert results["curves"] == {"cat": {"recall": [50.0, 100.0], "precision": [100.0, 50.0]}}


def test_brief_results_are_a_part_of_the_thorough_ones() -> None:
    whole = scored(list(enumerate(images())))
    brief = scored(list(enumerate(images())), thorough=False)
    assert brief == {key: whole[key] for key in ("map", "ap", "images")}
    assert whole.keys() - brief.keys() == {
        "map_voc07",
        "map_area",
        "map_70",
        "coco_ap",
        "coco_ap50",
        "coco_ap75",
        "curves",
    }
    assert whole["ap"]["cow"] is None and "cow" not in whole["curves"]
    assert whole["map_70"] <= whole["map"]


def test_order_of_updates_makes_no_difference() -> None:
    assert scored([*reversed(list(enumerate(images())))]) == scored(list(enumerate(images())))


def test_place_decides_between_equal_scores() -> None:
    box, labels, easy = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0]), torch.tensor([False])
    right = Detections(boxes=box, labels=labels, scores=torch.tensor([0.5]))
    wrong = Detections(boxes=box + 50, labels=labels, scores=torch.tensor([0.5]))
    values = []
    for places in ((0, 1), (1, 0)):
        metric = DetectionScores(NAMES, "area")
        for place, detections in zip(places, (right, wrong), strict=True):
            metric.update(place, detections, box, labels, easy)
        values.append(metric.results(thorough=False)["map"])
    assert values == [50.0, 25.0]


def test_no_detection_at_all_scores_zero() -> None:
    results = scored([(0, image(5, found=0)), (1, image(6, found=0))])
    assert (results["map"], results["coco_ap"]) == (0.0, 0.0)
    assert all(not curve["recall"] for curve in results["curves"].values())


def test_only_difficult_objects_cannot_be_scored() -> None:
    detections, boxes, labels, difficult = image(0)
    with pytest.raises(UserError, match="nothing to score"):
        scored([(0, (detections, boxes, labels, torch.ones_like(difficult)))])


def test_a_reset_metric_starts_again() -> None:
    metric = DetectionScores(NAMES, "voc07")
    metric.update(0, *image(0))
    metric.results(thorough=False)
    metric.reset()
    metric.update(0, *image(3))
    assert metric.results(thorough=False) == scored([(0, image(3))], thorough=False)


# ---------------------------------------------------------------------- processes


def results_of(rank: int, world: int) -> list[dict[str, Any]]:
    """What one of several processes says, each of which sees every so many-th image."""
    boxes, shapes, recall = DetectionScores(NAMES, "voc07"), InstanceScores(NAMES), ProposalRecall(NAMES)
    for place, (detections, true, labels, difficult) in list(enumerate(images()))[rank::world]:
        boxes.update(place, detections, true, labels, difficult)
        shapes.update(place, with_masks(detections), drawn(true), labels, hulls=True)
        recall.update(place, detections.boxes, true, labels)
    return [boxes.results(thorough=True), shapes.results(thorough=True), recall.compute()]


def drawn(boxes: Tensor) -> Tensor:
    masks = torch.zeros(len(boxes), 70, 70, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.clamp(0, 70).int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return masks


def with_masks(detections: Detections) -> Detections:
    masks = drawn(detections.boxes) if len(detections) else None
    return Detections(boxes=detections.boxes, labels=detections.labels, scores=detections.scores, masks=masks)


def say(rank: int, world: int, meeting: str, queue: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    queue.put(results_of(rank, world))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that need not import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# More processes than images: some see none.
@pytest.mark.parametrize("world", [2, 3, 7])
def test_any_number_of_processes_says_the_same(processes: ForkServerContext, tmp_path: Path, world: int) -> None:
    queue = processes.Queue()
    started = [
        processes.Process(target=say, args=(rank, world, str(tmp_path / "meeting"), queue)) for rank in range(world)
    ]
    for process in started:
        process.start()
    said = [queue.get(timeout=60) for _ in started]
    for process in started:
        process.join()
    alone = results_of(0, 1)
    assert all(results == alone for results in said)
