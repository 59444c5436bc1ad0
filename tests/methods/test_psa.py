from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.methods.tags.psa import PSA, background_score, padded, pooled
from labelwise.models.pixel_affinity import affinity_labels
from labelwise.samples import Sample, ScoreMaps
from tests.methods.test_irn import scenes

CLASSES = Classes(("background", "cat", "dog"))
OPTIONS: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_weights": "none",
    "freeze_norms": False,
    "crop": 48,
    "color_jitter": 0.0,
    "log_steps": 5,
}


@pytest.fixture(scope="module")
def method() -> PSA:
    torch.manual_seed(0)
    method = PSA(PSA.Config(**OPTIONS), CLASSES)
    optimizer = torch.optim.AdamW(method.parameters(), 2e-3)
    for step in range(30):
        optimizer.zero_grad()
        torch.stack(list(method.losses(scenes(4, step)).values())).sum().backward()
        optimizer.step()
    return method.eval()


@torch.no_grad()
def test_pixels_of_one_class_are_more_alike_than_those_of_two(method: PSA) -> None:
    batch = scenes(16, 1000)
    assert batch.mask is not None
    affinity = method.predict(batch.image)
    stride = method.affinity_net.stride
    pairs = affinity_labels(batch.mask[:, stride // 2 :: stride, stride // 2 :: stride], method.config.radius)
    apart = float(affinity[pairs.negative].mean())
    assert float(affinity[pairs.foreground].mean()) > apart + 0.2
    assert float(affinity[pairs.background].mean()) > apart + 0.2


def test_a_map_of_a_part_grows_to_more_of_the_object(method: PSA) -> None:
    batch = scenes(8, 2000)
    assert batch.mask is not None
    ys, xs = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    overlap = []
    for image, mask in zip(batch.image, batch.mask, strict=True):
        label = int(mask[mask != 255].max())
        rows, columns = (mask == label).nonzero().float().mean(0).tolist()
        fine = torch.exp(-((ys - rows + 6) ** 2 + (xs - columns + 6) ** 2) / 100)[None]
        maps = ScoreMaps(labels=torch.tensor([label]), fine=fine, coarse=functional.avg_pool2d(fine, 4))
        found = method.refined_mask(Sample(id="a", image=tv_tensors.Image(image), maps=maps)) == label
        before = torch.cat([background_score(fine, method.config.alpha), fine]).argmax(0) == 1
        object_ = mask == label
        overlap.append([float((part & object_).sum() / (part | object_).sum()) for part in (before, found)])
    seeds, masks = torch.tensor(overlap).mean(0).tolist()
    assert masks > seeds + 0.1


@torch.no_grad()
def test_images_of_any_size_are_refined(method: PSA) -> None:
    maps = ScoreMaps(labels=torch.tensor([2]), fine=torch.rand(1, 21, 50), coarse=torch.rand(1, 6, 13))
    scores = method.refined(torch.zeros(3, 21, 50, dtype=torch.uint8), maps)
    assert scores.shape == (2, 21, 50)
    assert method.predict(torch.zeros(1, 3, 21, 50, dtype=torch.uint8)).shape[-2:] == pooled(scores, 4).shape[-2:]


def test_a_small_alpha_favors_the_background() -> None:
    maps = torch.tensor([[[0.0, 0.5]], [[0.0, 0.25]]])
    assert background_score(maps, 4).tolist() == [[[1, 0.0625]]]
    assert (background_score(maps, 4) >= background_score(maps, 32)).all()


def test_the_last_cells_are_filled_up_with_zeros() -> None:
    assert padded(torch.ones(1, 5, 8), 4).shape == (1, 8, 8)
    assert pooled(torch.ones(1, 5, 8), 4).tolist() == [[[1, 1], [0.25, 0.25]]]


def test_frozen_norms_do_not_learn_their_scale_either() -> None:
    method = PSA(PSA.Config(**OPTIONS | {"freeze_norms": True}), CLASSES)
    norms = [module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and not any(weight.requires_grad for norm in norms for weight in norm.parameters())
    method.train()
    assert not any(norm.training for norm in norms)


def test_colors_are_changed_only_where_it_is_said() -> None:
    plain, colored = (PSA(PSA.Config(**OPTIONS | {"color_jitter": value}), CLASSES) for value in (0.0, 0.3))
    for method, changes in ((plain, False), (colored, True)):
        (composed,) = [method.augmentation()]
        assert isinstance(composed, v2.Compose)
        assert isinstance(composed.transforms[0], v2.ColorJitter) == changes


@pytest.mark.parametrize("option", ["alpha", "color_jitter"])
def test_wrong_options_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} -1.0: must be at least 0"):
        PSA.Config(**OPTIONS | {option: -1.0})
