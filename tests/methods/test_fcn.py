"""What FCN promises: the two forms of the loss, the learning rates of its stages, and starts without a jump."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import tv_tensors

from labelwise import methods
from labelwise.configuration import load_preset, make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.masks.fcn import FCN, summed_cross_entropy
from labelwise.models.fcn import FCN as Network
from labelwise.samples import Batch, Kind, Sample
from labelwise.verbs.stages import planned_runs
from labelwise.verbs.train import train
from tests.tiny_runs import MACHINE

CLASSES = Classes(("background", "cat", "dog"))
TINY = {"backbone": "vgg_tiny", "backbone_weights": "none", "pad100": False}


def config(**options: object) -> FCN.Config:
    return FCN.Config(**{**TINY, **options})


def method(**options: object) -> FCN:
    torch.manual_seed(0)
    return FCN(config(**{"at_once": True, **options}), CLASSES)


def labeled(size: tuple[int, int] = (40, 56)) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(100, (2, 3, *size), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(2, *size, dtype=torch.uint8)
    half = size[1] // 2
    image[:, 0, :, half:] += 150
    mask[:, :, half:] = 2
    mask[:, 0] = 255
    return Batch(ids=("a", "b"), image=image, mask=mask)


def trained(fcn: FCN) -> FCN:
    """With scores that are not zero any more."""
    torch.manual_seed(1)
    for name, module in fcn.network.named_children():
        if name.startswith("score"):
            assert isinstance(module, nn.Conv2d)
            nn.init.normal_(module.weight)
    return fcn.eval()


def test_the_summed_loss_is_the_mean_times_the_labelled_pixels() -> None:
    batch = labeled()
    assert batch.mask is not None
    logits = torch.randn(2, 3, 40, 56)
    pixels = (batch.mask != 255).sum()
    torch.testing.assert_close(summed_cross_entropy(logits, batch.mask), pixels * cross_entropy(logits, batch.mask))
    terms = {reduction: method(reduction=reduction).eval().losses(batch)["supervised"] for reduction in ("sum", "mean")}
    # All scores are zero.
    torch.testing.assert_close(terms["mean"], torch.tensor(3.0).log())
    torch.testing.assert_close(terms["sum"], pixels * torch.tensor(3.0).log())


def test_a_batch_without_a_labelled_pixel_teaches_nothing() -> None:
    fcn, batch = method(), labeled()
    batch.mask = torch.full_like(batch.mask, 255)
    term = fcn.losses(labeled=batch)["supervised"]
    term.backward()
    assert term == 0
    assert all(not parameter.grad.any() for parameter in fcn.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("pad100", [True, False])
def test_a_few_steps_on_one_batch_lower_the_loss(stride: int, pad100: bool) -> None:
    fcn = method(
        stride=stride, pad100=pad100, skip_scales=(1.0, 1.0), reduction="mean", optimizer="adamw", learning_rate=0.01
    )
    batch = labeled()
    optimizer = fcn.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(6):
        loss = fcn.losses(labeled=batch)["supervised"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def groups(fcn: FCN) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    found = {
        id(each): (group["lr"], group["weight_decay"]) for group in fcn.parameter_groups() for each in group["params"]
    }
    return {name: found[id(parameter)] for name, parameter in fcn.named_parameters()}


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    found = groups(method(learning_rate=1e-3, weight_decay=5e-4))
    assert found["network.backbone.layers.fc6.weight"] == (1e-3, 5e-4)
    assert found["network.backbone.layers.fc6.bias"] == (2e-3, 0.0)
    assert found["network.score_pool3.weight"] == (1e-3, 5e-4)
    assert found["network.score_fr.bias"] == (2e-3, 0.0)
    assert groups(method(decay_norms=True, weight_decay=5e-4))["network.score_fr.bias"][1] == 0


@pytest.mark.parametrize(("stride", "rate"), [(32, 1e-10), (16, 1e-12), (8, 1e-14)])
def test_each_stage_learns_with_a_hundredth_of_the_rate_of_the_one_before(stride: int, rate: float) -> None:
    fcn = FCN(config(stride=stride), CLASSES, training=False)
    assert groups(fcn)["network.score_fr.weight"][0] == pytest.approx(rate)
    assert groups(method(stride=stride))["network.score_fr.weight"][0] == pytest.approx(1e-10)


def test_the_heavy_recipe_is_the_default() -> None:
    optimizer = method().configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.99}
    default = FCN.Config()
    assert (default.batch_size, default.reduction, default.crop, default.schedule) == (1, "sum", 0, "constant")


def test_the_stages_are_32_16_and_8() -> None:
    ((name, options),) = planned_runs(FCN, config(stride=8, steps=7))
    assert (name, options["stride"], options["start"], options["steps"]) == ("fcn", 16, "coarser", 7)
    ((_, options),) = planned_runs(FCN, FCN.Config(**options))
    assert options["stride"] == 32
    assert planned_runs(FCN, FCN.Config(**options)) == []
    assert FCN.stages(config(stride=8, at_once=True)) == ()


def test_learned_upsampling_is_only_where_there_is_one() -> None:
    ((_, options),) = planned_runs(FCN, FCN.Config(stride=16, learn_upsampling=True))
    assert not options["learn_upsampling"]
    ((_, options),) = planned_runs(FCN, FCN.Config(stride=8, learn_upsampling=True))
    assert options["learn_upsampling"]


def test_a_stage_begins_with_the_prediction_of_the_one_before() -> None:
    coarser = trained(FCN(config(stride=32), CLASSES, training=False))
    finer = FCN(config(stride=16), CLASSES, earlier={"start": coarser}).eval()
    assert torch.equal(finer.network.score_fr.weight, coarser.network.score_fr.weight)
    batch = labeled((96, 128))
    losses = [float(each.losses(batch)["supervised"].detach()) for each in (coarser, finer)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize(
    "other", [{"stride": 16}, {"pad100": True}, {"backbone": "resnet10t"}], ids=["stride", "form", "backbone"]
)
def test_a_run_that_is_no_coarser_form_is_refused(other: dict[str, object]) -> None:
    coarser = FCN(config(**{"stride": 32, "at_once": True, **other}), CLASSES, training=False)
    with pytest.raises(UserError, match=r"--start somewhere: is no coarser form .* FCN-32s"):
        FCN(config(stride=16, start="somewhere"), CLASSES, earlier={"start": coarser})


def test_scaled_skips_do_not_start_a_stage() -> None:
    coarser = method(stride=16)
    with pytest.raises(UserError, match="trained in stages"):
        FCN(config(stride=8), CLASSES, earlier={"start": coarser})


def test_scales_belong_to_training_at_once() -> None:
    assert method(stride=8).network.skip_scales == (0.01, 0.0001)
    assert FCN(config(stride=8), CLASSES, training=False).network.skip_scales == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 32, "learn_upsampling": True, "pad100": True}, "--learn-upsampling: needs skips"),
        ({"stride": 8, "learn_upsampling": True}, "--learn-upsampling: needs skips and --pad100"),
        ({"momentum": 1.0}, "--momentum 1.0: must be below 1"),
        ({"stage_factor": -1.0}, "--stage-factor"),
        ({"ohem_pixels": 9}, "--ohem-pixels 9: .* --reduction mean"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        config(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "caffenet", "stride": 8}, "'caffenet': there are features of stride 32 only; --stride 32"),
        ({"backbone": "resnet10t", "pad100": True, "learn_upsampling": True}, "--no-learn-upsampling"),
        ({"backbone": "tiny"}, "'tiny'"),
        ({"backbone": "caffenet", "backbone_weights": "imagenet"}, "no ImageNet weights to fetch"),
    ],
)
def test_networks_that_cannot_be_are_refused(options: dict[str, object], words: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=words) as caught:
        method(**options)
    assert "\n" not in str(caught.value)


def test_whole_images_are_not_augmented() -> None:
    image = tv_tensors.Image(torch.arange(3 * 5 * 7, dtype=torch.uint8).view(3, 5, 7))
    mask = tv_tensors.Mask(torch.arange(35, dtype=torch.uint8).view(5, 7))
    transform = method().streams()["labeled"].transform
    for _ in range(8):
        view = transform(Sample(id="a", image=image, mask=mask)).sample
        assert torch.equal(view.image, image)
        assert view.mask is not None and torch.equal(view.mask, mask)


def test_caffes_networks_see_grey_levels_minus_the_mean() -> None:
    with torch.device("meta"):
        caffe = FCN(config(backbone="caffenet", stride=32), CLASSES, training=False)
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in caffe.pixel_statistics)
    grey = (torch.full((1, 3, 1, 1), 200.0) - mean) / std
    torch.testing.assert_close(grey.flatten(), 200 - torch.tensor([122.67892, 116.66877, 104.00699]))


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 64)])
@pytest.mark.parametrize("pad100", [True, False])
def test_images_of_any_size_are_predicted(size: tuple[int, int], pad100: bool) -> None:
    fcn = trained(method(pad100=pad100))
    with torch.no_grad():
        scores = fcn.predict(torch.randint(256, (1, 3, *size), dtype=torch.uint8))
    assert scores.shape == (1, 3, *size)
    assert scores.isfinite().all()


def test_any_backbone_of_stride_32_will_do() -> None:
    fcn = method(backbone="mobilenetv2_050", skip_scales=(1.0, 1.0), head_multiplier=10.0)
    assert isinstance(fcn.network, Network)
    assert fcn.losses(labeled((64, 64)))["supervised"].isfinite()
    rates = groups(fcn)
    assert rates["network.score_fr.weight"][0] == pytest.approx(1e-9)
    assert rates["network.backbone.backbone.body.conv_stem.weight"][0] == pytest.approx(1e-10)


def test_the_presets_are_the_papers_recipes() -> None:
    found = {name: make_config(FCN, load_preset(FCN, name), {}) for name in ("paper", "at_once", "accumulate", "mini")}
    assert {name: FCN.stages(each)[0].options["stride"] for name, each in found.items() if FCN.stages(each)} == {
        "paper": 16,
        "accumulate": 16,
    }
    claim = methods.load("fcn").card.claim
    assert claim is not None
    make_config(FCN, load_preset(FCN, "mini"), dict(claim.baseline_settings))


def test_stages_are_trained_one_from_another(voc_folder: Path, tmp_path: Path) -> None:
    options = {**TINY, "stride": 8, "steps": 2, "batch_size": 1, "pad100": True}
    results = train("fcn", data=voc_folder, out=tmp_path / "run", hardware=Hardware(**MACHINE), **options)
    coarser = tmp_path / "run" / "stages" / "1-start"
    coarsest = coarser / "stages" / "1-start"
    steps = [json.loads((folder / "results.json").read_text())["steps"] for folder in (coarsest, coarser)]
    assert (*steps, results["steps"]) == (2, 2, 2)
    assert {"mean_accuracy", "frequency_weighted_iou"} <= results.keys()
    # The rates of the later stages are far too small to change a float.
    fr = [load(folder)["score_fr.weight"] for folder in (coarsest, coarser, tmp_path / "run")]
    assert fr[0].any()
    torch.testing.assert_close(fr[0], fr[1])
    torch.testing.assert_close(fr[0], fr[2])


def load(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_it_learns_from_masks() -> None:
    assert FCN.card.needs.labels == {Kind.MASKS}
    assert {stream.source for stream in method().streams().values()} == {"labeled"}
