"""The interface of a data set: a folder in a known layout that reads samples lazily and can be written to."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from labelwise.errors import BadFile, Problem, UserError, did_you_mean
from labelwise.samples import Kind, Sample


def voc_palette(count: int = 256) -> np.ndarray:
    """The colour map of the VOC development kit.

    Returns:
        [count, 3] uint8; the bits of the class number are spread over the high bits of red, green and blue.
    """
    number = np.arange(count, dtype=np.int64)
    palette = np.zeros((count, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
    return palette.astype(np.uint8)


@dataclass(frozen=True)
class Classes:
    """The classes of a data set in the order of their mask values.

    Attributes:
        names: one name per class number.
        background: the number that means "no object", or None where every class is a thing of its own (CamVid).
        colors: one RGB triple per class, or None for the colours of VOC.
    """

    names: tuple[str, ...]
    background: int | None = 0
    colors: tuple[tuple[int, int, int], ...] | None = None

    def __len__(self) -> int:
        """The number of classes, the background included."""
        return len(self.names)

    def number(self, name: str) -> int:
        """The class number of a name.

        Raises:
            UserError: no class has that name.
        """
        if name not in self.names:
            raise UserError(f"unknown class '{name}'{did_you_mean(name, self.names)}")
        return self.names.index(name)

    @property
    def objects(self) -> tuple[int, ...]:
        """The numbers of all classes but the background."""
        return tuple(number for number in range(len(self.names)) if number != self.background)

    @property
    def palette(self) -> np.ndarray:
        """[256, 3] uint8 colours; entry 255 (ignore) is VOC's pale contour colour."""
        palette = voc_palette()
        if self.colors is not None:
            palette[: len(self.colors)] = self.colors
        return palette


class DataSet(ABC):
    """A folder in a known layout.

    Reading is lazy and honest: `read` opens the image and the files of the kinds asked for, nothing else.
    """

    layout: ClassVar[str]
    "the layout's name, as printed by `inspect`"

    root: Path
    classes: Classes

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the folder looks like this layout; looks at names only, opens no label."""

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""

    @abstractmethod
    def ids(self, split: str) -> tuple[str, ...]:
        """The image ids of a split, in the order of its file.

        Raises:
            UserError: no such split, or a file of the split list is wrong.
        """

    @abstractmethod
    def having(self, kind: Kind, ids: Collection[str]) -> frozenset[str]:
        """Those of the ids for which labels of this kind exist or can be derived; opens no label file."""

    @abstractmethod
    def image_file(self, id: str) -> Path:
        """The image's path, resolved under the root.

        Raises:
            BadFile: the id leaves the data set's folder, or the image does not exist.
        """

    @abstractmethod
    def label_files(self, id: str, kind: Kind) -> tuple[Path, ...]:
        """The files that reading this kind opens for this image (possibly shared by several images)."""

    @abstractmethod
    def read(self, id: str, kinds: Collection[Kind] = ()) -> Sample:
        """Read one image and the labels of the kinds asked for.

        A kind that the image does not have is left None. Weaker kinds are derived from stronger ones where
        the layout has no file of their own.

        Raises:
            BadFile: a file that has to be opened is missing, damaged or wrong.
        """

    @abstractmethod
    def write(self, sample: Sample) -> None:
        """Write the labels (and the image, if it is not there yet) of a sample, atomically."""

    @abstractmethod
    def label_folders(self) -> tuple[Path, ...]:
        """The folders in which the files of images and labels lie; if none of their files changed, nothing did."""

    def kinds(self, split: str) -> frozenset[Kind]:
        """The kinds that at least one image of the split has."""
        ids = self.ids(split)
        return frozenset(kind for kind in Kind if self.having(kind, ids))

    def problems(self, id: str, kinds: Collection[Kind]) -> list[Problem]:
        """What is wrong with one image and its labels of these kinds; reads them fully."""
        from labelwise.datasets.checks import problems_of

        return problems_of(self, id, kinds)

    def require_split(self, split: str) -> str:
        """The split's name, if there is one of that name.

        Raises:
            UserError: no such split.
        """
        if split not in self.splits:
            raise UserError(f"{self.root}: no split '{split}'{did_you_mean(split, self.splits)}")
        return split


def under(root: Path, relative: str | Path) -> Path:
    """Join a path that came from a label file to the root and refuse it if it leaves the root.

    Raises:
        UserError: the path is absolute, holds `..` beyond the root, or is a link out of it.
    """
    inside = _real(os.path.abspath(root))  # noqa: PTH100
    # Strings, because resolving `Path` objects would take longer than reading a small annotation.
    path = os.path.realpath(os.path.join(inside, relative))  # noqa: PTH118
    if path != inside and not path.startswith(os.path.join(inside, "")):  # noqa: PTH118
        raise UserError(f"'{relative}' leaves the data set's folder {root}; use names below that folder only")
    return Path(path)


@lru_cache(maxsize=16)
def _real(root: str) -> str:
    return os.path.realpath(root)


def unique(ids: Sequence[str]) -> tuple[str, ...]:
    """The ids in their order, each once."""
    return tuple(dict.fromkeys(ids))


@contextmanager
def naming(id: str) -> Iterator[None]:
    """Add the image's id to the problem of any file that cannot be used meanwhile."""
    try:
        yield
    except BadFile as error:
        raise BadFile(replace(error.problem, id=id)) from error
