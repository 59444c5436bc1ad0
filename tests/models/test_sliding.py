"""Sliding windows: each pixel counted, borders shifted or cut, against hand computation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelwise.models.sliding import sliding_window_logits


class Recorder:
    """The identity, which remembers the windows' sizes and what it saw."""

    def __init__(self) -> None:
        self.windows: list[Tensor] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.windows.append(image)
        return image


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    window=st.integers(1, 12),
    share=st.floats(0.1, 1.0),
    border=st.sampled_from(["shift", "cut"]),
)
@settings(max_examples=60, deadline=None)
def test_the_identity_is_reproduced(height: int, width: int, window: int, share: float, border: str) -> None:
    image = torch.randn(2, 3, height, width)
    stride = max(1, round(window * share))
    logits = sliding_window_logits(lambda part: part, image, window, stride, border=border)  # type: ignore[arg-type]
    assert torch.allclose(logits, image, atol=1e-5)


def test_shift_moves_the_last_window_to_the_border() -> None:
    predict = Recorder()
    image = torch.arange(10.0).expand(1, 3, 4, 10)
    sliding_window_logits(predict, image, window=4, stride=3)
    assert [part[0, 0, 0, 0].item() for part in predict.windows] == [0, 3, 6]
    predict = Recorder()
    sliding_window_logits(predict, image, window=4, stride=4)
    assert [part[0, 0, 0, 0].item() for part in predict.windows] == [0, 4, 6]
    assert {part.shape for part in predict.windows} == {(1, 3, 4, 4)}


def test_cut_starts_at_every_multiple_of_the_stride() -> None:
    predict = Recorder()
    image = torch.arange(10.0).expand(1, 3, 4, 10)
    sliding_window_logits(predict, image, window=4, stride=4, border="cut")
    assert [part[0, 0, 0].tolist() for part in predict.windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_shift_pads_a_small_image_centred_with_zeros() -> None:
    predict = Recorder()
    logits = sliding_window_logits(predict, torch.ones(1, 3, 2, 5), window=5, stride=3)
    (seen,) = predict.windows
    assert seen[0, 0].sum(dim=1).tolist() == [0, 5, 5, 0, 0]
    assert logits.shape == (1, 3, 2, 5)


def test_overlapping_windows_are_averaged() -> None:
    calls = iter([1.0, 4.0])

    def predict(part: Tensor) -> Tensor:
        return torch.full((1, 2, *part.shape[2:]), next(calls))

    logits = sliding_window_logits(predict, torch.zeros(1, 3, 2, 3), window=2, stride=1)
    assert logits[0, 0, 0].tolist() == [1, 2.5, 4]


def test_softmax_is_averaged_as_probabilities() -> None:
    scores = iter([[0.0, 100.0], [0.0, 0.0]])

    def predict(part: Tensor) -> Tensor:
        return torch.tensor(next(scores)).view(1, 2, 1, 1).expand(-1, -1, *part.shape[2:])

    found = sliding_window_logits(predict, torch.zeros(1, 3, 2, 3), window=2, stride=1, reduce="softmax")
    assert torch.allclose(found[0, :, 0], torch.tensor([[0, 0.25, 0.5], [1, 0.75, 0.5]]))


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        sliding_window_logits(lambda part: part, torch.zeros(1, 3, 8, 8), window=4, stride=stride)
