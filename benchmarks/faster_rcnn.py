"""Faster R-CNN on a feature pyramid against torchvision's, on the same backbone: agreement first, then times.

The peer is `torchvision.models.detection.FasterRCNN` on a copy of our backbone and pyramid, with our weights in its
other layers and our anchors in its generator; both take the same number of proposals and regions. Before anything is
timed, their proposals and their detections have to be the same. Then they take turns at the detection in an image and
at the forward and backward pass of a training step; processor time of one thread.

    python benchmarks/faster_rcnn.py [--backbone resnet50] [--height 256] [--width 320] [--repetitions 7]
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN as Peer
from torchvision.models.detection.anchor_utils import AnchorGenerator

from labelwise.datasets.base import Classes
from labelwise.methods.boxes.faster_rcnn import FasterRCNN
from labelwise.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from labelwise.samples import Batch, Sample
from timing import medians_ms, print_table

CLASSES = Classes(("background", *(f"class {number}" for number in range(1, 21))))
SIZES = (32, 64, 128, 256, 512)
PROPOSALS, TRAIN_PROPOSALS, ROIS, IMAGES = 1000, 2000, 512, 2
TOLERANCE = 1e-3
GATE = 1.0


class PyramidOnly(nn.Module):
    """Backbone and pyramid of a network of ours, as the peer takes them."""

    def __init__(self, backbone: nn.Module, pyramid: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.out_channels = backbone, pyramid, channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.pyramid(self.backbone.features(images))
        names = [*(str(level) for level in range(len(maps) - 1)), "pool"]
        return OrderedDict(zip(names, maps, strict=True))


def our_method(backbone: str, height: int, width: int) -> FasterRCNN:
    config = FasterRCNN.Config(
        backbone=backbone,
        backbone_weights="none",
        output_stride=32,
        pyramid=True,
        anchor_sizes=SIZES,
        rpn_channels=256,
        min_side=1e-3,
        before_nms=PROPOSALS,
        max_proposals=PROPOSALS,
        train_before_nms=TRAIN_PROPOSALS,
        train_proposals=TRAIN_PROPOSALS,
        rois_per_image=ROIS,
        dropout=0.0,
        nms_threshold=0.5,
        short_side=min(height, width),
        long_side=max(height, width),
    )
    torch.manual_seed(0)
    method = FasterRCNN(config, CLASSES)
    network = method.network
    # Weights with which scores differ from box to box, and boxes from their anchors.
    for layer, deviation in ((network.rpn.scores, 0.1), (network.rpn.offsets, 0.05)):
        nn.init.normal_(layer.weight, std=deviation)
    for layer, deviation in ((network.head.scores, 0.3), (network.head.offsets, 0.05)):
        nn.init.normal_(layer.weight, std=deviation)
    count = network.rpn.anchors
    nn.init.zeros_(network.rpn.scores.weight[:count])
    return method


def peer_of(method: FasterRCNN, height: int, width: int) -> Peer:
    """The detector of torchvision with our weights and anchors."""
    network, config = method.network, method.config
    assert network.pyramid is not None
    body = PyramidOnly(copy.deepcopy(network.backbone), copy.deepcopy(network.pyramid), network.pyramid.channels)
    generator = AnchorGenerator(tuple((size,) for size in SIZES), ((0.5, 1.0, 2.0),) * len(SIZES))
    generator.cell_anchors = list(network.first_anchors)
    peer = Peer(
        body,
        num_classes=len(CLASSES),
        min_size=min(height, width),
        max_size=max(height, width),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        rpn_anchor_generator=generator,
        rpn_pre_nms_top_n_train=TRAIN_PROPOSALS,
        rpn_pre_nms_top_n_test=PROPOSALS,
        rpn_post_nms_top_n_train=TRAIN_PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_batch_size_per_image=ROIS,
        box_nms_thresh=config.nms_threshold,
    )
    count = network.rpn.anchors
    ours, theirs = network.rpn, peer.rpn.head
    pairs = (
        (ours.conv.weight, theirs.conv[0][0].weight),
        (ours.scores.weight[count:], theirs.cls_logits.weight),
        (ours.offsets.weight, theirs.bbox_pred.weight),
        (network.head.layers.get_parameter("fc6.weight"), peer.roi_heads.box_head.fc6.weight),
        (network.head.layers.get_parameter("fc7.weight"), peer.roi_heads.box_head.fc7.weight),
        (network.head.scores.weight, peer.roi_heads.box_predictor.cls_score.weight),
        (network.head.offsets.weight, peer.roi_heads.box_predictor.bbox_pred.weight),
    )
    for source, target in pairs:
        target.data.copy_(source.data)
    for layer in (*theirs.modules(), *peer.roi_heads.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.zeros_(layer.get_parameter("bias"))
    return peer


def in_training(method: FasterRCNN, peer: Peer) -> None:
    """Both learn, with frozen normalisations."""
    method.train()
    peer.train()
    peer.backbone.backbone.eval()


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """How far any row [N, D] is from its nearest of the other's; ties in the scores leave their order open."""
    if ours.shape != theirs.shape:
        return float("inf")
    distances = torch.cdist(ours, theirs, p=float("inf"))
    return float(torch.maximum(distances.amin(0), distances.amin(1)).max())


def agreement(method: FasterRCNN, peer: Peer, image: Tensor) -> tuple[float, float]:
    """Largest differences of proposals and of detections."""
    method.eval()
    peer.eval()
    found: list[Tensor] = []
    hook = peer.rpn.register_forward_hook(lambda module, inputs, outputs: found.append(outputs[0][0]))
    with torch.no_grad():
        (theirs,) = peer([image.float() / 255])
        sample = Sample(id="", image=tv_tensors.Image(image))
        ours, proposals = method.detect(sample), method.propose(sample)
    hook.remove()
    rows = torch.cat([ours.scores[:, None], ours.labels[:, None].float(), ours.boxes], dim=1)
    other = torch.cat([theirs["scores"][:, None], theirs["labels"][:, None].float(), theirs["boxes"]], dim=1)
    return largest_difference(proposals, found[0]), largest_difference(rows, other)


def some_boxes(height: int, width: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    boxes = []
    for _ in range(IMAGES):
        corner = torch.rand(6, 2, generator=random) * torch.tensor([width / 2, height / 2])
        side = 16 + torch.rand(6, 2, generator=random) * torch.tensor([width / 2 - 16, height / 2 - 16])
        boxes.append(torch.cat([corner, corner + side], dim=1))
    return boxes


def steps(method: FasterRCNN, peer: Peer, images: Tensor, boxes: list[Tensor]) -> dict[str, Callable[[], object]]:
    labels = [torch.arange(len(each)) % (len(CLASSES) - 1) + 1 for each in boxes]
    batch = Batch(ids=("a", "b"), image=images, boxes=boxes, box_labels=labels)

    def ours() -> None:
        method.zero_grad()
        torch.stack(list(method.losses(batch).values())).sum().backward()

    def theirs() -> None:
        peer.zero_grad()
        targets = [{"boxes": box, "labels": label} for box, label in zip(boxes, labels, strict=True)]
        losses = peer([each.float() / 255 for each in images], targets)
        torch.stack(list(losses.values())).sum().backward()

    return {"ours": ours, "torchvision": theirs}


def detections(method: FasterRCNN, peer: Peer, image: Tensor) -> dict[str, Callable[[], object]]:
    sample = Sample(id="", image=tv_tensors.Image(image))

    def ours() -> None:
        with torch.no_grad():
            method.detect(sample)

    def theirs() -> None:
        with torch.no_grad():
            peer([image.float() / 255])

    return {"ours": ours, "torchvision": theirs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    height, width = options.height, options.width
    if height % 64 or width % 64:
        parser.error("--height and --width: the peer rounds its anchors' strides otherwise; take multiples of 64")
    torch.set_num_threads(1)
    method = our_method(options.backbone, height, width)
    peer = peer_of(method, height, width)
    images = torch.randint(256, (IMAGES, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()
    differences = agreement(method, peer, images[0])
    names = f"proposals {differences[0]:.2g} pixels, detections {differences[1]:.2g}"
    print(f"{options.backbone} with a pyramid, {height} x {width} pixels; largest differences: {names}")
    rows, met = [], max(differences) <= TOLERANCE
    calls = {"detection, 1 image": detections(method, peer, images[0])}
    taken = {name: medians_ms(both, options.repetitions, time.process_time) for name, both in calls.items()}
    in_training(method, peer)
    step = steps(method, peer, images, some_boxes(height, width))
    taken["training step, 2 images"] = medians_ms(step, options.repetitions, time.process_time)
    for name, times in taken.items():
        ratio = times["ours"] / times["torchvision"]
        rows.append([name, f"{times['ours']:.0f}", f"{times['torchvision']:.0f}", f"{ratio:.2f}"])
        met = met and ratio <= GATE
    print_table(f"Median of {options.repetitions}, ms", ["", "ours", "torchvision", "ratio"], rows)
    print(f"same results, and at most {GATE} times as long: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
