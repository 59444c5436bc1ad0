"""Object masks as polygons and run lengths, the way COCO and YOLO files hold them.

Polygons are filled by the rule of COCO's own mask functions, so that a mask has the pixels that every COCO tool gives
it. `outlines` goes the other way without losing a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from faster_coco_eval.core import mask as rle_functions
from scipy import ndimage
from torch import Tensor

OUTLINE_LIMIT = 10_000_000
"""The longest outline of an object in pixels; filling one takes time and memory in proportion to it."""

_WIDEST = 8
"""The most characters of a run length: 40 bits."""

PIXEL_LIMIT = 2_000_000_000
"""The most pixels of all objects of an image together."""


def runs_of_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Fill polygons; an object of several parts has several.

    Args:
        polygons: each x1, y1, x2, y2, ... in pixels, at least three points.
        size: height and width of the image.

    Returns:
        [R] int64 run lengths, by turns outside and inside, down the columns.

    Raises:
        ValueError: a polygon has too few points, an odd number of coordinates, one that is no finite number, lies far
            outside the image, or is absurdly long.
    """
    corners = [_corners(polygon, size) for polygon in polygons]
    # The steps around the polygon, back to its first point.
    lengths = [np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum() for points in corners]
    if sum(lengths) > OUTLINE_LIMIT:
        raise ValueError(f"an outline of {sum(lengths):,.0f} pixels")
    parts = rle_functions.frPyObjects([points.ravel().tolist() for points in corners], *size)
    return _runs_of_text(rle_functions.merge(parts)["counts"])


def runs_of_encoding(encoding: object, size: tuple[int, int]) -> np.ndarray:
    """Check a run-length encoding: `size`, and `counts` as a list of numbers or as COCO's compressed text.

    Args:
        encoding: what the file holds.
        size: height and width of the image.

    Returns:
        [R] int64 run lengths, as from `runs_of_polygons`.

    Raises:
        ValueError: it is of another form, is for another size, or does not fill the image exactly.
    """
    if not isinstance(encoding, dict) or not {"size", "counts"} <= encoding.keys():
        raise ValueError("a segmentation that is neither a list of polygons nor an object of size and counts")
    stated, counts = encoding["size"], encoding["counts"]
    if stated != list(size):
        raise ValueError(f"a run-length mask of size {str(stated)[:40]} in an image of size {list(size)}")
    if isinstance(counts, list) and all(type(count) is int and 0 <= count <= size[0] * size[1] for count in counts):
        runs = np.array(counts, dtype=np.int64)
    elif isinstance(counts, str) and counts.isascii():
        runs = _runs_of_text(counts.encode())
    else:
        raise ValueError("run lengths that are neither text nor a list of numbers within the image")
    pixels = size[0] * size[1]
    # Each by itself first, so that no sum of hostile numbers can come round to the right one.
    if (runs < 0).any() or (runs > pixels).any() or runs.sum() != pixels:
        raise ValueError("run lengths that do not add up to the image's pixels")
    return runs


def _runs_of_text(text: bytes) -> np.ndarray:
    """The run lengths in COCO's compressed text.

    A number takes one or more characters of five bits each, the lowest first; the bit above them says that more follow,
    and the highest of the five bits of the last one is the sign. From the fourth run on, a number is the difference to
    the run before the last.

    Raises:
        ValueError: a character is none of the 64 that are used, or a number goes on for too long or never ends.
    """
    values = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(values < 32)
    widths = np.diff(ends, prepend=-1)
    whole = len(ends) and ends[-1] == len(values) - 1 and widths.max() <= _WIDEST
    if not whole or (values < 0).any() or (values > 63).any():
        raise ValueError("run lengths that are damaged")
    within = np.arange(len(values)) - np.repeat(ends - widths + 1, widths)
    numbers = np.add.reduceat((values & 31) << (5 * within), ends - widths + 1)
    numbers -= (values[ends] >> 4 & 1) << (5 * widths)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def pixels_of_runs(runs: np.ndarray) -> np.ndarray:
    """The pixels inside, [P] int64: their places in an image that is numbered down the columns."""
    ends = runs.cumsum()
    lengths = runs[1::2]
    starts = ends[1::2] - lengths
    return np.repeat(starts - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())


def masks_of_runs(runs: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
    """Objects as masks, in time that depends on the pixels of the objects rather than on those of the image.

    Returns:
        [N, H, W] bool.

    Raises:
        ValueError: they have more than `PIXEL_LIMIT` pixels together.
    """
    height, width = size
    if len(runs) * height * width > PIXEL_LIMIT:
        raise ValueError(f"{len(runs)} masks of {width}x{height} pixels")
    columns = np.zeros((len(runs), width * height), dtype=bool)
    for mask, lengths in zip(columns, runs, strict=True):
        mask[pixels_of_runs(lengths)] = True
    return torch.from_numpy(np.ascontiguousarray(columns.reshape(-1, width, height).transpose(0, 2, 1)))


def painted(onto: np.ndarray, runs: Sequence[np.ndarray], values: Sequence[int]) -> np.ndarray:
    """Objects painted over each other in their order.

    Args:
        onto: [H, W] uint8, what is there before.
        runs: the run lengths of each object.
        values: what each is painted with.

    Returns:
        [H, W] uint8.
    """
    canvas = onto.flatten(order="F")
    for lengths, value in zip(runs, values, strict=True):
        canvas[pixels_of_runs(lengths)] = value
    return np.ascontiguousarray(canvas.reshape(onto.shape, order="F"))


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons along the edges of pixels, one for each connected part; filling them gives the same mask.

    Holes are connected to the outline by a line there and back, which has no area.

    Args:
        mask: [H, W] bool.

    Returns:
        Polygons [P, 2] int64, (x, y) from 0 to width and height.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    # Looking for parts takes far longer than cutting out where they can be.
    parts, _ = ndimage.label(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    polygons = []
    for number, place in enumerate(ndimage.find_objects(parts), start=1):
        corner = np.array([columns[0] + place[1].start, rows[0] + place[0].start])
        polygons.append(joined(_rings(parts[place] == number)) + corner)
    return polygons


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One polygon of several rings, each reached from the first one's first point and left again the same way.

    Args:
        rings: polygons [P, 2].

    Returns:
        [Q, 2].
    """
    first, *others = rings
    if not others:
        return first
    anchor = first[:1]
    ways = [part for ring in others for part in (anchor, ring, ring[:1])]
    return np.concatenate([first, *ways, anchor])


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """The closed lines between a mask and what is around it, as their corners [P, 2] (x, y).

    A corner is where an odd number of the four pixels around a point belong to the mask. Along a row of such points
    the first and second are ends of one edge, the third and fourth of the next, and so on; likewise along a column.
    """
    padded = np.pad(mask, 1)
    odd = padded[1:, 1:] ^ padded[1:, :-1] ^ padded[:-1, 1:] ^ padded[:-1, :-1]
    y, x = odd.nonzero()
    places = np.arange(len(x))
    along_row = places ^ 1
    by_column = np.lexsort((y, x))
    along_column = np.empty_like(places)
    along_column[by_column] = by_column[places ^ 1]
    points = np.stack([x, y], axis=1)
    return [points[ring] for ring in _cycles(along_row.tolist(), along_column.tolist())]


def _cycles(along_row: list[int], along_column: list[int]) -> list[list[int]]:
    """Walk from corner to corner, by turns along a row and along a column, until every corner was visited."""
    left = dict.fromkeys(range(len(along_row)))
    rings = []
    while left:
        place = next(iter(left))
        ring: list[int] = []
        while place in left:
            partner = along_row[place]
            ring += [place, partner]
            del left[place], left[partner]
            place = along_column[partner]
        rings.append(ring)
    return rings


def _corners(polygon: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """A polygon as points [P, 2], if it can be filled."""
    if not isinstance(polygon, list | tuple | np.ndarray) or not all(is_number(value) for value in polygon):
        raise ValueError("a polygon with a coordinate that is no finite number")
    if len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} coordinates, which is an odd number")
    if len(polygon) < 6:
        raise ValueError(f"a polygon of {len(polygon) // 2} points")
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    extent = np.array(size[::-1])
    if (points < -extent).any() or (points > 2 * extent).any():
        raise ValueError(f"a polygon far outside the {size[1]}x{size[0]} image")
    return points


def is_number(value: object) -> bool:
    """Whether a value of a json file is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
