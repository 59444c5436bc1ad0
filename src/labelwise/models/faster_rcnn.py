"""The network of Faster R-CNN: proposals and classes of objects from the same features (Ren et al., NIPS 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labelwise.models.anchors import grid_anchors, make_anchors
from labelwise.models.detection_trunks import ClassifierTrunk, FeatureTrunk
from labelwise.models.feature_pyramid import FeaturePyramid, PyramidPooling
from labelwise.models.region_proposals import RegionProposalNetwork, propose_over_levels
from labelwise.models.regions import RegionHead, roi_max_pool


class ScoredAnchors(NamedTuple):
    """What a region proposal network says of the anchors of a batch.

    Attributes:
        logits: [B, N, 2] of background and object.
        offsets: [B, N, 4].
        anchors: [n, 4] of each feature map, N in all.
    """

    logits: Tensor
    offsets: Tensor
    anchors: list[Tensor]


def anchors_of(strides: Sequence[int], sizes: Sequence[int], ratios: Sequence[float]) -> list[Tensor]:
    """The anchors of the first cell of each feature map, [A, 4] each.

    Args:
        strides: of the maps.
        sizes: sides of square anchors in pixels: all of them on a single map, else one on each.
        ratios: heights over widths.

    Raises:
        ValueError: several maps, and not as many sizes.
    """
    if len(strides) == 1:
        return [make_anchors(strides[0], ratios, [size / strides[0] for size in sizes])]
    if len(strides) != len(sizes):
        raise ValueError(f"a pyramid of {len(strides)} maps wants {len(strides)} sizes")
    return [make_anchors(stride, ratios, [size / stride]) for stride, size in zip(strides, sizes, strict=True)]


def strides_of(backbone: ClassifierTrunk | FeatureTrunk, pyramid: FeaturePyramid | None) -> tuple[int, ...]:
    """Pixels of the image per cell of each map on which objects are found."""
    return pyramid.strides if pyramid else (backbone.stride,)


class RegionProposer(nn.Module):
    """A backbone, perhaps with a feature pyramid, and a region proposal network on all of its maps."""

    def __init__(
        self,
        backbone: ClassifierTrunk | FeatureTrunk,
        pyramid: FeaturePyramid | None,
        anchors: Sequence[Tensor],
        hidden: int,
    ) -> None:
        """Put new layers on a backbone.

        Args:
            backbone: the trunk.
            pyramid: on all features of the trunk; None = its last map is the only one.
            anchors: [A, 4] of the first cell of each map.
            hidden: channels of the region proposal network.
        """
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.strides = strides_of(backbone, pyramid)
        self.first_anchors = tuple(anchors)
        channels = pyramid.channels if pyramid else backbone.channels
        self.rpn = RegionProposalNetwork(channels, len(anchors[0]), hidden)

    def forward(self, images: Tensor) -> ScoredAnchors:
        """[B, 3, H, W] float, normalised -> what the region proposal network says."""
        return self.score_anchors(self.maps(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] float, normalised -> [B, channels, h, w] of each stride."""
        if self.pyramid is None:
            return [self.backbone(images)]
        maps: list[Tensor] = self.pyramid(self.backbone.features(images))
        return maps

    def score_anchors(self, maps: Sequence[Tensor]) -> ScoredAnchors:
        """Scores and offsets of the anchors on all maps."""
        logits, offsets = zip(*(self.rpn(each) for each in maps), strict=True)
        anchors = [
            grid_anchors(first.to(each.device), each.shape[-2], each.shape[-1], stride)
            for first, each, stride in zip(self.first_anchors, maps, self.strides, strict=True)
        ]
        return ScoredAnchors(torch.cat(logits, dim=1), torch.cat(offsets, dim=1), anchors)

    def propose(
        self, scored: ScoredAnchors, sizes: Sequence[Sequence[int]], **limits: Any
    ) -> list[tuple[Tensor, Tensor]]:
        """The proposals [P, 4] of each image and their probabilities [P], best first.

        Args:
            scored: of the batch.
            sizes: height and width of each image without padding.
            **limits: as of `propose_over_levels`.
        """
        return [
            propose_over_levels(logits, offsets, scored.anchors, size, **limits)
            for logits, offsets, size in zip(scored.logits, scored.offsets, sizes, strict=True)
        ]


class FasterRCNN(RegionProposer):
    """A region proposer, and a head that classifies what it proposes, on the same maps."""

    def __init__(
        self,
        backbone: ClassifierTrunk | FeatureTrunk,
        pyramid: FeaturePyramid | None,
        anchors: Sequence[Tensor],
        hidden: int,
        *,
        head: RegionHead,
        roi_size: int,
        proposer: RegionProposer | None = None,
    ) -> None:
        """Put new layers on a backbone.

        Args:
            backbone: as of `RegionProposer`.
            pyramid: as of `RegionProposer`.
            anchors: as of `RegionProposer`.
            hidden: as of `RegionProposer`.
            head: takes [R, channels, roi_size, roi_size].
            roi_size: bins along each side of a pooled region.
            proposer: proposes in the place of the network itself, from a backbone of its own.
        """
        super().__init__(backbone, pyramid, anchors, hidden)
        self.head = head
        self.roi_size = roi_size
        self.proposer = proposer
        self.pyramid_pooling = PyramidPooling(len(self.strides), roi_size) if pyramid else None

    def scored(self, images: Tensor, maps: Sequence[Tensor]) -> ScoredAnchors:
        """The anchors of a batch with its maps, as scored by whoever proposes."""
        return self.score_anchors(maps) if self.proposer is None else self.proposer(images)

    def classify(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Classes and offsets of regions.

        Args:
            maps: of the batch.
            boxes: B times [n, 4], R in all.
            size: height and width of the network's input.

        Returns:
            logits [R, K + 1] and normalised offsets [R, 4 (K + 1)], as of `RegionHead`.
        """
        if self.pyramid_pooling is not None:
            logits, offsets = self.head(self.pyramid_pooling(maps, boxes, size))
        else:
            logits, offsets = self.head(roi_max_pool(maps[0], boxes, self.strides[0], self.roi_size))
        return logits, offsets
