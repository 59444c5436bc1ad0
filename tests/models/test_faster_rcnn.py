from __future__ import annotations

import pytest
import torch

from labelwise.models.anchors import make_anchors
from labelwise.models.detection_trunks import create_fully_connected, create_trunk
from labelwise.models.faster_rcnn import FasterRCNN, RegionProposer, anchors_of
from labelwise.models.region_proposals import propose, propose_over_levels
from labelwise.models.regions import RegionHead


def test_a_single_map_has_anchors_of_all_sizes_and_those_of_the_paper_at_stride_16() -> None:
    (anchors,) = anchors_of((16,), (128, 256, 512), (0.5, 1, 2))
    assert torch.equal(anchors, make_anchors())


def test_each_map_of_several_has_anchors_of_one_size() -> None:
    anchors = anchors_of((4, 8), (32, 64), (1.0,))
    assert [(each[:, 2:] - each[:, :2]).tolist() for each in anchors] == [[[32, 32]], [[64, 64]]]
    with pytest.raises(ValueError, match="a pyramid of 2 maps wants 2 sizes"):
        anchors_of((4, 8), (32,), (1.0,))


def test_zf_is_a_trunk_with_256_channels_at_stride_16() -> None:
    with torch.device("meta"):
        proposer = RegionProposer(create_trunk("zf", None), None, [make_anchors()], 256)
        maps = proposer.maps(torch.zeros(1, 3, 224, 224))
    assert maps[0].shape[1] == 256 and proposer.strides == (16,)
    assert sum(parameter.numel() for parameter in proposer.backbone.parameters()) == 3_726_464
    assert sum(parameter.numel() for parameter in proposer.rpn.parameters()) == 256 * 256 * 9 + 256 + 257 * 54


def test_a_proposer_of_its_own_scores_the_anchors_in_the_place_of_the_network() -> None:
    torch.manual_seed(0)

    def trunk() -> RegionProposer:
        return RegionProposer(create_trunk("micro_w2", None, output_stride=4), None, [make_anchors(4, scales=(2,))], 4)

    own, other = trunk(), trunk()
    layers = create_fully_connected("micro_w2", None, channels=8, size=2, width=4)
    network = FasterRCNN(
        own.backbone, None, own.first_anchors, 4, head=RegionHead(layers, 4, 2), roi_size=2, proposer=other
    ).eval()
    images = torch.randn(1, 3, 16, 16)
    scored = network.scored(images, network.maps(images))
    assert torch.equal(scored.logits, other(images).logits)
    assert not torch.equal(scored.logits, network(images).logits)


def test_proposals_of_several_maps_are_the_best_of_each_maps() -> None:
    random = torch.Generator().manual_seed(0)
    corner = 60 * torch.rand(90, 2, generator=random)
    anchors = torch.cat([corner, corner + 25], dim=1)
    logits, offsets = torch.randn(90, 2, generator=random), torch.zeros(90, 4)
    fine, coarse = (slice(0, 60), slice(60, 90))
    boxes, scores = propose_over_levels(logits, offsets, [anchors[fine], anchors[coarse]], (96, 96), after=20)
    alone = [propose(logits[part], offsets[part], anchors[part], (96, 96), after=20) for part in (fine, coarse)]
    expected, order = torch.cat([each[1] for each in alone]).sort(descending=True)
    torch.testing.assert_close(scores, expected[:20])
    torch.testing.assert_close(boxes, torch.cat([each[0] for each in alone])[order[:20]])
