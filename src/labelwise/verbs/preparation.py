"""What several verbs do first: open the data, check what will be read, build the method."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from labelwise import datasets, methods
from labelwise.configuration import load_preset, make_config
from labelwise.datasets.base import Classes, DataSet
from labelwise.datasets.derive import with_derived
from labelwise.datasets.index import Index
from labelwise.datasets.ood import OodImages
from labelwise.errors import BadFile, UserError
from labelwise.files import cache_home
from labelwise.method import Method, MethodConfig
from labelwise.progress import console, watched
from labelwise.samples import Kind, Sample, with_derivable
from labelwise.supervision import Streams, Supervision

_SEEDS = 2**32
_PEEK = 8
_FEW = 500
"the most labelled images whose masks are searched for classes that never occur"


@dataclass(frozen=True)
class Material:
    """The images and labels of one run, checked.

    Attributes:
        dataset: where to read.
        sources: ids per stream source.
        streams: which labels may be read for each training image.
        validation: ids of the split that is scored.
        skipped: ids left out because a file of theirs is broken (`skip_broken`).
        needs: the kinds that the method learns from.
        ood: the images of no class, where the method needs such.
    """

    dataset: DataSet
    sources: Mapping[str, tuple[str, ...]]
    streams: Streams
    validation: tuple[str, ...]
    skipped: tuple[str, ...] = field(default=())
    needs: frozenset[Kind] = frozenset()
    ood: OodImages | None = None

    def read(self, id: str) -> Sample:
        """Read a training image with the labels that supervision allows, and what the method needs of these."""
        return with_derived(self.streams.read(self.dataset, id), self.needs, self.dataset.classes)

    def read_ood(self, id: str) -> Sample:
        """Read an image of no class."""
        assert self.ood is not None
        return self.ood.read(id)


def prepare_method(name: str, preset: str | None, options: Mapping[str, Any]) -> tuple[type[Method], MethodConfig]:
    """A method's class and configuration by name.

    Raises:
        UserError: unknown method, preset or option, or a wrong value.
    """
    method = methods.load(name)
    return method, make_config(method, load_preset(method, preset), options)


def prepare_material(
    method: type[Method],
    data: Path,
    labels: str,
    split: str,
    val_split: str,
    seed: int,
    skip_broken: bool,
    ood: str = "",
) -> Material:
    """Open a data set and check every file that a run will read.

    Args:
        method: what will learn.
        data: the data set's folder.
        labels: what the method may see.
        split: to learn from.
        val_split: to score on.
        seed: of the choice of images.
        skip_broken: leave out images with broken files instead of stopping.
        ood: where images of no class are, for a method that needs them; see `OodImages`.

    Raises:
        UserError: the data set does not fit the method or the label specification, or the seed cannot be one.
        BadFile: a file is broken and `skip_broken` is not set.
    """
    require_seed(seed)
    supervision = Supervision.parse(labels)
    dataset = supervision.view(datasets.open(data))
    require_fit(method, supervision, labels)
    streams = supervision.streams(dataset, split, seed)
    truth = method.card.truth
    validation = _validation_ids(dataset, val_split, truth.required)
    wanted = {id: streams.allowed.get(id, frozenset()) for id in (*streams.labeled, *streams.unlabeled)}
    wanted |= {id: wanted.get(id, frozenset()) | truth.kinds for id in validation}
    broken = broken_ids(dataset, wanted, skip_broken)
    labeled, unlabeled, validation = (
        tuple(id for id in ids if id not in broken) for ids in (streams.labeled, streams.unlabeled, validation)
    )
    if not labeled and method.card.needs.labels:
        raise UserError(
            f"--labels {labels}: no usable labelled image is left in split '{split}' of {data}; mend the files"
        )
    if method.card.needs.unlabeled and not unlabeled:
        note("every image is labelled: the unlabelled stream draws the same images without their labels")
        unlabeled = labeled
    sources = {"labeled": labeled, "unlabeled": unlabeled}
    others = OodImages(dataset, ood) if method.card.needs.ood else None
    if others is not None:
        sources["ood"] = _usable_ood(others, skip_broken)
    material = Material(dataset, sources, streams, validation, tuple(sorted(broken)), method.card.needs.labels, others)
    if Kind.MASKS in method.card.needs.labels and len(labeled) <= _FEW and (absent := _absent_classes(material)):
        note(f"--labels {labels}: no labelled image shows {', '.join(absent)}; the model cannot learn to find them")
    _note_few_clicks(material, labels)
    return material


def require_seed(seed: int) -> None:
    """Refuse a number that cannot be a seed.

    Raises:
        UserError: it is below 0 or too large.
    """
    if not 0 <= seed < _SEEDS:
        raise UserError(f"--seed {seed}: must be from 0 to {_SEEDS - 1}")


def _note_few_clicks(material: Material, labels: str) -> None:
    """Say so where clicks that somebody has made are fewer than those asked for: no mask adds to them."""
    asked, read = material.streams.points_per_image, material.streams.read
    for id in material.sources["labeled"][:_PEEK] if asked else ():
        points = read(material.dataset, id).points
        if points is not None and asked is not None and len(points) < asked:
            note(f"--labels {labels}: '{id}' has {len(points)} points, and others may have as few; all of them count")
            return


def _usable_ood(images: OodImages, skip_broken: bool) -> tuple[str, ...]:
    """The images of no class that can be read.

    Raises:
        BadFile: one cannot be read and `skip_broken` is not set.
    """
    kept = []
    for id in watched(images.ids, "checking images of no class", len(images.ids)):
        error = images.check(id)
        if error is not None and not skip_broken:
            raise error
        if error is None:
            kept.append(id)
        else:
            note(f"skipped: {error.problem}")
    return tuple(usable(kept, (), "--ood"))


def broken_ids(dataset: DataSet, wanted: Mapping[str, frozenset[Kind]], skip_broken: bool) -> frozenset[str]:
    """The images of which a file is broken.

    Raises:
        BadFile: the first broken file, unless `skip_broken` is set.
    """
    index = checked_index(dataset, wanted)
    if index.problems and not skip_broken:
        more = len(index.problems) - 1
        if more:
            note(f"{more} more broken files; `labelwise inspect {dataset.root}` lists them all")
        raise BadFile(index.problems[0])
    for problem in index.problems:
        note(f"skipped: {problem}")
    return index.broken


def checked_index(dataset: DataSet, wanted: Mapping[str, frozenset[Kind]]) -> Index:
    """Check files with a progress bar; what was found is remembered in the cache folder, if that can be written to."""
    folder: Path | None = cache_folder(dataset.root)
    try:
        cache_folder(dataset.root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        note(f"files will be checked anew each time: {error}; LABELWISE_CACHE may name another folder")
        folder = None
    return Index.build(dataset, wanted, folder, progress=lambda ids, total: watched(ids, "checking files", total))


@cache
def note(text: str) -> None:
    """Say something once that a person should know, beside the results."""
    console.print(f"[yellow]note:[/] {escape(text)}")


def cache_folder(root: Path) -> Path:
    """Where the validated index of a data set is kept."""
    key = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    return cache_home() / f"{root.resolve().name}-{key}"


def require_same_classes(model: Classes, dataset: DataSet) -> None:
    """Check that a trained model and a data set speak of the same classes.

    Raises:
        UserError: names the first difference.
    """
    ours, theirs = model.names, dataset.classes.names
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        raise UserError(
            f"{dataset.root}: has {len(theirs)} classes, but the model was trained on {len(ours)}; "
            "take a data set with the same class list"
        )
    number = next(number for number, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    raise UserError(
        f"{dataset.root}: class {number} is '{theirs[number]}', but the model was trained with '{ours[number]}'; "
        "take a data set with the same class list"
    )


def usable(ids: Sequence[str], broken: Collection[str], what: str) -> list[str]:
    """The ids that are not broken, in order.

    Raises:
        UserError: none is left.
    """
    kept = [id for id in ids if id not in broken]
    if not kept:
        reason = "every image is broken; mend the files" if ids else "holds no image; name another"
        raise UserError(f"{what}: {reason}")
    return kept


def labelled_ids(dataset: DataSet, split: str, kinds: Collection[Kind]) -> tuple[str, ...]:
    """The ids of a split that have labels of all these kinds, in order.

    Raises:
        UserError: there is none.
    """
    ids: Sequence[str] = dataset.ids(split)
    for kind in kinds:
        have = dataset.having(kind, ids)
        ids = [id for id in ids if id in have]
    if not ids:
        raise UserError(
            f"{dataset.root}: no image of split '{split}' has {' and '.join(sorted(kinds))}; name another split"
        )
    return tuple(ids)


def _absent_classes(material: Material) -> list[str]:
    """The names of the classes that no labelled image shows."""
    absent = set(range(len(material.dataset.classes)))
    for id in material.sources["labeled"]:
        mask = material.read(id).mask
        absent -= absent if mask is None else set(np.unique(mask).tolist())
        if not absent:
            break
    return [material.dataset.classes.names[number] for number in sorted(absent)]


def _validation_ids(dataset: DataSet, split: str, kinds: Collection[Kind]) -> tuple[str, ...]:
    """The images to score on; none where nobody has named a split and the usual one has no such labels."""
    if split != "val":
        return labelled_ids(dataset, split, kinds)
    if split not in dataset.splits:
        note(f"{dataset.root} has no split 'val': the model will not be scored; --val-split names another")
        return ()
    if not all(dataset.having(kind, dataset.ids(split)) for kind in kinds):
        what = " and ".join(sorted(kinds))
        note(f"no image of split 'val' has {what}: the model will not be scored; --val-split names another")
        return ()
    return labelled_ids(dataset, split, kinds)


def require_fit(method: type[Method], supervision: Supervision, labels: str) -> None:
    """Refuse labels from which a method cannot learn.

    Args:
        method: what would learn.
        supervision: what it may see.
        labels: the same as it was written.

    Raises:
        UserError: a kind of label that it needs is missing.
    """
    if not method.card.needs.fit(supervision.kinds):
        given = ", ".join(sorted(supervision.kinds)) or "nothing"
        raise UserError(
            f"--labels {labels}: gives {given}, but '{method.card.name}' needs {method.card.needs}; "
            f"`labelwise methods --labels {labels}` lists the methods that fit"
        )


def fitting_methods(kinds: Collection[Kind]) -> list[str]:
    """The names of the methods that can learn from these kinds of label."""
    given = with_derivable(kinds)
    return [name for name in methods.METHODS if methods.load(name).card.needs.fit(given)]
