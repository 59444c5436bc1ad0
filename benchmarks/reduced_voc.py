"""A reduced copy of a VOC folder, on which several methods can be trained on a CPU within an hour.

    python benchmarks/reduced_voc.py VOC2012 REDUCED [--long 200]

Images are resized to this long side (anti-aliased), masks (nearest) and boxes likewise; the splits stay.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

import labelwise
from labelwise.datasets.voc import VOC
from labelwise.progress import watched
from labelwise.samples import Kind, Sample


def reduced(sample: Sample, long: int) -> Sample:
    """The sample with its image, mask and boxes at this long side."""
    height, width = sample.image.shape[-2:]
    size = [max(1, round(side * long / max(height, width))) for side in (height, width)]
    image = tv_tensors.Image(functional.resize_image(sample.image.as_subclass(Tensor), size, antialias=True))
    assert sample.mask is not None
    mask = functional.resize_mask(sample.mask.as_subclass(Tensor)[None], size)[0]
    labels: dict[str, Any] = {"mask": tv_tensors.Mask(mask)}
    if sample.boxes is not None:
        labels["boxes"] = functional.resize(sample.boxes, size)
    return replace(sample, image=image, **labels)


def main() -> None:
    """Read, reduce, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--long", type=int, default=200)
    arguments = parser.parse_args()
    source = labelwise.open(arguments.source)
    target = VOC.create(arguments.target, source.classes)
    for split in ("train", "val"):
        ids = source.ids(split)
        for id in watched(ids, split):
            target.write(reduced(source.read(id, {Kind.MASKS, Kind.BOXES}), arguments.long))
        target.write_split(split, ids)


if __name__ == "__main__":
    main()
