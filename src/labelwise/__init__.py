"""labelwise: train vision models from whatever labels you have."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "annotate": "labelwise.verbs.predict",
    "catalogue": "labelwise.verbs.catalogue",
    "compare": "labelwise.verbs.compare",
    "convert": "labelwise.verbs.convert",
    "evaluate": "labelwise.verbs.evaluate",
    "inspect": "labelwise.verbs.inspect",
    "label": "labelwise.verbs.label",
    "load_model": "labelwise.saved",
    "mine_ood": "labelwise.verbs.mine_ood",
    "open": "labelwise.datasets",
    "predict": "labelwise.verbs.predict",
    "refine": "labelwise.verbs.refine",
    "report": "labelwise.verbs.report",
    "reproduce": "labelwise.verbs.reproduce",
    "run": "labelwise.verbs.run",
    "select": "labelwise.verbs.select",
    "shapes": "labelwise.verbs.shapes",
    "train": "labelwise.verbs.train",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'labelwise' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
