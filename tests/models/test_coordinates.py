"""Coordinates: the numbers of the paper's code, and interpolation against the convolutions it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from labelwise.models.coordinates import (
    IMAGE,
    CoordinateMap,
    Layer,
    aligned_cells,
    bilinear_kernel,
    coordinate_map,
    crop_offset,
    receptive_field,
    resample,
)


def test_a_convolutions_output_lies_over_the_centre_of_what_it_sees() -> None:
    assert coordinate_map([Layer(3, 1, 1)]) == IMAGE
    assert coordinate_map([Layer(2, 2)]) == (2.0, 0.5)
    assert coordinate_map([Layer(11, 4, 100)]) == (4.0, -95.0)


@given(st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.integers(0, 9))
def test_a_transposed_convolution_is_the_inverse_of_its_convolution(kernel: int, stride: int, padding: int) -> None:
    there, back = Layer(kernel, stride, padding), Layer(kernel, stride, padding, "transposed")
    assert coordinate_map([there, back]) == IMAGE
    assert coordinate_map([back, there]) == IMAGE


def test_the_map_of_a_chain_is_where_the_gradient_comes_from() -> None:
    layers = [Layer(3, 1, 7), Layer(2, 2), Layer(5, 1, 2), Layer(3, 2, 1)]
    image = torch.zeros(1, 1, 1, 90, requires_grad=True)
    x = image
    for layer in layers:
        weight = torch.ones(1, 1, 1, layer.kernel)
        x = functional.conv2d(x, weight, stride=(1, layer.stride), padding=(0, layer.padding))
    x[0, 0, 0, 11].backward()
    assert image.grad is not None
    seen = image.grad[0, 0, 0].nonzero().flatten().float()
    where = coordinate_map(layers)
    assert float(seen.mean()) == where.scale * 11 + where.offset
    assert len(seen) == receptive_field(layers)


@pytest.mark.parametrize(
    ("larger", "reference"),
    [
        (CoordinateMap(8.0, 0.0), CoordinateMap(16.0, 0.0)),
        (CoordinateMap(8.0, 0.0), CoordinateMap(8.0, 3.0)),
        (CoordinateMap(8.0, 0.0), CoordinateMap(8.0, -8.0)),
    ],
)
def test_maps_that_cannot_be_cropped_to_one_another_are_refused(
    larger: CoordinateMap, reference: CoordinateMap
) -> None:
    with pytest.raises(ValueError, match="cannot be cropped"):
        crop_offset(larger, reference)


@pytest.mark.parametrize(("size", "line"), [(3, [0.5, 1, 0.5]), (4, [0.25, 0.75, 0.75, 0.25])])
def test_bilinear_kernels(size: int, line: list[float]) -> None:
    torch.testing.assert_close(bilinear_kernel(size), torch.outer(torch.tensor(line), torch.tensor(line)))


@pytest.mark.parametrize("stride", [2, 8, 32])
def test_a_transposed_convolution_keeps_constants_and_ramps(stride: int) -> None:
    kernel = bilinear_kernel(2 * stride)[None, None]
    inside = slice(stride + stride // 2, -stride - stride // 2)
    constant = functional.conv_transpose2d(torch.ones(1, 1, 4, 4), kernel, stride=stride)[0, 0, inside, inside]
    torch.testing.assert_close(constant, torch.ones_like(constant))
    ramp = functional.conv_transpose2d(torch.arange(4.0).expand(1, 1, 4, 4), kernel, stride=stride)[
        0, 0, inside, inside
    ]
    steps = ramp.diff(dim=1)
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / stride))
    assert not ramp.diff(dim=0).abs().gt(1e-6).any()


@given(
    st.sampled_from([(4, 2), (3, 2), (16, 8), (64, 32), (63, 32)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 31),
    st.integers(0, 9),
)
def test_interpolation_with_zeros_around_is_a_cropped_transposed_convolution(
    form: tuple[int, int], height: int, width: int, offset: int, seed: int
) -> None:
    kernel, stride = form
    scores = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    weight = bilinear_kernel(kernel).expand(3, 1, kernel, kernel)
    expected = functional.conv_transpose2d(scores, weight, stride=stride, groups=3)[..., offset:, offset:]
    source = CoordinateMap(float(stride), 12.5)
    target = source.after(Layer(kernel, stride, kind="transposed"))
    shifted = CoordinateMap(target.scale, target.offset + offset * target.scale)
    found = resample(scores, source, shifted, expected.shape[-2:], "zero")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@given(st.sampled_from([2, 8, 32]), st.integers(1, 5), st.integers(1, 5))
def test_interpolation_that_goes_on_at_the_border_is_torchs(stride: int, height: int, width: int) -> None:
    scores = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    size = (height * stride, width * stride)
    expected = functional.interpolate(scores, size, mode="bilinear", align_corners=False)
    found = resample(scores, aligned_cells(stride), IMAGE, size, "clamp")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
