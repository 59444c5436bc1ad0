"""PixelPick: a few pixels per image, chosen by the network, are enough to learn semantic segmentation.

Idea. Every image first has a few random pixels labelled. A segmenter learns from them alone, by cross-entropy, and is
then asked how sure it is of each pixel of the training images: the smaller the margin between the two likeliest
classes, the less. Of the least sure 5 % of each image a few pixels are drawn and labelled, and the training begins anew
from the pretrained weights. The machine names the pixel, so that a person who labels presses one key per pixel.

Citation. Gyungin Shin, Weidi Xie, Samuel Albanie: All You Need Are a Few Pixels: Semantic Segmentation with PixelPick.
ICCV 2021 workshop on interactive labeling and data augmentation for vision; arXiv:2104.06394.

Needs: points. Gives: masks.

Published (paper, mIoU): VOC 2012 val with 50 pixels per image 57.2 (MobileNetV2, DeepLabv3+) and 67.4 (ResNet-50, FPN),
all pixels 57.9 and 69.4; CamVid test with 100 pixels 55.9 and 65.1, all 58.2 and 67.8; Cityscapes val with 100 pixels
at 256x512 56.5 and 62.8, all 61.4 and 68.5.

`--labels points:50 --rounds 5` is the paper's budget on VOC: 50 labels per image, 10 in each of five rounds, the first
ones at random. With `--rounds 1` the network learns from the points that there are, and nothing is chosen.

Departures: labels lie on the pixels of the images as they are, not on a grid of VOC images shrunk to a longer side of
400, and go to that scale in one step with the random one (`scale_base`). Padding has ImageNet's mean color instead of
the data set's. A blur continues the image by its last pixel. Batches run on from one pass over the images into the
next, so that none is incomplete and no batch of one image has to be dropped. Every image is padded by reflection to
multiples of 8 for prediction, not VOC's alone. The released model is the best epoch on val; ours is the last. The
committee drops after the backbone and in the decoder. Of DeepLabv3+ the head starts from torch's initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchvision.transforms import v2

from labelwise.errors import UserError, require_at_least, require_share
from labelwise.method import Card, Claim, Needs, Published, Stream
from labelwise.models.backbones import create_backbone
from labelwise.models.semantic_fpn import SemanticFPN
from labelwise.samples import Batch, Kind
from labelwise.tasks.acquisition import AcquisitionConfig, ClickView
from labelwise.tasks.deeplab import DeepLabConfig, DeepLabMethod, Dropouts
from labelwise.tasks.segmentation import SegmentationConfig
from labelwise.transforms.jitter import color_changes
from labelwise.transforms.views import WeakView
from labelwise.transforms.weak import MEAN_COLOR, RandomScaleCrop

MULTIPLE = 8
ADAM_EPSILON = 1e-7
_PAPER = "paper, tables of section 4"


def pad_by_reflection(image: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """Continue images on the right and below by their mirror image, up to multiples of so many pixels.

    Args:
        image: [B, C, H, W]; a side too short to be mirrored so far repeats its first pixel.
        multiple: of which both sides are to be multiples.

    Returns:
        [B, C, H', W'].
    """
    for axis in (2, 3):
        length = image.shape[axis]
        places = torch.arange(-(-length // multiple) * multiple, device=image.device)
        mirrored = torch.where(places < length, places, 2 * (length - 1) - places).clamp(min=0)
        image = image.index_select(axis, mirrored)
    return image


class PixelPick(DeepLabMethod):
    """A segmenter that learns from a few pixels of each image, which a network before it has asked for."""

    card = Card(
        name="pixelpick",
        title="PixelPick",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.POINTS})),
        gives=frozenset({Kind.MASKS}),
        paper="Shin, Xie, Albanie: All You Need Are a Few Pixels: Semantic Segmentation with PixelPick, ICCV 2021 "
        "workshop ILDAV",
        year=2021,
        idea="Label a few pixels of each image, drawn from those of which a network trained on the labels so far is "
        "least sure.",
        published=tuple(
            Published(setting, "mIoU", value, _PAPER)
            for setting, value in (
                ("VOC 2012 val, MobileNetV2, 50 pixels per image", 57.2),
                ("VOC 2012 val, MobileNetV2, all pixels", 57.9),
                ("VOC 2012 val, ResNet-50 FPN, 50 pixels per image", 67.4),
                ("VOC 2012 val, ResNet-50 FPN, all pixels", 69.4),
                ("CamVid test, MobileNetV2, 100 pixels per image", 55.9),
                ("CamVid test, ResNet-50 FPN, 100 pixels per image", 65.1),
                ("Cityscapes val 256x512, MobileNetV2, 100 pixels per image", 56.5),
                ("Cityscapes val 256x512, ResNet-50 FPN, 100 pixels per image", 62.8),
            )
        ),
        claim=Claim(
            "Labels where the network is least sure make a better model than as many at random.",
            baseline="pixelpick",
            labels="points:12",
            paper_labels="points:50",
            margin=5.0,
            ceiling="points:all",
            scenes={"scenes": "rare", "size": 40, "train": 60, "val": 100},
            baseline_settings={"strategy": "random", "rounds": 1},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(AcquisitionConfig, DeepLabConfig):
        """Options of PixelPick; the defaults are the paper's on VOC with MobileNetV2."""

        backbone: str = "mobilenetv2_100"
        decoder: Literal["deeplab", "fpn"] = "deeplab"
        "DeepLabv3+, or a feature pyramid, with ResNets at output stride 8 in the paper"
        dropout: float = 0.5
        "share that DeepLabv3+ drops of its pyramid's output"
        decoder_dropout: tuple[float, float] = (0.5, 0.2)
        "shares that DeepLabv3+ drops of the outputs of its decoder's two convolutions"
        crop: int = 320
        crop_width: int = 0
        "width of crops that are no squares, in pixels; 0 = as wide as high"
        scale_base: int = 400
        exact_points: bool = False
        "keep a label one pixel at any scale; else it is scaled as a mask is: vanishes or becomes a block (the paper's)"
        color_jitter: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
        "amounts of brightness, contrast, saturation and hue"
        photometric: bool = True
        "change colors (4 of 5 images), to gray (1 of 5), and blur (every other)"
        epochs: float = 50.0
        batch_size: int = 10
        optimizer: Literal["sgd", "adamw", "adam"] = "sgd"  # type: ignore[assignment]
        "sgd has momentum 0.9; adam has epsilon 1e-7 and adds weight decay to the gradient (CamVid, Cityscapes)"
        weight_decay: float = 5e-4
        rate_drops: tuple[float, ...] = ()
        "shares of the training after which the learning rate falls to a tenth, in place of the schedule (CamVid)"

        def __post_init__(self) -> None:
            """Refuse numbers that the network or its training cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for dropout in (self.dropout, *self.decoder_dropout):
                require_share("dropout", dropout)
            for drop in self.rate_drops:
                require_share("rate_drops", drop)
            for amount in self.color_jitter:
                require_at_least("color_jitter", amount, 0)
            if self.color_jitter[3] > 0.5:
                raise UserError(
                    f"--color-jitter: the hue's {self.color_jitter[3]} must be at most 0.5, half the circle"
                )
            require_at_least("crop_width", self.crop_width, MULTIPLE if self.crop_width else 0)
            if self.crop_width and not self.crop:
                raise UserError(f"--crop-width {self.crop_width}: --crop 0 cuts nothing; give --crop the height")

        def at_output_stride(self, output_stride: int) -> Self:
            """As of `DeepLabConfig`; a feature pyramid has layers for one output stride only."""
            if self.decoder == "fpn":
                return SegmentationConfig.at_output_stride(self, output_stride)
            return super().at_output_stride(output_stride)

    config: Config

    @property
    def dropouts(self) -> Dropouts:
        """Those of DeepLabv3+."""
        return Dropouts(self.config.dropout, self.config.decoder_dropout)

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """DeepLabv3+ or a feature pyramid on the configured backbone.

        Args:
            pretrained: load the configured backbone weights; False leaves the backbone random.

        Raises:
            UserError: the backbone has no feature that the decoder needs.
        """
        config = self.config
        if config.decoder == "deeplab":
            return super().build_network(pretrained=pretrained)
        weights = config.backbone_weights if pretrained else None
        backbone = create_backbone(config.backbone, config.output_stride, weights)
        try:
            return SemanticFPN(backbone, len(self.classes), config.decoder_channels)
        except ValueError as error:
            raise UserError(f"--backbone {config.backbone}: {error}; --backbone resnet50 or mobilenetv2_100") from error

    def streams(self) -> dict[str, Stream]:
        """One stream of labelled crops: random scale, random crop, flip, then colors and blur."""
        config = self.config
        changes = color_changes(config.color_jitter) if config.photometric else None
        view = ClickView(WeakView(self.geometric()), changes, exact=config.exact_points)
        return {"labeled": Stream("labeled", view)}

    def geometric(self) -> v2.Transform:
        """Random scale, crop and flip, padded with the mean color; of whole images the flip alone."""
        config = self.config
        if not config.crop or config.scaling == "choice":
            return super().geometric()
        base, width = config.scale_base or None, config.crop_width or None
        scale_crop = RandomScaleCrop(config.crop, base, config.scale_range, fill=MEAN_COLOR, width=width)
        return v2.Compose([scale_crop, v2.RandomHorizontalFlip()])

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy over the labelled pixels of the batch."""
        return {"points": self.loss_on_labels(labeled)}

    def predict(self, image: Tensor) -> Tensor:
        """Class scores of whole images, padded by reflection to multiples of 8 and cut back.

        Args:
            image: [B, 3, H, W] uint8.

        Returns:
            [B, K, H, W] float32, as of `SegmentationMethod.predict`.
        """
        height, width = image.shape[2:]
        return super().predict(pad_by_reflection(image))[..., :height, :width]

    def make_optimizer(self, groups: list[dict[str, object]]) -> Optimizer:
        """SGD with momentum 0.9, AdamW, or Adam."""
        if self.config.optimizer == "adam":
            return Adam(groups, eps=ADAM_EPSILON)
        return super().make_optimizer(groups)

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor at a step, counted from 0: a tenth after each drop, or by the schedule."""
        drops = self.config.rate_drops
        if not drops:
            return super().rate_factor(step)
        return float(0.1 ** sum(step >= drop * self.total_steps for drop in drops))
