"""Milliseconds per image of the full-mask segmenters against torchvision's LRASPP on MobileNetV3.

Every method of `labelwise.methods.masks` that ends in a network of class scores is built as its preset `small` builds
it, with random weights, on each of the backbones; P2AT-S is built as published. All take turns on the same image, so
that a machine that is busy for a while slows all of them, and the ratios hold. Parameters and multiply-adds stand
beside the times. Run with `python benchmarks/segmenter_latency.py [--sizes 360x480 512x512] [--repetitions 15]
[--networks p2at fcn] [--threads 1] [--processor-time] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from labelwise import methods
from labelwise.configuration import load_preset, make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.tasks.segmentation import SegmentationMethod
from timing import print_table, times_ms

CLASSES = Classes(tuple(f"class {number}" for number in range(21)))
BACKBONES = ("mobilenetv2_100", "fd_mobilenet")
PEER = "LRASPP, mobilenet_v3_large (torchvision)"
SIZES = ("360x480", "512x512")
Size = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """What was measured of one network at one size; times in milliseconds per image."""

    network: str
    size: str
    parameters: int
    macs: int
    median_ms: float
    minimum_ms: float
    ratio: float


class Lraspp(nn.Module):
    """The peer, from images to scores as ours are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)["out"]


def segmenters() -> list[str]:
    """The methods that learn from full masks."""
    names = [name for name, entry in methods.METHODS.items() if entry.startswith("labelwise.methods.masks.")]
    return [name for name in names if issubclass(methods.load(name), SegmentationMethod)]


def built(name: str, backbone: str) -> nn.Module:
    """The network of a method's preset `small` on another backbone, with random weights."""
    method = methods.load(name)
    config = make_config(method, load_preset(method, "small"), {"backbone": backbone, "backbone_weights": "none"})
    return method(config, CLASSES, training=False).network


def all_networks(chosen: Sequence[str]) -> dict[str, nn.Module]:
    """The peer, then P2AT-S and the chosen methods on all backbones; what cannot be built is said and left out."""
    networks: dict[str, nn.Module] = {PEER: Lraspp()}
    cases = [(f"{name}, {backbone}", name, backbone) for name in chosen for backbone in BACKBONES]
    if "p2at" in chosen:
        cases.insert(0, ("p2at, resnet18 (P2AT-S)", "p2at", "resnet18"))
    for title, name, backbone in cases:
        try:
            networks[title] = built(name, backbone)
        except UserError as error:
            print(f"left out: {title}: {error}")
    return {title: network.eval() for title, network in networks.items()}


@torch.inference_mode()
def measured(
    networks: dict[str, nn.Module], size: Size, repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> list[Row]:
    """A row per network at one size."""
    image = torch.randn(1, 3, *size)
    expected = (1, len(CLASSES), *size)
    for title, network in networks.items():
        assert network(image).shape == expected, title
    times = times_ms({title: partial(network, image) for title, network in networks.items()}, repetitions, clock)
    peer = statistics.median(times[PEER])
    return [
        Row(
            network=title,
            size=f"{size[0]}x{size[1]}",
            parameters=count_parameters(network),
            macs=count_macs(network, size),
            median_ms=statistics.median(times[title]),
            minimum_ms=min(times[title]),
            ratio=statistics.median(times[title]) / peer,
        )
        for title, network in networks.items()
    ]


def cells(row: Row) -> list[str]:
    counts = f"{row.parameters / 1e6:.2f}", f"{row.macs / 1e9:.2f}"
    return [row.network, *counts, f"{row.median_ms:.0f}", f"{row.minimum_ms:.0f}", f"{row.ratio:.2f}x"]


def parse_size(text: str) -> Size:
    height, _, width = text.partition("x")
    return int(height), int(width)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[parse_size(size) for size in SIZES])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--networks", nargs="+", choices=segmenters(), default=segmenters())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true", help="count the processor's time, not the wall's")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    # Random networks have activations near 0, which trained ones have not, and such numbers are slow.
    torch.set_flush_denormal(True)
    clock = time.process_time if options.processor_time else time.perf_counter
    machine = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "time": "processor" if options.processor_time else "wall",
        "repetitions": options.repetitions,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    networks = all_networks(options.networks)
    columns = ["network", "M parameters", "GMACs", "median, ms", "least, ms", "median / LRASPP"]
    rows: list[Row] = []
    for size in options.sizes:
        found = measured(networks, size, options.repetitions, clock)
        print_table(f"One image of {size[0]} x {size[1]}, float32", columns, [cells(row) for row in found])
        rows += found
    if options.json:
        options.json.write_text(json.dumps({**machine, "peer": PEER, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
