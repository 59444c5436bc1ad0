"""The validated index of 5,000 VOC annotations against parsing them in every epoch.

Run: ``python benchmarks/index.py [COUNT]``. Peers: our own reader, and `VOCDetection.parse_voc_xml` of torchvision over
`xml.etree`, both once per file and epoch. Agreement comes first: all must find the same boxes and names. Times are CPU
seconds of the whole process, the best of several repetitions; the files are in the page cache.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import numpy as np
import torch
import torchvision
from PIL import Image

from labelwise.datasets.index import Index
from labelwise.datasets.voc import VOC, VOC_NAMES
from labelwise.datasets.voc_xml import format_annotation, read_annotation
from labelwise.samples import Kind

Objects = list[tuple[str, list[float]]]
Result = TypeVar("Result")


def main(count: int) -> None:
    """Write the files, compare what all readers find, and print their times."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2012"
        objects = write_files(root, count)
        wanted = {path.stem: frozenset({Kind.BOXES}) for path in sorted((root / "Annotations").iterdir())}
        cache = Path(folder) / "cache"

        # A run asks for ids and classes before it needs the index, so that the data set is open already.
        data = VOC(root)
        ids = {*data.ids("train"), *data.ids("val")}
        assert ids == wanted.keys() and len(data.classes) == len(VOC_NAMES)
        cold, index = timed(lambda: Index.build(data, wanted, cache), 1)
        warm, index = timed(lambda: Index.build(data, wanted, cache), 15)
        epoch, ours = timed(lambda: {id: index.boxes(id) for id in index.ids}, 5)
        parse, parsed = timed(lambda: {id: parse_ours(root, id) for id in wanted}, 3)
        peer, peers = timed(lambda: {id: parse_torchvision(root, id) for id in wanted}, 3)

        indexed = {
            id: [(VOC_NAMES[label], corners) for corners, label in zip(boxes.tolist(), labels.tolist(), strict=True)]
            for id, (boxes, labels, _) in ours.items()
        }
        agree = indexed == parsed == peers and not index.problems
        print(f"{count} files, {objects} objects; torchvision {torchvision.__version__}, numpy {np.__version__}")
        print(f"agreement: {'exact' if agree else 'NONE'}")
        print(f"{'':32}{'CPU s':>9}{'torchvision / this':>20}{'our parser / this':>19}")
        for name, seconds in (
            ("torchvision, each epoch", peer),
            ("our parser, each epoch", parse),
            ("cold index (also decodes images)", cold),
            ("warm start of the index", warm),
            ("boxes from the index, each epoch", epoch),
            ("a run of 10 epochs, per epoch", warm / 10 + epoch),
        ):
            print(f"{name:32}{seconds:9.4f}{peer / seconds:20.1f}{parse / seconds:19.1f}")
        if not agree or peer / (warm / 10 + epoch) < 20:
            sys.exit("the index disagrees, or a run with a warm index is less than 20 times faster than parsing")


def write_files(root: Path, count: int) -> int:
    """Write annotations of 1 to 8 objects and one tiny image, linked under every name; the number of objects."""
    draw = random.Random(0)
    for name in ("JPEGImages", "Annotations"):
        (root / name).mkdir(parents=True)
    image = root / "image.jpg"
    Image.new("RGB", (500, 375)).resize((50, 38)).save(image)
    total = 0
    for number in range(count):
        id = f"{number:06}"
        corners = [
            [draw.randrange(24), draw.randrange(18), draw.randrange(25, 50), draw.randrange(19, 38)]
            for _ in range(draw.randint(1, 8))
        ]
        names = draw.choices(VOC_NAMES[1:], k=len(corners))
        content = format_annotation(
            f"{id}.jpg", (38, 50), names, np.array(corners), np.zeros(len(corners), bool), segmented=False
        )
        (root / f"Annotations/{id}.xml").write_bytes(content)
        (root / f"JPEGImages/{id}.jpg").hardlink_to(image)
        total += len(corners)
    return total


def parse_ours(root: Path, id: str) -> Objects:
    """The objects of one file by our reader."""
    annotation = read_annotation(root / f"Annotations/{id}.xml")
    return list(zip(annotation.names, annotation.boxes_within(38, 50).tolist(), strict=True))


def parse_torchvision(root: Path, id: str) -> Objects:
    """The objects of one file by torchvision, its strings turned into the same numbers."""
    tree = ElementTree.parse(root / f"Annotations/{id}.xml").getroot()
    parsed = torchvision.datasets.VOCDetection.parse_voc_xml(tree)
    objects = []
    for found in parsed["annotation"]["object"]:
        xmin, ymin, xmax, ymax = (float(found["bndbox"][corner]) for corner in ("xmin", "ymin", "xmax", "ymax"))
        objects.append((found["name"], [xmin - 1, ymin - 1, xmax, ymax]))
    return objects


def timed(work: Callable[[], Result], repetitions: int) -> tuple[float, Result]:
    """The least CPU seconds of several repetitions, and the last result."""
    best = float("inf")
    for _ in range(repetitions):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
