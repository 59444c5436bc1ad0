"""DeepLab v1: a classifier made dense by holes in its filters, then a fully connected CRF.

Idea. A VGG-16 classifier becomes a segmenter of output stride 8 instead of 32 with its own weights: its last two
strides are left out, and the filters after them get holes (atrous convolution). Its first fully connected layer, as a
convolution, is made small but keeps its field of view by a larger rate (LargeFOV: 3x3 taps, rate 12). The network
learns plain soft-max on labels picked at every eighth pixel; its scores are resized and a dense CRF, which is not
trained with it, recovers the boundaries: `--crf deeplab_v1` when it is evaluated.

Citation. Liang-Chieh Chen, George Papandreou, Iasonas Kokkinos, Kevin Murphy, Alan L. Yuille: Semantic Image
Segmentation with Deep Convolutional Nets and Fully Connected CRFs. ICLR 2015.

Needs: masks. Gives: masks.

Published (VOC 2012 val, trainaug): LargeFOV 62.25, with the CRF 67.64; with multi-scale prediction 64.21 and 68.70;
4x4 taps 59.80 and 63.74, 7x7 taps 64.38 and 67.64. Test: MSc-CRF-LargeFOV 71.6.

Four variants of fc6 are there (`--variant`), with the paper's parameter counts, and multi-scale prediction (`--msc`):
scores of the image and of the first four pools are added to those of a trained run of LargeFOV, which is trained first
and stays as it is.

Departures: ImageNet weights are torchvision's with its normalisation, not Caffe's. fc6 and fc7 are the classifier's,
every fourth filter and taps spread evenly over the 7x7; which ones the authors took is not known. `pool5a` is of the
released code, not of the paper. Crops of 321 for all variants, where the 4x4 nets had 306. On other backbones fc6 and
fc7 are new and learn ten times as fast, as the score layer does, and multi-scale prediction takes every feature before
the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor, nn

from labelwise.errors import UserError, require_at_least
from labelwise.method import Card, Claim, Needs, Published, Stage
from labelwise.models.aspp import rates_at
from labelwise.models.atrous_heads import ClassifierBranch, SkipScoreNetwork, SummedScores
from labelwise.models.score_maps import ScoreMapNetwork
from labelwise.samples import Batch, Kind
from labelwise.tasks.score_maps import ScoreMapConfig, ScoreMapMethod
from labelwise.tasks.segmentation import TEXTURES

NAME = "deeplab_v1"
FIRST = "largefov"
VARIANTS = {"largefov": (3, 12, 1024), "4x4": (4, 4, 4096), "4x4r8": (4, 8, 4096), "7x7": (7, 4, 4096)}
"""Kernel and rate of fc6 at output stride 8, width of fc6 and fc7 (table 2 of the paper)."""
SKIPS = "skips"


class DeepLabV1(ScoreMapMethod):
    """VGG-16 at output stride 8, trained on labels of the same grid."""

    card = Card(
        name=NAME,
        title="DeepLab v1 (LargeFOV)",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="Chen, Papandreou, Kokkinos, Murphy, Yuille: Semantic Image Segmentation with Deep Convolutional Nets "
        "and Fully Connected CRFs, ICLR 2015",
        year=2015,
        idea="Holes in the filters make a classifier dense with its own weights; its scores learn from labels on the "
        "same grid, and a dense CRF recovers the boundaries.",
        published=tuple(
            Published(f"VOC 2012 {setting}", "mIoU", value, "paper, tables 1 to 3")
            for setting, value in (
                ("val, LargeFOV, no CRF", 62.25),
                ("val, LargeFOV, CRF", 67.64),
                ("val, MSc-LargeFOV, CRF", 68.70),
                ("val, 4x4, CRF", 63.74),
                ("val, 7x7, CRF", 67.64),
                ("test, MSc-LargeFOV, CRF", 71.6),
            )
        ),
        claim=Claim(
            "Dense scores beat those of the same layers at a stride four times as coarse.",
            baseline=NAME,
            labels="masks:all",
            paper_labels="masks:all",
            margin=8.0,
            scenes={**TEXTURES, "size": 64},
            baseline_settings={"output_stride": 16, "rate": 1},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(ScoreMapConfig):
        """Options of DeepLab v1; the defaults are the paper's for LargeFOV."""

        variant: Literal["largefov", "4x4", "4x4r8", "7x7"] = "largefov"
        "kernel and rate of fc6: 3x3 rate 12, 4x4 rate 4, 4x4 rate 8, or 7x7 rate 4, at output stride 8"
        rate: int = 0
        "dilation of fc6 at this output stride; 0 = the variant's"
        head_channels: int = 0
        "channels of fc6 and fc7; 0 = the variant's: 1024 of largefov, else 4096"
        pool5a: bool = True
        "average 3x3 neighbourhoods before fc6, as the released code does; VGG-16 with largefov only"
        msc: bool = False
        "multi-scale prediction: add scores of the image and of early features to a trained network's"
        single_scale: str = FIRST
        "the network to which `msc` adds: largefov = a run without it, made first; or the folder of a finished one"
        schedule: Literal["poly", "step", "constant"] = "step"
        scale_range: tuple[float, float] = (1.0, 1.0)
        batch_size: int = 20
        epochs: float = 11.3
        weight_decay: float = 5e-4

        def __post_init__(self) -> None:
            """Refuse numbers that the network cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            require_at_least("rate", self.rate, 0)
            require_at_least("head_channels", self.head_channels, 0)

        def at_output_stride(self, output_stride: int) -> Self:
            """The same weights at another output stride; a rate that was named changes with it."""
            changed = super().at_output_stride(output_stride)
            rates = rates_at([self.rate] if self.rate else [], output_stride, self.output_stride)
            return replace(changed, rate=sum(rates))

    config: Config

    @classmethod
    def stages(cls, config: DeepLabV1.Config) -> tuple[Stage, ...]:
        """With multi-scale prediction, the run without it."""
        return (Stage("single_scale", FIRST, NAME, {"msc": False}),) if config.msc else ()

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The configured variant.

        Args:
            pretrained: load the configured backbone weights; False leaves all random.
        """
        config, classes = self.config, len(self.classes)
        kernel, rate, width = VARIANTS[config.variant]
        rate = config.rate or rates_at([rate], config.output_stride)[0]
        # Multi-scale prediction starts from another run's weights.
        weights = self.weights_to_load(pretrained and not config.msc)
        backbone = self.build_backbone(weights, pool5a=config.pool5a and config.variant == "largefov")
        head = SummedScores(
            [
                ClassifierBranch(
                    backbone.channels[-1], config.head_channels or width, classes, kernel, rate, config.dropout
                )
            ]
        )
        if config.msc:
            return SkipScoreNetwork(backbone, head, classes, config.dropout)
        network = ScoreMapNetwork(backbone, head)
        self.load_classifier(network, weights)
        return network

    def build_training(self) -> None:
        """Take over the network without multi-scale prediction, which learns no more."""
        if not self.config.msc:
            return
        trained = self.earlier["single_scale"].network.state_dict()
        own = self.network.state_dict()
        wanted = {name for name in own if not name.startswith(f"{SKIPS}.")}
        if wanted != trained.keys() or any(own[name].shape != trained[name].shape for name in wanted):
            raise UserError(
                f"--single-scale {self.config.single_scale}: its network is another; name a run of '{NAME}' with the "
                "same backbone and variant, and without --msc"
            )
        self.network.load_state_dict(trained, strict=False)
        for part in (self.network.backbone, self.network.head):
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> DeepLabV1:
        """Switch between training and evaluation; a backbone that learns no more keeps its statistics."""
        super().train(mode)
        if self.config.msc:
            self.network.backbone.eval()
        return self

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy over the points of the score map."""
        image, mask = self.on_grid(labeled)
        return {"supervised": self.map_loss(self.network.score_map(image), mask, labeled)}
