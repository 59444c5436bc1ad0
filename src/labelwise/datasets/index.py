"""A validated index of a data set: every image and label decoded once, remembered until a file changes."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np

from labelwise.datasets.base import DataSet
from labelwise.datasets.checks import problems_of
from labelwise.datasets.listing import Listing
from labelwise.errors import BadFile, Problem
from labelwise.files import atomic_write
from labelwise.samples import Kind, Sample

Progress = Callable[[Iterable[str], int], Iterable[str]]
"""Wraps the ids as they are checked, given how many there are; draws the bar."""

_VERSION = 3
_KINDS = tuple(Kind)
_IMAGE = 0
_COLUMN = {kind: column for column, kind in enumerate(_KINDS, start=1)}
# One column of stamps for the image and one for each kind of label.
_COLUMNS = 1 + len(_KINDS)


@dataclass(frozen=True)
class Index:
    """What is known of images and labels after decoding each of them once.

    Attributes:
        ids: the images, in the order in which they were wanted.
        sizes: [N, 2] int32, height and width of the upright image; 0, 0 where it is damaged.
        problems: everything that is wrong with the images and the wanted labels.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    problems: list[Problem]
    _present: np.ndarray = field(repr=False)
    _boxes: _Boxes = field(repr=False)
    _rows: np.ndarray = field(repr=False)

    @classmethod
    def build(
        cls,
        dataset: DataSet,
        wanted: Mapping[str, frozenset[Kind]],
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Index:
        """Check the images and their wanted labels, or recall what an earlier call found.

        What was found is kept in the folder; a later call looks at names, sizes and times of the files and opens only
        those that are new or changed. Labels of kinds that are not wanted are never opened.

        Args:
            dataset: the data set.
            wanted: for each image the kinds of label to read.
            folder: where to keep the index; None keeps nothing.
            progress: wraps the ids while files are opened; not called if there are none to open.

        Raises:
            OSError: the folder cannot be written to.
        """
        file = None if folder is None else folder / f"index-{_key(dataset, any(wanted.values()))}.npz"
        listing = Listing(dataset.label_folders())
        table = _load(file)
        fresh = table.digest == listing.digest
        if fresh:
            with suppress(KeyError):
                return table.index(wanted)
        entries = table.entries() if fresh else _unchanged(table.entries(), dataset, listing)
        _check_all(entries, wanted, dataset, listing, progress)
        table = _Table.of(entries, listing.digest)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, table.encoded())
        return table.index(wanted)

    @property
    def broken(self) -> frozenset[str]:
        """The images that have a problem."""
        return frozenset(problem.id for problem in self.problems if problem.id is not None)

    def size(self, id: str) -> tuple[int, int]:
        """Height and width of the upright image."""
        height, width = self.sizes[self._places[id]].tolist()
        return height, width

    def kinds(self, id: str) -> frozenset[Kind]:
        """The wanted kinds that the image has."""
        present = int(self._present[self._places[id]])
        return frozenset(kind for kind, column in _COLUMN.items() if present >> column & 1)

    def boxes(self, id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The boxes of an image for which boxes were wanted; empty where it has none or they are damaged.

        Returns:
            boxes [N, 4] float32 as in `Sample`, class numbers [N] int64, difficult [N] bool.
        """
        return self._boxes.of(int(self._rows[self._places[id]]))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}


@dataclass(frozen=True)
class _Boxes:
    """The boxes of many images, one after the other."""

    ends: np.ndarray
    corners: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray

    def of(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))
        return self.corners[part], self.labels[part], self.difficult[part]


@dataclass
class _Entry:
    """What is known of one image. Bit 0 of `checked` and `present` is the image, the others are the kinds."""

    size: tuple[int, int] = (0, 0)
    checked: int = 0
    present: int = 0
    stamps: list[int] = field(default_factory=lambda: [0] * _COLUMNS)
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    problems: dict[int, list[Problem]] = field(default_factory=dict)

    def forget(self, column: int) -> None:
        """Forget what is known of one kind, because its files changed."""
        self.checked &= ~(1 << column)
        self.present &= ~(1 << column)
        self.problems.pop(column, None)
        if column == _COLUMN[Kind.BOXES]:
            self.boxes, self.labels, self.difficult = self.boxes[:0], self.labels[:0], self.difficult[:0]


@dataclass(frozen=True)
class _Table:
    """All entries as arrays: what is kept in the file, and all that a warm start touches."""

    digest: str
    ids: tuple[str, ...]
    sizes: np.ndarray
    checked: np.ndarray
    present: np.ndarray
    stamps: np.ndarray
    boxes: _Boxes
    problems: list[tuple[str, int, Problem]]

    @classmethod
    def of(cls, entries: Mapping[str, _Entry], digest: str) -> _Table:
        every = list(entries.values())
        counts = np.array([len(entry.boxes) for entry in every], dtype=np.int64)
        return cls(
            digest=digest,
            ids=tuple(entries),
            sizes=np.array([entry.size for entry in every], dtype=np.int32).reshape(-1, 2),
            checked=np.array([entry.checked for entry in every], dtype=np.uint8),
            present=np.array([entry.present for entry in every], dtype=np.uint8),
            stamps=np.array([entry.stamps for entry in every], dtype=np.uint64).reshape(-1, _COLUMNS),
            boxes=_Boxes(
                ends=np.cumsum(counts),
                corners=np.concatenate([_Entry().boxes, *(entry.boxes for entry in every)]),
                labels=np.concatenate([_Entry().labels, *(entry.labels for entry in every)]),
                difficult=np.concatenate([_Entry().difficult, *(entry.difficult for entry in every)]),
            ),
            problems=[
                (id, column, problem)
                for id, entry in entries.items()
                for column, problems in entry.problems.items()
                for problem in problems
            ],
        )

    def entries(self) -> dict[str, _Entry]:
        entries: dict[str, _Entry] = {}
        for row, id in enumerate(self.ids):
            boxes, labels, difficult = self.boxes.of(row)
            height, width = self.sizes[row].tolist()
            checked, present, stamps = int(self.checked[row]), int(self.present[row]), self.stamps[row].tolist()
            entries[id] = _Entry((height, width), checked, present, stamps, boxes, labels, difficult)
        for id, column, problem in self.problems:
            entries[id].problems.setdefault(column, []).append(problem)
        return entries

    def index(self, wanted: Mapping[str, frozenset[Kind]]) -> Index:
        """The part that is wanted.

        Raises:
            KeyError: some of it was never checked.
        """
        places = {id: row for row, id in enumerate(self.ids)}
        rows = np.array([places[id] for id in wanted], dtype=np.int64)
        bits = _bits(wanted)
        unknown = self.checked[rows] & bits != bits
        if unknown.any():
            raise KeyError(self.ids[rows[unknown][0]])
        problems = [
            problem
            for id, column, problem in self.problems
            if id in wanted and (column == _IMAGE or _KINDS[column - 1] in wanted[id])
        ]
        return Index(
            ids=tuple(wanted),
            sizes=self.sizes[rows],
            problems=list(dict.fromkeys(problems)),
            _present=self.present[rows] & bits,
            _boxes=self.boxes,
            _rows=rows,
        )

    def encoded(self) -> bytes:
        problems = [
            (id, column, os.fspath(problem.path), problem.reason, problem.mend, problem.id)
            for id, column, problem in self.problems
        ]
        text = json.dumps({"digest": self.digest, "ids": self.ids, "problems": problems})
        buffer = BytesIO()
        np.savez(
            buffer,
            text=np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8),
            sizes=self.sizes,
            checked=self.checked,
            present=self.present,
            stamps=self.stamps,
            ends=self.boxes.ends,
            corners=self.boxes.corners,
            labels=self.boxes.labels,
            difficult=self.boxes.difficult,
        )
        return buffer.getvalue()

    @classmethod
    def decoded(cls, content: bytes) -> _Table:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            text = json.loads(arrays["text"].tobytes().decode("utf-8", "surrogateescape"))
            return cls(
                digest=text["digest"],
                ids=tuple(text["ids"]),
                sizes=arrays["sizes"],
                checked=arrays["checked"],
                present=arrays["present"],
                stamps=arrays["stamps"],
                boxes=_Boxes(arrays["ends"], arrays["corners"], arrays["labels"], arrays["difficult"]),
                problems=[
                    (id, column, Problem(Path(path), reason, mend, named))
                    for id, column, path, reason, mend, named in text["problems"]
                ],
            )


def _key(dataset: DataSet, labeled: bool) -> str:
    """What an index file is about; classes matter to labels only, and may be unknown for bare images."""
    classes = repr(dataset.classes) if labeled else ""
    about = repr((_VERSION, dataset.layout, os.fspath(dataset.root.resolve()), classes))
    return hashlib.blake2b(about.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _load(file: Path | None) -> _Table:
    """The table in the file; an empty one if there is none, or a damaged one."""
    try:
        return _Table.of({}, "") if file is None else _Table.decoded(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return _Table.of({}, "")


def _bits(wanted: Mapping[str, frozenset[Kind]]) -> np.ndarray:
    """[N] uint8: bit 0 for the image and one for each wanted kind."""
    known = {kinds: sum((1 << _COLUMN[kind] for kind in kinds), start=1) for kinds in set(wanted.values())}
    return np.array([known[kinds] for kinds in wanted.values()], dtype=np.uint8)


def _unchanged(entries: dict[str, _Entry], dataset: DataSet, listing: Listing) -> dict[str, _Entry]:
    """What is still true: an image that changed takes everything with it, a label only itself."""
    kept: dict[str, _Entry] = {}
    for id, entry in entries.items():
        if listing.stamp(_files(dataset, id, None)) != entry.stamps[_IMAGE]:
            continue
        for kind, column in _COLUMN.items():
            if entry.checked >> column & 1 and listing.stamp(_files(dataset, id, kind)) != entry.stamps[column]:
                entry.forget(column)
        kept[id] = entry
    return kept


def _files(dataset: DataSet, id: str, kind: Kind | None) -> tuple[Path, ...]:
    """The files of one kind, or the image (None); none where they are missing or lie outside the data set."""
    try:
        return (dataset.image_file(id),) if kind is None else dataset.label_files(id, kind)
    except BadFile:
        return ()


def _check_all(
    entries: dict[str, _Entry],
    wanted: Mapping[str, frozenset[Kind]],
    dataset: DataSet,
    listing: Listing,
    progress: Progress | None,
) -> None:
    """Add what is wanted and not known yet; decoding releases the interpreter's lock, so threads help."""
    bits = dict(zip(wanted, _bits(wanted).tolist(), strict=True))
    missing = [id for id in wanted if id not in entries or entries[id].checked & bits[id] != bits[id]]

    def check(id: str) -> _Entry:
        return _checked(entries.get(id, _Entry()), id, wanted[id], dataset, listing)

    def finished(results: Iterable[_Entry]) -> Iterator[str]:
        for id, entry in zip(missing, results, strict=True):
            entries[id] = entry
            yield id

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        ids: Iterable[str] = finished(pool.map(check, missing))
        if progress is not None and missing:
            ids = progress(ids, len(missing))
        deque(ids, maxlen=0)


def _checked(entry: _Entry, id: str, wanted: Collection[Kind], dataset: DataSet, listing: Listing) -> _Entry:
    """The entry with one image and those of the kinds that are not known yet, each decoded fully."""
    kinds = [kind for kind in wanted if not entry.checked >> _COLUMN[kind] & 1]
    sample = _readable(entry, id, kinds, dataset)
    for kind, column in ((None, _IMAGE), *((kind, _COLUMN[kind]) for kind in kinds)):
        files = _files(dataset, id, kind)
        entry.stamps[column] = listing.stamp(files)
        entry.checked |= 1 << column
        entry.present |= bool(files) << column
    if sample is not None:
        entry.size = (sample.image.shape[1], sample.image.shape[2])
    if sample is not None and sample.boxes is not None:
        entry.boxes, entry.labels, entry.difficult = (
            part.numpy() for part in (sample.boxes, sample.box_labels, sample.difficult) if part is not None
        )
    return entry


def _readable(entry: _Entry, id: str, kinds: Collection[Kind], dataset: DataSet) -> Sample | None:
    """What can be read of a sample; notes the problems of the rest."""
    try:
        return dataset.read(id, kinds)
    except BadFile:
        entry.problems[_IMAGE] = problems_of(dataset, id, ())
    if entry.problems[_IMAGE]:
        return None
    found = {kind: problems_of(dataset, id, (kind,)) for kind in kinds}
    entry.problems |= {_COLUMN[kind]: problems for kind, problems in found.items()}
    return dataset.read(id, [kind for kind in kinds if not found[kind]])
