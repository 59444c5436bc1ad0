"""The images below a folder, and the ids that their names give them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from labelwise.datasets.base import unique
from labelwise.datasets.images import IMAGE_SUFFIXES


def images_below(root: Path, folder: str) -> tuple[str, ...]:
    """The images in a folder and the folders below it, sorted.

    Args:
        root: the data set's folder.
        folder: a folder relative to it, "" for the root itself; a missing one is empty.

    Returns:
        Paths relative to the root, with forward slashes. Hidden files and folders are passed over.
    """
    found: list[str] = []
    for place, folders, names in os.walk(root / folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(root).as_posix()
        start = "" if below == "." else f"{below}/"
        found += [start + name for name in names if is_image(name)]
    return tuple(sorted(found))


def is_image(name: str) -> bool:
    """Whether a file's name is an image's."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def ids_of(paths: Iterable[str]) -> dict[str, str]:
    """Short names for images by which each is known in its data set and can be stored in any other.

    An id is the file's name without its ending; where several images share it, the whole path with underscores between
    the folders, and where that does not tell them apart, the path with its ending.

    Args:
        paths: paths relative to the root, with forward slashes.

    Returns:
        path -> id.
    """
    paths = unique(tuple(paths))
    without_ending = [os.path.splitext(path)[0] for path in paths]  # noqa: PTH122
    choices = (
        [path.rpartition("/")[2] for path in without_ending],
        [path.replace("/", "_") for path in without_ending],
        [path.replace("/", "_") for path in paths],
    )
    ids: dict[str, str] = {}
    for names in choices:
        # A name that somebody has already is as good as shared.
        count = Counter(names) + Counter(ids.values())
        for path, name in zip(paths, names, strict=True):
            if path not in ids and count[name] == 1:
                ids[path] = name
    return {path: ids.get(path, path.replace("/", "__")) for path in paths}
