from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelwise.transforms.mixing import cutmix_masks_from_uniform, paste, sample_cutmix_boxes, sample_cutmix_masks


def test_boxes_have_the_published_distribution() -> None:
    size = 321
    generator = torch.Generator().manual_seed(0)
    boxes = torch.cat([sample_cutmix_boxes(50, size, generator) for _ in range(40)])
    present = boxes.flatten(1).any(1)
    assert present.float().mean().item() == pytest.approx(0.5, abs=0.04)
    rows, columns = boxes[present].any(2).long(), boxes[present].any(1).long()
    height, width, left = rows.sum(1), columns.sum(1), columns.argmax(1)
    assert (height * width / size**2).median().item() == pytest.approx(0.20, abs=0.02)
    assert (height / width).median().item() == pytest.approx(1.54, abs=0.08)
    assert (left / size).median().item() == pytest.approx(0.29, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(8, 64))
def test_every_box_is_one_full_rectangle_of_allowed_area(seed: int, size: int) -> None:
    for box in sample_cutmix_boxes(4, size, torch.Generator().manual_seed(seed), p=1.0):
        height, width = int(box.any(1).sum()), int(box.any(0).sum())
        assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None, :])
        assert height * width <= 0.4 * size**2
        assert bool(box.any(1).int().diff().abs().sum() <= 2) and bool(box.any(0).int().diff().abs().sum() <= 2)


def test_boxes_without_probability_are_empty_and_an_empty_batch_is_possible() -> None:
    assert not sample_cutmix_boxes(16, 32, p=0.0).any()
    assert sample_cutmix_boxes(0, 32).shape == (0, 32, 32)


def test_masks_have_the_published_share() -> None:
    shares = sample_cutmix_masks(4000, (64, 64), torch.Generator().manual_seed(0)).float().mean((1, 2, 3))
    assert shares.mean().item() == pytest.approx(0.253, abs=0.004)
    assert shares.std().item() == pytest.approx(0.068, abs=0.004)


def test_one_box_from_known_numbers() -> None:
    # share 0.25 and aspect 0.5: half the height, half the width; position 1 and 0: bottom left
    mask = cutmix_masks_from_uniform(torch.zeros(1, 1), torch.full((1, 1), 0.5), torch.tensor([[[1.0, 0.0]]]), (8, 12))
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[4:, :6] = True
    assert torch.equal(mask, expected[None, None])


def test_overlapping_boxes_flip_back() -> None:
    same = torch.full((1, 2), 0.5)
    assert not cutmix_masks_from_uniform(same, same, torch.full((1, 2, 2), 0.5), (16, 16)).any()


def test_the_same_generator_state_gives_the_same_boxes() -> None:
    first, second = (sample_cutmix_boxes(4, 40, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("channel", [False, True])
def test_pasting_takes_the_partner_inside_the_box_only(channel: bool) -> None:
    box = torch.zeros(2, 4, 5, dtype=torch.bool)
    box[0, 1:3, 2:4] = True
    given_box = box[:, None] if channel else box
    images = paste(torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5), given_box)
    labels = paste(torch.zeros(2, 4, 5, dtype=torch.int64), torch.ones(2, 4, 5, dtype=torch.int64), given_box)
    assert torch.equal(images, box[:, None].expand(2, 3, 4, 5).float())
    assert torch.equal(labels, box.long())


def test_masks_are_the_exclusive_or_of_their_boxes() -> None:
    uniform = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(1))
    masks = cutmix_masks_from_uniform(uniform[..., 0], uniform[..., 1], uniform[..., 2:], (30, 21))
    expected = torch.zeros(5, 30, 21, dtype=torch.bool)
    for image, box in torch.cartesian_prod(torch.arange(5), torch.arange(3)).tolist():
        share, aspect, top, left = uniform[image, box].tolist()
        share = 0.25 + 0.25 * share
        tall = math.exp(aspect * math.log(share))
        height, width = (round(part * 3**-0.5 * side) for part, side in ((tall, 30), (share / tall, 21)))
        y, x = round((30 - height) * top), round((21 - width) * left)
        expected[image, y : y + height, x : x + width] ^= True
    assert torch.equal(masks, expected[:, None])
