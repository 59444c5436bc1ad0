"""The published lists of labelled images, shipped with the package, and the fingerprint that tells lists apart.

The lists of PASCAL VOC 2012 come from UniMatch and TorchSemiSeg (both MIT), those of Cityscapes from UniMatch. At equal
fraction the protocols are not comparable: `classic` draws from the 1,464 carefully drawn masks, `blender` from all
10,582, `priority` from all 10,582 with the careful ones first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

_FILES: dict[str, str] = {
    **{f"classic/{count}": f"voc2012/classic-{count}.txt" for count in (92, 183, 366, 732, 1464)},
    **{f"blender/1_{part}": f"voc2012/blender-1_{part}.txt" for part in (16, 8, 4, 2)},
    **{f"priority/1_{part}": f"voc2012/priority-1_{part}.txt" for part in (16, 8, 4)},
    **{f"cityscapes/1_{part}": f"cityscapes/1_{part}.txt" for part in (30, 16, 8, 4, 2)},
}

NAMES: tuple[str, ...] = tuple(_FILES)
"""The names of the partitions: ``classic/183``, ``blender/1_8``, ``priority/1_8``, ``cityscapes/1_8``, ..."""


@dataclass(frozen=True)
class Partition:
    """A published split of the training images into labelled and unlabelled ones.

    Attributes:
        name: for example ``classic/183``.
        labeled: the ids of the labelled images, in the order of the list.
        pool: every training image of the protocol, labelled or not; None where it is the data set's own split.
    """

    name: str
    labeled: tuple[str, ...]
    pool: tuple[str, ...] | None


def load(name: str) -> Partition:
    """The published partition of a name.

    Args:
        name: one of `NAMES`.

    Raises:
        KeyError: there is no partition of that name.
    """
    path = _FILES[name]
    pool = read("voc2012/train_aug.txt") if path.startswith("voc2012/") else None
    return Partition(name, read(path), pool)


@cache
def read(path: str) -> tuple[str, ...]:
    """The ids of a shipped list, such as ``voc2012/train_aug.txt``, in its order."""
    return tuple(resources.files(__name__).joinpath(path).read_text(encoding="ascii").split())


def fingerprint(ids: Iterable[str]) -> str:
    """12 hex digits that depend on which ids there are, not on their order.

    The first digits of SHA-256 over the sorted ids joined by newlines.
    """
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:12]
