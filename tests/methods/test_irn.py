from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.methods.tags.irn import IRN, walk_start, with_background
from labelwise.samples import Batch, Sample, ScoreMaps

CLASSES = Classes(("background", "cat", "dog"))
OPTIONS: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_weights": "none",
    "freeze_backbone": False,
    "freeze_norms": False,
    "crop": 48,
    "scale_range": (1.0, 1.0),
    "train_radius": 4,
    "log_steps": 6,
}


def scenes(count: int, seed: int, size: int = 48) -> Batch:
    """Noisy squares in the color of their class, with a mask that is unsure around half of the contour."""
    generator = torch.Generator().manual_seed(seed)
    images, masks = [], []
    for _ in range(count):
        image, mask = torch.full((3, size, size), 100.0), torch.zeros(size, size, dtype=torch.uint8)
        label = int(torch.randint(1, 3, (), generator=generator))
        top, left = (int(torch.randint(4, 18, (), generator=generator)) for _ in range(2))
        image[label, top : top + 24, left : left + 24] = 200
        mask[top - 1 : top + 25, left - 1 : left + 12] = 255
        mask[top : top + 24, left : left + 24] = label
        images.append((image + 10 * torch.randn(image.shape, generator=generator)).clamp(0, 255).to(torch.uint8))
        masks.append(mask)
    return Batch(ids=("a",) * count, image=torch.stack(images), mask=torch.stack(masks))


def contours(mask: Tensor) -> Tensor:
    """Where classes meet at stride 4. [B, H, W] -> [B, h, w] bool."""
    labels = mask.masked_fill(mask == 255, 0)[:, 2::4, 2::4].float()[:, None]
    return functional.max_pool2d(labels, 3, 1, 1)[:, 0] != -functional.max_pool2d(-labels, 3, 1, 1)[:, 0]


def trained(method: IRN, steps: int) -> IRN:
    """After some steps on scenes, without a trainer."""
    method.train()
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        torch.stack(list(method.losses(scenes(8, step)).values())).sum().backward()
        optimizer.step()
    return method.eval()


@pytest.fixture(scope="module")
def method() -> IRN:
    torch.manual_seed(0)
    return trained(IRN(IRN.Config(**OPTIONS), CLASSES), 40)


@torch.no_grad()
def test_boundaries_are_found_where_classes_meet(method: IRN) -> None:
    batch = scenes(16, 1000)
    assert batch.mask is not None
    boundary, truth = method.boundary(batch.image), contours(batch.mask)
    assert float(boundary[truth].mean()) > float(boundary[~truth].mean()) + 0.15


def test_a_map_of_a_part_grows_to_the_whole_object(method: IRN) -> None:
    batch = scenes(8, 2000)
    assert batch.mask is not None
    overlap = []
    for image, mask in zip(batch.image, batch.mask, strict=True):
        label = int(mask[mask != 255].max())
        rows, columns = (mask == label).nonzero().float().mean(0).tolist()
        ys, xs = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
        fine = torch.exp(-((ys - rows + 6) ** 2 + (xs - columns + 6) ** 2) / 40)[None]
        maps = ScoreMaps(labels=torch.tensor([label]), fine=fine, coarse=functional.avg_pool2d(fine, 4))
        found = method.refined_mask(Sample(id="a", image=tv_tensors.Image(image), maps=maps))
        object_, refined, seed = mask == label, found == label, fine[0] > 0.25
        overlap.append([float((part & object_).sum() / (part | object_).sum()) for part in (seed, refined)])
    seeds, masks = torch.tensor(overlap).mean(0).tolist()
    assert masks > seeds + 0.1


@torch.no_grad()
def test_a_mirrored_image_has_mirrored_boundaries(method: IRN) -> None:
    image = scenes(1, 3).image
    assert torch.allclose(method.boundary(image).flip(-1), method.boundary(image.flip(-1)), atol=1e-5)


@torch.no_grad()
def test_images_of_any_size_have_boundaries_at_stride_4(method: IRN) -> None:
    assert method.boundary(torch.zeros(1, 3, 21, 70, dtype=torch.uint8)).shape == (1, 6, 18)
    assert method.predict(torch.zeros(1, 3, 21, 70, dtype=torch.uint8)).shape == (1, 34, 6, 18)


def test_the_mean_displacement_is_measured_at_the_end_and_again_the_same(method: IRN, tmp_path: Path) -> None:
    batch = scenes(4, 7)
    samples = [Sample(id=str(number), image=tv_tensors.Image(image)) for number, image in enumerate(batch.image)]
    method.complete(samples, tmp_path)
    mean = method.irnet.displacement.mean.clone()
    method.complete(samples, tmp_path)
    assert torch.equal(method.irnet.displacement.mean, mean)
    assert mean.abs().min() > 0
    with torch.no_grad():
        left = torch.stack([method.irnet(method.normalize(image[None]))[1].mean((0, 2, 3)) for image in batch.image])
    assert torch.allclose(left.mean(0), torch.zeros(2), atol=1e-4)
    assert "displacement.mean" in method.network.state_dict()


def test_the_walk_starts_off_boundaries_and_ends_at_one() -> None:
    start = walk_start(torch.full((2, 2, 3), 0.25), torch.tensor([[0.0, 0.5, 1.0]] * 2), 0.5)
    assert start[0, 0].tolist() == [0.5, 0.25, 0]
    scores = with_background(torch.rand(2, 2, 3), (7, 10), 0.3)
    assert scores.shape == (3, 7, 10)
    assert (scores[0] == 0.3).all() and float(scores[1:].max()) == 1
    assert (with_background(torch.zeros(1, 2, 3), (7, 10), 0.3).argmax(0) == 0).all()


def test_the_displacement_head_learns_faster() -> None:
    method = IRN(IRN.Config(**OPTIONS | {"learning_rate": 0.1}), CLASSES)
    rates = {float(group["lr"]): len(group["params"]) for group in method.parameter_groups()}  # type: ignore[arg-type]
    assert rates.keys() == {0.1, 1.0}
    assert rates[1.0] == len(list(method.irnet.displacement.parameters()))


def test_a_frozen_backbone_is_left_as_it_was() -> None:
    method = IRN(IRN.Config(**OPTIONS | {"freeze_backbone": True, "freeze_norms": True}), CLASSES)
    before = {name: value.clone() for name, value in method.irnet.backbone.state_dict().items()}
    trained(method, 1)
    assert all(torch.equal(value, before[name]) for name, value in method.irnet.backbone.state_dict().items())


def test_a_dilated_backbone_becomes_a_plain_one() -> None:
    method = IRN(IRN.Config(**OPTIONS | {"output_stride": 8}), CLASSES)
    convolutions = [module for module in method.irnet.backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    assert {convolution.dilation for convolution in convolutions} == {(1, 1)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_radius": 1}, "--train-radius 1: must be at least 2"),
        ({"background": 2.0}, "--background 2.0: must be between 0 and 1"),
        ({"frozen_layers": ("layer9",)}, "--frozen-layers layer9: the backbone has no such layer"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        IRN(IRN.Config(**OPTIONS | options), CLASSES)
