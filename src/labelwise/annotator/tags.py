"""Tags in VOC's lists, ``ImageSets/Main/<class>_<split>.txt``, changed image by image."""

from __future__ import annotations

import secrets
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelwise.datasets.images import read_text, refuse
from labelwise.datasets.listing import Listing, stems
from labelwise.datasets.voc import VOC
from labelwise.datasets.voc_labels import read_tag_list
from labelwise.datasets.writing import file_name
from labelwise.files import atomic_write
from labelwise.samples import IGNORE_INDEX

TAGGED = "tagged"
"""The split of the images that were tagged here and stand in no complete tag lists of another one."""

_TEXTS = {1: " 1", 0: "-1", IGNORE_INDEX: " 0"}


@dataclass
class _Table:
    """The tag lists of one split.

    Attributes:
        files: class number -> its list, for every class but the background.
        places: id -> row.
        values: [N, C] uint8 as `Sample.tags`.
    """

    files: dict[int, Path]
    places: dict[str, int]
    values: np.ndarray


class TagLists:
    """The tags of the images that stand in complete tag lists, read anew where somebody else has changed a list."""

    def __init__(self, root: Path) -> None:
        """Open nothing yet.

        Args:
            root: the data set's folder.
        """
        self._root = root
        self._folder = root / "ImageSets" / "Main"
        self._tables: dict[str, _Table] = {}
        self._digest = ""

    def having(self) -> Set[str]:
        """The images that have tags.

        Raises:
            BadFile: a list is wrong.
        """
        return set().union(*(table.places.keys() for table in self._current().values()))

    def of(self, id: str) -> np.ndarray | None:
        """The tags of an image, [C] uint8 as `Sample.tags`; None where it has none.

        Raises:
            BadFile: a list is wrong.
        """
        for table in self._current().values():
            if id in table.places:
                return table.values[table.places[id]].copy()
        return None

    def require_usable(self, id: str) -> None:
        """Make sure that tags of an image can be written.

        Raises:
            BadFile: a list is wrong, or the split `tagged` has an id list but not every tag list.
            UserError: a class's name cannot be part of a file's name.
        """
        if self.of(id) is None:
            for name in VOC(self._root).classes.names:
                file_name(f"{name}_{TAGGED}")
            ids = self._folder / f"{TAGGED}.txt"
            if ids.exists() and TAGGED not in self._tables:
                refuse(ids, "not every class has a tag list for its images", "complete the lists, or rename this one")

    def put(self, id: str, values: np.ndarray) -> None:
        """Write the tags of an image into every list that it stands in, or into those of the split `tagged`.

        Args:
            id: the image.
            values: [C] uint8 as `Sample.tags`.

        Raises:
            BadFile, UserError: as for `require_usable`.
            OSError: the disk is full or may not be written to.
        """
        self.require_usable(id)
        tables = [table for table in self._current().values() if id in table.places]
        for table in tables:
            for number, path in table.files.items():
                if table.values[table.places[id], number] != values[number]:
                    _set_line(path, id, int(values[number]))
            table.values[table.places[id]] = values
        if not tables:
            self._add(id, values)
        self._digest = self._now()

    def _add(self, id: str, values: np.ndarray) -> None:
        """Write the tags of an image that had none; the id list comes last, so that a kill leaves no gap in them."""
        dataset = VOC(self._root)
        self._keep_splits(dataset)
        ids = self._folder / f"{TAGGED}.txt"
        if ids.exists() and TAGGED not in self._tables:
            refuse(ids, "not every class has a tag list for its images", "complete the lists, or rename this one")
        numbers = dataset.classes.objects
        files = {
            number: self._folder / file_name(f"{dataset.classes.names[number]}_{TAGGED}.txt") for number in numbers
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        for number, path in files.items():
            _set_line(path, id, int(values[number]))
        lines = _lines(ids)
        if id not in [line.strip() for line in lines]:
            atomic_write(ids, "".join(f"{line}\n" for line in [*lines, id]))
        table = self._tables.setdefault(TAGGED, _Table(files, {}, np.zeros((0, len(dataset.classes)), np.uint8)))
        table.places[id] = len(table.values)
        table.values = np.concatenate([table.values, values[None]])

    def _keep_splits(self, dataset: VOC) -> None:
        """Write down the splits of a folder that has no lists, as any list would be the end of them."""
        lists = self._folder.parent
        if any(stems(lists / name, (".txt",)) for name in ("Segmentation", "Main")):
            return
        splits = {split: dataset.ids(split) for split in dataset.splits}
        lists.mkdir(exist_ok=True)
        new = lists / f".{secrets.token_hex(8)}.tmp"
        new.mkdir()
        for split, ids in splits.items():
            atomic_write(new / f"{split}.txt", "".join(f"{id}\n" for id in ids))
        try:
            # All lists at once, in the place of an empty folder or none: one list alone would hide the other splits.
            new.replace(self._folder)
        except OSError:
            for path in new.iterdir():
                path.replace(self._folder / path.name)
            new.rmdir()

    def _current(self) -> dict[str, _Table]:
        digest = self._now()
        if digest != self._digest:
            self._tables = self._read()
            self._digest = digest
        return self._tables

    def _now(self) -> str:
        return Listing((self._folder,)).digest

    def _read(self) -> dict[str, _Table]:
        dataset = VOC(self._root)
        names = stems(self._folder, (".txt",))
        tables = {}
        for split in dataset.splits:
            lists = {
                number: names.get(f"{dataset.classes.names[number]}_{split}") for number in dataset.classes.objects
            }
            if split in names and lists and all(lists.values()):
                files = {number: self._folder / str(name) for number, name in lists.items()}
                tables[split] = _read_table(dataset, split, files)
        return tables


def _read_table(dataset: VOC, split: str, files: dict[int, Path]) -> _Table:
    ids = dataset.ids(f"Main/{split}")
    values = np.zeros((len(ids), len(dataset.classes)), dtype=np.uint8)
    for number, path in files.items():
        values[:, number] = read_tag_list(path, ids)
    return _Table(files, {id: place for place, id in enumerate(ids)}, values)


def _set_line(path: Path, id: str, value: int) -> None:
    """Give an image its line in a tag list; the other lines stay to the letter."""
    line = f"{id} {_TEXTS[value]}"
    lines = _lines(path)
    place = next((place for place, other in enumerate(lines) if _id_of(other) == id), None)
    if place is None:
        lines.append(line)
    else:
        lines[place] = line
    atomic_write(path, "".join(f"{other}\n" for other in lines))


def _lines(path: Path) -> list[str]:
    return read_text(path).splitlines() if path.exists() else []


def _id_of(line: str) -> str:
    """The image of a line of a tag list, as `read_tag_list` reads it."""
    return line.replace("\t", " ").strip().rpartition(" ")[0].strip()
