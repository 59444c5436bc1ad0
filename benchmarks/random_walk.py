"""The sparse random walk over the score maps of an image of 375 x 500 pixels against a dense transition matrix.

The maps have a stride of 4, so that the transition matrix of all pixels with each other has 11,750 x 11,750 elements.
The papers' code squares it `log_steps` times; ours keeps it sparse and takes 2^log_steps steps. The boundaries are a
few smooth lines. Each walk runs in a process of its own, which reports its largest memory in use beyond what it had
before; the dense one needs about 2.5 GB and, on few cores, minutes: `--dense-size 125x167` compares on a smaller image.

    python benchmarks/random_walk.py [--size 375x500] [--dense-size 375x500] [--threads 1] [--repetitions 3]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from labelwise.models.pixel_affinity import affinity_from_boundary, neighbor_offsets
from labelwise.models.random_walk import random_walk
from timing import print_table

RADIUS, BETA, LOG_STEPS = 5, 10.0, 8
STRIDE, TAGS = 4, 2
AGREEMENT, MEMORY_MB = 1e-4, 300


def scene(size: str) -> tuple[Tensor, Tensor]:
    """Score maps [N, h, w] and boundaries [h, w], both in 0..1, of an image of so many pixels."""
    height, width = (-(-int(side) // STRIDE) for side in size.split("x"))
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, TAGS + 1, 6, 8, generator=random)
    maps = functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    # Where a smooth field crosses its middle.
    return maps[:TAGS], 1 - (12 * (maps[TAGS] - 0.5).abs()).clamp(max=1)


def sparse_walk(maps: Tensor, boundary: Tensor) -> Tensor:
    affinity = affinity_from_boundary(boundary, RADIUS)
    return random_walk(maps, affinity, radius=RADIUS, beta=BETA, log_steps=LOG_STEPS)


def dense_walk(maps: Tensor, boundary: Tensor) -> Tensor:
    affinity = affinity_from_boundary(boundary, RADIUS)
    height, width = boundary.shape
    pixels = torch.arange(height * width).view(height, width)
    transition = torch.eye(height * width)
    for (dy, dx), weights in zip(neighbor_offsets(RADIUS).tolist(), affinity, strict=True):
        rows, left, right = height - dy, max(-dx, 0), width - max(dx, 0)
        first, second = pixels[:rows, left:right].flatten(), pixels[dy:, left + dx : right + dx].flatten()
        powers = weights[:rows, left:right].flatten() ** BETA
        transition[first, second] = powers
        transition[second, first] = powers
    transition /= transition.sum(dim=0)
    for _ in range(LOG_STEPS):
        transition = transition @ transition
    return (maps.flatten(1) @ transition).view_as(maps)


WALKS = {"sparse": sparse_walk, "dense": dense_walk}


def measured(name: str, size: str, threads: int, repetitions: int) -> tuple[Tensor, float, float]:
    """The result of a walk, its least time in seconds and its memory in MB; for a process of its own."""
    torch.set_num_threads(threads)
    walk: Callable[[Tensor, Tensor], Tensor] = WALKS[name]
    inputs = scene(size)
    walk(*scene("40x40"))
    before = memory_mb("VmRSS")
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        result = walk(*inputs)
        times.append(time.perf_counter() - start)
    return result, min(times), memory_mb("VmHWM") - before


def memory_mb(name: str) -> float:
    """A process's memory of Linux: VmRSS is in use, VmHWM the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def apart(*arguments: object) -> tuple[Tensor, float, float]:
    """`measured` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, *arguments).result()  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="375x500")
    parser.add_argument("--dense-size", default="188x250")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    rows, results = [], {}
    for name, size in dict.fromkeys(
        (("sparse", options.size), ("sparse", options.dense_size), ("dense", options.dense_size))
    ):
        repetitions = 1 if name == "dense" else options.repetitions
        results[name, size] = apart(name, size, options.threads, repetitions)
        _, seconds, memory = results[name, size]
        rows.append([name, size, f"{seconds:.2f}", f"{memory:.0f}"])
    print(f"{TAGS} maps, radius {RADIUS}, 2^{LOG_STEPS} steps, threads: {options.threads}")
    print_table("Walks", ["walk", "pixels", "seconds", "MB"], rows)
    sparse, dense = (results[name, options.dense_size][0] for name in ("sparse", "dense"))
    difference = float((sparse - dense).abs().max())
    met = difference <= AGREEMENT and results["sparse", options.size][2] < MEMORY_MB
    gates = f"difference at most {AGREEMENT}, below {MEMORY_MB} MB"
    print(f"largest difference {difference:.1e}; {gates}: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
