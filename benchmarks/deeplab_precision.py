"""DeepLabv3+ in float32 and bf16 autocast, in both memory layouts: forward and training step.

The defaults for precision and layout per device are chosen from this table. Run with
`python benchmarks/deeplab_precision.py [--threads 2] [--device cpu] [--network NAME] [--repetitions 3]`; on a busy
machine with `--threads 1 --processor-time`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from labelwise.losses.pixel import cross_entropy
from labelwise.models.backbones import create_backbone
from labelwise.models.deeplab_v3plus import DeepLabV3Plus
from timing import medians_ms, print_table

CLASSES = 21
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A network and its input."""

    backbone: str
    size: int
    batch: int
    aspp_channels: int

    def __str__(self) -> str:
        return f"{self.backbone} {self.size} px, batch {self.batch}"


CASES = (
    Case("tiny", size=96, batch=8, aspp_channels=64),
    Case("mobilenetv2_100", size=225, batch=4, aspp_channels=256),
    Case("resnet50s", size=321, batch=1, aspp_channels=256),
)


class Trial:
    """One network in one precision and layout; weights and input are the same in all of a case's trials."""

    def __init__(self, case: Case, precision: str, layout: str, device: torch.device) -> None:
        torch.manual_seed(0)
        network = DeepLabV3Plus(create_backbone(case.backbone, 16, None), CLASSES, case.aspp_channels)
        self.network = network.to(device).to(memory_format=LAYOUTS[layout])
        image = torch.randn(case.batch, 3, case.size, case.size, device=device)
        self.image = image.contiguous(memory_format=LAYOUTS[layout])
        self.mask = torch.randint(0, CLASSES, (case.batch, case.size, case.size), device=device)
        self.precision = precision
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        self.first_logits = self.inference().float()

    def logits(self) -> Tensor:
        device = self.image.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(self.image)

    @torch.no_grad()
    def inference(self) -> Tensor:
        self.network.eval()
        logits = self.logits()
        self.wait()
        return logits

    def step(self) -> None:
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        cross_entropy(self.logits(), self.mask).backward()
        self.optimizer.step()
        self.wait()

    def wait(self) -> None:
        if self.image.device.type == "cuda":
            torch.cuda.synchronize(self.image.device)


def rows_of(
    case: Case, device: torch.device, repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[str]]:
    """A table row per precision and layout."""
    combinations = {f"{precision}, {layout}": (precision, layout) for precision in PRECISIONS for layout in LAYOUTS}
    trials = {name: Trial(case, *combination, device) for name, combination in combinations.items()}
    forward = medians_ms({name: trial.inference for name, trial in trials.items()}, repetitions, clock)
    step = medians_ms({name: trial.step for name, trial in trials.items()}, repetitions, clock)
    base = next(iter(trials))
    expected = trials[base].first_logits
    rows = []
    for name, trial in trials.items():
        difference = ((trial.first_logits - expected).abs().max() / expected.abs().max()).item()
        forward_cells = [f"{forward[name]:.1f}", f"{forward[base] / forward[name]:.2f}x"]
        step_cells = [f"{step[name]:.1f}", f"{step[base] / step[name]:.2f}x"]
        rows.append([name, *forward_cells, *step_cells, f"{100 * difference:.2f} %"])
    return rows


def described(device: torch.device) -> str:
    """The device's name and whether it computes in bf16; without, bf16 is emulated and slow."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return f"{platform.machine()} {'with' if native else 'without'} bf16 instructions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=[case.backbone for case in CASES])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="count the processor's time, not the wall's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = time.process_time if options.processor_time else time.perf_counter
    kind = "processor" if options.processor_time else "wall"
    print(f"torch {torch.__version__}, {described(device)}, {options.threads} threads")
    print(f"{kind} time, median of {options.repetitions}")
    columns = ["precision, layout", "forward, ms", "speed", "training step, ms", "speed", "logits differ by"]
    for case in CASES:
        if options.network in (None, case.backbone):
            print_table(str(case), columns, rows_of(case, device, options.repetitions, clock))


if __name__ == "__main__":
    main()
