"""`labelwise predict`: a trained model on images; and `labelwise annotate`: its predictions as a new data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from labelwise import datasets
from labelwise.datasets.images import read_image, write_mask
from labelwise.datasets.voc import VOC
from labelwise.errors import UserError
from labelwise.files import atomic_file
from labelwise.hardware import Hardware
from labelwise.method import Method
from labelwise.progress import watched
from labelwise.reports.pictures import overlay
from labelwise.saved import load_model
from labelwise.scoring import predicted_mask
from labelwise.verbs.preparation import broken_ids

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def predict(run: Path, images: Sequence[Path], *, out: Path, hardware: Hardware | None = None) -> dict[str, Any]:
    """Predict images and write a palette PNG (class numbers) and an overlay for each.

    Args:
        run: the run's folder.
        images: image files, or folders of them.
        out: the folder to write `<name>.png` and `<name>.overlay.jpg` into.
        hardware: where to compute.

    Returns:
        `images`: for each file its `mask`, `overlay` and the share of each predicted class in percent.

    Raises:
        UserError: no such run or image, or two images of one name.
    """
    method = _placed(load_model(Path(run)), hardware or Hardware())
    files = _image_files(images)
    pictures = {path.stem: read_image(path) for path in files[:1]}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for path in watched(files, "predicting", len(files)):
        image = pictures.pop(path.stem, None)
        image = read_image(path) if image is None else image
        entries.append({"image": str(path)} | _write_prediction(method, image, out, path.stem))
    return {"images": entries}


def annotate(
    run: Path,
    *,
    data: Path,
    out: Path,
    split: str = "train",
    skip_broken: bool = False,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Predict a split and write images and predicted masks as a new data set in VOC layout.

    Args:
        run: the run's folder.
        data: the data set's folder; its labels are not read.
        out: the new data set's folder, which must be empty or not exist.
        split: the split to annotate; the new data set has a split of the same name.
        skip_broken: leave out images that cannot be read instead of stopping.
        hardware: where to compute.

    Returns:
        `images` written, `skipped` and the folder `out`.

    Raises:
        UserError: no such run, data set or split, or `out` holds something.
    """
    method = _placed(load_model(Path(run)), hardware or Hardware())
    dataset = datasets.open(Path(data))
    ids = dataset.ids(split)
    broken = broken_ids(dataset, dict.fromkeys(ids, frozenset()), skip_broken)
    kept = [id for id in ids if id not in broken]
    annotated = VOC.create(Path(out), method.classes, durable=False)
    for id in watched(kept, "annotating", len(kept)):
        sample = dataset.read(id)
        mask = torch.from_numpy(predicted_mask(method, sample.image))
        annotated.write(replace(sample, mask=tv_tensors.Mask(mask)))
    annotated.write_split(split, kept)
    return {"images": len(kept), "skipped": sorted(broken), "out": str(out)}


def _placed(method: Method, hardware: Hardware) -> Method:
    return method.to("cuda") if hardware.on_gpu else method


def _image_files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, images):
        if not path.exists():
            raise UserError(f"{path}: no such image or folder")
        found = sorted(item for item in path.iterdir() if item.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path}: holds no image ({', '.join(sorted(_SUFFIXES))})")
        files += found
    stems = [path.stem for path in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise UserError(f"two images are named '{twice}' and would overwrite each other; predict them into two folders")
    return files


def _write_prediction(method: Method, image: tv_tensors.Image, out: Path, name: str) -> dict[str, Any]:
    classes = method.classes
    mask = predicted_mask(method, image)
    mask_file, overlay_file = out / f"{name}.png", out / f"{name}.overlay.jpg"
    write_mask(mask_file, torch.from_numpy(mask), classes)
    with atomic_file(overlay_file) as file:
        overlay(image.numpy(), mask, classes.palette, background=classes.background).save(
            file, format="JPEG", quality=90
        )
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    shares = {classes.names[number]: round(100 * counts[number] / mask.size, 2) for number in counts.nonzero()[0]}
    return {"mask": str(mask_file), "overlay": str(overlay_file), "classes": shares}
