"""CorLoc: the surest box of each class in the images that show it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labelwise.detections import Detections
from labelwise.errors import UserError
from labelwise.metrics.corloc import CorLoc, correct_classes

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
NAMES = ("cat", "dog", "cow")


def found(*rows: tuple[int, float, Tensor]) -> Detections:
    return Detections(
        boxes=torch.cat([box for *_, box in rows]),
        labels=torch.tensor([label for label, *_ in rows]),
        scores=torch.tensor([score for _, score, _ in rows]),
    )


def corrects(detections: Detections, boxes: Tensor, *labels: int) -> list[bool]:
    return correct_classes(detections, boxes, torch.tensor(labels), len(NAMES)).tolist()


def test_only_the_surest_box_of_a_class_counts() -> None:
    assert corrects(found((0, 0.9, BOX + 50), (0, 0.8, BOX)), BOX, 0) == [False, False, False]
    assert corrects(found((0, 0.7, BOX + 50), (0, 0.8, BOX)), BOX, 0) == [True, False, False]
    assert corrects(found((1, 0.9, BOX), (0, 0.8, BOX)), BOX, 0) == [True, False, False]


def test_of_equal_scores_the_first_counts() -> None:
    assert corrects(found((0, 0.5, BOX), (0, 0.5, BOX + 50)), BOX, 0) == [True, False, False]
    assert corrects(found((0, 0.5, BOX + 50), (0, 0.5, BOX)), BOX, 0) == [False, False, False]


def test_any_object_of_the_class_will_do() -> None:
    assert corrects(found((0, 0.5, BOX)), torch.cat([BOX + 50, BOX]), 0, 0) == [True, False, False]
    assert corrects(found((0, 0.5, BOX)), torch.cat([BOX + 50, BOX]), 0, 1) == [False, False, False]


def test_overlap_of_exactly_one_half_is_not_enough() -> None:
    half = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
    assert corrects(found((0, 0.5, half)), BOX, 0) == [False, False, False]
    assert corrects(found((0, 0.5, half + torch.tensor([0, 0, 0, 0.01]))), BOX, 0) == [True, False, False]


def test_share_of_the_images_that_show_the_class() -> None:
    metric = CorLoc(NAMES)
    metric.update(found((0, 0.5, BOX), (1, 0.5, BOX)), torch.cat([BOX, BOX + 50]), torch.tensor([0, 1]))
    metric.update(found((0, 0.5, BOX + 50)), BOX, torch.tensor([0]))
    metric.update(Detections.none(), BOX, torch.tensor([0]))
    metric.update(found((0, 0.9, BOX)), BOX[:0], torch.zeros(0, dtype=torch.int64))
    results = metric.compute()
    assert results["corloc_of_classes"] == {"cat": pytest.approx(100 / 3), "dog": 0.0, "cow": None}
    assert results["corloc"] == pytest.approx(100 / 6) and results["images"] == 4


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_to_score() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        CorLoc(NAMES).compute()
