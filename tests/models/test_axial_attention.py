"""Axial attention: against loops, its symmetries, the pooling pyramid, blocks that start as nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from labelwise.models.axial_attention import SSA, Axis, PoolingPyramid, axial_squeeze_attention

HEADS, KEYS, VALUES, POSITIONS = 2, 3, 6, 16


def maps(height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    channels = (HEADS * KEYS, HEADS * KEYS, HEADS * VALUES)
    query, key, value = (torch.randn(batch, count, height, width, generator=generator) for count in channels)
    return query, key, value


def positions() -> Tensor:
    return torch.randn(2, HEADS * KEYS, POSITIONS, generator=torch.Generator().manual_seed(1))


def attended_by_loops(query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
    """Rows of one image, at the positions' own length, one pair of rows at a time."""
    rows = query.shape[1]
    query = query.mean(2) + positions[0]
    key = key.mean(2) + positions[1]
    value = value.mean(2)
    result = torch.zeros(HEADS * VALUES, rows)
    for head in range(HEADS):
        keys, values = slice(head * KEYS, (head + 1) * KEYS), slice(head * VALUES, (head + 1) * VALUES)
        for row in range(rows):
            scores = [torch.dot(query[keys, row], key[keys, other]) / math.sqrt(KEYS) for other in range(rows)]
            weights = torch.stack(scores).softmax(0)
            result[values, row] = (value[values] * weights).sum(1)
    return result


def test_rows_attend_as_written_out_in_loops() -> None:
    query, key, value = maps(POSITIONS, 5)
    found = axial_squeeze_attention(query, key, value, positions(), HEADS, "rows")
    assert found.shape == (2, HEADS * VALUES, POSITIONS, 1)
    for image in range(2):
        expected = attended_by_loops(query[image], key[image], value[image], positions())
        torch.testing.assert_close(found[image, :, :, 0], expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 23)])
def test_columns_are_the_rows_of_the_transposed_map(size: tuple[int, int]) -> None:
    query, key, value = maps(*size)
    rows = axial_squeeze_attention(query.mT, key.mT, value.mT, positions(), HEADS, "rows")
    columns = axial_squeeze_attention(query, key, value, positions(), HEADS, "columns")
    assert columns.shape == (2, HEADS * VALUES, 1, size[1])
    torch.testing.assert_close(columns, rows.mT)


@pytest.mark.parametrize(("axis", "dimension"), [("rows", 2), ("columns", 3)])
def test_equal_rows_or_columns_are_told_apart_by_their_positions_alone(axis: Axis, dimension: int) -> None:
    shape = [-1, -1, -1, -1]
    shape[dimension] = 6
    query, key, value = (x.narrow(dimension, 0, 1).expand(shape) for x in maps(6, 6))
    same = axial_squeeze_attention(query, key, value, torch.zeros_like(positions()), HEADS, axis)
    torch.testing.assert_close(same, same.narrow(dimension, 0, 1).expand_as(same))
    # Equal values remain equal under any weights, so the queries' positions show in unequal values.
    value = maps(6, 6)[2]
    found = axial_squeeze_attention(query, key, value, positions(), HEADS, axis)
    assert not torch.allclose(found, found.narrow(dimension, 0, 1).expand_as(found), atol=1e-3)


def test_pooling_keeps_a_constant_but_for_the_border() -> None:
    pooled = torch.ones(1, 1, 17, 17)
    for pool in PoolingPyramid(1, fix_pool2=False).pools:
        pooled = pool(pooled)
    reach = 1 + 2 + 3
    inside = pooled[..., reach:-reach, reach:-reach]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    border = pooled.clone()
    border[..., reach:-reach, reach:-reach] = 0
    assert border.max() < 1


@pytest.mark.parametrize(("fix_pool2", "sources"), [(False, (0, 0, 2)), (True, (0, 1, 2))])
def test_the_pyramid_weights_its_input_by_the_poolings_of_the_release_or_by_all(
    fix_pool2: bool, sources: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    pyramid = PoolingPyramid(4, fix_pool2).eval()
    x = torch.randn(1, 4, 9, 11)
    entered = pyramid.enter(x)
    pooled = [pyramid.pools[0](entered)]
    for pool in pyramid.pools[1:]:
        pooled.append(pool(pooled[-1]))
    expected = entered * pyramid.weight(torch.cat([pooled[index] for index in sources], dim=1))
    torch.testing.assert_close(pyramid(x), expected)


def test_an_output_of_the_pyramid_reads_neighbouring_channels_of_one_pooling() -> None:
    weight = PoolingPyramid(6, fix_pool2=False).weight[0]
    x = torch.randn(1, 18, 3, 3, requires_grad=True)
    for output, channels in ((0, [0, 1, 2]), (5, [15, 16, 17])):
        (gradient,) = torch.autograd.grad(weight(x)[0, output].sum(), x)
        assert gradient.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == channels


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 16)])
def test_blocks_whose_last_layers_are_zero_change_nothing(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    context = SSA(channels=8, key_dim=4, heads=2).eval()
    x = torch.randn(2, 8, *size)
    assert not torch.allclose(context(x), x)
    for block in context:
        nn.init.zeros_(block.attention.projection[0].weight)
        nn.init.zeros_(block.mlp[-1].weight)
    torch.testing.assert_close(context(x), x)


def test_every_weight_of_the_context_is_learned() -> None:
    torch.manual_seed(0)
    context = SSA(channels=8, key_dim=4, heads=2)
    context(torch.randn(2, 8, 5, 6)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in context.parameters())
