"""Supervised: learn from the labelled images alone; the baseline that every claim is measured against.

The semi-supervised literature measures each method against the same network trained with mean cross-entropy on the
labelled list only (`supervised-only`), for the same number of optimiser steps.

Needs: masks. Gives: masks.

Published (VOC 2012 val, DeepLabv3+ with ResNet-101, crops of 321, read-me of UniMatch, classic lists):
45.1 / 55.3 / 64.8 / 69.7 / 73.5 mIoU with 92 / 183 / 366 / 732 / 1464 masks.

The baseline of a method has to be the same network under the same augmentation. Both are options here: `--head
concatenated --multi-grid --scaling choice` is the baseline of the CPS family.

Departures: papers double the batch of the baseline (16 labelled images) so that the images per step match those of
the semi-supervised run; `batch_size` is the user's here, and the `paper` preset holds 16.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labelwise.method import Card, Claim, Needs, Published, Stream
from labelwise.samples import Batch, Kind
from labelwise.tasks.deeplab import DeepLabConfig, DeepLabMethod
from labelwise.tasks.segmentation import TEXTURES


class Supervised(DeepLabMethod):
    """DeepLabv3+ trained with cross-entropy on the labelled images."""

    card = Card(
        name="supervised",
        title="Supervised-only DeepLabv3+",
        task="semantic segmentation",
        needs=Needs(frozenset({Kind.MASKS})),
        gives=frozenset({Kind.MASKS}),
        paper="Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, "
        "ECCV 2018; as the baseline of Yang et al., Revisiting Weak-to-Strong Consistency, CVPR 2023",
        year=2018,
        idea="Learn from the labelled images alone, with mean cross-entropy; what every other method must beat.",
        published=tuple(
            Published(f"VOC 2012 val, classic {count}, ResNet-101, crop 321", "mIoU", value, "UniMatch read-me")
            for count, value in ((92, 45.1), (183, 55.3), (366, 64.8), (732, 69.7), (1464, 73.5))
        ),
        claim=Claim(
            "All masks give a better model than a sixteenth of them.",
            baseline="supervised",
            labels="masks:1/16",
            paper_labels="masks:blender/1_16",
            ceiling="masks:all",
            scenes=TEXTURES,
        ),
    )

    @dataclass(frozen=True, kw_only=True)
    class Config(DeepLabConfig):
        """Options of the supervised baseline."""

    config: Config

    def streams(self) -> dict[str, Stream]:
        """One stream of labelled crops: random scale, random crop, flip."""
        return {"labeled": Stream("labeled", self.weak_view())}

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy over the labelled pixels."""
        return {"supervised": self.loss_on_labels(labeled)}
