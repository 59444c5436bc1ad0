"""Mining hard images of no class: which are candidates, which are hard, and the list for a person."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from labelwise import datasets
from labelwise.datasets.ood import OodImages
from labelwise.datasets.shapes import ShapesOptions, write_shapes
from labelwise.errors import BadFile, UserError
from labelwise.hardware import Hardware
from labelwise.verbs.mine_ood import Mined, candidates_of, free_region, hardest, mine_ood, read_candidate
from labelwise.verbs.train import train
from tests.conftest import Called

OPTIONS: dict[str, Any] = {
    "backbone": "micro_w4",
    "backbone_weights": "none",
    "output_stride": 4,
    "crop": 32,
    "resize_range": (32, 40),
    "map_scales": (1.0,),
    "map_flip": False,
    "freeze_norms": False,
    "batch_size": 2,
    "steps": 1,
}


@pytest.fixture(scope="module")
def rails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "rails"
    write_shapes(folder, ShapesOptions(scenes="rails", train=6, val=2, ood=4, size=40))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rails: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cam"
    train("cam", data=rails, out=folder, labels="tags:all", hardware=Hardware(workers=0), **OPTIONS)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((30, 40, 3), 80 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def test_hard_are_the_surest_of_each_class_that_an_image_does_not_show() -> None:
    scores = torch.tensor([[0.9, 0.2], [0.6, 0.7], [0.8, 0.95], [0.3, 0.4], [0.99, 0.1]])
    present = torch.tensor([[False, False], [False, False], [False, True], [False, False], [True, False]])
    found = hardest(scores, present, 0.5)
    assert [(each.index, each.column) for each in found] == [(0, 0), (2, 0), (1, 1)]
    assert found[1].score == pytest.approx(0.8)
    assert [each.index for each in hardest(scores, present, 0.5, most=1)] == [0, 1]
    assert hardest(scores, present, 0.95) == []
    assert Mined(0, 0, 0.5) not in hardest(torch.tensor([[0.5]]), torch.tensor([[False]]), 0.5), "above, not at"


@pytest.mark.parametrize(
    ("boxes", "region"),
    [
        ([[60.0, 10.0, 90.0, 40.0]], (0, 0, 60, 50)),
        ([[0.0, 30.0, 100.0, 50.0]], (0, 0, 100, 30)),
        ([[0.0, 0.0, 40.0, 50.0], [20.0, 0.0, 55.0, 20.0]], (55, 0, 100, 50)),
        ([[10.0, 5.0, 90.0, 45.0]], None),
    ],
)
def test_the_largest_part_to_one_side_of_all_boxes_is_free(boxes: list[list[float]], region: object) -> None:
    assert free_region(torch.tensor(boxes), 50, 100) == region


def test_images_of_a_folder_are_candidates_as_they_are(pictures: Path) -> None:
    assert [each.path.name for each in candidates_of(pictures, "train", ["train"])] == ["0.png", "1.png", "2.png"]


def test_of_a_data_set_images_without_a_class_and_free_parts_of_others_are_candidates(rails: Path) -> None:
    bare = list(candidates_of(rails, "ood", ["train", "ball", "kite"]))
    assert len(bare) == 4 and all(each.region is None and not each.present for each in bare)
    dataset = datasets.open(rails)
    parts = list(candidates_of(rails, "train", ["train", "ball", "kite"]))
    assert parts and all(each.region is not None and each.present for each in parts)
    for each in parts:
        mask = dataset.read(each.path.stem, ["masks"]).mask
        left, top, right, bottom = each.region  # type: ignore[misc]
        assert not ((mask[top:bottom, left:right] != 0) & (mask[top:bottom, left:right] != 255)).any()
        assert read_candidate(each).shape == (3, bottom - top, right - left)
    others = [each for each in candidates_of(rails, "train", ["boat"]) if each.region is None]
    assert len(others) == 6, "classes that the model does not know are no hindrance"


def test_the_list_is_one_of_images_of_no_class(rails: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists" / "hard.txt"
    result = mine_ood(run, data=rails, out=out, split="train", least_score=0.0)
    assert result["images"] == result["candidates"] == sum(result["classes"].values())
    lines = [line.split("\t") for line in out.read_text().splitlines() if not line.startswith("#")]
    assert all(0 <= float(score) <= 1 and name in ("train", "ball", "kite") for _, score, name in lines)
    images = OodImages(datasets.open(rails), str(out))
    assert len(images.ids) == result["images"]
    assert all(images.check(id) is None for id in images.ids)
    with Image.open(result["picture"]) as picture:
        assert picture.width > 100


def test_paths_reach_images_elsewhere(run: Path, pictures: Path, tmp_path: Path, rails: Path) -> None:
    out = tmp_path / "deep" / "er" / "hard.txt"
    mine_ood(run, data=pictures, out=out, least_score=0.0, most=1)
    images = OodImages(datasets.open(rails), str(out))
    assert {Path(id).resolve().parent for id in images.ids} == {pictures.resolve()}


def test_what_cannot_be_mined_is_refused(run: Path, trained_run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "hard.txt"
    with pytest.raises(UserError, match=r"--least-score 1: no image of .* looks like a class; lower it"):
        mine_ood(run, data=pictures, out=out, least_score=1.0)
    with pytest.raises(UserError, match="'supervised' predicts no tags; name a run of cam"):
        mine_ood(trained_run, data=pictures, out=out)
    with pytest.raises(UserError, match=r"is to be a list; name a \.txt file"):
        mine_ood(run, data=pictures, out=tmp_path)
    with pytest.raises(UserError, match="--most -1: must be at least 0"):
        mine_ood(run, data=pictures, out=out, most=-1)
    (pictures / "1.png").write_bytes(b"no image")
    with pytest.raises(BadFile, match=r"1\.png"):
        mine_ood(run, data=pictures, out=out)
    assert not out.exists()


def test_images_full_of_their_classes_are_no_candidates(voc_folder: Path) -> None:
    assert list(candidates_of(voc_folder, "train", ["cat"])) == []


def test_a_split_of_which_every_image_shows_a_class_is_refused(
    run: Path, rails: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelwise.verbs.mine_ood.LEAST_SIDE", 1.0)
    with pytest.raises(UserError, match="every image shows one of the classes; name other images"):
        mine_ood(run, data=rails, out=tmp_path / "hard.txt", split="train")


def test_the_command_says_where_to_look(call: Callable[..., Called], run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "hard.txt"
    told = call("mine-ood", run, "--data", pictures, "--out", out, "--least-score", 0.0)
    assert told.code == 0
    assert "3 of 3 images listed in" in told.out and "hard.png" in told.out
    assert call("mine-ood", run, "--data", pictures, "--out", out, "--least-score", 0.0, "--json").json["images"] == 3
