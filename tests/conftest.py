"""What all tests share: quiet threads, patient hypothesis, a tiny VOC folder, real data where it is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from labelwise.datasets.base import voc_palette
from labelwise.datasets.shapes import ShapesOptions, write_shapes

torch.set_num_threads(1)
# A shared processor may pause any example, and fixtures that only name a folder are as good in every example.
settings.register_profile(
    "labelwise",
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("labelwise")

VOC_IDS = tuple(f"2007_00000{number}" for number in range(1, 7))
CAT, PERSON = 8, 15

_XML = """<annotation>
\t<folder>VOC2012</folder>
\t<filename>{id}.jpg</filename>
\t<size><width>32</width><height>24</height><depth>3</depth></size>
\t<segmented>1</segmented>
{objects}</annotation>
"""
_OBJECT = """\t<object>
\t\t<name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{difficult}</difficult>
\t\t<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
\t</object>
"""


def voc_xml(id: str, *objects: tuple[str, tuple[object, ...], int]) -> str:
    """An annotation of a 24 x 32 image; an object is (name, (xmin, ymin, xmax, ymax) as in the file, difficult)."""
    shown = (_OBJECT.format(name=name, box=box, difficult=difficult) for name, box, difficult in objects)
    return _XML.format(id=id, objects="".join(shown))


def save_palette(path: Path, labels: np.ndarray) -> None:
    """Save numbers as a palette PNG in the colours of VOC."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(voc_palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """A VOC 2012 folder with six images of 24 x 32 pixels, written without the package's own writer.

    Each has a cat and a person with a contour of 255, as mask, instances and boxes; four are in train, two in val.
    """
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, id in enumerate(VOC_IDS):
        objects = np.zeros((24, 32), np.uint8)
        objects[2 : 10 + number, 3:14] = 1
        objects[6:22, 18:29] = 2
        objects[5, 18:29] = 255
        mask = np.choose(np.minimum(objects, 3), [0, CAT, PERSON, 255])
        Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).save(root / f"JPEGImages/{id}.jpg")
        save_palette(root / f"SegmentationClass/{id}.png", mask)
        save_palette(root / f"SegmentationObject/{id}.png", objects)
        boxes = [("cat", (4, 3, 14, 10 + number), 0), ("person", (19, 7, 29, 22), number % 2)]
        (root / f"Annotations/{id}.xml").write_text(voc_xml(id, *boxes))
    for folder in ("Segmentation", "Main"):
        for split, ids in (("train", VOC_IDS[:4]), ("val", VOC_IDS[4:])):
            (root / "ImageSets" / folder / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))
    return root


@pytest.fixture
def real_data() -> Path:
    """The folder of real data that the environment variable LABELWISE_DATA names."""
    folder = os.environ.get("LABELWISE_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LABELWISE_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the indices of the tests' data sets out of the user's cache."""
    os.environ.setdefault("LABELWISE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic training images of 48 pixels, and four to score on; read only."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, ShapesOptions(train=12, val=4, size=48))
    return folder


TINY_OPTIONS = {
    "backbone": "tiny",
    "backbone_weights": "none",
    "decoder_channels": 16,
    "crop": 32,
    "batch_size": 2,
    "steps": 4,
}
"""The options of a run that takes less than a second."""


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Path:
    """The folder of a finished run of `supervised` on `shapes_folder`; read only."""
    from labelwise.hardware import Hardware
    from labelwise.verbs.train import train

    folder = tmp_path_factory.mktemp("runs") / "supervised"
    train("supervised", data=shapes_folder, out=folder, hardware=Hardware(workers=0), **TINY_OPTIONS)
    return folder


@dataclass(frozen=True)
class Called:
    """How a command ended, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object or list that standard output holds."""
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """The message of a refused call, which is one line and all that was said."""
        assert self.code == 2, self
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """Run a command in this process, as from a wide terminal."""
    from labelwise.cli import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Called:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Called(code, *capsys.readouterr())

    return run
