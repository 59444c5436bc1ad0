from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from labelwise.datasets.base import Classes, voc_palette
from labelwise.datasets.images import (
    is_turned,
    read_image,
    read_mask,
    read_oriented,
    restore_mask,
    write_image,
    write_mask,
)
from labelwise.datasets.voc import VOC_NAMES
from labelwise.errors import BadFile
from labelwise.files import atomic_write
from tests.odd_images import ODD_IMAGES, SIZE, exif, png

CLASSES = Classes(VOC_NAMES)


def refusal(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and caught.value.problem.mend
    return message


def mask_refusal(path: Path, classes: Classes = CLASSES) -> str:
    with pytest.raises(BadFile) as caught:
        read_mask(path, classes)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and caught.value.problem.mend
    return message


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey_png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_every_lossless_format_gives_the_pixels(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(pixels).save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    assert image.shape == (3, 5, 7) and image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 3), (200, 10, 10))
    for mode, name in (("RGBA", "a.png"), ("P", "b.png"), ("CMYK", "c.jpg"), ("YCbCr", "d.jpg")):
        converted = red.quantize(4) if mode == "P" else red.convert(mode)
        converted.save(tmp_path / name)
        mean = read_image(tmp_path / name).float().mean(dim=(1, 2))
        assert torch.allclose(mean, torch.tensor([200.0, 10.0, 10.0]), atol=8), mode
    for mode, name in (("L", "e.png"), ("LA", "f.png"), ("1", "g.png")):
        Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(tmp_path / name)
        assert read_image(tmp_path / name).tolist() == torch.full((3, 3, 4), 255).tolist(), mode


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 128, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[0, 128, 255]]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2)])
def test_sixteen_bits_of_color_and_alpha_keep_their_range(tmp_path: Path, color: int, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 5, channels))
    (tmp_path / "a.png").write_bytes(png(16, color, pixels))
    shown = pixels if channels == 3 else pixels[..., :1].repeat(3, axis=2)
    image = read_image(tmp_path / "a.png").permute(1, 2, 0).numpy()
    assert np.abs(image - shown / 257).max() < 1


def test_the_colors_under_transparency_count(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), pixels[..., :3])
    palette = Image.fromarray(pixels[..., :3]).quantize(8)
    palette.save(tmp_path / "b.png", transparency=0)
    assert np.array_equal(read_image(tmp_path / "b.png").permute(1, 2, 0).numpy(), np.array(palette.convert("RGB")))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_images_become_eight_bit_rgb(tmp_path: Path, name: str) -> None:
    ODD_IMAGES[name](tmp_path / name)
    small = {"pixel.png": (1, 1), "column.png": (40, 1), "row.png": (1, 40), "small.png": (5, 7)}
    size = SIZE[::-1] if name.startswith("turned") else small.get(name, SIZE)
    image = read_image(tmp_path / name)
    assert image.shape == (3, *size) and image.dtype == torch.uint8
    # Noise is neither clipped nor flattened.
    assert name in ("constant.png", "black.png", "pixel.png") or 40 < image.float().std() < 130


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_turns_the_image(tmp_path: Path, orientation: int, name: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(stored).save(tmp_path / name, exif=exif(orientation), **options)
    image, told = read_oriented(tmp_path / name)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), UPRIGHT[orientation](stored))
    assert told == orientation and is_turned(tmp_path / name) == (orientation != 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_what_is_no_orientation_turns_nothing(tmp_path: Path) -> None:
    for name in ("strange_orientation.jpg", "damaged_exif.jpg"):
        ODD_IMAGES[name](tmp_path / name)
        image, orientation = read_oriented(tmp_path / name)
        assert image.shape[1:] == SIZE and orientation == 1


def test_a_mask_with_an_exif_orientation_is_refused(tmp_path: Path) -> None:
    labels = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    for orientation in (3, 6):
        labels.save(tmp_path / "a.png", exif=exif(orientation))
        assert "a mask cannot have an EXIF orientation; store it turned" in mask_refusal(tmp_path / "a.png")
    labels.save(tmp_path / "a.png", exif=exif(1))
    assert read_mask(tmp_path / "a.png", CLASSES).tolist() == [[0, 1, 2]]


def test_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(tmp_path / "a.jpg") and "replace it" in refusal(tmp_path / "a.jpg")


def test_what_is_not_an_image_is_refused(tmp_path: Path) -> None:
    for content, reason in (
        (b"", "empty"),
        (b"<svg xmlns='x'/>", "not one of JPEG, PNG"),
        (b"GIF89a" + b"\0" * 99, "not"),
    ):
        (tmp_path / "a.png").write_bytes(content)
        assert reason in refusal(tmp_path / "a.png")
    assert "no such file" in refusal(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    assert "folder" in refusal(tmp_path / "c.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for side in (10_001, 30_000):
        (tmp_path / "a.png").write_bytes(grey_png(side, side, 8, b""))
        assert "more than 100,000,000" in refusal(tmp_path / "a.png")


def test_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert "3 pages" in refusal(tmp_path / "a.tif")


@given(
    labels=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 21))
)
def test_a_mask_survives_writing_and_reading(tmp_path: Path, labels: np.ndarray) -> None:
    labels = np.where(labels == 21, 255, labels).astype(np.uint8)
    write_mask(tmp_path / "a.png", torch.from_numpy(labels), CLASSES)
    assert np.array_equal(read_mask(tmp_path / "a.png", CLASSES).numpy(), labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and image.getpalette() == voc_palette().ravel().tolist()


def test_grey_masks_of_every_depth_give_class_numbers(tmp_path: Path) -> None:
    for depth, row, expected in (
        (8, bytes([0, 20, 255]), [0, 20, 255]),
        (4, b"\x0f\x30", [0, 15, 3]),
        (2, b"\x18", [0, 1, 2]),
    ):
        (tmp_path / "a.png").write_bytes(grey_png(3, 1, depth, b"\0" + row))
        assert read_mask(tmp_path / "a.png", CLASSES).tolist() == [expected], depth
    (tmp_path / "a.png").write_bytes(grey_png(3, 1, 1, b"\0\x40"))
    assert read_mask(tmp_path / "a.png", CLASSES).tolist() == [[0, 1, 0]]


def test_sixteen_bit_masks_are_read_only_in_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 20, 255]], np.uint16)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", CLASSES).tolist() == [[0, 20, 255]]
    Image.fromarray(np.array([[0, 20, 300]], np.uint16)).save(tmp_path / "a.png")
    assert "label 300, but there are 21 classes" in mask_refusal(tmp_path / "a.png")


def test_a_label_without_class_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 37]], np.uint8)).save(tmp_path / "a.png")
    assert "label 37, but there are 21 classes; use 0..20" in mask_refusal(tmp_path / "a.png")


def test_colors_instead_of_numbers_are_refused_and_can_be_restored(tmp_path: Path) -> None:
    labels = np.array([[0, 8, 15], [255, 15, 20]], np.uint8)
    Image.fromarray(voc_palette()[labels]).save(tmp_path / "a.png")
    assert "classes' colors instead of class numbers" in mask_refusal(tmp_path / "a.png")
    assert "restore_mask" in mask_refusal(tmp_path / "a.png")
    restore_mask(tmp_path / "a.png", CLASSES)
    assert np.array_equal(read_mask(tmp_path / "a.png", CLASSES).numpy(), labels)


def test_other_colors_are_refused_without_offering_to_restore(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png")
    message = mask_refusal(tmp_path / "a.png")
    assert "color picture (RGB)" in message and "restore_mask" not in message
    with pytest.raises(BadFile, match=r"color \(1, 2, 3\), which is no class's"):
        restore_mask(tmp_path / "a.png", CLASSES)


def test_a_color_mask_quantised_to_a_palette_is_refused_and_can_be_restored(tmp_path: Path) -> None:
    labels = np.array([[8, 8, 8, 0], [8, 8, 15, 15]], np.uint8)
    Image.fromarray(voc_palette()[labels]).quantize(3).save(tmp_path / "a.png")
    assert "color of another class" in mask_refusal(tmp_path / "a.png")
    restore_mask(tmp_path / "a.png", CLASSES)
    assert np.array_equal(read_mask(tmp_path / "a.png", CLASSES).numpy(), labels)


def test_a_palette_of_other_colors_is_accepted(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", CLASSES).tolist() == [[0, 1, 2]]


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png", "JPEG")
    assert "JPEG does not keep class numbers" in mask_refusal(tmp_path / "a.png")


def test_writing_a_mask_of_unknown_labels_or_shape_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label 37, but there are 21 classes"):
        write_mask(tmp_path / "a.png", torch.full((2, 2), 37, dtype=torch.uint8), CLASSES)
    with pytest.raises(ValueError, match="uint8"):
        write_mask(tmp_path / "a.png", torch.zeros(2, 2), CLASSES)
    assert not list(tmp_path.iterdir())


def test_images_are_written_by_their_ending(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    write_image(tmp_path / "a.png", image)
    write_image(tmp_path / "a.jpg", image)
    assert torch.equal(read_image(tmp_path / "a.png").as_subclass(torch.Tensor), image)
    assert (tmp_path / "a.jpg").read_bytes()[:2] == b"\xff\xd8"
    with pytest.raises(ValueError, match=r"\.jpg or \.png"):
        write_image(tmp_path / "a.gif", image)
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "b.png", image.float())


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
