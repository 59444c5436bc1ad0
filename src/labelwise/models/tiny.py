"""Small networks for mini scale: they learn images of 40 to 96 pixels from scratch on a CPU in minutes."""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = (24, 48, 96, 128)
FULL_SIZE_CHANNELS = 16
NATURAL_STRIDES = (2, 4, 8, 16)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016, basic block).

    The shortcut is a 1x1 convolution where channels or stride change. The second convolution's normalisation
    starts at zero, so that a new block is the identity.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm(inputs, outputs, 3, stride, dilation)
        self.conv2 = _conv_norm(outputs, outputs, 3, 1, dilation)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return self.act(self.conv2(self.act(self.conv1(x))) + self.shortcut(x))


class TinyNetwork(nn.Module):
    """A stem and three residual stages, 0.6 M parameters; features at stride 2, 4, 8 and the output stride.

    The first convolution sees every pixel: with a stride of 2 there, textures of few pixels are lost and scenes of 96
    pixels are learned markedly more slowly. The layers are many where the maps are large enough to show thin parts
    (stride 4 and 8) and few at the end.
    """

    def __init__(self, output_stride: int = 16) -> None:
        """Build it with random weights.

        Args:
            output_stride: 4, 8 or 16; later stages keep their input's size and are dilated by 2 or 4 instead.

        Raises:
            ValueError: another output stride.
        """
        super().__init__()
        if output_stride not in (4, 8, 16):
            raise ValueError(f"output stride {output_stride} is not 4, 8 or 16, tiny32 has 32")
        stem, low, middle, high = CHANNELS
        rate2, rate3 = (max(1, natural // output_stride) for natural in NATURAL_STRIDES[2:])
        self.channels = CHANNELS
        self.strides = tuple(min(stride, output_stride) for stride in NATURAL_STRIDES)
        self.stem = nn.Sequential(
            _conv_norm(3, FULL_SIZE_CHANNELS, 3),
            nn.ReLU(inplace=True),
            _conv_norm(FULL_SIZE_CHANNELS, stem, 3, stride=2),
            nn.ReLU(inplace=True),
            _conv_norm(stem, stem, 3),
            nn.ReLU(inplace=True),
        )
        self.layer1 = nn.Sequential(ResidualBlock(stem, low, 2, 1), ResidualBlock(low, low, 1, 1))
        self.layer2 = nn.Sequential(
            ResidualBlock(low, middle, 2 // rate2, rate2), ResidualBlock(middle, middle, 1, rate2)
        )
        self.layer3 = nn.Sequential(ResidualBlock(middle, high, max(1, 2 // rate3), rate3))
        _initialize(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features of the stem and of each stage."""
        features = [self.stem(x)]
        for stage in (self.layer1, self.layer2, self.layer3):
            features.append(stage(features[-1]))
        return features


class MicroNetwork(nn.Module):
    """Four convolutions for images of about 40 pixels, whose classes are patterns of few pixels.

    Features at stride 2, with twice the width of channels, and at stride 4, with four times.
    """

    strides = (2, 4)

    def __init__(self, width: int = 10) -> None:
        """Build it with random weights.

        Args:
            width: channels of the first convolution.
        """
        super().__init__()
        self.channels = (2 * width, 4 * width)
        self.low = nn.Sequential(
            *_conv_norm(3, width, 3),
            nn.ReLU(inplace=True),
            *_conv_norm(width, 2 * width, 3, stride=2),
            nn.ReLU(inplace=True),
        )
        self.high = nn.Sequential(
            *_conv_norm(2 * width, 4 * width, 3, stride=2),
            nn.ReLU(inplace=True),
            *_conv_norm(4 * width, 4 * width, 3, dilation=2),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [B, 2 width, H/2, W/2] and [B, 4 width, H/4, W/4]."""
        low = self.low(x)
        return [low, self.high(low)]


class Tiny32Network(nn.Module):
    """A stem and four residual blocks, each with a stride of 2: features at strides 2, 4, 8, 16 and 32.

    For networks whose decoder makes up for a coarse last feature; 69,000 parameters. The first convolution sees
    every pixel, as in `TinyNetwork`.
    """

    channels = (12, 16, 24, 32, 48)
    strides = (2, 4, 8, 16, 32)

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        stem, *widths = self.channels
        self.stem = nn.Sequential(
            _conv_norm(3, stem, 3),
            nn.ReLU(inplace=True),
            _conv_norm(stem, stem, 3, stride=2),
            nn.ReLU(inplace=True),
        )
        inputs = self.channels[:-1]
        self.blocks = nn.ModuleList(ResidualBlock(*pair, 2, 1) for pair in zip(inputs, widths, strict=True))
        _initialize(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features of the stem and of each block."""
        features = [self.stem(x)]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.get_parameter("1.weight"))
