"""What DeepLab v3 promises: its recipe, its contexts, and the same weights at another output stride."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import tv_tensors

import labelwise
from labelwise import engine
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.loaders import EndlessBatches
from labelwise.losses.hard_pixels import hard_pixel_cross_entropy
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.masks.deeplab_v3 import DeepLabV3Method
from labelwise.samples import Batch, Sample
from tests.tiny_runs import tiny_run

CLASSES = Classes(("background", "cat", "dog"))
TINY = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "crop": 33, "aspp_rates": (1, 2)}


def method(**options: object) -> DeepLabV3Method:
    torch.manual_seed(0)
    return DeepLabV3Method(DeepLabV3Method.Config(**{**TINY, **options}), CLASSES)  # type: ignore[arg-type]


def labeled(ignored: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(100, (2, 3, 33, 33), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(2, 33, 33, dtype=torch.uint8)
    image[:, 0, :, 16:] += 150
    mask[:, :, 16:] = 2
    return Batch(ids=("a", "b"), image=image, mask=torch.full_like(mask, 255) if ignored else mask)


def at(trained: DeepLabV3Method, output_stride: int) -> DeepLabV3Method:
    """The trained weights at another output stride, as an evaluation builds them."""
    other = DeepLabV3Method(trained.config.at_output_stride(output_stride), CLASSES, training=False)
    other.network.load_state_dict(trained.network.state_dict())
    return other.eval()


def test_the_loss_is_that_of_the_logits_at_the_crops_size() -> None:
    learner, batch = method().eval(), labeled()
    logits = learner.network(learner.normalize(batch.image))
    assert logits.shape == (2, 3, 33, 33)
    torch.testing.assert_close(learner.losses(labeled=batch)["supervised"], cross_entropy(logits, batch.mask))
    mined = method(hard_pixels=0.2).eval()
    expected = hard_pixel_cross_entropy(logits, batch.mask, 0.2)
    torch.testing.assert_close(mined.losses(labeled=batch)["supervised"], expected)


def test_a_batch_without_a_labelled_pixel_teaches_nothing() -> None:
    for learner in (method(), method(hard_pixels=0.5)):
        term = learner.losses(labeled=labeled(ignored=True))["supervised"]
        term.backward()
        assert term == 0
        assert all(not parameter.grad.any() for parameter in learner.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("options", [{}, {"backbone": "resnet10t", "unit_strides": "first"}])
def test_a_few_steps_on_one_batch_lower_the_loss(options: dict[str, object]) -> None:
    learner, batch = method(optimizer="adamw", learning_rate=0.01, **options), labeled()
    optimizer = learner.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(8):
        loss = learner.losses(labeled=batch)["supervised"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_trained_at_16_and_evaluated_at_8_without_retraining() -> None:
    trained = method(image_pooling=False)
    for module in trained.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    trained.eval()
    finer = at(trained, 8)
    assert finer.config.rates == (2, 4) and finer.config.output_stride == 8
    picture = torch.randint(256, (1, 3, 65, 49), dtype=torch.uint8)
    # Corners are aligned, so that every 16th pixel of the logits is a pixel of the coarser map.
    there, here = trained.predict(picture), finer.predict(picture)
    torch.testing.assert_close(here[..., ::16, ::16], there[..., ::16, ::16], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(here, there, atol=1e-3)


def test_rates_go_with_the_output_stride() -> None:
    config = DeepLabV3Method.Config()
    assert config.rates == (6, 12, 18)
    assert config.at_output_stride(8).rates == (12, 24, 36)
    assert config.at_output_stride(32).rates == (3, 6, 9)
    assert replace(config, aspp_rates=(4,)).at_output_stride(8).at_output_stride(16).rates == (4,)
    with pytest.raises(UserError, match="--output-stride 12: must be one of 4, 8, 16, 32, 64, 128, 256"):
        config.at_output_stride(12)
    with pytest.raises(UserError, match="--output-stride 64: this network's greatest is 32"):
        config.at_output_stride(64)


def test_a_cascade_and_its_output_strides() -> None:
    options = {"backbone": "resnet18", "context": "cascade", "cascade_blocks": 1, "output_stride": 64}
    trained = method(**options, multi_grid=(1, 2)).eval()
    picture = torch.randint(256, (1, 3, 65, 65), dtype=torch.uint8)
    for learner in (trained, at(trained, 16)):
        assert learner.predict(picture).shape == (1, 3, 65, 65)
    cascade = at(trained, 16).network.aspp
    assert [conv.dilation[0] for conv in cascade.modules() if isinstance(conv, nn.Conv2d)] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "cascade"}, "--context cascade: backbone 'tiny' has no last block to copy"),
        ({"backbone": "resnet18", "context": "cascade", "unit_strides": "first"}, "--unit-strides first: a cascade"),
        ({"output_stride": 64}, "--output-stride 64: this network's greatest is 32"),
        ({"backbone": "resnet18", "context": "cascade", "output_stride": 256, "cascade_blocks": 2}, "greatest is 128"),
        ({"cascade_blocks": 0}, "--cascade-blocks 0"),
        ({"aspp_rates": (6, 0)}, "--aspp-rates 6 0: every number must be at least 1"),
        ({"multi_grid": (0,)}, "--multi-grid 0: every number must be at least 1"),
        ({"dropout": 1.0}, "--dropout 1.0: must be a share from 0 to less than 1"),
        ({"norm_momentum": 0.0}, "--norm-momentum 0.0: must be above 0 and at most 1"),
        ({"hard_pixels": 1.5}, "--hard-pixels 1.5: must be above 0"),
        ({"slow_steps": 5, "learning_rate": 0.0}, "--slow-steps 5: needs a --learning-rate above 0"),
        ({"decoder_channels": 0}, "--decoder-channels 0"),
    ],
)
def test_options_that_it_cannot_have_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**options)


@pytest.mark.parametrize("name", ["micro_w4", "mobilenetv2_050", "resnet18", "resnet18d", "fd_mobilenet_025"])
def test_it_runs_on_any_backbone_and_image(name: str) -> None:
    learner = method(backbone=name, output_stride=4 if name.startswith("micro") else 16)
    learner.losses(labeled=labeled())["supervised"].backward()
    learner.eval()
    for size in ((1, 1), (1, 20), (37, 18)):
        with torch.no_grad():
            assert learner.predict(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape == (1, 3, *size)


def test_the_schedule_of_the_paper() -> None:
    learner = method(steps=30_000)
    rates = [0.007 * learner.rate_factor(step) for step in (0, 1000, 15_000, 30_000)]
    assert rates == pytest.approx([0.007, 0.0067896, 0.0037512, 0], abs=1e-7)
    slow = method(steps=30_000, slow_steps=100)
    assert [0.007 * slow.rate_factor(step) for step in (0, 99)] == pytest.approx([1e-4, 1e-4])
    assert 0.007 * slow.rate_factor(1100) == pytest.approx(0.0067896, abs=1e-7)


def group_of(learner: DeepLabV3Method, name: str) -> tuple[float, float]:
    wanted = dict(learner.named_parameters())[name]
    (group,) = [g for g in learner.parameter_groups() if any(p is wanted for p in g["params"])]  # type: ignore[attr-defined]
    return group["lr"], group["weight_decay"]  # type: ignore[return-value]


def test_rates_and_decay_of_the_official_code() -> None:
    learner = method(backbone="mobilenetv2_050", learning_rate=0.01, head_multiplier=3, weight_decay=0.1)
    expected = {
        "network.classifier.weight": (0.03, 0.1),
        "network.classifier.bias": (0.06, 0),
        "network.aspp.project.1.bias": (0.03, 0),
        "network.backbone.body.conv_stem.weight": (0.01, 0.1),
        "network.backbone.body.blocks.0.0.conv_dw.weight": (0.01, 0),
        "network.backbone.body.blocks.0.0.conv_pw.weight": (0.01, 0.1),
        "network.backbone.body.bn1.weight": (0.01, 0),
    }
    assert {name: group_of(learner, name) for name in expected} == {n: pytest.approx(v) for n, v in expected.items()}


def test_the_statistics_of_normalisations_follow_at_the_configured_speed() -> None:
    norms = [m for m in method(norm_momentum=0.0003).network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {norm.momentum for norm in norms} == {0.0003}


@pytest.mark.parametrize(
    ("options", "frozen"),
    [({}, set()), ({"freeze_norms": True}, {"backbone"}), ({"freeze_norms": True, "freeze_head_norms": True}, None)],
)
def test_a_second_training_freezes_all_normalisations(options: dict[str, object], frozen: set[str] | None) -> None:
    learner = method(**options).train()
    still = {
        name.split(".")[0]
        for name, module in learner.network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.training
    }
    assert still == ({"backbone", "aspp"} if frozen is None else frozen)
    assert learner.network.aspp.project.training


def test_the_view_is_scaled_by_steps_and_padded_with_what_normalises_to_zero() -> None:
    learner = method(crop=40, scale_range=(0.5, 0.5))
    image = tv_tensors.Image(torch.full((3, 32, 32), 250, dtype=torch.uint8))
    sample = Sample(id="a", image=image, mask=tv_tensors.Mask(torch.ones(32, 32, dtype=torch.uint8)))
    view = learner.streams()["labeled"].transform(sample).sample
    assert view.image.shape == (3, 40, 40)
    assert (view.mask == 1).sum() == 16 * 16 and (view.mask == 255).sum() == 40 * 40 - 16 * 16
    padding = learner.normalize(view.image[None])[0][:, view.mask == 255]
    assert padding.abs().max() < 0.01
    plain = method(scale_step=0.0).geometric()
    assert "RandomScaleCrop" in str(plain)


def test_images_of_hard_classes_come_twice_in_a_pass() -> None:
    hard = CLASSES.names[2]
    learner = method(hard_classes=(hard,))
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    easy = Sample(id="a", image=tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8)), mask=tv_tensors.Mask(mask))
    shown = replace(easy, mask=tv_tensors.Mask(mask + 2))
    copies = learner.streams()["labeled"].copies
    assert copies is not None and copies(easy) == 1 and copies(shown) == 2
    assert method().streams()["labeled"].copies is None
    with pytest.raises(UserError, match="--hard-classes: no class 'hores'"):
        method(hard_classes=("hores",)).streams()


def test_a_pass_over_repeated_images_is_longer(shapes_folder: Path, tmp_path: Path) -> None:
    lengths: list[int] = []

    class Counted(EndlessBatches):
        def __init__(self, count: int, *rest: Any, **options: Any) -> None:
            lengths.append(count)
            super().__init__(count, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "EndlessBatches", Counted)
        for number, classes in enumerate(((), labelwise.open(shapes_folder).classes.names[:1])):
            options = {"steps": 1, "crop": 32, "hard_classes": classes, "output_stride": 16}
            tiny_run("deeplab_v3", shapes_folder, tmp_path / str(number), **options)
    assert lengths == [6, 12]
