"""What DeepLab v3+ promises: its decoder, its separable head, and Xception's input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from labelwise.datasets.base import Classes
from labelwise.errors import BadFile, UserError
from labelwise.methods.masks.deeplab_v3 import DeepLabV3Method
from labelwise.methods.masks.deeplab_v3plus import DeepLabV3PlusMethod
from labelwise.models.backbones import create_backbone
from labelwise.samples import Batch

CLASSES = Classes(("background", "cat", "dog"))
TINY = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "low_channels": 8, "crop": 33}


def method(**options: object) -> DeepLabV3PlusMethod:
    torch.manual_seed(0)
    config = DeepLabV3PlusMethod.Config(**{**TINY, **options})  # type: ignore[arg-type]
    return DeepLabV3PlusMethod(config, CLASSES)


def on_meta(**options: object) -> DeepLabV3PlusMethod:
    with torch.device("meta"):
        return DeepLabV3PlusMethod(DeepLabV3PlusMethod.Config(**options), CLASSES, training=False)  # type: ignore[arg-type]


def labeled() -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(100, (2, 3, 33, 33), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(2, 33, 33, dtype=torch.uint8)
    image[:, 0, :, 16:] += 150
    mask[:, :, 16:] = 2
    return Batch(ids=("a", "b"), image=image, mask=mask)


@torch.no_grad()
def test_without_the_decoder_it_is_deeplab_v3() -> None:
    plus = method(decoder=False, separable=False).eval()
    config = DeepLabV3Method.Config(backbone="tiny", backbone_weights="none", decoder_channels=16)
    three = DeepLabV3Method(config, CLASSES).eval()
    three.network.load_state_dict(plus.network.state_dict())
    picture = torch.randint(256, (1, 3, 40, 33), dtype=torch.uint8)
    assert torch.equal(plus.predict(picture), three.predict(picture))


def test_the_weights_of_v3_fit_all_but_the_decoder() -> None:
    without, whole = (method(decoder=decoder).network.state_dict() for decoder in (False, True))
    other = {name.split(".")[0] for name in whole if name not in without or whole[name].shape != without[name].shape}
    assert other == {"low", "fuse"}
    assert set(without) <= set(whole)


@pytest.mark.parametrize("separable", [True, False])
def test_a_few_steps_on_one_batch_lower_the_loss(separable: bool) -> None:
    learner, batch = method(optimizer="adamw", learning_rate=0.01, separable=separable), labeled()
    optimizer = learner.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(10):
        loss = learner.losses(labeled=batch)["supervised"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_the_defaults_are_the_papers_network() -> None:
    learner = on_meta()
    network = learner.network
    assert sum(parameter.numel() for parameter in network.parameters()) == 41_055_413 - 18 * 257
    assert network.low[0].weight.shape == (48, 256, 1, 1)
    assert network.fuse[0][0].weight.shape == (304, 1, 3, 3)
    assert [conv[0].dilation[0] for conv in network.aspp.convs] == [1, 6, 12, 18]
    assert learner.pixel_statistics == ((0.5,) * 3, (0.5,) * 3)
    assert [network.get_submodule("aspp.project.3").p, network.classifier.out_channels] == [0.1, 3]


def test_xception_sees_values_from_minus_one_to_one() -> None:
    learner = method(backbone="xception41")
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert learner.normalize(ends)[:, 0].flatten().tolist() == pytest.approx([-1, 1])
    fill = learner.geometric().transforms[0].fill
    assert learner.normalize(torch.tensor(fill, dtype=torch.uint8).view(1, 3, 1, 1)).abs().max() < 0.005
    depthwise = {p for p in learner.parameters() if p.ndim == 4 and p.shape[1] == 1 and p.shape[2] == 3}
    decayed = {p for group in learner.parameter_groups() if group["weight_decay"] for p in group["params"]}  # type: ignore[attr-defined]
    # Thirteen modules of three in the backbone, three in the pyramid, two in the decoder.
    assert len(depthwise) == 13 * 3 + 3 + 2 and not depthwise & decayed


@pytest.mark.parametrize("low_feature", ["residual", "stage"])
@pytest.mark.parametrize("unit_strides", ["last", "first"])
def test_the_low_level_feature_of_resnets_is_a_choice(low_feature: str, unit_strides: str) -> None:
    learner = method(backbone="resnet18", low_feature=low_feature, unit_strides=unit_strides).eval()
    for unit in learner.network.backbone.body.layer1:
        # Zero in new networks, so that a unit starts as the identity.
        nn.init.ones_(unit.bn2.weight)
    low, high = learner.network.forward_features(torch.randn(1, 3, 33, 33))
    assert low.shape == (1, 64, 9, 9) and high.shape == (1, 512, 3, 3)
    assert bool((low < 0).any()) == (low_feature == "residual")


@pytest.mark.parametrize("name", ["micro_w4", "mobilenetv2_050", "resnet18d", "fd_mobilenet_025"])
def test_it_runs_on_any_backbone_and_image(name: str) -> None:
    learner = method(backbone=name, output_stride=4 if name.startswith("micro") else 16)
    learner.losses(labeled=labeled())["supervised"].backward()
    learner.eval()
    for size in ((1, 1), (1, 20), (37, 18)):
        with torch.no_grad():
            assert learner.predict(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape == (1, 3, *size)


@torch.no_grad()
def test_the_same_weights_at_output_stride_8() -> None:
    trained = method().eval()
    finer = DeepLabV3PlusMethod(trained.config.at_output_stride(8), CLASSES, training=False)
    finer.network.load_state_dict(trained.network.state_dict())
    x = torch.randn(1, 3, 65, 49)
    assert finer.config.rates == (12, 24, 36)
    (low, high), (low_too, finer_high) = (each.eval().network.forward_features(x) for each in (trained, finer))
    torch.testing.assert_close(low, low_too)
    torch.testing.assert_close(finer_high[..., ::2, ::2], high, atol=1e-4, rtol=1e-4)


def test_pretrained_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    backbone = create_backbone("tiny", 16, None)
    save_file(backbone.body.state_dict(), tmp_path / "tiny.safetensors")
    learner = method(backbone_weights=str(tmp_path / "tiny.safetensors"))
    state = learner.network.backbone.body.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in backbone.body.state_dict().items())
    with pytest.raises(BadFile, match="not the weights of 'micro_w4'"):
        method(backbone="micro_w4", output_stride=4, backbone_weights=str(tmp_path / "tiny.safetensors"))


def test_a_cascade_of_norms_in_the_whole_head_can_be_frozen() -> None:
    learner = method(freeze_norms=True, freeze_head_norms=True).train()
    assert not any(m.training for m in learner.network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low_channels": 0}, "--low-channels 0"),
        ({"multi_grid": (1, 2, 4)}, "--multi-grid: backbone 'tiny' has no units"),
        ({"backbone": "xception41", "output_stride": 4}, "'xception41' cannot have output stride 4"),
    ],
)
def test_options_that_it_cannot_have_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**options)
