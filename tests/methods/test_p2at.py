"""What P2AT promises: its losses, heads that exist in training alone, boundaries, the plain head beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from labelwise.configuration import load_preset, make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy, ohem_cross_entropy
from labelwise.methods.masks.p2at import (
    P2ATMethod,
    boundary_target,
    dice_loss,
    mask_at_boundary,
    weighted_binary_cross_entropy,
)
from labelwise.models.complexity import count_parameters
from labelwise.models.p2at import CoarseSegmenter
from labelwise.samples import Batch

CLASSES = Classes(("background", "cat", "dog"))
VOC = Classes(tuple(f"class {number}" for number in range(21)))
SETTINGS = {
    "backbone": "tiny32",
    "backbone_weights": "none",
    "decoder_channels": 8,
    "key_channels": 4,
    "attention_heads": 2,
    "crop": 64,
}


def method(**options: object) -> P2ATMethod:
    torch.manual_seed(0)
    return P2ATMethod(P2ATMethod.Config(**{**SETTINGS, **options}), CLASSES)  # type: ignore[arg-type]


def labeled(ignored: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(100, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(2, 64, 64, dtype=torch.uint8)
    image[:, 0, :, 32:] += 150
    mask[:, :, 32:] = 2
    return Batch(ids=("a", "b"), image=image, mask=torch.full_like(mask, 255) if ignored else mask)


def test_the_published_sizes_are_those_without_and_with_what_training_adds() -> None:
    with torch.device("meta"):
        config = P2ATMethod.Config(backbone_weights="none")
        predicting, training = (P2ATMethod(config, VOC, training=training) for training in (False, True))
    assert count_parameters(predicting) == 12_736_149
    assert count_parameters(training) == 12_813_119


def test_the_prediction_is_the_same_without_the_auxiliary_heads() -> None:
    trained = method().eval()
    kept = P2ATMethod(trained.config, CLASSES, training=False).eval()
    kept.network.load_state_dict(trained.network.state_dict())
    image = labeled().image
    assert torch.equal(kept.predict(image), trained.predict(image))
    assert count_parameters(kept) == count_parameters(kept.network) < count_parameters(trained)


def test_the_loss_is_that_of_the_prediction_and_of_two_auxiliary_heads() -> None:
    p2at, batch = method(ohem_pixels=100, auxiliary_weight=0.5).eval(), labeled()
    assert batch.mask is not None
    image = p2at.normalize(batch.image)
    features = p2at.network.forward_features(image)

    def upsampled(logits: Tensor) -> Tensor:
        return functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=True)

    terms = p2at.losses(labeled=batch)
    assert terms.keys() == {"supervised", "auxiliary8", "auxiliary4"}
    hard = ohem_cross_entropy(p2at.network(image), batch.mask, 0.9, min_kept=200)
    torch.testing.assert_close(terms["supervised"], hard)
    for name, head, feature in (
        ("auxiliary8", p2at.auxiliary8, features.fused8),
        ("auxiliary4", p2at.auxiliary4, features.fused4),
    ):
        torch.testing.assert_close(terms[name], 0.5 * cross_entropy(upsampled(head(feature)), batch.mask))


def test_without_hard_pixels_all_count() -> None:
    p2at, batch = method(ohem_pixels=0).eval(), labeled()
    assert batch.mask is not None
    expected = cross_entropy(p2at.network(p2at.normalize(batch.image)), batch.mask)
    torch.testing.assert_close(p2at.losses(labeled=batch)["supervised"], expected)


@given(
    kept=st.integers(0, 40),
    ignored=st.integers(0, 10),
    threshold=st.sampled_from((0.05, 0.3, 0.9)),
    seed=st.integers(0, 2**31),
)
def test_hard_pixels_are_those_of_the_released_code(kept: int, ignored: int, threshold: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 4, 4, 4, generator=generator)
    mask = torch.randint(4, (2, 4, 4), generator=generator)
    mask.view(-1)[:ignored] = 255
    valid = mask != 255
    true = logits.softmax(1).gather(1, mask.clamp(max=3)[:, None])[:, 0][valid].sort().values
    hard = true[true < max(float(true[min(kept, len(true) - 1)]), threshold)]
    found = ohem_cross_entropy(logits, mask, threshold, kept)
    # Where fewer pixels are valid than are to be kept, the release leaves out the surest one; ours keeps all.
    hard = true if kept >= len(true) else hard
    torch.testing.assert_close(found, -hard.log().sum() / max(1, len(hard)))


@pytest.mark.parametrize("options", [{}, {"boundary_head": True}, {"decoder": "none"}, {"attention": False}])
def test_a_few_steps_on_one_batch_lower_the_loss(options: dict[str, object]) -> None:
    p2at, batch = method(optimizer="adamw", learning_rate=0.005, **options), labeled()
    optimizer = p2at.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(12):
        loss = torch.stack(list(p2at.losses(labeled=batch).values())).sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_a_batch_without_a_labelled_pixel_teaches_nothing() -> None:
    p2at = method()
    terms = p2at.losses(labeled=labeled(ignored=True))
    torch.stack(list(terms.values())).sum().backward()
    assert not any(terms.values())
    assert all(not parameter.grad.any() for parameter in p2at.parameters() if parameter.grad is not None)


def test_the_boundary_head_replaces_the_second_auxiliary_head() -> None:
    p2at = method(boundary_head=True)
    assert p2at.auxiliary4(torch.zeros(1, 8, 4, 4)).shape[1] == 1
    terms = p2at.losses(labeled=labeled())
    assert terms.keys() == {"supervised", "auxiliary8", "boundary", "boundary_overlap", "at_boundary"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in p2at.parameters())


def test_a_boundary_lies_where_classes_meet_and_four_pixels_around() -> None:
    mask = torch.zeros(2, 12, 16, dtype=torch.uint8)
    mask[0, :, 8:] = 3
    target = boundary_target(mask)
    # The Sobel magnitudes across the step are 1 3 3 1; all pass 50 of 255, and a dilation by 4 adds 1 before, 2 after.
    columns = target[0].all(dim=0).nonzero().flatten().tolist()
    assert columns == list(range(5, 12))
    assert not target[0, :, [*range(5), *range(12, 16)]].any()
    assert not target[1].any()


def test_a_step_to_the_void_hides_one_between_neighbouring_numbers() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.uint8)
    mask[:, :, 5:] = 1
    assert boundary_target(mask)[0, 10, 5]
    mask[:, :, 15:] = 255
    target = boundary_target(mask)
    assert target[0, 10, 15] and not target[0, 10, 5]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_boundaries_of_any_size(size: tuple[int, int]) -> None:
    assert boundary_target(torch.zeros(3, *size, dtype=torch.uint8)).shape == (3, *size)


def test_boundary_and_rest_weigh_the_same_together() -> None:
    target = torch.zeros(1, 4, 5)
    target[0, 0, :4] = 1
    logit = torch.randn(1, 4, 5, requires_grad=True)
    logit.data[target == 1] = 0.3
    logit.data[target == 0] = -0.3
    loss = weighted_binary_cross_entropy(logit, target)
    share = functional.softplus(torch.tensor(-0.3)) * 0.2 * 0.8
    torch.testing.assert_close(loss, 2 * share)
    assert weighted_binary_cross_entropy(logit, torch.zeros_like(target)) == 0


def test_the_dice_loss_goes_from_1_to_0() -> None:
    target = (torch.arange(100.0).view(1, 10, 10) < 40).float()
    sure = 40 * (2 * target - 1)
    torch.testing.assert_close(dice_loss(sure, target), torch.tensor(0.0))
    torch.testing.assert_close(dice_loss(-sure, target), torch.tensor(1 - 1 / 101))
    half = 1 - (2 * 0.5 * 40 + 1) / (50 + 40 + 1)
    torch.testing.assert_close(dice_loss(torch.zeros_like(target), target), torch.tensor(half))


def test_only_sure_boundaries_stay_in_the_mask() -> None:
    mask = torch.tensor([[[0, 1], [255, 2]]], dtype=torch.uint8)
    boundary = torch.tensor([[[3.0, 1.0], [3.0, 1.5]]])
    assert mask_at_boundary(mask, boundary).tolist() == [[[0, 255], [255, 2]]]


def test_the_plain_head_has_the_same_encoder_and_no_auxiliary_heads() -> None:
    plain = method(decoder="none")
    assert isinstance(plain.network, CoarseSegmenter)
    assert plain.losses(labeled=labeled()).keys() == {"supervised"}
    encoder = count_parameters(method().network.backbone)
    assert count_parameters(plain) == encoder + 3 * 48 + 3
    assert P2ATMethod.card.claim is not None
    make_config(P2ATMethod, load_preset(P2ATMethod, "mini"), P2ATMethod.card.claim.baseline_settings)


def test_frozen_normalisation_concerns_the_backbone_alone() -> None:
    p2at = method(freeze_norms=True).train()
    norms = {name: module for name, module in p2at.network.named_modules() if "BatchNorm" in type(module).__name__}
    assert all(module.training != name.startswith("backbone.") for name, module in norms.items())
    assert any(name.startswith("backbone.") for name in norms) and "head.0" in norms


def test_weights_of_torchvisions_resnet_are_the_encoders(tmp_path: Path) -> None:
    torch.manual_seed(3)
    resnet = torchvision.models.resnet18().eval()
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    p2at = method(backbone="resnet18", backbone_weights=str(tmp_path / "resnet18.pth")).eval()
    x = torch.randn(1, 3, 64, 64)
    stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
    with torch.no_grad():
        expected = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(stem))))
        torch.testing.assert_close(p2at.network.backbone(x)[-1], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "tiny"}, "tiny32"),
        ({"attention_heads": 0}, "--attention-heads 0"),
        ({"auxiliary_weight": -1.0}, "--auxiliary-weight -1.0"),
        ({"decoder": "none", "boundary_head": True}, "--decoder none: has no auxiliary heads"),
    ],
)
def test_what_the_network_cannot_have_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        method(**options)
    assert "\n" not in str(refusal.value)


def test_only_labelled_images_are_drawn() -> None:
    assert {stream.source for stream in method().streams().values()} == {"labeled"}
