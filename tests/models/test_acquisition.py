"""Choosing pixels: closed forms of the scores, what is never chosen, committees, and what is told of a choice."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labelwise.models.acquisition import (
    LARGEST,
    Choice,
    QueryStatistics,
    Strategy,
    monte_carlo_dropout,
    select_pixels,
    spatial_coverage,
    uncertainty,
    vote,
    with_errors,
)

STRATEGIES: tuple[Strategy, ...] = ("margin", "entropy", "least_confidence")
MODES: tuple[Choice, ...] = get_args(Choice)
SEEDS = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(score: Tensor, chosen: Tensor) -> list[float]:
    return score[chosen[:, 1], chosen[:, 0]].tolist()


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize("classes", [2, 5, 21])
def test_scores_of_a_network_that_knows_nothing(classes: int) -> None:
    probabilities = torch.full((2, classes, 3, 4), 1 / classes)
    for strategy, expected in (("margin", 0.0), ("least_confidence", 1 - 1 / classes), ("entropy", math.log(classes))):
        score = uncertainty(probabilities, strategy)  # type: ignore[arg-type]
        torch.testing.assert_close(score, torch.full((2, 3, 4), expected))


def test_scores_of_a_network_that_is_certain() -> None:
    probabilities = torch.eye(4).view(1, 4, 2, 2)
    for strategy, expected in (("margin", 1.0), ("least_confidence", 0.0), ("entropy", 0.0)):
        score = uncertainty(probabilities, strategy)  # type: ignore[arg-type]
        assert torch.equal(score, torch.full((1, 2, 2), expected)), strategy


def test_scores_by_hand() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.3]).view(1, 3, 1, 1)
    assert float(uncertainty(probabilities, "margin")) == pytest.approx(0.3)
    assert float(uncertainty(probabilities, "least_confidence")) == pytest.approx(0.4)
    entropy = -(0.1 * math.log(0.1) + 0.6 * math.log(0.6) + 0.3 * math.log(0.3))
    assert float(uncertainty(probabilities, "entropy")) == pytest.approx(entropy)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=30))
def test_of_two_classes_all_scores_rank_alike(thousandths: list[int]) -> None:
    # In double precision, in which different probabilities never give the same score.
    first = torch.tensor(thousandths, dtype=torch.float64) / 1000
    probabilities = torch.stack([first, 1 - first]).view(1, 2, 1, -1)
    unsure = []
    for strategy in STRATEGIES:
        score = uncertainty(probabilities, strategy).flatten()
        rounded = score.mul(1e9).round() * (1 if LARGEST[strategy] else -1)
        unsure.append(rounded.unique(return_inverse=True)[1])
    assert torch.equal(unsure[0], unsure[1]) and torch.equal(unsure[1], unsure[2])


# ---------------------------------------------------------------------- selection


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    count=st.integers(0, 30),
    share=st.floats(0.01, 1),
    excluded=st.floats(0, 1),
    mode=st.sampled_from(MODES),
    largest=st.booleans(),
)
def test_what_is_chosen_is_allowed_and_never_twice(
    seed: int, size: tuple[int, int], count: int, share: float, excluded: float, mode: Choice, largest: bool
) -> None:
    numbers = generator(seed)
    score, exclude = torch.rand(size, generator=numbers), torch.rand(size, generator=numbers) < excluded
    chosen = select_pixels(score, count, largest=largest, share=share, exclude=exclude, generator=numbers, mode=mode)
    assert chosen.dtype == torch.int64 and chosen.shape[1] == 2
    assert not any(pixels(exclude, chosen))
    assert len({tuple(point) for point in chosen.tolist()}) == len(chosen)
    allowed = int((~exclude).sum())
    candidates = allowed if mode == "best" else min(allowed, max(1, int(share * score.numel())))
    assert len(chosen) == min(count, candidates)


@pytest.mark.parametrize("largest", [True, False])
def test_pixels_are_drawn_from_the_best_share_of_the_whole_image(largest: bool) -> None:
    score = torch.randperm(400, generator=generator()).view(20, 20).float() / 400
    exclude = torch.zeros(20, 20, dtype=torch.bool)
    exclude[:10] = True
    seen: set[float] = set()
    for seed in range(30):
        chosen = select_pixels(score, 5, largest=largest, exclude=exclude, generator=generator(seed))
        seen |= set(pixels(score, chosen))
    # 5 % of all 400 pixels, though half of them are excluded.
    assert seen == set(score[10:].flatten().topk(20, largest=largest).values.tolist())


def test_more_pixels_than_candidates_are_all_candidates() -> None:
    score = torch.arange(100.0).view(10, 10)
    chosen = select_pixels(score, 8, largest=True, share=0.05, generator=generator())
    assert sorted(pixels(score, chosen)) == [95, 96, 97, 98, 99]


def test_an_image_with_hardly_any_free_pixel_gives_those() -> None:
    exclude = torch.ones(10, 10, dtype=torch.bool)
    assert len(select_pixels(torch.rand(10, 10), 3, largest=False, exclude=exclude)) == 0
    exclude[4, 7] = False
    # The best of all by a score at the end of its range, which an excluded pixel could be mistaken for.
    assert select_pixels(torch.ones(10, 10), 3, largest=False, exclude=exclude).tolist() == [[7, 4]]


def test_the_best_come_first_and_the_best_of_a_random_share_lie_within_it() -> None:
    score = torch.arange(400.0).view(20, 20)
    best = select_pixels(score, 3, largest=False, generator=generator(), mode="best")
    assert best.tolist() == [[0, 0], [1, 0], [2, 0]]
    draws = [
        pixels(score, select_pixels(score, 2, largest=True, generator=generator(seed), mode="random_then_best"))
        for seed in range(20)
    ]
    assert all(first > second for first, second in draws)
    assert len({first for first, _ in draws}) > 10
    # The best 2 of 20 of 400 lie high on average, and the best of all is rarely among them.
    assert sum(first for first, _ in draws) / 20 > 300


@pytest.mark.parametrize("score", [torch.zeros(8, 8), torch.arange(64.0).view(8, 8)])
def test_a_share_of_one_is_a_random_choice(score: Tensor) -> None:
    counts = torch.zeros(8, 8)
    for seed in range(400):
        chosen = select_pixels(score, 4, largest=True, share=1.0, generator=generator(seed))
        counts[chosen[:, 1], chosen[:, 0]] += 1
    # 25 expected at each pixel; the statistic has 63 degrees of freedom, and exceeds 110 once in 4000 times.
    assert float(((counts - 25) ** 2 / 25).sum()) < 110


def test_equal_scores_give_random_pixels_under_every_mode() -> None:
    for mode in MODES:
        chosen = [
            select_pixels(torch.ones(9, 9), 2, largest=False, generator=generator(seed), mode=mode)
            for seed in range(40)
        ]
        assert len({tuple(map(tuple, each.tolist())) for each in chosen}) > 35, mode


def test_a_choice_is_a_function_of_its_generator() -> None:
    score = torch.rand(30, 30, generator=generator(1))
    first, again, other = (select_pixels(score, 10, largest=True, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("score", "count", "share"), [(torch.tensor([[0.0, math.nan]]), 1, 0.5), (torch.zeros(2, 2), -1, 0.5)]
)
def test_what_cannot_be_chosen_from_is_refused(score: Tensor, count: int, share: float) -> None:
    with pytest.raises(ValueError, match=r"not a number|cannot choose"):
        select_pixels(score, count, largest=True, share=share)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 4), rounds=st.integers(1, 4))
def test_after_r_rounds_every_image_has_r_times_as_many_pixels(seed: int, count: int, rounds: int) -> None:
    numbers = generator(seed)
    void = torch.rand(16, 16, generator=numbers) < 0.3
    labeled = torch.zeros(16, 16, dtype=torch.bool)
    for _ in range(rounds):
        score = torch.rand(16, 16, generator=numbers)
        chosen = select_pixels(score, count, largest=False, exclude=labeled | void, generator=numbers)
        labeled[chosen[:, 1], chosen[:, 0]] = True
    assert int(labeled.sum()) == count * rounds
    assert not (labeled & void).any()


# ---------------------------------------------------------------------- committees


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.0), nn.Conv2d(8, 4, 1)
    return nn.Sequential(*layers).eval()


def test_dropout_acts_inside_alone_and_nothing_else_does() -> None:
    model, image = network(), torch.rand(1, 3, 6, 6)
    model[3].p, before = 0.5, {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), monte_carlo_dropout(model, 0.3):
        assert not torch.equal(model(image), model(image))
        assert model[3].p == 0.3 and not model[1].training
    assert torch.equal(model(image), model(image))
    assert model[3].p == 0.5 and not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failed_vote_leaves_the_network_as_it_was() -> None:
    model = network().train()
    with pytest.raises(RuntimeError, match="stopped"), monte_carlo_dropout(model):
        raise RuntimeError("stopped")
    assert model[3].p == 0 and all(module.training for module in model.modules())


def test_a_network_without_dropout_has_one_opinion() -> None:
    with pytest.raises(ValueError, match="no dropout"), monte_carlo_dropout(nn.Conv2d(3, 4, 1)):
        pass


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_committee_averages_the_scores_of_its_members(strategy: Strategy) -> None:
    model, image = network(), torch.rand(2, 3, 5, 5)
    torch.manual_seed(3)
    voted = vote(model, image, strategy, network=model, votes=4)
    torch.manual_seed(3)
    with torch.no_grad(), monte_carlo_dropout(model):
        members = [model(image).softmax(1) for _ in range(4)]
    expected = torch.stack([uncertainty(member, strategy) for member in members]).mean(0)
    torch.testing.assert_close(voted.score, expected)
    torch.testing.assert_close(voted.probabilities, torch.stack(members).mean(0))
    one = vote(model, image, strategy, network=model)
    assert torch.equal(one.score, uncertainty(model(image).softmax(1), strategy))
    assert not one.score.requires_grad


# ---------------------------------------------------------------------- annotators and statistics


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, classes=st.integers(2, 6), rate=st.floats(0, 1))
def test_wrong_answers_are_other_classes_and_as_many_as_asked_for(seed: int, classes: int, rate: float) -> None:
    labels = torch.randint(classes, (2000,), generator=generator(seed))
    answers = with_errors(labels, rate, classes, generator(seed))
    assert ((answers >= 0) & (answers < classes)).all()
    # Six standard deviations of the share of 2000 answers.
    assert float((answers != labels).float().mean()) == pytest.approx(rate, abs=6 * 0.5 / math.sqrt(2000))


def test_an_annotator_without_error_answers_the_truth_and_a_lower_rate_errs_at_part_of_the_pixels() -> None:
    labels = torch.randint(5, (500,), generator=generator())
    few, many = (with_errors(labels, rate, 5, generator(1)) != labels for rate in (0.1, 0.4))
    assert torch.equal(with_errors(labels, 0.0, 5, generator()), labels)
    assert (with_errors(labels, 1.0, 5, generator()) != labels).all()
    assert (many | ~few).all() and few.any()


def test_coverage_is_the_mean_distance_of_pairs() -> None:
    assert spatial_coverage(torch.tensor([[0, 0], [3, 4], [0, 8]])) == pytest.approx((5 + 8 + 5) / 3)
    assert math.isnan(spatial_coverage(torch.tensor([[1, 2]])))


def test_statistics_of_a_round() -> None:
    statistics = QueryStatistics(3)
    probabilities = torch.full((3, 4, 5), 1 / 3)
    probabilities[:, 0, 1] = torch.tensor([1.0, 0, 0])
    statistics.update(torch.tensor([[0, 0], [4, 3]]), torch.tensor([2, 2]), probabilities)
    statistics.update(torch.tensor([[1, 0]]), torch.tensor([0]), probabilities)
    summary = statistics.compute()
    assert summary.histogram == (1, 0, 2)
    assert summary.entropy == pytest.approx(2 * math.log(3) / 3)
    assert summary.distinct_classes == 1
    assert summary.coverage == pytest.approx(5)
    nothing = QueryStatistics(2).compute()
    assert nothing.histogram == (0, 0) and nothing.entropy is None and nothing.coverage is None
