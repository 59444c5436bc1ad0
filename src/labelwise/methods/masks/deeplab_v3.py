"""DeepLab v3: atrous convolution in parallel or in cascade, batch normalised, without a CRF.

Idea: context comes from atrous convolution alone. Either copies of a ResNet's last block follow it with growing rates
(cascade), or an atrous pyramid looks at its feature at several rates at once, beside a 1x1 convolution and the average
of the whole image (ASPP). Rates vary within a block (multi-grid). The output stride is a choice: 16 in training, which
leaves memory for the batches that normalisation wants, and 8 in evaluation with the same weights. The loss sees the
up-sampled logits, not shrunken labels.

Citation. Liang-Chieh Chen, George Papandreou, Florian Schroff, Hartwig Adam. Rethinking Atrous Convolution for
Semantic Image Segmentation. arXiv:1706.05587, 2017. The training recipe is that of the official code
(tensorflow/models, research/deeplab), which has no cascade.

Needs: masks. Gives: masks.

Published (VOC 2012 val, ResNet-101, trained at output stride 16, mIoU): rates 6 12 18 75.36 without multi-grid, 76.58
with multi-grid 1 2 4, 77.21 with image-level features; the same weights evaluated at output stride 8 78.51, with six
scales 79.45, mirrored too 79.77. Cascade up to block7, multi-grid 1 2 1: 76.66 at output stride 16, 79.35 in all.

Second training, for models that go to the test server: `labelwise train deeplab_v3 --preset paper_second --start-from
RUN` continues from a finished run at output stride 8 with all normalisations frozen; images of five hard classes come
twice in a pass.

Departures: timm's ImageNet weights expect its own pixel statistics (the papers' ResNets subtract the mean alone), and
were trained with strides in the first unit of a block; `unit_strides` says where they are here. Image pooling is the
mean of the whole feature map, which is the official fixed window where images have the size of the crop. With one
image per step the pooled branch is normalised by its running statistics. Copies of block4 start from random weights;
the paper does not say from which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from labelwise.errors import UserError, require_at_least
from labelwise.method import Card, Claim, Needs, Published
from labelwise.models.aspp import ASPP
from labelwise.models.atrous_backbone import MULTI_GRID, is_resnet
from labelwise.models.atrous_stages import BLOCKS, Cascade, plan_blocks
from labelwise.models.deeplab_v3 import DeepLabV3, initialize_head
from labelwise.samples import Kind
from labelwise.tasks.atrous import AtrousConfig, AtrousMethod

MOST_OUTPUT_STRIDE = 32
_SETTING = "VOC 2012 val, ResNet-101, trained at output stride 16"


class DeepLabV3Method(AtrousMethod):
    """Atrous ResNet, and an atrous pyramid with image-level features or a cascade of blocks."""

    card = Card(
        name="deeplab_v3",
        title="DeepLab v3",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv:1706.05587, 2017",
        year=2017,
        idea="Context from atrous convolution in parallel or in cascade and from the whole image's average; any "
        "output stride with the same weights.",
        published=(
            Published(f"{_SETTING}, ASPP with multi-grid 1 2 4", "mIoU", 76.58, "Table 5"),
            Published(f"{_SETTING}, and with image pooling", "mIoU", 77.21, "Table 5"),
            Published(f"{_SETTING}, evaluated at 8", "mIoU", 78.51, "Table 6"),
            Published(f"{_SETTING}, evaluated at 8, six scales, mirrored", "mIoU", 79.77, "Table 6"),
            Published(f"{_SETTING}, cascade to block7, multi-grid 1 2 1", "mIoU", 76.66, "Table 3"),
            Published("VOC 2012 test, COCO, second training on trainval", "mIoU", 85.7, "Table 7"),
        ),
        claim=Claim(
            "Where the class depends on something out of the pyramid's reach, image-level features lift the mIoU by "
            "at least 5 points.",
            baseline="deeplab_v3",
            baseline_settings={"image_pooling": False},
            labels="masks:all",
            paper_labels="masks:all",
            margin=5.0,
            scenes={"scenes": "stripes", "size": 64, "train": 320, "val": 120},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(AtrousConfig):
        """Options of DeepLab v3."""

        output_stride: Literal[4, 8, 16, 32, 64, 128, 256] = 16  # type: ignore[assignment]
        "input pixels per feature pixel in training; evaluation may take another; above 32 with a cascade alone"
        context: Literal["parallel", "cascade"] = "parallel"
        "atrous pyramid, or copies of a ResNet's last block with growing rates"
        image_pooling: bool = True
        "the pyramid has a branch of the whole image's average"
        cascade_blocks: int = 3
        "copies of the last block in a cascade; 3 = up to block7"

        def __post_init__(self) -> None:
            """Refuse contexts that a network cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            require_at_least("cascade_blocks", self.cascade_blocks, 1)
            if self.context == "cascade" and not is_resnet(self.backbone):
                raise UserError(
                    f"--context cascade: backbone '{self.backbone}' has no last block to copy; "
                    "--backbone resnet50s, or --context parallel"
                )
            if self.context == "cascade" and self.unit_strides == "first":
                raise UserError("--unit-strides first: a cascade has its strides in last units; leave it out")
            most = MOST_OUTPUT_STRIDE * 2**self.cascade_blocks if self.context == "cascade" else MOST_OUTPUT_STRIDE
            if self.output_stride > most:
                raise UserError(f"--output-stride {self.output_stride}: this network's greatest is {most}")

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The configured network with a random head.

        Args:
            pretrained: load the configured backbone weights; False leaves the backbone random.
        """
        config = self.config
        network = self._cascaded(pretrained) if config.context == "cascade" else self._parallel(pretrained)
        initialize_head(network)
        return network

    def _parallel(self, pretrained: bool) -> DeepLabV3:
        config = self.config
        backbone = self.make_backbone(pretrained)
        context = ASPP(
            backbone.channels[-1],
            config.decoder_channels,
            config.rates,
            image_pooling=config.image_pooling,
            dropout=config.dropout,
        )
        return DeepLabV3(backbone, context, config.decoder_channels, len(self.classes))

    def _cascaded(self, pretrained: bool) -> DeepLabV3:
        config = self.config
        blocks = BLOCKS + config.cascade_blocks
        backbone = self.make_backbone(pretrained, blocks=blocks)
        plan = plan_blocks(config.output_stride, blocks)
        cascade = Cascade(backbone.body.get_submodule("layer4"), plan, config.multi_grid or MULTI_GRID)
        return DeepLabV3(backbone, cascade, backbone.channels[-1], len(self.classes))
