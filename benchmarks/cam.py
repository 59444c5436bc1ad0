"""Score maps of four scales and their mirrored copies: as `annotate` makes them, against one plain pass at a time.

`annotate` folds the BatchNorms into the convolutions before them and puts the channels last (`saved.for_prediction`);
`labelwise.models.cam.multi_scale_maps` passes all images of one size and their mirrored copies as one batch at every
scale, and enlarges only the maps that are kept. The peer does what the released code of PSA does: one pass of the plain
network for each scale and each mirrored copy, and all maps enlarged before those of the tags are chosen. Both have the
same MobileNetV2 of random weights and statistics, at an output stride of 16 and 20 classes, two of them tagged.
Agreement comes first, then times: of the processor on a CPU, so that what else a machine does counts less.

`annotate` passes one image and its mirrored copy at a time, so that one image is what the gate is for. More images in a
batch (`--images 4`) gain nothing on a CPU: the layers' outputs of the largest scale then take hundreds of megabytes,
and what is saved is lost on getting them from the system.

    python benchmarks/cam.py [--size 375x500] [--images 1] [--threads 1] [--repetitions 9] [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import InterpolationMode, resize

from labelwise.models.backbones import create_backbone
from labelwise.models.cam import CamNetwork, divided_by_maximum, multi_scale_maps
from labelwise.models.folding import folded
from timing import medians_ms, print_table

SCALES = (1.0, 0.5, 1.5, 2.0)
CLASSES, TAGS, STRIDE = 20, (3, 14), 16
GATE, AGREEMENT = 1.3, 1e-4
Maps = list[tuple[Tensor, Tensor]]


def plain_network(device: str) -> CamNetwork:
    """A classifier of random weights, whose norms do something."""
    torch.manual_seed(0)
    backbone = create_backbone("mobilenetv2_100", output_stride=STRIDE, weights=None)
    network = CamNetwork(backbone, CLASSES).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return network.to(device)


def fast_network(plain: CamNetwork, device: str) -> CamNetwork:
    """The same as `annotate` calls it."""
    example = torch.zeros(1, 3, 64, 64, device=device)
    return folded(plain, lambda network: network.maps(example)).to(memory_format=torch.channels_last)


def activations(network: CamNetwork, images: Tensor) -> Tensor:
    """From images [B, 3, H, W] uint8 to maps [B, K, h, w]."""
    return network.maps(images.float() / 255 - 0.5)


def one_by_one(network: CamNetwork, images: Tensor, tags: Tensor) -> Maps:
    return [_maps_of(network, image[None], tags) for image in images]


def _maps_of(network: CamNetwork, image: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    height, width = image.shape[-2:]
    sizes = [[-(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE], [-(-height // 4), -(-width // 4)]]
    sums = [torch.zeros(CLASSES, *size, device=image.device) for size in sizes]
    for scale in SCALES:
        for mirrored in (False, True):
            scaled = resize(image, [round(height * scale), round(width * scale)], InterpolationMode.BICUBIC)
            maps = activations(network, scaled.flip(-1) if mirrored else scaled)
            maps = maps.flip(-1) if mirrored else maps
            for total, size in zip(sums, sizes, strict=True):
                total += functional.interpolate(maps, size, mode="bilinear")[0]
    fine, coarse = (total[tags] for total in sums)
    return divided_by_maximum(fine[:, :height, :width]), divided_by_maximum(coarse)


def compare(plain: CamNetwork, fast: CamNetwork, images: Tensor, repetitions: int) -> tuple[list[str], bool]:
    """The table's row of so many images, and whether agreement and gate hold."""
    tags = torch.tensor(TAGS, device=images.device)
    synchronized = torch.cuda.synchronize if images.is_cuda else (lambda: None)

    def timed(function: Callable[[], Maps]) -> Callable[[], Maps]:
        def run() -> Maps:
            found = function()
            synchronized()
            return found

        return run

    batched = partial(multi_scale_maps, partial(activations, fast), images, [tags] * len(images), SCALES, True, STRIDE)
    functions = {"annotate": timed(batched), "one by one": timed(partial(one_by_one, plain, images, tags))}
    results = [function() for function in functions.values()]
    pairs = [
        (ours, theirs) for one, other in zip(*results, strict=True) for ours, theirs in zip(one, other, strict=True)
    ]
    difference = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    clock = time.perf_counter if images.is_cuda else time.process_time
    times = {name: taken / len(images) for name, taken in medians_ms(functions, repetitions, clock).items()}
    ratio = times["one by one"] / times["annotate"]
    row = [
        str(len(images)),
        f"{times['annotate']:.1f}",
        f"{times['one by one']:.1f}",
        f"{ratio:.2f}",
        f"{difference:.1e}",
    ]
    return row, difference <= AGREEMENT and ratio >= GATE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="375x500")
    parser.add_argument("--images", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    height, width = map(int, options.size.split("x"))
    images = torch.randint(0, 256, (max(options.images), 3, height, width), dtype=torch.uint8).to(options.device)
    plain = plain_network(options.device)
    fast = fast_network(plain, options.device)
    with torch.inference_mode():
        results = [compare(plain, fast, images[:count], options.repetitions) for count in options.images]
    title = (
        f"{height} x {width} pixels, {len(SCALES)} scales and mirrored copies, {options.device}; median ms per image"
    )
    print_table(title, ["images", "annotate", "one by one", "ratio", "difference"], [row for row, _ in results])
    met = all(good for _, good in results)
    print(f"difference at most {AGREEMENT}, at least {GATE} times as fast: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
