from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from labelwise.models.feature_pyramid import FeaturePyramid, PyramidPooling


def test_maps_have_the_strides_from_4_on_and_a_pooled_one() -> None:
    pyramid = FeaturePyramid((8, 12, 16, 20, 24), (2, 4, 8, 16, 32), width=6)
    features = [
        torch.randn(2, channels, 128 // stride, 64 // stride)
        for channels, stride in ((8, 2), (12, 4), (16, 8), (20, 16), (24, 32))
    ]
    maps = pyramid(features)
    assert pyramid.strides == (4, 8, 16, 32, 64)
    assert [tuple(each.shape) for each in maps] == [(2, 6, 128 // stride, 64 // stride) for stride in pyramid.strides]
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


def test_coarse_features_reach_the_finest_map() -> None:
    pyramid = FeaturePyramid((4, 4), (4, 8), width=4)
    coarse = torch.randn(1, 4, 4, 4, requires_grad=True)
    pyramid([torch.randn(1, 4, 8, 8), coarse])[0].sum().backward()
    assert coarse.grad is not None and bool(coarse.grad.any())


def test_strides_that_do_not_double_are_refused() -> None:
    with pytest.raises(ValueError, match="at strides 4, 8, 8, not each at twice"):
        FeaturePyramid((4, 4, 4, 4), (2, 4, 8, 8))


@pytest.mark.parametrize(("side", "level"), [(20.0, 0), (111.0, 0), (112.0, 1), (223.0, 1), (224.0, 2), (500.0, 3)])
def test_a_region_is_pooled_from_the_map_that_suits_its_size(side: float, level: int) -> None:
    maps = [torch.randn(1, 2, 512 // stride, 512 // stride) for stride in (4, 8, 16, 32, 64)]
    box = torch.tensor([[5.0, 5, 5 + side, 5 + side]])
    pooled = PyramidPooling(5, size=3)(maps, [box], (512, 512))
    expected = roi_align(maps[level], [box], 3, 1 / (4 * 2**level), sampling_ratio=2)
    torch.testing.assert_close(pooled, expected)


def test_regions_keep_their_order_and_their_image() -> None:
    maps = [torch.randn(2, 2, 512 // stride, 512 // stride) for stride in (4, 8, 16, 32, 64)]
    small, large = torch.tensor([0.0, 0, 40, 40]), torch.tensor([0.0, 0, 300, 300])
    pooling = PyramidPooling(5, size=3)
    together = pooling(maps, [torch.stack([large, small]), small[None]], (512, 512))
    for row, (image, box) in enumerate(((0, large), (0, small), (1, small))):
        alone = pooling([each[image : image + 1] for each in maps], [box[None]], (512, 512))
        torch.testing.assert_close(together[row], alone[0])
