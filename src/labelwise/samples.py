"""What a sample is: one image and the labels that were read for it; and how samples become a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision import tv_tensors

IGNORE_INDEX = 255
"""The mask value of pixels that take part in neither loss nor score."""


class Kind(StrEnum):
    """A kind of label that an image can carry."""

    MASKS = "masks"
    INSTANCES = "instances"
    BOXES = "boxes"
    TAGS = "tags"
    POINTS = "points"
    CAPTIONS = "captions"
    MAPS = "maps"


DERIVABLE: dict[Kind, frozenset[Kind]] = {
    Kind.MASKS: frozenset({Kind.TAGS, Kind.POINTS}),
    Kind.INSTANCES: frozenset({Kind.MASKS, Kind.BOXES, Kind.TAGS, Kind.POINTS}),
    Kind.BOXES: frozenset({Kind.TAGS}),
    Kind.TAGS: frozenset(),
    Kind.POINTS: frozenset({Kind.TAGS}),
    Kind.CAPTIONS: frozenset(),
    Kind.MAPS: frozenset({Kind.TAGS}),
}
"""The weaker kinds that can be derived from a stronger one."""


def with_derivable(kinds: Iterable[Kind]) -> frozenset[Kind]:
    """The kinds and everything that can be derived from them."""
    given = frozenset(kinds)
    return given.union(*(DERIVABLE[kind] for kind in given))


@dataclass(kw_only=True)  # not frozen: lightning moves batches between devices by setting the fields of a copy
class ScoreMaps:
    """How much each pixel of an image speaks for each of its tags, such as class activation maps; made, never drawn.

    Each map is divided by its own maximum. The coarse ones are no reduction of the fine ones: both come from the
    network's own maps.
    """

    labels: Tensor
    "[N] int64 class numbers, never the background"
    fine: Tensor
    "[N, H, W] float32 from 0 to 1, at the image's size"
    coarse: Tensor
    "[N, ceil(H / 4), ceil(W / 4)] float32 from 0 to 1"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and the labels that were allowed and present; every other field is None.

    Class numbers are positions in the data set's `classes.names`, in masks, boxes, instances and points alike.
    """

    id: str
    image: tv_tensors.Image
    "[3, H, W] uint8, RGB"
    mask: tv_tensors.Mask | None = None
    "[H, W] uint8, class numbers, 255 = ignore"
    instances: tv_tensors.Mask | None = None
    "[N, H, W] bool, one mask per object"
    instance_labels: Tensor | None = None
    "[N] int64"
    boxes: tv_tensors.BoundingBoxes | None = None
    "[N, 4] float32 XYXY in pixels, half-open: xmin - 1, ymin - 1, xmax, ymax of the VOC file"
    box_labels: Tensor | None = None
    "[N] int64"
    difficult: Tensor | None = None
    "[N] bool, boxes that neither reward nor punish in evaluation"
    tags: Tensor | None = None
    "[C] uint8 over all classes: 1 present, 0 absent, 255 only difficult objects; the background's entry is 0"
    proposals: tv_tensors.BoundingBoxes | None = None
    "[P, 4] float32 as `boxes`: where objects may be, best first; made from the image alone, never read as a label"
    points: tv_tensors.KeyPoints | None = None
    "[P, 2] float32 (x, y) in pixels"
    point_labels: Tensor | None = None
    "[P] int64"
    captions: tuple[str, ...] | None = None
    maps: ScoreMaps | None = None

    def transformed(self, transform: Callable[[dict[str, Any]], dict[str, Any]]) -> Sample:
        """Apply a `torchvision.transforms.v2` transform jointly to the image and every label."""
        content = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "id"}
        present = {name: value for name, value in content.items() if value is not None}
        return replace(self, **transform(present))


@dataclass(kw_only=True)
class Batch:
    """Samples of one stream, after augmentation; what a training step sees.

    Fields that differ in size from image to image (boxes, instances, points) are lists of length B.
    """

    ids: tuple[str, ...]
    image: Tensor
    "[B, 3, H, W] uint8, the weak view"
    strong: tuple[Tensor, ...] = ()
    "each [B, 3, H, W] uint8: further views of the same crops with their own photometric changes"
    padding: Tensor | None = None
    "[B, H, W] bool, True outside the image"
    mask: Tensor | None = None
    "[B, H, W] uint8"
    tags: Tensor | None = None
    "[B, C] uint8"
    boxes: list[Tensor] | None = None
    box_labels: list[Tensor] | None = None
    difficult: list[Tensor] | None = None
    proposals: list[Tensor] | None = None
    instances: list[Tensor] | None = None
    instance_labels: list[Tensor] | None = None
    points: list[Tensor] | None = None
    point_labels: list[Tensor] | None = None
    captions: list[tuple[str, ...]] | None = None
    maps: list[ScoreMaps] | None = None
    targets: dict[str, list[Tensor]] = field(default_factory=dict)
    "as of `Views`, one tensor per image"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image without what was added on its right and below."""
        height, width = self.image.shape[-2:]
        if self.padding is None:
            return [(height, width)] * len(self)
        rows, columns = (~self.padding).any(2).sum(1).tolist(), (~self.padding).any(1).sum(1).tolist()
        return list(zip(rows, columns, strict=True))


@dataclass(frozen=True, kw_only=True)
class Views:
    """One augmented sample: its weak view with labels, where it is padding, and its strong views."""

    sample: Sample
    padding: Tensor | None = None
    "[H, W] bool"
    strong: tuple[Tensor, ...] = ()
    targets: dict[str, Tensor] = field(default_factory=dict)
    "what a method computes of the sample for its own losses, where that takes long enough to be a loader's work"


_STACKED = ("mask", "tags")
_LISTED = (
    "boxes",
    "box_labels",
    "difficult",
    "proposals",
    "instances",
    "instance_labels",
    "points",
    "point_labels",
    "captions",
    "maps",
)


def collate(views: Sequence[Views]) -> Batch:
    """Stack augmented samples into a batch; a label is present when every sample has it.

    Images of different sizes are filled up with black on the right and below, their masks with 255; `padding` tells
    where, and boxes and points stay as they are.
    """
    views = _of_one_size(views)
    samples = [view.sample for view in views]
    stacked: dict[str, Any] = {name: _stack([getattr(sample, name) for sample in samples]) for name in _STACKED}
    listed: dict[str, Any] = {name: _listed([getattr(sample, name) for sample in samples]) for name in _LISTED}
    return Batch(
        ids=tuple(sample.id for sample in samples),
        image=torch.stack([sample.image.as_subclass(Tensor) for sample in samples]),
        strong=tuple(torch.stack(view) for view in zip(*(view.strong for view in views), strict=True)),
        targets={name: [view.targets[name] for view in views] for name in views[0].targets},
        padding=_stack([view.padding for view in views]),
        **stacked,
        **listed,
    )


def _of_one_size(views: Sequence[Views]) -> Sequence[Views]:
    sizes = [view.sample.image.shape[-2:] for view in views]
    if len(set(sizes)) == 1:
        return views
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return [_filled_up(view, height, width) for view in views]


def _filled_up(view: Views, height: int, width: int) -> Views:
    sample = view.sample
    missing = [0, width - sample.image.shape[-1], 0, height - sample.image.shape[-2]]
    padding = torch.zeros(sample.image.shape[-2:], dtype=torch.bool) if view.padding is None else view.padding
    mask, instances = sample.mask, sample.instances
    return Views(
        sample=replace(
            sample,
            image=tv_tensors.wrap(pad(sample.image, missing), like=sample.image),
            mask=mask if mask is None else tv_tensors.wrap(pad(mask, missing, value=IGNORE_INDEX), like=mask),
            instances=instances if instances is None else tv_tensors.wrap(pad(instances, missing), like=instances),
        ),
        padding=pad(padding, missing, value=True),
        strong=tuple(pad(view, missing) for view in view.strong),
        targets=view.targets,
    )


def _stack(values: list[Tensor | None]) -> Tensor | None:
    present = [value.as_subclass(Tensor) for value in values if value is not None]
    return torch.stack(present) if len(present) == len(values) else None


def _listed(values: list[Any]) -> list[Any] | None:
    if any(value is None for value in values):
        return None
    return [value.as_subclass(Tensor) if isinstance(value, Tensor) else value for value in values]
