"""DeepLab v2: atrous spatial pyramid pooling, the maximum over several scales of the image, and a dense CRF.

Idea. What DeepLab v1 does with one dilated classifier, several of different rates do together: their score maps are
summed (ASPP), so that objects are seen at several fields of view. The backbone is ResNet-101 with frozen
normalisation, or VGG-16. The network looks at the image at scales 1, 0.75 and 0.5 with the same weights; the scores are
fused by their element-wise maximum, and each scale has a loss of its own beside that of the maximum. The learning rate
falls by the "poly" policy. The same dense CRF follows: `--crf deeplab_v2` when it is evaluated.

Citation. Liang-Chieh Chen, George Papandreou, Iasonas Kokkinos, Kevin Murphy, Alan L. Yuille: DeepLab: Semantic Image
Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs. TPAMI 2018 (arXiv 1606.00915).

Needs: masks. Gives: masks.

Published (VOC 2012 val, trainaug): ResNet-101 with everything 76.35, with the CRF 77.69; without COCO, augmentation and
ASPP 71.27, at a single scale 68.72. VGG-16: LargeFOV 65.76, ASPP-S 66.98, ASPP-L 68.96. Test: 79.7.

On VGG-16 each branch of the pyramid has its own fc6, fc7 and score layer; on ResNet and all other backbones it is one
3x3 convolution to the scores. Prediction does what training does: the fusion over scales is part of the network. The
paper has it on ResNet; `--fusion-scales 1` is the VGG-16 of its tables.

Departures: ImageNet weights are those of torchvision and timm, with their normalisation, not MSRA's, and no weights
trained on COCO are at hand. Those weights were learnt with the stride on the 3x3 convolution (`--no-msra-stride`).
The paper's step is 10 times 1 image (`--accumulate 10`), whose loss averages images; a batch of 10 averages points.
`pool5a` of VGG-16 is taken over from the released LargeFOV.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor, nn

from labelwise.errors import UserError, require_at_least
from labelwise.method import Card, Claim, Needs, Published
from labelwise.models.aspp import rates_at
from labelwise.models.atrous_heads import ClassifierBranch, SummedScores, direct_branches
from labelwise.models.score_maps import ScoreMapNetwork
from labelwise.samples import Batch, Kind
from labelwise.tasks.score_maps import VGG16, ScoreMapConfig, ScoreMapMethod
from labelwise.tasks.segmentation import TEXTURES

NAME = "deeplab_v2"
RATES = {"largefov": (12,), "aspp_s": (2, 4, 8, 12), "aspp_l": (6, 12, 18, 24)}
"""Dilations of the branches at output stride 8."""


class DeepLabV2(ScoreMapMethod):
    """Summed dilated classifiers on ResNet-101, fused over three scales of the image."""

    card = Card(
        name=NAME,
        title="DeepLab v2 (ASPP)",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="Chen, Papandreou, Kokkinos, Murphy, Yuille: DeepLab: Semantic Image Segmentation with Deep "
        "Convolutional Nets, Atrous Convolution, and Fully Connected CRFs, TPAMI 2018",
        year=2018,
        idea="Sum dilated classifiers of several rates on a ResNet with frozen normalisation, and take the maximum "
        "of their scores over three scales of the image.",
        published=tuple(
            Published(f"VOC 2012 {setting}", "mIoU", value, "paper, tables 2, 3 and 4")
            for setting, value in (
                ("val, ResNet-101, one scale", 68.72),
                ("val, ResNet-101, MSC", 71.27),
                ("val, ResNet-101, MSC, COCO, Aug, ASPP", 76.35),
                ("val, ResNet-101, MSC, COCO, Aug, ASPP, CRF", 77.69),
                ("val, VGG-16, LargeFOV", 65.76),
                ("val, VGG-16, ASPP-L", 68.96),
                ("test, ResNet-101, everything, CRF", 79.7),
            )
        ),
        claim=Claim(
            "The maximum over three scales of the image, each with a loss of its own, loses at most half a point "
            "against one scale.",
            baseline=NAME,
            labels="masks:all",
            paper_labels="masks:all",
            margin=-0.5,
            scenes={**TEXTURES, "size": 64},
            baseline_settings={"fusion_scales": (1.0,)},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(ScoreMapConfig):
        """Options of DeepLab v2; the defaults are the paper's for ResNet-101."""

        backbone: str = "resnet101"
        head: Literal["aspp_l", "aspp_s", "largefov"] = "aspp_l"
        "rates 6, 12, 18, 24 (ASPP-L, ResNet's ASPP), 2, 4, 8, 12 (ASPP-S), or 12 alone, at output stride 8"
        rates: tuple[int, ...] = ()
        "dilations of the branches at this output stride; none = the head's"
        head_channels: int = 1024
        "channels of fc6 and fc7 on VGG-16"
        pool5a: bool = True
        "average 3x3 neighbourhoods before fc6 on VGG-16, as the released LargeFOV does"
        fusion_scales: tuple[float, ...] = (1.0, 0.75, 0.5)
        "sizes of the image whose scores are fused by their maximum, in training and prediction; 1 = no fusion"
        freeze_norms: bool = True
        "keep the backbone's BatchNorm, statistics and weights, as it was loaded"
        learning_rate: float = 2.5e-4
        scale_range: tuple[float, float] = (0.5, 1.5)
        batch_size: int = 10
        epochs: float = 18.9
        weight_decay: float = 5e-4

        def __post_init__(self) -> None:
            """Refuse numbers that the network cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            require_at_least("head_channels", self.head_channels, 1)
            if any(rate < 1 for rate in self.rates):
                raise UserError(f"--rates {' '.join(map(str, self.rates))}: every dilation must be at least 1")
            if self.fusion_scales[:1] != (1.0,) or not all(0 < scale <= 1 for scale in self.fusion_scales):
                given = " ".join(map(str, self.fusion_scales))
                raise UserError(f"--fusion-scales {given}: must be 1, then scales above 0 and up to 1")

        def at_output_stride(self, output_stride: int) -> Self:
            """The same weights at another output stride; rates that were named change with it."""
            changed = super().at_output_stride(output_stride)
            return replace(changed, rates=rates_at(self.rates, output_stride, self.output_stride))

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """Backbone, summed branches, and the scales they look at.

        Args:
            pretrained: load the configured backbone weights; False leaves all random.
        """
        config = self.config
        weights = self.weights_to_load(pretrained)
        backbone = self.build_backbone(weights, pool5a=config.pool5a)
        head = SummedScores(self._branches(backbone.channels[-1]))
        network = ScoreMapNetwork(backbone, head, config.fusion_scales)
        self.load_classifier(network, weights)
        return network

    def build_training(self) -> None:
        """Frozen normalisations do not learn their weights either."""
        if self.config.freeze_norms:
            freeze_norms(self.network.backbone)

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """A mean cross-entropy per scale, on the scale's own grid, and one of the maximum."""
        image, mask = self.on_grid(labeled)
        maps, fused = self.network.score_maps(image)
        if len(maps) == 1:
            return {"supervised": self.map_loss(fused, mask, labeled)}
        terms = zip(self.config.fusion_scales, maps, strict=True)
        of_scales = {f"scale_{scale:g}": self.map_loss(each, mask, labeled) for scale, each in terms}
        return {**of_scales, "fused": self.map_loss(fused, mask, labeled)}

    def _branches(self, inputs: int) -> Iterable[nn.Module]:
        config, classes = self.config, len(self.classes)
        rates = config.rates or rates_at(RATES[config.head], config.output_stride)
        if config.backbone != VGG16:
            return direct_branches(inputs, classes, rates)
        return [ClassifierBranch(inputs, config.head_channels, classes, 3, rate, config.dropout) for rate in rates]


def freeze_norms(module: nn.Module) -> None:
    """Stop scale and shift of every batch normalisation from learning; its statistics follow its mode."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.requires_grad_(False)
