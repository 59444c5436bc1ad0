"""Offsets between boxes, against the classical code for boxes whose last pixel is inside."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from labelwise.models.boxes import best_boxes, clip_boxes, decode_boxes, encode_boxes, scale_boxes, sides

corner = st.floats(-50, 50)
side = st.floats(1, 60)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(st.lists(st.tuples(box, box), min_size=1, max_size=5))
def test_decoding_is_the_inverse_of_encoding(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    sources, targets = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64) for i in (0, 1))
    assert torch.allclose(decode_boxes(sources, encode_boxes(sources, targets)), targets, atol=1e-9)


def test_offsets_are_those_of_inclusive_boxes() -> None:
    # The classical formulas, with inclusive corners 10..19 and 12..31.
    source, target = (10.0, 10.0, 19.0, 19.0), (12.0, 10.0, 31.0, 19.0)
    width, target_width = source[2] - source[0] + 1, target[2] - target[0] + 1
    shift = (target[0] + target_width / 2 - source[0] - width / 2) / width
    half_open = [torch.tensor([[*each[:2], each[2] + 1, each[3] + 1]]) for each in (source, target)]
    expected = torch.tensor([[shift, 0.0, math.log(target_width / width), 0.0]])
    assert torch.allclose(encode_boxes(*half_open), expected)


def test_several_boxes_of_one_source_are_decoded_alike() -> None:
    sources = torch.tensor([[0.0, 0.0, 4.0, 8.0], [2.0, 2.0, 6.0, 4.0]])
    offsets = torch.arange(24.0).reshape(2, 3, 4) / 10
    together = decode_boxes(sources, offsets)
    for column in range(3):
        assert torch.allclose(together[:, column], decode_boxes(sources, offsets[:, column]))


def test_a_huge_offset_stays_finite() -> None:
    decoded = decode_boxes(torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([[0.0, 0.0, 1e4, 1e4]]))
    assert torch.allclose(sides(decoded), torch.tensor([[1000.0, 1000.0]]))


def test_boxes_are_cut_and_scaled_by_height_and_width() -> None:
    boxes = torch.tensor([[-3.0, -4.0, 99.0, 98.0]])
    assert clip_boxes(boxes, (10, 20)).tolist() == [[0, 0, 20, 10]]
    assert scale_boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (10, 20), (30, 10)).tolist() == [[0.5, 6, 1.5, 12]]


def test_only_boxes_of_the_same_class_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [50.0, 50.0, 60.0, 60.0]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.7], [0.05, 0.3]])
    kept, columns, values = best_boxes(boxes, scores, 0.1, 0.5, 10)
    assert columns.tolist() == [0, 1, 1] and torch.allclose(values, torch.tensor([0.9, 0.7, 0.3]))
    assert kept.tolist() == [boxes[0].tolist(), boxes[1].tolist(), boxes[2].tolist()]
    assert len(best_boxes(boxes, scores, 0.1, 0.5, 2)[0]) == 2
    assert len(best_boxes(boxes, scores, 0.95, 0.5, 2)[0]) == 0


def test_each_class_may_have_its_own_box() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 5.0, 5.0]]])
    kept, columns, _ = best_boxes(boxes, torch.tensor([[0.6, 0.9]]), 0.5, 0.5, 10)
    assert columns.tolist() == [1, 0] and kept.tolist() == [[1, 1, 5, 5], [0, 0, 10, 10]]
