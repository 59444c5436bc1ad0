"""The plain listing of the methods: name -> "module:Class"."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from labelwise.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from labelwise.method import Method

METHODS: dict[str, str] = {
    "cps": "labelwise.methods.few_masks.cps:CPS",
    "supervised": "labelwise.methods.masks.supervised:Supervised",
}


def load(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: no method has that name.
    """
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'{did_you_mean(name, METHODS)} (`labelwise methods` lists them)")
    module, attribute = METHODS[name].split(":")
    method: type[Method] = getattr(import_module(module), attribute)
    return method
