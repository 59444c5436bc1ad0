"""What DeepLab v1 and v2 share: dense backbones, crops, the loss on shrunken labels, multiples of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self, cast, get_args

from torch import Tensor, nn
from torchvision.transforms import v2

from labelwise.errors import UserError, require_at_least
from labelwise.method import Stream
from labelwise.models.atrous_heads import ClassifierBranch
from labelwise.models.atrous_resnet import BLOCKS, create_atrous_resnet
from labelwise.models.atrous_vgg import AtrousVGG16, load_vgg16
from labelwise.models.backbones import Backbone, create_backbone
from labelwise.models.score_maps import ScoreMapNetwork, pad_to_grid, pick_labels, resize_align_corners
from labelwise.samples import IGNORE_INDEX, Batch
from labelwise.tasks.optimization import in_backbone
from labelwise.tasks.segmentation import SegmentationConfig, SegmentationMethod, require_output_stride
from labelwise.transforms.padded_choice import PaddedChoiceScaleCrop

VGG16 = "vgg16"
PAPER_STRIDE = 8
"""The output stride to which the papers' rates belong."""
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Scales of the augmentation; the paper's end at 1.5."""
OutputStride = Literal[4, 8, 16, 32]


@dataclass(frozen=True, kw_only=True)
class ScoreMapConfig(SegmentationConfig):
    """Options of the segmenters whose scores lie on a coarse grid."""

    backbone: str = VGG16
    "vgg16, resnet101 or resnet50 as the papers have them, or any other network that has the output stride"
    output_stride: OutputStride = 8
    "input pixels per score; the papers' rates belong to 8 and change in proportion"
    dropout: float = 0.5
    "share of the values that a training step lacks after fc6 and fc7"
    msra_stride: bool = True
    "resnet50, resnet101: a stage's stride on its first 1x1 convolution, as in the paper; false = on its 3x3 (timm)"
    scaling: Literal["uniform", "choice"] = "choice"
    "before the crop: one of a few scales, padding with the mean color (DeepLab), or a uniform one (UniMatch)"
    decay_norms: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that the network cannot have.

        Raises:
            UserError: names the option.
        """
        if self.scaling == "choice" and not self.scales:
            low, high = self.scale_range
            raise UserError(f"--scale-range {low} {high}: holds none of the scales {', '.join(map(str, SCALES))}")
        super().__post_init__()
        require_at_least("dropout", self.dropout, 0)
        if self.dropout >= 1:
            raise UserError(f"--dropout {self.dropout}: must be below 1")

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of the augmentation that lie within `scale_range`."""
        low, high = self.scale_range
        return tuple(scale for scale in SCALES if low <= scale <= high)

    def at_output_stride(self, output_stride: int) -> Self:
        """The same weights at another output stride; subclasses change the rates that were named."""
        require_output_stride(output_stride, get_args(OutputStride))
        return replace(self, output_stride=cast(OutputStride, output_stride))


class ScoreMapMethod(SegmentationMethod):
    """A segmenter that learns from labels picked at the points of its score map."""

    config: ScoreMapConfig
    Config = ScoreMapConfig
    network: ScoreMapNetwork

    def build_backbone(self, weights: str | None, *, pool5a: bool) -> Backbone:
        """The configured backbone.

        Args:
            weights: as for `create_backbone`; those of VGG-16 are loaded by `load_classifier`.
            pool5a: VGG-16 ends in an average pool.
        """
        config = self.config
        if config.backbone == VGG16:
            body = AtrousVGG16(config.output_stride, pool5a=pool5a)
            return Backbone(body, body.channels, body.strides)
        if config.backbone in BLOCKS:
            return create_atrous_resnet(config.backbone, config.output_stride, weights, msra_stride=config.msra_stride)
        return create_backbone(config.backbone, config.output_stride, weights)

    def load_classifier(self, network: ScoreMapNetwork, weights: str | None) -> None:
        """Give VGG-16's convolutions and the branches' fc6 and fc7 the weights of the classifier."""
        if self.config.backbone != VGG16 or weights is None:
            return
        branches = [module for module in network.head.modules() if isinstance(module, ClassifierBranch)]
        load_vgg16(cast(AtrousVGG16, network.backbone.body), branches, weights)

    def weights_to_load(self, pretrained: bool) -> str | None:
        """The configured backbone weights, None for random ones."""
        chosen = self.config.backbone_weights
        return chosen if pretrained and chosen != "none" else None

    def streams(self) -> dict[str, Stream]:
        """One stream of labelled crops."""
        return {"labeled": Stream("labeled", self.weak_view())}

    def geometric(self) -> v2.Transform:
        """Scale, crop padded with the mean color on the right and below, flip."""
        config = self.config
        if not config.crop or config.scaling == "uniform":
            return super().geometric()
        return v2.Compose([PaddedChoiceScaleCrop(config.crop, config.scales), v2.RandomHorizontalFlip()])

    def on_grid(self, labeled: Batch) -> tuple[Tensor, Tensor]:
        """Images and masks, extended to the network's grid by the mean color and 255.

        Returns:
            [B, 3, H', W'] float, normalised, and [B, H', W'] uint8.
        """
        assert labeled.mask is not None
        grid = self.network.grid
        return pad_to_grid(self.normalize(labeled.image), grid), pad_to_grid(labeled.mask, grid, IGNORE_INDEX)

    def map_loss(self, scores: Tensor, mask: Tensor, labeled: Batch) -> Tensor:
        """The mean loss over the points of a score map.

        Clicks hardly ever lie at these points: where the labels are clicks, the scores are interpolated to the image's
        own pixels instead.

        Args:
            scores: [B, K, h, w].
            mask: [B, H', W'], as of `on_grid`.
            labeled: what they were made of.
        """
        if labeled.points is not None:
            return self.supervised_loss(resize_align_corners(scores, mask.shape[-2:]), replace(labeled, mask=mask))
        return self.supervised_loss(scores, replace(labeled, mask=pick_labels(mask, scores.shape[-2:])))

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """`head_multiplier` for layers that start from nothing, twice as much for biases (the released solvers).

        These are the score layers, and on backbones without fc6 and fc7 the whole head.
        """
        path = name.split(".")
        is_new = "score" in path or (not in_backbone(name) and self.config.backbone != VGG16)
        multiplier = self.config.head_multiplier if is_new else 1.0
        is_bias = path[-1] == "bias" and (not in_backbone(name) or self.config.backbone == VGG16)
        return 2 * multiplier if is_bias else multiplier
