"""`labelwise mine-ood`: images without any class on which a classifier fires nevertheless, as a list for a person."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.datasets.derive import with_derived
from labelwise.datasets.images import IMAGE_SUFFIXES, read_image, write_image
from labelwise.errors import UserError, require_at_least, require_share
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.progress import watched
from labelwise.reports.pictures import contact_sheet
from labelwise.samples import Kind
from labelwise.tasks.classification import ClassificationMethod
from labelwise.tasks.localization import LocalizationMethod
from labelwise.verbs.predict import LEAST_SCORE, load_output

LEAST_SIDE = 0.3
"""The least side of a region without objects, as a share of the image's."""
_SHOWN = 8
_HEADER = """\
# Images on which a classifier of tags fires though they should show none of its classes: path, score, class.
# Look at each (the picture of the same name shows the first ones) and remove the lines of those that do show the class.
"""


@dataclass(frozen=True)
class Candidate:
    """An image, or a part of one, that may be added.

    Attributes:
        path: of the image file.
        region: left, top, right, bottom in pixels of a part without objects; None is the whole image.
        present: the names of the classes that the whole image is tagged with.
    """

    path: Path
    region: tuple[int, int, int, int] | None = None
    present: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mined:
    """An image that was found.

    Attributes:
        index: of the candidate.
        column: of the class that it looks like.
        score: the probability of that class.
    """

    index: int
    column: int
    score: float


def mine_ood(
    run: Path,
    *,
    data: Path,
    out: Path,
    split: str = "train",
    least_score: float = LEAST_SCORE,
    most: int = 0,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Find hard images of no class (W-OoD, CVPR 2022, steps 1 and 2): the third step is a person's.

    Of a folder of images all are candidates. Of a data set those are that are tagged with none of the classes; of
    images with boxes also the largest part beside all boxes, for the classes that the image is not tagged with. Such
    parts are stored beside the list.

    Args:
        run: the folder of a run that predicts tags, such as one of `cam`.
        data: a folder of images, or a data set.
        out: the list to write: in each line the path of an image, relative to the list, its score and the class that
            it looks like. A picture beside it, of the same name, shows the first images of each class.
        split: of the data set.
        least_score: the probability of a class above which an image is hard.
        most: images of each class at most; 0 = all.
        hardware: where to compute.

    Returns:
        `candidates`, `images` (how many are listed), `classes` (name -> images), `list` and `picture`.

    Raises:
        UserError: the run predicts no tags, there is no such data, or nothing was found.
        BadFile: an image cannot be read.
    """
    require_share("least_score", least_score)
    require_at_least("most", most, 0)
    out = Path(out)
    if out.is_dir() or out.suffix.lower() != ".txt":
        raise UserError(f"--out {out}: is to be a list; name a .txt file")
    method = load_output(Path(run), hardware or Hardware(), None, LEAST_SCORE).method
    if not isinstance(method, ClassificationMethod | LocalizationMethod):
        raise UserError(f"{run}: '{method.card.name}' predicts no tags; name a run of cam or of another classifier")
    names = method.tag_names
    candidates = list(candidates_of(Path(data), split, names))
    if not candidates:
        raise UserError(f"--data {data}: every image shows one of the classes; name other images")
    rows = [_scores(method, read_candidate(each)) for each in watched(candidates, "scoring", len(candidates))]
    present = torch.tensor([[name in each.present for name in names] for each in candidates])
    mined = hardest(torch.stack(rows), present, least_score, most)
    if not mined:
        raise UserError(f"--least-score {least_score:g}: no image of {data} looks like a class; lower it")
    paths = {each.index: _stored(candidates[each.index], out) for each in mined}
    lines = [
        f"{os.path.relpath(paths[each.index], out.parent)}\t{each.score:.4f}\t{names[each.column]}" for each in mined
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, _HEADER + "\n".join(lines) + "\n")
    picture = out.with_suffix(".png")
    _write_picture(mined, candidates, names, picture)
    counts = {name: sum(each.column == column for each in mined) for column, name in enumerate(names)}
    return {
        "candidates": len(candidates),
        "images": len(mined),
        "classes": {name: count for name, count in counts.items() if count},
        "list": str(out),
        "picture": str(picture),
    }


def hardest(scores: Tensor, present: Tensor, least: float, most: int = 0) -> list[Mined]:
    """The images that look like a class that they do not show.

    Args:
        scores: [N, K] probabilities.
        present: [N, K] bool: the class is known to be in the image.
        least: the probability above which an image is hard.
        most: images of each class at most; 0 = all.

    Returns:
        By class, the surest first; an image counts for the class that it looks most like.
    """
    absent = scores.masked_fill(present, -1.0)
    best, columns = absent.max(1)
    order = best.argsort(descending=True, stable=True).tolist()
    found: list[Mined] = []
    for column in range(scores.shape[1]):
        own = [index for index in order if int(columns[index]) == column and float(best[index]) > least]
        found += [Mined(index, column, float(best[index])) for index in (own[:most] if most else own)]
    return found


def candidates_of(data: Path, split: str, names: Sequence[str]) -> Iterator[Candidate]:
    """The images, or parts of images, of a folder or a data set that may show none of these classes.

    Raises:
        UserError: there is no such folder or split, or the data set tells no tags.
    """
    files = sorted(path for path in data.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES) if data.is_dir() else []
    if files:
        yield from map(Candidate, files)
        return
    dataset = datasets.open(data)
    for id in watched(dataset.ids(split), "looking for images without objects", len(dataset.ids(split))):
        candidate = _candidate(dataset, id, frozenset(names))
        if candidate is not None:
            yield candidate


def _candidate(dataset: DataSet, id: str, names: frozenset[str]) -> Candidate | None:
    kinds = frozenset(kind for kind in (Kind.TAGS, Kind.BOXES, Kind.MASKS) if dataset.having(kind, [id]))
    sample = with_derived(dataset.read(id, kinds), frozenset({Kind.TAGS}), dataset.classes)
    if sample.tags is None:
        raise UserError(f"{dataset.root}: image '{id}' has no label that tells what it shows; name a folder of images")
    # Difficult objects, 255, are in the image as well.
    shown = frozenset(dataset.classes.names[number] for number in sample.tags.nonzero().flatten().tolist())
    path, present = dataset.image_file(id), shown & names
    if not present:
        return Candidate(path)
    region = None if sample.boxes is None else free_region(sample.boxes, *sample.image.shape[-2:])
    return None if region is None else Candidate(path, region, present)


def free_region(boxes: Tensor, height: int, width: int) -> tuple[int, int, int, int] | None:
    """The largest part of an image that lies wholly to one side of all boxes.

    Args:
        boxes: [N, 4] half-open, in pixels; at least one.
        height: of the image.
        width: of the image.

    Returns:
        Left, top, right, bottom; None if no such part has `LEAST_SIDE` of both of the image's sides.
    """
    left, top = boxes[:, :2].amin(0).floor().long().clamp(min=0).tolist()
    right, bottom = boxes[:, 2:].amax(0).ceil().long().tolist()
    parts = ((0, 0, left, height), (right, 0, width, height), (0, 0, width, top), (0, bottom, width, height))
    sides = {part: (part[2] - part[0], part[3] - part[1]) for part in parts}
    wide = [part for part, (w, h) in sides.items() if w >= LEAST_SIDE * width and h >= LEAST_SIDE * height]
    return max(wide, key=lambda part: sides[part][0] * sides[part][1], default=None)


def read_candidate(candidate: Candidate) -> Tensor:
    """The pixels of a candidate, [3, H, W] uint8.

    Raises:
        BadFile: the image cannot be read.
    """
    image = read_image(candidate.path).as_subclass(Tensor)
    if candidate.region is None:
        return image
    left, top, right, bottom = candidate.region
    return image[:, top:bottom, left:right]


@torch.no_grad()
def _scores(method: ClassificationMethod | LocalizationMethod, image: Tensor) -> Tensor:
    """[3, H, W] uint8 -> [K] probabilities, of each class by itself."""
    return method.predict(image[None].to(method.device))[0].sigmoid().float().cpu()


def _stored(candidate: Candidate, out: Path) -> Path:
    """The file of a candidate; a part of an image is written into a folder beside the list."""
    if candidate.region is None:
        return candidate.path.resolve()
    folder = out.with_suffix("").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{candidate.path.stem}_{'_'.join(map(str, candidate.region))}.jpg"
    write_image(path, read_candidate(candidate))
    return path


def _write_picture(mined: Sequence[Mined], candidates: Sequence[Candidate], names: Sequence[str], path: Path) -> None:
    """The first images of each class, a row each."""
    rows, titles = [], []
    for column, name in enumerate(names):
        own = [each for each in mined if each.column == column]
        if own:
            rows.append([_picture(candidates[each.index]) for each in own[:_SHOWN]])
            titles.append(f"{name}: {len(own)} images, scores {own[0].score:.2f} to {own[-1].score:.2f}")
    contact_sheet(rows, row_titles=titles).save(path)


def _picture(candidate: Candidate) -> Image.Image:
    return Image.fromarray(read_candidate(candidate).permute(1, 2, 0).contiguous().numpy())
