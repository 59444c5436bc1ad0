"""CAM: a classifier of tags says where in the image it has found each class; what every tags-only method must beat.

Idea. A network that ends in a convolution, the mean over all positions and a linear layer without bias can be read in
the other order: the linear layer applied to every position gives a map for each class, and the logit is its mean. The
map is high where the class was found. Maps of several scales and of the mirrored image, added up, with a constant score
for the background, are a first mask (the seed) from tags alone.

Citation. Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization, CVPR 2016;
in the form of Ahn, Cho, Kwak: Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations (IRNet),
CVPR 2019.

Needs: tags. Gives: maps, and the masks and tags that they stand for.

Published (VOC 2012 train, 1,464 images, best constant for the background): seed mIoU 48.3 (IRNet's paper) or 48.8 (as
later papers quote it) with ResNet-50; 48.0 with WideResNet-38 (Ahn and Kwak, CVPR 2018).

    A_c(p)     ReLU(w_c . f(p)), f the last feature, output stride 16 without dilation
    training   mean binary cross-entropy of the tags; 5 epochs, batch 16, learning rate 0.1 (classifier 1.0),
               momentum 0, weight decay 1e-4, (1 - t/T)^0.9; ImageNet's BatchNorm statistics stay, and so do the
               weights up to the second stage
    maps       scales 1, 0.5, 1.5, 2 and mirrored copies, added; each class divided by its own maximum
    seed       argmax over [t, maps of the tagged classes]

Departures: training images are scaled linearly, not cubically. The BatchNorms' scale and shift are learned where the
layer is not frozen, as in the released code. The maps of tags that are not known are those of classes with a
probability of at least 0.5, and of the likeliest. Weight decay acts on all trained parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from labelwise.method import Card, Claim, Needs, Published
from labelwise.models.backbones import create_backbone
from labelwise.models.cam import CamNetwork, without_dilation
from labelwise.samples import Kind
from labelwise.tasks.localization import LocalizationConfig, LocalizationMethod

_ON_TRAIN = "VOC 2012 train, ResNet-50, several scales"


class Cam(LocalizationMethod):
    """A classifier whose last layers may change places, so that it tells where."""

    card = Card(
        name="cam",
        title="CAM: Learning Deep Features for Discriminative Localization",
        task="localisation",
        needs=Needs(frozenset({Kind.TAGS})),
        gives=frozenset({Kind.MAPS, Kind.MASKS, Kind.TAGS}),
        paper="Zhou, Khosla, Lapedriza, Oliva, Torralba, Learning Deep Features for Discriminative Localization, "
        "CVPR 2016; as in Ahn, Cho, Kwak, IRNet, CVPR 2019",
        year=2016,
        idea="Read a tag classifier's last linear layer at every position: a map of where it has found each class.",
        published=(
            Published(_ON_TRAIN, "seed mIoU", 48.3, "Ahn, Cho, Kwak, IRNet, CVPR 2019"),
            Published("VOC 2012 train, WideResNet-38, several scales", "seed mIoU", 48.0, "Ahn, Kwak, PSA, CVPR 2018"),
        ),
        claim=Claim(
            "Maps of several scales and of the mirrored image give better seeds than those of a single pass.",
            baseline="cam",
            labels="tags:all",
            paper_labels="tags:all",
            scenes={"size": 64, "train": 400, "val": 150},
            baseline_settings={"map_scales": (1.0,), "map_flip": False},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(LocalizationConfig):
        """Options of the classifier and its maps."""

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The backbone without dilation, and a linear layer without bias."""
        config = self.config
        weights = config.backbone_weights if pretrained else None
        backbone = create_backbone(config.backbone, config.output_stride, weights)
        without_dilation(backbone)
        return CamNetwork(backbone, len(self.tag_names))
