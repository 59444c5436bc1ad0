from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from labelwise.transforms.weak import MEAN_COLOR, RandomChoiceScaleCrop, RandomScaleCrop, ScaleCrop


class Fixed(ScaleCrop):
    """A transform whose draw is given."""

    def __init__(self, crop: int, size: tuple[int, int], origin: tuple[int, int]) -> None:
        super().__init__(crop, (0, 0, 0))
        self.size, self.origin = size, origin

    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.size, self.origin


def photo(height: int, width: int, seed: int = 0) -> tv_tensors.Image:
    """A smooth random picture, channels last as files decode."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def labels(height: int, width: int, seed: int = 0) -> tv_tensors.Mask:
    generator = torch.Generator().manual_seed(seed)
    return tv_tensors.Mask(torch.randint(0, 21, (height, width), dtype=torch.uint8, generator=generator))


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy())


@pytest.mark.parametrize("size", [(60, 80), (28, 48), (124, 176)])
def test_resizing_agrees_with_pillow(size: tuple[int, int]) -> None:
    image, mask = photo(60, 80), labels(60, 80)
    side = max(size)
    out = Fixed(side, size, (0, 0))({"image": image, "mask": mask})
    expected = np.array(pil(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    ours = out["image"][:, : size[0], : size[1]].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - expected).max() <= 1
    nearest = np.array(pil(mask).resize(size[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(out["mask"][: size[0], : size[1]].numpy(), nearest)


def test_the_window_is_cut_and_padded_where_the_draw_says() -> None:
    content: dict[str, Any] = {
        "image": tv_tensors.Image(torch.full((3, 4, 6), 7, dtype=torch.uint8)),
        "mask": tv_tensors.Mask(torch.full((4, 6), 3, dtype=torch.uint8)),
        "instances": tv_tensors.Mask(torch.ones(2, 4, 6, dtype=torch.bool)),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor([[1.0, 0, 5, 3]]), format="XYXY", canvas_size=(4, 6)),
        "points": tv_tensors.KeyPoints(torch.tensor([[5.0, 0.0]]), canvas_size=(4, 6)),
        "box_labels": torch.tensor([4]),
    }
    out = Fixed(5, (4, 6), (-1, 2))(content)
    inside = torch.zeros(5, 5, dtype=torch.bool)
    inside[1:, :4] = True
    assert torch.equal(out["image"], (inside * 7).to(torch.uint8).expand(3, 5, 5))
    assert torch.equal(out["mask"], torch.where(inside, 3, 255).to(torch.uint8))
    assert torch.equal(out["instances"], inside.expand(2, 5, 5))
    assert out["boxes"].tolist() == [[0, 1, 3, 4]]
    assert out["points"].tolist() == [[3, 1]]
    assert out["boxes"].canvas_size == out["points"].canvas_size == (5, 5)
    assert out["box_labels"].tolist() == [4]
    assert {type(out[name]) for name in ("mask", "instances")} == {tv_tensors.Mask}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 40), st.integers(5, 40), st.integers(4, 50), st.booleans())
def test_image_and_labels_move_together(seed: int, height: int, width: int, crop: int, choice: bool) -> None:
    """An object's box and the points on it cover its mask after any draw."""
    torch.manual_seed(seed)
    top, left = int(torch.randint(0, height - 2, ())), int(torch.randint(0, width - 2, ()))
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[top : top + 3, left : left + 3] = 5
    transform = RandomChoiceScaleCrop(crop) if choice else RandomScaleCrop(crop)
    out = transform(
        {
            "image": tv_tensors.Image((mask * 40).expand(3, height, width)),
            "mask": tv_tensors.Mask(mask),
            "instances": tv_tensors.Mask((mask == 5)[None]),
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor([[left, top, left + 3, top + 3]], dtype=torch.float32),
                format="XYXY",
                canvas_size=(height, width),
            ),
            "points": tv_tensors.KeyPoints(torch.tensor([[left + 1.0, top + 1.0]]), canvas_size=(height, width)),
        }
    )
    assert out["image"].shape == (3, crop, crop)
    assert out["mask"].shape == (crop, crop)
    assert torch.equal(out["instances"][0], out["mask"] == 5)
    object_rows, object_columns = (out["mask"] == 5).nonzero().unbind(1)
    if len(object_rows):
        x0, y0, x1, y1 = out["boxes"][0].tolist()
        assert x0 - 0.51 <= object_columns.min().item() and object_columns.max().item() + 1 <= x1 + 0.51
        assert y0 - 0.51 <= object_rows.min().item() and object_rows.max().item() + 1 <= y1 + 0.51
    x, y = out["points"][0].long().tolist()
    if 0 <= x < crop and 0 <= y < crop:
        # A click on the middle of 3x3 pixels stays on the object: no scale here is below one half.
        assert out["mask"][y, x] == 5


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333)])
def test_fixmatch_scale_is_a_uniform_long_side(height: int, width: int) -> None:
    torch.manual_seed(0)
    sizes = torch.tensor([RandomScaleCrop(321).draw(height, width)[0] for _ in range(2000)])
    long, short = sizes.amax(1), sizes.amin(1)
    assert bool((sizes[:, 0] >= sizes[:, 1]).all()) == (height > width)
    assert torch.equal(short, (min(height, width) * long / 500 + 0.5).floor().long())
    assert 250 <= int(long.min()) <= 255 and 995 <= int(long.max()) <= 1000
    assert long.float().mean().item() == pytest.approx(625, rel=0.03)


def test_a_given_base_replaces_the_images_own_size() -> None:
    torch.manual_seed(0)
    long = [max(RandomScaleCrop(321, base=400).draw(375, 500)[0]) for _ in range(500)]
    assert 200 <= min(long) < 210 and 790 < max(long) <= 800


def test_fixmatch_pads_right_and_bottom_and_draws_every_offset() -> None:
    torch.manual_seed(0)
    draws = [RandomScaleCrop(10, scale=(1.0, 1.0)).draw(8, 12) for _ in range(200)]
    assert {size for size, _ in draws} == {(8, 12)}
    assert {origin for _, origin in draws} == {(0, 0), (0, 1), (0, 2)}


def test_cps_pads_evenly_with_the_mean_color() -> None:
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.zeros(3, 4, 7, dtype=torch.uint8))
    out = RandomChoiceScaleCrop(7, scales=(1.0,))({"image": image, "mask": labels(4, 7)})
    outside = out["mask"] == 255
    assert outside.any(1).tolist() == [True, False, False, False, False, True, True]
    assert out["image"][:, outside].unique(dim=1).flatten().tolist() == list(MEAN_COLOR)
    assert not out["image"][:, ~outside].any()


def test_cps_draws_every_scale() -> None:
    torch.manual_seed(0)
    transform = RandomChoiceScaleCrop(16)
    heights = {transform.draw(100, 200)[0] for _ in range(200)}
    assert heights == {(int(100 * scale), int(200 * scale)) for scale in transform.scales}


def test_the_seed_decides() -> None:
    content = {"image": photo(40, 50), "mask": labels(40, 50)}
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(RandomScaleCrop(24)(content)["image"])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_window_need_not_be_square_and_its_padding_has_the_color_told() -> None:
    transform = RandomScaleCrop(24, scale=(0.5, 0.5), fill=(9, 8, 7), width=40)
    content: dict[str, Any] = {
        "image": tv_tensors.Image(torch.full((3, 32, 48), 200, dtype=torch.uint8)),
        "mask": tv_tensors.Mask(torch.ones(32, 48, dtype=torch.uint8)),
        "points": tv_tensors.KeyPoints(torch.tensor([[47.0, 31.0]]), canvas_size=(32, 48)),
    }
    out = transform(content)
    assert out["image"].shape == (3, 24, 40) and out["mask"].shape == (24, 40)
    assert out["points"].canvas_size == (24, 40) and out["points"].tolist() == [[23, 15]]
    assert (out["mask"][:16, :24] == 1).all() and int((out["mask"] == 1).sum()) == 16 * 24
    assert out["image"][:, 20, 30].tolist() == [9, 8, 7] and out["image"][:, 15, 23].tolist() == [200] * 3
