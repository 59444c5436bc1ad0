"""Images for the page: their sizes, thumbnails with labels on them, bytes that a browser shows."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from labelwise.annotator.annotations import Boxes
from labelwise.annotator.label_files import Stamp, stamp_of
from labelwise.datasets.base import Classes
from labelwise.datasets.checks import require_told
from labelwise.datasets.images import (
    AS_STORED,
    FORMATS,
    PIXEL_LIMIT,
    SIDEWAYS,
    read_bytes,
    read_image,
    read_oriented,
    refuse,
)
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, Problem
from labelwise.samples import IGNORE_INDEX

LONG_SIDE = 240
"""Pixels of the longer side of a thumbnail."""

_TINT = 0.55
_DOT = 4
_ORIENTATION = 0x0112
_BROWSERS = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp"}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image tell.

    Attributes:
        height: of the upright image in pixels.
        width: of the upright image in pixels.
        orientation: by which EXIF turns it upright, `images.AS_STORED` where it does not.
        format: as Pillow names it.
        stamp: of the file when it was read.
    """

    height: int
    width: int
    orientation: int
    format: str
    stamp: Stamp | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


class Gallery:
    """The images of a data set. Only numbers are kept of them, no pixels."""

    def __init__(self, dataset: VOC) -> None:
        """Open nothing yet."""
        self._dataset = dataset
        self._headers: dict[str, Header] = {}
        self._decoded: dict[str, tuple[Stamp | None, Problem | None]] = {}

    def header(self, id: str) -> Header:
        """Size and orientation of an image; read again only where the file was changed.

        Raises:
            BadFile: the image is missing or none.
        """
        path = self._dataset.image_file(id)
        stamp = stamp_of(path)
        known = self._headers.get(id)
        if known is None or known.stamp != stamp:
            known = self._headers[id] = _read_header(path, stamp)
        return known

    def problem(self, id: str) -> Problem | None:
        """What keeps an image from being labeled; decodes it, once for each content of the file."""
        try:
            path = self._dataset.image_file(id)
            stamp = stamp_of(path)
            if id not in self._decoded or self._decoded[id][0] != stamp:
                self._decoded[id] = stamp, self._find_problem(id, path)
        except BadFile as error:
            return error.problem
        return self._decoded[id][1]

    def known_problem(self, id: str) -> Problem | None:
        """The same, as far as `problem` has found it out already."""
        return self._decoded.get(id, (None, None))[1]

    def require_upright(self, id: str) -> None:
        """Refuse an image whose EXIF orientation turns it in a way that labels could not tell.

        Raises:
            BadFile: the image is missing, none, or turned in that way.
        """
        header = self.header(id)
        require_told(self._dataset.image_file(id), header.orientation, header.size, header.size)

    def content(self, id: str) -> tuple[bytes, str]:
        """An image's bytes and their media type, for a browser.

        Of what browsers may not know, or may not turn upright, the pixels are sent as a PNG.

        Raises:
            BadFile: the image is missing or damaged.
        """
        header = self.header(id)
        path = self._dataset.image_file(id)
        media_type = _BROWSERS.get(header.format)
        if media_type == "image/jpeg" or (media_type is not None and header.orientation == AS_STORED):
            return read_bytes(path), media_type
        return _encoded(_picture(path), "PNG"), "image/png"

    def thumbnail(self, id: str) -> tuple[Image.Image, tuple[int, int]]:
        """A small RGB picture of the upright image, and the image's height and width.

        Raises:
            BadFile: the image is missing or damaged.
        """
        header = self.header(id)
        picture = _reduced(self._dataset.image_file(id), LONG_SIDE)
        picture.thumbnail((LONG_SIDE, LONG_SIDE))
        return picture, header.size

    def _find_problem(self, id: str, path: Path) -> Problem | None:
        try:
            self.require_upright(id)
            _reduced(path, 1)
        except BadFile as error:
            return error.problem
        return None


def encoded_thumbnail(picture: Image.Image) -> bytes:
    """A thumbnail as a JPEG."""
    return _encoded(picture, "JPEG", quality=85)


def draw_mask(picture: Image.Image, mask: np.ndarray, classes: Classes) -> Image.Image:
    """A thumbnail tinted by a mask; the background and pixels to ignore stay bare.

    Args:
        picture: the thumbnail.
        mask: [H, W] uint8 at the image's own size.
        classes: whose colors are meant.
    """
    small = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    bare = small == IGNORE_INDEX if classes.background is None else np.isin(small, (IGNORE_INDEX, classes.background))
    weight = np.where(bare, 0, _TINT)[..., None]
    drawn = np.asarray(picture) * (1 - weight) + classes.palette[small] * weight
    return Image.fromarray(drawn.round().astype(np.uint8))


def draw_boxes(picture: Image.Image, boxes: Boxes, size: tuple[int, int], classes: Classes) -> None:
    """Draw boxes of an image of the given height and width onto its thumbnail."""
    draw = ImageDraw.Draw(picture)
    scale = picture.width / size[1], picture.height / size[0]
    for label, (left, top, right, bottom) in zip(boxes.labels.tolist(), boxes.boxes.tolist(), strict=True):
        corners = (left * scale[0], top * scale[1], max(right * scale[0] - 1, left * scale[0]),
                   max(bottom * scale[1] - 1, top * scale[1]))  # fmt: skip
        draw.rectangle(corners, outline=_color(label, classes), width=2)


def draw_points(
    picture: Image.Image, points: list[tuple[float, float, int]], size: tuple[int, int], classes: Classes
) -> None:
    """Draw points (x, y, class) of an image of the given height and width onto its thumbnail."""
    draw = ImageDraw.Draw(picture)
    for x, y, label in points:
        center = (x + 0.5) * picture.width / size[1], (y + 0.5) * picture.height / size[0]
        draw.circle(center, _DOT, fill=_color(label, classes), outline=(255, 255, 255))


def _color(label: int, classes: Classes) -> tuple[int, int, int]:
    red, green, blue = classes.palette[label].tolist()
    return red, green, blue


def _read_header(path: Path, stamp: Stamp | None) -> Header:
    try:
        with Image.open(path, formats=FORMATS) as opened:
            orientation = opened.getexif().get(_ORIENTATION, AS_STORED)
            width, height, format = opened.width, opened.height, opened.format or ""
    except Exception:  # whatever is wrong with the file, reading it whole finds the words for it
        read_image(path)
        refuse(path, "its header cannot be read", "store it anew")
    if width * height > PIXEL_LIMIT:
        read_image(path)
    if format == "TIFF":
        # Pillow's header has TIFFs turned already, or not, as its version likes.
        image, orientation = read_oriented(path)
        return Header(image.shape[1], image.shape[2], orientation, format, stamp)
    if orientation not in range(AS_STORED, max(SIDEWAYS) + 1):
        orientation = AS_STORED
    if orientation in SIDEWAYS:
        width, height = height, width
    return Header(height, width, orientation, format, stamp)


def _picture(path: Path) -> Image.Image:
    return Image.fromarray(read_oriented(path)[0].permute(1, 2, 0).contiguous().numpy())


def _reduced(path: Path, long_side: int) -> Image.Image:
    """The upright image in RGB, no smaller than asked for; of a JPEG no more is decoded than that takes.

    Raises:
        BadFile: the image is missing or damaged.
    """
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            if image.width * image.height <= PIXEL_LIMIT:
                image.draft("RGB", (long_side, long_side))
                return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # other formats, and whatever is wrong with the file: reading it whole finds the words for it
        pass
    return _picture(path)


def _encoded(picture: Image.Image, format: str, **options: int) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()
