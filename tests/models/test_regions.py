"""Regions of a feature map: the pooling's exact cells, what is sampled, the losses, layers cut by their rank."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from labelwise.models.boxes import decode_boxes
from labelwise.models.regions import (
    FullyConnected,
    RegionHead,
    as_rois,
    best_overlaps,
    distinct_rois,
    fast_rcnn_loss,
    low_rank_linear,
    roi_align_pool,
    roi_max_pool,
    sample_rois,
    truncated_svd_linear,
)

SEEDS = st.integers(0, 2**31)


def random_boxes(count: int, side: float, generator: torch.Generator, least: float = 1.0) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * side
    size = least + torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + size], dim=1)


def away_from_zero(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def pooled_by_hand(feature: Tensor, box: list[float], stride: int, size: int) -> Tensor:
    """One region of [C, h, w] by the formulas of the paper's code, for a half-open box."""
    channels, height, width = feature.shape
    left, top, right, bottom = (away_from_zero(v / stride) for v in (box[0], box[1], box[2] - 1, box[3] - 1))
    columns, rows = max(right - left + 1, 1), max(bottom - top + 1, 1)
    out = torch.zeros(channels, size, size)
    for i in range(size):
        first, last = (i * rows) // size + top, math.ceil((i + 1) * rows / size) + top
        first, last = min(max(first, 0), height), min(max(last, 0), height)
        for j in range(size):
            start, end = (j * columns) // size + left, math.ceil((j + 1) * columns / size) + left
            start, end = min(max(start, 0), width), min(max(end, 0), width)
            if first < last and start < end:
                out[:, i, j] = feature[:, first:last, start:end].amax((1, 2))
    return out


class TestPooling:
    def test_a_region_of_as_many_cells_as_bins_is_the_map_itself(self) -> None:
        feature = torch.rand(1, 3, 7, 7)
        # The last pixel, 103, is rounded to cell 6; from 104 on it would be cell 7, which the map does not have.
        whole = torch.tensor([[0.0, 0.0, 104.0, 104.0]])
        assert torch.equal(roi_max_pool(feature, [whole], 16, 7), feature)

    def test_a_region_within_one_cell_is_constant(self) -> None:
        feature = torch.rand(1, 2, 6, 6)
        pooled = roi_max_pool(feature, [torch.tensor([[33.0, 17.0, 34.0, 18.0]])], 16, 7)
        assert torch.equal(pooled, feature[:, :, 1:2, 2:3].expand(1, 2, 7, 7))

    def test_a_region_is_read_from_its_own_image(self) -> None:
        feature = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
        box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
        pooled = roi_max_pool(feature, [box, box.repeat(2, 1)], 16, 2)
        assert pooled[:, 0, 0, 0].tolist() == [0, 1, 1]

    @given(SEEDS, st.sampled_from([4, 8, 16]), st.sampled_from([2, 5, 7]))
    def test_it_is_the_pooling_of_the_paper_also_beyond_the_map(self, seed: int, stride: int, size: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        feature = torch.randn(1, 2, 5, 6, generator=generator)
        boxes = random_boxes(8, 7.0 * stride, generator) - stride
        pooled = roi_max_pool(feature, [boxes], stride, size)
        for box, found in zip(boxes.tolist(), pooled, strict=True):
            torch.testing.assert_close(found, pooled_by_hand(feature[0], box, stride, size), rtol=0, atol=0)

    def test_the_gradient_goes_to_the_greatest_cell_and_is_summed_over_regions(self) -> None:
        feature = torch.zeros(1, 1, 4, 4)
        feature[0, 0, 1, 2] = 1.0
        feature.requires_grad_()
        box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
        roi_max_pool(feature, [box.repeat(3, 1)], 16, 1).sum().backward()
        assert feature.grad is not None
        assert feature.grad[0, 0, 1, 2] == 3 and feature.grad.sum() == 3

    def test_coordinates_keep_their_precision_in_half_precision(self) -> None:
        feature, box = torch.rand(1, 1, 80, 80), torch.tensor([[1013.0, 5.0, 1239.0, 1211.0]])
        exact = roi_max_pool(feature.bfloat16().float(), [box], 16, 7)
        assert torch.equal(roi_max_pool(feature.bfloat16(), [box], 16, 7), exact)

    def test_no_region_gives_no_rows_and_no_gradient(self) -> None:
        feature = torch.rand(2, 3, 4, 4, requires_grad=True)
        pooled = roi_max_pool(feature, [torch.zeros(0, 4), torch.zeros(0, 4)], 16, 7)
        assert pooled.shape == (0, 3, 7, 7)
        pooled.sum().backward()
        assert feature.grad is not None and not feature.grad.any()

    def test_align_reads_a_linear_map_at_the_centres_of_the_bins(self) -> None:
        columns = torch.arange(8.0).expand(1, 1, 8, 8)
        pooled = roi_align_pool(columns, [torch.tensor([[16.0, 16.0, 80.0, 80.0]])], 16, 2)
        # Cell c lies at pixel 16 c + 8; the bins' centres are pixels 32 and 64.
        torch.testing.assert_close(pooled[0, 0, 0], torch.tensor([1.5, 3.5]))

    @given(SEEDS, st.sampled_from([8, 16]))
    def test_regions_of_the_same_cells_are_pooled_once_and_nothing_changes(self, seed: int, stride: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        boxes = random_boxes(40, 50.0, generator)
        rois = as_rois([boxes, boxes + 1])
        feature = torch.rand(2, 1, 8, 8, generator=generator)
        distinct, position = distinct_rois(rois, stride)
        assert len(distinct) == len(distinct_rois(distinct, stride)[0]) <= len(rois)
        repeated = roi_max_pool(feature, distinct, stride, 3)[position]
        assert torch.equal(repeated, roi_max_pool(feature, rois, stride, 3))

    def test_near_regions_are_one(self) -> None:
        rois = as_rois([torch.tensor([[0.0, 0.0, 60.0, 60.0], [1.0, 2.0, 61.0, 59.0], [0.0, 0.0, 60.0, 90.0]])])
        distinct, position = distinct_rois(rois, 16)
        assert len(distinct) == 2 and position[0] == position[1] != position[2]


OPTIONS = {
    "count": 64,
    "foreground_share": 0.25,
    "foreground_threshold": 0.5,
    "background_low": 0.1,
    "background_high": 0.5,
}


class TestSampling:
    @given(SEEDS, st.integers(0, 4), st.integers(0, 300))
    def test_rows_are_what_they_are_labelled_as(self, seed: int, objects: int, proposals: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        boxes, labels = random_boxes(objects, 60.0, generator), torch.randint(3, (objects,), generator=generator)
        candidates = random_boxes(proposals, 60.0, generator)
        torch.manual_seed(seed)
        rois, found, targets = sample_rois(candidates, boxes, labels, **OPTIONS)
        foreground = found > 0
        overlap, nearest = best_overlaps(rois, boxes)
        assert len(rois) <= 64 and foreground.sum() <= 16
        assert len(rois.unique(dim=0)) == len(rois)
        assert bool((overlap[foreground] >= 0.5).all())
        assert bool(((overlap[~foreground] >= 0.1) & (overlap[~foreground] < 0.5)).all())
        assert torch.equal(found[foreground], labels[nearest[foreground]] + 1)
        assert not targets[~foreground].any()
        reached = decode_boxes(rois[foreground], targets[foreground])
        torch.testing.assert_close(reached, boxes[nearest[foreground]], rtol=1e-4, atol=1e-3)

    def test_the_batch_is_full_where_there_is_enough(self) -> None:
        boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0]])
        near = boxes + torch.randn(100, 4)
        aside = boxes + torch.tensor([20.0, 0.0, 20.0, 0.0]) + torch.randn(200, 4)
        labels = sample_rois(torch.cat([near, aside]), boxes, torch.tensor([1]), **OPTIONS).labels
        assert labels.tolist() == [2] * 16 + [0] * 48

    def test_objects_are_candidates_themselves(self) -> None:
        boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0]])
        rois, labels, targets = sample_rois(torch.zeros(0, 4), boxes, torch.tensor([0]), **OPTIONS)
        assert torch.equal(rois, boxes) and labels.tolist() == [1] and not targets.any()

    def test_an_image_without_objects_gives_nothing_unless_anything_is_background(self) -> None:
        proposals, none = torch.tensor([[0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 5.0, 5.0]]), torch.zeros(0, dtype=torch.int64)
        assert len(sample_rois(proposals, torch.zeros(0, 4), none, **OPTIONS).boxes) == 0
        sampled = sample_rois(proposals, torch.zeros(0, 4), none, **{**OPTIONS, "background_low": 0.0})
        assert sampled.labels.tolist() == [0, 0]

    def test_it_follows_the_global_seed(self) -> None:
        boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0]])
        proposals = boxes + 6 * torch.randn(300, 4)

        def drawn(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return sample_rois(proposals, boxes, torch.tensor([0]), **OPTIONS).boxes

        assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))

    @given(SEEDS)
    def test_the_best_overlap_is_that_of_the_nearest_object(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        candidates, boxes = random_boxes(9, 30.0, generator), random_boxes(3, 30.0, generator)
        overlap, nearest = best_overlaps(candidates, boxes)
        every = box_iou(candidates, boxes)
        assert torch.equal(overlap, every.amax(1)) and torch.equal(every[torch.arange(9), nearest], overlap)


class TestLoss:
    def test_even_scores_cost_the_logarithm_of_the_number_of_classes(self) -> None:
        terms = fast_rcnn_loss(
            torch.zeros(5, 21), torch.zeros(5, 84), torch.tensor([0, 3, 0, 1, 20]), torch.zeros(5, 4)
        )
        assert terms["classification"].item() == pytest.approx(math.log(21))
        assert terms["boxes"] == 0

    @pytest.mark.parametrize(("difference", "cost"), [(0.5, 0.125), (2.0, 1.5), (-2.0, 1.5), (1.0, 0.5)])
    def test_smooth_l1_is_divided_by_all_regions(self, difference: float, cost: float) -> None:
        offsets = torch.full((4, 12), 99.0)
        offsets[1, 4:8] = torch.tensor([difference, 0.0, 0.0, 0.0])
        terms = fast_rcnn_loss(torch.zeros(4, 3), offsets, torch.tensor([0, 1, 0, 0]), torch.zeros(4, 4), weight=3.0)
        assert terms["boxes"].item() == pytest.approx(3 * cost / 4)

    def test_beta_is_where_it_becomes_linear(self) -> None:
        offsets = torch.zeros(1, 8)
        offsets[0, 4] = 1.0
        terms = fast_rcnn_loss(torch.zeros(1, 2), offsets, torch.tensor([1]), torch.zeros(1, 4), beta=1 / 9)
        assert terms["boxes"].item() == pytest.approx(1 - 1 / 18)

    def test_background_teaches_no_offsets_and_objects_only_those_of_their_class(self) -> None:
        head = RegionHead(nn.Flatten(), 8, 2)
        pooled, labels = torch.rand(3, 2, 2, 2), torch.zeros(3, dtype=torch.int64)
        sum(fast_rcnn_loss(*head(pooled), labels, torch.ones(3, 4)).values()).backward()  # type: ignore[union-attr]
        assert head.offsets.weight.grad is not None and not head.offsets.weight.grad.any()
        labels[1] = 2
        sum(fast_rcnn_loss(*head(pooled), labels, torch.ones(3, 4)).values()).backward()  # type: ignore[union-attr]
        taught = head.offsets.weight.grad.unflatten(0, (3, 4)).abs().sum((1, 2))
        assert taught[2] > 0 and not taught[:2].any()

    def test_no_region_costs_nothing(self) -> None:
        logits, offsets = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 12, requires_grad=True)
        terms = fast_rcnn_loss(logits, offsets, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
        assert terms["classification"] == 0 and terms["boxes"] == 0
        (terms["classification"] + terms["boxes"]).backward()


class TestHead:
    def test_its_random_weights_are_the_papers(self) -> None:
        torch.manual_seed(0)
        head = RegionHead(nn.Flatten(), 4096, 20)
        assert head.scores.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert head.offsets.weight.std().item() == pytest.approx(0.001, rel=0.02)
        assert not head.scores.bias.any() and not head.offsets.bias.any()
        assert head.scores.weight.shape == (21, 4096) and head.offsets.weight.shape == (84, 4096)

    def test_a_region_of_the_whole_image_is_classified_as_the_image_alone(self) -> None:
        feature, layers = torch.rand(1, 4, 14, 14), FullyConnected(4, 7, (16, 8)).eval()
        head = RegionHead(layers, 8, 3)
        alone = head(functional.max_pool2d(feature, 2))
        cut_out = head(roi_max_pool(feature, [torch.tensor([[0.0, 0.0, 216.0, 216.0]])], 16, 7))
        assert all(torch.equal(one, other) for one, other in zip(alone, cut_out, strict=True))

    def test_plain_offsets_undo_the_normalisation_of_the_targets(self) -> None:
        head = RegionHead(nn.Flatten(), 8, 2)
        head.set_statistics(torch.rand(3, 4), 0.1 + torch.rand(3, 4))
        targets, labels = torch.randn(3, 4), torch.tensor([1, 2, 0])
        normal = head.normalized(targets, labels)
        plain = head.plain(normal.repeat(1, 3))
        torch.testing.assert_close(plain[torch.arange(2), labels[:2]], targets[:2])
        assert torch.equal(normal[2], targets[2])

    def test_the_statistics_are_saved_with_the_weights(self) -> None:
        assert {"offset_mean", "offset_deviation"} <= RegionHead(nn.Flatten(), 8, 2).state_dict().keys()


class TestTruncatedSvd:
    @pytest.mark.parametrize("sides", [(6, 9), (9, 6)])
    def test_full_rank_is_exact(self, sides: tuple[int, int]) -> None:
        layer, x = nn.Linear(*sides), torch.randn(5, sides[0])
        torch.testing.assert_close(truncated_svd_linear(layer, 6)(x), layer(x), rtol=1e-4, atol=1e-5)

    @given(st.integers(1, 5))
    def test_no_layer_of_that_rank_is_nearer(self, rank: int) -> None:
        layer = nn.Linear(8, 6)
        pair = truncated_svd_linear(layer, rank)
        product = pair.get_parameter("1.weight") @ pair.get_parameter("0.weight")
        dropped = torch.linalg.svdvals(layer.weight)[rank:].square().sum()
        torch.testing.assert_close((product - layer.weight).square().sum(), dropped, rtol=1e-3, atol=1e-6)

    def test_its_weights_are_fewer(self) -> None:
        pair = low_rank_linear(9, 6, 2)
        assert sum(parameter.numel() for parameter in pair.parameters()) == 2 * (9 + 6) + 6

    @pytest.mark.parametrize("rank", [0, 7])
    def test_an_impossible_rank_is_refused(self, rank: int) -> None:
        with pytest.raises(ValueError, match="between 1 and 6"):
            truncated_svd_linear(nn.Linear(9, 6), rank)

    def test_compressed_layers_have_the_form_in_which_they_are_built_for_prediction(self) -> None:
        layers = FullyConnected(4, 3, (12, 10)).eval()
        pooled = torch.rand(2, 4, 3, 3)
        before = layers(pooled)
        layers.compress(layers.full_ranks)
        built = FullyConnected(4, 3, (12, 10), ranks=layers.full_ranks).eval()
        built.load_state_dict(layers.state_dict())
        torch.testing.assert_close(built(pooled), before, rtol=1e-4, atol=1e-5)
        layers.compress(layers.full_ranks)
        assert layers.state_dict().keys() == built.state_dict().keys()

    def test_rank_0_leaves_a_layer_as_it_is(self) -> None:
        layers = FullyConnected(4, 3, (12, 10))
        layers.compress((5, 0))
        assert isinstance(layers.fc6, nn.Sequential) and isinstance(layers.fc7, nn.Linear)
