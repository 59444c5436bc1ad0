"""What a synthetic data set holds; these are the options of the verb `shapes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from labelwise.errors import UserError, did_you_mean, require_at_least

Noise = Literal["none", "dilated", "eroded", "shifted", "missing", "wrong_class"]
"""How the train masks are spoiled."""

MINIMUM_SIZE = 48
"""The smallest image on which rungs, handles and teeth still cover whole pixels, in pixels."""
MAXIMUM_SIZE = 2048
"""A scene is drawn in memory, several times over."""


@dataclass(frozen=True, kw_only=True)
class ShapesOptions:
    """How many scenes of which size, and what makes them harder.

    Raises:
        UserError: a value is out of its range.
    """

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

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("train", "val", "ood", "seed"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("noise_amount", "context"):
            if not 0 <= getattr(self, name) <= 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name)}: must be a share between 0 and 1")
        if not MINIMUM_SIZE <= self.size <= MAXIMUM_SIZE:
            raise UserError(f"--size {self.size}: must be between {MINIMUM_SIZE} and {MAXIMUM_SIZE} pixels")
        if self.noise not in get_args(Noise):
            raise UserError(f"unknown --noise '{self.noise}'{did_you_mean(self.noise, get_args(Noise))}")
