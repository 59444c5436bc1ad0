"""The atrous pyramids: parameters, the pooled branch, one image per batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.models.aspp import ASPP, ConcatenatedASPP, PooledBatchNorm2d


@pytest.mark.parametrize("pyramid", [ASPP, ConcatenatedASPP])
def test_parameters_of_the_papers_pyramid(pyramid: type[nn.Module]) -> None:
    with torch.device("meta"):
        module = pyramid(2048)
    assert sum(parameter.numel() for parameter in module.parameters()) == 15_535_104


@pytest.mark.parametrize("pyramid", [ASPP, ConcatenatedASPP])
@pytest.mark.parametrize("images", [1, 2])
def test_trains_with_any_batch(pyramid: type[nn.Module], images: int) -> None:
    module = pyramid(8, 4, (1, 2))
    out = module(torch.randn(images, 8, 5, 7))
    out.sum().backward()
    assert out.shape == (images, 4, 5, 7)
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_a_single_pooled_image_uses_the_running_statistics_and_leaves_them() -> None:
    norm = PooledBatchNorm2d(3)
    norm.running_mean.fill_(2.0)
    out = norm(torch.full((1, 3, 1, 1), 5.0))
    assert torch.allclose(out, torch.full((1, 3, 1, 1), 3.0), atol=1e-3)
    assert norm.running_mean.tolist() == [2, 2, 2]


def test_with_more_images_it_is_ordinary_batch_normalisation() -> None:
    pooled, plain = PooledBatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 1, 1)
    assert torch.equal(pooled(x), plain(x))
    assert torch.equal(pooled.running_var, plain.running_var)


def test_the_concatenated_pyramid_is_a_concatenation_and_projection() -> None:
    pyramid = ConcatenatedASPP(6, 4, (1, 2)).eval()
    x = torch.randn(2, 6, 5, 5)
    pooled = pyramid.pooled[:3](x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, 5, 5)
    maps = pyramid.act(pyramid.convs_norm(torch.cat([conv(x) for conv in pyramid.convs], dim=1)))
    weight = torch.cat([pyramid.convs_project.weight, pyramid.pooled[3].weight], dim=1)
    joint = nn.functional.conv2d(torch.cat([maps, pooled], dim=1), weight)
    assert torch.allclose(pyramid(x), pyramid.act(pyramid.norm(joint)), atol=1e-5)


def test_the_concatenated_pyramid_starts_from_kaiming_normal_fan_in() -> None:
    torch.manual_seed(0)
    weight = ConcatenatedASPP(64, 64).convs[1].weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
