"""Augmentation: weak (geometric) and strong (photometric) views, and mixing."""

from __future__ import annotations

from labelwise.transforms.strong import GaussianBlur, photometric
from labelwise.transforms.views import WeakStrongView, WeakView
from labelwise.transforms.weak import RandomChoiceScaleCrop, RandomScaleCrop

__all__ = [
    "GaussianBlur",
    "RandomChoiceScaleCrop",
    "RandomScaleCrop",
    "WeakStrongView",
    "WeakView",
    "photometric",
]
