"""Features for detection at several strides: a feature pyramid on any backbone (Lin et al.: FPN, CVPR 2017)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

FINEST = 4
"""The stride of the pyramid's first map; finer features cost more than they show."""
WIDTH = 256
ALIGN_SAMPLES = 2


class FeaturePyramid(nn.Module):
    """Maps of the same channels at the strides of a backbone from 4 on, and a pooled one of twice the last stride.

    Attributes:
        channels: of every map.
        strides: of the maps, the finest first.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int = WIDTH) -> None:
        """Build it with random weights.

        Args:
            channels: of each feature of the backbone.
            strides: of each feature; they double from 4 on.
            width: channels of every map.

        Raises:
            ValueError: the strides do not double.
        """
        super().__init__()
        self.first = next((index for index, stride in enumerate(strides) if stride >= FINEST), 0)
        kept = tuple(strides[self.first :])
        if any(coarse != 2 * fine for fine, coarse in pairwise(kept)):
            raise ValueError(f"has features at strides {', '.join(map(str, kept))}, not each at twice the one before")
        self.channels = width
        self.strides = (*kept, 2 * kept[-1])
        self.layers = FeaturePyramidNetwork(list(channels[self.first :]), width, extra_blocks=LastLevelMaxPool())

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One [B, channels[i], h, w] per feature of the backbone -> one [B, width, h, w] per stride."""
        named = OrderedDict((str(level), feature) for level, feature in enumerate(features[self.first :]))
        return list(self.layers(named).values())


class PyramidPooling(nn.Module):
    """Means over a grid of bins in each region, from the map whose stride suits the region's size (FPN, equation 1).

    A region of 224 pixels is pooled at stride 16, one of half the side at half the stride; never from the pooled map.
    """

    def __init__(self, maps: int, size: int = 7) -> None:
        """Set it up.

        Args:
            maps: how many maps the pyramid has, the pooled one included.
            size: bins along each side.
        """
        super().__init__()
        self.align = MultiScaleRoIAlign([str(level) for level in range(maps - 1)], size, ALIGN_SAMPLES)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Pool the regions of a batch.

        Args:
            maps: as of `FeaturePyramid`.
            boxes: B times [n, 4].
            size: height and width of the network's input.

        Returns:
            [R, width, size, size].
        """
        named = {str(level): each for level, each in enumerate(maps)}
        pooled: Tensor = self.align(named, list(boxes), [(size[0], size[1])] * len(boxes))
        return pooled
