"""YOLOv3: its size, which predictor learns what, closed forms of its losses, and what is kept."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from labelwise.models.darknet import create_darknet
from labelwise.models.yolo_v3 import (
    ANCHORS,
    Grids,
    Predictions,
    YoloHead,
    YoloV3,
    best_overlap,
    create_yolo,
    decode_centers,
    decode_predictions,
    make_grids,
    shape_overlap,
    surest,
    yolo_loss,
    yolo_targets,
)

CLASSES = 3


def yolo(name: str = "tiny", coefficients: int = 0, **options: object) -> YoloV3:
    return create_yolo(create_darknet(name, 16, None), name, CLASSES, coefficients, **options)  # type: ignore[arg-type]


def grids(side: int = 96) -> Grids:
    """Of the paper's nine anchors on three grids."""
    shapes = [(side // stride, side // stride) for stride in (8, 16, 32)]
    return make_grids(torch.tensor(ANCHORS, dtype=torch.float32), shapes, (8, 16, 32))


def random_boxes(count: int, side: int = 96, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 2, generator=generator) * side
    half = torch.rand(count, 2, generator=generator) * side / 3 + 1
    return torch.cat([middle - half, middle + half], dim=1)


def silent(batch: int = 1, where: Grids | None = None) -> Predictions:
    """Predictions that are all 0."""
    count = len((where or grids()).corners)
    sizes = (4, 0, 0, CLASSES)
    offsets, centers, coefficients, classes = (torch.zeros(batch, count, size) for size in sizes)
    return Predictions(offsets, centers, coefficients, torch.zeros(batch, count), classes)


# -------------------------------------------------------------------- network


def test_the_network_is_as_large_as_the_papers_on_80_classes() -> None:
    with torch.device("meta"):
        network = create_yolo(create_darknet("darknet53", 32, None), "darknet53", 80, 0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 61_949_149


@pytest.mark.parametrize(("name", "grids_", "anchors"), [("darknet53", 3, 9), ("darknet_tiny", 2, 6), ("tiny", 1, 9)])
def test_an_anchor_has_45_values_for_20_classes_and_18_coefficients(name: str, grids_: int, anchors: int) -> None:
    with torch.device("meta"):
        network = create_yolo(create_darknet(name, 16, None), name, 20, 18)
        values = network(torch.zeros(1, 3, 64, 64))
    assert sum(network.parts) == values.shape[-1] == 45
    assert len(network.heads) == grids_
    assert len(network.anchors) == anchors
    cells = sum((64 // stride) ** 2 for stride in network.strides)
    assert values.shape[1] == cells * anchors // grids_


def test_values_and_grids_are_in_the_same_order() -> None:
    network = yolo("darknet_tiny").eval()
    for number, head in enumerate(network.heads):
        assert isinstance(head, YoloHead) and head.predict.bias is not None
        head.predict.weight.data.zero_()
        # Of every anchor the first value tells the grid and the anchor.
        bias = head.predict.bias.data.view(3, -1)
        bias[:, 0] = 10 * number + torch.arange(3)
    values = network(torch.zeros(1, 3, 64, 96))[0, :, 0]
    where = network.grids((64, 96))
    assert len(values) == len(where.corners)
    # The heads are computed from the coarsest on, the anchors are listed from the finest on.
    grid, anchor = (1 - values.long() // 10), values.long() % 10
    assert where.strides.tolist() == [(16, 32)[each] for each in grid]
    assert torch.equal(where.sizes, network.anchors[3 * grid + anchor])
    fine = where.corners[where.strides == 16]
    assert fine[:: network.per_cell].tolist() == [[column, row] for row in range(4) for column in range(6)]


def test_without_its_shape_values_the_network_is_the_plain_detector() -> None:
    torch.manual_seed(0)
    with_shapes, plain = yolo(coefficients=18).eval(), yolo().eval()
    state = with_shapes.state_dict()
    kept = [*range(4), *range(24, 28)]
    for name in ("weight", "bias"):
        key = f"heads.0.predict.{name}"
        whole = state[key].view(9, 28, *state[key].shape[1:])
        state[key] = whole[:, kept].flatten(0, 1)
    plain.load_state_dict(state)
    image = torch.randn(2, 3, 64, 64)
    one, other = plain.split(plain(image)), with_shapes.split(with_shapes(image))
    torch.testing.assert_close(one.offsets, other.offsets)
    torch.testing.assert_close(one.objectness, other.objectness)
    torch.testing.assert_close(one.classes, other.classes)
    assert one.coefficients.shape[-1] == one.centers.shape[-1] == 0


def test_anchors_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="3 anchors cannot be shared by 2 grids"):
        yolo("darknet_tiny", anchors=((1, 1), (2, 2), (3, 3)))


# -------------------------------------------------------------------- targets


def test_each_object_is_learned_by_the_best_anchor_in_the_cell_of_its_middle() -> None:
    boxes, where = random_boxes(40), grids()
    for number, box in enumerate(boxes):
        targets = yolo_targets(box[None], torch.tensor([2]), where)
        (predictor,) = targets.predictors
        assert targets.images.tolist() == [2]
        size = box[2:] - box[:2]
        centered = torch.cat([-where.anchors / 2, where.anchors / 2], dim=1)
        overlaps = box_iou(torch.cat([-size / 2, size / 2])[None], centered)[0]
        assert torch.equal(where.sizes[predictor], where.anchors[overlaps.argmax()]), number
        corner = where.corners[predictor] * where.strides[predictor]
        inside = (box[:2] + box[2:]) / 2 - corner
        assert bool((inside >= 0).all()) and bool((inside < where.strides[predictor]).all())


def test_overlap_of_forms_is_that_of_centred_boxes() -> None:
    sizes, others = torch.rand(5, 2) + 0.1, torch.rand(4, 2) + 0.1
    expected = box_iou(torch.cat([-sizes, sizes], 1), torch.cat([-others, others], 1))
    torch.testing.assert_close(shape_overlap(sizes, others), expected)


def test_of_two_objects_of_one_predictor_the_last_is_learned() -> None:
    boxes = torch.tensor([[10.0, 10.0, 30.0, 40.0], [60.0, 60.0, 90.0, 90.0], [10.0, 10.0, 31.0, 41.0]])
    targets = yolo_targets(boxes, torch.zeros(3, dtype=torch.int64), grids())
    assert sorted(targets.objects.tolist()) == [1, 2]
    other = yolo_targets(boxes, torch.tensor([0, 0, 1]), grids())
    assert sorted(other.objects.tolist()) == [0, 1, 2]


def test_a_box_at_the_border_or_outside_has_a_predictor() -> None:
    boxes = torch.tensor([[90.0, 90.0, 102.0, 102.0], [-20.0, -20.0, 4.0, 4.0], [5.0, 5.0, 5.0, 5.0]])
    targets = yolo_targets(boxes, torch.zeros(3, dtype=torch.int64), grids())
    assert bool((targets.predictors >= 0).all())
    assert bool((targets.predictors < len(grids().corners)).all())


# --------------------------------------------------------------------- losses


def test_a_batch_without_objects_teaches_silence_alone() -> None:
    where, none = grids(), torch.zeros(0, dtype=torch.int64)
    targets = yolo_targets(torch.zeros(0, 4), none, where)
    terms = yolo_loss(silent(2), torch.zeros(0, 4), none, none, targets, where)
    assert float(terms.pop("objectness")) == pytest.approx(len(where.corners) * math.log(2), rel=1e-5)
    assert all(float(term) == 0 for term in terms.values())


def test_the_losses_of_one_object_are_those_of_the_paper() -> None:
    where = grids()
    box = torch.tensor([[21.0, 33.0, 53.0, 69.0]])
    images = torch.tensor([1])
    targets = yolo_targets(box, images, where)
    predictions = silent(2)
    terms = yolo_loss(predictions, box, torch.tensor([2]), images, targets, where)
    weight = 2 - 32 * 36 / 96**2
    width, height = where.sizes[targets.predictors[0]].tolist()
    overlap = best_overlap(decode_predictions(predictions.offsets, where), box, images)
    ignored = int((overlap > 0.7).sum()) - int(overlap[1, targets.predictors[0]] > 0.7)
    counted = 2 * len(where.corners) - ignored
    assert float(terms["objectness"]) == pytest.approx(counted * math.log(2) / 2, rel=1e-5)
    assert float(terms["place"]) == pytest.approx(weight * 2 * math.log(2) / 2, rel=1e-5)
    expected = weight * (abs(math.log(32 / width)) + abs(math.log(36 / height))) / 2
    assert float(terms["size"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["class"]) == pytest.approx(CLASSES * math.log(2) / 2, rel=1e-5)


def exact(boxes: Tensor, where: Grids) -> tuple[Predictions, Tensor]:
    """Predictions of one image that say the boxes, and which predictors do."""
    targets = yolo_targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), where)
    predictions, chosen = silent(1, where), boxes[targets.objects]
    middle = (chosen[:, :2] + chosen[:, 2:]) / 2 / where.strides[targets.predictors, None]
    place = (middle - where.corners[targets.predictors]).logit(eps=1e-6)
    size = ((chosen[:, 2:] - chosen[:, :2]) / where.sizes[targets.predictors]).log()
    predictions.offsets[0, targets.predictors] = torch.cat([place, size], dim=1)
    return predictions, targets.predictors


def test_what_is_learned_decodes_to_the_boxes() -> None:
    where = grids()
    boxes = random_boxes(12)
    predictions, predictors = exact(boxes, where)
    found = decode_predictions(predictions.offsets, where)[0, predictors]
    order = yolo_targets(boxes, torch.zeros(12, dtype=torch.int64), where).objects
    torch.testing.assert_close(found, boxes[order], atol=1e-3, rtol=1e-3)


def test_a_predictor_that_sees_anothers_object_well_is_not_taught() -> None:
    where = grids()
    box = torch.tensor([[21.0, 33.0, 53.0, 69.0]])
    images = torch.tensor([0])
    targets = yolo_targets(box, images, where)
    predictions, (own,) = exact(box, where)
    neighbor = int(own) - int(own) % 3 + (int(own) + 1) % 3
    # The neighbouring anchor says the same box.
    predictions.offsets[0, neighbor, :2] = predictions.offsets[0, own, :2]
    size = (box[0, 2:] - box[0, :2]) / where.sizes[neighbor]
    predictions.offsets[0, neighbor, 2:] = size.log()
    objectness = predictions.objectness.requires_grad_()
    yolo_loss(predictions, box, torch.tensor([0]), images, targets, where)["objectness"].backward()
    assert objectness.grad is not None
    assert float(objectness.grad[0, neighbor]) == 0
    assert float(objectness.grad[0, own]) == pytest.approx(-0.5)
    assert int((objectness.grad > 0).sum()) >= len(where.corners) - 10


def test_overlaps_are_with_the_objects_of_the_own_image() -> None:
    found = random_boxes(6).view(3, 2, 4)
    boxes, images = random_boxes(5, seed=1), torch.tensor([0, 0, 2, 2, 2])
    best = best_overlap(found, boxes, images)
    torch.testing.assert_close(best[0], box_iou(found[0], boxes[:2]).amax(1))
    torch.testing.assert_close(best[2], box_iou(found[2], boxes[2:]).amax(1))
    assert best[1].tolist() == [0, 0]


def test_inner_centers_are_measured_from_the_predicted_box() -> None:
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    sizes = torch.tensor([[30.0, 40.0]])
    logarithms = torch.tensor([[math.log(12 / 30), math.log(8 / 40)]])
    torch.testing.assert_close(decode_centers(logarithms, boxes, sizes), torch.tensor([[22.0, 28.0]]))


# ----------------------------------------------------------------- what is kept


def test_the_surest_are_kept_class_by_class() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(60), torch.rand(60, CLASSES, generator=generator)
    predictors, columns, values = surest(boxes, scores, 0.3, 0.45, 10**6, 100)
    expected = set()
    for column in range(CLASSES):
        above = (scores[:, column] > 0.3).nonzero()[:, 0]
        kept = above[nms(boxes[above], scores[above, column], 0.45)]
        expected |= {(int(row), column) for row in kept}
    assert set(zip(predictors.tolist(), columns.tolist(), strict=True)) == expected
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    torch.testing.assert_close(values, scores[predictors, columns])


def test_only_so_many_are_considered_and_kept() -> None:
    boxes = torch.arange(20.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    scores = torch.linspace(0.1, 0.9, 20)[:, None]
    assert surest(boxes, scores, 0.0, 0.5, 7, 100)[0].tolist() == [19, 18, 17, 16, 15, 14, 13]
    assert surest(boxes, scores, 0.0, 0.5, 400, 2)[0].tolist() == [19, 18]
    assert surest(boxes, scores, 0.9, 0.5, 400, 100)[0].tolist() == []
