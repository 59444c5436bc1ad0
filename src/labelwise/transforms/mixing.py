"""CutMix: which pixels of an image are replaced by those of a partner, and the pasting.

Pasting is done in the training step, not in the loader, since predictions have to be pasted with the same box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CANDIDATES = 32


def sample_cutmix_boxes(
    batch: int,
    size: int,
    generator: torch.Generator | None = None,
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """One box per image, as in FixMatch for segmentation, UniMatch and their descendants.

    The area is drawn once, then ratio and corner are drawn together until the box lies inside the image; boxes are
    therefore more often tall than wide, and nearer to the top left corner.

    Args:
        batch: number of images B.
        size: side S of the square images in pixels.
        generator: of the CPU; None takes torch's own.
        p: probability of a box; otherwise the map is empty.
        area: least and greatest share of the image, uniform.
        ratio: least and greatest height divided by width, uniform on this scale.

    Returns:
        [B, S, S] bool, True inside the box.
    """
    wanted = torch.rand(batch, generator=generator) < p
    areas = _uniform((batch, 1), area, generator) * size**2
    corners = torch.zeros(batch, 4, dtype=torch.int64)
    pending = wanted.nonzero().squeeze(1)
    while len(pending):
        shape = (len(pending), _CANDIDATES)
        ratios = _uniform(shape, ratio, generator)
        widths, heights = (areas[pending] / ratios).sqrt().long(), (areas[pending] * ratios).sqrt().long()
        left, top = torch.randint(size, (2, *shape), generator=generator)
        fits = (left + widths <= size) & (top + heights <= size)
        first = fits.long().argmax(1, keepdim=True)
        candidates = torch.stack([top, left, top + heights, left + widths], dim=2)
        corners[pending] = candidates.take_along_dim(first[:, :, None], dim=1).squeeze(1)
        pending = pending[~fits.any(1)]
    top, left, bottom, right = corners.unbind(1)
    return _inside(top, bottom, size)[:, :, None] & _inside(left, right, size)[:, None, :]


def cutmix_masks_from_uniform(
    proportion: Tensor,
    aspect: Tensor,
    position: Tensor,
    shape: Sequence[int],
    prop_range: tuple[float, float] = (0.25, 0.5),
) -> Tensor:
    """The masks of CutMix-Seg (CPS, MGD) from uniform numbers: several boxes, combined by exclusive or.

    Args:
        proportion: [N, n] in [0, 1): of each box's share of the image, before division by n.
        aspect: [N, n] in [0, 1): of its shape; 0 is as wide as the image, near 1 as high.
        position: [N, n, 2] in [0, 1): of its (top, left) corner.
        shape: (H, W) of the images in pixels.
        prop_range: least and greatest share.

    Returns:
        [N, 1, H, W] bool, True where an odd number of boxes overlap.
    """
    shares = prop_range[0] + proportion * (prop_range[1] - prop_range[0])
    heights = torch.exp(aspect * shares.log())
    sides = torch.stack([heights, shares / heights], dim=2) * (1 / shares.shape[1]) ** 0.5
    image = torch.tensor(list(shape), dtype=sides.dtype)
    sizes = (sides * image).round()
    corners = ((image - sizes) * position).round()
    rows, columns = (
        _inside(corners[..., axis], corners[..., axis] + sizes[..., axis], length) for axis, length in enumerate(shape)
    )
    # A product of matrices counts the boxes over every pixel ten times faster than adding their maps.
    count = rows.float().transpose(1, 2) @ columns.float()
    return (count.to(torch.uint8) & 1).bool()[:, None]


def sample_cutmix_masks(
    batch: int,
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    boxes: int = 3,
    prop_range: tuple[float, float] = (0.25, 0.5),
) -> Tensor:
    """Random masks of CutMix-Seg, one per image.

    Args:
        batch: number of images B.
        shape: (H, W) of the images in pixels.
        generator: of the CPU; None takes torch's own.
        boxes: boxes per image.
        prop_range: least and greatest share of the image for all boxes of an image together.

    Returns:
        [B, 1, H, W] bool.
    """
    uniform = torch.rand(batch, boxes, 4, generator=generator)
    return cutmix_masks_from_uniform(uniform[..., 0], uniform[..., 1], uniform[..., 2:], shape, prop_range)


def paste(outer: Tensor, inner: Tensor, box: Tensor) -> Tensor:
    """Take `inner` inside the box and `outer` elsewhere.

    Args:
        outer: [B, H, W] (labels, confidences, padding) or [B, C, H, W] (images).
        inner: the same shape.
        box: [B, H, W] or [B, 1, H, W] bool.

    Returns:
        The shape and dtype of `outer`.
    """
    height, width = box.shape[-2:]
    channels = (1,) * (outer.ndim - 3)
    return torch.where(box.reshape(len(box), *channels, height, width), inner, outer)


def _uniform(shape: Sequence[int], bounds: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    return bounds[0] + torch.rand(tuple(shape), generator=generator) * (bounds[1] - bounds[0])


def _inside(start: Tensor, stop: Tensor, length: int) -> Tensor:
    """Half-open intervals [...] to [..., length] bool."""
    position = torch.arange(length)
    return (position >= start[..., None]) & (position < stop[..., None])
