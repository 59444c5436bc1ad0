"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a file to write so that a reader, a crash or a full disk never leaves a part of it.

    The bytes go to a temporary file in the same folder, reach the disk when the block ends, and then take the file's
    name at once; until then an older file of that name stays as it was.

    Args:
        path: the file.
        durable: wait for the disk, so that the file outlives a power cut. Without, it outlives a killed process only,
            which is enough for files that can be made again, and many times faster for small ones.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; nothing is left behind.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # A full disk is noticed by the descriptor, which knows no name.
            error.filename = error.filename or str(path)
        raise
    if durable:
        _sync_folder(path.parent)


def atomic_write(path: Path, content: bytes | str, durable: bool = True) -> None:
    """Replace a file's whole content as `atomic_file` does; text is written as UTF-8."""
    with atomic_file(path, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def cache_home() -> Path:
    """Where what can be made again is kept: `$LABELWISE_CACHE`, or `labelwise` in the user's cache folder."""
    home = os.environ.get("LABELWISE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "labelwise"
    return Path(home).expanduser()


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk as well, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
