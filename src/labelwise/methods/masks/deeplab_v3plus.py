"""DeepLab v3+: DeepLab v3 as an encoder, a light decoder, and atrous separable convolution.

Idea: the pyramid's output is coarse. Up-sample it to stride 4, put 48 channels of the backbone's feature of that stride
beside it, refine both with two 3x3 convolutions, and up-sample the logits. Depthwise separable convolutions in the
pyramid, the decoder and the backbone (modified aligned Xception) make it cheaper and more accurate.

Citation. Liang-Chieh Chen, Yukun Zhu, George Papandreou, Florian Schroff, Hartwig Adam. Encoder-Decoder with Atrous
Separable Convolution for Semantic Image Segmentation. ECCV 2018. Details from the official code (tensorflow/models,
research/deeplab).

Needs: masks. Gives: masks.

Published (VOC 2012 val, trained at output stride 16, mIoU): ResNet-101 77.21 without the decoder, 78.85 with it, 80.57
evaluated at output stride 8 with six scales and mirrored; Xception-65 79.17 without, 79.93 with the decoder, 79.79
with separable convolutions in the head too, 81.45 evaluated at 8 with six scales and mirrored.

Departures: as in DeepLab v3 for ResNets with timm's weights (pixel statistics; strides, see `unit_strides`). For other
backbones than Xception the separable head is a choice like any other; the papers' ResNets have ordinary convolutions
(`--no-separable`). Crops are padded with the gray value nearest to 0 after normalisation. The low-level feature of
networks that are neither ResNets nor Xception is their last at stride 4; a network that ends at stride 4 gives the one
at stride 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from labelwise.errors import UserError, require_at_least
from labelwise.method import Card, Claim, Needs, Published
from labelwise.models.aspp import ASPP
from labelwise.models.deeplab_v3 import DeepLabV3, initialize_head
from labelwise.models.deeplab_v3plus import DeepLabV3Plus
from labelwise.samples import Kind
from labelwise.tasks.atrous import AtrousConfig, AtrousMethod

_SETTING = "VOC 2012 val, trained at output stride 16"


class DeepLabV3PlusMethod(AtrousMethod):
    """DeepLab v3 with a decoder, on Xception or any other backbone."""

    card = Card(
        name="deeplab_v3plus",
        title="DeepLab v3+",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, "
        "ECCV 2018",
        year=2018,
        idea="A light decoder brings the detail of stride 4 back to DeepLab v3; separable convolutions cost less.",
        published=(
            Published(f"{_SETTING}, ResNet-101 without decoder", "mIoU", 77.21, "Table 3"),
            Published(f"{_SETTING}, ResNet-101", "mIoU", 78.85, "Table 3"),
            Published(f"{_SETTING}, ResNet-101, evaluated at 8, six scales, mirrored", "mIoU", 80.57, "Table 3"),
            Published(f"{_SETTING}, Xception-65 without decoder", "mIoU", 79.17, "Table 5"),
            Published(f"{_SETTING}, Xception-65, separable head", "mIoU", 79.79, "Table 5"),
            Published(
                f"{_SETTING}, Xception-65, separable head, evaluated at 8, six scales, mirrored",
                "mIoU",
                81.45,
                "Table 5",
            ),
            Published("VOC 2012 test, Xception-JFT", "mIoU", 89.0, "Table 6"),
        ),
        claim=Claim(
            "The decoder lifts the mIoU by at least 5 points over the same network without it.",
            baseline="deeplab_v3plus",
            baseline_settings={"decoder": False},
            labels="masks:all",
            paper_labels="masks:all",
            margin=5.0,
            scenes={"scenes": "objects", "size": 64},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(AtrousConfig):
        """Options of DeepLab v3+."""

        backbone: str = "xception65"
        "timm name of the backbone: xception41, 65 or 71, resnet101s, or any other with a feature at stride 4"
        weight_decay: float = 4e-5
        "on convolution and linear weights; 1e-4 for ResNets"
        decoder: bool = True
        "refine with the feature at stride 4; without it the network is DeepLab v3"
        separable: bool = True
        "the 3x3 convolutions of pyramid and decoder are depthwise separable"
        low_channels: int = 48
        "channels to which the decoder reduces the stride-4 feature"
        low_feature: Literal["residual", "stage"] = "residual"
        "of a ResNet at stride 4: what block1's second-last unit adds to its input (official code), or a plain output"

        def __post_init__(self) -> None:
            """Refuse numbers that the network cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            require_at_least("low_channels", self.low_channels, 1)

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The configured network with a random head.

        Args:
            pretrained: load the configured backbone weights; False leaves the backbone random.
        """
        network = self._with_decoder(pretrained) if self.config.decoder else self._without_decoder(pretrained)
        initialize_head(network)
        return network

    def _with_decoder(self, pretrained: bool) -> nn.Module:
        config = self.config
        backbone = self.make_backbone(pretrained, config.low_feature)
        try:
            return DeepLabV3Plus(
                backbone,
                len(self.classes),
                aspp_channels=config.decoder_channels,
                low_channels=config.low_channels,
                rates=config.rates,
                separable=config.separable,
                dropout=config.dropout,
            )
        except ValueError as error:
            raise UserError(f"--backbone {config.backbone}: {error}; --no-decoder, or another backbone") from error

    def _without_decoder(self, pretrained: bool) -> nn.Module:
        config = self.config
        backbone = self.make_backbone(pretrained, config.low_feature)
        pyramid = ASPP(
            backbone.channels[-1],
            config.decoder_channels,
            config.rates,
            separable=config.separable,
            dropout=config.dropout,
        )
        return DeepLabV3(backbone, pyramid, config.decoder_channels, len(self.classes))
