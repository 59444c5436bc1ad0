from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from labelwise.models.confident_labels import confident_cells, confident_labels, crf_labels, seed_rows
from labelwise.models.dense_crf import PRESETS

CAM, SOFT = PRESETS["cam"], PRESETS["pydensecrf"]
PLAIN = replace(CAM, appearance_weight=0, smoothness_weight=0)


def scene() -> tuple[Tensor, Tensor]:
    """A red and a blue half of an image, with maps that fall off from the middle of each: [3, 24, 32], [2, 24, 32]."""
    image = torch.zeros(3, 24, 32, dtype=torch.uint8)
    image[0, :, :12], image[2, :, 20:] = 255, 255
    columns = torch.arange(32.0).expand(24, 32)
    return image, torch.stack([(1 - (columns - place).abs() / 16).clamp(0, 1) for place in (4, 28)])


def test_without_a_crf_the_labels_follow_the_two_constants() -> None:
    image, maps = scene()
    labels = confident_labels(image, maps, 0.6, 0.3, PLAIN)
    best = maps.amax(0)
    assert torch.equal(labels == 0, best <= 0.3)
    assert torch.equal(labels == 255, (best > 0.3) & (best <= 0.6))
    assert torch.equal(labels[best > 0.6], (maps.argmax(0) + 1).to(torch.uint8)[best > 0.6])


def test_a_seed_of_maps_below_the_background_is_background() -> None:
    assert (seed_rows(torch.full((2, 3, 4), 0.1), 0.15) == 0).all()
    assert (seed_rows(torch.full((1, 3, 4), 1.0), 0.15) == 1).all()


def test_the_crf_moves_the_seed_to_the_edges_of_colors() -> None:
    image, maps = scene()
    labels = crf_labels(image, maps, 0.6, CAM)
    assert (labels[:, :12] == 1).all() and (labels[:, 20:] == 2).all() and (labels[:, 13:19] == 0).all()


def test_cells_of_8_pixels_have_one_label_also_at_the_border() -> None:
    image, maps = scene()
    labels = confident_cells(image[:, :20, :30], maps[:, :20, :30], 4, 32, SOFT)
    assert labels.shape == (20, 30)
    for top in range(0, 20, 8):
        for left in range(0, 30, 8):
            assert len(labels[top : top + 8, left : left + 8].unique()) == 1
    assert {1, 2} <= set(labels.unique().tolist())


def test_a_small_alpha_makes_more_background_and_between_two_nothing_is_sure() -> None:
    image = scene()[0]
    # Cells of no class, of one that only a large alpha finds, and of one that any finds.
    maps = torch.tensor([0.0, 0.2, 0.7, 0.2]).repeat_interleave(8).expand(1, 24, 32)
    wide, narrow, between = (confident_cells(image, maps, *alphas, PLAIN) for alphas in ((4, 4), (32, 32), (4, 32)))
    assert 255 not in wide and 255 not in narrow
    assert 0 < (narrow == 0).sum() < (wide == 0).sum()
    assert torch.equal(between == 255, (wide == 0) & (narrow > 0))
    assert torch.equal(between == 0, narrow == 0)


@pytest.mark.parametrize("way", [confident_labels, confident_cells])
def test_an_image_without_maps_is_background(way: object) -> None:
    image, nothing = scene()[0], torch.zeros(0, 24, 32)
    assert callable(way) and (way(image, nothing, 0.3, 0.4, CAM) == 0).all()
