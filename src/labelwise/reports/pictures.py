"""Pictures of labels: masks and boxes over the image, differences, contact sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from labelwise.samples import IGNORE_INDEX

Color = tuple[int, int, int]
LegendEntry = tuple[str, Color]

# Readable on white and on near-black, because a sheet has no ground of its own.
_TEXT = (122, 128, 135)
_HATCH = np.array((236, 236, 236), dtype=np.float32)
_AGREE, _DIFFER = (52, 58, 66), (255, 122, 46)
_MARGIN, _GAP, _FONT_SIZE = 10, 6, 13
_CAPTION = _FONT_SIZE + 8


def overlay(
    image: npt.ArrayLike,
    mask: npt.ArrayLike,
    palette: npt.ArrayLike,
    alpha: float = 0.55,
    contours: bool = True,
    background: int | None = None,
) -> Image.Image:
    """Tint an image with the colors of its mask; pixels to ignore are hatched.

    Args:
        image: [3, H, W] uint8.
        mask: [H, W] uint8 class numbers, 255 = ignore.
        palette: [256, 3] uint8, one color per mask value.
        alpha: weight of the color, 0 to 1.
        contours: draw the inner edge of each region in its full color.
        background: the class that is not tinted.

    Raises:
        ValueError: image and mask differ in size.
    """
    pixels, classes = np.asarray(image), np.asarray(mask)
    if pixels.shape[1:] != classes.shape:
        raise ValueError(f"the image has size {pixels.shape[1:]}, the mask {classes.shape}")
    ignored = classes == IGNORE_INDEX
    bare = ignored if background is None else ignored | (classes == background)
    colors = np.asarray(palette, dtype=np.float32)[classes]
    weight = np.where(bare, 0.0, alpha)
    if contours:
        weight[_inner_edges(classes) & ~bare] = 1.0
    weight = weight[..., None].astype(np.float32)
    drawn = pixels.transpose(1, 2, 0) * (1 - weight) + colors * weight
    hatched = ignored & _stripes(classes.shape)
    drawn[hatched] = 0.35 * drawn[hatched] + 0.65 * _HATCH
    return Image.fromarray(drawn.round().astype(np.uint8))


def map_overlay(
    image: npt.ArrayLike, maps: npt.ArrayLike, labels: npt.ArrayLike, palette: npt.ArrayLike
) -> Image.Image:
    """Tint a grey image with score maps, each in the color of its class: the higher the score, the stronger.

    Args:
        image: [3, H, W] uint8.
        maps: [N, H, W] from 0 to 1.
        labels: [N] class numbers.
        palette: [256, 3] uint8.
    """
    pixels, scores = np.asarray(image, dtype=np.float32), np.asarray(maps, dtype=np.float32)
    grey = np.repeat(0.45 * pixels.mean(axis=0)[..., None] + 20, 3, axis=2)
    if not len(scores):
        return Image.fromarray(grey.astype(np.uint8))
    best = scores.argmax(axis=0)
    weight = 0.85 * scores.max(axis=0).clip(0, 1)[..., None]
    colors = np.asarray(palette, dtype=np.float32)[np.asarray(labels)[best]]
    # As bright as can be: a dark color would be lost in the grey.
    lit = colors * 255 / colors.max(axis=2, keepdims=True).clip(min=1)
    return Image.fromarray((grey * (1 - weight) + lit * weight).round().clip(0, 255).astype(np.uint8))


def difference(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Image.Image:
    """Where a prediction differs from the truth: bright where it does, dark where it does not, hatched where ignored.

    Args:
        prediction: [H, W] uint8.
        target: [H, W] uint8, 255 = ignore.

    Raises:
        ValueError: the sizes differ.
    """
    predicted, true = np.asarray(prediction), np.asarray(target)
    if predicted.shape != true.shape:
        raise ValueError(f"the prediction has size {predicted.shape}, the target {true.shape}")
    ignored = true == IGNORE_INDEX
    drawn = np.array((_AGREE, _DIFFER), dtype=np.uint8)[((predicted != true) & ~ignored).astype(np.intp)]
    drawn[ignored & _stripes(true.shape)] = (112, 118, 126)
    return Image.fromarray(drawn)


def draw_boxes(
    image: npt.ArrayLike,
    boxes: npt.ArrayLike,
    labels: npt.ArrayLike,
    names: Sequence[str],
    palette: npt.ArrayLike,
    scores: npt.ArrayLike | None = None,
    masks: npt.ArrayLike | None = None,
) -> Image.Image:
    """Draw boxes, or shapes where given, with their class names, and scores where given.

    Args:
        image: [3, H, W] uint8.
        boxes: [N, 4] XYXY in pixels, half-open.
        labels: [N] class numbers.
        names: one name per class number.
        palette: [256, 3] uint8.
        scores: [N], from 0 to 1; the highest is drawn last, on top.
        masks: [N, H, W] bool; tinted, instead of an outline of the box.
    """
    picture = Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)))
    draw = ImageDraw.Draw(picture)
    corners, numbers = np.asarray(boxes).reshape(-1, 4), np.asarray(labels).reshape(-1)
    confidence = None if scores is None else np.asarray(scores).reshape(-1)
    colors = np.asarray(palette)
    longest = max(picture.size)
    line, font = max(2, round(longest / 200)), _font(max(11, round(longest / 36)))
    order = range(len(corners)) if confidence is None else np.argsort(confidence, kind="stable").tolist()
    shapes = None if masks is None else np.asarray(masks)
    if shapes is not None:
        for index in order:
            alone = np.where(shapes[index], numbers[index], 0).astype(np.uint8)
            picture = overlay(np.asarray(picture).transpose(2, 0, 1), alone, colors, background=0)
        draw = ImageDraw.Draw(picture)
    for index in order:
        red, green, blue = (int(channel) for channel in colors[numbers[index]])
        left, top, right, bottom = (float(value) for value in corners[index])
        outline = (left, top, max(left, right - 1), max(top, bottom - 1))
        if shapes is None:
            draw.rectangle(outline, outline=(red, green, blue), width=line)
        text = names[int(numbers[index])] + ("" if confidence is None else f" {confidence[index]:.2f}")
        _tag(draw, text, (left, top), (red, green, blue), font, picture.size)
    return picture


def text_panel(lines: Sequence[tuple[str, bool]], cell: int = 160) -> Image.Image:
    """Lines of text as a square picture, for a contact sheet.

    Args:
        lines: text, and whether it is set off as wrong; what does not fit is counted in the last line.
        cell: side in pixels.
    """
    panel = Image.new("RGB", (cell, cell), _AGREE)
    draw = ImageDraw.Draw(panel)
    room = (cell - 2 * _MARGIN) // _CAPTION
    shown = list(lines)
    if len(lines) > room:
        shown = [*lines[: room - 1], (f"and {len(lines) - room + 1} more", False)]
    for number, (text, wrong) in enumerate(shown):
        place = (_MARGIN, _MARGIN + number * _CAPTION)
        color = _DIFFER if wrong else _ink_on(_AGREE)
        draw.text(place, _shortened(text, cell - 2 * _MARGIN), fill=color, font=_font())
    return panel


def legend_entries(masks: Iterable[npt.ArrayLike], names: Sequence[str], palette: npt.ArrayLike) -> list[LegendEntry]:
    """Name and color of the classes that occur in the masks, in the order of their numbers.

    Args:
        masks: each [H, W] uint8.
        names: one name per class number.
        palette: [256, 3] uint8.
    """
    occurring = np.zeros(256, dtype=bool)
    for mask in masks:
        occurring |= np.bincount(np.asarray(mask).ravel(), minlength=256) > 0
    colors = np.asarray(palette)
    entries = []
    for number in np.flatnonzero(occurring[: len(names)]).tolist():
        red, green, blue = (int(channel) for channel in colors[number])
        entries.append((names[number], (red, green, blue)))
    return entries


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    cell: int = 160,
    legend: Sequence[LegendEntry] = (),
) -> Image.Image:
    """Lay pictures out in rows and columns on a transparent ground.

    Args:
        rows: pictures of any size; each is scaled into its cell with its aspect ratio kept.
        column_titles: printed once, above the columns.
        row_titles: printed above each row.
        cell: side of a cell in pixels.
        legend: names and colors printed below as swatches.

    Raises:
        ValueError: there are no pictures.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a contact sheet needs at least one picture")
    scaled = [[ImageOps.contain(picture.convert("RGB"), (cell, cell)) for picture in row] for row in rows]
    heights = [max((picture.height for picture in row), default=0) for row in scaled]
    width = 2 * _MARGIN + columns * cell + (columns - 1) * _GAP
    swatches, legend_height = _legend_layout(legend, width)
    height = 2 * _MARGIN + sum(heights) + _GAP * (len(rows) - 1) + legend_height
    height += _CAPTION * (bool(column_titles) + min(len(row_titles), len(rows)))

    sheet = Image.new("RGBA", (width, height), (*_TEXT, 0))
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    if column_titles:
        for column, title in enumerate(column_titles[:columns]):
            center = _MARGIN + column * (cell + _GAP) + cell / 2
            draw.text((center, top), _shortened(title, cell), fill=_TEXT, font=_font(bold=True), anchor="ma")
        top += _CAPTION
    for index, (row, row_height) in enumerate(zip(scaled, heights, strict=True)):
        if index < len(row_titles):
            title = _shortened(row_titles[index], width - 2 * _MARGIN)
            draw.text((_MARGIN, top + 2), title, fill=_TEXT, font=_font())
            top += _CAPTION
        for column, picture in enumerate(row):
            left = _MARGIN + column * (cell + _GAP) + (cell - picture.width) // 2
            sheet.paste(picture, (left, top + (row_height - picture.height) // 2))
        top += row_height + _GAP
    for (name, color), (x, y) in zip(legend, swatches, strict=True):
        box = (x, top + y + 2, x + _FONT_SIZE, top + y + 2 + _FONT_SIZE)
        draw.rounded_rectangle(box, radius=3, fill=color, outline=_TEXT)
        draw.text((x + _FONT_SIZE + 6, top + y + 1), _shortened(name, width // 2), fill=_TEXT, font=_font())
    return sheet


def png_data_uri(picture: Image.Image | Path) -> str:
    """A picture, or the bytes of a PNG file, as a `data:` address for a self-contained page."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def swatch(color: Iterable[int]) -> str:
    """An RGB triple as a CSS color."""
    red, green, blue = (int(channel) for channel in color)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _inner_edges(mask: np.ndarray) -> np.ndarray:
    # The line keeps its share of the picture, so that it survives being scaled down into a contact sheet.
    width = max(1, round(max(mask.shape) / 250))
    padded = np.pad(mask, width, mode="edge")
    rows, columns = mask.shape
    shifts = ((0, width), (2 * width, width), (width, 0), (width, 2 * width))
    neighbours = (padded[y : y + rows, x : x + columns] for y, x in shifts)
    return np.logical_or.reduce([mask != neighbour for neighbour in neighbours])


def _stripes(shape: tuple[int, ...]) -> np.ndarray:
    period = max(6, round(max(shape) / 60))
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows + columns) % period < period / 2


def _tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    color: Color,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(0.0, corner[0]), max(0.0, size[0] - width))
    y = corner[1] - height if corner[1] >= height else max(0.0, corner[1])
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 4 - left, y + 3 - top), text, fill=_ink_on(color), font=font)


def _ink_on(color: Color) -> Color:
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)


def _legend_layout(entries: Sequence[LegendEntry], width: int) -> tuple[list[tuple[int, int]], int]:
    positions, x, y = [], _MARGIN, _GAP
    for name, _ in entries:
        length = _FONT_SIZE + 6 + round(_font().getlength(_shortened(name, width // 2))) + 16
        if x + length > width and x > _MARGIN:
            x, y = _MARGIN, y + _CAPTION
        positions.append((x, y))
        x += length
    return positions, y + _CAPTION if entries else 0


def _shortened(text: str, width: float) -> str:
    text = " ".join(text.split())
    if _font(bold=True).getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 1 and _font(bold=True).getlength(text[:kept] + "…") > width:
        kept -= 1
    return text[:kept] + "…"


@cache
def _font(size: int = _FONT_SIZE, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Pillow's own font knows Latin letters only; class names and ids may hold others.
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
