"""What every classifier promises: its views, losses, tags, scores and learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.samples import Batch, Sample
from labelwise.tasks.classification import ClassificationConfig, ClassificationMethod, tags_of_sample

CLASSES = Classes(("background", "cat", "dog", "cow"))


class Means(ClassificationMethod):
    """Scores are the mean colors."""

    def build_network(self, *, pretrained: bool) -> nn.Module:
        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                return x.mean((2, 3)) * self.weight

        return Network()


def means(**options: Any) -> Means:
    return Means(ClassificationConfig(**{"crop": 16, "resize": 20, **options}), CLASSES)


def batch(*tags: list[int]) -> Batch:
    image = torch.randint(256, (len(tags), 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = tuple(f"image {number}" for number in range(len(tags)))
    return Batch(ids=ids, image=image, tags=torch.tensor(tags, dtype=torch.uint8))


def test_the_background_has_no_score() -> None:
    method, labeled = means(), batch([0, 1, 0, 1])
    logits = method.network(method.normalize(labeled.image))
    expected = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    assert method.tag_names == ("cat", "dog", "cow")
    torch.testing.assert_close(method.losses(labeled=labeled)["tags"], expected)


def test_without_a_background_every_class_has_one() -> None:
    method = Means(ClassificationConfig(crop=16, resize=20), Classes(("road", "sky", "tree"), background=None))
    assert method.tag_names == ("road", "sky", "tree")


def test_what_is_difficult_teaches_nothing() -> None:
    one, other = batch([0, 1, 0, 255]), batch([0, 1, 0, 255])
    one.image[:, 2], other.image[:, 2] = 0, 200
    terms = [means().losses(labeled=each)["tags"] for each in (one, other)]
    torch.testing.assert_close(*terms)


def test_the_loss_of_single_label_images_is_the_softmax_cross_entropy() -> None:
    method, labeled = means(loss="single_label"), batch([0, 0, 1, 255], [0, 1, 0, 0])
    logits = method.network(method.normalize(labeled.image))
    expected = nn.functional.cross_entropy(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(method.losses(labeled=labeled)["tags"], expected)


@pytest.mark.parametrize(("tags", "count"), [([0, 1, 1, 0], 2), ([0, 0, 0, 0], 0)])
def test_single_label_refuses_images_of_another_number_of_classes(tags: list[int], count: int) -> None:
    with pytest.raises(UserError, match=f"--loss single_label: image 'image 1' has {count} tags, not one"):
        means(loss="single_label").losses(labeled=batch([0, 1, 0, 0], tags))


def test_the_training_view_is_a_random_part_with_the_images_tags() -> None:
    sample = Sample(
        id="a",
        image=tv_tensors.Image(torch.randint(256, (3, 30, 50), dtype=torch.uint8)),
        tags=torch.tensor([0, 1, 0, 255], dtype=torch.uint8),
        mask=tv_tensors.Mask(torch.zeros(30, 50, dtype=torch.uint8)),
    )
    views = [means().tagged_view(sample).sample for _ in range(2)]
    assert all(view.image.shape == (3, 16, 16) and view.image.dtype == torch.uint8 for view in views)
    assert not torch.equal(views[0].image, views[1].image)
    assert all(torch.equal(view.tags, sample.tags) and view.mask is None for view in views)


def test_training_crops_take_the_configured_share_of_the_area() -> None:
    rows = torch.arange(100, dtype=torch.uint8).view(1, 100, 1).expand(3, 100, 100)
    method = means(scale_range=(0.64, 1.0), crop=100, resize=100)
    for _ in range(20):
        shown = method.geometric()(tv_tensors.Image(rows))
        # Of the greatest ratio of sides, 4/3, the height is 0.69 of the image's.
        assert int(shown.max()) - int(shown.min()) >= 100 * (0.64 * 3 / 4) ** 0.5 - 4


@pytest.mark.parametrize("size", [(40, 40), (30, 53), (71, 33)])
def test_the_evaluation_view_is_the_middle_of_the_scaled_image(size: tuple[int, int]) -> None:
    rows, columns = np.indices(size)
    pixels = np.stack([rows * 3, columns * 3, rows + columns], axis=2).astype(np.uint8)
    image = torch.from_numpy(pixels.transpose(2, 0, 1))[None]
    factor = 20 / min(size)
    scaled = Image.fromarray(pixels).resize(
        (round(size[1] * factor), round(size[0] * factor)), Image.Resampling.BILINEAR
    )
    left, top = (scaled.width - 16) / 2, (scaled.height - 16) / 2
    expected = np.asarray(scaled.crop((round(left), round(top), round(left) + 16, round(top) + 16))).transpose(2, 0, 1)
    found = means().evaluation_view(image)[0].numpy().astype(int)
    # Scaling rounds the long side; the difference is below a pixel, which here is a gradient's step.
    assert np.abs(found - expected).max() <= 3 / factor + 2


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 2)])
def test_images_of_any_shape_are_predicted(size: tuple[int, int]) -> None:
    method = means()
    assert method.predict(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape == (1, 3)


def test_tags_begin_at_the_threshold() -> None:
    probabilities = torch.tensor([[0.69, 0.7, 0.9], [0.1, 0.2, 0.3]])
    assert means(threshold=0.7).tags(probabilities).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


def test_single_label_images_get_their_likeliest_tag() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2]])
    method = means(loss="single_label")
    probabilities = method.probabilities(logits)
    assert probabilities.sum() == pytest.approx(1)
    assert method.tags(probabilities).tolist() == [[0, 0, 1, 0]]


def test_every_order_of_certainty_counts_in_the_score() -> None:
    method = means()
    method.predict = lambda image: image.flatten(1)[:, :3].float()  # type: ignore[method-assign]
    # Probabilities of both are 1 in float32.
    for value, tag in ((60, 1), (40, 0)):
        image = torch.full((1, 3, 1, 1), value, dtype=torch.uint8)
        tags = torch.tensor([[0, tag, tag, tag]], dtype=torch.uint8)
        method.validation_step(Batch(ids=("a",), image=image, tags=tags), 0)
    assert method.scores.compute().map == 100


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        ({"rate_drops": 1}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "constant"}, [1] * 8),
        ({"schedule": "poly"}, [(1 - step / 8) ** 0.9 for step in range(8)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(options: dict[str, Any], factors: list[float]) -> None:
    method = means(steps=8, **options)
    assert [method.rate_factor(step) for step in range(8)] == pytest.approx(factors)


def test_weight_decay_acts_on_everything() -> None:
    optimizer = means().configure_optimizers()["optimizer"]  # type: ignore[index]
    (group,) = optimizer.param_groups
    assert (group["nesterov"], group["momentum"], group["weight_decay"], group["initial_lr"]) == (True, 0.9, 4e-5, 0.1)


def sample(**labels: Any) -> Sample:
    return Sample(id="a", image=tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8)), **labels)


def test_tags_are_derived_from_every_stronger_label() -> None:
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[1], mask[2] = 2, 255
    boxes = {"box_labels": torch.tensor([1, 2]), "difficult": torch.tensor([True, False])}
    assert tags_of_sample(sample(mask=tv_tensors.Mask(mask)), CLASSES).tolist() == [0, 0, 1, 0]
    assert tags_of_sample(sample(**boxes), CLASSES).tolist() == [0, 255, 1, 0]
    assert tags_of_sample(sample(point_labels=torch.tensor([3, 0])), CLASSES).tolist() == [0, 0, 0, 1]
    assert tags_of_sample(sample(instance_labels=torch.tensor([3, 3])), CLASSES).tolist() == [0, 0, 0, 1]


def test_an_image_without_labels_is_refused() -> None:
    with pytest.raises(UserError, match="image 'a' has no label that tells its tags"):
        tags_of_sample(sample(), CLASSES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": 4}, "--crop 4: must be at least 8"),
        ({"crop": 30}, "--resize 20: must be at least 30"),
        ({"threshold": 1.5}, "--threshold 1.5: must be between 0 and 1"),
        ({"scale_range": (0.5, 1.2)}, r"--scale-range 0.5 1.2: must be two rising numbers"),
        ({"rate_drops": -1}, "--rate-drops -1: must be at least 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        means(**options)
