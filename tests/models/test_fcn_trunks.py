"""The trunks of FCN: the published counts, coordinates and receptive fields, and any size of image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import googlenet

from labelwise.errors import UserError
from labelwise.models.backbones import create_backbone
from labelwise.models.complexity import count_parameters
from labelwise.models.coordinates import IMAGE, Layer, crop_offset, receptive_field
from labelwise.models.fcn_networks import NETWORKS, create_trunk
from labelwise.models.fcn_trunks import BackboneTrunk, Inception, Trunk, vgg_trunk


def meta_trunk(name: str, padded: bool = True) -> Trunk:
    with torch.device("meta"):
        trunk = create_trunk(name, padded, None)
    assert isinstance(trunk, Trunk)
    return trunk


def whole_chain(name: str) -> list[Layer]:
    trunk = meta_trunk(name)
    return trunk.chain(trunk.taps[-1])


@pytest.mark.parametrize(("name", "pixels"), [("vgg16", 404), ("caffenet", 355), ("alexnet_tv", 355)])
def test_receptive_fields_of_the_paper(name: str, pixels: int) -> None:
    assert receptive_field(whole_chain(name)) == pixels


def test_googlenets_receptive_field_of_the_paper_includes_the_global_pooling() -> None:
    assert receptive_field(whole_chain("googlenet")) == 715
    assert receptive_field([*whole_chain("googlenet"), Layer(7)]) == 907


def depth(layer: nn.Module) -> int:
    """Convolutions one after another."""
    if isinstance(layer, Inception):
        return 2
    return sum(isinstance(module, nn.Conv2d) for module in layer.modules())


@pytest.mark.parametrize(("name", "layers"), [("vgg16", 16), ("caffenet", 8), ("alexnet_tv", 8), ("googlenet", 22)])
def test_convolutions_from_the_image_to_the_scores_as_the_paper_counts_them(name: str, layers: int) -> None:
    assert sum(map(depth, meta_trunk(name).layers)) + 1 == layers


def test_response_normalisation_is_caffes() -> None:
    norm = meta_trunk("caffenet").layers.get_submodule("norm1")
    x = 100 * torch.randn(1, 9, 2, 2, generator=torch.Generator().manual_seed(0))
    squares = functional.pad(x.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
    torch.testing.assert_close(norm(x), x / (1 + 1e-4 / 5 * squares) ** 0.75)


def test_caffenet_pools_before_it_normalises_and_has_groups() -> None:
    layers = meta_trunk("caffenet").layers
    names = [name for name, _ in layers.named_children()]
    assert names.index("pool1") + 1 == names.index("norm1")
    assert names.index("pool2") + 1 == names.index("norm2")
    groups = [layer.groups for layer in layers if isinstance(layer, nn.Conv2d)]
    assert groups == [1, 2, 1, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "kernel", "offset"),
    [("vgg16", 64, 19), ("caffenet", 63, 18), ("alexnet_tv", 63, 18), ("googlenet", 63, 98), ("googlenet_tv", 63, 106)],
)
def test_crops_of_the_enlarged_scores_follow_from_the_coordinates(name: str, kernel: int, offset: int) -> None:
    enlarged = meta_trunk(name).maps[-1].after(Layer(kernel, 32, kind="transposed"))
    assert crop_offset(enlarged, IMAGE) == offset


def test_all_crops_of_vgg() -> None:
    pool3, pool4, score = meta_trunk("vgg16").maps
    twice = Layer(4, 2, kind="transposed")
    assert score == (32.0, 12.5)
    assert pool4 == (16.0, -91.5)
    assert crop_offset(pool4, score.after(twice)) == 5
    assert crop_offset(score.after(twice).after(Layer(32, 16, kind="transposed")), IMAGE) == 27
    assert crop_offset(pool3, score.after(twice).after(twice)) == 9
    assert crop_offset(score.after(twice).after(twice).after(Layer(16, 8, kind="transposed")), IMAGE) == 31


def test_without_the_border_vggs_cells_tile_the_image() -> None:
    assert meta_trunk("vgg16", padded=False).maps == ((8.0, 3.5), (16.0, 7.5), (32.0, 15.5))


def test_parts_of_vgg_have_the_published_parameters() -> None:
    layers = meta_trunk("vgg16").layers
    convolutions = [part for name, part in layers.named_children() if name.isdigit()]
    assert sum(map(count_parameters, convolutions)) == 14_714_688
    assert count_parameters(layers.get_submodule("fc6")) == 102_764_544
    assert count_parameters(layers.get_submodule("fc7")) == 16_781_312


def test_googlenet_is_the_published_one_without_its_classifier() -> None:
    assert count_parameters(meta_trunk("googlenet")) == 6_998_552 - 1_025_000


def test_torchvisions_googlenet_computes_what_torchvision_computes() -> None:
    torch.manual_seed(0)
    trunk = create_trunk("googlenet_tv", False, None).eval()
    assert isinstance(trunk, Trunk)
    theirs = googlenet(weights=None, aux_logits=False, init_weights=False).eval()
    state = {key.removeprefix("layers."): value for key, value in trunk.state_dict().items()}
    theirs.load_state_dict(state, strict=False)
    found: list[Tensor] = []
    theirs.inception5b.register_forward_hook(lambda module, args, output: found.append(output))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs(image)
        assert torch.equal(trunk(image)[-1], found[0])


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_lie_where_their_coordinates_say(name: str, padded: bool) -> None:
    trunk = meta_trunk(name, padded).eval()
    small, large = (trunk(torch.zeros(1, 3, side, side + 64, device="meta")) for side in (128, 256))
    for before, after, channels, stride in zip(small, large, trunk.channels, trunk.strides, strict=True):
        assert before.shape[1] == channels
        assert after.shape[2] - before.shape[2] == 128 // stride
        assert before.shape[3] - before.shape[2] == 64 // stride


def test_a_shift_of_the_image_by_a_cell_shifts_the_features_by_one() -> None:
    torch.manual_seed(0)
    trunk = vgg_trunk(True, (2, 2, 3, 3, 3), (1, 1, 1, 1, 1), hidden=4).eval()
    image = torch.randn(1, 3, 96, 256)
    with torch.no_grad():
        here, there = (trunk(part)[-1] for part in (image[..., :224], image[..., 32:]))
    shared = slice(5, -5)
    torch.testing.assert_close(here[..., 6:-4], there[..., shared], atol=1e-6, rtol=1e-4)


def test_a_backbone_is_scored_at_its_strides_8_16_and_32() -> None:
    backbone = create_backbone("resnet10t", 32, None)
    trunk = create_trunk("resnet10t", True, None).eval()
    assert isinstance(trunk, BackboneTrunk)
    assert trunk.strides == (8, 16, 32)
    assert trunk.channels == backbone.channels[-3:]
    assert not trunk.padded
    with torch.no_grad():
        found = [tuple(feature.shape[1:]) for feature in trunk(torch.zeros(1, 3, 64, 96))]
    assert found == [(128, 8, 12), (256, 4, 6), (512, 2, 3)]


def test_a_backbone_of_another_stride_is_refused() -> None:
    with pytest.raises(UserError, match="'micro_w10' has output stride 4"):
        create_trunk("micro_w10", True, None)
