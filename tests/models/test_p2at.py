"""P2AT: the paper's sizes layer by layer, any image size, and what each block reduces to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labelwise.models.backbones import create_backbone
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.models.p2at import GCE, LFR, P2AT, SFU, BiF, CoarseSegmenter, DecoderBlock, SegHead

VARIANTS = {"resnet18": 12_736_149, "resnet34": 22_844_309, "resnet50": 25_276_565}


def small(**options: bool) -> P2AT:
    torch.manual_seed(0)
    return P2AT(create_backbone("tiny32", 32, None), 5, channels=8, key_dim=4, heads=2, **options)


def on_meta(backbone: str, **options: bool) -> P2AT:
    with torch.device("meta"):
        return P2AT(create_backbone(backbone, 32, None), 21, **options)


@pytest.mark.parametrize(("backbone", "count"), list(VARIANTS.items()))
def test_parameters_of_the_papers_variants(backbone: str, count: int) -> None:
    network = on_meta(backbone)
    assert count_parameters(network) == count
    assert count_parameters(network) + 2 * count_parameters(SegHead(64, 21)) == count + 76_970


@pytest.mark.parametrize(("backbone", "giga"), list(zip(VARIANTS, (15.84, 25.50, 28.19), strict=True)))
def test_multiply_adds_of_the_papers_variants(backbone: str, giga: float) -> None:
    network = on_meta(backbone)
    # The published count takes the averages of the two low-level branches after their 1x1 convolution.
    averaged_later = 64 * 64 * (128**2 + 64**2)
    # Ours also has the two products of each attention: blocks, axes, heads, pairs of rows, channels of keys and values.
    products = 2 * 2 * 8 * 16**2 * (16 + 32)
    assert (count_macs(network, (512, 512)) + averaged_later - products) / 1e9 == pytest.approx(giga, abs=0.005)


def test_the_attention_can_be_left_out() -> None:
    whole, without = (on_meta("resnet18", attention=attention) for attention in (True, False))
    assert isinstance(without.attention, nn.Identity)
    assert count_parameters(whole) - count_parameters(without) == count_parameters(whole.attention)


def test_compact_enhancers_lack_the_dead_weights_alone() -> None:
    dead = 2 * 64 * 64 * (8 + 48)
    assert count_parameters(on_meta("resnet18")) - count_parameters(on_meta("resnet18", compact_gce=True)) == dead


@settings(max_examples=15)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_logits_have_the_images_size_whatever_it_is(height: int, width: int) -> None:
    network = small().eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 3, height, width))
    assert logits.shape == (1, 5, height, width)
    assert logits.isfinite().all()


@pytest.mark.parametrize("backbone", ["mobilenetv2_050", "resnet10t"])
def test_any_backbone_with_features_at_four_strides_will_do(backbone: str) -> None:
    network = P2AT(create_backbone(backbone, 32, None), 3, channels=8, key_dim=4, heads=2).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 65, 40)).shape == (1, 3, 65, 40)


def test_a_backbone_without_a_stride_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match="none at stride 32"):
        P2AT(create_backbone("tiny", 16, None), 3)


def test_the_prediction_reads_the_refined_feature_and_all_features_have_their_stride() -> None:
    network = small().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = network.forward_features(image)
        upsampled = nn.functional.interpolate(network.head(features[0]), (64, 96), mode="bilinear", align_corners=True)
        torch.testing.assert_close(network(image), upsampled)
    assert [tuple(feature.shape[1:]) for feature in features] == [(8, 16, 24), (8, 8, 12), (8, 16, 24)]


def test_a_single_image_can_be_learned_from() -> None:
    network = small().train()
    network(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_new_decoder_block_is_nearly_and_with_scale_0_exactly_the_identity() -> None:
    torch.manual_seed(0)
    block, x = DecoderBlock(8, 5), torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(block(x), x, atol=1e-5, rtol=0)
    assert not torch.equal(block(x), x)
    nn.init.zeros_(block.scale)
    assert torch.equal(block(x), x)


def test_the_enhancer_adds_one_vector_to_every_pixel() -> None:
    torch.manual_seed(0)
    enhancer, x = GCE(8).eval(), torch.randn(2, 8, 5, 7)
    added = enhancer(x) - x
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), atol=1e-6, rtol=0)
    mixed = x.flatten(2)[..., torch.randperm(35)].view_as(x)
    torch.testing.assert_close(enhancer(mixed) - mixed, added, atol=1e-6, rtol=0)


def test_compact_and_full_enhancers_agree() -> None:
    torch.manual_seed(0)
    full, compact = GCE(8).eval(), GCE(8, compact=True).eval()
    nn.init.normal_(full.bias)
    state = full.state_dict()
    state["average.weight"] = state["average.weight"][..., 1:2, 1:2]
    state["transform.0.weight"] = state["transform.0.weight"][..., 3:4, 3:4]
    compact.load_state_dict(state)
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(compact(x), full(x))


def test_the_low_branch_may_average_before_its_convolution() -> None:
    torch.manual_seed(0)
    branch, x = LFR(6, 8).eval(), torch.randn(2, 6, 5, 7)
    entered = branch.enter(x)
    average = nn.functional.adaptive_avg_pool2d(branch.average(entered), 1)
    torch.testing.assert_close(branch(x), branch.leave(average + branch.gate(entered).sigmoid()))


def test_the_high_branch_shares_its_weight_among_the_channels() -> None:
    branch, x = SFU(6, 8).eval(), torch.randn(2, 6, 5, 7)
    nn.init.zeros_(branch.weight.weight)
    nn.init.zeros_(branch.weight.bias)
    torch.testing.assert_close(branch(x), branch.enter(x) / 8)


def test_a_fusion_without_its_convolution_is_the_product_and_the_gate() -> None:
    torch.manual_seed(0)
    fusion = BiF(4, 6, 8, 8).eval()
    nn.init.zeros_(fusion.fuse[1].weight)
    low, same, high = torch.randn(2, 4, 9, 11), torch.randn(2, 6, 5, 6), torch.randn(2, 8, 3, 3)

    def resized(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, (9, 11), mode="bilinear", align_corners=False)

    middle, up = resized(fusion.same(same)), resized(fusion.high(high))
    torch.testing.assert_close(fusion(low, same, high), middle * up + torch.sigmoid(middle * fusion.low(low)))


def test_the_coarse_segmenter_is_one_convolution_on_the_last_feature() -> None:
    backbone = create_backbone("tiny32", 32, None)
    network = CoarseSegmenter(backbone, 5).eval()
    assert count_parameters(network) - count_parameters(backbone) == 5 * 48 + 5
    with torch.no_grad():
        assert network(torch.randn(1, 3, 33, 1)).shape == (1, 5, 33, 1)
