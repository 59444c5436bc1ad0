"""WideResNet-38 (Wu, Shen and van den Hengel, arXiv:1611.10080), the trunk of PSA, SEAM and ADELE.

Few layers, many channels, normalisation before each convolution, stride 8: 105,070,912 parameters, and 105,152,832 with
the classifier of 20 classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (128, 256, 512, 1024, 4096)
STRIDES = (2, 4, 8, 8, 8)
CLASSIFIER = "fc8"
"""How the layer of 20 classes is named in the released files; it is no part of the trunk."""


class WideBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, each after its normalisation and ReLU."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, dilations: tuple[int, int]) -> None:
        """Build it; the names of the weights are those of the released networks of PSA.

        Args:
            inputs: channels of the input.
            middle: channels between the convolutions.
            outputs: channels of the output.
            stride: of the first convolution.
            dilations: of the two convolutions.
        """
        super().__init__()
        first, second = dilations
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, middle, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, outputs, 3, padding=second, dilation=second, bias=False)
        same = inputs == outputs and stride == 1
        self.conv_branch1 = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def entry(self, x: Tensor) -> Tensor:
        """The normalised input, which is the feature of the stage before."""
        return functional.relu(self.bn_branch2a(x))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        entered = self.entry(x)
        inner = functional.relu(self.bn_branch2b1(self.conv_branch2a(entered)))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(entered)
        return self.conv_branch2b1(inner) + shortcut


class WideBottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions, each after its normalisation and ReLU, and a projected shortcut."""

    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float) -> None:
        """Build it; the names of the weights are those of the released networks of PSA.

        Args:
            inputs: channels of the input.
            outputs: channels of the output, four times those of the first convolution.
            dilation: of the 3x3 convolution.
            dropout: probability to drop a whole channel before the second and the third convolution.
        """
        super().__init__()
        quarter, half = outputs // 4, outputs // 2
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.conv_branch2b2 = nn.Conv2d(half, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def entry(self, x: Tensor) -> Tensor:
        """The normalised input, which is the feature of the stage before."""
        return functional.relu(self.bn_branch2a(x))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        entered = self.entry(x)
        inner = self.dropout(functional.relu(self.bn_branch2b1(self.conv_branch2a(entered))))
        inner = self.dropout(functional.relu(self.bn_branch2b2(self.conv_branch2b1(inner))))
        return self.conv_branch2b2(inner) + self.conv_branch1(entered)


class WideResNet38(nn.Module):
    """The trunk; features at strides 2, 4, 8, 8 and 8, each after the normalisation and ReLU that follow it.

    The last three are conv4, conv5 and conv6 of PSA.
    """

    channels, strides = CHANNELS, STRIDES

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        inputs = 64
        for number, (width, count) in enumerate(((128, 3), (256, 3), (512, 6)), start=2):
            for place in range(count):
                block = WideBlock(inputs, width, width, 1 if place else 2, (1, 1))
                self.add_module(_name(number, place), block)
                inputs = width
        for place in range(3):
            self.add_module(_name(5, place), WideBlock(inputs, 512, 1024, 1, (2 if place else 1, 2)))
            inputs = 1024
        self.b6 = WideBottleneck(1024, 2048, 4, 0.3)
        self.b7 = WideBottleneck(2048, 4096, 4, 0.5)
        self.bn7 = nn.BatchNorm2d(4096)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features."""
        features = []
        x = self.conv1a(x)
        for name, block in self.named_children():
            # The first blocks of b3 to b6 begin with what ends the stage before.
            if name in ("b3", "b4", "b5", "b6"):
                features.append(block.entry(x))  # type: ignore[operator]
            if name.startswith("b") and name != "bn7":
                x = block(x)
        return [*features, functional.relu(self.bn7(x))]


def _name(stage: int, place: int) -> str:
    return f"b{stage}_{place}" if place else f"b{stage}"
