"""What adaptive early-learning correction promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors

from labelwise import datasets
from labelwise.datasets.base import Classes
from labelwise.errors import BadFile, UserError
from labelwise.losses.pixel import pixel_cross_entropy
from labelwise.methods.noisy_masks import adele
from labelwise.methods.noisy_masks.adele import ADELE, multiscale_loss
from labelwise.models.unet import UNet
from labelwise.reports.learning_curves import LEARNING_CURVES, LEARNING_CURVES_PICTURE
from labelwise.samples import Batch, Kind, Sample
from tests.tiny_runs import cut, outcome, tiny_run

CLASSES = Classes(("background", "cat", "dog"))
SETTINGS: dict[str, Any] = {
    "backbone": "micro_w2",
    "backbone_weights": "none",
    "output_stride": 4,
    "decoder_channels": 8,
    "crop": 16,
    "batch_size": 2,
    "steps": 100,
}
CAT = torch.tensor([False, True, False])


def logits(seed: int, batch: int = 2, size: int = 4) -> Tensor:
    return 3 * torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, *shape: int) -> Tensor:
    mask = torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))
    return mask.masked_fill(mask == 3, 255).to(torch.uint8)


# ------------------------------------------------------------------- the loss


@given(st.integers(0, 100))
def test_scales_that_agree_cost_nothing_and_do_not_move_their_weights(seed: int) -> None:
    weights = torch.ones(3, requires_grad=True)
    same = logits(seed) / 3
    loss = multiscale_loss([same] * 3, weights, labels(seed, 2, 4, 4), confidence=0).consistency
    (gradient,) = torch.autograd.grad(loss, weights)
    assert abs(loss) < 2e-3 and gradient.abs().max() < 2e-3


def test_disagreement_costs_its_divergence_from_the_mean() -> None:
    scales = [logits(seed) / 3 for seed in range(3)]
    p = torch.stack([each.softmax(1) for each in scales])
    q = p.mean(0).clamp(1e-3, 1 - 1e-3)
    divergence = (p * (p.log() - q.log())).sum(dim=(0, 2)).mean()
    terms = multiscale_loss(scales, torch.ones(3), labels(0, 2, 4, 4), confidence=0)
    torch.testing.assert_close(terms.consistency, divergence)
    torch.testing.assert_close(terms.mean, q)


def test_the_cross_entropy_is_tempered_and_ignored_pixels_stay_in_its_mean() -> None:
    scales, mask = [logits(seed) for seed in range(3)], labels(1, 2, 4, 4)
    expected = sum(pixel_cross_entropy(each / 3, mask, 255).sum() / mask.numel() for each in scales)
    torch.testing.assert_close(multiscale_loss(scales, torch.ones(3), mask).cross_entropy, expected)
    plain = sum(pixel_cross_entropy(each, mask, 255).mean() for each in scales)
    torch.testing.assert_close(multiscale_loss(scales, torch.zeros(3), mask, temperature=1).cross_entropy, plain)


def test_the_gate_opens_for_whole_images_or_for_sure_pixels() -> None:
    """The first image is sure in one pixel, the second in an ignored pixel only, the third nowhere."""
    sure = torch.zeros(3, 3, 2, 2)
    sure[0, 1, 0, 0] = sure[1, 1, 0, 0] = 9
    other = sure + torch.tensor([0.0, 0.5, 0.0]).view(1, 3, 1, 1)
    mask = torch.ones(3, 2, 2, dtype=torch.uint8)
    mask[1, 0, 0] = 255

    def cost(gate: Any) -> Tensor:
        return multiscale_loss([sure, other], torch.ones(2), mask, 0.8, gate).consistency * mask.numel()

    first = multiscale_loss([sure[:1], other[:1]], torch.ones(2), mask[:1], 0.0).consistency * mask[:1].numel()
    torch.testing.assert_close(cost("image"), first)
    assert 0 < cost("pixel") < 0.1 * cost("image")


# ------------------------------------------------------------------ the learner


class Still(nn.Module):
    """A network that sees the brightness of red, green and blue as three classes, at any scale."""

    def forward(self, image: Tensor) -> Tensor:
        return 40 * image


def sample(id: str, true: Tensor, given_mask: Tensor) -> Sample:
    """The image shows its true mask: class 0 is red, 1 is green, 2 is blue."""
    image = 255 * functional.one_hot(true.long(), 3).permute(2, 0, 1).to(torch.uint8)
    return Sample(id=id, image=tv_tensors.Image(image), mask=tv_tensors.Mask(given_mask))


def method(tmp_path: Path, samples: list[Sample], step: int = 0, **options: Any) -> ADELE:
    torch.manual_seed(0)
    made = ADELE(ADELE.Config(**{**SETTINGS, **options}), CLASSES)
    reduce = SimpleNamespace(reduce=lambda counts, reduce_op: counts)
    made.trainer = SimpleNamespace(global_step=step, strategy=reduce)
    made.prepare(samples, tmp_path)
    return made


def blocks() -> list[Sample]:
    true = torch.zeros(16, 16, dtype=torch.uint8)
    true[4:12, 4:12] = 1
    wide, other = torch.zeros_like(true), torch.zeros_like(true)
    wide[3:13, 3:13] = 1
    other[2:6, 2:6] = 2
    return [sample("wide", true, wide), sample("other", true, other)]


@pytest.mark.parametrize("refine_from", [-1, 0])
def test_a_correction_gives_images_of_active_classes_what_the_network_sees(tmp_path: Path, refine_from: int) -> None:
    samples = blocks()
    made = method(tmp_path, samples, refine_from=refine_from, temperature=1.0)
    made.network = Still()
    made._correct(4, CAT.clone())
    assert made.versions.current == 4
    corrected = made.current_mask(samples[0])
    shown = samples[0].image[1] > 0
    assert (corrected == 1).eq(shown).float().mean() > 0.97 > (samples[0].mask == 1).eq(shown).float().mean()
    assert torch.equal(made.current_mask(samples[1]), samples[1].mask)


def test_a_correction_leaves_modes_randomness_and_memory_as_they_were(tmp_path: Path) -> None:
    """Images are read one by one, and none is held."""
    read: list[int] = []

    class Counted(list[Sample]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

        def __iter__(self) -> Iterator[Sample]:
            raise AssertionError("the whole set is asked for")

    made = method(tmp_path, Counted(blocks()))
    made.train()
    next(made.network.children()).eval()
    modes, random = [part.training for part in made.modules()], torch.get_rng_state()
    before = {name: value.clone() for name, value in made.state_dict().items() if isinstance(value, Tensor)}
    made._correct(1, CAT.clone())
    after = made.state_dict()
    assert [part.training for part in made.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(after[name], value) for name, value in before.items() if "since" not in name)
    assert read == [0, 1]


def test_corrections_start_from_the_given_labels_or_from_the_last_ones(tmp_path: Path) -> None:
    for reinitialize, expected in ((True, False), (False, True)):
        samples = blocks()
        made = method(tmp_path, samples, refine_from=-1, temperature=1.0, reinitialize=reinitialize)
        made.network = Still()
        made._correct(1, CAT.clone())
        first = made.current_mask(samples[0])
        assert not torch.equal(first, samples[0].mask)
        made.network = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(made.network.weight)
        made._correct(2, CAT.clone())
        assert torch.equal(made.current_mask(samples[0]), first) == expected


def test_a_temperature_above_one_makes_corrections_rarer(tmp_path: Path) -> None:
    samples = blocks()
    changed = []
    for temperature in (1.0, 30.0, 300.0):
        made = method(tmp_path, samples, refine_from=-1, temperature=temperature)
        made.network = Still()
        made._correct(1, CAT.clone())
        changed.append(int((made.current_mask(samples[0]) != samples[0].mask).sum()))
    assert changed[0] >= changed[1] >= changed[2] == 0 < changed[0]


def batch(samples: list[Sample]) -> Batch:
    masks = [each.mask.as_subclass(Tensor) for each in samples]
    return Batch(
        ids=tuple(each.id for each in samples),
        image=torch.stack([each.image.as_subclass(Tensor) for each in samples]),
        mask=torch.stack(masks),
        targets={"original": [0 * mask for mask in masks]},
    )


def test_plain_training_comes_first_and_then_three_scales(tmp_path: Path) -> None:
    samples = blocks()
    for step, terms in ((2, {"supervised"}), (3, {"supervised", "consistency"})):
        made = method(tmp_path, samples, step, warmup_epochs=3)
        sizes: list[int] = []
        made.network.register_forward_hook(lambda _, inputs, __, sizes=sizes: sizes.append(inputs[0].shape[-1]))
        losses = made.losses(batch(samples))
        assert losses.keys() == terms and sizes == ([16] if step == 2 else [16, 11, 24])
        sum(losses.values()).backward()
        assert made.scale_weights.grad is not None


@pytest.mark.parametrize(("followed", "pixels"), [("given", [512, 0, 0]), ("current", [396, 100, 16])])
def test_curves_follow_the_labels_as_they_were_given_or_as_they_are(
    tmp_path: Path, followed: str, pixels: list[int]
) -> None:
    made = method(tmp_path, blocks(), curve_labels=followed)
    made.network = Still()
    made.losses(batch(blocks()))
    assert made.monitor.counts[2].tolist() == pixels


def test_the_loss_is_a_sum_over_the_scales_or_their_mean(tmp_path: Path) -> None:
    def losses(average: bool) -> dict[str, Tensor]:
        return method(tmp_path, blocks(), confidence=0.0, average_scales=average).losses(batch(blocks()))

    summed, mean = losses(False), losses(True)
    assert all(summed[name] > 0 for name in ("supervised", "consistency"))
    assert {name: 3 * loss.item() for name, loss in mean.items()} == pytest.approx(
        {name: loss.item() for name, loss in summed.items()}
    )


def test_corrections_of_scans_keep_to_active_classes_at_one_scale(tmp_path: Path) -> None:
    """What the network sees is background where the second image is labeled as a dog, which is not active."""
    samples = blocks()
    made = method(tmp_path, samples, correction="segthor", refine_from=-1, temperature=1.0)
    made.network = Still()
    sizes: list[int] = []
    made.network.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    made._correct(1, CAT.clone())
    assert torch.equal(made.current_mask(samples[0]) == 1, samples[0].image[1] > 0)
    assert torch.equal(made.current_mask(samples[1]), samples[1].mask)
    assert sizes == [16, 16]


def test_constant_weights_are_not_trained_and_learned_ones_at_the_backbones_rate(tmp_path: Path) -> None:
    fixed = method(tmp_path, blocks(), scale_weights="constant")
    assert not any(fixed.scale_weights is each for group in fixed.parameter_groups() for each in group["params"])
    learned = method(tmp_path, blocks(), learning_rate=0.01, head_multiplier=10)
    groups = learned.parameter_groups()
    assert [group["lr"] for group in groups if any(each is learned.scale_weights for each in group["params"])] == [0.01]


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 3, 6]), (1, [0, 1, 2, 3, 4, 5, 6])])
def test_a_curve_has_a_point_every_so_many_steps(tmp_path: Path, every: int, steps: list[int]) -> None:
    made = method(tmp_path, blocks() * 2, curve_every=every)
    for step in range(7):
        made.trainer.global_step = step
        made.after_step()
    assert len(made.monitor.points) == len(steps)


def test_biases_learn_at_a_multiple_of_their_layers_rate_and_sgd_has_its_momentum(tmp_path: Path) -> None:
    made = method(tmp_path, blocks(), learning_rate=0.01, head_multiplier=10, bias_multiplier=2, momentum=0.99)
    rates = {id(each): group["lr"] for group in made.parameter_groups() for each in group["params"]}
    classifier = made.network.classifier
    assert rates[id(classifier.bias)] == pytest.approx(2 * rates[id(classifier.weight)]) == pytest.approx(0.2)
    biases = {name: rates[id(each)] for name, each in made.network.backbone.named_parameters()}
    assert {rate for name, rate in biases.items() if name.endswith("bias")} == {0.02}
    assert made.make_optimizer(made.parameter_groups()).defaults["momentum"] == 0.99


def test_a_u_net_takes_the_place_of_the_backbone_and_its_decoder() -> None:
    config = ADELE.Config(**SETTINGS, network="unet")
    assert isinstance(ADELE(config, CLASSES, training=False).network, UNet)
    with pytest.raises(UserError, match="one output stride only"):
        config.at_output_stride(8)
    assert ADELE.Config(**SETTINGS).at_output_stride(8).output_stride == 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"confidence": 1.5}, "--confidence"),
        ({"temperature": 0}, "--temperature 0: must be above 0"),
        ({"curve_every": 0}, "--curve-every"),
        ({"refine_from": -2}, "--refine-from"),
        ({"correct_every": 10}, "--correct-every 10: needs labels that are kept"),
        ({"network": "unet", "backbone_weights": "imagenet"}, "--network unet: there are no pretrained weights"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ADELE.Config(**{**SETTINGS, **wrong})


# ------------------------------------------------------------------- whole runs

RUN: dict[str, Any] = {
    "backbone": "micro_w2",
    "output_stride": 4,
    "decoder_channels": 8,
    "steps": 13,
    "curve_every": 1,
    # Any curve counts as flat, and any prediction as sure.
    "slope_ratio": 0.0,
    "correction_threshold": 0.0,
    "class_constraint": False,
    "refine_from": 3,
    "temperature": 1.0,
}


KEPT: dict[str, Any] = {
    "correction": "segthor",
    "background_threshold": 0.0,
    "reinitialize": False,
    "correct_every": 2,
    "curve_labels": "current",
    "refine_from": -1,
}


@pytest.mark.parametrize("rules", [{}, KEPT])
def test_a_run_cut_after_corrections_and_amid_epochs_ends_like_an_uninterrupted_one(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any]
) -> None:
    """Epochs have 3 steps; checkpoints are saved after every second one, so that some work is done twice."""
    monkeypatch.setattr(ADELE, "_memorizes", lambda self, number, epoch: number % 2 == epoch % 2)
    options = RUN | rules
    machine = {"checkpoint_every": 2}
    for step in (4, 9, 10):
        with cut(step):
            tiny_run("adele", shapes_folder, tmp_path / "cut", machine, **options)
        assert list((tmp_path / "cut").glob(".scratch-*/labels/*/*.png"))
    tiny_run("adele", shapes_folder, tmp_path / "cut", machine, **options)
    tiny_run("adele", shapes_folder, tmp_path / "whole", machine, **options)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    left, given = datasets.open(tmp_path / "cut" / "labels"), datasets.open(shapes_folder)
    whole = datasets.open(tmp_path / "whole" / "labels")
    masks = [[data.read(id, {Kind.MASKS}).mask for id in whole.ids("train")] for data in (left, whole, given)]
    assert all(torch.equal(one, other) for one, other in zip(masks[0], masks[1], strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(masks[1], masks[2], strict=True))
    curves = json.loads((tmp_path / "whole" / LEARNING_CURVES).read_text())
    assert curves == json.loads((tmp_path / "cut" / LEARNING_CURVES).read_text())
    assert {len(curve["epoch"]) for curve in curves.values()} == {13}
    assert (tmp_path / "whole" / "pictures" / LEARNING_CURVES_PICTURE).is_file()
    assert not list((tmp_path / "whole").glob(".scratch-*"))


def test_a_run_whose_labels_were_deleted_is_told_so(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ADELE, "_memorizes", lambda self, number, epoch: True)
    with cut(4):
        tiny_run("adele", shapes_folder, tmp_path, **RUN)
    for file in tmp_path.glob(".scratch-*/labels/*/*.png"):
        file.unlink()
    with pytest.raises(BadFile, match=r"labels of 'train_.*' are missing"):
        tiny_run("adele", shapes_folder, tmp_path, **RUN)


def test_the_report_reads_the_curves_that_the_method_leaves() -> None:
    assert adele.LEARNING_CURVES == LEARNING_CURVES
