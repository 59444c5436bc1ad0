"""The square input of detectors: what is drawn, and that masks go along."""

from __future__ import annotations

import torch
from torchvision import tv_tensors

from labelwise.samples import Sample
from labelwise.transforms.canvas import StretchOnCanvas
from labelwise.transforms.weak import MEAN_COLOR


def sample() -> Sample:
    """A white image of 20 x 40 pixels that one shape fills."""
    image = tv_tensors.Image(torch.full((3, 20, 40), 255, dtype=torch.uint8))
    instances = tv_tensors.Mask(torch.ones(1, 20, 40, dtype=torch.bool))
    return Sample(id="a", image=image, instances=instances, instance_labels=torch.tensor([1]))


def test_an_image_is_stretched_to_the_square() -> None:
    found = sample().transformed(StretchOnCanvas(32, 0.0))
    assert found.image.shape == (3, 32, 32)
    assert bool((found.image == 255).all())
    assert found.instances is not None
    assert bool(found.instances.all())


def test_on_a_canvas_the_shape_is_where_the_image_is_and_the_rest_has_the_mean_color() -> None:
    torch.manual_seed(0)
    sizes = set()
    for _ in range(20):
        found = sample().transformed(StretchOnCanvas(32, 1.0))
        assert found.instances is not None
        inside = found.instances[0].as_subclass(torch.Tensor)
        image = found.image.as_subclass(torch.Tensor)
        assert torch.equal(inside, (image == 255).all(0))
        assert bool((image[:, ~inside] == torch.tensor(MEAN_COLOR)[:, None]).all())
        side = int(inside.any(0).sum())
        assert int(inside.sum()) == side**2
        assert 8 <= side <= 32
        sizes.add(side)
    assert len(sizes) > 5
