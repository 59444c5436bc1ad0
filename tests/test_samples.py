"""Batches of images of different sizes."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from labelwise.samples import IGNORE_INDEX, Sample, Views, collate


def sample(height: int, width: int, id: str = "a", **labels: Any) -> Sample:
    return Sample(id=id, image=tv_tensors.Image(torch.full((3, height, width), 7, dtype=torch.uint8)), **labels)


def boxes(height: int, width: int) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        torch.tensor([[0.0, 0.0, width, height]]),
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=(height, width),
    )


def test_smaller_images_are_filled_up_and_their_padding_is_known() -> None:
    first = sample(2, 5, "a", mask=tv_tensors.Mask(torch.zeros(2, 5, dtype=torch.uint8)), boxes=boxes(2, 5))
    second = sample(4, 3, "b", mask=tv_tensors.Mask(torch.zeros(4, 3, dtype=torch.uint8)), boxes=boxes(4, 3))
    batch = collate([Views(sample=first), Views(sample=second)])
    assert batch.image.shape == (2, 3, 4, 5) and batch.sizes == [(2, 5), (4, 3)]
    assert batch.padding is not None and batch.mask is not None and batch.boxes is not None
    assert (batch.image[:, 0] == torch.where(batch.padding, 0, 7)).all()
    assert ((batch.mask == IGNORE_INDEX) == batch.padding).all()
    assert batch.boxes[0].tolist() == [[0, 0, 5, 2]] and batch.boxes[1].tolist() == [[0, 0, 3, 4]]


def test_images_of_one_size_have_no_padding() -> None:
    batch = collate([Views(sample=sample(3, 4)), Views(sample=sample(3, 4))])
    assert batch.padding is None and batch.sizes == [(3, 4), (3, 4)]


def test_padding_and_views_that_are_there_already_are_kept() -> None:
    view = Views(
        sample=sample(2, 2, instances=tv_tensors.Mask(torch.ones(1, 2, 2, dtype=torch.bool))),
        padding=torch.tensor([[False, True], [False, True]]),
        strong=(torch.ones(3, 2, 2, dtype=torch.uint8),),
    )
    other = Views(
        sample=sample(3, 3, instances=tv_tensors.Mask(torch.ones(1, 3, 3, dtype=torch.bool))),
        strong=(torch.ones(3, 3, 3, dtype=torch.uint8),),
        padding=torch.zeros(3, 3, dtype=torch.bool),
    )
    batch = collate([view, other])
    assert batch.sizes == [(2, 1), (3, 3)]
    assert batch.strong[0][0].sum() == 3 * 4 and batch.instances is not None
    assert batch.instances[0].shape == (1, 3, 3) and int(batch.instances[0].sum()) == 4


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_sizes_are_those_of_the_images(sizes: list[tuple[int, int]]) -> None:
    batch = collate([Views(sample=sample(*size)) for size in sizes])
    assert batch.sizes == sizes
    assert batch.image.shape[-2:] == (max(height for height, _ in sizes), max(width for _, width in sizes))


def test_targets_are_those_of_each_view() -> None:
    views = [Views(sample=sample(2, 2 + wider), targets={"radii": torch.ones(wider)}) for wider in (0, 1)]
    batch = collate(views)
    assert [len(each) for each in batch.targets["radii"]] == [0, 1]
