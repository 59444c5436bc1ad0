from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from labelwise.samples import Sample, collate
from labelwise.transforms import RandomChoiceScaleCrop, RandomScaleCrop, WeakStrongView, WeakView, photometric


def sample(height: int = 8, width: int = 12) -> Sample:
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[:4, :4] = 1
    mask[0] = 255
    instances = torch.stack([mask == 1, mask == 0])
    return Sample(
        id="a",
        image=tv_tensors.Image(torch.randint(1, 256, (3, height, width), dtype=torch.uint8)),
        mask=tv_tensors.Mask(mask),
        instances=tv_tensors.Mask(instances),
        instance_labels=torch.tensor([1, 2]),
        boxes=tv_tensors.BoundingBoxes(
            torch.tensor([[0.0, 1, 4, 4], [6, 2, 12, 8]]), format="XYXY", canvas_size=(height, width)
        ),
        box_labels=torch.tensor([1, 2]),
        difficult=torch.tensor([False, True]),
        points=tv_tensors.KeyPoints(torch.tensor([[1.0, 2], [11, 7]]), canvas_size=(height, width)),
        point_labels=torch.tensor([1, 2]),
        tags=torch.tensor([0, 1, 1], dtype=torch.uint8),
        captions=("two things",),
    )


class Window:
    """Cut out a part without padding."""

    def __init__(self, top: int, left: int, size: int) -> None:
        self.window = top, left, size, size

    def __call__(self, content: dict[str, object]) -> dict[str, object]:
        return {
            name: v2.functional.crop(value, *self.window) if isinstance(value, tv_tensors.TVTensor) else value
            for name, value in content.items()
        }


def test_padding_is_the_outside_of_the_image_and_not_its_void_pixels() -> None:
    views = WeakView(RandomScaleCrop(16, scale=(1.0, 1.0)))(sample())
    expected = torch.ones(16, 16, dtype=torch.bool)
    expected[:8, :12] = False
    assert views.padding is not None and torch.equal(views.padding, expected)
    assert views.sample.mask is not None and bool((views.sample.mask[0] == 255).all())
    assert torch.equal(views.sample.image.as_subclass(torch.Tensor).eq(0).all(0), expected)


@pytest.mark.parametrize("geometric", [RandomScaleCrop(20), RandomChoiceScaleCrop(20)])
def test_everything_masked_as_padding_is_ignored_in_the_mask(geometric: v2.Transform) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        views = WeakView(v2.Compose([geometric, v2.RandomHorizontalFlip()]))(sample())
        assert views.padding is not None and views.sample.mask is not None
        assert bool((views.sample.mask[views.padding] == 255).all())


def test_what_leaves_the_window_is_removed_with_its_labels() -> None:
    kept = WeakView(Window(0, 0, 4))(sample()).sample
    assert kept.boxes is not None and kept.boxes.tolist() == [[0, 1, 4, 4]]
    assert kept.box_labels is not None and kept.box_labels.tolist() == [1]
    assert kept.difficult is not None and kept.difficult.tolist() == [False]
    assert kept.instances is not None and kept.instances.shape == (1, 4, 4)
    assert kept.instance_labels is not None and kept.instance_labels.tolist() == [1]
    assert kept.points is not None and kept.points.tolist() == [[1, 2]]
    assert kept.point_labels is not None and kept.point_labels.tolist() == [1]
    assert kept.tags is not None and kept.tags.tolist() == [0, 1, 1]
    assert kept.captions == ("two things",)


def test_labels_that_were_not_read_stay_unread_and_no_object_is_fine() -> None:
    bare = Sample(id="a", image=sample().image)
    assert WeakView(RandomScaleCrop(5))(bare).sample.mask is None
    empty = Sample(
        id="a",
        image=bare.image,
        boxes=tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(8, 12)),
        box_labels=torch.zeros(0, dtype=torch.int64),
        instances=tv_tensors.Mask(torch.zeros(0, 8, 12, dtype=torch.bool)),
        instance_labels=torch.zeros(0, dtype=torch.int64),
        points=tv_tensors.KeyPoints(torch.zeros(0, 2), canvas_size=(8, 12)),
        point_labels=torch.zeros(0, dtype=torch.int64),
    )
    view = WeakView(v2.Compose([RandomScaleCrop(5), v2.RandomHorizontalFlip(p=1)]))(empty).sample
    assert view.boxes is not None and view.instances is not None and view.points is not None
    assert (view.boxes.shape, view.instances.shape, view.points.shape) == ((0, 4), (0, 5, 5), (0, 2))


def test_strong_views_show_the_same_crop_with_their_own_changes() -> None:
    shades = iter((1, 2))
    view = WeakStrongView(Window(2, 3, 5), lambda image: tv_tensors.Image(image // 2 + next(shades)), views=2)
    views = view(sample())
    weak = views.sample.image.as_subclass(torch.Tensor)
    assert torch.equal(views.strong[0], weak // 2 + 1)
    assert torch.equal(views.strong[1], weak // 2 + 2)


def test_views_depend_on_the_seed_alone_and_make_a_batch() -> None:
    view = WeakStrongView(v2.Compose([RandomScaleCrop(9), v2.RandomHorizontalFlip()]), photometric(), views=2)
    image = sample()
    batches = []
    for _ in range(2):
        torch.manual_seed(5)
        batches.append(collate([view(image), view(image)]))
    first, second = batches
    assert first.image.shape == (2, 3, 9, 9) and first.padding is not None and first.padding.shape == (2, 9, 9)
    assert torch.equal(first.image, second.image)
    assert all(torch.equal(a, b) for a, b in zip(first.strong, second.strong, strict=True))
