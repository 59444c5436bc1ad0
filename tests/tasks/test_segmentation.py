"""What all segmenters share: learning rates, schedule, frozen normalisation, windows, scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import ohem_cross_entropy
from labelwise.methods.masks.supervised import Supervised
from labelwise.metrics.trimap import TrimapIoU
from labelwise.samples import Batch
from labelwise.tasks import segmentation

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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"window": 512}, (512, 342, "shift", "logits")),
        ({"window": 800}, (800, 534, "shift", "logits")),
        ({"window": 801, "windows": "cut"}, (801, 534, "cut", "softmax")),
        ({"window": 1, "windows": "cut"}, (1, 1, "cut", "softmax")),
        ({"window": 1}, (1, 1, "shift", "logits")),
    ],
)
def test_windows_step_by_two_thirds_as_in_their_papers(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], expected: tuple[object, ...]
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        segmentation, "sliding_window_logits", lambda network, image, *rest: asked.append(rest) or image
    )
    method(**options).eval().predict(image())
    assert asked == [expected]


def test_shifted_windows_average_logits_and_cut_ones_probabilities() -> None:
    picture = image(48, 48)
    shifted, cut = (method(window=32, windows=windows).eval().predict(picture) for windows in ("shifted", "cut"))
    torch.testing.assert_close(cut.exp().sum(1), torch.ones(1, 48, 48))
    assert not torch.allclose(shifted.exp().sum(1), torch.ones(1, 48, 48))


def labeled(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(3, (2, 32, 32), generator=generator, dtype=torch.uint8)
    mask[:, :4] = 255
    picture = torch.randint(256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(ids=("a", "b"), image=picture, mask=mask)


def test_the_supervised_loss_is_that_of_all_pixels_or_of_the_hard_ones() -> None:
    logits = 3 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    every, few, many = (method(ohem_pixels=pixels).supervised_loss(logits, labeled()) for pixels in (0, 1, 900))
    mask = labeled().mask.long()
    torch.testing.assert_close(every, nn.functional.cross_entropy(logits, mask, ignore_index=255))
    hard = ohem_cross_entropy(logits, mask, threshold=0.7, min_kept=2)
    torch.testing.assert_close(few, hard)
    assert few > every
    # 900 pixels per image are more than the 896 that are labelled in each.
    torch.testing.assert_close(many, every)


def test_the_baseline_learns_from_the_hard_pixels_where_its_rivals_do() -> None:
    segmenter = method(ohem_pixels=1)
    logits = segmenter.network(segmenter.normalize(labeled().image))
    expected = ohem_cross_entropy(logits, labeled().mask, threshold=0.7, min_kept=2)
    torch.testing.assert_close(method(ohem_pixels=1).losses(labeled=labeled())["supervised"], expected)


@pytest.mark.parametrize(
    ("options", "rates"),
    [({}, (6, 12, 18)), ({"output_stride": 8}, (12, 24, 36)), ({"aspp_rates": (2, 4)}, (2, 4))],
)
def test_the_pyramids_dilations_follow_the_output_stride_unless_they_are_named(
    options: dict[str, object], rates: tuple[int, ...]
) -> None:
    branches = method(**options).network.aspp.convs
    assert tuple(branch[0].dilation[0] for branch in branches) == (1, *rates)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"decoder_channels": 256}, 48),
        ({"decoder_channels": 128}, 24),
        ({"decoder_channels": 8}, 16),
        ({"decoder_channels": 256, "low_channels": 24}, 24),
    ],
)
def test_the_low_feature_has_48_channels_of_256(options: dict[str, int], channels: int) -> None:
    assert method(**options).network.low[0].out_channels == channels


@pytest.mark.parametrize(("backbone", "output_stride"), [("micro_w2", 4), ("mobilenetv2_035", 32)])
def test_other_output_strides_give_predictions_of_the_images_size(backbone: str, output_stride: int) -> None:
    segmenter = method(backbone=backbone, output_stride=output_stride).eval()
    assert segmenter.network.backbone.strides[-1] == output_stride
    assert segmenter.predict(image(37, 53)).shape == (1, 3, 37, 53)


class WithCompanions(Supervised):
    """Knows a network that says class 1 everywhere, and one that says class 2."""

    def companions(self) -> dict[str, Callable[[Tensor], Tensor]]:
        def always(number: int) -> Callable[[Tensor], Tensor]:
            scores = nn.functional.one_hot(torch.tensor(number), 3).float()
            return lambda image: scores.view(1, 3, 1, 1).expand(len(image), 3, *image.shape[2:])

        return {"cats": always(1), "dogs": always(2)}


def scored(training: bool, window: int = 0) -> dict[str, object]:
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "crop": 32, "window": window}
    segmenter = WithCompanions(Supervised.Config(**settings), CLASSES, training=training).eval()
    segmenter.log = lambda *arguments, **options: None
    mask = torch.ones(1, 32, 48, dtype=torch.uint8)
    mask[:, :, :12] = 2
    for _ in range(2):
        segmenter.validation_step(Batch(ids=("a",), image=image(), mask=mask), 0)
        segmenter.on_validation_epoch_end()
    return segmenter.results


@pytest.mark.parametrize("window", [0, 24])
def test_networks_beside_the_kept_one_are_scored_too(window: int) -> None:
    results = scored(training=True, window=window)
    # Of two classes one is found: its IoU is its share of the image, and the other's is 0.
    assert results["miou_cats"] == pytest.approx(75 / 2)
    assert results["miou_dogs"] == pytest.approx(25 / 2)
    assert "miou_cats" not in scored(training=False)


def test_a_thorough_evaluation_scores_the_bands_around_boundaries() -> None:
    segmenter = method().eval()
    segmenter.log = lambda *arguments, **options: None
    mask = torch.ones(1, 32, 48, dtype=torch.uint8)
    mask[:, :, :12] = 2
    batch = Batch(ids=("a",), image=image(), mask=mask)
    for thorough in (False, True):
        segmenter.thorough = thorough
        segmenter.validation_step(batch, 0)
        segmenter.on_validation_epoch_end()
        assert ("trimap_miou" in segmenter.results) == thorough
    expected = TrimapIoU(CLASSES.names)
    expected.update(segmenter.predict(batch.image).argmax(1), mask)
    assert segmenter.results["trimap_miou"] == {str(width): value for width, value in expected.compute().items()}
    assert not segmenter.trimap.histograms.any()


def test_predictions_have_the_images_own_size() -> None:
    assert method().eval().predict(image(37, 53)).shape == (1, len(CLASSES), 37, 53)


def test_a_mask_of_another_size_is_refused_in_scoring() -> None:
    batch = Batch(ids=("a",), image=image(), mask=torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="size"):
        method().eval().validation_step(batch, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"epochs": 0.0},
        {"eval_every": -5},
        {"aspp_rates": (2, 0)},
        {"low_channels": -1},
        {"ohem_pixels": -1},
        {"window": -1},
        {"scale_range": (2.0, 1.0)},
    ],
)
def test_numbers_that_no_training_can_have_are_refused(options: dict[str, object]) -> None:
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{name}"):
        method(**options)


def test_epochs_count_whole_batches() -> None:
    config = Supervised.Config(epochs=3, batch_size=4)
    assert config.total_steps(11) == 6
    assert Supervised.Config(epochs=3, steps=5).total_steps(11) == 5
