"""FD-MobileNet against MobileNet v1 at equal multiply-adds: latency of one image, single thread.

The paper measures an ARM device (1.11 times faster); here the ratio counts, not the milliseconds. The least of many
runs in turn leaves out what else the machine does. Run with
`python benchmarks/fd_mobilenet_latency.py [--repetitions 50] [--size 224]`.
"""

from __future__ import annotations

import argparse
import platform
from functools import partial

import torch

from labelwise.models.complexity import count_macs, count_parameters
from labelwise.models.fd_mobilenet import MobileNetClassifier
from timing import print_table, times_ms

BUDGETS = (("144 M", 1.0, 0.5), ("40 M", 0.5, 0.25), ("12 M", 0.25, 0.125))
"""Multiply-adds, and the widths of FD-MobileNet and MobileNet v1 that have them."""
CLASSES = 1000


@torch.no_grad()
def measured(budget: str, fast: float, usual: float, size: int, repetitions: int) -> list[str]:
    """One row of the table."""
    named = {"fd_mobilenet": fast, "mobilenet_v1": usual}
    networks = {name: MobileNetClassifier(name, width, CLASSES).eval() for name, width in named.items()}
    image = torch.randn(1, 3, size, size)
    times = times_ms({name: partial(network, image) for name, network in networks.items()}, repetitions, warm_up=3)
    ours, theirs = (min(times[name]) for name in networks)
    macs = [count_macs(network, (size, size)) / 1e6 for network in networks.values()]
    parameters = [count_parameters(network) / 1e6 for network in networks.values()]
    return [
        budget,
        f"{macs[0]:.1f} / {macs[1]:.1f}",
        f"{parameters[0]:.2f} / {parameters[1]:.2f} = {parameters[0] / parameters[1]:.2f}",
        f"{ours:.2f} / {theirs:.2f}",
        f"{ours / theirs:.2f}",
    ]


def main() -> None:
    """Print one row per budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measured(*budget, options.size, options.repetitions) for budget in BUDGETS]
    title = f"{options.size} px on {platform.machine()}, torch {torch.__version__}, least of {options.repetitions} runs"
    print_table(title, ("budget", "M multiply-adds", "M parameters", "ms", "ratio of ms"), rows)


if __name__ == "__main__":
    main()
