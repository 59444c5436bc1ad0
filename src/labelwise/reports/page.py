"""What all pages share: the template environment, how numbers are written, atomic files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from jinja2 import Environment, PackageLoader, StrictUndefined

from labelwise.files import atomic_write
from labelwise.reports.statistics import NO_INTERVAL

DASH = "–"
_UNITS = ("MB", "GB", "TB")


def render(template: str, **content: Any) -> str:
    """A page from a template of this package; all text is escaped."""
    return _environment().get_template(template).render(**content)


def write_text(path: Path, text: str) -> Path:
    """Write a file as a whole or not at all; its folder is created.

    Returns:
        the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())
    return path


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number (and not a truth value)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def score(value: float | None) -> str:
    """A percentage or a difference of percentages with two decimals; a dash where there is none."""
    return f"{value:.2f}" if value is not None and math.isfinite(value) else DASH


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return f"{value:+.2f}" if value is not None and math.isfinite(value) else DASH


def interval(half_width: float | None) -> str:
    """The half width of a 95 % interval, or why there is none."""
    return NO_INTERVAL if half_width is None else f"± {half_width:.2f}"


def count(value: Any) -> str:
    """A count with its thousands set apart; other numbers in four digits; anything else as it is."""
    if not is_number(value):
        return DASH if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``8.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def memory(megabytes: float | None) -> str:
    """Megabytes in the unit that fits."""
    if megabytes is None or not math.isfinite(megabytes):
        return DASH
    step = 0
    while megabytes >= 1000 and step + 1 < len(_UNITS):
        megabytes, step = megabytes / 1000, step + 1
    return f"{megabytes:.0f} MB" if step == 0 else f"{megabytes:.1f} {_UNITS[step]}"


def flattened(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as rows of dotted name and value."""
    rows: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    return DASH if value is None else str(value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("labelwise.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (score, signed, interval, count, duration, memory)
    environment.filters.update({function.__name__: function for function in filters})
    return environment
