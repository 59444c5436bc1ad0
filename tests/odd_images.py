"""Images that are whole but unlike a color JPEG of some hundred pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (20, 30)
"""Height and width of the pixels of most of them, as they are stored."""

ORIENTATION = 0x0112


def exif(orientation: int) -> Image.Exif:
    """The EXIF data of an orientation, 1 to 8."""
    content = Image.Exif()
    content[ORIENTATION] = orientation
    return content


def png(depth: int, color: int, pixels: np.ndarray) -> bytes:
    """A PNG of any bit depth and color type (0 grey, 2 RGB, 4 grey and alpha) from [H, W] or [H, W, C] numbers."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _pixels(*shape: int, most: int = 255) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, most + 1, shape, np.uint16)


def _picture(height: int = SIZE[0], width: int = SIZE[1]) -> Image.Image:
    return Image.fromarray(_pixels(height, width, 3).astype(np.uint8))


def _transparent() -> Image.Image:
    picture = _picture()
    picture.putalpha(Image.fromarray(_pixels(*SIZE).astype(np.uint8)))
    return picture


def _sixteen_bit() -> Image.Image:
    return Image.fromarray(_pixels(*SIZE, most=65535))


ODD_IMAGES: dict[str, Callable[[Path], object]] = {
    "grey.jpg": lambda path: _picture().convert("L").save(path),
    "bilevel.png": lambda path: _picture().convert("1").save(path),
    "sixteen_bit.png": lambda path: _sixteen_bit().save(path),
    "sixteen_bit.tif": lambda path: _sixteen_bit().save(path),
    "sixteen_bit_color.png": lambda path: path.write_bytes(png(16, 2, _pixels(*SIZE, 3, most=65535))),
    "sixteen_bit_alpha.png": lambda path: path.write_bytes(png(16, 4, _pixels(*SIZE, 2, most=65535))),
    "cmyk.jpg": lambda path: _picture().convert("CMYK").save(path),
    "palette.png": lambda path: _picture().quantize(16).save(path),
    "palette_transparent.png": lambda path: _picture().quantize(16).save(path, transparency=0),
    "transparent.png": lambda path: _transparent().save(path),
    "turned_right.jpg": lambda path: _picture().save(path, exif=exif(6)),
    "turned_left.jpg": lambda path: _picture().save(path, exif=exif(8)),
    "turned_sixteen_bit.png": lambda path: _sixteen_bit().save(path, exif=exif(6)),
    "turned.tif": lambda path: _picture().save(path, exif=exif(8)),
    "turned_cmyk.jpg": lambda path: _picture().convert("CMYK").save(path, exif=exif(6)),
    "strange_orientation.jpg": lambda path: _picture().save(path, exif=exif(9)),
    "damaged_exif.jpg": lambda path: _picture().save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0"),
    "pixel.png": lambda path: _picture(1, 1).save(path),
    "column.png": lambda path: _picture(40, 1).save(path),
    "row.png": lambda path: _picture(1, 40).save(path),
    "small.png": lambda path: _picture(5, 7).save(path),
    "constant.png": lambda path: Image.new("RGB", SIZE[::-1], (7, 7, 7)).save(path),
    "black.png": lambda path: Image.new("L", SIZE[::-1], 0).save(path),
}
"""File name -> how to write it."""
