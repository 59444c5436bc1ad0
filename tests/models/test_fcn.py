"""FCN: published sizes, zero starts, crops against the paper's own operations, and every size of image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.complexity import count_parameters
from labelwise.models.coordinates import CoordinateMap, Layer, bilinear_kernel
from labelwise.models.fcn import FCN, cropped, diagonal, transplant
from labelwise.models.fcn_networks import create_trunk
from labelwise.models.fcn_trunks import Trunk, vgg_trunk

SKIPS = 512 * 21 + 21, 256 * 21 + 21


def narrow_trunk(padded: bool) -> Trunk:
    return vgg_trunk(padded, (4, 4, 6, 6, 6), (1, 1, 1, 1, 1), hidden=8)


def narrow(stride: int, padded: bool = True, random: bool = True, **options: object) -> FCN:
    torch.manual_seed(0)
    network = FCN(narrow_trunk(padded), 3, stride, **options).eval()  # type: ignore[arg-type]
    if random:
        for name, module in network.named_children():
            if name.startswith("score") and isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return network


def upsampled(scores: Tensor, kernel: int, stride: int) -> Tensor:
    weight = bilinear_kernel(kernel).expand(scores.shape[1], 1, kernel, kernel)
    return functional.conv_transpose2d(scores, weight, stride=stride, groups=scores.shape[1])


def by_the_papers_code(network: FCN, image: Tensor, stride: int) -> Tensor:
    """The layers of the released networks, with their numbers."""
    pool3, pool4, fc7 = network.backbone(image)
    height, width = image.shape[2:]
    scores = network.score_fr(fc7)
    if stride == 32:
        return upsampled(scores, 64, 32)[..., 19 : 19 + height, 19 : 19 + width]
    scores = upsampled(scores, 4, 2)
    finer = network.get_submodule("score_pool4")(pool4)
    scores = scores + finer[..., 5 : 5 + scores.shape[2], 5 : 5 + scores.shape[3]]
    if stride == 16:
        return upsampled(scores, 32, 16)[..., 27 : 27 + height, 27 : 27 + width]
    scores = upsampled(scores, 4, 2)
    finer = network.get_submodule("score_pool3")(pool3)
    scores = scores + finer[..., 9 : 9 + scores.shape[2], 9 : 9 + scores.shape[3]]
    return upsampled(scores, 16, 8)[..., 31 : 31 + height, 31 : 31 + width]


@pytest.mark.parametrize(
    ("name", "stride", "count"),
    [
        ("vgg16", 32, 134_346_581),
        ("vgg16", 16, 134_346_581 + SKIPS[0]),
        ("vgg16", 8, 134_346_581 + sum(SKIPS)),
        ("caffenet", 32, 56_954_261),
        ("googlenet", 32, 5_995_077),
    ],
)
def test_published_parameters_with_21_classes(name: str, stride: int, count: int) -> None:
    with torch.device("meta"):
        network = FCN(create_trunk(name, True, None), 21, stride)
    assert count_parameters(network) == count
    assert SKIPS == (10_773, 5_397)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_the_output_is_that_of_the_papers_layers_and_crops(stride: int) -> None:
    network, image = narrow(stride), torch.randn(2, 3, 45, 70)
    with torch.no_grad():
        torch.testing.assert_close(network(image), by_the_papers_code(network, image, stride), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_size_has_an_output_that_the_scores_cover(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = narrow(stride)
    found: list[tuple[Tensor, CoordinateMap]] = []
    compute = network.low_resolution_scores
    monkeypatch.setattr(network, "low_resolution_scores", lambda image: found.append(compute(image)) or found[-1])
    last = Layer(2 * stride, stride, kind="transposed")
    for side in range(1, 71):
        size = (side, 71 - side)
        with torch.no_grad():
            assert network(torch.zeros(1, 3, *size)).shape == (1, 3, *size)
        scores, where = found[-1]
        ends = ((cells - 1) * stride + 2 * stride + where.after(last).offset for cells in scores.shape[2:])
        assert all(end >= pixels for end, pixels in zip(ends, size, strict=True))


@pytest.mark.parametrize("name", ["vgg16", "caffenet", "alexnet_tv", "googlenet", "googlenet_tv", "vgg_tiny"])
@pytest.mark.parametrize("padded", [True, False])
def test_every_trunk_takes_images_of_any_size(name: str, padded: bool) -> None:
    with torch.device("meta"):
        trunk = create_trunk(name, padded, None)
        network = FCN(trunk, 3, min(trunk.strides)).eval()
        for side in (1, 2, 17, 31, 32, 33, 47, 70):
            assert network(torch.zeros(2, 3, side, 71 - side)).shape == (2, 3, side, 71 - side)


def test_a_backbone_takes_images_of_any_size() -> None:
    network = FCN(create_trunk("mobilenetv2_050", False, None), 3, 8).eval()
    with torch.no_grad():
        for size in ((1, 1), (31, 65), (50, 33)):
            assert network(torch.randn(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("padded", [True, False])
def test_scores_start_at_zero(stride: int, padded: bool) -> None:
    with torch.no_grad():
        assert not narrow(stride, padded, random=False)(torch.randn(1, 3, 40, 40)).any()


@pytest.mark.parametrize("padded", [True, False])
def test_without_skip_scores_fcn_8s_is_the_enlarged_coarse_score(padded: bool) -> None:
    network, image = narrow(8, padded), torch.randn(1, 3, 64, 96)
    for name in ("score_pool4", "score_pool3"):
        for parameter in network.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    with torch.no_grad():
        coarse = network.score_fr(network.backbone(image)[-1])
        if padded:
            expected = upsampled(upsampled(upsampled(coarse, 4, 2), 4, 2), 16, 8)[..., 31 : 31 + 64, 31 : 31 + 96]
        else:
            expected = coarse
            for factor in (2, 2, 8):
                expected = functional.interpolate(expected, scale_factor=factor, mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("stride", [16, 8])
def test_a_transplanted_network_begins_with_the_coarser_prediction(stride: int, padded: bool) -> None:
    coarser, finer = narrow(2 * stride, padded), narrow(stride, padded, random=False)
    transplant(coarser, finer)
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        before, after = coarser(image), finer(image)
    assert before.std() > 0.1
    # Two linear interpolations in a row are not quite the single one.
    assert (before - after).abs().mean() < 0.1 * before.std()
    mask = torch.randint(3, (1, 160, 160))
    losses = [float(functional.cross_entropy(scores, mask)) for scores in (before, after)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_coarser_network_of_other_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score_fr.weight has no place"):
        transplant(FCN(narrow_trunk(True), 4, 32), FCN(narrow_trunk(True), 3, 16))
    with pytest.raises(ValueError, match=r"score_pool4.weight has no place"):
        transplant(narrow(16), narrow(32))


def test_scaled_skips_multiply_the_features() -> None:
    plain, scaled = narrow(8), narrow(8, skip_scales=(0.01, 0.0001))
    scaled.load_state_dict(plain.state_dict())
    for name, scale in (("score_pool4", 0.01), ("score_pool3", 0.0001)):
        scaled.get_parameter(f"{name}.weight").data /= scale
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(scaled(image), plain(image), atol=1e-4, rtol=1e-4)


def test_shifting_the_image_by_a_cell_shifts_the_scores_by_one() -> None:
    network = narrow(32)
    image = torch.randn(1, 3, 64, 512)
    with torch.no_grad():
        here, there = (network.low_resolution_scores(part)[0] for part in (image[..., :480], image[..., 32:]))
    # Cells that see neither end of the image.
    torch.testing.assert_close(here[..., 6:11], there[..., 5:10], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(here[..., 6:11], there[..., 6:11], atol=1e-3)


def test_learned_upsampling_starts_as_the_fixed_one_and_learns() -> None:
    fixed, learned = narrow(8), narrow(8, learn_upsampling=True)
    own = {name for name, _ in learned.named_parameters()} - {name for name, _ in fixed.named_parameters()}
    assert own == {"upscore16", "upscore8"}
    learned.load_state_dict(fixed.state_dict(), strict=False)
    image = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(learned(image), fixed(image), atol=1e-5, rtol=1e-4)
    learned(image).square().sum().backward()
    assert all(learned.get_parameter(name).grad.any() for name in own)  # type: ignore[union-attr]


def test_fixed_upsampling_has_no_state() -> None:
    assert not [name for name in narrow(8).state_dict() if "upscore" in name]


@pytest.mark.parametrize(
    ("name", "stride", "options", "words"),
    [
        ("caffenet", 8, {}, "features of stride 32 only"),
        ("vgg_tiny", 32, {"learn_upsampling": True}, "no transposed convolution to learn"),
    ],
)
def test_what_the_trunk_cannot_have_is_refused(name: str, stride: int, options: dict[str, bool], words: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        FCN(create_trunk(name, True, None), 3, stride, **options)


def test_crops_begin_at_their_offset() -> None:
    scores = torch.arange(20.0).view(1, 1, 4, 5)
    assert cropped(scores, 1, (2, 3)).flatten().tolist() == [6, 7, 8, 11, 12, 13]


def test_diagonal_kernels_keep_channels_apart() -> None:
    weight = diagonal(bilinear_kernel(4), 3)
    assert weight.shape == (3, 3, 4, 4)
    assert torch.equal(weight[1, 1], bilinear_kernel(4))
    assert weight.sum() == 3 * bilinear_kernel(4).sum()
