from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, nms

from labelwise.models.anchors import grid_anchors, make_anchors
from labelwise.models.boxes import clip_boxes, sides
from labelwise.models.region_proposals import RegionProposalNetwork, first_kept, propose, rpn_loss

SIZE = (96, 128)


def some_anchors() -> Tensor:
    return grid_anchors(make_anchors(8, scales=(2, 4)), 12, 16, 8)


def random_outputs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=random), 0.2 * torch.randn(count, 4, generator=random)


def test_the_network_of_vgg16_has_as_many_parameters_as_the_papers() -> None:
    with torch.device("meta"):
        network = RegionProposalNetwork(512, 9)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_387_510


def test_new_layers_start_small_and_without_bias() -> None:
    network = RegionProposalNetwork(64, 9, hidden=64)
    for layer in (network.conv, network.scores, network.offsets):
        assert abs(float(layer.weight.detach().std()) - 0.01) < 0.001
        assert not bool(layer.bias.any())


def test_a_score_is_paired_with_that_of_the_same_anchor_and_the_order_is_that_of_the_grid() -> None:
    network = RegionProposalNetwork(2, 3, hidden=4)
    hidden = torch.rand(2, 4, 5, 6)
    features = torch.zeros(2, 2, 5, 6)
    network.conv.forward = lambda _: hidden  # type: ignore[method-assign]
    scores, moved = network.scores(hidden), network.offsets(hidden)
    logits, offsets = network(features)
    assert logits.shape == (2, 5 * 6 * 3, 2) and offsets.shape == (2, 5 * 6 * 3, 4)
    for image, row, column, anchor in ((0, 0, 0, 0), (1, 2, 3, 1), (1, 4, 5, 2)):
        index = (row * 6 + column) * 3 + anchor
        assert torch.equal(logits[image, index], scores[image, [anchor, anchor + 3], row, column])
        assert torch.equal(offsets[image, index], moved[image, 4 * anchor : 4 * anchor + 4, row, column])


def test_uniform_logits_cost_ln_2_whatever_the_number_of_anchors() -> None:
    labels = torch.tensor([1, 0, -1, 0, -1])
    terms = rpn_loss(torch.zeros(5, 2), torch.zeros(5, 4), labels, torch.zeros(5, 4))
    assert math.isclose(float(terms["scores"]), math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize(("distance", "loss"), [(0.1, 0.5 * 9 * 0.01), (1 / 9, 1 / 18), (1.0, 1 - 1 / 18)])
def test_offsets_are_quadratic_up_to_a_ninth_and_linear_beyond(distance: float, loss: float) -> None:
    targets = torch.zeros(2, 4)
    targets[0, 2] = distance
    terms = rpn_loss(torch.zeros(2, 2), torch.zeros(2, 4), torch.tensor([1, 0]), targets)
    assert math.isclose(float(terms["offsets"]), loss / 2, rel_tol=1e-5)


def test_without_objects_nothing_is_learned_of_the_offsets() -> None:
    logits, offsets = (tensor.requires_grad_() for tensor in random_outputs(6))
    terms = rpn_loss(logits, offsets, torch.tensor([0, 0, -1, 0, 0, -1]), torch.ones(6, 4))
    torch.stack(list(terms.values())).sum().backward()
    assert float(terms["offsets"]) == 0
    assert offsets.grad is not None and not bool(offsets.grad.any())
    assert logits.grad is not None and logits.grad.any(dim=1).tolist() == [True, True, False, True, True, False]


def test_without_any_anchor_that_counts_the_loss_is_zero_and_can_still_be_derived() -> None:
    logits, offsets = (tensor.requires_grad_() for tensor in random_outputs(3))
    terms = rpn_loss(logits, offsets, torch.full((3,), -1), torch.zeros(3, 4))
    total = terms["scores"] + terms["offsets"]
    total.backward()
    assert float(total.detach()) == 0


def test_without_offsets_the_proposals_are_the_clipped_anchors() -> None:
    anchors = some_anchors()
    logits, _ = random_outputs(len(anchors))
    boxes, scores = propose(
        logits, torch.zeros(len(anchors), 4), anchors, SIZE, min_side=0, before=10**6, after=10**6, nms_threshold=1.0
    )
    order = logits.softmax(dim=1)[:, 1].argsort(descending=True, stable=True)
    torch.testing.assert_close(scores, logits.softmax(dim=1)[order, 1])
    torch.testing.assert_close(boxes, clip_boxes(anchors, SIZE)[order])


@given(st.integers(0, 10_000), st.floats(0, 30))
def test_proposals_are_ranked_large_enough_apart_and_within_the_image(seed: int, least: float) -> None:
    anchors = some_anchors()
    boxes, scores = propose(*random_outputs(len(anchors), seed), anchors, SIZE, min_side=least, before=400, after=50)
    assert len(boxes) == len(scores) <= 50
    assert torch.equal(scores, scores.sort(descending=True).values)
    assert bool((sides(boxes) >= least).all())
    assert torch.equal(clip_boxes(boxes, SIZE), boxes)
    overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
    assert not len(boxes) or float(overlaps.max()) <= 0.7


def test_a_box_is_clipped_before_its_size_is_judged_and_before_it_suppresses_others() -> None:
    anchors = torch.tensor([[-90.0, 0, 10, 40], [0.0, 0, 11, 40], [60.0, 10, 90, 50]])
    logits = torch.tensor([[0.0, 3], [0, 2], [0, 1]])
    offsets = torch.zeros(3, 4)
    boxes, _ = propose(logits, offsets, anchors, SIZE, min_side=11)
    assert boxes.tolist() == [[0, 0, 11, 40], [60, 10, 90, 50]]
    boxes, _ = propose(logits, offsets, anchors, SIZE, min_side=5)
    assert boxes.tolist() == [[0, 0, 10, 40], [60, 10, 90, 50]]


def test_only_the_best_are_looked_at_and_only_the_best_of_those_are_kept() -> None:
    anchors = torch.tensor([[0.0, 0, 40, 40], [0, 1, 40, 41], [50, 50, 90, 90], [0, 50, 40, 90]])
    logits = torch.stack([torch.zeros(4), torch.tensor([4.0, 3, 2, 1])], dim=1)
    numbers = [propose(logits, torch.zeros(4, 4), anchors, SIZE, before=n, after=m)[0] for n, m in ((3, 9), (9, 2))]
    assert numbers[0].tolist() == anchors[[0, 2]].tolist()
    assert numbers[1].tolist() == anchors[[0, 2]].tolist()


def test_no_gradient_passes_through_the_proposals() -> None:
    anchors = some_anchors()
    logits, offsets = (tensor.requires_grad_() for tensor in random_outputs(len(anchors)))
    boxes, scores = propose(logits, offsets, anchors, SIZE)
    assert not boxes.requires_grad and not scores.requires_grad


def test_there_may_be_no_proposal() -> None:
    anchors = some_anchors()
    boxes, scores = propose(*random_outputs(len(anchors)), anchors, SIZE, min_side=1000)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_the_first_that_are_kept_are_those_of_a_suppression_over_all(seed: int, most: int) -> None:
    random = torch.Generator().manual_seed(seed)
    corner = 30 * torch.rand(200, 2, generator=random)
    boxes = torch.cat([corner, corner + 20], dim=1)
    scores = torch.rand(200, generator=random).sort(descending=True).values
    assert torch.equal(first_kept(boxes, scores, 0.5, most), nms(boxes, scores, 0.5)[:most])
