"""Images and masks on disk: decoding files that nobody vouches for, and writing them whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.errors import BadFile, Problem
from labelwise.files import atomic_write
from labelwise.samples import IGNORE_INDEX

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
"""The formats that are decoded; a file is judged by its content, not by its name."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""The endings of image files, in the order of preference where two files have the same stem."""

# An image whose EXIF is damaged is whole all the same.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)
# The limit below is Pillow's business no more; its warning at a lower one would only double the message.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PIXEL_LIMIT = 100_000_000
"""The most pixels of an image; checked in the header, before anything is decoded."""

REPLACE = "replace it by a whole copy, or take its id out of the split"
"""The mend of a file that is damaged beyond doubt."""

_RESTORE = (
    "restore the numbers by labelwise.datasets.images.restore_mask(file, labelwise.datasets.open(folder).classes)"
    " and write masks with Pillow, not OpenCV"
)
AS_STORED = 1
"""The EXIF orientation of an image that is upright as it is stored."""

SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations that exchange height and width."""

_ORIENTATION = 0x0112
# Pillow stretches the 2- and 4-bit greys of a PNG to 0..255; dividing by these gives the stored numbers back.
_STRETCH = {"L;2": 85, "L;4": 17}


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a file of the data set.

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Raises:
        BadFile: there is no such file, it may not be read, or it is larger than the limit.
        OSError: the disk or the network failed, which is not the file's fault.
    """
    try:
        with path.open("rb") as file:
            content = file.read(-1 if limit is None else limit + 1)
    except FileNotFoundError:
        refuse(path, "there is no such file", "add it, or take its id out of the split")
    except IsADirectoryError:
        refuse(path, "it is a folder, not a file", REPLACE)
    except PermissionError:
        refuse(path, "it may not be read", "change its permissions")
    if limit is not None and len(content) > limit:
        refuse(path, f"it is larger than {limit:,} bytes", "no file of this kind is; " + REPLACE)
    return content


def read_text(path: Path, limit: int | None = None) -> str:
    """The content of a text file in UTF-8, with or without a byte-order mark.

    Raises:
        BadFile: the file is missing, too large, or no UTF-8 text.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse(path, "it is not UTF-8 text", "save it as UTF-8")


def refuse(path: Path, reason: str, mend: str) -> NoReturn:
    """Raise the `BadFile` of a file that cannot be used."""
    raise BadFile(Problem(path, reason, mend)) from None


def read_image(path: Path) -> tv_tensors.Image:
    """Decode an image and turn it upright by its EXIF orientation.

    Greyscale, palette and CMYK images become RGB. 16-bit values are divided by 257, so that 0..65535 becomes 0..255
    whatever the image's own range. Transparency is dropped: the colors under it count.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        BadFile: the file is missing, truncated, not an image, of a format that is not read, of several pages, or has
            more than `PIXEL_LIMIT` pixels.
    """
    return read_oriented(path)[0]


def read_oriented(path: Path) -> tuple[tv_tensors.Image, int]:
    """Decode an image as `read_image` does, and tell how its EXIF orientation turned it.

    Returns:
        [3, H, W] uint8, RGB; and the orientation: `AS_STORED`, mirrored or turned by 180 degrees (2, 3, 4), or height
        and width exchanged (`SIDEWAYS`).

    Raises:
        BadFile: as for `read_image`.
    """
    with _opened(path) as image:
        # Decoding a TIFF turns it and forgets the orientation.
        orientation = _orientation(image)
        array = np.array(_as_rgb(ImageOps.exif_transpose(image), path))
    return tv_tensors.Image(torch.from_numpy(array).permute(2, 0, 1)), orientation


def is_turned(path: Path) -> bool:
    """Whether an image's EXIF orientation turns or mirrors it.

    Raises:
        BadFile: as for `read_image`, as far as the header shows it.
    """
    with _opened(path) as image:
        return _orientation(image) != AS_STORED


def read_mask(path: Path, classes: Classes) -> tv_tensors.Mask:
    """Read the class numbers of a mask: the indices of a palette PNG, or the values of a grey PNG.

    Returns:
        [H, W] uint8, 0..K-1 and 255 (ignore).

    Raises:
        BadFile: not a PNG, damaged, a color picture instead of class numbers, a palette that gives the classes' colors
            to other numbers, or a label that no class has.
    """
    labels, palette = read_labels(path, classes)
    return as_mask(labels, palette, classes, path)


def as_mask(labels: np.ndarray, palette: np.ndarray | None, classes: Classes, path: Path) -> tv_tensors.Mask:
    """The numbers of an index PNG as a mask, if they are class numbers.

    Args:
        labels: [H, W] of an integer dtype.
        palette: [n, 3] uint8 of a palette PNG, or None.
        classes: the classes that the numbers mean.
        path: the file, for the error.

    Raises:
        BadFile: a label that no class has, or a palette that gives the classes' colors to other numbers.
    """
    used = np.flatnonzero(np.bincount(labels.ravel())) if labels.dtype == np.uint8 else np.unique(labels)
    _require_classes(used, classes, path)
    _require_order(used, palette, classes, path)
    return tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8)))


def read_labels(path: Path, classes: Classes | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers stored in an index PNG, whatever they mean.

    Args:
        path: the PNG.
        classes: whose colors a color picture may show, for the mend of that error.

    Returns:
        [H, W] of an integer dtype, and the [n, 3] uint8 palette of a palette PNG.

    Raises:
        BadFile: not a PNG, damaged, a color picture, or with an EXIF orientation.
    """
    with _opened(path) as image:
        if image.format != "PNG":
            refuse(path, f"a {image.format} does not keep class numbers", "store the mask as a palette PNG")
        stretch = _STRETCH.get(_raw_mode(image), 1)
        image.load()
        if _orientation(image) != AS_STORED:
            refuse(path, "a mask cannot have an EXIF orientation", "store it turned as it is meant, without EXIF")
        if image.mode == "P":
            return np.array(image), np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
        if image.mode == "1":
            return np.array(image).astype(np.uint8), None
        if image.mode in ("L", "I", "I;16", "I;16B"):
            return np.array(image) // stretch, None
        _refuse_colors(image, classes, path)


def _refuse_colors(image: Image.Image, classes: Classes | None, path: Path) -> NoReturn:
    colors = _packed(np.array(image.convert("RGB")))
    if classes is not None and np.isin(colors, _known_colors(classes)[1]).all():
        refuse(path, "it stores the classes' colors instead of class numbers", _RESTORE)
    refuse(
        path,
        f"it is a color picture ({image.mode}) instead of class numbers",
        "store the class number of each pixel in a palette PNG or an 8-bit grey PNG",
    )


def restore_mask(path: Path, classes: Classes) -> None:
    """Turn a mask that was stored as colors (as OpenCV does) into a palette PNG of class numbers, in place.

    Raises:
        BadFile: not an image, or it has a color that is no class's.
    """
    with _opened(path) as image:
        colors = _packed(np.array(image.convert("RGB")))
    known, values = _known_colors(classes)
    order = np.argsort(values)
    place = order[np.searchsorted(values, colors, sorter=order).clip(max=len(known) - 1)]
    strange = values[place] != colors
    if strange.any():
        color = int(colors[strange][0])
        rgb = (color >> 16, color >> 8 & 255, color & 255)
        refuse(path, f"it has the color {rgb}, which is no class's", "draw it in the classes' colors, without blending")
    write_mask(path, torch.from_numpy(known[place].astype(np.uint8)), classes)


def encode_mask(mask: Tensor, palette: np.ndarray) -> bytes:
    """A palette PNG of class or object numbers.

    Args:
        mask: [H, W] uint8.
        palette: [256, 3] uint8.
    """
    image = Image.fromarray(np.ascontiguousarray(mask.cpu().numpy()))
    image.putpalette(palette.tobytes())
    return _encode(image, "PNG")


def write_mask(path: Path, mask: Tensor, classes: Classes) -> None:
    """Write a mask as a palette PNG in the classes' colors, atomically.

    Args:
        path: the file.
        mask: [H, W] uint8, 0..K-1 and 255 (ignore).
        classes: the classes that the numbers mean.

    Raises:
        ValueError: the mask has another shape or dtype, or a label that no class has.
    """
    atomic_write(path, encode_mask(checked_mask(mask, classes), classes.palette))


def checked_mask(mask: Tensor, classes: Classes) -> Tensor:
    """The mask itself, if it is one of these classes.

    Raises:
        ValueError: the mask has another shape or dtype, or a label that no class has.
    """
    if mask.ndim != 2 or mask.dtype != torch.uint8:
        raise ValueError(f"a mask is [H, W] uint8, not {list(mask.shape)} {mask.dtype}")
    strange = (mask >= len(classes)) & (mask != IGNORE_INDEX)
    if strange.any():
        raise ValueError(f"label {int(mask[strange][0])}, but there are {len(classes)} classes")
    return mask


def write_image(path: Path, image: Tensor) -> None:
    """Write an image atomically: JPEG of quality 95 or PNG, by the file's ending.

    Args:
        path: a file that ends in .jpg, .jpeg or .png.
        image: [3, H, W] uint8, RGB.

    Raises:
        ValueError: another ending, shape or dtype.
    """
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: images are written as .jpg or .png")
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"an image is [3, H, W] uint8, not {list(image.shape)} {image.dtype}")
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    atomic_write(path, _encode(picture, formats[path.suffix.lower()]))


def _encode(image: Image.Image, format: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}))
    return buffer.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image of a known format and bearable size; whatever fails while it is in use is the file's fault."""
    content = read_bytes(path)
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            _require_bearable(image, path)
            yield image
    except (BadFile, MemoryError):
        raise
    except Image.DecompressionBombError:
        refuse(path, f"it has more than {PIXEL_LIMIT:,} pixels", "scale it down or cut it into tiles")
    except Image.UnidentifiedImageError:
        refuse(path, "it is empty" if not content else f"it is not one of {', '.join(FORMATS)}", REPLACE)
    except Exception as error:  # decoders of damaged files raise errors of many types
        refuse(path, f"it cannot be decoded ({error})", REPLACE)


def _require_bearable(image: Image.Image, path: Path) -> None:
    if image.width * image.height > PIXEL_LIMIT:
        size = f"{image.width}x{image.height}"
        refuse(path, f"it has {size} pixels, more than {PIXEL_LIMIT:,}", "scale it down or cut it into tiles")
    # The MPO files of telephones are JPEGs with previews behind the image.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        refuse(path, f"it holds {getattr(image, 'n_frames', 1)} pages", "store each page as an image of its own")


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        refuse(path, "it has floating-point pixels", "store it as an 8-bit or 16-bit image")
    if image.mode.startswith("I"):
        values = np.array(image)
        if values.min() < 0 or values.max() > 65535:
            refuse(path, "it has 32-bit pixels", "store it as an 8-bit or 16-bit image")
        image = Image.fromarray((values // 257).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; what is no orientation at all counts as none."""
    orientation = image.getexif().get(_ORIENTATION, AS_STORED)
    return orientation if orientation in range(AS_STORED, max(SIDEWAYS) + 1) else AS_STORED


def _raw_mode(image: Image.Image) -> str:
    """How the pixels are stored in the file, known until they are decoded."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _require_classes(used: np.ndarray, classes: Classes, path: Path) -> None:
    strange = used[((used < 0) | (used >= len(classes))) & (used != IGNORE_INDEX)]
    if len(strange):
        refuse(
            path,
            f"label {strange[0]}, but there are {len(classes)} classes",
            f"use 0..{len(classes) - 1}, and {IGNORE_INDEX} for pixels to ignore",
        )


def _require_order(used: np.ndarray, palette: np.ndarray | None, classes: Classes, path: Path) -> None:
    """Refuse a palette whose colors are the classes' at other numbers: a color mask that was quantised afterwards."""
    if palette is None:
        return
    known = _known_colors(classes)[1]
    used = used[used < len(palette)]
    shown, meant = _packed(palette[used]), _packed(classes.palette[used])
    if np.isin(shown, known).all() and (shown != meant).any():
        label = used[shown != meant][0]
        refuse(
            path,
            f"its palette gives label {label} the color of another class than '{_name(label, classes)}'",
            _RESTORE,
        )


def _known_colors(classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """The labels that a mask may have and their packed colors, both [K + 1]."""
    labels = np.append(np.arange(len(classes)), IGNORE_INDEX)
    return labels, _packed(classes.palette[labels])


def _name(label: int, classes: Classes) -> str:
    return "ignore" if label == IGNORE_INDEX else classes.names[label]


def _packed(colors: np.ndarray) -> np.ndarray:
    """One number per color. Shape: [..., 3] uint8 -> [...] int64."""
    return colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
