"""The sheet of a few images with what each stage of a recipe made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from labelwise import datasets
from labelwise.datasets.voc import VOC
from labelwise.reports import stage_sheet
from labelwise.reports.stage_sheet import write_stage_sheet
from labelwise.samples import Kind, Sample, ScoreMaps


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[Image.Image]], list[str]]]:
    """Rows and titles of the sheets that were laid out."""
    laid: list[tuple[list[list[Image.Image]], list[str]]] = []
    layout = stage_sheet.contact_sheet

    def spy(rows: list[list[Image.Image]], titles: list[str], *more: object) -> Image.Image:
        laid.append((rows, titles))
        return layout(rows, titles, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(stage_sheet, "contact_sheet", spy)
    return laid


def seeds(source: Path, folder: Path) -> VOC:
    """Maps, masks of class 1 and tags of the first three training images."""
    data = datasets.open(source)
    made = VOC.create(folder, data.classes)
    ids = data.ids("train")[:3]
    for id in ids:
        sample = data.read(id, {Kind.TAGS})
        made.copy_image(id, data.image_file(id))
        height, width = sample.image.shape[-2:]
        fine = torch.linspace(0, 1, height * width).reshape(1, height, width)
        maps = ScoreMaps(labels=torch.tensor([1]), fine=fine, coarse=fine[:, ::4, ::4])
        mask = torch.ones(height, width, dtype=torch.uint8)
        made.write(Sample(id=id, image=sample.image, maps=maps, mask=mask))  # type: ignore[arg-type]
    made.write_split("train", ids)
    return VOC(folder)


def test_a_row_holds_the_image_maps_masks_boxes_and_truth(
    shapes_folder: Path, tmp_path: Path, sheets: list[tuple[list[list[Image.Image]], list[str]]]
) -> None:
    data = datasets.open(shapes_folder)
    boxes = VOC(Path(shutil.copytree(shapes_folder, tmp_path / "boxes", ignore=lambda *_: ["SegmentationClass"])))
    write_stage_sheet(
        tmp_path / "a" / "b.png", data, {"seeds": seeds(shapes_folder, tmp_path / "s"), "found": boxes}, "train"
    )
    ((rows, titles),) = sheets
    assert titles == ["image", "seeds: maps", "seeds", "found", "truth"]
    assert len(rows) == 3
    image, maps, mask, found, truth = (np.asarray(picture).astype(int) for picture in rows[0])
    assert np.abs(image - np.asarray(data.read(data.ids("train")[0]).image).transpose(1, 2, 0)).max() == 0
    colorful = np.ptp(maps, axis=2)
    assert colorful[-4:].mean() > colorful[:4].mean() + 20
    assert all((other != image).any() for other in (mask, found, truth))
    assert Image.open(tmp_path / "a" / "b.png").size[0] > 5 * 160


def test_a_truth_that_cannot_be_read_is_left_out(
    voc_folder: Path, tmp_path: Path, sheets: list[tuple[list[list[Image.Image]], list[str]]]
) -> None:
    stage = VOC(Path(shutil.copytree(voc_folder, tmp_path / "stage")))
    next((voc_folder / "SegmentationClass").glob("*1.png")).write_bytes(b"?")
    write_stage_sheet(tmp_path / "sheet.png", VOC(voc_folder), {"stage": stage}, "train", count=2)
    ((rows, titles),) = sheets
    assert titles == ["image", "stage", "truth"]
    assert [len(row) for row in rows] == [2, 3]


def test_without_a_common_image_there_is_no_sheet(shapes_folder: Path, tmp_path: Path) -> None:
    stage = VOC(Path(shutil.copytree(shapes_folder, tmp_path / "stage")))
    stage.write_split("train", ["val_000000"])
    write_stage_sheet(tmp_path / "sheet.png", datasets.open(shapes_folder), {"stage": VOC(stage.root)}, "train")
    assert not (tmp_path / "sheet.png").exists()
