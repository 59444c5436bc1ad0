"""Every segmenter on the same real images: mIoU, parameters, multiply-adds, milliseconds, as a table and a picture.

    python benchmarks/segmenters.py DATA OUT --train --weights FILE [--common crop=161 steps=240 ...] [--only NAME ...]
    python benchmarks/segmenters.py DATA OUT

With `--train` each variant is trained by its preset `small` on all masks and scored; a variant that is finished is not
trained again, so that the work can be done in several calls. Without it the finished ones are timed, in turns and in
one process, and `OUT/segmenters.json`, `OUT/segmenters.md` and `OUT/segmenters.png` are written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
import yaml

import labelwise
from labelwise.configuration import option_names
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions
from labelwise.methods import load
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.saved import load_model
from labelwise.verbs.evaluate import evaluate
from labelwise.verbs.train import train
from timing import medians_ms


class Variant(NamedTuple):
    """A method with some of its options, and the ways in which the trained model is scored."""

    method: str
    options: Mapping[str, Any] = {}
    inferences: Sequence[Mapping[str, Any]] = ()


FROM_RANDOM = {"backbone_weights": "none", "freeze_norms": False}
AVERAGED: tuple[Mapping[str, Any], ...] = ({"flip": True}, {"scales": (0.75, 1.0, 1.25), "flip": True})
REFINED: tuple[Mapping[str, Any], ...] = ({"crf": "deeplab_v1"}, {"crf": "deeplab_v2"})
VARIANTS = {
    "supervised": Variant("supervised", inferences=AVERAGED),
    "fcn-32s": Variant("fcn", {"stride": 32}),
    "fcn-8s": Variant("fcn", inferences=REFINED),
    "deeplab_v1": Variant("deeplab_v1", inferences=REFINED),
    "deeplab_v2": Variant("deeplab_v2", inferences=REFINED),
    "deeplab_v2-one-rate": Variant("deeplab_v2", {"head": "largefov"}),
    "deeplab_v3": Variant("deeplab_v3", inferences=({"output_stride": 8}, *AVERAGED)),
    "deeplab_v3plus": Variant("deeplab_v3plus", inferences=({"output_stride": 8}, *AVERAGED, *REFINED)),
    "p2at": Variant("p2at", inferences=AVERAGED),
    "p2at-no-attention": Variant("p2at", {"attention": False}),
    "p2at-random": Variant("p2at", FROM_RANDOM),
    "p2at-fd_mobilenet": Variant("p2at", {"backbone": "fd_mobilenet", **FROM_RANDOM}),
    "p2at-mobilenet_v1_050": Variant("p2at", {"backbone": "mobilenet_v1_050", **FROM_RANDOM}),
    "deeplab_v3plus-fd_mobilenet": Variant("deeplab_v3plus", {"backbone": "fd_mobilenet", **FROM_RANDOM}),
}
"""All others have MobileNetV2 with ImageNet weights; FD-MobileNet has none, so its peers start from random ones too."""


def train_variant(name: str, data: Path, out: Path, weights: Path, common: Mapping[str, Any]) -> None:
    """Train one variant and score it in each of its ways; what is done is not done again."""
    variant = VARIANTS[name]
    known = option_names(load(variant.method))
    shared = {key: value for key, value in {"backbone_weights": str(weights), **common}.items() if key in known}
    hardware = Hardware(workers=0, precision="32-true")
    run = out / name
    train(variant.method, data=data, preset="small", out=run, hardware=hardware, **{**shared, **variant.options})
    for inference in variant.inferences:
        options = InferenceOptions(**inference)
        path = run / f"score {str(options).replace('/', '-')}.json"
        if not path.is_file():
            atomic_write(path, json.dumps(evaluate(run, data=data, inference=options, hardware=hardware)))


def measured(data: Path, out: Path, repetitions: int) -> list[dict[str, Any]]:
    """One row per finished variant, timed in turns on the first image to be scored."""
    names = [name for name in VARIANTS if (out / name / "results.json").is_file()]
    models = {name: load_model(out / name) for name in names}
    dataset = labelwise.open(data)
    image = dataset.read(dataset.ids("val")[0]).image.as_subclass(torch.Tensor)[None]
    torch.set_num_threads(1)
    with torch.no_grad():
        calls = {name: (lambda model=model: model.predict(image)) for name, model in models.items()}
        times = medians_ms(calls, repetitions)
    rows = []
    for name in names:
        results = json.loads((out / name / "results.json").read_text())
        rows.append(
            {
                "name": name,
                "method": VARIANTS[name].method,
                "parameters": count_parameters(models[name].network),
                "macs": count_macs(models[name].network, image.shape[-2:]),
                "milliseconds": times[name],
                **{key: results.get(key) for key in ("miou", "pixel_accuracy", "boundary_iou", "trimap_miou")},
                **{key: results[key] for key in ("seconds", "peak_memory_mb", "images", "steps")},
                "inferences": _scores(out / name),
            }
        )
    return rows


def _scores(run: Path) -> dict[str, float]:
    return {path.stem.removeprefix("score "): json.loads(path.read_text())["miou"] for path in run.glob("score *.json")}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown, the best mIoU first; below it the same models scored in other ways."""
    head = "mIoU | boundary IoU | parameters | GMACs | ms per image | training, s | peak memory"
    lines = [f"| | {head} |", "|---|" + "--:|" * 7]
    for row in sorted(rows, key=lambda row: -row["miou"]):
        lines.append(
            f"| `{row['name']}` | {row['miou']:.1f} | {row['boundary_iou']:.1f} | {row['parameters'] / 1e6:.2f} M "
            f"| {row['macs'] / 1e9:.2f} | {row['milliseconds']:.0f} | {row['seconds']:.0f} "
            f"| {row['peak_memory_mb'] / 1000:.1f} GB |"
        )
    lines += ["", "| model | scored with | mIoU | change |", "|---|---|--:|--:|"]
    for row in rows:
        lines += [
            f"| `{row['name']}` | {way} | {miou:.1f} | {miou - row['miou']:+.1f} |"
            for way, miou in sorted(row["inferences"].items())
        ]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Mean IoU over milliseconds, one labelled point per variant, and its best score in other ways above it."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for row in rows:
        color = "#d55e00" if "fd_mobilenet" in row["name"] else "#0072b2"
        place = row["milliseconds"], row["miou"]
        best = max(row["inferences"].values(), default=0.0)
        if best > row["miou"]:
            axes.plot([place[0]] * 2, [row["miou"], best], color=color, linewidth=0.8, alpha=0.6)
            axes.scatter(place[0], best, s=30, facecolors="white", edgecolors=color, zorder=3)
        axes.scatter(*place, s=36, color=color, zorder=4)
        # A neighbour on the right would lie under the name.
        crowded = any(0 < row["milliseconds"] - other["milliseconds"] < 20 for other in _beside(row, rows))
        offset, align = ((6, -3), "left") if crowded or not _beside(row, rows) else ((-6, -3), "right")
        axes.annotate(row["name"], place, offset, textcoords="offset points", fontsize=8, ha=align)
    axes.set(xlabel="milliseconds per image (one pass), one CPU thread", ylabel="mIoU (%)", title=title)
    axes.grid(alpha=0.4)
    axes.margins(x=0.2, y=0.1)
    axes.text(
        0.99,
        0.02,
        "filled: one pass over the whole image; hollow: the best other way of scoring",
        transform=axes.transAxes,
        ha="right",
        fontsize=7.5,
        color="#5b636d",
    )
    figure.savefig(path, dpi=110)


def _beside(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The other points at about the same place of the picture."""
    near = [other for other in rows if other is not row and abs(other["milliseconds"] - row["milliseconds"]) < 20]
    return [other for other in near if abs(other["miou"] - row["miou"]) < 3]


def main() -> None:
    """Train the variants, or time those that are trained and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, help="ImageNet weights of mobilenetv2_100")
    parser.add_argument("--common", nargs="*", default=[], help="options for every method that has them, name=value")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--title", default="mIoU against time")
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    if arguments.train:
        common = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in arguments.common)}
        for name in arguments.only:
            train_variant(name, arguments.data, arguments.out, arguments.weights, common)
        return
    rows = measured(arguments.data, arguments.out, arguments.repetitions)
    atomic_write(arguments.out / "segmenters.json", json.dumps(rows, indent=2))
    atomic_write(arguments.out / "segmenters.md", table(rows))
    draw(rows, arguments.out / "segmenters.png", arguments.title)
    print(table(rows))


if __name__ == "__main__":
    main()
