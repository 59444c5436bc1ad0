"""A synthetic data set on disk, in VOC's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from labelwise.datasets.base import Classes
from labelwise.datasets.images import write_mask
from labelwise.datasets.shapes.heads import HEAD_CLASSES, head_scene
from labelwise.datasets.shapes.noise import with_noise
from labelwise.datasets.shapes.options import ShapesOptions
from labelwise.datasets.shapes.patches import PATCH_CLASSES, patch_scene
from labelwise.datasets.shapes.rails import RAIL_CLASSES, rail_scene
from labelwise.datasets.shapes.rare import RARE_CLASSES, rare_scene
from labelwise.datasets.shapes.scene import CLASSES, scene
from labelwise.datasets.shapes.stripes import STRIPE_CLASSES, stripe_scene
from labelwise.datasets.voc import VOC
from labelwise.errors import UserError
from labelwise.files import atomic_write
from labelwise.samples import Sample

TRUE_MASKS = "SegmentationClassTrue"
"""The folder of the true train masks where those of `SegmentationClass` are spoiled."""

OPTIONS_FILE = "shapes.json"
"""The options that a data set was written with."""

_COUNTS = ("train", "val", "ood")

Scene = tuple[str, int]
"""Split and position in it."""

_KINDS: dict[str, tuple[Classes, Callable[[ShapesOptions, str, int], Sample]]] = {
    "objects": (CLASSES, scene),
    "textures": (PATCH_CLASSES, patch_scene),
    "stripes": (STRIPE_CLASSES, stripe_scene),
    "heads": (HEAD_CLASSES, head_scene),
    "rails": (RAIL_CLASSES, rail_scene),
    "rare": (RARE_CLASSES, rare_scene),
}
"""The classes of each kind of scenes, and what draws one."""


def classes_of(options: ShapesOptions) -> Classes:
    """The classes of the scenes that the options ask for."""
    return _KINDS[options.scenes][0]


def write_shapes(
    root: Path,
    options: ShapesOptions,
    progress: Callable[[Sequence[Scene]], Iterable[Scene]] = iter,
) -> None:
    """Write a synthetic data set; the same call on an unfinished one completes it, a call for more images extends it.

    With noise, the masks of the split train are the spoiled ones and `SegmentationClassTrue` holds the true ones;
    train images then have no instances, which would show the true outlines. Boxes, tags, points and captions are
    true in any case.

    Args:
        root: a new or empty folder, or one that was written with the same options but for the numbers of images.
        options: what to write.
        progress: wraps the scenes to be drawn, such as `rich.progress.track`.

    Raises:
        UserError: the folder holds something else.
        OSError: the disk is full or may not be written to; no file is left in part.
    """
    dataset = VOC.create(root, classes_of(options), durable=False)
    _claim(root, options)
    scenes = [(split, index) for split in _COUNTS for index in range(getattr(options, split))]
    ids: dict[str, list[str]] = {split: [] for split in _COUNTS}
    for split, index in progress(scenes):
        ids[split].append(_write_scene(dataset, options, split, index))
    for split, names in ids.items():
        if names or split != "ood":
            dataset.write_split(split, names)


def _write_scene(dataset: VOC, options: ShapesOptions, split: str, index: int) -> str:
    classes, draw = _KINDS[options.scenes]
    sample = draw(options, split, index)
    if split == "train" and options.noise != "none" and sample.mask is not None:
        (dataset.root / TRUE_MASKS).mkdir(exist_ok=True)
        write_mask(dataset.root / TRUE_MASKS / f"{sample.id}.png", sample.mask, classes)
        sample = replace(with_noise(sample, options, split, index, classes), instances=None, instance_labels=None)
    if options.scenes == "rare":
        # Points in files of their own would be the only ones that can be asked for; without, every pixel of a mask can.
        sample = replace(sample, points=None, point_labels=None)
    dataset.write(sample)
    return sample.id


def _claim(root: Path, options: ShapesOptions) -> None:
    """Note the options in the folder, or compare them with those noted there."""
    path = root / OPTIONS_FILE
    wanted = asdict(options)
    if path.exists():
        different = _different(path, wanted)
        if different:
            raise UserError(f"{root}: holds shapes with another {different}; name a new or empty folder")
    elif any((root / "JPEGImages").iterdir()):
        raise UserError(f"{root}: holds other images already; name a new or empty folder")
    atomic_write(path, (json.dumps(wanted, indent=2) + "\n").encode())


def _different(path: Path, wanted: dict[str, object]) -> str | None:
    """The first option, other than the numbers of images, in which a folder's options differ."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return OPTIONS_FILE
    if not isinstance(found, dict):
        return OPTIONS_FILE
    return next((name for name in wanted if name not in _COUNTS and found.get(name) != wanted[name]), None)
