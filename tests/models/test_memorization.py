"""Learning curves: the fit, its slope, the epoch at which it flattens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelwise.models.memorization import (
    MemorizationMonitor,
    Saturation,
    fit_saturation,
    slope,
    update_epoch,
    update_epoch_after_start,
)

CURVES = [(0.8, 0.7, 0.6), (0.7, 0.9, 3.0)]


def exact(parameters: tuple[float, float, float], epochs: float = 6, points: int = 60) -> np.ndarray:
    return Saturation(*parameters)(np.linspace(0, epochs, points))


@pytest.mark.parametrize("parameters", CURVES)
def test_the_fit_of_a_noiseless_curve_is_its_parameters(parameters: tuple[float, float, float]) -> None:
    fit = fit_saturation(np.linspace(0, 6, 60), exact(parameters))
    assert fit == pytest.approx(parameters, abs=1e-6)


def test_late_points_count_more_than_early_ones() -> None:
    time = np.linspace(0, 6, 60)
    early, late = exact(CURVES[0]), exact(CURVES[0])
    early[:20] += 0.2
    late[40:] -= 0.2
    ends = [fit_saturation(time, curve)(time)[-1] for curve in (early, late)]
    assert abs(ends[0] - exact(CURVES[0])[-1]) < 0.03 < 0.15 < abs(ends[1] - exact(CURVES[0])[-1])


@given(st.floats(0.2, 0.9), st.floats(0.3, 1), st.floats(0.3, 5), st.floats(1, 15))
def test_the_slope_is_the_derivative(a: float, b: float, c: float, time: float) -> None:
    fit = Saturation(a, b, c)
    around = fit(np.array([time - 1e-4, time + 1e-4]))
    assert slope(np.array([time]), fit)[0] == pytest.approx((around[1] - around[0]) / 2e-4, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(("parameters", "ratio", "epoch"), [
    (CURVES[0], 0.9, 4),
    (CURVES[0], 0.8, 3),
    (CURVES[1], 0.9, 10),
    (CURVES[1], 0.8, 7),
])  # fmt: skip
def test_the_update_epoch_of_known_curves(parameters: tuple[float, float, float], ratio: float, epoch: int) -> None:
    assert update_epoch(exact(parameters).tolist(), 10, ratio) == epoch


def test_a_ratio_above_one_is_never_reached() -> None:
    assert update_epoch(exact(CURVES[0]).tolist(), 10, 1.01) == 16


@pytest.mark.parametrize("curve", [[], [0.5], [0.0] * 30, [float("nan")] * 30])
def test_what_cannot_be_fitted_is_never_memorized(curve: list[float]) -> None:
    assert update_epoch(curve, 10) == 16


@pytest.mark.filterwarnings("error")
def test_three_points_are_fitted_without_a_word() -> None:
    assert fit_saturation(np.arange(3.0), np.array([0.2, 0.5, 0.6])) is not None


def test_a_constant_curve_above_zero_is_memorized() -> None:
    assert update_epoch([0.5] * 60, 10) < 16


@given(st.integers(0, 8))
def test_a_flat_start_shifts_the_epoch(flat: int) -> None:
    rising = exact(CURVES[0], 20, 20).tolist()
    plain = update_epoch_after_start(rising, horizon=30)
    assert update_epoch_after_start([0.0] * flat + rising, horizon=30) == flat + plain
    assert 2 <= plain < 10


def test_a_curve_that_never_rises_is_never_memorized() -> None:
    assert update_epoch_after_start([0.01 * number for number in range(30)], horizon=40) > 40


def test_points_are_intersections_over_unions_of_what_was_counted_since_the_last() -> None:
    monitor = MemorizationMonitor(3)
    label = torch.tensor([[[0, 1, 1, 255]]])
    monitor.update(torch.tensor([[[0, 1, 2, 2]]]), label.to(torch.uint8))
    monitor.update(torch.tensor([[[0, 1, 1, 1]]]), label)
    monitor.add_point()
    assert monitor.points[0] == pytest.approx([1, 3 / 4, 0])
    monitor.update(torch.tensor([[[1, 1, 1, 1]]]), label)
    monitor.add_point()
    assert monitor.curve(1) == pytest.approx([3 / 4, 2 / 3])


def test_a_monitor_goes_on_where_its_state_was_saved() -> None:
    monitor, other = MemorizationMonitor(2), MemorizationMonitor(2)
    monitor.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    monitor.add_point()
    monitor.update(torch.tensor([[[1, 1]]]), torch.tensor([[[0, 1]]]))
    monitor.activate(1, 4)
    other.load_state_dict(monitor.state_dict())
    for each in (monitor, other):
        each.add_point()
    assert other.points == monitor.points and other.since.tolist() == [-1, 4]


def test_a_class_is_memorized_for_ever() -> None:
    monitor = MemorizationMonitor(3)
    monitor.activate(2, 4)
    monitor.activate(2, 7)
    assert monitor.active.tolist() == [False, False, True] and monitor.since[2] == 4


def test_a_class_is_due_every_so_many_epochs_from_its_activation_on() -> None:
    monitor = MemorizationMonitor(3)
    monitor.activate(1, 4)
    monitor.activate(2, 5)
    due = [monitor.due(epoch, 3).tolist() for epoch in range(4, 9)]
    assert [each[1] for each in due] == [True, False, False, True, False]
    assert [each[2] for each in due][1:] == [True, False, False, True]
    assert not any(each[0] for each in due)
    assert monitor.due(20).tolist() == [False, True, True]
