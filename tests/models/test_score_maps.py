"""Grids whose corners are those of the image: padding, picked labels, fused scales, predictions of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labelwise.models.backbones import create_backbone
from labelwise.models.inference import scaled_size
from labelwise.models.score_maps import (
    ScoreMapNetwork,
    fused_scores,
    pad_to_grid,
    pick_labels,
    resize_align_corners,
    shrink_labels,
)


def labels_of(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, height, width), generator=generator, dtype=torch.uint8)


@given(rows=st.integers(0, 5), columns=st.integers(0, 5), stride=st.sampled_from([4, 8, 16]))
def test_labels_picked_on_the_grid_of_a_stride_are_the_shrunken_ones(rows: int, columns: int, stride: int) -> None:
    labels = labels_of(rows * stride + 1, columns * stride + 1)
    assert torch.equal(pick_labels(labels, (rows + 1, columns + 1)), shrink_labels(labels, stride))


def test_the_papers_grids_take_every_eighth_label_from_0_to_320() -> None:
    labels = torch.arange(321)[None, None].expand(1, 1, 321)
    assert shrink_labels(labels).flatten().tolist() == list(range(0, 321, 8))
    assert pick_labels(labels, (1, 41)).flatten().tolist() == list(range(0, 321, 8))
    assert pick_labels(labels, (1, 21)).flatten().tolist() == list(range(0, 321, 16))
    quarters = pick_labels(labels, (1, 31)).flatten().tolist()
    assert quarters[:4] == [0, 11, 21, 32]
    assert quarters[-1] == 320


@given(height=st.integers(1, 40), width=st.integers(1, 40), rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_any_grid_takes_the_nearest_labels_and_mixes_none(height: int, width: int, rows: int, columns: int) -> None:
    places = torch.arange(height)[:, None] * width + torch.arange(width)
    found = pick_labels(places[None], (rows, columns))[0]
    for picked, length, count in ((found[:, 0] // width, height, rows), (found[0] % width, width, columns)):
        exact = torch.linspace(0, length - 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1)
        assert (picked - exact).abs().max() <= 0.5 + 1e-9


@given(height=st.integers(1, 70), width=st.integers(1, 70), stride=st.sampled_from([1, 8, 32]))
def test_padding_reaches_the_next_grid_and_keeps_what_is_there(height: int, width: int, stride: int) -> None:
    x = torch.ones(1, 2, height, width)
    padded = pad_to_grid(x, stride, value=7)
    rows, columns = padded.shape[-2:]
    assert (rows - 1) % stride == (columns - 1) % stride == 0
    assert 0 <= rows - height < stride and 0 <= columns - width < stride
    assert torch.equal(padded[..., :height, :width], x)
    assert padded.sum() == x.sum() + 7 * (padded.numel() - x.numel())


def test_resizing_keeps_the_points_of_the_grid() -> None:
    x = torch.randn(1, 3, 5, 7)
    torch.testing.assert_close(resize_align_corners(x, (33, 49))[..., ::8, ::8], x)


def test_the_papers_scales_of_321_pixels_are_241_and_161() -> None:
    assert [scaled_size(321, scale) for scale in (1, 0.75, 0.5)] == [321, 241, 161]


def test_the_maximum_is_no_less_than_any_scale_and_acts_on_scores() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=8, padding=1)
    image = torch.randn(2, 3, 65, 97)
    maps, fused = fused_scores(conv, image, (1.0, 0.75, 0.5))
    assert [tuple(each.shape[-2:]) for each in maps] == [(9, 13), (7, 10), (5, 7)]
    resized = torch.stack([resize_align_corners(each, (9, 13)) for each in maps])
    assert (fused >= resized).all()
    assert torch.equal(fused, resized.max(0).values)


def test_the_gradient_of_the_maximum_flows_to_the_greatest_scale_alone() -> None:
    low, high = torch.zeros(1, 1, 5, 5, requires_grad=True), torch.ones(1, 1, 5, 5, requires_grad=True)
    both = iter([low, high])
    _, fused = fused_scores(lambda _: next(both), torch.zeros(1, 3, 33, 33), (1.0, 1.0))
    fused.sum().backward()
    assert torch.equal(high.grad, torch.ones(1, 1, 5, 5))
    assert not low.grad.any()


@pytest.fixture
def network() -> ScoreMapNetwork:
    torch.manual_seed(0)
    backbone = create_backbone("tiny", 8, None)
    return ScoreMapNetwork(backbone, nn.Conv2d(backbone.channels[-1], 4, 1), (1.0, 0.75, 0.5)).eval()


def test_the_grid_is_that_of_every_scale(network: ScoreMapNetwork) -> None:
    assert network.grid == 32
    maps, fused = network.score_maps(torch.randn(1, 3, 65, 33))
    assert [tuple(each.shape[-2:]) for each in maps] == [(9, 5), (7, 4), (5, 3)]
    assert fused.shape[-2:] == (9, 5)
    assert ScoreMapNetwork(network.backbone, network.head).grid == 8


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 33), (37, 50)])
def test_predictions_have_the_size_of_the_image(network: ScoreMapNetwork, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert network(torch.randn(2, 3, *size)).shape == (2, 4, *size)


def test_one_scale_is_the_network_without_fusion(network: ScoreMapNetwork) -> None:
    network.scales = (1.0,)
    x = torch.randn(1, 3, 33, 65)
    with torch.no_grad():
        maps, fused = network.score_maps(x)
        assert torch.equal(fused, network.head(network.backbone(x)[-1]))
        assert torch.equal(maps[0], fused)
        torch.testing.assert_close(network(x)[..., ::8, ::8], fused)
