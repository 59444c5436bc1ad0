"""ESE-Seg: what shapes cost beside a plain detector, and how well few numbers reconstruct outlines.

    python benchmarks/ese_seg.py [--repetitions 5] [--threads 1]

Cost. YOLOv3 with random weights on one photograph-sized image: from pixels to boxes without shapes, to boxes and
outlines, and to boxes and masks. Every cell scores alike at the beginning, so that the most detections are kept, which
is the dearest case. The detector takes part with the same inputs, and all forms take turns in one process.

Reconstruction. Mean IoU of shapes and what so many numbers make of them: Chebyshev coefficients, monomial ones of the
same polynomial, and equally spaced radii; on smooth random outlines also with errors of 10 % of each number's own
spread. Real masks are those of COCO in the folder that LABELWISE_DATA names; left out where there are none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from skimage.draw import polygon2mask
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes import ShapesOptions
from labelwise.datasets.shapes.scene import scene
from labelwise.methods.instances.ese_seg import CONSIDERED, ESESeg
from labelwise.models.boxes import clip_boxes, scale_boxes
from labelwise.models.darknet import create_darknet
from labelwise.models.shape_codec import (
    Basis,
    decode_shape,
    describe_shapes,
    diagonals,
    encode_shape,
    polygons_to_masks,
    series_matrices,
)
from labelwise.models.yolo_v3 import create_yolo, decode_predictions, surest
from labelwise.samples import Sample
from labelwise.tasks.instances import boxes_of_instances
from timing import medians_ms, print_table

HEIGHT, WIDTH = 375, 500
CLASSES = Classes(tuple(f"class {number}" for number in range(21)))
GATE = 1.10
BASES: tuple[Basis, ...] = ("chebyshev", "monomial", "polar")
COUNTS = (8, 10, 18, 20)


def forms(backbone: str) -> dict[str, Callable[[], object]]:
    """One image by the plain detector, and with outlines, and with masks."""
    torch.manual_seed(0)
    ese_seg = ESESeg(ESESeg.Config(backbone=backbone), CLASSES, training=False).eval()
    plain = create_yolo(create_darknet(backbone, 32, None), backbone, len(CLASSES.objects), 0).eval()
    image = tv_tensors.Image(torch.randint(256, (3, HEIGHT, WIDTH), dtype=torch.uint8))
    config, square = ese_seg.config, (ese_seg.config.short_side, ese_seg.config.short_side)

    @torch.no_grad()
    def boxes() -> Tensor:
        predictions, grids = plain.split(plain(ese_seg.resized(image))), plain.grids(square)
        found = decode_predictions(predictions.offsets[0], grids)
        scores = predictions.objectness[0].sigmoid()[:, None] * predictions.classes[0].sigmoid()
        chosen, columns, _ = surest(
            found, scores, config.score_threshold, config.nms_threshold, CONSIDERED, config.max_detections
        )
        ese_seg.class_numbers(columns)
        return clip_boxes(scale_boxes(found[chosen], square, (HEIGHT, WIDTH)), (HEIGHT, WIDTH))

    @torch.no_grad()
    def masks() -> object:
        return ese_seg.detect(Sample(id="", image=image))

    @torch.no_grad()
    def outlines() -> object:
        return ese_seg.find(image)

    return {"boxes": boxes, "outlines": outlines, "masks": masks}


def cost(repetitions: int) -> bool:
    """Print the cost of shapes; whether outlines stay within the gate."""
    rows, met = [], True
    for backbone in ("darknet_tiny", "darknet53"):
        taken = medians_ms(forms(backbone), repetitions, clock=time.process_time)
        ratios = [taken[name] / taken["boxes"] for name in ("outlines", "masks")]
        met = met and ratios[0] <= GATE
        rows.append([backbone, *(f"{taken[name]:.0f}" for name in taken), *(f"{ratio:.3f}" for ratio in ratios)])
    columns = ["416 x 416", "boxes, ms", "outlines, ms", "masks, ms", "outlines / boxes", "masks / boxes"]
    print_table("One image, processor time, 100 objects kept", columns, rows)
    return met


def stars(count: int) -> Tensor:
    """Radii [count, 360] of smooth random outlines."""
    rng = np.random.default_rng(0)
    orders, turn = np.arange(1, 7), np.arange(360) * np.pi / 180
    strength = rng.normal(size=(count, 6)) * 0.35 / orders
    waves = np.cos(orders[:, None] * turn + rng.uniform(0, 2 * np.pi, (count, 6, 1)))
    return torch.from_numpy(0.3 * np.exp(np.einsum("nk,nka->na", strength, waves)))


def star_overlap(radii: Tensor, basis: Basis, count: int, noise: float) -> float:
    """Mean IoU of outlines and their reconstruction, exactly: both are radii around one centre."""
    series, fit = series_matrices(basis, count)
    numbers = radii @ fit.T
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(numbers.shape, generator=generator, dtype=numbers.dtype)
    found = ((numbers + noise * numbers.std(0) * errors) @ series.T).clamp(min=0)
    common, either = torch.minimum(radii, found).square().sum(1), torch.maximum(radii, found).square().sum(1)
    return 100 * float((common / either).mean())


def mask_overlaps(masks: list[Tensor], counts: tuple[int, ...]) -> dict[tuple[Basis, int], float]:
    """Mean pixel IoU of masks [H, W] and their reconstructions."""
    sums = {(basis, count): 0.0 for basis in BASES for count in counts}
    matrices = {key: series_matrices(*key) for key in sums}
    for mask in masks:
        box = boxes_of_instances(mask[None]).double()
        centers, radii = map(torch.from_numpy, describe_shapes(mask[None].numpy()))
        for key, (series, fit) in matrices.items():
            outline = decode_shape(encode_shape(radii, diagonals(box), fit), centers, box, series)
            found = polygons_to_masks(outline, mask.shape)[0]
            sums[key] += float((found & mask).sum() / (found | mask).sum())
    return {key: 100 * total / len(masks) for key, total in sums.items()}


def scene_masks(count: int) -> list[Tensor]:
    """The objects of synthetic scenes."""
    samples = [scene(ShapesOptions(size=192), "val", number) for number in range(count)]
    return [mask for sample in samples if sample.instances is not None for mask in sample.instances.bool()]


def coco_masks(least: int = 400) -> list[Tensor]:
    """The objects of at least so many pixels in the COCO folder that LABELWISE_DATA names; none without it."""
    folder = Path(os.environ.get("LABELWISE_DATA", "")) / "coco_mini" / "annotations"
    masks: list[Tensor] = []
    for path in sorted(folder.glob("*instances*.json")) if os.environ.get("LABELWISE_DATA") else []:
        content = json.loads(path.read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for found in content["annotations"]:
            if isinstance(found["segmentation"], list) and found["area"] >= least:
                parts = [torch.tensor(part).view(1, -1, 2) for part in found["segmentation"]]
                masks.append(torch.cat([polygons_to_masks(part, sizes[found["image_id"]]) for part in parts]).any(0))
    return [mask for mask in masks if mask.any()]


def reconstruction() -> None:
    """Print what few numbers keep of shapes, and where Chebyshev keeps more than as many radii."""
    radii = stars(500)
    found = {
        (basis, count, noise): star_overlap(radii, basis, count, noise)
        for count in COUNTS
        for noise in (0.0, 0.1)
        for basis in BASES
    }
    rows = [[str(count), *(f"{value:.1f}" for key, value in found.items() if key[1] == count)] for count in COUNTS]
    columns = ["numbers", *BASES, *(f"{basis}, errors" for basis in BASES)]
    print_table("500 smooth outlines, mean IoU in percent", columns, rows)
    _tell({count: found["chebyshev", count, 0.0] - found["polar", count, 0.0] for count in COUNTS})
    for title, masks in (("objects of synthetic scenes", scene_masks(150)), ("objects of COCO", coco_masks())):
        if masks:
            means = mask_overlaps(masks, COUNTS)
            rows = [[str(count), *(f"{means[basis, count]:.1f}" for basis in BASES)] for count in COUNTS]
            print_table(f"{len(masks)} {title}, mean IoU in percent", ["numbers", *BASES], rows)
            _tell({count: means["chebyshev", count] - means["polar", count] for count in COUNTS})


def _tell(differences: dict[int, float]) -> None:
    words = ", ".join(f"{value:+.1f} with {count}" for count, value in differences.items())
    print(f"Chebyshev less as many radii: {words}")


def rasterization(repetitions: int) -> bool:
    """Print the time of 100 outlines as masks against scikit-image; whether they agree and ours is faster."""
    torch.manual_seed(0)
    centers = torch.rand(100, 1, 2) * torch.tensor([WIDTH, HEIGHT])
    angle = torch.arange(360) * torch.pi / 180
    outlines = centers + (60 * stars(100) / 0.3).float()[..., None] * torch.stack([angle.cos(), angle.sin()], -1)

    def peer() -> np.ndarray:
        return np.stack([polygon2mask((HEIGHT, WIDTH), each.numpy()[:, ::-1] - 0.5) for each in outlines])

    def ours() -> Tensor:
        return polygons_to_masks(outlines, (HEIGHT, WIDTH))

    different = int((ours().numpy() != peer()).sum())
    taken = medians_ms({"ours": ours, "peer": peer}, repetitions, clock=time.process_time)
    row = ["100 outlines", *(f"{value:.0f}" for value in taken.values()), f"{taken['peer'] / taken['ours']:.1f}"]
    print_table(
        "Masks", ["", "ours, ms", "scikit-image, ms", "times faster", "pixels that differ"], [[*row, str(different)]]
    )
    return different <= 100 and taken["ours"] < taken["peer"]


def encoding(repetitions: int) -> None:
    """Print the time of describing a shape."""
    masks = scene_masks(40)
    rows = []
    for scale in (1, 2):
        enlarged = np.stack([np.kron(mask.numpy(), np.ones((scale, scale), dtype=bool)) for mask in masks])
        taken = medians_ms({"": partial(describe_shapes, enlarged)}, repetitions, clock=time.process_time)[""]
        around = boxes_of_instances(torch.from_numpy(enlarged))
        side = float((around[:, 2:] - around[:, :2]).mean())
        rows.append([f"{side:.0f}", f"{taken / len(masks):.2f}"])
    print_table("Describing a shape", ["mean side, pixels", "ms"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    encoding(arguments.repetitions)
    reconstruction()
    met = all([rasterization(arguments.repetitions), cost(arguments.repetitions)])
    print(
        f"masks as scikit-image's and faster, outlines at most {GATE} times the detector: {'met' if met else 'NOT MET'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
