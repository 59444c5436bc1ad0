"""The claim of the dense CRF: over the predictions of a trained segmenter it makes boundaries better.

    python benchmarks/crf_claim.py DATA RUN [RUN ...] [--crf deeplab_v1]

Scores each run with and without the CRF and tells the differences, paired by run, with a 95 % Student-t interval. The
runs are one network trained with several seeds, such as those of `labelwise reproduce deeplab_v1`. Exit code 0 when the
boundary IoU rises and pixel accuracy does not fall.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions
from labelwise.reports.statistics import paired_difference, verdict
from labelwise.verbs.evaluate import evaluate
from timing import print_table


def scores(results: Mapping[str, Any]) -> dict[str, float]:
    """The scores of an evaluation that a CRF is said to change."""
    bands = {f"mIoU within {width} px": value for width, value in results["trimap_miou"].items()}
    return {
        "boundary IoU": results["boundary_iou"],
        "pixel accuracy": results["pixel_accuracy"],
        "mIoU": results["miou"],
        **bands,
    }


def compare(data: Path, runs: Sequence[Path], crf: str) -> dict[str, list[tuple[float, float]]]:
    """Score -> (without, with) for each run."""
    hardware = Hardware(workers=0, precision="32-true")
    pairs: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        before, after = (
            scores(evaluate(run, data=data, inference=InferenceOptions(crf=each), hardware=hardware))
            for each in (None, crf)
        )
        for name in before:
            pairs.setdefault(name, []).append((before[name], after[name]))
    return pairs


def main() -> int:
    """Print the table; 0 if the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--crf", default="deeplab_v1")
    arguments = parser.parse_args()
    pairs = compare(arguments.data, arguments.runs, arguments.crf)
    rows, verdicts = [], {}
    for name, values in pairs.items():
        without, refined = zip(*values, strict=True)
        difference = paired_difference(refined, without)
        verdicts[name] = verdict(difference)
        half = "" if difference.half_width is None else f" ± {difference.half_width:.1f}"
        mean = [f"{sum(side) / len(side):.1f}" for side in (without, refined)]
        rows.append([name, *mean, f"{difference.mean:+.1f}{half}", verdicts[name]])
    print_table(f"CRF {arguments.crf}, {len(arguments.runs)} runs", ["score", "without", "with", "change", ""], rows)
    return 0 if verdicts["boundary IoU"] == "holds" and verdicts["pixel accuracy"] != "does not hold" else 1


if __name__ == "__main__":
    sys.exit(main())
