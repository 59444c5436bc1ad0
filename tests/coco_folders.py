"""Small folders in the layouts of COCO and YOLO, written without the package's own writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 20, 16
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
"""Neither in order nor contiguous: cat is class 1, dog class 2."""


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    """Save a noisy picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """A polygon around a box."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def annotation(image: int, category: int, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    """An annotation whose outline is its box."""
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "iscrowd": 0,
        "segmentation": [rectangle(*box)],
        **more,
    }


def write_json(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], **more: Any) -> None:
    """Write a json file of COCO; annotations without an id get one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)]
    content = {"info": {"year": 2017}, "images": images, "annotations": numbered, "categories": CATEGORIES, **more}
    path.write_text(json.dumps(content))


def listed(name: str, number: int) -> dict[str, Any]:
    """An entry of `images`."""
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}


def coco_folder(root: Path) -> Path:
    """Three training images: a small cat on a large dog and a crowd of cats, nothing, unlabelled; one of validation."""
    for name in ("train2017/a.jpg", "train2017/b.jpg", "train2017/c.jpg", "val2017/d.jpg"):
        save_image(root / name)
    crowd = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 18, HEIGHT * 2]}
    objects = [
        annotation(41, 3, (2, 3, 4, 5)),
        annotation(41, 7, (1, 1, 10, 12)),
        annotation(41, 3, (18, 0, 2, 16), iscrowd=1, segmentation=crowd),
    ]
    write_json(root / "annotations/instances_train2017.json", [listed("b.jpg", 40), listed("a.jpg", 41)], objects)
    write_json(
        root / "annotations/instances_val2017.json", [listed("d.jpg", 9)], [annotation(9, 7, (0.5, 1.25, 5.5, 6))]
    )
    captions = [{"image_id": 41, "caption": "A cat on\na dog. "}, {"image_id": 41, "caption": "Pets."}]
    write_json(root / "annotations/captions_train2017.json", [listed("b.jpg", 40), listed("a.jpg", 41)], captions)
    return root


def yolo_folder(root: Path, lines: str = "0 0.5 0.5 0.2 0.25\n1 0.1 0.125 0.2 0.25\n") -> Path:
    """Three images, of which the first has the objects given, the second none, and the third no text file."""
    for name in ("a", "b", "c"):
        save_image(root / f"images/train/{name}.jpg")
    save_image(root / "images/val/d.jpg")
    for name, text in (("train/a", lines), ("train/b", ""), ("val/d", "1 0.5 0.5 1 1\n")):
        path = root / f"labels/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "data.yaml").write_text("path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root
