"""`labelwise convert`: the same images and labels in another layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.datasets.coco import COCO
from labelwise.datasets.derive import boxes_of_instances, mask_of_instances, tags_of_labels, top_instance
from labelwise.datasets.voc import VOC
from labelwise.datasets.writing import objects_of
from labelwise.datasets.yolo import YOLO
from labelwise.errors import UserError, did_you_mean
from labelwise.files import atomic_write
from labelwise.progress import watched
from labelwise.runs import read_json
from labelwise.samples import IGNORE_INDEX, Kind, Sample
from labelwise.verbs.preparation import broken_ids, note

Target = Literal["voc", "coco", "yolo"]
"""The layouts that can be written."""

ORIGIN = "convert.json"
"""What a converted data set was made from; the same call goes on with it."""

_JOURNAL = "convert.unfinished"
"""The images that are done and what of each was lost, until all are."""

_MOST_OBJECTS = 254
"""The most objects that an instance picture of VOC can number."""

_LOSSES = {
    "masks": "masks, as far as they say more than the objects' outlines do (contours, void, classes without objects)",
    "instances": "instances, because the images with boxes do not all have them, and a data set has outlines or boxes",
    "hidden": "pixels of instances that others cover, because an instance picture shows one object per pixel",
    "many": f"instances, because more than {_MOST_OBJECTS} objects cannot be numbered in a picture",
    "boxes": "boxes that differ from their object's outline by more than half a pixel",
    "fractions": "fractions of a pixel of boxes, which are whole numbers there",
    "difficult": "the marks of difficult objects",
    "tags": "tags that do not follow from boxes",
    "points": "points",
    "captions": "captions",
}
"""What a layout may be unable to hold, as the note says it."""


def convert(data: Path, *, to: str, out: Path, splits: Sequence[str] = ()) -> dict[str, Any]:
    """Write a data set in another layout: images byte by byte, and every label that the layout can hold.

    A call that was stopped goes on where it was when it is made again.

    Args:
        data: the data set's folder.
        to: voc, coco or yolo.
        out: the new data set's folder, which must be empty or not exist.
        splits: the splits to convert; all of them unless given.

    Returns:
        `out`, `layout`, `images`, `splits` (images of each), and `lost`: what the layout cannot hold -> of how many
        images. One note is said for each of these.

    Raises:
        UserError: no such data set, layout or split, or `out` holds something else.
        BadFile: a file is broken; nothing has been written.
    """
    if to not in get_args(Target):
        raise UserError(f"--to {to}: no such layout{did_you_mean(to, get_args(Target))}")
    dataset, out = datasets.open(Path(data)), Path(out)
    chosen = {split: dataset.ids(split) for split in dict.fromkeys(splits or dataset.splits)}
    ids = tuple(dict.fromkeys(id for names in chosen.values() for id in names))
    if not ids:
        raise UserError(f"{data}: holds no image in {', '.join(chosen) or 'any split'}; name another")
    origin = {"data": str(dataset.root.resolve()), "to": to, "splits": list(chosen)}
    earlier = _earlier(out, origin)
    if "result" not in earlier:
        wanted = {id: frozenset(kinds) for id, kinds in _wanted(dataset, ids).items()}
        broken_ids(dataset, wanted, skip_broken=False)
        lost = _convert_all(dataset, wanted, chosen, to, out, origin)
        result = {
            "out": str(out),
            "layout": to,
            "images": len(ids),
            "splits": {_split_name(split, to, chosen): len(names) for split, names in chosen.items()},
            "lost": {what: lost[what] for what in _LOSSES if lost[what]},
        }
        earlier = origin | {"result": result}
        atomic_write(out / ORIGIN, json.dumps(earlier, indent=2))
    for what, count in earlier["result"]["lost"].items():
        note(f"{count} images lose something that {to} cannot hold: {_LOSSES[what]}")
    return dict(earlier["result"])


def _earlier(out: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call noted of the same conversion.

    Raises:
        UserError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a new or empty folder")
    if not out.is_dir() or not any(out.iterdir()):
        return {}
    noted = read_json(out / ORIGIN)
    if {key: noted.get(key) for key in origin} != origin:
        raise UserError(f"--out {out}: holds something else than this call's data set; name a new or empty folder")
    return noted


def _wanted(dataset: DataSet, ids: Sequence[str]) -> dict[str, list[Kind]]:
    """The kinds of label that each image has by itself: tags and points that follow from others are left to follow."""
    having = {kind: dataset.having(kind, ids) for kind in Kind}
    wanted = {}
    for id in ids:
        own = [kind for kind in Kind if id in having[kind]]
        for kind, origins in ((Kind.TAGS, (Kind.BOXES, Kind.MASKS, Kind.POINTS)), (Kind.POINTS, (Kind.MASKS,))):
            others = {file for origin in origins if origin in own for file in dataset.label_files(id, origin)}
            if kind in own and others.issuperset(dataset.label_files(id, kind)):
                own.remove(kind)
        wanted[id] = own
    return wanted


def _convert_all(
    dataset: DataSet,
    wanted: dict[str, frozenset[Kind]],
    chosen: dict[str, tuple[str, ...]],
    to: str,
    out: Path,
    origin: dict[str, Any],
) -> Counter[str]:
    """Write all images and splits; tells what was lost of how many images."""
    polygons = all(Kind.INSTANCES in kinds for kinds in wanted.values() if Kind.BOXES in kinds)
    target = _started(out, to, dataset, polygons)
    atomic_write(out / ORIGIN, json.dumps(origin, indent=2))
    journal = out / _JOURNAL
    done = _done(journal)
    for id, kinds in watched(wanted.items(), "converting", len(wanted)):
        if id in done:
            # Lists of tags are written with the splits, so that the target has to know them all.
            if Kind.TAGS in kinds and isinstance(target, VOC):
                target.write(dataset.read(id, [Kind.TAGS]))
            continue
        sample = dataset.read(id, kinds)
        kept, lost = _KEEPERS[to](sample, target, polygons)
        target.copy_image(id, dataset.image_file(id))
        target.write(kept)
        done[id] = lost
        with journal.open("a") as file:
            file.write(json.dumps([id, lost]) + "\n")
    for split, ids in chosen.items():
        target.write_split(_split_name(split, to, chosen), ids)
    if isinstance(target, COCO):
        target.finish()
    journal.unlink(missing_ok=True)
    return Counter(what for lost in done.values() for what in lost)


def _started(out: Path, to: str, dataset: DataSet, polygons: bool) -> VOC | COCO | YOLO:
    if to == "voc":
        return VOC.create(out, dataset.classes, durable=False)
    if to == "coco":
        return COCO.create(out, dataset.classes, durable=False)
    return YOLO.create(out, dataset.classes, polygons=polygons, durable=False)


def _done(journal: Path) -> dict[str, list[str]]:
    """The images that an earlier call finished, and what of each was lost; a line cut off by a crash is none."""
    done: dict[str, list[str]] = {}
    if journal.is_file():
        whole = journal.read_text().rpartition("\n")[0]
        done = dict(json.loads(line) for line in whole.splitlines())
        journal.write_text(f"{whole}\n" if whole else "")
    return done


def _split_name(split: str, to: str, chosen: Collection[str]) -> str:
    """The split's name in the new layout; ``Main/train`` and its like exist in VOC alone."""
    folder, _, name = split.rpartition("/")
    if to == "voc" or not folder:
        return split
    return name if sum(other.rpartition("/")[2] == name for other in chosen) == 1 else f"{folder}_{name}"


def _kept_by_voc(sample: Sample, target: DataSet, polygons: bool) -> tuple[Sample, list[str]]:
    lost = []
    if sample.instances is not None:
        instances = sample.instances.as_subclass(Tensor)
        if len(instances) > _MOST_OBJECTS:
            lost.append("many")
            sample = replace(sample, instances=None, instance_labels=None)
        elif torch.count_nonzero(instances) > torch.count_nonzero(instances.any(dim=0)):
            lost.append("hidden")
    if sample.boxes is not None and not torch.equal(sample.boxes, sample.boxes.round()):
        lost.append("fractions")
    return sample, lost


def _kept_by_coco(sample: Sample, target: DataSet, polygons: bool) -> tuple[Sample, list[str]]:
    lost = [] if sample.points is None else ["points"]
    return sample, _lost_masks_and_tags(sample, target, outlined=True) + lost


def _kept_by_yolo(sample: Sample, target: DataSet, polygons: bool) -> tuple[Sample, list[str]]:
    lost = _lost_masks_and_tags(sample, target, outlined=polygons)
    lost += [kind for kind in ("points", "captions", "maps") if getattr(sample, kind) is not None]
    if sample.difficult is not None and sample.difficult.any():
        lost.append("difficult")
    if not polygons and sample.instances is not None:
        lost.append("instances")
    if polygons and any(_differs(found.box, found.mask) for found in objects_of(sample) if found.mask is not None):
        lost.append("boxes")
    return sample, lost


_KEEPERS: dict[str, Callable[[Sample, DataSet, bool], tuple[Sample, list[str]]]] = {
    "voc": _kept_by_voc,
    "coco": _kept_by_coco,
    "yolo": _kept_by_yolo,
}
"""What a layout can keep of a sample, and the names of what it cannot."""


def _differs(box: np.ndarray, mask: np.ndarray) -> bool:
    extent = boxes_of_instances(torch.from_numpy(mask)[None])[0].numpy()
    return bool(np.abs(extent - box).max() > 0.5)


def _lost_masks_and_tags(sample: Sample, target: DataSet, outlined: bool) -> list[str]:
    """Which of masks and tags would not follow from the objects in the new layout."""
    lost = []
    if sample.mask is not None:
        followed = _mask_of_objects(sample, target.classes.background) if outlined else None
        if followed is None or not torch.equal(followed, sample.mask.as_subclass(Tensor)):
            lost.append("masks")
    if sample.tags is not None:
        labels = sample.box_labels
        if labels is None or not torch.equal(tags_of_labels(labels, target.classes, sample.difficult), sample.tags):
            lost.append("tags")
    return lost


def _mask_of_objects(sample: Sample, background: int | None) -> Tensor | None:
    """The mask that a reader would paint: 255 for boxes without an outline, then the instances."""
    if sample.instances is None or sample.instance_labels is None:
        return None
    instances = sample.instances.as_subclass(Tensor)
    mask = mask_of_instances(instances, sample.instance_labels, background)
    vague = torch.zeros_like(mask, dtype=torch.bool)
    for found in objects_of(sample):
        if found.mask is None:
            left, top, right, bottom = found.box.tolist()
            vague[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    mask[vague & (top_instance(instances) == 0)] = IGNORE_INDEX
    return mask
