"""From presets, files and options to a method's typed configuration."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from labelwise.errors import UserError, did_you_mean
from labelwise.method import Method, MethodConfig
from labelwise.runs import read_yaml

T = TypeVar("T")

_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def make_config(method: type[Method], preset: Mapping[str, Any], options: Mapping[str, Any]) -> MethodConfig:
    """A method's configuration: its defaults, then the preset, then the options.

    Raises:
        UserError: an option that the method does not have, or a value of the wrong type.
    """
    return make_options(method.Config, {**preset, **options}, f"method '{method.card.name}'")


def make_options(kind: type[T], values: Mapping[str, Any], owner: str) -> T:
    """A dataclass of options from plain data, such as a YAML file holds.

    Args:
        kind: the dataclass.
        values: name -> value; the others stay at their defaults.
        owner: who has the options, in messages.

    Raises:
        UserError: an option that there is not, or a value of the wrong type.
    """
    hints = get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise UserError(f"{owner} has no option '{name}'{did_you_mean(str(name), hints)}")
    return kind(**{name: _converted(name, value, hints[name]) for name, value in values.items()})


def load_preset(method: type[Method], preset: str | None) -> dict[str, Any]:
    """The options of a shipped preset (`mini`, `small`, `paper`) or of a YAML file, such as a run's `config.yaml`.

    Raises:
        UserError: no such preset or file, or the file belongs to another method or holds a wrong option.
    """
    if preset is None:
        return {}
    if preset in (known := preset_names(method.card.name)):
        text = (resources.files("labelwise") / "presets" / method.card.name / f"{preset}.yaml").read_text()
        shipped: dict[str, Any] = yaml.safe_load(text) or {}
        return shipped
    if not Path(preset).is_file():
        raise UserError(
            f"--preset {preset}: neither a preset of '{method.card.name}' nor a file{did_you_mean(preset, known)}"
        )
    content = read_yaml(Path(preset))
    if content.get("method", method.card.name) != method.card.name:
        raise UserError(f"--preset {preset}: belongs to method '{content['method']}', not '{method.card.name}'")
    options = content.get("options", content)
    if not isinstance(options, dict):
        raise UserError(f"--preset {preset}: its 'options' must hold `name: value` lines")
    try:
        make_config(method, options, {})
    except UserError as error:
        raise UserError(f"--preset {preset}: {error}") from None
    return options


def preset_names(name: str) -> tuple[str, ...]:
    """The presets shipped for a method."""
    folder = resources.files("labelwise") / "presets" / name
    if not folder.is_dir():
        return ()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def option_names(method: type[Method]) -> tuple[str, ...]:
    """The names of a method's options."""
    return tuple(field.name for field in fields(method.Config))


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value as the option's type, if it can mean one."""
    flag = f"--{name.replace('_', '-')}"
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(f"{flag} {value}: must be one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _converted(name, value, next(kind for kind in get_args(hint) if kind is not type(None)))
    if origin is tuple:
        return _converted_tuple(name, value, get_args(hint))
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 as text.
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag} {value}: must be finite")
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"{flag} {value}: must be {_TYPES.get(hint, hint)}")


def _converted_tuple(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = value if isinstance(value, list | tuple) else [value]
    kinds = kinds[:1] * len(parts) if kinds[-1] is Ellipsis else kinds
    if len(parts) != len(kinds):
        raise UserError(f"--{name.replace('_', '-')} {value}: must be {len(kinds)} values")
    return tuple(_converted(name, part, kind) for part, kind in zip(parts, kinds, strict=True))
