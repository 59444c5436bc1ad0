"""Where the label files of a VOC folder are, while people and programs beside this one may change them."""

from __future__ import annotations

import tempfile
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from labelwise.datasets.base import under
from labelwise.datasets.images import refuse
from labelwise.datasets.listing import stems
from labelwise.errors import UserError
from labelwise.files import atomic_write
from labelwise.samples import Kind

Stamp = tuple[int, int, int]
"""Time, size and inode of a file: another one when the file was changed or replaced."""

_FOLDERS = {
    Kind.POINTS: ("Points",),
    Kind.BOXES: ("Annotations",),
    Kind.MASKS: ("SegmentationClass", "SegmentationClassAug"),
}
_WRITTEN = ("Points", "Annotations", "SegmentationClass", "ImageSets", "ImageSets/Main")
_SUFFIXES = {Kind.POINTS: ".json", Kind.BOXES: ".xml", Kind.MASKS: ".png"}

FILE_KINDS = tuple(_FOLDERS)
"""The kinds of which every image has a file of its own."""


@dataclass
class _Listed:
    """The files of a folder, and the time of the folder when they were listed."""

    time: int
    names: dict[str, str]


class LabelFiles:
    """The files of points, boxes and masks of a VOC folder, listed anew where somebody else has changed a folder."""

    def __init__(self, root: Path) -> None:
        """List nothing yet.

        Args:
            root: the data set's folder.
        """
        self.root = root
        self._listed: dict[str, _Listed] = {}

    def find(self, kind: Kind, id: str) -> Path | None:
        """The file of an image, or None.

        Raises:
            BadFile: it leads out of the data set's folder.
        """
        for folder in _FOLDERS[kind]:
            name = self._names(folder, kind).get(id)
            if name is not None:
                return self._inside(f"{folder}/{name}")
        return None

    def having(self, kind: Kind) -> Set[str]:
        """The images that have a file of this kind."""
        return set().union(*(self._names(folder, kind).keys() for folder in _FOLDERS[kind]))

    def stamp(self, kind: Kind, id: str) -> Stamp | None:
        """What tells one content of a file from the next; None where there is no file."""
        for folder in _FOLDERS[kind]:
            name = self._names(folder, kind).get(id)
            if name is not None:
                return stamp_of(self.root / folder / name)
        return None

    def put(self, kind: Kind, id: str, content: bytes) -> None:
        """Write the file of an image, durably; an older one stays as it is until then.

        Raises:
            BadFile: the file leads out of the data set's folder.
            OSError: the disk is full or may not be written to.
        """
        folder = _FOLDERS[kind][0]
        name = self._names(folder, kind).get(id, f"{id}{_SUFFIXES[kind]}")
        path = self._inside(f"{folder}/{name}")
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, content)
        # This change of the folder is known, and no reason to list it anew.
        listed = self._listed[folder]
        listed.names[id], listed.time = name, _time(self.root / folder)

    def remove(self, kind: Kind, id: str) -> None:
        """Delete the file of an image from the folder that `put` writes to.

        Raises:
            OSError: the folder may not be written to.
        """
        folder = _FOLDERS[kind][0]
        name = self._names(folder, kind).get(id)
        if name is not None:
            (self.root / folder / name).unlink(missing_ok=True)
            listed = self._listed[folder]
            listed.names.pop(id, None)
            listed.time = _time(self.root / folder)

    def _names(self, folder: str, kind: Kind) -> dict[str, str]:
        time = _time(self.root / folder)
        listed = self._listed.get(folder)
        if listed is None or listed.time != time:
            listed = self._listed[folder] = _Listed(time, stems(self.root / folder, (_SUFFIXES[kind],)))
        return listed.names

    def _inside(self, name: str) -> Path:
        try:
            return under(self.root, name)
        except UserError:
            refuse(self.root / name, "it leads out of the data set's folder", "put the file itself here")


def stamp_of(path: Path) -> Stamp | None:
    """Time, size and inode of a file, or None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _time(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def require_writable(root: Path, folder: Path) -> None:
    """Refuse a data set that cannot be written to before anybody has labeled anything.

    Args:
        root: the data set's folder.
        folder: for what is no label; it is made.

    Raises:
        UserError: names the folder.
    """
    for path in (root, *(root / name for name in _WRITTEN), folder):
        try:
            if path == folder:
                folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                with tempfile.TemporaryFile(dir=path):
                    pass
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(
                f"{path}: cannot be written to ({reason}); change its permissions, or label a copy with --out DIR"
            ) from None
