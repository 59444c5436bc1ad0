"""What DeepLab v2 promises: the paper's networks, four losses, frozen normalisation, the poly policy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.masks.deeplab_v2 import DeepLabV2
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.models.score_maps import pick_labels
from labelwise.samples import Batch

CLASSES = Classes(("background", "cat", "dog"))
VOC = Classes(tuple(map(str, range(21))))
TINY = {"backbone": "tiny", "backbone_weights": "none", "crop": 33}


def paper_network(**options: object) -> nn.Module:
    with torch.device("meta"):
        return DeepLabV2(DeepLabV2.Config(**options), VOC, training=False).network


def method(**options: object) -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(DeepLabV2.Config(**TINY | options), CLASSES)


def labeled(size: int = 33) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    mask = torch.randint(3, (2, size, size), generator=generator, dtype=torch.uint8)
    mask[0, :9] = 255
    return Batch(ids=("a", "b"), image=image, mask=mask)


def norms(segmenter: DeepLabV2) -> list[nn.BatchNorm2d]:
    return [module for module in segmenter.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_papers_parameters() -> None:
    assert count_parameters(paper_network(backbone="vgg16")) == 37_877_652
    assert count_parameters(paper_network(backbone="vgg16", head="largefov")) == 20_505_429
    resnet = paper_network()
    assert count_parameters(resnet.head) == 1_548_372 == 4 * (9 * 2048 * 21 + 21)
    affine = sum(2 * module.num_features for module in resnet.modules() if isinstance(module, nn.BatchNorm2d))
    assert round(affine / 1e6, 3) == 0.105
    assert round((count_parameters(resnet) - affine) / 1e6, 3) == 43.943


def test_the_papers_multiply_adds_of_one_scale() -> None:
    assert round(count_macs(paper_network(fusion_scales=(1.0,)), (321, 321)) / 1e9, 1) == 75.1


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_the_papers_grids(backbone: str) -> None:
    network = paper_network(backbone=backbone)
    assert network.grid == 32
    maps, fused = network.score_maps(torch.zeros(1, 3, 321, 321, device="meta"))
    assert [tuple(each.shape) for each in maps] == [(1, 21, side, side) for side in (41, 31, 21)]
    assert fused.shape == (1, 21, 41, 41)


@pytest.mark.parametrize(
    ("head", "rates"), [("largefov", [12]), ("aspp_s", [2, 4, 8, 12]), ("aspp_l", [6, 12, 18, 24])]
)
@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_the_papers_heads(backbone: str, head: str, rates: list[int]) -> None:
    branches = paper_network(backbone=backbone, head=head).head.branches
    spatial = [branch.fc6 if backbone == "vgg16" else branch for branch in branches]
    assert [conv.dilation[0] for conv in spatial] == rates
    assert {conv.out_channels for conv in spatial} == {1024 if backbone == "vgg16" else 21}


def test_each_scale_and_their_maximum_have_a_loss_on_their_own_grid() -> None:
    segmenter, batch = method(freeze_norms=False).eval(), labeled()
    assert batch.mask is not None
    maps, fused = segmenter.network.score_maps(segmenter.normalize(batch.image))
    expected = {
        f"scale_{scale}": cross_entropy(scores, pick_labels(batch.mask, (side, side)))
        for scale, scores, side in zip(("1", "0.75", "0.5"), maps, (5, 4, 3), strict=True)
    }
    expected["fused"] = cross_entropy(fused, batch.mask[:, ::8, ::8])
    torch.testing.assert_close(segmenter.losses(labeled=batch), expected)


def test_one_scale_has_one_loss() -> None:
    assert method(fusion_scales=(1.0,)).losses(labeled=labeled()).keys() == {"supervised"}


def test_prediction_fuses_the_scales_as_training_does() -> None:
    fused, single = method().eval(), method(fusion_scales=(1.0,)).eval()
    single.network.load_state_dict(fused.network.state_dict())
    image = labeled().image
    with torch.no_grad():
        maximum, alone = fused.predict(image), single.predict(image)
    assert (maximum[..., ::8, ::8] >= alone[..., ::8, ::8]).all()
    assert not torch.allclose(maximum, alone)


def test_frozen_norms_compute_in_training_what_they_do_in_evaluation_and_never_change() -> None:
    segmenter = method().train()
    for norm in norms(segmenter):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = segmenter.normalize(labeled().image)
    training = segmenter.network(x)
    torch.testing.assert_close(training, segmenter.eval().network(x))
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    segmenter.train()
    optimizer = segmenter.configure_optimizers()["optimizer"]
    sum(segmenter.losses(labeled=labeled()).values()).backward()
    optimizer.step()
    after = segmenter.state_dict()
    frozen = {
        name for name in before if any(part in name for part in ("running", "num_batches")) or before[name].ndim == 1
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len([name for name in frozen if "running_mean" in name]) == len(norms(segmenter))
    # The biases of the head are the only vectors that learn.
    assert changed & frozen == {f"network.head.branches.{number}.bias" for number in range(4)}
    assert any("backbone" in name for name in changed)


def test_trained_norms_follow_on_request() -> None:
    segmenter = method(freeze_norms=False).train()
    assert all(norm.training and norm.weight.requires_grad for norm in norms(segmenter))


def test_the_poly_policy() -> None:
    segmenter = method(steps=100)
    assert segmenter.rate_factor(0) == 1
    assert segmenter.rate_factor(50) == pytest.approx(0.5359, abs=1e-4)
    assert segmenter.rate_factor(100) == 0


@pytest.mark.parametrize("scales", [(), (0.5, 1.0), (1.0, 0.0), (1.0, 2.0)])
def test_scales_that_cannot_be_fused_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="--fusion-scales"):
        DeepLabV2.Config(fusion_scales=scales)


def test_dilations_below_1_are_refused() -> None:
    with pytest.raises(UserError, match="--rates 6 0"):
        DeepLabV2.Config(rates=(6, 0))
