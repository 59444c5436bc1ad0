"""CAM from tags to a data set of score maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import labelwise
from labelwise.methods.tags.cam import Cam
from labelwise.samples import Kind
from labelwise.verbs import predict as module
from tests.conftest import Called
from tests.tiny_runs import LOCALIZER, cut, outcome, tiny_run

Call = Callable[..., Called]
_PAIRS = ("resize_range", "map_scales")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Path:
    return tiny_run("cam", shapes_folder, tmp_path_factory.mktemp("runs") / "cam", base=LOCALIZER, labels="tags:6")


def only_tags(shapes_folder: Path, root: Path) -> Path:
    """A copy with tag lists, in which no other label of the training images can be read."""
    dataset = labelwise.open(shapes_folder)
    shutil.copytree(shapes_folder, root)
    names = dataset.classes.names
    for split in ("train", "val"):
        for number in dataset.classes.objects:
            lines = []
            for id in dataset.ids(split):
                tags = dataset.read(id, {Kind.TAGS}).tags
                assert tags is not None
                lines.append(f"{id} {1 if tags[number] else -1}\n")
            (root / "ImageSets" / "Main" / f"{names[number]}_{split}.txt").write_text("".join(lines))
    for folder in ("SegmentationClass", "SegmentationObject", "Annotations", "Points", "Captions"):
        for path in (root / folder).glob("train_*"):
            path.write_bytes(b"must not be opened")
    return root


def test_training_and_annotating_read_tags_alone(call: Call, run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    data = only_tags(shapes_folder, tmp_path / "data")
    tiny_run("cam", data, tmp_path / "cam", base=LOCALIZER, labels="tags:6")
    assert (tmp_path / "cam" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    seeds = [tmp_path / "from-tags", tmp_path / "from-all"]
    for source, out in zip((data, shapes_folder), seeds, strict=True):
        assert call("annotate", run, "--data", source, "--out", out).code == 0
    for id in labelwise.open(seeds[0]).ids("train"):
        first, second = (labelwise.open(out).read(id, {Kind.MAPS, Kind.MASKS}) for out in seeds)
        assert first.maps is not None and second.maps is not None
        assert torch.equal(first.maps.fine, second.maps.fine) and torch.equal(first.mask, second.mask)  # type: ignore[arg-type]


def test_annotations_have_maps_of_the_tags_a_seed_and_tag_lists(
    call: Call, run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "seeds"
    assert call("annotate", run, "--data", shapes_folder, "--out", out).code == 0
    made, source = labelwise.open(out), labelwise.open(shapes_folder)
    assert made.kinds("train") >= {Kind.MAPS, Kind.MASKS, Kind.TAGS}
    for id in made.ids("train"):
        tags = source.read(id, {Kind.TAGS}).tags
        sample = made.read(id, {Kind.TAGS, Kind.MAPS, Kind.MASKS})
        assert tags is not None and sample.tags is not None and sample.maps is not None and sample.mask is not None
        assert torch.equal(sample.tags, tags)
        assert sample.maps.labels.tolist() == tags.nonzero().flatten().tolist()
        assert set(sample.mask.unique().tolist()) <= {0, *sample.maps.labels.tolist()}
    assert (out / "ImageSets" / "Main" / "ball_train.txt").is_file()


def test_annotations_that_were_cut_are_completed_with_all_tags(
    call: Call, run: Path, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call("annotate", run, "--data", shapes_folder, "--out", whole)
    with monkeypatch.context() as patch:
        patch.setattr(module, "watched", lambda ids, *rest: list(ids)[:5])
        patch.setattr(module.VOC, "write_split", lambda *rest: None)
        call("annotate", run, "--data", shapes_folder, "--out", parts)
    assert call("annotate", run, "--data", shapes_folder, "--out", parts).code == 0
    for path in sorted(whole.rglob("*")):
        if path.is_file() and path.suffix != ".npz":
            assert (parts / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def test_images_without_tags_get_those_that_are_predicted(
    call: Call, run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(shapes_folder / "JPEGImages", bare / "JPEGImages")
    shutil.copy(shapes_folder / "classes.txt", bare)
    assert call("annotate", run, "--data", bare, "--out", tmp_path / "seeds").code == 0
    made = labelwise.open(tmp_path / "seeds")
    assert all(len(made.read(id, {Kind.MAPS}).maps.labels) for id in made.ids("train"))  # type: ignore[union-attr]


def test_predictions_are_a_seed_and_scores(call: Call, run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    dataset = labelwise.open(shapes_folder)
    image = dataset.image_file(dataset.ids("val")[0])
    called = call("predict", run, image, "--out", tmp_path, "--json")
    (told,) = called.json["images"]
    written = json.loads((tmp_path / f"{image.stem}.json").read_text())
    assert written["tags"] == told["tags"] and len(told["tags"]) >= 1
    assert set(written["scores"]) == set(dataset.classes.names) - {"background"}
    assert (tmp_path / f"{image.stem}.png").is_file() and (tmp_path / f"{image.stem}.overlay.jpg").is_file()


def test_a_run_that_was_cut_ends_the_same(run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    with cut(3):
        tiny_run("cam", shapes_folder, tmp_path / "cam", base=LOCALIZER, labels="tags:6")
    tiny_run("cam", shapes_folder, tmp_path / "cam", base=LOCALIZER, labels="tags:6")
    assert outcome(tmp_path / "cam") == outcome(run)


def test_the_run_page_shows_maps_and_scores(run: Path) -> None:
    assert (run / "pictures" / "predictions.png").is_file()
    results = json.loads((run / "results.json").read_text())
    assert 0 <= results["seed_miou"] <= 100 and 0 <= results["map"] <= 100
    assert "seed mean IoU" in (run / "report.html").read_text()


def test_an_image_whose_tags_are_unknown_to_the_classes_is_refused(
    call: Call, shapes_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(shapes_folder, root)
    for path in (root / "ImageSets" / "Main").glob("*_*.txt"):
        path.unlink()
    annotation = next((root / "Annotations").glob("train_*"))
    annotation.write_text(annotation.read_text().replace("<name>", "<name>un", 1))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in LOCALIZER.items() if name not in _PAIRS]
    called = call("train", "cam", "--data", root, "--labels", "tags", "--out", tmp_path / "run", *flags)
    assert called.code == 2 and annotation.name in called.err


def test_the_default_network_is_that_of_the_paper() -> None:
    config = Cam.Config()
    assert (config.backbone, config.output_stride, config.crop, config.resize_range) == (
        "resnet50",
        16,
        512,
        (320, 640),
    )
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.1, 0.0, 1e-4)
