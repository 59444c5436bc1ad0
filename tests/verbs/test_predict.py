from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import labelwise
from labelwise.datasets.images import read_mask
from labelwise.hardware import Hardware
from labelwise.verbs.outputs import MaskOutput
from labelwise.verbs.predict import load_output
from tests.conftest import Called

Call = Callable[..., Called]


def image_of(shapes_folder: Path, number: int = 0) -> Path:
    return shapes_folder / f"JPEGImages/val_00000{number}.jpg"


def test_a_mask_has_the_classes_palette_and_reads_back_equal(
    call: Call, shapes_folder: Path, trained_run: Path, tmp_path: Path
) -> None:
    path, out = image_of(shapes_folder), tmp_path / "out"
    called = call("predict", trained_run, path, "--out", out, "--json")
    assert called.code == 0 and called.err == ""
    (entry,) = called.json["images"]
    assert entry["image"] == str(path) and entry["mask"] == str(out / "val_000000.png")
    classes = labelwise.open(shapes_folder).classes
    with Image.open(entry["mask"]) as picture:
        assert picture.mode == "P" and picture.size == (48, 48)
        assert picture.getpalette() == classes.palette.ravel().tolist()
        stored = np.array(picture)
    model = labelwise.load_model(trained_run)
    image = labelwise.open(shapes_folder).read("val_000000").image
    with torch.no_grad():
        expected = model.predict(image[None]).argmax(1)[0].numpy()
    assert (stored == expected).all()
    assert (read_mask(Path(entry["mask"]), classes).numpy() == expected).all()
    shares = {name: round(100 * float((expected == n).mean()), 2) for n, name in enumerate(classes.names)}
    assert entry["classes"] == {name: share for name, share in shares.items() if share}
    with Image.open(entry["overlay"]) as overlay:
        assert overlay.size == (48, 48) and overlay.format == "JPEG"
    assert sorted(file.name for file in out.iterdir()) == ["val_000000.overlay.jpg", "val_000000.png"]


def test_folders_and_files_of_any_kind_and_size_are_predicted(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (40, 33)).save(folder / "grey.png")
    Image.new("RGBA", (31, 52)).save(folder / "clear.webp")
    (folder / "notes.txt").write_text("no image")
    called = call("predict", trained_run, folder, image_of(shapes_folder), "--out", tmp_path / "out")
    assert called.out == f"3 images predicted into {tmp_path / 'out'}\n"
    assert Image.open(tmp_path / "out" / "grey.png").size == (40, 33)
    assert Image.open(tmp_path / "out" / "clear.png").size == (31, 52)


def test_the_same_call_again_replaces_its_own_predictions(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    words = ["predict", trained_run, image_of(shapes_folder), "--out", tmp_path / "out"]
    assert call(*words).code == 0
    before = (tmp_path / "out" / "val_000000.png").read_bytes()
    assert call(*words).code == 0
    assert (tmp_path / "out" / "val_000000.png").read_bytes() == before


def test_the_precision_is_that_of_the_computation(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    output = load_output(trained_run, Hardware(accelerator="cpu", precision="bf16-mixed"), None, 0.5)
    assert isinstance(output, MaskOutput)
    layer = next(module for module in output.method.network.modules() if isinstance(module, torch.nn.Conv2d))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    assert output.mask(image).shape == (32, 32)
    MaskOutput(output.method, "32-true", 0.5).mask(image)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("accelerator", ["gpu", "mps"])
def test_a_device_that_the_machine_lacks_is_refused(
    call: Call, monkeypatch: pytest.MonkeyPatch, trained_run: Path, shapes_folder: Path, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    words = [trained_run, image_of(shapes_folder), "--out", "nowhere", "--accelerator", accelerator]
    message = call("predict", *words).message
    assert message == f"--accelerator {accelerator}: this machine has none that torch can use; take auto"


def test_a_broken_image_stops_before_anything_is_written(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(shapes_folder / "JPEGImages", tmp_path / "images")
    broken = tmp_path / "images" / "val_000002.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    refused = call("predict", trained_run, tmp_path / "images", "--out", tmp_path / "out")
    assert refused.message.startswith(f"{broken}: it cannot be decoded")
    assert not (tmp_path / "out").exists()


def test_other_files_are_never_replaced(call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(shapes_folder, tmp_path / "data"))
    truth = (data / "SegmentationClass" / "val_000000.png").read_bytes()
    refused = call("predict", trained_run, image_of(data), "--out", data / "SegmentationClass")
    assert refused.message == (
        f"--out {data / 'SegmentationClass'}: holds val_000000.png, which is no prediction; name another folder"
    )
    assert (data / "SegmentationClass" / "val_000000.png").read_bytes() == truth
    Image.new("RGB", (32, 32)).save(tmp_path / "own.png")
    assert "holds own.png, which" in call("predict", trained_run, tmp_path / "own.png", "--out", tmp_path).message
    assert "is a file; name a folder" in call("predict", trained_run, tmp_path, "--out", tmp_path / "own.png").message


def test_missing_and_equally_named_images_are_refused(
    call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    missing = call("predict", trained_run, tmp_path / "nothing.jpg", "--out", tmp_path / "out").message
    assert missing == f"{tmp_path / 'nothing.jpg'}: there is no such image or folder; check the spelling"
    (tmp_path / "empty").mkdir()
    assert "holds no image" in call("predict", trained_run, tmp_path / "empty", "--out", tmp_path / "out").message
    path = shutil.copy(image_of(shapes_folder), tmp_path)
    twice = call("predict", trained_run, image_of(shapes_folder), path, "--out", tmp_path / "out").message
    assert twice.startswith(f"{path}: a second image of this name")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["evaluate", "predict", "annotate", "report"])
def test_a_folder_that_is_no_run_is_refused(call: Call, shapes_folder: Path, tmp_path: Path, verb: str) -> None:
    rest = {
        "evaluate": ["--data", shapes_folder],
        "predict": [image_of(shapes_folder), "--out", tmp_path / "out"],
        "annotate": ["--data", shapes_folder, "--out", tmp_path / "out"],
        "report": [],
    }[verb]
    # Images of a data set are no run; a data set itself may be evaluated.
    assert str(shapes_folder) in call(verb, shapes_folder / "JPEGImages", *rest).message
    assert str(tmp_path / "nothing") in call(verb, tmp_path / "nothing", *rest).message
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_is_refused(call: Call, trained_run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    words = ["predict", run, image_of(shapes_folder), "--out", tmp_path / "out"]
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:-40])
    assert call(*words).message.startswith(f"{run / 'model.safetensors'}: cannot be loaded")
    (run / "model.safetensors").write_bytes(weights)
    description = json.loads((run / "config.json").read_text())
    description["options"]["decoder_channels"] = 8
    (run / "config.json").write_text(json.dumps(description))
    assert call(*words).message.startswith(f"{run / 'model.safetensors'}: cannot be loaded")
    (run / "config.json").write_text("{")
    assert call(*words).message.startswith(f"{run / 'config.json'}: ")
    assert not (tmp_path / "out").exists()
