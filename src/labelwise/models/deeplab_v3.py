"""DeepLab v3: atrous backbone, context in parallel or in cascade, no decoder (Chen et al., arXiv:1706.05587)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from labelwise.models.aspp import initialize_kaiming
from labelwise.models.atrous_stages import Cascade
from labelwise.models.backbones import Backbone
from labelwise.models.separable import SeparableConv2d, truncated_normal

_CLASSIFIER_STD = 0.01


class DeepLabV3(nn.Module):
    """Backbone, context module and classifier; the logits, not the labels, are brought to the image's size."""

    def __init__(self, backbone: Backbone, context: nn.Module, channels: int, classes: int) -> None:
        """Build it.

        Args:
            backbone: only its last feature is used.
            context: an atrous pyramid (`ASPP`) or a `Cascade`, from that feature to [B, channels, h, w].
            channels: of the context module's output.
            classes: the number of logits per pixel.
        """
        super().__init__()
        self.backbone = backbone
        # Named after the usual one, so that the weights of a v3 fit into a v3+.
        self.aspp = context
        self.classifier = nn.Conv2d(channels, classes, 1)

    def decode(self, feature: Tensor) -> Tensor:
        """[B, C, H/OS, W/OS], the backbone's last feature -> logits [B, K, h, w]."""
        return self.classifier(self.aspp(feature))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised as the backbone's weights want it -> logits [B, K, H, W]."""
        logits = self.decode(self.backbone(x)[-1])
        return functional.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)


def initialize_head(network: nn.Module) -> None:
    """Draw everything but the backbone, as the official code does.

    Ordinary convolutions by variance scaling, separable ones and the classifier from truncated normal distributions.
    A cascade has drawn its own weights.

    Args:
        network: has `backbone`, `aspp` and `classifier`.
    """
    for name, part in network.named_children():
        if name == "backbone" or isinstance(part, Cascade):
            continue
        initialize_kaiming(part)
        for module in part.modules():
            if isinstance(module, SeparableConv2d):
                module.initialize()
    classifier = network.get_submodule("classifier")
    assert isinstance(classifier, nn.Conv2d)
    truncated_normal(classifier, _CLASSIFIER_STD)
