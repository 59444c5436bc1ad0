"""Masks by the protocols of SDS, MNC, ESE-Seg and COCO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster, mask
from torch import Tensor

from labelwise.detections import Detections
from labelwise.errors import UserError
from labelwise.metrics import instances as module
from labelwise.metrics.instances import InstanceScores, intersection_and_union, mask_iou

SIDE = 48


def rectangle(left: int, top: int, right: int, bottom: int) -> Tensor:
    drawn = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    drawn[top:bottom, left:right] = True
    return drawn


def found(*rows: tuple[float, Tensor], label: int = 0) -> Detections:
    return Detections(
        boxes=torch.zeros(len(rows), 4),
        labels=torch.full((len(rows),), label),
        scores=torch.tensor([score for score, _ in rows]),
        masks=torch.stack([drawn for _, drawn in rows]),
    )


def results(detections: Detections, *objects: Tensor, void: Tensor | None = None) -> dict[str, Any]:
    metric = InstanceScores(("cat", "dog"))
    instances = torch.stack(objects)
    metric.update(0, detections, instances, torch.zeros(len(objects), dtype=torch.int64), void, hulls=True)
    return metric.results(thorough=True)


def test_perfect_masks_score_one_hundred_everywhere() -> None:
    drawn = rectangle(3, 3, 20, 20), rectangle(30, 5, 40, 40)
    scores = results(found((0.9, drawn[0]), (0.8, drawn[1])), *drawn)
    assert scores["map"] == scores["coco_ap"] == 100.0
    assert scores["map_r"] == {name: {"0.5": 100.0, "0.7": 100.0, "vol": 100.0} for name in ("sds", "mnc", "ese_seg")}
    assert scores["ap"] == {"cat": 100.0, "dog": None}


def test_sds_gives_a_second_choice_and_mnc_does_not() -> None:
    # Two objects that overlap; the second detection lies nearer to the one that is taken.
    objects = rectangle(0, 0, 30, 30), rectangle(0, 6, 30, 36)
    scores = results(found((0.9, objects[0]), (0.8, rectangle(0, 1, 30, 31))), *objects)
    assert scores["map_r"]["sds"]["0.5"] == scores["map"] == 100.0
    # Recall stays at one half: 6 of 11 points.
    assert scores["map_r"]["mnc"]["0.5"] == pytest.approx(600 / 11)
    assert scores["coco_ap50"] == 100.0


def test_sds_wants_more_than_the_threshold_and_the_others_do_not() -> None:
    scores = results(found((0.9, rectangle(0, 0, 10, 10))), rectangle(0, 0, 20, 10))
    assert scores["map"] == 0.0
    assert [scores["map_r"][name]["0.5"] for name in ("sds", "mnc", "ese_seg")] == [0.0, 100.0, 100.0]
    assert scores["coco_ap50"] == 100.0
    # Overlaps of 0.1 to 0.4 are reached by all, 0.5 not by SDS.
    assert scores["map_r"]["sds"]["vol"] == pytest.approx(400 / 9)
    assert scores["map_r"]["mnc"]["vol"] == pytest.approx(500 / 9)


def test_hulls_are_not_pixels() -> None:
    # A corner, and the square that fills it: a quarter of the pixels are missing, an eighth of the hull.
    corner = rectangle(0, 0, 40, 40) & ~rectangle(20, 20, 40, 40)
    scores = results(found((0.9, rectangle(0, 0, 40, 40))), corner & ~rectangle(20, 10, 40, 20))
    assert mask_iou(rectangle(0, 0, 40, 40)[None], (corner & ~rectangle(20, 10, 40, 20))[None]).item() == 0.625
    assert scores["map_r"]["mnc"]["0.7"] == 0.0
    assert scores["map_r"]["ese_seg"]["0.7"] == 100.0


def test_void_pixels_are_taken_out_of_both_masks() -> None:
    scores = results(found((0.9, rectangle(0, 0, 40, 10))), rectangle(10, 0, 20, 10), void=rectangle(20, 0, 48, 48))
    assert scores["map_r"]["mnc"]["0.5"] == 100.0
    assert scores["map_r"]["mnc"]["0.7"] == 0.0


def test_other_classes_are_not_compared() -> None:
    drawn = rectangle(0, 0, 10, 10)
    assert results(found((0.9, drawn), label=1), drawn)["map"] == 0.0


def test_images_without_detections_or_objects() -> None:
    metric = InstanceScores(("cat",))
    drawn = rectangle(0, 0, 10, 10)
    none = torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
    metric.update(0, Detections.none(), drawn[None], torch.tensor([0]), hulls=True)
    metric.update(1, found((0.9, drawn)), none, torch.zeros(0, dtype=torch.int64), hulls=True)
    metric.update(2, Detections.none(), none, torch.zeros(0, dtype=torch.int64), hulls=True)
    scores = metric.results(thorough=True)
    assert (scores["map"], scores["coco_ap"], scores["images"]) == (0.0, 0.0, 3)
    assert scores["curves"] == {"cat": {"recall": [], "precision": []}}


def test_without_any_object_there_is_nothing_to_score() -> None:
    metric = InstanceScores(("cat",))
    none = torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
    metric.update(0, Detections.none(), none, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="nothing to score"):
        metric.results(thorough=False)


def test_hulls_that_were_not_compared_everywhere_are_not_reported() -> None:
    metric = InstanceScores(("cat",))
    drawn = rectangle(0, 0, 10, 10)
    for place, hulls in enumerate((True, False)):
        metric.update(place, found((0.9, drawn)), drawn[None], torch.tensor([0]), hulls=hulls)
    assert metric.results(thorough=True)["map_r"].keys() == {"sds", "mnc"}


def test_masks_of_another_size_are_refused() -> None:
    metric = InstanceScores(("cat",))
    with pytest.raises(UserError, match="own size"):
        metric.update(0, found((0.9, rectangle(0, 0, 9, 9))), torch.zeros(1, 9, 9).bool(), torch.tensor([0]))


@pytest.mark.parametrize("block", [1, 2 * SIDE * SIDE, 2**24])
def test_pixels_are_counted_exactly_under_autocast_and_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(count, SIDE, SIDE, generator=random) < 0.5 for count in (5, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        common, either = intersection_and_union(first, second)
    assert torch.equal(common, (first[:, None] & second).flatten(2).sum(dim=2))
    assert torch.equal(either, (first[:, None] | second).flatten(2).sum(dim=2))


def blobs(random: np.random.Generator, count: int) -> Tensor:
    corners, sizes = random.integers(0, 30, (count, 2)), random.integers(6, 18, (count, 2))
    drawn = [rectangle(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners.tolist(), sizes.tolist(), strict=True)]
    return torch.stack(drawn) if drawn else torch.zeros(0, SIDE, SIDE, dtype=torch.bool)


def moved(random: np.random.Generator, masks: Tensor) -> Tensor:
    shifts = random.integers(-2, 3, (len(masks), 2)).tolist()
    rolled = [mask.roll(shift, dims=(0, 1)) for mask, shift in zip(masks, shifts, strict=True)]
    return torch.stack(rolled) if rolled else masks


def test_coco_reading_is_that_of_its_own_evaluator() -> None:
    """With ties of scores and overlaps, and more than 100 detections of a class in an image."""
    random = np.random.default_rng(0)
    metric = InstanceScores(("a", "b"))
    truth: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for place, (objects, detections, classes) in enumerate([(3, 8, 2), (0, 4, 2), (5, 130, 1), (4, 0, 2), (6, 20, 2)]):
        true, labels = blobs(random, objects), random.integers(0, classes, objects)
        chosen = random.integers(0, max(objects, 1), detections)
        source, of_source = (true, labels) if objects else (blobs(random, 1), np.zeros(1, dtype=np.int64))
        guessed, guessed_labels = moved(random, source[chosen]), of_source[chosen]
        scores = random.integers(1, 9, detections) / 8
        found = Detections(
            boxes=torch.zeros(detections, 4),
            labels=torch.from_numpy(guessed_labels),
            scores=torch.from_numpy(scores),
            masks=guessed,
        )
        metric.update(place, found, true, torch.from_numpy(labels))
        truth += [entry(place, label, drawn) | {"iscrowd": 0} for label, drawn in zip(labels, true, strict=True)]
        guesses += [
            entry(place, label, drawn) | {"score": float(score)}
            for label, drawn, score in zip(guessed_labels, guessed, scores, strict=True)
        ]
    ours = metric.results(thorough=True)
    coco = COCO(
        {
            "images": [{"id": place, "height": SIDE, "width": SIDE} for place in range(5)],
            "categories": [{"id": number, "name": str(number)} for number in range(2)],
            "annotations": [row | {"id": number} for number, row in enumerate(truth, 1)],
        }
    )
    evaluator = COCOeval_faster(coco, coco.loadRes(guesses), "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    expected = [100 * float(part.mean()) for part in (precision, precision[0], precision[5])]
    assert 5 < expected[0] < 95
    assert [ours[key] for key in ("coco_ap", "coco_ap50", "coco_ap75")] == pytest.approx(expected, abs=1e-9)


def entry(place: int, label: int, drawn: Tensor) -> dict[str, Any]:
    code = mask.encode(np.asfortranarray(drawn.numpy().astype(np.uint8)))
    return {"image_id": place, "category_id": int(label), "segmentation": code, "area": int(drawn.sum())}
