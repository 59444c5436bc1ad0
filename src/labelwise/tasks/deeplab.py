"""The network of the semi-supervised papers, DeepLabv3+ with ordinary convolutions, and its options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self, cast, get_args

from torch import nn

from labelwise.errors import UserError, require_at_least
from labelwise.models.aspp import rates_at
from labelwise.models.backbones import create_backbone, takes_multi_grid
from labelwise.models.deeplab_v3plus import DeepLabV3Plus
from labelwise.tasks.segmentation import SegmentationConfig, SegmentationMethod, require_output_stride

MULTI_GRID = (2, 4, 8)
OutputStride = Literal[4, 8, 16, 32]


class Dropouts(NamedTuple):
    """Shares of values that are dropped in training.

    Attributes:
        pyramid: of the plain pyramid's output.
        decoder: of the outputs of the decoder's two convolutions.
    """

    pyramid: float = 0.0
    decoder: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class DeepLabConfig(SegmentationConfig):
    """Options of the segmenters that train this network; the defaults are those of UniMatch's VOC recipe."""

    output_stride: OutputStride = 16
    "input pixels per feature pixel of the backbone's last stage"
    decoder_channels: int = 256
    "channels of the atrous pyramid and the decoder"
    low_channels: int = 0
    "channels to which the decoder reduces the stride-4 feature; 0 = 48 of 256, at least 16"
    head: Literal["plain", "concatenated"] = "plain"
    "atrous pyramid: plain (UniMatch), or normalised once over its concatenated branches (CPS)"
    aspp_rates: tuple[int, ...] = ()
    "dilations of the atrous pyramid; none = 12 24 36 at output stride 8, else 6 12 18"
    multi_grid: bool = False
    "dilations 2, 4, 8 in the last blocks of ResNets and of MobileNetV2 (CPS, MGD)"

    def __post_init__(self) -> None:
        """Refuse numbers that the network cannot have.

        Raises:
            UserError: names the option.
        """
        super().__post_init__()
        require_at_least("decoder_channels", self.decoder_channels, 1)
        require_at_least("low_channels", self.low_channels, 0)
        if any(rate < 1 for rate in self.aspp_rates):
            raise UserError(f"--aspp-rates {' '.join(map(str, self.aspp_rates))}: every dilation must be at least 1")

    def at_output_stride(self, output_stride: int) -> Self:
        """The same weights at another output stride: rates that were named change with it."""
        require_output_stride(output_stride, get_args(OutputStride))
        rates = rates_at(self.aspp_rates, output_stride, self.output_stride)
        return replace(self, output_stride=cast(OutputStride, output_stride), aspp_rates=rates)


class DeepLabMethod(SegmentationMethod):
    """A segmenter whose network is this one."""

    config: DeepLabConfig
    Config = DeepLabConfig

    @property
    def dropouts(self) -> Dropouts:
        """None of the papers that share this network drops anything."""
        return Dropouts()

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """DeepLabv3+ on the configured backbone, with its own random head.

        Args:
            pretrained: load the configured backbone weights; False leaves the backbone random.
        """
        config = self.config
        multi_grid = MULTI_GRID if config.multi_grid and takes_multi_grid(config.backbone) else None
        weights = config.backbone_weights if pretrained and config.backbone_weights != "none" else None
        backbone = create_backbone(config.backbone, config.output_stride, weights, multi_grid=multi_grid)
        rates = config.aspp_rates or ((12, 24, 36) if config.output_stride == 8 else (6, 12, 18))
        return DeepLabV3Plus(
            backbone,
            len(self.classes),
            aspp_channels=config.decoder_channels,
            low_channels=config.low_channels or max(16, config.decoder_channels * 48 // 256),
            rates=rates,
            variant=config.head,
            dropout=self.dropouts.pyramid,
            decoder_dropout=self.dropouts.decoder,
        )
