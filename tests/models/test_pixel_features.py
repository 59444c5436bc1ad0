"""Features of pixels that no label has formed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from labelwise.errors import BadFile, UserError
from labelwise.models.pixel_features import DescriptorFeatures, HeadFeatures, PatchFeatures
from labelwise.models.stego import StegoHead

NAME = "vit_tiny_patch16_224"


def picture(height: int = 40, width: int = 56) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def patches() -> PatchFeatures:
    torch.manual_seed(0)
    return PatchFeatures(NAME, "none")


def test_an_image_of_any_size_gives_a_vector_for_each_patch(patches: PatchFeatures) -> None:
    assert patches(picture()).shape == (192, 2, 4)
    assert patches(picture(5, 5)).shape == (192, 1, 1)
    both = patches.batch(torch.stack([picture().flip(-1), picture()]))
    torch.testing.assert_close(both[1], patches(picture()), atol=1e-4, rtol=1e-4)


def test_patches_stay_as_they_were_loaded(patches: PatchFeatures) -> None:
    patches.train()
    assert not patches.training and not patches.body.training
    assert not any(parameter.requires_grad for parameter in patches.parameters())
    assert not patches(picture()).requires_grad


def test_weights_are_read_from_a_file(patches: PatchFeatures, tmp_path: Path) -> None:
    save_file(patches.body.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    again = PatchFeatures(NAME, tmp_path / "weights.safetensors")
    assert torch.equal(again(picture()), patches(picture()))
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(BadFile, match="not the weights of 'vit_tiny"):
        PatchFeatures(NAME, tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "no_such_network"])
def test_what_is_no_transformer_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no vision transformer"):
        PatchFeatures(name, "none")


def test_a_head_gives_its_dimensions_and_mirrored_images_mirrored_features(patches: PatchFeatures) -> None:
    features = HeadFeatures(patches, StegoHead(patches.channels, 5))
    image = picture(32, 64)
    assert features(image).shape == (5, 2, 4)
    torch.testing.assert_close(features(image.flip(-1)), features(image).flip(-1), atol=1e-5, rtol=1e-4)


def test_descriptors_tell_texture_from_smoothness_and_what_stands_out_from_the_rest() -> None:
    image = torch.full((3, 32, 32), 120, dtype=torch.uint8)
    image[:, :, 0:12:4] = image[:, :, 1:12:4] = 180
    image[0, 20:28, 20:28] = 255
    features = DescriptorFeatures()(image)
    assert features.shape == (28, 16, 16)
    striped, smooth, standing_out = features[:, 8, 3], features[:, 4, 12], features[:, 12, 12]
    assert striped[:24].max() > smooth[:24].max() + 0.1
    assert standing_out[27] > 0.5 > -0.5 > smooth[27]
    assert torch.equal(features, DescriptorFeatures()(image))
