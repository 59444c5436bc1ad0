"""What names and plain lists tell: the files of a folder, id lists, hold-outs, `classes.txt`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Container, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from labelwise.datasets.base import Classes
from labelwise.datasets.images import IMAGE_SUFFIXES, read_text, refuse
from labelwise.samples import IGNORE_INDEX

CLASSES_FILE = "classes.txt"
_NO_BACKGROUND = "# no background"


def stems(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """The files of a folder with one of these endings (upper or lower case), sorted: stem -> file name.

    Of two files with the same stem the one whose ending comes first in `suffixes` counts. A missing folder is empty.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208  (ten times faster than Path objects on 17,000 images)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[str, str] = {}
    ranks = {suffix: rank for rank, suffix in enumerate(suffixes)}
    for name in names:
        stem, dot, ending = name.rpartition(".")
        rank = ranks.get(dot + ending.lower())
        if rank is None or not stem or stem.startswith("."):
            continue
        if stem not in found or rank < ranks[_suffix(found[stem])]:
            found[stem] = name
    return found


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


class Listing:
    """Names, sizes and times of all files of some folders, without opening any.

    Attributes:
        digest: changes when any of the files changes, appears or vanishes.
    """

    def __init__(self, folders: Collection[Path]) -> None:
        """List the folders; missing ones are empty."""
        self._scans = {os.path.realpath(folder): _scan(folder) for folder in folders}
        digest = hashlib.blake2b(digest_size=16)
        for folder, (names, times, sizes) in self._scans.items():
            digest.update("\0".join([folder, *names, ""]).encode("utf-8", "surrogateescape"))
            digest.update(np.array([times, sizes], dtype=np.int64).tobytes())
        self.digest = digest.hexdigest()

    @cached_property
    def _folders(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Time and size of each file; a warm start does without."""
        return {
            folder: {name: (time, size) for name, time, size in zip(*scan, strict=True)}
            for folder, scan in self._scans.items()
        }

    def stamp(self, paths: Collection[Path]) -> int:
        """A number that changes when one of the files changes, or others take their place."""
        content = [(os.fspath(path), self._folders.get(os.fspath(path.parent), {}).get(path.name)) for path in paths]
        return int.from_bytes(hashlib.blake2b(repr(content).encode("utf-8", "replace"), digest_size=8).digest())


def _scan(folder: Path) -> tuple[list[str], list[int], list[int]]:
    """The names of the files of a folder, sorted, with their times and sizes."""
    names: list[str] = []
    times: list[int] = []
    sizes: list[int] = []
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return names, times, sizes
    try:
        names = sorted(os.listdir(descriptor))  # noqa: PTH208
        for name in names:
            try:
                # By descriptor, because the system would walk the folder's path anew for each file.
                status = os.stat(name, dir_fd=descriptor)
            except OSError:  # a link to nowhere, or a file that was removed meanwhile
                times.append(0)
                sizes.append(0)
            else:
                times.append(status.st_mtime_ns)
                sizes.append(status.st_size)
    finally:
        os.close(descriptor)
    return names, times, sizes


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding space; blank lines are dropped.

    Raises:
        BadFile: the file is missing or no UTF-8 text.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def listed_id(line: str, known: Container[str]) -> str:
    """The image id of a line of an id list, which may carry an image's ending and further columns.

    An id that is known as it stands wins, so that ids may hold spaces and dots.
    """
    candidate = line
    while candidate:
        stem, suffix = os.path.splitext(candidate)  # noqa: PTH122
        if candidate in known:
            return candidate
        if suffix.lower() in IMAGE_SUFFIXES and stem in known:
            return stem
        candidate = " ".join(candidate.rsplit(maxsplit=1)[:-1])
    return line


def held_out(id: str) -> bool:
    """Whether an image belongs to the fifth that is held out as `val` where a data set has no split lists.

    It depends on the id alone, so that images added later move no other image.
    """
    return hashlib.sha256(id.encode()).digest()[0] % 5 == 0


def read_classes(path: Path) -> Classes:
    """Read `classes.txt`: one class name per line, the background first.

    A name may be followed by a tab and its color as three numbers. A first line `# no background` says that every
    class is a thing of its own; other lines that start with # are comments.

    Raises:
        BadFile: no name, a name twice, more than 255 classes, or a color that is none.
    """
    lines = read_lines(path)
    rows = [line.partition("\t") for line in lines if not line.startswith("#")]
    names = tuple(name.strip() for name, _, _ in rows)
    if not 0 < len(names) <= IGNORE_INDEX:
        refuse(path, f"it names {len(names)} classes", f"name 1 to {IGNORE_INDEX}, one per line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        refuse(path, f"it names '{twice}' twice", "name each class once")
    colors = tuple(_color(path, color) for _, _, color in rows if color)
    if colors and len(colors) < len(names):
        refuse(path, "only some classes have colors", "give every class a color, or none")
    return Classes(names, None if lines[0] == _NO_BACKGROUND else 0, colors or None)


def _color(path: Path, text: str) -> tuple[int, int, int]:
    parts = text.split()
    if len(parts) != 3 or not all(part.isdecimal() and int(part) < 256 for part in parts):
        refuse(path, f"'{text}' is not a color", "write red, green and blue as three numbers from 0 to 255")
    red, green, blue = map(int, parts)
    return red, green, blue


def format_classes(classes: Classes) -> str:
    """The text of `classes.txt` for these classes; `read_classes` gives them back."""
    colors = [""] * len(classes) if classes.colors is None else [f"\t{r} {g} {b}" for r, g, b in classes.colors]
    lines = [name + color for name, color in zip(classes.names, colors, strict=True)]
    return "\n".join(lines if classes.background == 0 else [_NO_BACKGROUND, *lines]) + "\n"
