"""What a synthetic data set holds, which are the options of the verb `shapes`, and its random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator, SeedSequence

from labelwise.errors import UserError, did_you_mean, require_at_least

Noise = Literal["none", "dilated", "eroded", "uneven", "shifted", "missing", "wrong_class", "context"]
"""How the train masks are spoiled."""
Scenes = Literal["objects", "textures", "stripes", "heads", "rails", "rare"]
"""What is in the pictures."""

MINIMUM_SIZE = {"objects": 48, "textures": 32, "stripes": 48, "heads": 40, "rails": 40, "rare": 40}
"""The smallest image in pixels: rungs, handles and teeth of objects, and stripes, still cover whole pixels."""
SPLITS = ("train", "val", "ood")
MAXIMUM_SIZE = 2048
"""A scene is drawn in memory, several times over."""


@dataclass(frozen=True, kw_only=True)
class ShapesOptions:
    """How many scenes of which size, and what makes them harder.

    Raises:
        UserError: a value is out of its range.
    """

    scenes: Scenes = "objects"
    "objects of eight classes; or simpler scenes for minutes, named after what tells a class: textures, stripes, ..."
    train: int = 480
    "images in the split train"
    val: int = 120
    "images in the split val"
    size: int = 96
    "width and height in pixels"
    seed: int = 0
    "the scenes follow from it; a larger set begins with the images of a smaller one"
    noise: Noise = "none"
    "how the train masks are spoiled; the true ones are kept in SegmentationClassTrue"
    noise_amount: float = 0.5
    "share of the train objects whose mask is spoiled, 0 to 1"
    context: float = 0.0
    "share of the objects that are put on their class's own ground, 0 to 1; the others stand on any ground"
    ood: int = 0
    "images without any object, but on the classes' grounds; listed in the split ood"
    parts: bool = False
    "objects have a plain body that all classes share and one small part that tells the class"
    single: bool = False
    "one object in each picture instead of one to four"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("train", "val", "ood", "seed"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("noise_amount", "context"):
            if not 0 <= getattr(self, name) <= 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name)}: must be a share between 0 and 1")
        if self.scenes not in MINIMUM_SIZE:
            raise UserError(f"unknown --scenes '{self.scenes}'{did_you_mean(self.scenes, MINIMUM_SIZE)}")
        least = MINIMUM_SIZE[self.scenes]
        if not least <= self.size <= MAXIMUM_SIZE:
            raise UserError(f"--size {self.size}: must be between {least} and {MAXIMUM_SIZE} pixels")
        self._refuse_strange()
        if self.noise not in get_args(Noise):
            raise UserError(f"unknown --noise '{self.noise}'{did_you_mean(self.noise, get_args(Noise))}")

    def _refuse_strange(self) -> None:
        """Refuse options that other scenes have."""
        if self.scenes == "objects":
            return
        if self.noise == "context":
            raise UserError(f"--noise context: --scenes {self.scenes} have no grounds of their own; take objects")
        given = {"context": self.context, "parts": self.parts, "single": self.single, "ood": self.ood}
        if self.scenes == "rails":
            del given["ood"]
        if any(given.values()):
            *most, last = (f"--{name}" for name in given)
            raise UserError(
                f"--scenes {self.scenes}: have no {', '.join(most)} or {last}; leave them out, or take objects"
            )


def random_state(options: ShapesOptions, split: str, index: int, purpose: int = 0) -> Generator:
    """The random numbers of one image.

    They depend on the seed, the split and the index alone, so that a larger set begins with a smaller one.

    Raises:
        UserError: the generator has no such split.
    """
    if split not in SPLITS:
        raise UserError(f"shapes have no split '{split}'{did_you_mean(split, SPLITS)}")
    return np.random.default_rng(SeedSequence(options.seed, spawn_key=(SPLITS.index(split), index, purpose)))
