from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import labelwise.datasets
from labelwise.datasets.camvid import CamVid
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind


def road(root: Path, labels: list[list[int]]) -> CamVid:
    for folder in ("train", "trainannot"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.array(labels, np.uint8)
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(root / "train/a.jpg")
    Image.fromarray(pixels).save(root / "trainannot/a.png")
    return CamVid(root)


def test_void_is_ignored_and_no_class_is_the_background(tmp_path: Path) -> None:
    data = road(tmp_path, [[0, 10, 11], [3, 3, 11]])
    sample = data.read("a", [Kind.MASKS, Kind.TAGS])
    assert sample.mask is not None and sample.mask.tolist() == [[0, 10, 255], [3, 3, 255]]
    assert sample.tags is not None and sample.tags.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert data.splits == ("train",) and len(data.classes) == 11 and data.classes.background is None
    assert data.classes.palette[3].tolist() == [128, 64, 128]


def test_a_label_beyond_void_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="label 37, but there are 11 classes"):
        road(tmp_path, [[0, 37, 11]]).read("a", [Kind.MASKS])


def test_it_is_only_read(tmp_path: Path) -> None:
    data = road(tmp_path, [[0]])
    with pytest.raises(UserError, match="write a VOC folder"):
        data.write(data.read("a", [Kind.MASKS]))


def test_real_camvid(real_data: Path) -> None:
    data = labelwise.datasets.open(real_data / "camvid")
    assert isinstance(data, CamVid)
    assert (len(data.ids("train")), len(data.ids("val"))) == (367, 101)
    sample = data.read(data.ids("val")[0], [Kind.MASKS])
    assert sample.mask is not None and sample.mask.shape == (360, 480)
    assert set(sample.mask.unique().tolist()) <= {*range(11), 255}
