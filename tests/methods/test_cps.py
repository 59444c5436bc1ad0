"""What cross pseudo supervision promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.few_masks.cps import CPS, cross_pseudo_loss, joint_cross_pseudo_loss, mixed_pseudo_labels
from labelwise.samples import Batch

CLASSES = Classes(("background", "cat", "dog"))


def logits(seed: int, batch: int = 2, size: int = 4) -> Tensor:
    return torch.randn(batch, len(CLASSES), size, size, generator=torch.Generator().manual_seed(seed))


def batch(seed: int, labeled: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mask = torch.randint(len(CLASSES), (2, 32, 32), generator=generator, dtype=torch.uint8) if labeled else None
    return Batch(ids=("a", "b"), image=image, mask=mask)


def method(**options: object) -> CPS:
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "crop": 32, "window": 0}
    return CPS(CPS.Config(**{**settings, **options}), CLASSES)


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_one_network_train_themselves(seed: int) -> None:
    prediction = logits(seed)
    own = 2 * cross_entropy(prediction, prediction.argmax(1))
    torch.testing.assert_close(cross_pseudo_loss(prediction, prediction), own)


def test_confident_agreement_costs_nothing() -> None:
    certain = 50.0 * nn.functional.one_hot(logits(0).argmax(1), len(CLASSES)).movedim(-1, 1).float()
    assert cross_pseudo_loss(certain, certain) < 1e-6


def test_no_gradient_passes_through_the_hard_labels() -> None:
    first, second = logits(0).requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(cross_pseudo_loss(first, second), first)
    (direct,) = torch.autograd.grad(cross_entropy(first, second.argmax(1)), first)
    torch.testing.assert_close(gradient, direct)


def test_joint_average_is_half_of_the_papers_sum_for_equal_batches() -> None:
    labeled, unlabeled = (logits(0), logits(1)), (logits(2), logits(3))
    joint = joint_cross_pseudo_loss(labeled, unlabeled, "joint")
    torch.testing.assert_close(2 * joint, joint_cross_pseudo_loss(labeled, unlabeled, "sum"))


def test_an_empty_box_keeps_the_image_and_a_full_one_takes_the_partner() -> None:
    here, there = logits(0), logits(1)
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert torch.equal(mixed_pseudo_labels(here, there, nothing), here.argmax(1))
    assert torch.equal(mixed_pseudo_labels(here, there, ~nothing), there.argmax(1))


@given(st.integers(0, 1000))
def test_swapping_images_and_box_gives_the_same_labels(seed: int) -> None:
    here, there = logits(seed), logits(seed + 1)
    box = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(mixed_pseudo_labels(here, there, box), mixed_pseudo_labels(there, here, ~box))


def test_the_two_networks_start_from_different_heads() -> None:
    cps = method().eval()
    image = cps.normalize(batch(0).image)
    assert not torch.allclose(cps.network(image), cps.second(image))


def test_without_the_cross_term_each_network_learns_as_if_alone() -> None:
    cps = method(cross_weight=0.0, freeze_norms=True)
    labeled = batch(0, labeled=True)
    sum(cps.losses(labeled=labeled, unlabeled=batch(1), partner=batch(2)).values()).backward()
    together = cps.second.classifier.weight.grad.clone()
    cps.zero_grad()
    cross_entropy(cps.second(cps.normalize(labeled.image)), labeled.mask).backward()
    torch.testing.assert_close(together, cps.second.classifier.weight.grad)


def test_labelled_pixels_without_a_label_take_part_in_the_plain_cross_term() -> None:
    cps = method(cutmix=False)
    labeled = batch(0, labeled=True)
    labeled.mask = torch.full_like(labeled.mask, 255)
    terms = cps.losses(labeled=labeled, unlabeled=batch(1))
    assert terms["supervised_first"] == 0
    terms["cross"].backward()
    assert cps.network.classifier.weight.grad.abs().sum() > 0


def test_teaching_passes_carry_no_gradient_but_move_the_batch_statistics() -> None:
    cps = method()
    passes = []
    cps.network.register_forward_hook(lambda module, args, output: passes.append(output.requires_grad))
    cps.losses(labeled=batch(0, labeled=True), unlabeled=batch(1), partner=batch(2))
    assert passes == [True, False, False, True]
    counts = {int(module.num_batches_tracked) for module in cps.network.modules() if type(module) is nn.BatchNorm2d}
    assert counts == {4}


def test_labels_alone_teach_during_the_supervised_share() -> None:
    assert "cross" not in method(supervised_share=0.3).losses(
        labeled=batch(0, labeled=True), unlabeled=batch(1), partner=batch(2)
    )


def test_cutmix_draws_a_second_unlabelled_stream() -> None:
    assert list(method().streams()) == ["labeled", "unlabeled", "partner"]
    assert list(method(cutmix=False).streams()) == ["labeled", "unlabeled"]
    assert {stream.source for name, stream in method().streams().items() if name != "labeled"} == {"unlabeled"}


def test_scales_stay_within_the_range_asked_for() -> None:
    scale_crop = method(scale_range=(0.75, 1.5)).streams()["labeled"].transform.geometric.transforms[0]
    assert tuple(scale_crop.scales) == (0.75, 1.0, 1.5)
    with pytest.raises(UserError, match=r"--scale-range 1\.1 1\.4: holds none"):
        method(scale_range=(1.1, 1.4))


def test_prediction_uses_the_first_network_alone() -> None:
    cps = method().eval()
    image = batch(0).image
    expected = cps.network(cps.normalize(image))
    for parameter in cps.second.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(cps.predict(image), expected)


def test_the_papers_network_has_the_papers_size() -> None:
    with torch.device("meta"):
        cps = CPS(CPS.Config(backbone_weights="none"), Classes(tuple(map(str, range(21)))))
    assert sum(parameter.numel() for parameter in cps.network.parameters()) == 40_475_957
    dilations = [block.conv2.dilation[0] for block in cps.network.backbone.body.layer4]
    assert dilations == [2, 4, 8]
