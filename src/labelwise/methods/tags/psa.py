"""PSA: pixel-level semantic affinities, learned from unsure masks, along which score maps spread.

Idea. Where class activation maps are sure, nearby pixels are known to be of the same class or not. AffinityNet learns
features that are alike exactly where the classes are, and a random walk along the affinities spreads the maps from the
parts that a classifier looks at to whole objects.

Citation. Jiwoon Ahn, Suha Kwak: Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly
Supervised Semantic Segmentation, CVPR 2018 (arXiv:1803.10464).

Needs: masks, with 255 where they are unsure (`labelwise refine --by psa_confident` makes them of score maps).
Gives: masks, of images with score maps (`labelwise annotate RUN --data SEEDS`).

Published (VOC 2012): mIoU on train of the maps of WideResNet-38 48.0 and after the walk 58.1 (released code: 47.7 and
61.0), with the maps of a VGG-16 48.9 and 59.6; a segmenter trained on the masks: val 61.7, test 63.7.

    a_ij    exp(-mean over the channels |f_i - f_j|), for all pairs at stride 8 nearer than 5 pixels
    L       1/4 mean_bg -log a + 1/4 mean_fg -log a + 1/2 mean_neg -log(1 - a)
    bg      (1 - max_c M_c)^alpha
    T       column-normalized W^beta
    M*      [bg, M] T^(2^log_steps)

Departures: masks hold one label per pixel, so that a cell of stride 8 takes the label in its middle, where the released
code averages probabilities over the crop's own cells. Pairs that reach beyond the crop are dropped, the released code
drops all pairs of a pixel some of whose neighbors lie outside. The walk is sparse (same result). Backbones other than
WideResNet-38 give their last three features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from labelwise.errors import require_at_least
from labelwise.method import Card, Needs, Published
from labelwise.models.affinity_net import AffinityNet
from labelwise.models.backbones import create_backbone
from labelwise.models.pixel_affinity import affinity_from_features, affinity_losses
from labelwise.samples import Batch, Kind, ScoreMaps
from labelwise.tasks.optimization import in_backbone
from labelwise.tasks.refinement import RefinementConfig, RefinementMethod

_PAPER, _CODE = "paper", "read-me of the released code"


def background_score(maps: Tensor, alpha: float) -> Tensor:
    """How little an image's classes claim each pixel: (1 - max_c M_c)^alpha.

    A small alpha favors the background.

    Args:
        maps: [N, H, W] from 0 to 1, N at least 1.
        alpha: the power.

    Returns:
        [1, H, W] from 0 to 1.
    """
    return (1 - maps.amax(0, keepdim=True)).clamp(min=0) ** alpha


def pooled(scores: Tensor, stride: int) -> Tensor:
    """Means over squares; zeros fill up the last ones. [N, H, W] -> [N, ceil(H / stride), ceil(W / stride)]."""
    return functional.avg_pool2d(padded(scores, stride), stride)


def padded(image: Tensor, stride: int) -> Tensor:
    """Zeros on the right and below up to a multiple of the stride. [..., H, W] -> [..., H', W']."""
    height, width = image.shape[-2:]
    return functional.pad(image, (0, -width % stride, 0, -height % stride))


class PSA(RefinementMethod):
    """AffinityNet and its random walk."""

    card = Card(
        name="psa",
        title="PSA: pixel-level semantic affinity (AffinityNet)",
        task="refinement",
        needs=Needs(frozenset({Kind.MASKS}), dense=True),
        gives=frozenset({Kind.MASKS}),
        paper="Ahn, Kwak, Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised "
        "Semantic Segmentation, CVPR 2018 (arXiv:1803.10464)",
        year=2018,
        idea="Learn from pairs of pixels with sure labels which pixels belong together, and spread score maps among "
        "them by a random walk.",
        published=(
            Published("VOC 2012 train, WideResNet-38, maps", "mIoU", 48.0, _PAPER),
            Published("VOC 2012 train, WideResNet-38, masks after the walk", "mIoU", 58.1, _PAPER),
            Published("VOC 2012 train, WideResNet-38, masks after the walk", "mIoU", 61.0, _CODE),
            Published("VOC 2012 train, maps of VGG-16, masks after the walk", "mIoU", 59.6, _CODE),
            Published("VOC 2012 val, segmenter on the masks", "mIoU", 61.7, _PAPER),
            Published("VOC 2012 test, segmenter on the masks", "mIoU", 63.7, _PAPER),
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(RefinementConfig):
        """Options of PSA."""

        backbone: str = "wide_resnet38"
        output_stride: int = 8
        alpha: float = 16.0
        "power of the background's score before the walk: (1 - highest score)^alpha"
        beta: float = 8.0
        color_jitter: float = 0.3
        "strength of random brightness, contrast and saturation, and a third of it of hue"
        crop: int = 448
        scale_range: tuple[float, float] = (1.0, 1.0)
        epochs: float = 8.0
        batch_size: int = 8
        weight_decay: float = 5e-4

        def __post_init__(self) -> None:
            """Refuse numbers that it cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("alpha", "color_jitter"):
                require_at_least(name, getattr(self, name), 0)

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The backbone with AffinityNet's head."""
        config = self.config
        weights = config.backbone_weights if pretrained else None
        return AffinityNet(create_backbone(config.backbone, config.output_stride, weights))

    def build_training(self) -> None:
        """Freeze the backbone's first layers and its normalisations, with their scales, as the configuration says."""
        super().build_training()
        if self.config.freeze_norms:
            for name, module in self.named_modules():
                if in_backbone(name) and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)

    def augmentation(self) -> v2.Transform:
        """As usual, with random colors before it."""
        strength = self.config.color_jitter
        jitter = [v2.ColorJitter(strength, strength, strength, min(strength / 3, 0.5))] if strength else []
        return v2.Compose([*jitter, super().augmentation()])

    @property
    def affinity_net(self) -> AffinityNet:
        """The network."""
        return cast(AffinityNet, self.network)

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """The losses of the affinities, over the pairs whose labels are sure."""
        features = self.affinity_net(self.normalize(labeled.image))
        pairs = self.pair_labels(labeled, (features.shape[-2], features.shape[-1]), self.config.radius)
        return affinity_losses(affinity_from_features(features, self.config.radius), pairs)

    def predict(self, image: Tensor) -> Tensor:
        """Affinities of nearby pixels at the features' stride: [B, 3, H, W] uint8 -> [B, n, h, w]."""
        features = self.affinity_net(padded(self.normalize(image), self.affinity_net.stride))
        return affinity_from_features(features.float(), self.config.radius)

    def refined(self, image: Tensor, maps: ScoreMaps) -> Tensor:
        """The scores of the background and the maps' classes after the walk: [1 + N, H, W]."""
        fine = maps.fine.to(self.device) ** self.config.map_power
        scores = torch.cat([background_score(fine, self.config.alpha), fine])
        (affinity,) = self.predict(image[None])
        walked = self.walk(pooled(scores, self.affinity_net.stride), affinity)
        return _enlarged(walked, self.affinity_net.stride, image.shape[1:])


def _enlarged(scores: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """[N, h, w] at a stride -> [N, H, W]."""
    enlarged = functional.interpolate(scores[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    return enlarged[:, : size[0], : size[1]]
