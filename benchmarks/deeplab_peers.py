"""DeepLab v3 and v3+ against torchvision's and segmentation-models-pytorch's, with the same weights.

Run: `python benchmarks/deeplab_peers.py [--threads 1] [--size 257] [--repetitions 5] [--peer smp] [--no-compile]`, on a
busy machine with `--processor-time`. Peers: `deeplabv3_resnet50` of torchvision, at its output stride 8, and
`DeepLabV3Plus` of segmentation-models-pytorch on a ResNet-50 at output stride 16, which is left out with a note where
it is not installed. Agreement first, then times: float32 on the CPU, the networks take turns, medians. Then ours in
bf16, with channels last and compiled.

Neither peer is the paper's network, so ours is built of our parts in the peer's form, which each table's title says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation import deeplabv3_resnet50

from labelwise.models.aspp import ASPP
from labelwise.models.atrous_backbone import create_atrous_backbone
from timing import medians_ms, print_table

CLASSES = 21
AGREEMENT = 1e-4


class OursAsTorchvision(nn.Module):
    """Our atrous ResNet and pyramid, torchvision's further convolution and half-pixel up-sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = create_atrous_backbone("resnet50", 8, None, multi_grid=(1, 1, 1), paper_form=False)
        self.aspp = ASPP(2048, 256, (12, 24, 36), dropout=0.5)
        self.further = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU())
        self.classifier = nn.Conv2d(256, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(self.further(self.aspp(self.backbone(x)[-1])))
        return functional.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)

    def take(self, peer: nn.Module) -> None:
        """Take over the weights of the peer."""
        self.backbone.body.load_state_dict(peer.backbone.state_dict())
        pyramid, *further, classifier = peer.classifier
        take_pyramid(self.aspp, pyramid)
        copy_in_order(self.further, nn.Sequential(*further))
        copy_in_order(self.classifier, classifier)


class OursAsSmp(nn.Module):
    """Our atrous ResNet and pyramid, and the decoder of segmentation-models-pytorch.

    It has a depthwise separable convolution after the pyramid, one instead of two after the concatenation, both without
    normalisation and ReLU between their halves, and concatenates as we do.
    """

    def __init__(self) -> None:
        super().__init__()
        # There every convolution of the last stage has rate 2, the first included.
        self.backbone = create_atrous_backbone("resnet50", 16, None, multi_grid=(2, 1, 1), paper_form=False)
        self.aspp = ASPP(2048, 256, (6, 12, 18), dropout=0.5)
        self.further = separable(256)
        self.low = nn.Sequential(nn.Conv2d(256, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.fuse = separable(256 + 48)
        self.classifier = nn.Conv2d(256, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.backbone(x)
        high = functional.interpolate(
            self.further(self.aspp(high)), size=low.shape[2:], mode="bilinear", align_corners=True
        )
        logits = self.classifier(self.fuse(torch.cat([high, self.low(low)], dim=1)))
        return functional.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True)

    def take(self, peer: nn.Module) -> None:
        """Take over the weights of the peer."""
        self.backbone.body.load_state_dict(peer.encoder.state_dict())
        pyramid, *further = peer.decoder.aspp
        take_pyramid(self.aspp, pyramid)
        copy_in_order(self.further, nn.Sequential(*further))
        copy_in_order(self.low, peer.decoder.block1)
        copy_in_order(self.fuse, peer.decoder.block2)
        copy_in_order(self.classifier, peer.segmentation_head)


def separable(inputs: int) -> nn.Sequential:
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU())


def take_pyramid(ours: ASPP, theirs: nn.Module) -> None:
    """Weights of a pyramid; both peers keep their pooled branch as the last of `convs`."""
    *convolutions, pooled = theirs.convs
    for our_conv, their_conv in zip(ours.convs, convolutions, strict=True):
        copy_in_order(our_conv, their_conv)
    copy_in_order(ours.pooled, pooled)
    copy_in_order(ours.project, theirs.project)


def copy_in_order(ours: nn.Module, theirs: nn.Module) -> None:
    """The weights of a module whose parts have other names, but the same order."""
    mine, others = ours.state_dict(), theirs.state_dict()
    ours.load_state_dict(dict(zip(mine, others.values(), strict=True)))


@dataclass(frozen=True)
class Pair:
    """A peer, ours with its weights, and an image."""

    title: str
    peer: Callable[[Tensor], Tensor]
    ours: nn.Module
    image: Tensor


def randomized(network: nn.Module) -> nn.Module:
    """Normalisations with statistics of their own, so that a wrongly copied one shows, and logits of common size."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def torchvision_pair(size: int) -> Pair:
    peer = randomized(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False))
    ours = OursAsTorchvision()
    ours.take(peer)
    title = (
        f"DeepLab v3, ResNet-50, output stride 8, {size} px, torchvision {torchvision.__version__}\n"
        "ours in its form: no multi-grid, strides in first units, a further 3x3 convolution, half-pixel up-sampling"
    )
    return Pair(title, lambda x: peer(x)["out"], ours.eval(), torch.randn(1, 3, size, size))


def smp_pair(size: int) -> Pair | None:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        print("segmentation-models-pytorch is not installed: left out")
        return None
    # It takes multiples of 16 alone.
    size = size // 16 * 16
    peer = randomized(
        smp.DeepLabV3Plus(
            "resnet50",
            encoder_weights=None,
            encoder_output_stride=16,
            decoder_atrous_rates=(6, 12, 18),
            decoder_aspp_separable=False,
            classes=CLASSES,
        )
    )
    ours = OursAsSmp()
    ours.take(peer)
    title = (
        f"DeepLab v3+, ResNet-50, output stride 16, {size} px, segmentation-models-pytorch {smp.__version__}\n"
        "ours in its form: rate 2 in all of block4, one separable convolution after the pyramid and one in the decoder"
    )
    return Pair(title, peer, ours.eval(), torch.randn(1, 3, size, size))


PEERS: dict[str, Callable[[int], Pair | None]] = {"torchvision": torchvision_pair, "smp": smp_pair}


@torch.no_grad()
def compare(pair: Pair, repetitions: int, clock: Callable[[], float]) -> bool:
    """Print agreement and times of a pair; whether they agree."""
    expected, found = pair.peer(pair.image), pair.ours(pair.image)
    difference = (found - expected).abs().max().item()
    times = medians_ms(
        {"peer": lambda: pair.peer(pair.image), "ours": lambda: pair.ours(pair.image)}, repetitions, clock
    )
    agree = difference < AGREEMENT
    rows = [
        ["peer", f"{times['peer']:.1f}", "1.00", ""],
        ["ours", f"{times['ours']:.1f}", f"{times['ours'] / times['peer']:.2f}", f"{difference:.1e}"],
    ]
    print(pair.title)
    print_table("", ["", "ms per image", "time, peer = 1", "largest difference"], rows)
    print(f"logits up to {expected.abs().max():.2f}: {'agree' if agree else 'DO NOT AGREE'} within {AGREEMENT:g}\n")
    return agree


@torch.no_grad()
def variants(pair: Pair, repetitions: int, clock: Callable[[], float], compiled: bool) -> None:
    """Print what precision, memory layout and compilation give ours."""
    calls = {
        "float32": forward(pair, bf16=False, layout=torch.contiguous_format),
        "float32, channels last": forward(pair, bf16=False, layout=torch.channels_last),
        "bf16": forward(pair, bf16=True, layout=torch.contiguous_format),
        "bf16, channels last": forward(pair, bf16=True, layout=torch.channels_last),
    }
    if compiled:
        calls["float32, compiled"] = forward(pair, bf16=False, layout=torch.contiguous_format, compiled=True)
        calls["bf16, compiled"] = forward(pair, bf16=True, layout=torch.contiguous_format, compiled=True)
    outputs: dict[str, Tensor] = {}
    for name, call in list(calls.items()):
        try:
            outputs[name] = call().float()
        except Exception as error:  # whatever a compiler that is missing or fails may raise
            print(f"{name}: not possible here ({str(error).splitlines()[0]})")
            del calls[name]
    times = medians_ms(calls, repetitions, clock)
    expected = outputs["float32"]
    rows = [
        [
            name,
            f"{taken:.1f}",
            f"{times['float32'] / taken:.2f}x",
            f"{100 * (outputs[name] - expected).abs().max() / expected.abs().max():.3f} %",
        ]
        for name, taken in times.items()
    ]
    print_table("ours", ["", "ms per image", "speed", "logits differ by"], rows)


def forward(pair: Pair, bf16: bool, layout: torch.memory_format, compiled: bool = False) -> Callable[[], Tensor]:
    """One pass of a copy of ours."""
    network = type(pair.ours)()
    network.load_state_dict(pair.ours.state_dict())
    network = network.eval().to(memory_format=layout)
    image = pair.image.contiguous(memory_format=layout)
    if compiled:
        network.compile()

    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(image)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=257)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peer", choices=PEERS, help="this one alone")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--processor-time", action="store_true", help="count the processor's time, not the wall's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.process_time if options.processor_time else time.perf_counter
    kind = "processor" if options.processor_time else "wall"
    print(f"torch {torch.__version__}, {options.threads} threads, {kind} time, medians of {options.repetitions}\n")
    agreement = []
    for name, make in PEERS.items():
        pair = make(options.size) if options.peer in (None, name) else None
        if pair is not None:
            agreement.append(compare(pair, options.repetitions, clock))
            variants(pair, options.repetitions, clock, options.compile)
    raise SystemExit(0 if all(agreement) else 1)


if __name__ == "__main__":
    main()
