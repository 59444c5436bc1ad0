"""The fields of a request; one that is missing or wrong raises a `ValueError` of one line that names it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_NAME = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LONGEST = 24 * 3600
"""Seconds that an answer can have taken at most."""


def name_of(body: Mapping[str, Any], field: str) -> str:
    """The name of an answer or a tab: a UUID, or anything like it."""
    value = body.get(field)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{field}: must be a UUID")
    return value


def text_of(body: Mapping[str, Any], field: str) -> str:
    """A text."""
    value = body.get(field)
    if not isinstance(value, str):
        raise ValueError(f"{field}: must be a word")
    return value


def whole_of(body: Mapping[str, Any], field: str) -> int:
    """A whole number."""
    value = body.get(field)
    if not is_whole(value):
        raise ValueError(f"{field}: must be a whole number")
    return int(value)  # type: ignore[arg-type]


def seconds_of(body: Mapping[str, Any]) -> float:
    """What an answer took."""
    value = body.get("seconds")
    if not _is_number(value) or not 0 <= value <= _LONGEST:  # type: ignore[operator]
        raise ValueError(f"seconds: must be a number from 0 to {_LONGEST}")
    return float(value)  # type: ignore[arg-type]


def number_of(given: Mapping[str, str], field: str, default: int | None, most: int = 2**31 - 1) -> int:
    """A whole number of an address; one without a default has to be there."""
    text = given.get(field, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > most:
        raise ValueError(f"{field}: must be a whole number from 0 to {most}")
    return int(text)


def decimal(text: str) -> float | None:
    """A decimal number of an address; None where the text is none."""
    return float(text) if re.fullmatch(r"[0-9]{1,9}([.][0-9]{1,20})?", text) else None


def is_whole(value: object) -> bool:
    """Whether this is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_box(value: object) -> bool:
    """Whether this is a box: `box` (four numbers), `class` (a number) and, if at all, `difficult` (true or false)."""
    if not isinstance(value, dict) or not isinstance(value.get("box"), list):
        return False
    corners: Sequence[object] = value["box"]
    return (
        len(corners) == 4
        and all(map(_is_number, corners))
        and is_whole(value.get("class"))
        and isinstance(value.get("difficult", False), bool)
    )
