"""The whole way on a dozen real VOC images; skipped where they are not at hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelwise import methods
from labelwise.samples import Kind
from tests.conftest import Called

Call = Callable[..., Called]


@pytest.fixture
def dozen(real_data: Path, tmp_path: Path) -> Path:
    """Eight training and four validation images of VOC 2012, copied."""
    source, root = real_data / "VOCdevkit" / "VOC2012", tmp_path / "VOC2012"
    lists = {"train": 8, "val": 4}
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, count in lists.items():
        ids = (source / f"ImageSets/Segmentation/{split}.txt").read_text().split()[:count]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids))
        for id in ids:
            for file in (f"JPEGImages/{id}.jpg", f"SegmentationClass/{id}.png", f"Annotations/{id}.xml"):
                shutil.copyfile(source / file, root / file)
    return root


def test_a_pretrained_network_learns_is_scored_and_predicts(
    call: Call, dozen: Path, real_data: Path, tmp_path: Path
) -> None:
    found = call("inspect", dozen, "--json")
    assert found.code == 0 and found.json["splits"] == {"train": 8, "val": 4}
    weights = real_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    words = ["--labels", "masks:1/8", "--backbone", "mobilenetv2_100", "--backbone-weights", weights, "--crop", 65]
    words += ["--decoder-channels", 32, "--batch-size", 2, "--steps", 2, "--workers", 0, "--out", tmp_path / "run"]
    trained = call("train", "supervised", "--data", dozen, *words, "--json")
    assert trained.code == 0, trained.err
    assert (trained.json["labeled"], trained.json["unlabeled"], trained.json["images"]) == (1, 7, 4)
    assert trained.json["protocol"] == "own lists, seed 0"
    scored = call("evaluate", tmp_path / "run", "--data", dozen, "--json")
    assert scored.json["miou"] == trained.json["miou"] and len(scored.json["iou"]) == 21
    image = sorted((dozen / "JPEGImages").iterdir())[0]
    assert call("predict", tmp_path / "run", image, "--out", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / f"{image.stem}.png") as mask, Image.open(image) as picture:
        assert mask.size == picture.size and np.array(mask).max() <= 20


def learns_from_masks_alone(name: str) -> bool:
    card = methods.load(name).card
    needs = card.needs
    return card.task == "semantic segmentation" and needs.labels == {Kind.MASKS} and not (needs.unlabeled or needs.ood)


@pytest.mark.parametrize("method", [name for name in methods.METHODS if learns_from_masks_alone(name)])
def test_every_full_mask_method_goes_the_whole_way(call: Call, dozen: Path, tmp_path: Path, method: str) -> None:
    # One image to score, so that no network takes long.
    scored_on = (dozen / "ImageSets/Segmentation/val.txt").read_text().split()[:1]
    (dozen / "ImageSets/Segmentation/val.txt").write_text("\n".join(scored_on))
    words = ["--preset", "small", "--backbone", "mobilenetv2_100", "--backbone-weights", "none", "--crop", 65]
    words += ["--batch-size", 2, "--steps", 2, "--workers", 0, "--out", tmp_path / "run"]
    trained = call("train", method, "--data", dozen, *words, "--json")
    assert trained.code == 0, trained.err
    assert (trained.json["steps"], trained.json["labeled"], trained.json["images"]) == (2, 8, 1)
    scored = call("evaluate", tmp_path / "run", "--data", dozen, "--json")
    assert scored.json["miou"] == trained.json["miou"]
    image = dozen / f"JPEGImages/{scored_on[0]}.jpg"
    assert call("predict", tmp_path / "run", image, "--out", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / f"{image.stem}.png") as mask, Image.open(image) as picture:
        assert mask.size == picture.size and np.array(mask).max() <= 20
