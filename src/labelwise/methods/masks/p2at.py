"""P2AT: pyramid pooling axial transformer.

Idea. A ResNet's feature at stride 32 passes two blocks of axial attention: the rows of the map, each averaged over its
width, attend to each other, the columns likewise, and what they find is added to every pixel, on top of a small pyramid
of average poolings and gated by a local branch. Two fusions carry this context up to strides 8 and 4, each followed by
a global average and a depthwise decoder block; three refinements merge what was decoded and predict at stride 4. Two
auxiliary heads on the fusions are trained and thrown away.

Citation. Mohammed A. M. Elhassan, Changjun Zhou, Amina Benabid, Abuzar B. M. Adam: P2AT: Pyramid Pooling Axial
Transformer for Real-time Semantic Segmentation. Expert Systems with Applications 255, 2024; arXiv:2310.15025.

Needs: masks. Gives: masks.

Published (abstract): CamVid test 80.5 (S, ResNet-18), 81.0 (M, ResNet-34), 81.1 (L, ResNet-50); Cityscapes 78.7 (M).
CamVid's models start from those of Cityscapes. For VOC 2012 the abstract has no number.

`--backbone resnet18`, `resnet34` and `resnet50` make P2AT-S, -M and -L; any other backbone with features at strides 4
to 32 can take their place. The layers are those of the released code, oddities included: its pyramid takes the first
pooling twice (`fix_pool2` takes the second), the attention's two projections differ, and the 3x3 and 7x7 convolutions
of a global average have dead weights (`compact_gce` leaves them out).

Departures: the released trainer does not run as published, so the default is deep supervision as papers of this kind
have it, OHEM on the prediction and 0.4 times cross-entropy on each auxiliary head (1.0 for L, by the released
configurations); `boundary_head` is what the trainer's text intends. The least number of hard pixels, 131,072 of a batch
there, is given per image; the pixels at the threshold itself count as hard. Scales are uniform in 0.5 to 2.1, not in
steps of 0.1; crops are square, so that CamVid's whole images (crop 0) are flipped but not scaled. Settings on VOC are
ours, none are published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.errors import UserError, require_at_least
from labelwise.losses.pixel import cross_entropy, ohem_cross_entropy
from labelwise.method import Card, Claim, Needs, Published, Stream
from labelwise.models.backbones import create_backbone
from labelwise.models.p2at import P2AT, CoarseSegmenter, SegHead, to_image_size
from labelwise.samples import IGNORE_INDEX, Batch, Kind
from labelwise.tasks.segmentation import SegmentationConfig, SegmentationMethod

HARD_THRESHOLD = 0.9
BOUNDARY_WEIGHT = 20.0
BOUNDARY_THRESHOLD = 0.8
EDGE_THRESHOLD = 50
DILATION = 4
SMOOTHING, DERIVATIVE = (1.0, 4.0, 6.0, 4.0, 1.0), (-1.0, -2.0, 0.0, 2.0, 1.0)


@torch.no_grad()
def boundary_target(mask: Tensor) -> Tensor:
    """Where classes meet: the thresholded 5x5 Sobel magnitude of the map of class numbers, dilated 4x4.

    The magnitude is scaled to 0..255 in each image. As published it depends on the numbers: beside a step between
    distant classes, or to 255, one between neighbouring numbers may stay below the threshold of 50.

    Args:
        mask: [B, H, W] class numbers, uint8 or int64.

    Returns:
        [B, H, W] float32, 1 at boundaries and 0 elsewhere.
    """
    smoothing, derivative = (mask.new_tensor(values, dtype=torch.float32) for values in (SMOOTHING, DERIVATIVE))
    sobel = torch.stack([torch.outer(smoothing, derivative), torch.outer(derivative, smoothing)]).unsqueeze(1)
    numbers = functional.pad(mask.float().unsqueeze(1), (2, 2, 2, 2), mode="replicate")
    magnitude = functional.conv2d(numbers, sobel).norm(dim=1, keepdim=True)
    low, high = magnitude.amin((2, 3), keepdim=True), magnitude.amax((2, 3), keepdim=True)
    # Class numbers are whole, so is the least range but 0.
    scaled = 255 * (magnitude - low) / (high - low).clamp(min=1)
    edges = (scaled > EDGE_THRESHOLD).float()
    before = DILATION // 2
    after = DILATION - 1 - before
    return functional.max_pool2d(functional.pad(edges, (before, after, before, after)), DILATION, 1).squeeze(1)


def weighted_binary_cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy in which the rarer of boundary and rest weighs more: each by the other's share.

    Args:
        logit: [B, H, W] float.
        target: [B, H, W] float, 0 or 1.

    Returns:
        Scalar float32, the mean over all pixels.
    """
    positives = target.mean()
    weight = torch.where(target > 0.5, 1 - positives, positives)
    return functional.binary_cross_entropy_with_logits(logit.float(), target, weight)


def dice_loss(logit: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) with p the sigmoid of the logits, over the whole batch.

    Args:
        logit: [B, H, W] float.
        target: [B, H, W] float, 0 or 1.

    Returns:
        Scalar float32.
    """
    probability = logit.float().sigmoid()
    return 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)


def mask_at_boundary(mask: Tensor, boundary: Tensor) -> Tensor:
    """The mask with all pixels ignored but those that are predicted to lie at a boundary, with more than 0.8.

    Args:
        mask: [B, H, W] class numbers, uint8 or int64.
        boundary: [B, H, W] float logits.

    Returns:
        [B, H, W] of the mask's dtype; carries no gradient.
    """
    return mask.masked_fill(boundary.detach().float().sigmoid() <= BOUNDARY_THRESHOLD, IGNORE_INDEX)


class P2ATMethod(SegmentationMethod):
    """P2AT with deep supervision."""

    card = Card(
        name="p2at",
        title="P2AT",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="Elhassan, Zhou, Benabid, Adam: P2AT: Pyramid Pooling Axial Transformer for Real-time Semantic "
        "Segmentation, Expert Systems with Applications 255, 2024",
        year=2024,
        idea="Axial attention on pooled features at stride 32 gives context to a light decoder that fuses features in "
        "both directions, for real-time segmentation.",
        published=tuple(
            Published(setting, "mIoU", value, "paper, abstract")
            for setting, value in (
                ("CamVid test, P2AT-S", 80.5),
                ("CamVid test, P2AT-M", 81.0),
                ("CamVid test, P2AT-L", 81.1),
                ("Cityscapes, P2AT-M", 78.7),
            )
        ),
        claim=Claim(
            "On the same encoder, P2AT's context and decoder beat a 1x1 convolution on the stride-32 feature.",
            baseline="p2at",
            labels="masks:all",
            paper_labels="masks:all",
            margin=2.0,
            scenes={"scenes": "textures", "size": 64, "train": 320, "val": 100},
            baseline_settings={"decoder": "none"},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(SegmentationConfig):
        """Options of P2AT; the network's defaults are P2AT-S, the recipe's those of the released configurations."""

        backbone: str = "resnet18"
        decoder: Literal["fusion", "none"] = "fusion"
        "'none' is a 1x1 convolution on the stride-32 feature alone, against which P2AT is measured"
        decoder_channels: int = 64
        "channels of everything after the backbone"
        attention: bool = True
        "the axial attention blocks; without them the decoder alone remains"
        attention_heads: int = 8
        "heads of the axial attention"
        key_channels: int = 16
        "channels of queries and keys per head; values have twice as many"
        fix_pool2: bool = False
        "take the second pooling in the attention's pyramid, where the released code takes the first one twice"
        compact_gce: bool = False
        "leave out the weights of the global context enhancers that never act"
        boundary_head: bool = False
        "the second auxiliary head learns class boundaries, and the prediction is also trained at those it finds"
        auxiliary_weight: float = 0.4
        "weight of the auxiliary cross-entropies; 1.0 for P2AT-L"
        ohem_pixels: int = 16384
        "learn from the hard pixels alone (probability up to 0.9), at least so many per image; 0 = from all"
        crop: int = 512
        scale_range: tuple[float, float] = (0.5, 2.1)
        epochs: float = 200.0
        batch_size: int = 16
        learning_rate: float = 0.01
        head_multiplier: float = 1.0
        weight_decay: float = 5e-4

        def __post_init__(self) -> None:
            """Refuse numbers that the network cannot have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            for name in ("decoder_channels", "attention_heads", "key_channels"):
                require_at_least(name, getattr(self, name), 1)
            require_at_least("auxiliary_weight", self.auxiliary_weight, 0)
            if self.boundary_head and self.decoder == "none":
                raise UserError("--decoder none: has no auxiliary heads; leave out --boundary-head")

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """P2AT on the configured backbone, or the plain head on its last feature.

        Args:
            pretrained: load the configured backbone weights; False leaves the backbone random.

        Raises:
            UserError: the backbone has no features at strides 4, 8, 16 and 32.
        """
        config = self.config
        weights = config.backbone_weights if pretrained else None
        backbone = create_backbone(config.backbone, 32, weights)
        if config.decoder == "none":
            return CoarseSegmenter(backbone, len(self.classes))
        try:
            return P2AT(
                backbone,
                len(self.classes),
                channels=config.decoder_channels,
                key_dim=config.key_channels,
                heads=config.attention_heads,
                attention=config.attention,
                fix_pool2=config.fix_pool2,
                compact_gce=config.compact_gce,
            )
        except ValueError as error:
            raise UserError(f"--backbone {config.backbone}: {error}; --backbone resnet18 or mobilenetv2_100") from error

    def build_training(self) -> None:
        """The heads on the two fusions, for classes or, of the second one, for boundaries."""
        if self.config.decoder == "none":
            return
        channels, classes = self.config.decoder_channels, len(self.classes)
        self.auxiliary8 = SegHead(channels, classes)
        self.auxiliary4 = SegHead(channels, 1 if self.config.boundary_head else classes)

    def streams(self) -> dict[str, Stream]:
        """One stream of labelled crops: random scale, random crop, flip."""
        return {"labeled": Stream("labeled", self.weak_view())}

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """The prediction's loss and those of the auxiliary heads, all at the images' size."""
        if self.config.decoder == "none":
            return {"supervised": self.loss_on_labels(labeled)}
        assert labeled.mask is not None
        network = cast(P2AT, self.network)
        image = self.normalize(labeled.image)
        features = network.forward_features(image)
        logits = to_image_size(network.head(features.refined), image)
        auxiliary8 = to_image_size(self.auxiliary8(features.fused8), image)
        auxiliary4 = to_image_size(self.auxiliary4(features.fused4), image)
        weight = self.config.auxiliary_weight
        terms = {
            "supervised": self.supervised_loss(logits, labeled),
            "auxiliary8": weight * cross_entropy(auxiliary8, labeled.mask),
        }
        if self.config.boundary_head:
            return terms | self._boundary_losses(logits, auxiliary4.squeeze(1), labeled)
        return terms | {"auxiliary4": weight * cross_entropy(auxiliary4, labeled.mask)}

    def supervised_loss(self, logits: Tensor, labeled: Batch) -> Tensor:
        """Cross-entropy of the hard pixels (OHEM), or of all.

        Args:
            logits: [B, K, H, W].
            labeled: B images with masks.
        """
        assert labeled.mask is not None
        return self._hard_pixel_loss(logits, labeled.mask)

    def _hard_pixel_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        if not self.config.ohem_pixels:
            return cross_entropy(logits, mask)
        return ohem_cross_entropy(logits, mask, HARD_THRESHOLD, min_kept=self.config.ohem_pixels * len(mask))

    def _boundary_losses(self, logits: Tensor, boundary: Tensor, labeled: Batch) -> dict[str, Tensor]:
        assert labeled.mask is not None
        target = boundary_target(labeled.mask)
        return {
            "boundary": BOUNDARY_WEIGHT * weighted_binary_cross_entropy(boundary, target),
            "boundary_overlap": dice_loss(boundary, target),
            "at_boundary": self._hard_pixel_loss(logits, mask_at_boundary(labeled.mask, boundary)),
        }
