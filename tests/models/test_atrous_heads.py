"""Heads: the papers' field of view, the linearity of the sum, and scores from early features."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from labelwise.models.atrous_heads import (
    ClassifierBranch,
    SkipScoreNetwork,
    SkipScores,
    SummedScores,
    direct_branches,
)
from labelwise.models.backbones import create_backbone


@pytest.mark.parametrize(("kernel", "rate", "padding"), [(3, 12, 12), (4, 4, 6), (4, 8, 12), (7, 4, 12)])
def test_fc6_keeps_the_size_with_the_papers_padding(kernel: int, rate: int, padding: int) -> None:
    torch.manual_seed(0)
    branch = ClassifierBranch(2, 4, 3, kernel, rate).eval()
    x = torch.randn(1, 2, 41, 41)
    fc6 = branch.fc6
    torch.testing.assert_close(fc6(x), functional.conv2d(x, fc6.weight, fc6.bias, padding=padding, dilation=rate))
    assert branch(x).shape == (1, 3, 41, 41)


def test_fc6_of_largefov_sees_25_cells() -> None:
    branch = ClassifierBranch(1, 2, 1, 3, 12, dropout=0)
    for conv in (branch.fc6, branch.fc7, branch.score):
        nn.init.ones_(conv.weight)
    x = torch.ones(1, 1, 41, 41, requires_grad=True)
    branch(x)[0, 0, 20, 20].backward()
    rows = x.grad[0, 0].any(1).nonzero().flatten().tolist()
    assert rows == [8, 20, 32]


def test_the_score_layer_starts_small_and_unbiased() -> None:
    torch.manual_seed(0)
    branch = ClassifierBranch(8, 1024, 21, 1, 1)
    assert branch.score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not branch.score.bias.any()
    (direct,) = direct_branches(64, 21, [3])
    assert direct.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not direct.bias.any()


def test_one_branch_is_the_single_head() -> None:
    torch.manual_seed(0)
    (branch,) = direct_branches(5, 4, [12])
    x = torch.randn(2, 5, 9, 9)
    assert torch.equal(SummedScores([branch])(x), branch(x))


def test_equal_rates_sum_to_one_convolution_of_the_summed_kernels() -> None:
    torch.manual_seed(0)
    branches = direct_branches(5, 4, [1, 1, 1])
    x = torch.randn(2, 5, 9, 7)
    weight, bias = (sum(getattr(branch, name) for branch in branches) for name in ("weight", "bias"))
    torch.testing.assert_close(SummedScores(branches)(x), functional.conv2d(x, weight, bias, padding=1))


def test_a_rate_beyond_the_map_leaves_the_centre_tap() -> None:
    torch.manual_seed(0)
    (branch,) = direct_branches(5, 4, [9])
    x = torch.randn(1, 5, 9, 7)
    torch.testing.assert_close(branch(x), functional.conv2d(x, branch.weight[:, :, 1:2, 1:2], branch.bias))


def test_scores_are_summed_not_concatenated() -> None:
    head = SummedScores(direct_branches(5, 4, [1, 2, 3, 4]))
    assert head(torch.randn(1, 5, 9, 9)).shape == (1, 4, 9, 9)
    assert sum(parameter.numel() for parameter in head.parameters()) == 4 * (9 * 5 * 4 + 4)


def test_early_features_come_to_the_output_stride() -> None:
    channels, strides, sizes = (3, 8, 16), (1, 2, 8), (65, 33, 9)
    skips = SkipScores(channels, strides, 8, 4).eval()
    features = [torch.randn(2, width, size, size) for width, size in zip(channels, sizes, strict=True)]
    assert [branch(x).shape[1:] for branch, x in zip(skips.branches, features, strict=True)] == 3 * [(128, 9, 9)]
    assert skips(features, (9, 9)).shape == (2, 4, 9, 9)


def test_adding_own_scores_is_concatenating_features_before_one_score_layer() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("tiny", 8, None)
    branch = ClassifierBranch(backbone.channels[-1], 6, 4, 3, 1, dropout=0)
    network = SkipScoreNetwork(backbone, branch, 4, dropout=0).eval()
    x = torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        *early, last = backbone(x)
        fc7 = branch.act(branch.fc7(branch.act(branch.fc6(last))))
        maps = [skip(each) for skip, each in zip(network.skips.branches, [x, *early], strict=True)]
        weight = torch.cat([branch.score.weight, network.skips.score.weight], dim=1)
        expected = functional.conv2d(torch.cat([fc7, *maps], dim=1), weight, branch.score.bias)
        torch.testing.assert_close(network.score_map(x), expected)
        assert network(torch.randn(1, 3, 30, 40)).shape == (1, 4, 30, 40)
