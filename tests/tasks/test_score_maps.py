"""What DeepLab v1 and v2 share: learning on the score map's own grid, multiples of the rate, crops, backbones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.masks.deeplab_v1 import DeepLabV1
from labelwise.methods.masks.deeplab_v2 import DeepLabV2
from labelwise.models.aspp import rates_at
from labelwise.models.atrous_resnet import AtrousResNet
from labelwise.samples import Batch
from labelwise.tasks.score_maps import ScoreMapMethod
from labelwise.transforms import RandomScaleCrop
from labelwise.transforms.padded_choice import PaddedChoiceScaleCrop

CLASSES = Classes(("background", "cat", "dog"))
TINY = {"backbone": "tiny", "backbone_weights": "none", "head_channels": 8, "crop": 32, "batch_size": 2}
PAPERS = {"deeplab_v1": DeepLabV1, "deeplab_v2": DeepLabV2}


def method(name: str, **options: object) -> ScoreMapMethod:
    torch.manual_seed(0)
    return PAPERS[name](PAPERS[name].Config(**TINY | options), CLASSES)


def on_meta(name: str, **options: object) -> ScoreMapMethod:
    with torch.device("meta"):
        return PAPERS[name](PAPERS[name].Config(backbone_weights="none", **options), CLASSES)


def labeled(height: int = 33, width: int = 33) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 3, height, width), generator=generator, dtype=torch.uint8)
    mask = torch.randint(3, (2, height, width), generator=generator, dtype=torch.uint8)
    mask[:, :4] = 255
    return Batch(ids=("a", "b"), image=image, mask=mask)


def multipliers(segmenter: ScoreMapMethod) -> dict[str, float]:
    return {name: segmenter.rate_multiplier(name, value) for name, value in segmenter.named_parameters()}


def test_the_loss_is_that_of_the_labels_at_the_points_of_the_grid() -> None:
    segmenter, batch = method("deeplab_v1").eval(), labeled()
    scores = segmenter.network.score_map(segmenter.normalize(batch.image))
    assert scores.shape == (2, 3, 5, 5)
    assert batch.mask is not None
    expected = cross_entropy(scores, batch.mask[:, ::8, ::8])
    torch.testing.assert_close(segmenter.losses(labeled=batch)["supervised"], expected)


@pytest.mark.parametrize("name", PAPERS)
def test_what_lies_beside_the_points_of_the_grid_teaches_nothing(name: str) -> None:
    segmenter, batch = method(name, **({"fusion_scales": (1.0,)} if name == "deeplab_v2" else {})).eval(), labeled()
    before = segmenter.losses(labeled=batch)
    assert batch.mask is not None
    kept = batch.mask[:, ::8, ::8].clone()
    batch.mask.fill_(1)
    batch.mask[:, ::8, ::8] = kept
    assert torch.equal(before["supervised"], segmenter.losses(labeled=batch)["supervised"])


@pytest.mark.parametrize("name", PAPERS)
def test_crops_of_any_size_are_extended_by_the_mean_color_and_255(name: str) -> None:
    segmenter, batch = method(name), labeled(30, 41)
    image, mask = segmenter.on_grid(batch)
    grid = segmenter.network.grid
    side = -(-29 // grid) * grid + 1, -(-40 // grid) * grid + 1
    assert image.shape[2:] == mask.shape[1:] == side
    assert (mask[:, 30:] == 255).all() and (mask[:, :, 41:] == 255).all()
    assert not image[:, :, 30:].any()
    assert all(term.isfinite() for term in segmenter.losses(labeled=batch).values())


@pytest.mark.parametrize("name", PAPERS)
def test_a_batch_without_a_labelled_pixel_teaches_nothing(name: str) -> None:
    segmenter, batch = method(name, freeze_norms=False), labeled()
    assert batch.mask is not None
    batch.mask.fill_(255)
    total = sum(segmenter.losses(labeled=batch).values())
    total.backward()
    assert total == 0
    assert all(not value.grad.any() for value in segmenter.parameters() if value.grad is not None)


@pytest.mark.parametrize("name", PAPERS)
def test_a_few_steps_on_one_batch_lower_the_loss(name: str) -> None:
    options = {"optimizer": "adamw", "learning_rate": 0.003, "freeze_norms": False, "dropout": 0.0}
    segmenter, batch = method(name, **options), labeled()
    assert batch.mask is not None
    batch.mask[:] = (batch.image[:, 0] // 86).byte()
    optimizer = segmenter.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(12):
        loss = sum(segmenter.losses(labeled=batch).values())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize(
    ("backbone", "output_stride"), [("tiny", 4), ("tiny", 16), ("micro_w2", 4), ("mobilenetv2_035", 8)]
)
def test_any_backbone_carries_the_head(name: str, backbone: str, output_stride: int) -> None:
    segmenter = method(name, backbone=backbone, output_stride=output_stride).eval()
    assert segmenter.network.backbone.strides[-1] == output_stride
    image = torch.randint(256, (1, 3, 21, 34), dtype=torch.uint8)
    with torch.no_grad():
        assert segmenter.predict(image).shape == (1, 3, 21, 34)
        assert segmenter.predict(image[:, :, :1, :1]).shape == (1, 3, 1, 1)
    assert all(term.isfinite() for term in segmenter.losses(labeled=labeled()).values())


def test_on_vgg_only_the_score_layer_learns_faster_and_biases_twice_as_fast() -> None:
    found = multipliers(on_meta("deeplab_v1", head_multiplier=10.0))
    assert found["network.head.branches.0.score.weight"] == 10
    assert found["network.head.branches.0.score.bias"] == 20
    rest = {name: value for name, value in found.items() if "score" not in name}
    assert {name.rpartition(".")[2]: value for name, value in rest.items()} == {"weight": 1, "bias": 2}
    assert len(set(rest.values())) == 2


def test_on_resnet_the_pyramid_learns_faster_and_its_biases_twice_as_fast() -> None:
    found = multipliers(on_meta("deeplab_v2", backbone="resnet50", head_multiplier=10.0))
    head = {name: value for name, value in found.items() if "head" in name}
    assert len(head) == 8
    assert all(value == (20 if name.endswith("bias") else 10) for name, value in head.items())
    assert {value for name, value in found.items() if "head" not in name} == {1}


@pytest.mark.parametrize("name", PAPERS)
def test_biases_do_not_decay(name: str) -> None:
    segmenter = on_meta(name)
    decayed = {key for key, value in segmenter.named_parameters() if segmenter.decays(key, value)}
    assert decayed
    assert all(segmenter.get_parameter(key).ndim == 4 for key in decayed)


def test_crops_are_padded_with_the_mean_color_unless_scaling_is_uniform() -> None:
    chosen = method("deeplab_v2", scale_range=(0.5, 1.5)).geometric().transforms[0]
    assert isinstance(chosen, PaddedChoiceScaleCrop)
    assert chosen.scales == (0.5, 0.75, 1.0, 1.25, 1.5)
    assert method("deeplab_v1").geometric().transforms[0].scales == (1.0,)
    assert isinstance(method("deeplab_v1", scaling="uniform").geometric().transforms[0], RandomScaleCrop)
    assert not hasattr(method("deeplab_v1", crop=0).geometric(), "transforms")


@pytest.mark.parametrize(("msra", "strides"), [(True, (2, 1)), (False, (1, 2))])
def test_the_papers_resnets_are_our_own(msra: bool, strides: tuple[int, int]) -> None:
    body = on_meta("deeplab_v2", backbone="resnet50", msra_stride=msra).network.backbone.body
    assert isinstance(body, AtrousResNet)
    first = body.get_submodule("layer2")[0]
    assert (first.conv1.stride[0], first.conv2.stride[0]) == strides


def test_rates_see_as_far_at_every_output_stride() -> None:
    assert rates_at((6, 12, 18, 24), 16) == (3, 6, 9, 12)
    assert rates_at((6, 12), 4) == (12, 24)
    assert rates_at((2, 4), 32) == (1, 1)
    assert rates_at((3,), 8, given_at=16) == (6,)


@pytest.mark.parametrize(
    ("name", "output_stride", "rates"),
    [
        ("deeplab_v1", 8, [12]),
        ("deeplab_v1", 16, [6]),
        ("deeplab_v2", 16, [3, 6, 9, 12]),
        ("deeplab_v2", 4, [12, 24, 36, 48]),
    ],
)
def test_evaluation_at_another_output_stride_has_the_same_weights(
    name: str, output_stride: int, rates: list[int]
) -> None:
    trained = method(name)
    config = trained.config.at_output_stride(output_stride)
    other = PAPERS[name](config, CLASSES, training=False)
    other.network.load_state_dict(trained.network.state_dict())
    assert other.network.backbone.strides[-1] == output_stride
    convolutions = [conv for conv in other.network.head.modules() if isinstance(conv, nn.Conv2d)]
    assert [conv.dilation[0] for conv in convolutions if conv.kernel_size[0] > 1] == rates


@pytest.mark.parametrize("name", PAPERS)
def test_an_output_stride_that_no_network_has_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--output-stride 5: must be one of 4, 8, 16, 32"):
        PAPERS[name].Config().at_output_stride(5)


@pytest.mark.parametrize(
    "options", [{"dropout": 1.0}, {"dropout": -0.1}, {"head_channels": -1}, {"scale_range": (1.1, 1.2)}]
)
@pytest.mark.parametrize("name", PAPERS)
def test_numbers_that_no_network_can_have_are_refused(name: str, options: dict[str, object]) -> None:
    flag = next(iter(options)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag}"):
        method(name, **options)
