"""What all segmenters share: learning rates, schedule, frozen normalisation, windows, scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.methods.masks.supervised import Supervised
from labelwise.samples import Batch

CLASSES = Classes(("background", "cat", "dog"))


def method(**options: object) -> Supervised:
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "crop": 32}
    return Supervised(Supervised.Config(**{**settings, **options}), CLASSES)


def image(height: int = 32, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (1, 3, height, width), generator=generator, dtype=torch.uint8)


def test_the_learning_rate_at_half_of_the_steps_is_a_half_to_the_0_9() -> None:
    segmenter = method(learning_rate=1.0, head_multiplier=1.0)
    segmenter.total_steps = 10
    schedule = segmenter.configure_optimizers()["lr_scheduler"]["scheduler"]
    for _ in range(5):
        schedule.optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(0.5**0.9)


def test_the_head_learns_faster_by_the_multiplier() -> None:
    segmenter = method(learning_rate=0.1, head_multiplier=10.0)
    groups = segmenter.configure_optimizers()["optimizer"].param_groups
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rate_of[id(parameter)] for parameter in segmenter.network.backbone.parameters()} == {0.1}
    assert {rate_of[id(parameter)] for parameter in segmenter.network.classifier.parameters()} == {1.0}
    assert len(rate_of) == len(list(segmenter.parameters()))


def test_weight_decay_can_spare_norms_and_biases() -> None:
    groups = method(decay_norms=False).configure_optimizers()["optimizer"].param_groups
    for group in groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] > 0) for parameter in group["params"])


def test_frozen_norms_keep_the_backbones_statistics_and_no_others() -> None:
    segmenter = method(freeze_norms=True).train()
    training = {
        name.startswith("network.backbone"): module.training
        for name, module in segmenter.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert training == {True: False, False: True}


def test_a_window_as_large_as_the_image_changes_nothing() -> None:
    whole, windowed = method().eval(), method(window=64).eval()
    picture = image(64, 64)
    torch.testing.assert_close(whole.predict(picture), windowed.predict(picture), atol=1e-5, rtol=1e-4)


def test_predictions_have_the_images_own_size() -> None:
    assert method().eval().predict(image(37, 53)).shape == (1, len(CLASSES), 37, 53)


def test_a_mask_of_another_size_is_refused_in_scoring() -> None:
    batch = Batch(ids=("a",), image=image(), mask=torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="size"):
        method().eval().validation_step(batch, 0)


@pytest.mark.parametrize("options", [{"steps": -1}, {"batch_size": 0}, {"epochs": 0.0}, {"eval_every": -5}])
def test_numbers_that_no_training_can_have_are_refused(options: dict[str, float]) -> None:
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{name}"):
        method(**options)


def test_epochs_count_whole_batches() -> None:
    config = Supervised.Config(epochs=3, batch_size=4)
    assert config.total_steps(11) == 6
    assert Supervised.Config(epochs=3, steps=5).total_steps(11) == 5
