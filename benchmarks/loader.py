"""Images per second of the three-view pipeline (weak + two strong views, 321 px) against the same in Pillow.

The peer is written in the style of the published code (UniMatch): every step on Pillow images, torchvision's first
transforms, each view turned into a normalised float tensor. Ours hands out uint8 and normalises in the training step;
the normalisation is counted here. Decoding is left out of both. Agreement first: statistics of the crops and views
have to agree within four standard errors, then the ratio counts. Times are processor time of one thread.

Run: ``python benchmarks/loader.py``; with ``LABELWISE_DATA`` set the images are real ones.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from labelwise.datasets.images import read_image
from labelwise.samples import Sample
from labelwise.transforms import RandomScaleCrop, WeakStrongView, photometric
from timing import medians_ms, print_table

CROP, DRAWS, PASSES = 321, 400, 9
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TARGET = 1.3
Views = tuple[Tensor, Tensor, Tensor, Tensor]


def pillow_pipeline(image: Image.Image, mask: Image.Image) -> Views:
    """Weak view and two strong views, [3, S, S] float each, and the padding [S, S]."""
    width, height = image.size
    long = random.randint(int(max(height, width) * 0.5), int(max(height, width) * 2.0))
    if height > width:
        new_height, new_width = long, int(1.0 * width * long / height + 0.5)
    else:
        new_width, new_height = long, int(1.0 * height * long / width + 0.5)
    image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    mask = mask.resize((new_width, new_height), Image.Resampling.NEAREST)
    border = (0, 0, max(CROP - new_width, 0), max(CROP - new_height, 0))
    image, mask = ImageOps.expand(image, border=border, fill=0), ImageOps.expand(mask, border=border, fill=254)
    x, y = random.randint(0, image.size[0] - CROP), random.randint(0, image.size[1] - CROP)
    image, mask = image.crop((x, y, x + CROP, y + CROP)), mask.crop((x, y, x + CROP, y + CROP))
    if random.random() < 0.5:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    to_tensor = v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, DEVIATION)])
    views = [to_tensor(view) for view in (image, _pillow_strong(image.copy()), _pillow_strong(image.copy()))]
    padding = torch.from_numpy(np.array(mask)).long() == 254
    return views[0], views[1], views[2], padding


def _pillow_strong(image: Image.Image) -> Image.Image:
    if random.random() < 0.8:
        image = v1.ColorJitter(0.5, 0.5, 0.5, 0.25)(image)
    image = v1.RandomGrayscale(p=0.2)(image)
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(radius=np.random.uniform(0.1, 2.0)))
    return image


class OurPipeline:
    """The same from labelwise, with the normalisation that the training step does."""

    def __init__(self) -> None:
        """Build the views."""
        geometric = v2.Compose([RandomScaleCrop(CROP), v2.RandomHorizontalFlip()])
        self.view = WeakStrongView(geometric, photometric(), views=2)
        self.mean = torch.tensor(MEAN).view(3, 1, 1) * 255
        self.scale = 1 / (torch.tensor(DEVIATION).view(3, 1, 1) * 255)

    def __call__(self, image: Tensor, mask: Tensor) -> Views:
        """Weak view, two strong views and the padding, as `pillow_pipeline`."""
        views = self.view(Sample(id="", image=tv_tensors.Image(image), mask=tv_tensors.Mask(mask)))
        assert views.padding is not None
        weak, first, second = (
            view.float().sub_(self.mean).mul_(self.scale)
            for view in (views.sample.image.as_subclass(Tensor), *views.strong)
        )
        return weak, first, second, views.padding


def pictures() -> tuple[list[Image.Image], str]:
    """20 images of 375x500, real ones if there are any."""
    folder = Path(os.environ.get("LABELWISE_DATA", "/nonexistent")) / "VOCdevkit/VOC2012/JPEGImages"
    files = sorted(folder.glob("*.jpg"))[:20]
    if files:
        return [Image.open(file).convert("RGB").resize((500, 375)) for file in files], "real images"
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (20, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((500, 375)) for pixels in coarse], "synthetic images"


def as_read(images: list[Image.Image]) -> list[Tensor]:
    """The images as the data sets' reader hands them out."""
    with tempfile.TemporaryDirectory() as folder:
        tensors = []
        for number, image in enumerate(images):
            image.save(Path(folder) / f"{number}.png", compress_level=1)
            tensors.append(read_image(Path(folder) / f"{number}.png"))
        return [tensor.as_subclass(Tensor) for tensor in tensors]


def statistics(views: Views) -> list[float]:
    """What both pipelines have to agree in, over many draws."""
    weak, first, second, padding = views
    sharpness = first.diff(dim=2).abs().mean() / (weak.diff(dim=2).abs().mean() + 1e-6)
    saturation = (first.amax(0) - first.amin(0)).mean()
    return [
        padding.float().mean().item(),
        weak.mean().item(),
        weak.std().item(),
        weak.diff(dim=2).abs().mean().item(),
        first.mean().item(),
        first.std().item(),
        (first - weak).abs().mean().item(),
        (first - second).abs().mean().item(),
        saturation.item(),
        sharpness.item(),
    ]


NAMES = (
    "padding share",
    "weak mean",
    "weak deviation",
    "weak gradient",
    "strong mean",
    "strong deviation",
    "|strong - weak|",
    "|strong 1 - strong 2|",
    "strong channel spread",
    "strong / weak gradient",
)


def agree(peer: Callable[[int], Views], ours: Callable[[int], Views]) -> bool:
    """Print the statistics of both and whether they agree."""
    table = [np.array([statistics(run(draw)) for draw in range(DRAWS)]) for run in (peer, ours)]
    means = [values.mean(0) for values in table]
    errors = np.sqrt(sum(values.var(0) / DRAWS for values in table))
    apart = np.abs(means[0] - means[1]) / errors
    rows = [
        (name, f"{a:.4f}", f"{b:.4f}", f"{distance:.1f}")
        for name, a, b, distance in zip(NAMES, *means, apart, strict=True)
    ]
    print_table("agreement", ("mean of", "Pillow", "labelwise", "standard errors apart"), rows)
    return bool((apart < 4).all())


def main() -> int:
    """Compare the two pipelines."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    images, kind = pictures()
    mask = np.random.default_rng(0).integers(0, 21, (375, 500), dtype=np.uint8)
    pillow_mask, tensor_mask = Image.fromarray(mask), torch.from_numpy(mask)
    tensors = as_read(images)
    pipeline = OurPipeline()

    def peer(draw: int) -> Views:
        return pillow_pipeline(images[draw % len(images)], pillow_mask)

    def ours(draw: int) -> Views:
        return pipeline(tensors[draw % len(tensors)], tensor_mask)

    agreeing = agree(peer, ours)
    passes = {
        "Pillow": lambda: [peer(draw) for draw in range(20)],
        "labelwise": lambda: [ours(draw) for draw in range(20)],
    }
    rates = {name: 20_000 / taken for name, taken in medians_ms(passes, PASSES, time.process_time).items()}
    ratio = rates["labelwise"] / rates["Pillow"]
    print_table(
        f"{kind}, three {CROP} px views",
        ("pipeline", "images/s", "ratio"),
        [("Pillow", f"{rates['Pillow']:.0f}", "1.00"), ("labelwise", f"{rates['labelwise']:.0f}", f"{ratio:.2f}")],
    )
    print(f"statistics {'agree' if agreeing else 'DIFFER'}; {ratio:.2f} times as fast, target {TARGET}")
    return 0 if agreeing and ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
