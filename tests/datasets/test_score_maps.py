"""Files of score maps: what is written is read, and what cannot be used is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

import labelwise
from labelwise.datasets.base import Classes
from labelwise.datasets.score_maps import coarse_size, encode_score_maps, read_score_maps
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile
from labelwise.samples import Kind, Sample, ScoreMaps

CLASSES = Classes(("background", "cat", "dog", "cow"))


def maps(labels: tuple[int, ...] = (1, 3), height: int = 6, width: int = 9) -> ScoreMaps:
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(len(labels), height, width, generator=generator)
    coarse = torch.rand(len(labels), *coarse_size(height, width), generator=generator)
    return ScoreMaps(labels=torch.tensor(labels, dtype=torch.int64), fine=fine, coarse=coarse)


def stored(folder: Path, content: bytes) -> Path:
    path = folder / "a.npz"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("labels", [(1, 3), (2,), ()])
def test_maps_come_back_as_they_were_up_to_half_precision(tmp_path: Path, labels: tuple[int, ...]) -> None:
    before = maps(labels)
    after = read_score_maps(stored(tmp_path, encode_score_maps(before, CLASSES)), CLASSES, (6, 9))
    assert after.labels.tolist() == list(labels) and after.labels.dtype == torch.int64
    for name in ("fine", "coarse"):
        assert getattr(after, name).dtype == torch.float32
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=5e-4, rtol=0)


def test_classes_are_found_by_name_in_another_order(tmp_path: Path) -> None:
    path = stored(tmp_path, encode_score_maps(maps(), CLASSES))
    other = Classes(("background", "cow", "cat", "dog"))
    assert read_score_maps(path, other, (6, 9)).labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"classes": ["cat"]}, "it is not a file of score maps"),
        ({"classes": ["horse"], "fine": (1, 6, 9), "coarse": (1, 2, 3)}, "maps of the unknown class 'horse'"),
        ({"classes": ["background"], "fine": (1, 6, 9), "coarse": (1, 2, 3)}, "unknown class 'background'"),
        ({"classes": ["cat"], "fine": (2, 6, 9), "coarse": (1, 2, 3)}, r"shape \(2, 6, 9\) for 1 tags"),
        ({"classes": ["cat"], "fine": (1, 6, 8), "coarse": (1, 2, 3)}, "8x6 pixels, but the image has 9x6"),
        ({"classes": ["cat"], "fine": (1, 6, 9), "coarse": (1, 2, 2)}, "2x2 pixels, but the image has 3x2"),
    ],
)
def test_files_of_another_form_or_image_are_refused(tmp_path: Path, arrays: dict[str, object], complaint: str) -> None:
    content = {
        name: np.array(value) if name == "classes" else np.zeros(value, np.float16)  # type: ignore[call-overload]
        for name, value in arrays.items()
    }
    with (tmp_path / "a.npz").open("wb") as file:
        np.savez(file, **content)
    with pytest.raises(BadFile, match=complaint):
        read_score_maps(tmp_path / "a.npz", CLASSES, (6, 9))


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    broken = maps()
    broken.fine[0, 0, 0] = torch.nan
    with pytest.raises(BadFile, match="a value that is no number"):
        read_score_maps(stored(tmp_path, encode_score_maps(broken, CLASSES)), CLASSES, (6, 9))


@pytest.mark.parametrize("content", [b"", b"no archive", encode_score_maps(maps(), CLASSES)[:-40]])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadFile, match="not a file of score maps"):
        read_score_maps(stored(tmp_path, content), CLASSES, (6, 9))


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.savez(file, classes=np.array([object()], dtype=object), fine=np.zeros(1), coarse=np.zeros(1))
    with pytest.raises(BadFile, match="not a file of score maps"):
        read_score_maps(tmp_path / "a.npz", CLASSES, (6, 9))


def test_a_data_set_keeps_maps_and_derives_tags_from_them(tmp_path: Path) -> None:
    dataset = VOC.create(tmp_path / "data", CLASSES)
    image = tv_tensors.Image(torch.zeros(3, 6, 9, dtype=torch.uint8))
    # The mask has lost the cow, which the maps were made of.
    mask = tv_tensors.Mask(torch.ones(6, 9, dtype=torch.uint8))
    dataset.write(Sample(id="a", image=image, mask=mask, maps=maps()))
    dataset.write(Sample(id="b", image=image))
    dataset.write_split("train", ["a", "b"])
    opened = labelwise.open(tmp_path / "data")
    assert opened.having(Kind.MAPS, ["a", "b"]) == {"a"} and opened.having(Kind.TAGS, ["a", "b"]) == {"a"}
    assert opened.kinds("train") >= {Kind.MAPS, Kind.MASKS, Kind.TAGS}
    sample = opened.read("a", {Kind.MAPS, Kind.TAGS})
    assert sample.maps is not None and sample.maps.labels.tolist() == [1, 3]
    assert sample.tags is not None and sample.tags.tolist() == [0, 1, 0, 1]
    assert sample.mask is None and opened.read("b", {Kind.MAPS}).maps is None


def test_a_transform_leaves_maps_alone() -> None:
    from torchvision.transforms import v2

    image = tv_tensors.Image(torch.zeros(3, 6, 9, dtype=torch.uint8))
    sample = replace(Sample(id="a", image=image), maps=maps())
    assert sample.transformed(v2.CenterCrop(4)).maps is sample.maps
