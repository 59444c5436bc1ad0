"""ResNet-50 and -101 as DeepLab v2 uses them: MSRA's strides, and dilation instead of the last ones."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from labelwise.models.backbones import Backbone, create_backbone

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, msra_stride: bool) -> None:
        """Build it; the names of the weights are torchvision's.

        Args:
            inputs: channels of the input.
            width: channels of the 3x3 convolution; the output has four times as many.
            stride: of the block.
            dilation: of the 3x3 convolution.
            msra_stride: the stride is the first 1x1 convolution's, otherwise the 3x3 convolution's.
        """
        super().__init__()
        outputs = EXPANSION * width
        first, second = (stride, 1) if msra_stride else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        same = inputs == outputs and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = None if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, 4 width, H / stride, W / stride]."""
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn3(self.conv3(inner)) + shortcut)


class AtrousResNet(nn.Module):
    """A ResNet whose later stages are dilated; features of the stem and of each stage.

    All 3x3 convolutions of a stage have the stage's rate, including the first block's, and the first pool rounds its
    size up (MSRA, DeepLab v2). The names of the weights are torchvision's and timm's.
    """

    def __init__(self, name: str, output_stride: int = 8, *, msra_stride: bool = True) -> None:
        """Build it with random weights.

        Args:
            name: "resnet50" or "resnet101".
            output_stride: 8 in the paper: stages 3 and 4 have rates 2 and 4; 4, 16 and 32 besides.
            msra_stride: see `Bottleneck`.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        inputs, strides, rate = 64, [2], 1
        for number, (width, count) in enumerate(zip(WIDTHS, BLOCKS[name], strict=True), start=1):
            natural = 1 if number == 1 else 2
            reached = max(4, strides[-1])
            stride = natural if reached * natural <= output_stride else 1
            rate *= natural // stride
            blocks = [Bottleneck(inputs, width, stride, rate, msra_stride)]
            inputs = EXPANSION * width
            blocks += [Bottleneck(inputs, width, 1, rate, msra_stride) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            strides.append(reached * stride)
        self.channels = (64, *(EXPANSION * width for width in WIDTHS))
        self.strides = tuple(strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the features of the stem and of each stage."""
        features = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(features[0])
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
            features.append(x)
        return features


def create_atrous_resnet(
    name: str, output_stride: int, weights: str | Path | None, *, msra_stride: bool = True
) -> Backbone:
    """Build it with weights of ImageNet, which have the names and shapes of timm's network of the same name.

    Args:
        name: "resnet50" or "resnet101".
        output_stride: 4, 8, 16 or 32.
        weights: as for `create_backbone`.
        msra_stride: see `Bottleneck`.

    Raises:
        UserError: as `create_backbone`.
        BadFile: as `create_backbone`.
    """
    body = AtrousResNet(name, output_stride, msra_stride=msra_stride)
    if weights not in (None, "none"):
        body.load_state_dict(create_backbone(name, 32, weights).body.state_dict())
    return Backbone(body, body.channels, body.strides)
