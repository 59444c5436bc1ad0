"""DeepLabv3+: atrous pyramid and a light decoder that brings back detail (Chen et al., ECCV 2018).

With ordinary convolutions it is the network common to the semi-supervised papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.aspp import ASPP, ConcatenatedASPP, initialize_kaiming
from labelwise.models.backbones import Backbone
from labelwise.models.separable import SeparableConv2d

Variant = Literal["plain", "concatenated"]


def _conv_block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class DeepLabV3Plus(nn.Module):
    """Backbone, atrous pyramid, decoder and classifier.

    `forward` is `decode(*forward_features(x))`, up-sampled; the parts are separate for methods that perturb features
    between them or that look at the decoder's feature.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        aspp_channels: int = 256,
        low_channels: int = 48,
        rates: Sequence[int] = (6, 12, 18),
        variant: Variant = "plain",
        *,
        separable: bool = False,
        dropout: float = 0.0,
        decoder_dropout: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Build it; the head's weights are random.

        Args:
            backbone: has a feature at stride 4 before its last, which goes into the pyramid; one whose last feature
                has stride 4 itself has one at stride 2.
            classes: the number of logits per pixel.
            aspp_channels: width of the pyramid and of the decoder.
            low_channels: width to which the stride-4 feature is reduced.
            rates: dilations of the pyramid; (6, 12, 18) belong to output stride 16, (12, 24, 36) to 8.
            variant: "plain", with torch's default initialisation of the head, or "concatenated", the head of Cross
                Pseudo Supervision: its own pyramid (`ConcatenatedASPP`), Kaiming normal initialisation (fan in).
            separable: the 3x3 convolutions of the plain pyramid and of the decoder are depthwise separable.
            dropout: share of the plain pyramid's output that is dropped in training.
            decoder_dropout: likewise, of the outputs of the decoder's two 3x3 convolutions.

        Raises:
            ValueError: the backbone has no such feature.
        """
        super().__init__()
        low = 2 if backbone.strides[-1] == 4 else 4
        if low not in backbone.strides:
            raise ValueError(f"the backbone has features at strides {backbone.strides}, none at stride {low}")
        # Of several features at this stride the last has seen most layers.
        self._low_index = max(index for index, stride in enumerate(backbone.strides) if stride == low)
        self.backbone = backbone
        self.aspp: ASPP | ConcatenatedASPP
        if variant == "concatenated":
            self.aspp = ConcatenatedASPP(backbone.channels[-1], aspp_channels, rates)
        else:
            self.aspp = ASPP(backbone.channels[-1], aspp_channels, rates, separable=separable, dropout=dropout)
        self.low = _conv_block(backbone.channels[self._low_index], low_channels, 1)
        widths = (aspp_channels + low_channels, aspp_channels)
        self.fuse = nn.Sequential(
            *(
                SeparableConv2d(width, aspp_channels) if separable else _conv_block(width, aspp_channels, 3)
                for width in widths
            )
        )
        # Dropouts of 0 are for committees (`acquisition.monte_carlo_dropout`), as is the one behind the backbone.
        self.backbone_dropout = nn.Dropout(0.0)
        self.fuse_dropouts = nn.ModuleList(map(nn.Dropout, decoder_dropout))
        self.classifier = nn.Conv2d(aspp_channels, classes, 1)
        if variant == "concatenated":
            for part in (self.low, self.fuse, self.classifier):
                initialize_kaiming(part)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two features that the decoder needs.

        Args:
            x: [B, 3, H, W] float, normalised as the backbone's weights want it.

        Returns:
            c1 [B, C1, H/4, W/4] and c4 [B, C4, H/OS, W/OS].
        """
        features = self.backbone(x)
        return features[self._low_index], features[-1]

    def decoder_feature(self, c1: Tensor, c4: Tensor) -> Tensor:
        """[B, C1, H/4, W/4] and [B, C4, H/OS, W/OS] -> [B, aspp_channels, H/4, W/4], the classifier's input."""
        pyramid = self.aspp(self.backbone_dropout(c4))
        high = functional.interpolate(pyramid, size=c1.shape[2:], mode="bilinear", align_corners=True)
        x = torch.cat([high, self.low(c1)], dim=1)
        for convolution, dropout in zip(self.fuse, self.fuse_dropouts, strict=True):
            x = dropout(convolution(x))
        return x

    def decode(self, c1: Tensor, c4: Tensor) -> Tensor:
        """[B, C1, H/4, W/4] and [B, C4, H/OS, W/OS] -> logits [B, K, H/4, W/4]."""
        return self.classifier(self.decoder_feature(c1, c4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] float -> logits [B, K, H, W]."""
        logits = self.decode(*self.forward_features(x))
        return functional.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)
