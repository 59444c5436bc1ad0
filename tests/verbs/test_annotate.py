from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import labelwise
from labelwise.datasets.voc import VOC
from labelwise.samples import Kind, Sample
from labelwise.verbs import predict as module
from tests.conftest import TINY_OPTIONS, Called

Call = Callable[..., Called]


def unlabelled(shapes_folder: Path, root: Path) -> Path:
    """Copy images and splits alone; every label file is replaced by something that cannot be read."""
    shutil.copytree(shapes_folder, root)
    for folder in ("SegmentationClass", "SegmentationObject", "Annotations", "Points", "Captions"):
        for path in (root / folder).iterdir():
            path.write_bytes(b"must not be opened")
    return root


def test_the_predictions_are_a_data_set_like_any_other(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "annotated"
    called = call("annotate", trained_run, "--data", shapes_folder, "--out", out, "--json")
    assert called.json == {"images": 12, "skipped": [], "out": str(out)}
    found = call("inspect", out, "--json")
    assert found.code == 0
    assert found.json["splits"] == {"train": 12} and found.json["kinds"]["masks"] == {"train": 12}
    source, annotated = labelwise.open(shapes_folder), labelwise.open(out)
    assert annotated.classes == source.classes
    for id in annotated.ids("train"):
        assert annotated.image_file(id).read_bytes() == source.image_file(id).read_bytes()
    images = [source.image_file(id) for id in source.ids("train")]
    call("predict", trained_run, *images, "--out", tmp_path / "predicted")
    for id in annotated.ids("train"):
        name = f"{id}.png"
        assert (out / "SegmentationClass" / name).read_bytes() == (tmp_path / "predicted" / name).read_bytes()


def test_other_methods_learn_from_the_predictions(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    call("annotate", trained_run, "--data", shapes_folder, "--out", tmp_path / "annotated")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY_OPTIONS | {"steps": 1}).items()]
    trained = call("train", "cps", "--data", tmp_path / "annotated", "--out", tmp_path / "run", "--workers", 0, *words)
    assert trained.code == 0
    assert "has no split 'val': the model will not be scored" in trained.err
    scored = call("evaluate", tmp_path / "run", "--data", shapes_folder, "--json")
    assert scored.json["images"] == 4


def test_labels_are_never_read(call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    data = unlabelled(shapes_folder, tmp_path / "data")
    assert call("annotate", trained_run, "--data", data, "--out", tmp_path / "blind").code == 0
    assert call("annotate", trained_run, "--data", shapes_folder, "--out", tmp_path / "seeing").code == 0
    blind, seeing = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "SegmentationClass").iterdir()}
        for name in ("blind", "seeing")
    )
    assert blind == seeing and len(blind) == 12
    predicted = call("predict", trained_run, data / "JPEGImages", "--out", tmp_path / "predicted", "--json")
    assert len(predicted.json["images"]) == 16


def test_an_unfinished_annotation_is_completed(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["annotate", trained_run, "--data", shapes_folder, "--out", tmp_path / "out", "--split", "val", "--json"]
    write = VOC.write
    written: list[str] = []

    def interrupted(self: VOC, sample: Sample) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(sample.id)
        write(self, sample)

    monkeypatch.setattr(VOC, "write", interrupted)
    assert call(*words).code == 130
    monkeypatch.setattr(VOC, "write", lambda self, sample: (written.append(sample.id), write(self, sample)))
    assert call(*words).json["images"] == 4
    assert written == ["val_000000", "val_000001", "val_000002", "val_000003"]
    assert labelwise.open(tmp_path / "out").ids("val") == tuple(written)
    assert call(*words).json["images"] == 4
    assert len(written) == 4


def test_a_folder_of_something_else_is_refused(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(shapes_folder, tmp_path / "data"))
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    mend = "holds something else than this call's data set; name a new or empty folder"
    assert call("annotate", trained_run, "--data", data, "--out", data).message == f"--out {data}: {mend}"
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    words = ["annotate", trained_run, "--data", data, "--out", tmp_path / "out"]
    assert call(*words, "--split", "val").code == 0
    assert call(*words, "--split", "train").message == f"--out {tmp_path / 'out'}: {mend}"
    assert "is a file" in call(*words[:4], "--out", data / "classes.txt").message


def test_another_model_in_the_same_run_folder_starts_anew(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    words = ["annotate", run, "--data", shapes_folder, "--out", tmp_path / "out"]
    assert call(*words).code == 0
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(bytes(weights))
    assert "holds something else" in call(*words).message


def test_an_unknown_split_and_broken_images_write_nothing(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(shapes_folder, tmp_path / "data"))
    words = ["annotate", trained_run, "--data", data, "--out", tmp_path / "out"]
    assert "no split 'trian'; did you mean 'train'?" in call(*words, "--split", "trian").message
    (data / "ImageSets" / "Main" / "empty.txt").write_text("")
    assert call(*words, "--split", "empty").message == f"split 'empty' of {data}: holds no image; name another"
    (data / "JPEGImages" / "train_000003.jpg").write_bytes(b"")
    assert call(*words).message.startswith(f"{data}/JPEGImages/train_000003.jpg: it is empty")
    assert not (tmp_path / "out").exists()
    assert call(*words, "--skip-broken", "--json").json == {
        "images": 11,
        "skipped": ["train_000003"],
        "out": str(tmp_path / "out"),
    }
    assert labelwise.open(tmp_path / "out").having(Kind.MASKS, ["train_000003"]) == frozenset()


def test_the_origin_is_told(call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    call("annotate", trained_run, "--data", shapes_folder, "--out", tmp_path / "out")
    assert str(shapes_folder) in (tmp_path / "out" / module.ORIGIN).read_text()
