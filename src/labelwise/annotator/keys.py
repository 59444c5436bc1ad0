"""One key for each class, so that a label is one press and no mouse is needed.

As in PixelPick's tool (Shin et al., "All You Need Are a Few Pixels", ICCV workshop 2021) a key is a letter of the
class's name where one is free, and the classes of VOC have the keys of its three rows of letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase, digits

from labelwise.datasets.voc import VOC_NAMES

KEYS = ascii_lowercase + digits
"""The keys that classes may have; all others are left to the page (Space skips, / searches, ...)."""

_VOC_KEYS = "qwertyuiopasdfghjklzx"


@dataclass(frozen=True)
class Key:
    """The key of a class.

    Attributes:
        number: the class number.
        name: the class name.
        key: a lower-case letter or a digit, or None where there are more classes than keys.
        position: where the key stands in the name, or None where it does not.
    """

    number: int
    name: str
    key: str | None
    position: int | None


def assign_keys(names: Sequence[str]) -> list[Key]:
    """The keys of classes, each key once.

    First every class, in the order of its number, takes the first letter of its name that is free; then those that
    found none take any free letter or digit. With more than 36 classes the rest has no key.

    Args:
        names: the classes in the order of their numbers.
    """
    keys = dict(enumerate(_VOC_KEYS)) if tuple(names) == VOC_NAMES else _from_names(names)
    free = iter([key for key in KEYS if key not in keys.values()])
    for number in range(len(names)):
        if number not in keys and (key := next(free, None)) is not None:
            keys[number] = key
    return [_key(number, name, keys.get(number)) for number, name in enumerate(names)]


def _from_names(names: Sequence[str]) -> dict[int, str]:
    keys: dict[int, str] = {}
    taken: set[str] = set()
    for number, name in enumerate(names):
        # Letter by letter, because the lower case of a whole name may be longer than the name.
        key = next((letter for letter in map(str.lower, name) if letter in KEYS and letter not in taken), None)
        if key is not None:
            keys[number] = key
            taken.add(key)
    return keys


def _key(number: int, name: str, key: str | None) -> Key:
    place = None if key is None else next((place for place, letter in enumerate(name) if letter.lower() == key), None)
    return Key(number, name, key, place)
