"""What DeepLab v3 and v3+ share: the training recipe of the official code, and networks of any output stride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, cast, get_args, get_type_hints

from torch import Tensor, nn
from torchvision.transforms import v2

from labelwise.errors import UserError, did_you_mean, require_at_least
from labelwise.losses.hard_pixels import hard_pixel_cross_entropy, mined_share
from labelwise.method import Stream
from labelwise.models.aspp import rates_at
from labelwise.models.atrous_backbone import LowFeature, create_atrous_backbone
from labelwise.models.atrous_stages import BLOCKS
from labelwise.models.backbones import Backbone
from labelwise.models.separable import is_depthwise
from labelwise.models.xception import is_xception
from labelwise.samples import IGNORE_INDEX, Batch, Sample
from labelwise.tasks.segmentation import SegmentationConfig, SegmentationMethod, require_output_stride
from labelwise.transforms.step_scale import RandomStepScaleCrop

REFERENCE_STRIDE, REFERENCE_RATES = 16, (6, 12, 18)
BIAS_MULTIPLIER = 2.0
"""Of the learning rate of biases, in the official training code."""
CENTERED = ((0.5,) * 3, (0.5,) * 3)
"""Xception sees values from -1 to 1."""


@dataclass(frozen=True, kw_only=True)
class AtrousConfig(SegmentationConfig):
    """Options of DeepLab v3 and v3+; the defaults are those of the papers on VOC."""

    backbone: str = "resnet101s"
    "timm name of the backbone; resnet101s has the stem of the official code, three 3x3 convolutions"
    crop: int = 513
    "side of the square training crops in pixels, 16 n + 1; 0 = whole images, of one size in a step"
    scale_step: float = 0.25
    "between the factors of the scaling before the crop, padding right and below; 0 = as `scaling` says"
    batch_size: int = 16
    "images per optimiser step and stream, over all devices together; below 16 trained norms lose much"
    learning_rate: float = 0.007
    "of the backbone at the first step"
    head_multiplier: float = 1.0
    "learning rate of everything but the backbone, as a multiple; biases of convolutions have twice theirs"
    decay_norms: bool = False
    "weight decay on normalisation weights and biases as well; depthwise weights have none in any case"
    output_stride: Literal[4, 8, 16, 32] = 16
    "input pixels per feature pixel of the backbone's last stage in training; evaluation may take another"
    multi_grid: tuple[int, ...] = ()
    "rates of the last block's units as multiples of its own; none = 1 2 4 for ResNets, 1 1 1 for Xception"
    unit_strides: Literal["last", "first"] = "last"
    "a ResNet's strides: in a block's last unit (papers), or in the next one's first, as timm's weights were trained"
    aspp_rates: tuple[int, ...] = ()
    "dilations of the atrous pyramid; none = 6 12 18 at output stride 16, 12 24 36 at 8, and so on"
    decoder_channels: int = 256
    "channels of the atrous pyramid, and of the decoder where there is one"
    dropout: float = 0.1
    "share of the pyramid's output that is dropped in training"
    norm_momentum: float = 0.1
    "share of each batch in the running statistics of normalisations; 0.0003 in the papers, for 30,000 steps"
    freeze_head_norms: bool = False
    "keep all other BatchNorm statistics as they were as well, for a second training; besides `freeze_norms`"
    slow_steps: int = 0
    "first steps, at the learning rate `slow_rate`; the schedule begins after them"
    slow_rate: float = 1e-4
    "learning rate of the first `slow_steps`"
    hard_pixels: float = 1.0
    "learn from this share of the pixels alone, those with the largest loss; 1 = from all"
    mining_steps: int = 0
    "steps over which the share of pixels goes from 1 to `hard_pixels`"
    hard_classes: tuple[str, ...] = ()
    "images that show one of these classes come twice in every pass (bootstrapping)"

    def __post_init__(self) -> None:
        """Refuse numbers that the network or the training cannot have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("decoder_channels", self.decoder_channels, 1)
        for name in ("slow_steps", "slow_rate", "mining_steps", "scale_step"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("aspp_rates", "multi_grid"):
            if any(rate < 1 for rate in getattr(self, name)):
                shown = " ".join(map(str, getattr(self, name)))
                raise UserError(f"--{name.replace('_', '-')} {shown}: every number must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout}: must be a share from 0 to less than 1")
        for name in ("norm_momentum", "hard_pixels"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0 and at most 1")
        if self.slow_steps and not self.learning_rate:
            raise UserError(f"--slow-steps {self.slow_steps}: needs a --learning-rate above 0")

    @property
    def rates(self) -> tuple[int, ...]:
        """The dilations of the pyramid at this output stride."""
        return self.aspp_rates or rates_at(REFERENCE_RATES, self.output_stride, REFERENCE_STRIDE)

    def at_output_stride(self, output_stride: int) -> Self:
        """The same weights at another output stride: rates that were named change with it."""
        require_output_stride(output_stride, get_args(get_type_hints(type(self))["output_stride"]))
        rates = rates_at(self.aspp_rates, output_stride, self.output_stride)
        return replace(self, output_stride=cast(Literal[16], output_stride), aspp_rates=rates)


class AtrousMethod(SegmentationMethod):
    """A segmenter with the recipe of DeepLab v3's official training code."""

    config: AtrousConfig
    Config = AtrousConfig

    def make_backbone(self, pretrained: bool, low_feature: LowFeature = "stage", blocks: int = BLOCKS) -> Backbone:
        """The configured backbone.

        Args:
            pretrained: load the configured backbone weights; False leaves the backbone random.
            low_feature: which feature it has at stride 4.
            blocks: of the whole network, those of a cascade included.
        """
        config = self.config
        return create_atrous_backbone(
            config.backbone,
            config.output_stride,
            config.backbone_weights if pretrained else None,
            multi_grid=config.multi_grid or None,
            paper_form=config.unit_strides == "last",
            low_feature=low_feature,
            blocks=blocks,
        )

    def build_training(self) -> None:
        """Set how fast the running statistics of normalisations follow."""
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.config.norm_momentum

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Those of ImageNet; for Xception those that give values from -1 to 1."""
        return CENTERED if is_xception(self.config.backbone) else super().pixel_statistics

    def geometric(self) -> v2.Transform:
        """The papers' augmentation: one of a few scales, random crop, flip; of whole images the flip alone."""
        config = self.config
        if not config.crop or not config.scale_step:
            return super().geometric()
        fill = [round(255 * value) for value in self.pixel_statistics[0]]
        crop = RandomStepScaleCrop(config.crop, config.scale_range, config.scale_step, fill)
        return v2.Compose([crop, v2.RandomHorizontalFlip()])

    def streams(self) -> dict[str, Stream]:
        """One stream of labelled crops, in which images of the hard classes come twice."""
        unknown = [name for name in self.config.hard_classes if name not in self.classes.names]
        if unknown:
            raise UserError(f"--hard-classes: no class '{unknown[0]}'{did_you_mean(unknown[0], self.classes.names)}")
        copies = self.copies if self.config.hard_classes else None
        return {"labeled": Stream("labeled", self.weak_view(), copies=copies)}

    def copies(self, sample: Sample) -> int:
        """2 for an image with one of the hard classes, 1 for others (bootstrapping of DeepLab v3, section 4)."""
        assert sample.mask is not None
        present = {self.classes.names[number] for number in sample.mask.unique().tolist() if number != IGNORE_INDEX}
        return 2 if present & set(self.config.hard_classes) else 1

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the logits at the crop's size."""
        return {"supervised": self.loss_on_labels(labeled)}

    def supervised_loss(self, logits: Tensor, labeled: Batch) -> Tensor:
        """Cross-entropy with the true masks, of all pixels or of the hardest.

        Args:
            logits: [B, K, H, W].
            labeled: B images with masks.
        """
        if self.config.hard_pixels == 1:
            return super().supervised_loss(logits, labeled)
        assert labeled.mask is not None
        share = mined_share(self.config.hard_pixels, self.global_step, self.config.mining_steps)
        return hard_pixel_cross_entropy(logits, labeled.mask, share)

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step: slow at first, then by the schedule."""
        config = self.config
        if step < config.slow_steps:
            return config.slow_rate / config.learning_rate
        return super().rate_factor(step - config.slow_steps)

    def rate_multiplier(self, name: str, parameter: nn.Parameter) -> float:
        """As in every segmenter, and twice that for the biases of convolutions."""
        multiplier = super().rate_multiplier(name, parameter)
        bias = name.endswith(".bias") and isinstance(self._owner(name), nn.Conv2d)
        return BIAS_MULTIPLIER * multiplier if bias else multiplier

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As in every segmenter, but never on the weights of depthwise convolutions."""
        return super().decays(name, parameter) and not is_depthwise(self._owner(name))

    def _owner(self, name: str) -> nn.Module:
        return self.get_submodule(name.rpartition(".")[0])

    def _keep_norms_frozen(self) -> None:
        super()._keep_norms_frozen()
        if self.config.freeze_head_norms:
            for name, module in self.network.named_modules():
                if not name.startswith("backbone.") and isinstance(module, nn.BatchNorm2d):
                    module.eval()
