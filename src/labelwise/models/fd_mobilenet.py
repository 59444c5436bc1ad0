"""FD-MobileNet (Qin et al., ICIP 2018) and the MobileNets that it is measured against, as backbones and as classifiers.

All are chains of depthwise-separable blocks. MobileNet (Howard et al., arXiv:1704.04861) has most of its blocks, and
most of its multiply-adds, at stride 16; FD-MobileNet downsamples to stride 32 within six blocks and spends the saved
multiply-adds on wider layers. A width multiplies the channels of every layer, rounded down, not to multiples of 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from labelwise.models.atrous_stages import plan_output_stride

STEM_CHANNELS = 32
_IMAGENET_CLASSES = 1000
CLASSIFIER = "classifier"
"The part of a classifier's state that a backbone does not have."
WIDTHS = (1.0, 0.5, 0.25, 0.125)
"The widths that the papers publish."

Plan = tuple[tuple[int, int], ...]
"Channels at width 1 and stride of each block."

PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        "fd_mobilenet": (
            (64, 2), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 4), (1024, 1),
        ),
        "mobilenet_v1": (
            (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1),
        ),
        "shallow_mobilenet": (
            (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (1024, 2), (1024, 1),
        ),
    }
)  # fmt: skip
"Blocks after the stem, which has stride 2 (FD-MobileNet paper, table 1 and section 3.3)."

Named = tuple[str, float]
"A network of `PLANS` and its width."


def _suffix(width: float) -> str:
    return "" if width == 1 else "_" + str(width).replace(".", "").ljust(3, "0")


NAMES: Mapping[str, Named] = MappingProxyType(
    {f"{network}{_suffix(width)}": (network, width) for network in PLANS for width in WIDTHS}
)
"Backbone name -> network and width: `fd_mobilenet`, `fd_mobilenet_050`, `fd_mobilenet_025`, `fd_mobilenet_0125`, ..."


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution over them, each with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, dilation, dilation, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        return self.pointwise(self.depthwise(x))


class MobileNet(nn.Module):
    """The layers of a network of `PLANS`; its features are the last at each of the strides 4, 8, 16 and 32.

    Attributes:
        channels: of each feature.
        strides: of each feature; none is above the output stride.
    """

    def __init__(self, network: str = "fd_mobilenet", width: float = 1.0, output_stride: int = 32) -> None:
        """Build it with random weights: He's normal, by inputs for depthwise and by outputs for all other layers.

        Args:
            network: a name of `PLANS`.
            width: factor of every number of channels.
            output_stride: 8, 16 or 32; the weights are the same for all.

        Raises:
            ValueError: another output stride, or a width that leaves a layer without channels.
        """
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output stride {output_stride} is neither 8, 16 nor 32")
        if int(STEM_CHANNELS * width) < 1:
            raise ValueError(f"width {width} leaves no channels")
        plan = PLANS[network]
        channels = [int(count * width) for count in (STEM_CHANNELS, *(count for count, _ in plan))]
        strides = (2, *(stride for _, stride in plan))
        layers = plan_output_stride(strides, output_stride)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, 2, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(
            *(
                DepthwiseSeparable(inputs, outputs, stride, dilation)
                for inputs, outputs, (stride, dilation) in zip(channels, channels[1:], layers[1:], strict=False)
            )
        )
        self._taps = _last_blocks_before_strides(strides)
        self.channels = tuple(channels[tap + 1] for tap in self._taps)
        self.strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
        self._initialize()

    def features(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one [B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])] per stride."""
        x = self.stem(x)
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._taps:
                features.append(x)
        return features

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in")


class MobileNetBackbone(MobileNet):
    """The layers alone, as `create_backbone` wants them."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features at each stride; see `features`."""
        return self.features(x)


class MobileNetClassifier(MobileNet):
    """The layers, the mean over all positions and one linear layer; its weights fit a backbone as they are."""

    def __init__(self, network: str, width: float, classes: int) -> None:
        """Build it with random weights, those of the last layer He's normal by outputs, of which 1000 are assumed.

        Args:
            network: a name of `PLANS`.
            width: factor of every number of channels.
            classes: the number of scores.
        """
        super().__init__(network, width)
        self.classifier = nn.Linear(self.channels[-1], classes)
        # By the few classes that there may be, the first logits would be so large that hundreds of steps went into
        # unlearning them.
        nn.init.normal_(self.classifier.weight, std=(2 / max(classes, _IMAGENET_CLASSES)) ** 0.5)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes] logits."""
        return self.classifier(self.features(x)[-1].mean((2, 3)))


def _last_blocks_before_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """The blocks that are the last at stride 4, 8, 16 and 32; `strides` starts with the stem's."""
    ends = [index - 2 for index, stride in enumerate(strides) if stride > 1 and index >= 2]
    return (*ends, len(strides) - 2)[-4:]
