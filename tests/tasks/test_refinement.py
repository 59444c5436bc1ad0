from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.method import Card, Needs
from labelwise.models.tiny import MicroNetwork
from labelwise.samples import Kind, Sample, ScoreMaps, Views, collate
from labelwise.tasks.refinement import RefinementConfig, RefinementMethod

CLASSES = Classes(("background", "cat", "dog"))


class Brightness(RefinementMethod):
    """Gives every class of the maps its map, and the background 0.5."""

    card = Card(
        name="brightness",
        title="",
        task="refinement",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="",
        year=2026,
        idea="",
    )

    def build_network(self, *, pretrained: bool) -> nn.Module:
        network = nn.Module()
        network.backbone = nn.Module()
        network.backbone.body = MicroNetwork(2)
        return network

    def losses(self, *args: Any, **streams: Any) -> dict[str, Tensor]:
        return {}

    def predict(self, image: Tensor) -> Tensor:
        return torch.ones(1)

    def refined(self, image: Tensor, maps: ScoreMaps) -> Tensor:
        return torch.cat([torch.full_like(maps.fine[:1], 0.5), maps.fine])


def sample(labels: list[int], mask: list[int]) -> Sample:
    """An image of 1 x 4 pixels whose first map is high on the left, and the second on the right."""
    ramp = torch.tensor([[1.0, 0.8, 0.2, 0.0]])
    fine = torch.stack([ramp, ramp.flip(1)])[: len(labels)]
    maps = ScoreMaps(labels=torch.tensor(labels, dtype=torch.int64), fine=fine, coarse=fine[..., :1])
    image = tv_tensors.Image(torch.zeros(3, 1, 4, dtype=torch.uint8))
    return Sample(id="a", image=image, mask=tv_tensors.Mask(torch.tensor([mask], dtype=torch.uint8)), maps=maps)


@pytest.fixture
def method() -> Brightness:
    return Brightness(RefinementConfig(), CLASSES)


@pytest.mark.parametrize(
    ("labels", "expected"), [([2], [2, 2, 0, 0]), ([1, 2], [1, 1, 2, 2]), ([2, 1], [2, 2, 1, 1]), ([], [0] * 4)]
)
def test_the_mask_has_the_numbers_of_the_maps_classes(
    method: Brightness, labels: list[int], expected: list[int]
) -> None:
    mask = method.refined_mask(sample(labels, [0] * 4))
    assert mask.dtype == torch.uint8 and mask.tolist() == [expected]


def test_an_image_without_score_maps_is_refused(method: Brightness) -> None:
    bare = Sample(id="a", image=tv_tensors.Image(torch.zeros(3, 1, 4, dtype=torch.uint8)))
    with pytest.raises(UserError, match="image 'a' has no score maps; make them with"):
        method.refined_mask(bare)


def test_masks_and_seeds_of_the_same_images_are_scored(method: Brightness) -> None:
    method.log = lambda *values, **options: None  # type: ignore[method-assign,assignment]
    method.validation_step(collate([method.masked_view(sample([2], [2, 2, 0, 0]))]), 0)
    method.on_validation_epoch_end()
    assert method.results == {"images": 0}, "masks alone cannot be scored: there are no maps to refine"
    method.validation_step(collate([Views(sample=sample([2], [2, 2, 2, 0]))]), 0)
    method.on_validation_epoch_end()
    assert method.results["images"] == 1
    assert method.results["miou"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert method.results["seed_miou"] == pytest.approx(100)
    assert method.results["seed_threshold"] == pytest.approx(0.05)


def test_what_a_crop_lacks_is_unsure_and_the_maps_stay_behind() -> None:
    method = Brightness(RefinementConfig(crop=8, scale_range=(1, 1)), CLASSES)
    view = method.streams()["labeled"].transform(sample([2], [2, 2, 0, 0]))
    assert view.sample.maps is None and view.sample.mask is not None
    assert view.sample.mask.shape == (8, 8)
    assert (view.sample.mask != 255).sum() == 4


def test_a_pixel_of_the_map_takes_the_label_in_its_middle(method: Brightness) -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[0, 6, 6] = 1
    batch = collate([method.masked_view(sample([], [0] * 4))])
    batch.mask = mask
    negative = method.pair_labels(batch, (2, 2), 2).negative[0]
    assert negative.any(), "the pixel at (6, 6) is the middle of the last cell"
    batch.mask = mask.roll(-1, 2)
    assert not method.pair_labels(batch, (2, 2), 2).negative.any()


def test_frozen_layers_are_those_named() -> None:
    method = Brightness(RefinementConfig(frozen_layers=("low",)), CLASSES)
    learns = {name.split(".")[3] for name, weight in method.named_parameters() if weight.requires_grad}
    assert learns == {"high"}
    with pytest.raises(UserError, match="--frozen-layers layer9: the backbone has no such layer"):
        Brightness(RefinementConfig(frozen_layers=("layer9",)), CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 1}, "--radius 1: must be at least 2"),
        ({"log_steps": 20}, "--log-steps 20: must be at most 16"),
        ({"beta": -1.0}, "--beta -1.0: must be at least 0"),
        ({"momentum": 1.5}, "--momentum 1.5: must be between 0 and 1"),
        ({"scale_range": (2.0, 1.0)}, "--scale-range 2.0 1.0: must be two rising numbers"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RefinementConfig(**options)


def test_a_data_set_without_a_background_is_refused() -> None:
    with pytest.raises(UserError, match="a walk needs a background"):
        Brightness(RefinementConfig(), Classes(("cat", "dog"), background=None))
