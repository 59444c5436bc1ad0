"""What can be wrong between an image and its labels, and the list of everything that is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from labelwise.datasets.base import DataSet
from labelwise.datasets.images import AS_STORED, SIDEWAYS, refuse
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


def require_told(path: Path, orientation: int, image: tuple[int, int], labels: tuple[int, int] | None) -> None:
    """Refuse an image that its EXIF orientation turns, unless its labels' size tells that they were turned with it.

    Tools that show images upright write labels of the upright image, others of the pixels as they are stored. Labels
    of the wrong one of the two would be learned from without a word.

    Args:
        path: the image.
        orientation: as `read_oriented` returns it.
        image: height and width of the upright image.
        labels: height and width of the mask, or of the image that the annotation states; None if nothing states it.

    Raises:
        BadFile: the image is turned, and the size of its labels is unknown, another, or the same either way.
    """
    told = orientation in SIDEWAYS and image[0] != image[1] and labels == image
    if orientation != AS_STORED and not told:
        refuse(
            path,
            "its EXIF orientation turns it, and nothing tells whether its labels are turned with it",
            "store it without EXIF orientation, so that the labels fit",
        )
