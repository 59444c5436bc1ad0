"""Features of pixels that no label has formed: of a self-supervised transformer, perhaps with a head, or descriptors.

Each turns an image into a small grid of vectors that are compared by their cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from labelwise.errors import UserError
from labelwise.models.pixels import PixelNormalization
from labelwise.models.region_descriptors import convert_color, texture_bins
from labelwise.models.weights import check_keys, fetched, read_weights, require_pretrained

DESCRIPTOR_STRIDE = 2
_TYPICAL_TEXTURE = 0.35
"""A derivative's usual bin: texture counts as more or less than it."""
_TYPICAL_CONTRAST = 0.1
"""The distance from the image's median color, in CIE Lab with a range of 1, that counts as neither like nor unlike."""
_TEXTURE_WEIGHT, _COLOR_WEIGHT = 0.1, 2.0


class PixelFeatures(Protocol):
    """What gives features of an image."""

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] uint8 -> [D, h, w] float32 on a coarser grid; without gradients."""


class DescriptorFeatures:
    """Texture, color, and how much the color stands out from its image; for scenes that no transformer has learned.

    Texture is the local mean of derivatives in eight directions, as Selective Search has them (IJCV 2013, section 3.2).
    Texture and contrast are logarithms around a usual value, so that what is less and what is more have opposite signs.
    """

    def __init__(self, reach: float = 1.0) -> None:
        """Remember the size of a neighbourhood.

        Args:
            reach: standard deviation of the local mean's weights in pixels.
        """
        self.reach = reach

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] uint8 -> [28, H / 2, W / 2]: 24 of texture, 3 of color in CIE Lab, 1 of contrast."""
        lab = convert_color(image.permute(1, 2, 0).cpu().numpy(), "lab")
        texture = self._local_mean(texture_bins(lab))
        color = self._local_mean(lab) / 255 - 0.5
        contrast = np.linalg.norm(color - np.median(color, axis=(0, 1)), axis=2, keepdims=True)
        parts = (
            _TEXTURE_WEIGHT * np.log((texture + 0.05) / _TYPICAL_TEXTURE),
            _COLOR_WEIGHT * color,
            np.log((contrast + 0.02) / _TYPICAL_CONTRAST),
        )
        features = np.concatenate(parts, axis=2)[::DESCRIPTOR_STRIDE, ::DESCRIPTOR_STRIDE]
        return torch.from_numpy(features).permute(2, 0, 1).contiguous().to(image.device)

    def _local_mean(self, values: NDArray) -> NDArray[np.float32]:
        return ndimage.gaussian_filter(values.astype(np.float32), (self.reach, self.reach, 0))


class PatchFeatures(nn.Module):
    """The last features of a vision transformer's patches, such as those that DINO has trained without labels."""

    def __init__(self, name: str, weights: str | Path) -> None:
        """Build the network; it is never trained.

        Args:
            name: of timm, such as "vit_base_patch8_224.dino".
            weights: "imagenet" for timm's weights of that name, a file in timm's naming, or "none" for random ones.

        Raises:
            UserError: not a vision transformer that timm knows, or weights that cannot be had.
            BadFile: the file does not exist, cannot be read, or is not of this network.
        """
        super().__init__()
        body = _transformer(name, weights)
        self.patch, self.prefix, self.channels = (
            body.patch_embed.patch_size[0],
            body.num_prefix_tokens,
            body.num_features,
        )
        self.normalize = PixelNormalization(body.pretrained_cfg["mean"], body.pretrained_cfg["std"])
        self.tokens = body.forward_features
        self.body = body.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PatchFeatures:
        """Stay in evaluation, whatever holds it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """[3, H, W] uint8 -> [D, h, w] float32; the sides are rounded to whole patches, at least one."""
        return self.batch(image[None])[0]

    @torch.no_grad()
    def batch(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, D, h, w]."""
        rows, columns = (max(1, round(side / self.patch)) for side in images.shape[-2:])
        size = [rows * self.patch, columns * self.patch]
        normalized = functional.interpolate(self.normalize(images), size, mode="bilinear", antialias=True)
        tokens = self.tokens(normalized)[:, self.prefix :]
        return tokens.transpose(1, 2).unflatten(2, (rows, columns)).float()


class HeadFeatures(nn.Module):
    """Patch features seen through a head that was trained on their correspondences."""

    def __init__(self, patches: PatchFeatures, head: nn.Module) -> None:
        """Join them.

        Args:
            patches: the transformer.
            head: [B, D, h, w] -> [B, d, h, w].
        """
        super().__init__()
        self.patches, self.head = patches, head.eval()

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """[3, H, W] uint8 -> [d, h, w] float32, the mean over the image and its mirror image."""
        both = self.head(self.patches.batch(torch.stack([image, image.flip(-1)])))
        return (both[0] + both[1].flip(-1)) / 2


def _transformer(name: str, weights: str | Path) -> Any:
    # Any: timm's networks carry attributes that nn.Module's type does not know.
    pretrained = weights == "imagenet"
    if pretrained:
        require_pretrained(name)
    try:
        # The sides of an image need not be those of the training.
        with torch.device("meta"):
            timm.create_model(name, dynamic_img_size=True, num_classes=0)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--feature-model '{name}': no vision transformer; vit_base_patch8_224.dino") from error
    if pretrained:
        return fetched(name, lambda: timm.create_model(name, pretrained=True, dynamic_img_size=True, num_classes=0))
    network = timm.create_model(name, dynamic_img_size=True, num_classes=0)
    if weights != "none":
        path = Path(str(weights))
        state = read_weights(path)
        check_keys(path, name, state, network.state_dict(), classifier=("head",))
        network.load_state_dict(state, strict=False)
    return network
