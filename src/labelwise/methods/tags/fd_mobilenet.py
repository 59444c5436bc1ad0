"""FD-MobileNet: a MobileNet for very small budgets that downsamples fast and spends what it saves on width.

Idea. At 10 to 140 million multiply-adds a MobileNet v1 with a width multiplier becomes too thin, because most of its
layers work at high resolution. FD-MobileNet reaches stride 32 within its first six blocks instead of twelve, and has
about twice the parameters at the same number of multiply-adds, in plain depthwise-separable blocks.

Citation. Qin, Zhang, Chen, Peng: FD-MobileNet: Improved MobileNet with a Fast Downsampling Strategy, ICIP 2018
(arXiv:1802.03750).

Needs: tags. Gives: tags. The backbones `fd_mobilenet`, `fd_mobilenet_050`, `fd_mobilenet_025` (and the same of
`mobilenet_v1`) of every segmenter take the folder of a run as `--backbone-weights`.

Published (ImageNet top-1, one crop of 224): 65.3 / 56.3 / 45.1 at 144 / 40 / 12 million multiply-adds; MobileNet v1
with 149 / 41 has 63.7 / 50.6. VOC 2007 detection at 12 million: +3.6 (arXiv abstract) or +8.3 (ICIP abstract) mAP over
MobileNet, by a protocol that neither states.

    block(c, s)   depthwise 3x3 of stride s, BatchNorm, ReLU, 1x1 to c channels, BatchNorm, ReLU
    FD-MobileNet  conv(32, 2); 64/2, 128/2, 128, 256/2, 256, 512/2, 4 x 512, 1024
    MobileNet v1  conv(32, 2); 64, 128/2, 128, 256/2, 256, 512/2, 5 x 512, 1024/2, 1024
    loss          cross-entropy of the mean over the last map, through one linear layer

The training is the released one: SGD with Nesterov momentum 0.9, batch 256, 120 epochs, learning rate 0.1 that falls to
a tenth every 30, weight decay 4e-5 on everything, crops of 36 to 100 % of the area, flips.

Departures: tags of several classes per image are learned with binary cross-entropy; `--loss single_label` is the
paper's softmax. The last layer starts as that of 1000 classes would, also where there are fewer. The evaluation takes
the middle square before it scales it, so that a very long image costs no more than another. The released code names a
least crop of 64 % of the area for the smaller networks without saying for which; `--scale-range 0.64 1` gives it.
Detection is not part of this method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from labelwise.errors import UserError
from labelwise.method import Card, Claim, Needs, Published
from labelwise.models.fd_mobilenet import WIDTHS, MobileNetClassifier
from labelwise.samples import Kind
from labelwise.tasks.classification import ClassificationConfig, ClassificationMethod

_RELEASED = "read-me of the released code"


class FDMobileNet(ClassificationMethod):
    """A classifier of depthwise-separable blocks, or one of the MobileNets that it is measured against."""

    card = Card(
        name="fd_mobilenet",
        title="FD-MobileNet: Improved MobileNet with a Fast Downsampling Strategy",
        task="classification",
        needs=Needs(frozenset({Kind.TAGS})),
        gives=frozenset({Kind.TAGS}),
        paper="Qin, Zhang, Chen, Peng, FD-MobileNet: Improved MobileNet with a Fast Downsampling Strategy, ICIP 2018 "
        "(arXiv:1802.03750)",
        year=2018,
        idea="Downsample to stride 32 within six blocks and spend the saved multiply-adds on wider layers.",
        published=(
            Published("ImageNet, 144 M multiply-adds, width 1", "top-1", 65.3, _RELEASED),
            Published("ImageNet, 40 M multiply-adds, width 0.5", "top-1", 56.3, _RELEASED),
            Published("ImageNet, 12 M multiply-adds, width 0.25", "top-1", 45.1, _RELEASED),
            Published("ImageNet, MobileNet v1, 149 M multiply-adds, width 0.5", "top-1", 63.7, "MobileNet paper"),
            Published("ImageNet, MobileNet v1, 41 M multiply-adds, width 0.25", "top-1", 50.6, "MobileNet paper"),
        ),
        claim=Claim(
            "At 12 million multiply-adds it is at most 2 points of mAP worse than MobileNet v1 (toy scenes cannot show "
            "the paper's gain on ImageNet).",
            baseline="fd_mobilenet",
            labels="tags:all",
            paper_labels="tags:all",
            margin=-2.0,
            scenes={"scenes": "textures", "size": 64, "train": 600, "val": 300},
            baseline_settings={"network": "mobilenet_v1", "width": 0.125},
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(ClassificationConfig):
        """Options of FD-MobileNet and its baselines."""

        network: Literal["fd_mobilenet", "mobilenet_v1", "shallow_mobilenet"] = "fd_mobilenet"
        "the network of the paper, MobileNet v1, or the paper's ablation: a MobileNet with as few blocks"
        width: float = 1.0
        "factor of every layer's channels: 1, 0.5, 0.25 or 0.125"

        def __post_init__(self) -> None:
            """Refuse a width that the papers do not have.

            Raises:
                UserError: names the option.
            """
            super().__post_init__()
            if self.width not in WIDTHS:
                raise UserError(f"--width {self.width:g}: must be one of {', '.join(f'{width:g}' for width in WIDTHS)}")

    config: Config

    def build_network(self, *, pretrained: bool) -> nn.Module:
        """The classifier with random weights; there are no published ones that could be loaded."""
        return MobileNetClassifier(self.config.network, self.config.width, len(self.tag_names))
