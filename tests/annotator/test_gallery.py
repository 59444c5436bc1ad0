from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelwise.annotator.annotations import Boxes
from labelwise.annotator.gallery import Gallery, draw_boxes, draw_mask, draw_points
from labelwise.datasets.base import Classes
from labelwise.datasets.voc import VOC, VOC_NAMES
from labelwise.errors import BadFile
from tests.annotator.sessions import FIRST
from tests.conftest import CAT
from tests.odd_images import ODD_IMAGES

CLASSES = Classes(VOC_NAMES)
RED = (64, 0, 0)
"""The color of a cat."""


@pytest.fixture
def odd(tmp_path: Path) -> VOC:
    """A VOC folder of images that are unlike a color JPEG."""
    folder = tmp_path / "JPEGImages"
    folder.mkdir()
    for name, save in ODD_IMAGES.items():
        save(folder / name)
    return VOC(tmp_path)


def grey(width: int = 64, height: int = 48) -> Image.Image:
    return Image.new("RGB", (width, height), (100, 100, 100))


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_size_picture_and_bytes_are_those_of_the_upright_image(odd: VOC, name: str) -> None:
    id = name.partition(".")[0]
    if (odd.root / "JPEGImages" / name) != odd.image_file(id):
        pytest.skip("another image of this stem counts")
    expected = odd.read(id).image
    gallery = Gallery(odd)
    assert gallery.header(id).size == tuple(expected.shape[1:])
    content, media_type = gallery.content(id)
    assert media_type in ("image/jpeg", "image/png")
    with Image.open(io.BytesIO(content)) as image:
        sideways = media_type == "image/jpeg" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        assert (image.width, image.height) == tuple(expected.shape[1:][:: 1 if sideways else -1])
        assert image.format == media_type.removeprefix("image/").upper()
    picture, size = gallery.thumbnail(id)
    assert size == tuple(expected.shape[1:]) and picture.mode == "RGB" and max(picture.size) <= 240
    if picture.size == size[::-1] and name != "cmyk.jpg":
        difference = np.abs(np.asarray(picture, np.int64) - expected.permute(1, 2, 0).numpy().astype(np.int64))
        assert difference.max() <= 2


def test_a_large_jpeg_is_reduced(voc_folder: Path) -> None:
    Image.new("RGB", (1000, 700), (200, 10, 10)).save(voc_folder / f"JPEGImages/{FIRST}.jpg")
    picture, size = Gallery(VOC(voc_folder)).thumbnail(FIRST)
    assert picture.size == (240, 168) and size == (700, 1000)


def test_damage_is_found_once_and_forgotten_when_mended(voc_folder: Path) -> None:
    gallery = Gallery(VOC(voc_folder))
    path = voc_folder / f"JPEGImages/{FIRST}.jpg"
    whole = path.read_bytes()
    assert gallery.known_problem(FIRST) is None and gallery.problem(FIRST) is None
    path.write_bytes(whole[:300])
    assert "cannot be decoded" in str(gallery.problem(FIRST)) and gallery.known_problem(FIRST) is not None
    path.write_bytes(b"text")
    with pytest.raises(BadFile, match="it is not one of JPEG"):
        gallery.header(FIRST)
    assert gallery.problem(FIRST) is not None
    path.unlink()
    assert "no such file" in str(gallery.problem(FIRST))
    path.write_bytes(whole)
    assert gallery.problem(FIRST) is None and gallery.header(FIRST).size == (24, 32)


def test_a_mask_tints_all_but_the_background_and_what_is_ignored() -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[:, 40:80] = CAT
    mask[:, 80:] = 255
    drawn = np.asarray(draw_mask(grey(), mask, CLASSES))
    assert drawn.shape == (48, 64, 3)
    assert (drawn[:, :20] == 100).all() and (drawn[:, 40:] == 100).all()
    assert (drawn[:, 20:40] == np.round(0.45 * 100 + 0.55 * np.array(RED))).all()
    bare = np.asarray(draw_mask(grey(), mask * 0, Classes(VOC_NAMES, background=None)))
    assert (bare == 45).all(), "without a background class 0 is a thing as well"


def test_boxes_and_points_are_drawn_to_scale() -> None:
    picture = grey()
    draw_boxes(picture, Boxes(np.array([[20.0, 20, 100, 80]]), np.array([CAT]), np.array([False])), (96, 128), CLASSES)
    draw_points(picture, [(60.0, 50.0, 0)], (96, 128), CLASSES)
    pixels = np.asarray(picture)
    assert tuple(pixels[20, 10]) == tuple(pixels[39, 49]) == RED and tuple(pixels[20, 20]) == (100, 100, 100)
    assert tuple(pixels[25, 30]) == (0, 0, 0)


def test_the_smallest_box_is_drawn() -> None:
    picture = grey()
    boxes = Boxes(np.array([[0.0, 0, 1, 1], [639, 479, 640, 480]]), np.array([CAT, CAT]), np.array([False, False]))
    draw_boxes(picture, boxes, (480, 640), CLASSES)
    assert tuple(np.asarray(picture)[0, 0]) == RED
