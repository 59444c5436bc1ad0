"""What can be wrong between an image and its labels, and the list of everything that is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from labelwise.datasets.base import DataSet
from labelwise.datasets.images import refuse
from labelwise.errors import BadFile, Problem
from labelwise.samples import Kind


def problems_of(dataset: DataSet, id: str, kinds: Collection[Kind]) -> list[Problem]:
    """Everything that is wrong with one image and its labels of these kinds; decodes them fully.

    A damaged image is reported alone, because no label can be judged without it.
    """
    try:
        dataset.read(id, kinds)
    except BadFile:
        image = _problem(dataset, id, ())
        if image is not None:
            return [image]
        found = [_problem(dataset, id, (kind,)) for kind in Kind if kind in kinds]
        return list(dict.fromkeys(problem for problem in found if problem is not None))
    return []


def _problem(dataset: DataSet, id: str, kinds: Collection[Kind]) -> Problem | None:
    try:
        dataset.read(id, kinds)
    except BadFile as error:
        return error.problem
    return None


def require_size(path: Path, found: tuple[int, int], image: tuple[int, int]) -> None:
    """Refuse a mask whose height and width are not the (upright) image's.

    Raises:
        BadFile: the sizes differ.
    """
    if found == image:
        return
    reason = f"it has {found[1]}x{found[0]} pixels, but the image has {image[1]}x{image[0]}"
    if found == image[::-1]:
        refuse(path, reason, "turn it as the image's EXIF orientation turns the image")
    refuse(path, reason, "make it anew at the image's size")
