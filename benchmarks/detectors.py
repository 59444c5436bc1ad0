"""Every detector on the same real images: average precision, seconds of training and per image, a table and a picture.

    python benchmarks/detectors.py DATA OUT --train --weights FILE [--common short_side=240 steps=400] [--only NAME ...]
    python benchmarks/detectors.py DATA OUT

With `--train` each variant is trained by its preset `small` on all boxes and scored; a variant that is finished is not
trained again, so that the work can be done in several calls. Without it the finished ones are timed, in turns and in
one process, and `OUT/detectors.json`, `OUT/detectors.md` and `OUT/detectors.png` are written. Proposals are timed by
themselves: they are made once per image and kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

import labelwise
from labelwise.configuration import option_names
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.methods import load
from labelwise.models.complexity import count_parameters
from labelwise.models.selective_search import selective_search
from labelwise.saved import load_model
from labelwise.scoring import detected, write_prediction_sheet
from labelwise.tasks.proposals import ProposalMethod
from labelwise.verbs.train import train
from timing import medians_ms


class Variant(NamedTuple):
    """A method with some of its options."""

    method: str
    options: Mapping[str, Any] = {}
    preset: str = "small"


VARIANTS = {
    "rcnn": Variant("rcnn"),
    "rcnn-no-regression": Variant("rcnn", {"box_regression": False}),
    "fast_rcnn": Variant("fast_rcnn"),
    "fast_rcnn-no-regression": Variant("fast_rcnn", {"box_regression": False}),
    "faster_rcnn": Variant("faster_rcnn"),
    "faster_rcnn-fpn": Variant("faster_rcnn", preset="fpn"),
}


def train_variant(name: str, data: Path, out: Path, weights: Path, common: Mapping[str, Any]) -> None:
    """Train one variant; what is done is not done again."""
    variant = VARIANTS[name]
    known = option_names(load(variant.method))
    shared = {key: value for key, value in {"backbone_weights": str(weights), **common}.items() if key in known}
    hardware = Hardware(workers=0, precision="32-true")
    train(
        variant.method,
        data=data,
        preset=variant.preset,
        out=out / name,
        hardware=hardware,
        **{**shared, **variant.options},
    )


def measured(data: Path, out: Path, images: int, repetitions: int) -> list[dict[str, Any]]:
    """One row per finished variant, timed in turns on the first images to be scored, proposals at hand."""
    names = [name for name in VARIANTS if (out / name / "results.json").is_file()]
    models = {name: load_model(out / name) for name in names}
    dataset = labelwise.open(data)
    samples = [dataset.read(id) for id in dataset.ids("val")[:images]]
    torch.set_num_threads(1)
    calls = {
        name: (lambda model=model: [detected(model, sample) for sample in samples]) for name, model in models.items()
    }
    times = medians_ms(calls, repetitions)
    search = _search_ms([sample.image.numpy().transpose(1, 2, 0) for sample in samples])
    rows = []
    for name in names:
        results = json.loads((out / name / "results.json").read_text())
        rows.append(
            {
                "name": name,
                "parameters": count_parameters(models[name].network),
                "milliseconds": times[name] / len(samples),
                "proposal_milliseconds": search if isinstance(models[name], ProposalMethod) else 0.0,
                **{key: results.get(key) for key in ("map", "map_voc07", "map_area", "map_70", "coco_ap", "ap")},
                **{key: results[key] for key in ("seconds", "peak_memory_mb", "images", "steps")},
                "proposals": results.get("proposals", {}),
            }
        )
    return rows


def _search_ms(images: Sequence[np.ndarray]) -> float:
    selective_search(images[0], "fast", np.random.default_rng(0))
    began = time.perf_counter()
    for image in images:
        selective_search(image, "fast", np.random.default_rng(0))
    return 1000 * (time.perf_counter() - began) / len(images)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown, the best mean average precision first."""
    head = "mAP, 11 points | mAP, area | mAP at 0.7 | COCO AP | parameters | ms per image | + proposals | training, s"
    lines = [f"| | {head} |", "|---|" + "--:|" * 8]
    for row in sorted(rows, key=lambda row: -row["map_voc07"]):
        lines.append(
            f"| `{row['name']}` | {row['map_voc07']:.1f} | {row['map_area']:.1f} | {row['map_70']:.1f} "
            f"| {row['coco_ap']:.1f} | {row['parameters'] / 1e6:.2f} M | {row['milliseconds']:.0f} "
            f"| {row['proposal_milliseconds']:.0f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the variants, or time those that are trained and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, help="ImageNet weights of mobilenetv2_100")
    parser.add_argument("--common", nargs="*", default=[], help="options for every method that has them, name=value")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--images", type=int, default=8, help="images that are timed")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.train:
        common = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in arguments.common)}
        for name in arguments.only:
            train_variant(name, arguments.data, arguments.out, arguments.weights, common)
        return
    rows = measured(arguments.data, arguments.out, arguments.images, arguments.repetitions)
    atomic_write(arguments.out / "detectors.json", json.dumps(rows, indent=2))
    atomic_write(arguments.out / "detectors.md", table(rows))
    dataset = labelwise.open(arguments.data)
    models = {row["name"]: load_model(arguments.out / row["name"]) for row in rows}
    write_prediction_sheet(models, dataset, dataset.ids("val"), arguments.out / "detectors.png")
    print(table(rows))


if __name__ == "__main__":
    main()
