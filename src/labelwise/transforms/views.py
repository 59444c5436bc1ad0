"""From a sample as read to the views that a training step sees.

All randomness comes from torch's global generator, which the loader seeds for every draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from labelwise.samples import Sample, Views


class WeakView:
    """One geometrically transformed view, with its labels and the map of its padding."""

    def __init__(self, geometric: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Remember the transform.

        Args:
            geometric: a joint transform of `torchvision.transforms.v2` that pads uint8 masks with 255.
        """
        self.geometric = geometric

    def __call__(self, sample: Sample) -> Views:
        """Transform image and labels; what has left the image is removed with its labels."""
        content = {name: value for name, value in vars(sample).items() if name != "id" and value is not None}
        # A mask without any label, transformed along, is 255 where the transform has padded.
        blank = tv_tensors.Mask(torch.zeros(sample.image.shape[-2:], dtype=torch.uint8))
        content = self.geometric({**content, "padding": blank})
        padding = content.pop("padding").as_subclass(Tensor) != 0
        return Views(sample=without_vanished(replace(sample, **content)), padding=padding)


class WeakStrongView:
    """A weak view and further views of the same crop, each with its own photometric changes."""

    def __init__(
        self,
        geometric: Callable[[dict[str, Any]], dict[str, Any]],
        photometric: Callable[[tv_tensors.Image], tv_tensors.Image],
        views: int = 1,
    ) -> None:
        """Remember the transforms.

        Args:
            geometric: drawn once and shared by all views.
            photometric: drawn anew for every strong view.
            views: number of strong views.
        """
        self.weak, self.photometric, self.views = WeakView(geometric), photometric, views

    def __call__(self, sample: Sample) -> Views:
        """Transform the sample; its labels ride with the weak view."""
        weak = self.weak(sample)
        strong = (self.photometric(weak.sample.image).as_subclass(Tensor) for _ in range(self.views))
        return replace(weak, strong=tuple(strong))


def without_vanished(sample: Sample) -> Sample:
    """Remove boxes, instances and points that have left the image, with their labels."""
    kept: dict[str, Any] = {}
    if sample.boxes is not None:
        kept["boxes"], inside = functional.sanitize_bounding_boxes(sample.boxes)
        kept |= _where(sample, inside, "box_labels", "difficult")
    if sample.instances is not None:
        inside = sample.instances.as_subclass(Tensor).flatten(1).any(1)
        kept["instances"] = tv_tensors.Mask(sample.instances[inside])
        kept |= _where(sample, inside, "instance_labels")
    if sample.points is not None:
        kept["points"], inside = functional.sanitize_keypoints(sample.points)
        kept |= _where(sample, inside, "point_labels")
    return replace(sample, **kept)


def _where(sample: Sample, keep: Tensor, *names: str) -> dict[str, Tensor]:
    return {name: getattr(sample, name)[keep] for name in names if getattr(sample, name) is not None}
