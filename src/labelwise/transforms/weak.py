"""Random scale and crop, jointly over image, masks, boxes and points.

One draw fixes a size to resize to and a window in the resized image; what of the window lies outside the image is
padding: the fill color in the image, 255 in uint8 masks, False in bool masks.

Images are interpolated linearly and anti-aliased, as Pillow does; masks take the nearest pixel, as Pillow does, which
stays aligned with the image (`torchvision`'s own mask resizing is half a pixel off). Points are clicks on a pixel and
stay on whole pixels. Only the window of a mask is computed. The same is not done for images: resizing a piece of an
image gives other values than a piece of the resized image, and on channels-last uint8, what image files decode to, all
of it takes 0.2 to 0.9 ms (375x500, scale 0.5 to 2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from labelwise.samples import IGNORE_INDEX

BLACK = (0, 0, 0)
MEAN_COLOR = (124, 116, 104)
"""The mean color of ImageNet in uint8: 0 after normalisation, up to rounding."""


class ScaleCrop(v2.Transform):
    """Resize, then cut a window, a square unless told; subclasses draw the size and the window."""

    _transformed_types = (tv_tensors.Image, tv_tensors.Mask, tv_tensors.BoundingBoxes, tv_tensors.KeyPoints)

    def __init__(self, crop: int, fill: Sequence[int], width: int | None = None) -> None:
        """Remember the window.

        Args:
            crop: side of the window in pixels.
            fill: RGB color outside the image.
            width: of the window, if it is not as wide as high.
        """
        super().__init__()
        self.crop, self.width, self.fill = crop, width or crop, tuple(fill)

    @abstractmethod
    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Draw (height, width) to resize an image of this size to, and (top, left) of the window in it."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """One draw for everything that belongs to an image."""
        size, origin = self.draw(*v2.query_size(flat_inputs))
        return {"size": size, "origin": origin}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize and cut one part of a sample."""
        size, (top, left) = params["size"], params["origin"]
        if isinstance(inpt, tv_tensors.Image):
            resized = functional.resize(inpt, list(size), antialias=True).as_subclass(Tensor)
            return tv_tensors.wrap(self._window(resized, top, left), like=inpt)
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(self._mask_window(inpt.as_subclass(Tensor), size, top, left), like=inpt)
        if isinstance(inpt, tv_tensors.KeyPoints):
            inpt = _resize_clicks(inpt, size)
        else:
            inpt = functional.resize(inpt, list(size))
        return functional.crop(inpt, top, left, self.crop, self.width)

    def _window(self, image: Tensor, top: int, left: int) -> Tensor:
        height, width = image.shape[-2:]
        rows, columns = _span(top, self.crop, height), _span(left, self.width, width)
        inside = image[:, rows, columns]
        if inside.shape[-2:] == (self.crop, self.width):
            # Whatever the layout of the file's image was: the photometric changes are fastest on whole planes.
            return inside.contiguous()
        window = torch.tensor(self.fill, dtype=image.dtype).view(3, 1, 1).repeat(1, self.crop, self.width)
        window[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
        return window

    def _mask_window(self, mask: Tensor, size: tuple[int, int], top: int, left: int) -> Tensor:
        (height, width), (old_height, old_width) = size, mask.shape[-2:]
        rows, columns = _span(top, self.crop, height), _span(left, self.width, width)
        inside = mask.index_select(-2, _nearest(rows, height, old_height))
        inside = inside.index_select(-1, _nearest(columns, width, old_width))
        if inside.shape[-2:] == (self.crop, self.width):
            return inside
        outside = False if mask.dtype == torch.bool else IGNORE_INDEX
        window = mask.new_full((*mask.shape[:-2], self.crop, self.width), outside)
        window[..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
        return window


class RandomScaleCrop(ScaleCrop):
    """The geometric recipe of the FixMatch family (UniMatch, CorrMatch, DSSN).

    The long side becomes a uniform whole number between `scale` times `base`; the image is padded, with black unless
    told, on the right and at the bottom to at least the crop; the window is uniform.
    """

    def __init__(
        self,
        crop: int,
        base: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        fill: Sequence[int] = BLACK,
        width: int | None = None,
    ) -> None:
        """Remember the recipe.

        Args:
            crop: side of the window in pixels.
            base: the long side that `scale` refers to; None is the image's own (UniMatch), 400 that of ST++ on VOC.
            scale: least and greatest factor.
            fill: RGB color outside the image.
            width: of the window, if it is not as wide as high.
        """
        super().__init__(crop, fill, width)
        self.base, self.scale = base, scale

    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Draw the size and the window."""
        longest, shortest = max(height, width), min(height, width)
        base = self.base or longest
        long = max(1, _uniform(int(base * self.scale[0]), int(base * self.scale[1])))
        short = max(1, int(shortest * long / longest + 0.5))
        size = (long, short) if height > width else (short, long)
        return size, (_uniform(0, max(size[0] - self.crop, 0)), _uniform(0, max(size[1] - self.width, 0)))


class RandomChoiceScaleCrop(ScaleCrop):
    """The geometric recipe of the CPS family: one of six scales, a uniform window, padding all around.

    The window is cut first and what it lacks is padded evenly on both sides with the mean color, which is 0 after
    normalisation.
    """

    def __init__(
        self,
        crop: int,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.5, 1.75, 2.0),
        fill: Sequence[int] = MEAN_COLOR,
    ) -> None:
        """Remember the recipe.

        Args:
            crop: side of the window in pixels.
            scales: the factors to choose from, all equally likely.
            fill: RGB color outside the image.
        """
        super().__init__(crop, fill)
        self.scales = tuple(scales)

    def draw(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Draw the scale and the window."""
        scale = self.scales[_uniform(0, len(self.scales) - 1)]
        size = max(1, int(height * scale)), max(1, int(width * scale))
        return size, (self._origin(size[0]), self._origin(size[1]))

    def _origin(self, length: int) -> int:
        return _uniform(0, length - self.crop) if length >= self.crop else -((self.crop - length) // 2)


def _uniform(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _span(start: int, length: int, limit: int) -> slice:
    """That part of a window which lies inside the image."""
    return slice(max(start, 0), min(start + length, limit))


def _nearest(span: slice, length: int, old_length: int) -> Tensor:
    """For pixels of a resized axis, the old pixel that holds each one's centre."""
    centers = 2 * torch.arange(span.start, span.stop) + 1
    return (centers * old_length).div_(2 * length, rounding_mode="floor")


def _resize_clicks(points: tv_tensors.KeyPoints, size: tuple[int, int]) -> tv_tensors.KeyPoints:
    """Move clicks to the pixels that hold the centres of the pixels clicked on."""
    height, width = points.canvas_size
    ratio = torch.tensor([size[1] / width, size[0] / height])
    moved = ((points.as_subclass(Tensor) + 0.5) * ratio).floor()
    return tv_tensors.wrap(moved.to(points.dtype), like=points, canvas_size=size)
