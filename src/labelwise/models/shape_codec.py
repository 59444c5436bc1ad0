"""Outlines as a few numbers: radii around an inner point, and a short series through them (ESE-Seg, section 3).

A mask becomes an inner centre and its radius at every whole degree. Degree i looks along (cos i, sin i) with y
downwards, so that degrees run clockwise on the screen, in both directions of the codec. Radii are divided by the
diagonal of the tight box and fitted by a series over x_i = -1 + 2 i / 359. Coordinates are those of half-open boxes: a
pixel's centre lies at its column and row plus a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from labelwise.errors import UserError, did_you_mean

ANGLES = 360
CenterRule = Literal["distance", "code"]
"""Where the inner centre lies: deepest inside (paper), or where the released code puts it."""
Basis = Literal["chebyshev", "monomial", "polar"]
"""What the coefficients multiply: Chebyshev polynomials, powers, or hats around equally spaced radii."""

_NEIGHBORHOOD = np.ones((3, 3), dtype=bool)

# ------------------------------------------------------------------ from masks


def joined(mask: np.ndarray) -> np.ndarray:
    """One region without holes: parts are joined by morphological closing with a disc that grows until they touch.

    If no disc up to the longer side joins them, the largest part stands for all.

    Args:
        mask: [H, W] bool, not empty.

    Returns:
        [H, W] bool.
    """
    parts, count = ndimage.label(mask, _NEIGHBORHOOD)
    radius = _touching_radius(mask) if count > 1 else 0
    while count > 1 and radius <= max(mask.shape):
        mask = _closed(mask, radius)
        parts, count = ndimage.label(mask, _NEIGHBORHOOD)
        radius *= 2
    if count > 1:
        mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return ndimage.binary_fill_holes(mask)


def _touching_radius(mask: np.ndarray) -> int:
    """The least power of two by which parts have to be dilated to touch; a closing by less cannot join them."""
    away, radius = ndimage.distance_transform_edt(~mask), 1
    while ndimage.label(away <= radius, _NEIGHBORHOOD)[1] > 1:
        radius *= 2
    return radius


def _closed(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilated and eroded by a disc; nothing is lost at the border."""
    wide = np.pad(mask, radius + 1)
    dilated = ndimage.distance_transform_edt(~wide) <= radius
    closed = ndimage.distance_transform_edt(dilated) > radius
    inner = slice(radius + 1, -radius - 1)
    return mask | closed[inner, inner]


def inner_center(mask: np.ndarray, rule: CenterRule = "distance") -> tuple[float, float]:
    """The point around which radii are measured.

    Args:
        mask: [H, W] bool, not empty.
        rule: `distance`, the pixel farthest from the outside, of several the nearest to the centroid; `code`, the
            middle of the box where 3x3 pixels there are inside, else of the pixels with 3x3 inside that with the least
            sum of distances to the pixels of the edge (released code).

    Returns:
        x and y of a pixel's centre inside the mask.
    """
    rows, columns = _deepest(mask) if rule == "distance" else _code_candidates(mask)
    middle = np.argwhere(mask).mean(axis=0)
    nearest = np.hypot(rows - middle[0], columns - middle[1]).argmin()
    return float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5


def _deepest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= depth.max() - 1e-9)
    return rows, columns


def _code_candidates(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    core = ndimage.binary_erosion(mask, _NEIGHBORHOOD)
    inside = core if core.any() else mask
    rows, columns = np.nonzero(mask)
    row, column = ((axis.min() + axis.max() + 1) // 2 for axis in (rows, columns))
    if core[row, column]:
        return np.array([row]), np.array([column])
    edge = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    candidates = np.argwhere(inside)
    sums = np.array([np.hypot(*(edge - each).T).sum() for each in candidates])
    best = candidates[sums <= sums.min() + 1e-9]
    return best[:, 0], best[:, 1]


def radial_signature(mask: np.ndarray, center: Sequence[float], n: int = ANGLES) -> np.ndarray:
    """The distance from a point to the outermost crossing of the outline, along each of equally spaced rays.

    The outline is that of the pixels as unit squares, so that the crossings are exact.

    Args:
        mask: [H, W] bool.
        center: x and y, at a pixel's centre inside the mask.
        n: number of rays.

    Returns:
        [n] float64 in pixels; 0 where a ray meets nothing.
    """
    first, second, across = _sides(mask, center)
    start, stop = (np.arctan2(ends[:, 1], ends[:, 0]) * (n / (2 * np.pi)) for ends in (first, second))
    # The shorter way round: a side of a pixel never spans half a turn.
    span = (stop - start + n / 2) % n - n / 2
    low = np.minimum(start, start + span)
    ray = np.ceil(low - 1e-9).astype(np.int64)
    counts = np.maximum(np.floor(low + np.abs(span) + 1e-9).astype(np.int64) - ray + 1, 0)
    side = np.repeat(np.arange(len(counts)), counts)
    rays = ray[side] + np.arange(len(side)) - np.repeat(np.cumsum(counts) - counts, counts)
    angle = rays * (2 * np.pi / n)
    direction = np.where(across[side], np.cos(angle), np.sin(angle))
    distance = np.where(across[side], first[side, 0], first[side, 1]) / direction
    radii = np.zeros(n)
    np.maximum.at(radii, rays % n, distance)
    return radii


def _sides(mask: np.ndarray, center: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ends, relative to the centre, of the pixel sides on the outline, and which of them are vertical."""
    wide = np.pad(mask, 1)
    upright = np.argwhere(wide[1:-1, 1:] != wide[1:-1, :-1])[:, ::-1]
    level = np.argwhere(wide[1:, 1:-1] != wide[:-1, 1:-1])[:, ::-1]
    first = np.concatenate([upright, level]) - np.asarray(center, dtype=np.float64)
    across = np.arange(len(first)) < len(upright)
    return first, first + np.where(across[:, None], (0, 1), (1, 0)), across


def describe_shapes(masks: np.ndarray, rule: CenterRule = "distance") -> tuple[np.ndarray, np.ndarray]:
    """Inner centres and radii of masks, broken ones joined and holes filled.

    Args:
        masks: [N, H, W] bool, none of them empty.
        rule: see `inner_center`.

    Returns:
        centres [N, 2] (x, y) and radii [N, 360], float64 in pixels.
    """
    centers, radii = np.zeros((len(masks), 2)), np.zeros((len(masks), ANGLES))
    for number, mask in enumerate(masks):
        (place,) = ndimage.find_objects(mask.astype(np.uint8))
        region = joined(mask[place])
        center = inner_center(region, rule)
        radii[number] = radial_signature(region, center)
        centers[number] = center[0] + place[1].start, center[1] + place[0].start
    return centers, radii


def flip_signature(radii: np.ndarray) -> np.ndarray:
    """The radii [..., n] of a shape that is flipped left to right about its centre, n even."""
    count = radii.shape[-1]
    return radii[..., (count // 2 - np.arange(count)) % count]


# ------------------------------------------------------------------ the series


def cheby_matrix(n_angles: int = ANGLES, n_coefficients: int = 18) -> Tensor:
    """The Chebyshev polynomials T_0, T_1, ... at every angle. [n_angles, n_coefficients] float64."""
    places = np.linspace(-1, 1, n_angles)
    return torch.from_numpy(np.polynomial.chebyshev.chebvander(places, n_coefficients - 1))


def monomial_matrix(n_angles: int = ANGLES, n_coefficients: int = 18) -> Tensor:
    """The powers x^0, x^1, ... at every angle. [n_angles, n_coefficients] float64."""
    return torch.from_numpy(np.vander(np.linspace(-1, 1, n_angles), n_coefficients, increasing=True))


def polar_matrix(n_angles: int = ANGLES, n_coefficients: int = 18) -> Tensor:
    """Linear interpolation, round the turn, between equally spaced radii. [n_angles, n_coefficients] float64."""
    return _hats(np.arange(n_angles) * (n_coefficients / n_angles), n_coefficients)


def _hats(places: np.ndarray, count: int) -> Tensor:
    """The weights of `count` values, round a turn, at places from 0 to `count` between them. [len(places), count]."""
    away = np.abs(places[:, None] - np.arange(count))
    return torch.from_numpy(np.maximum(1 - np.minimum(away, count - away), 0))


def series_matrices(basis: Basis, n_coefficients: int) -> tuple[Tensor, Tensor]:
    """What turns coefficients into radii, and radii into coefficients.

    Args:
        basis: polynomials are fitted by least squares; `polar` takes the radii where they are.
        n_coefficients: how many.

    Returns:
        the series [360, C] and the fit [C, 360], float64.

    Raises:
        UserError: an unknown basis.
    """
    if basis == "polar":
        spacing = ANGLES / n_coefficients
        return polar_matrix(ANGLES, n_coefficients), _hats(np.arange(n_coefficients) * spacing, ANGLES)
    if basis not in get_args(Basis):
        raise UserError(f"unknown basis '{basis}'{did_you_mean(basis, get_args(Basis))}")
    matrix = cheby_matrix if basis == "chebyshev" else monomial_matrix
    series = matrix(ANGLES, n_coefficients)
    # Not through the normal equations, which monomials would make singular.
    return series, torch.from_numpy(np.linalg.pinv(series.numpy(), rcond=1e-15))


def diagonals(boxes: Tensor) -> Tensor:
    """The diagonals [...] of boxes [..., 4], by which radii are divided."""
    return torch.linalg.vector_norm(boxes[..., 2:] - boxes[..., :2], dim=-1)


def encode_shape(radii: Tensor, diagonal: Tensor, fit: Tensor) -> Tensor:
    """The coefficients of radii.

    Args:
        radii: [N, 360] in pixels.
        diagonal: [N], of the tight boxes.
        fit: [C, 360], of `series_matrices`.

    Returns:
        [N, C] of the type of `radii`.
    """
    return (radii / diagonal[:, None]) @ fit.to(radii).T


def decode_shape(coefficients: Tensor, centers: Tensor, boxes: Tensor, series: Tensor) -> Tensor:
    """The outlines that coefficients describe, cut at their boxes.

    Args:
        coefficients: [N, C].
        centers: [N, 2] (x, y).
        boxes: [N, 4], whose diagonals are the unit of length.
        series: [360, C], of `series_matrices`.

    Returns:
        [N, 360, 2] (x, y).
    """
    radii = (coefficients @ series.to(coefficients).T * diagonals(boxes)[:, None]).clamp(min=0)
    angle = torch.arange(len(series), device=radii.device) * (2 * torch.pi / len(series))
    directions = torch.stack([angle.cos(), angle.sin()], dim=-1).to(radii)
    points = centers[:, None] + radii[..., None] * directions
    return points.clamp(boxes[:, None, :2], boxes[:, None, 2:])


class ShapeCodec(nn.Module):
    """A series with a fixed number of coefficients, and the mean and spread by which a network regresses them.

    Mean and spread are part of the state; until they are measured, they are 0 and 1 but for the first mean.
    """

    series: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, basis: Basis, n_coefficients: int, offset: float = 0.0) -> None:
        """Build it.

        Args:
            basis: see `series_matrices`.
            n_coefficients: C.
            offset: the mean of the first coefficient.
        """
        super().__init__()
        self.basis = basis
        series, self.fit = series_matrices(basis, n_coefficients)
        mean = torch.zeros(n_coefficients)
        mean[0] = offset
        self.register_buffer("series", series.float(), persistent=False)
        self.register_buffer("mean", mean)
        self.register_buffer("spread", torch.ones(n_coefficients))

    def encode(self, radii: Tensor, diagonal: Tensor) -> Tensor:
        """Coefficients [N, C] of radii [N, 360] float64, not standardised."""
        return encode_shape(radii, diagonal, self.fit)

    def measure(self, coefficients: Tensor) -> None:
        """Take mean and spread from the coefficients [N, C] of at least two objects."""
        self.mean.copy_(coefficients.mean(0))
        self.spread.copy_(coefficients.std(0).clamp(min=1e-6))

    def standardized(self, coefficients: Tensor) -> Tensor:
        """Coefficients [N, C] as a network regresses them."""
        return (coefficients - self.mean) / self.spread

    def decode(self, standardized: Tensor, centers: Tensor, boxes: Tensor) -> Tensor:
        """The outlines [N, 360, 2] that standardised coefficients [N, C] describe (`decode_shape`)."""
        return decode_shape(standardized * self.spread + self.mean, centers, boxes, self.series)


# -------------------------------------------------------------------- to masks


def polygons_to_masks(polygons: Tensor, size: Sequence[int]) -> Tensor:
    """The pixels whose centres lie inside polygons, by the even-odd rule; all polygons at once.

    Args:
        polygons: [N, P, 2] (x, y).
        size: height and width of the masks.

    Returns:
        [N, H, W] bool.
    """
    height, width = size
    x0, y0 = polygons.float().unbind(-1)
    x1, y1 = x0.roll(-1, dims=1), y0.roll(-1, dims=1)
    # An edge crosses the centre lines of these rows, its upper end counted and its lower one not.
    first = (torch.minimum(y0, y1) - 0.5).ceil().clamp(0, height).long().flatten()
    last = (torch.maximum(y0, y1) - 0.5).ceil().clamp(0, height).long().flatten()
    counts = last - first
    edge = torch.repeat_interleave(counts)
    row = first[edge] + torch.arange(len(edge), device=edge.device) - (counts.cumsum(0) - counts)[edge]
    share = (row + 0.5 - y0.flatten()[edge]) / (y1 - y0).flatten()[edge]
    crossing = x0.flatten()[edge] + share * (x1 - x0).flatten()[edge]
    column = (crossing - 0.5).ceil().clamp(0, width).long()
    polygon = edge // polygons.shape[1]
    # Every crossing turns the pixels to its right from outside to inside or back.
    turns = torch.zeros(len(polygons) * height * (width + 1), dtype=torch.uint8, device=polygons.device)
    turns.index_add_(0, (polygon * height + row) * (width + 1) + column, torch.ones_like(column, dtype=torch.uint8))
    inside = turns.view(len(polygons), height, width + 1)[..., :width].cumsum(dim=-1, dtype=torch.uint8)
    return (inside & 1).view(torch.bool)
