"""What a person is told about a wrong call or wrong data: one line, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import labelwise
from labelwise import files
from labelwise.datasets.images import read_image
from labelwise.samples import Kind
from labelwise.verbs import preparation
from tests.conftest import CAT, TINY_OPTIONS, VOC_IDS, Called, save_palette, voc_xml
from tests.odd_images import ODD_IMAGES, exif

Call = Callable[..., Called]
TrainCall = Callable[..., Called]

FIRST = VOC_IDS[0]
SUFFIXES = {"JPEGImages": ".jpg", "Annotations": ".xml"}


@pytest.fixture
def train(call: Call, voc_folder: Path, tmp_path: Path) -> TrainCall:
    """Train on `voc_folder` with quick options; a later option wins."""

    def run(*words: object, method: str = "supervised", data: Path = voc_folder, **options: object) -> Called:
        chosen: dict[str, object] = {**TINY_OPTIONS, "steps": 1, "workers": 0, "data": data, "out": tmp_path / "run"}
        pairs = {name.replace("_", "-"): value for name, value in (chosen | options).items()}
        return call("train", method, *(f"--{name}={value}" for name, value in pairs.items()), *words)

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where `train` would write."""
    return tmp_path / "run"


def listed(root: Path, *ids: str) -> None:
    for folder in ("Segmentation", "Main"):
        (root / f"ImageSets/{folder}/train.txt").write_text("".join(f"{id}\n" for id in ids))


# -------------------------------------------------------------------- folders


def test_no_such_folder(train: TrainCall, tmp_path: Path, out: Path) -> None:
    data = tmp_path / "nothing"
    assert train(data=data).message == f"{data}: there is no such folder; check the spelling"
    assert not out.exists()


def test_a_file_in_place_of_a_folder(train: TrainCall, voc_folder: Path, out: Path) -> None:
    data = voc_folder / f"JPEGImages/{FIRST}.jpg"
    assert train(data=data).message == f"{data}: is a file; name the folder of a data set"
    assert not out.exists()


def test_a_folder_of_no_known_layout(train: TrainCall, call: Call, tmp_path: Path, out: Path) -> None:
    data = tmp_path / "music"
    data.mkdir()
    for called in (train(data=data), call("inspect", data)):
        assert called.message.startswith(
            f"{data}: not a known layout; looked for JPEGImages or VOC20xx/JPEGImages (VOC)"
        )
    assert not out.exists()


def test_several_years_to_choose_from(train: TrainCall, voc_folder: Path, out: Path) -> None:
    shutil.copytree(voc_folder, voc_folder.with_name("VOC2007"))
    message = train(data=voc_folder.parent).message
    assert message == f"{voc_folder.parent}: holds VOC2007, VOC2012; name one of them"
    assert not out.exists()


# ---------------------------------------------------------------------- files


def truncate(root: Path) -> None:
    path = root / f"JPEGImages/{FIRST}.jpg"
    path.write_bytes(path.read_bytes()[:400])


def rgb_mask(root: Path) -> None:
    Image.new("RGB", (32, 24), (9, 9, 9)).save(root / f"SegmentationClass/{FIRST}.png")


def mask_of_another_size(root: Path) -> None:
    save_palette(root / f"SegmentationClass/{FIRST}.png", np.zeros((24, 31)))


def label_37(root: Path) -> None:
    save_palette(root / f"SegmentationClass/{FIRST}.png", np.full((24, 32), 37))


def turn_upside_down(root: Path) -> None:
    Image.new("RGB", (32, 24)).save(root / f"JPEGImages/{FIRST}.jpg", exif=exif(3))


def turn_mask(root: Path) -> None:
    Image.new("L", (32, 24)).save(root / f"SegmentationClass/{FIRST}.png", exif=exif(6))


def bomb(root: Path) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    (root / f"JPEGImages/{FIRST}.jpg").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (truncate, f"JPEGImages/{FIRST}.jpg", "it cannot be decoded (Truncated File Read); replace it by a whole copy"),
        (rgb_mask, f"SegmentationClass/{FIRST}.png", "it is a color picture (RGB) instead of class numbers; store the"),
        (
            mask_of_another_size,
            f"SegmentationClass/{FIRST}.png",
            "it has 31x24 pixels, but the image has 32x24; make it",
        ),
        (
            label_37,
            f"SegmentationClass/{FIRST}.png",
            "label 37, but there are 21 classes; use 0..20, and 255 for pixels",
        ),
        (
            turn_upside_down,
            f"JPEGImages/{FIRST}.jpg",
            "its EXIF orientation turns it, and nothing tells whether its labels are turned with it; store it without",
        ),
        (
            turn_mask,
            f"SegmentationClass/{FIRST}.png",
            "a mask cannot have an EXIF orientation; store it turned as it is meant, without EXIF",
        ),
        (
            bomb,
            f"JPEGImages/{FIRST}.jpg",
            "it has more than 100,000,000 pixels; scale it down or cut it into tiles",
        ),
    ],
)
def test_a_broken_file(
    train: TrainCall, call: Call, voc_folder: Path, out: Path, spoil: Callable[[Path], None], file: str, reason: str
) -> None:
    spoil(voc_folder)
    assert train().message.startswith(f"{voc_folder / file}: {reason}")
    assert not out.exists()
    inspected = call("inspect", voc_folder)
    assert inspected.code == 2
    assert f"broken: {voc_folder / file}: {reason}" in inspected.out and inspected.err == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (voc_xml(FIRST, ("cat", (14, 3, 4, 10), 0)), "object 1 ('cat') has an inverted box"),
        ("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><annotation>&b;</annotation>", "it holds <!DOCTYPE"),
        (voc_xml(FIRST, ("snake", (4, 3, 14, 10), 0)), "object 1 has the unknown class 'snake'"),
        ("<annotation>", "it is not well-formed XML"),
    ],
)
def test_a_broken_annotation(call: Call, voc_folder: Path, content: str, reason: str) -> None:
    path = voc_folder / f"Annotations/{FIRST}.xml"
    path.write_text(content)
    inspected = call("inspect", voc_folder, "--json")
    assert inspected.code == 2
    (problem,) = inspected.json["problems"]
    assert problem["path"] == str(path) and problem["mend"]
    assert reason in problem["reason"]


def test_annotations_that_a_run_does_not_need_do_not_stop_it(train: TrainCall, voc_folder: Path) -> None:
    (voc_folder / f"Annotations/{FIRST}.xml").write_text("<!DOCTYPE a><annotation/>")
    assert train().code == 0


def test_float_boxes_are_no_mistake(call: Call, voc_folder: Path) -> None:
    path = voc_folder / f"Annotations/{FIRST}.xml"
    path.write_text(voc_xml(FIRST, ("cat", (4.2, 3.9, 14.5, 9.1), 0)))
    assert call("inspect", voc_folder).code == 0


def test_an_id_that_leaves_the_folder(train: TrainCall, call: Call, voc_folder: Path, out: Path) -> None:
    listed(voc_folder, FIRST, "../../secret")
    path = voc_folder / "ImageSets/Segmentation/train.txt"
    for called in (train(), call("inspect", voc_folder)):
        assert called.message.startswith(f"{path}: '../../secret' leaves the data set's folder")
    assert not out.exists()


def test_a_split_that_names_missing_files(train: TrainCall, call: Call, voc_folder: Path, out: Path) -> None:
    listed(voc_folder, FIRST, "2007_000099", "2007_000098")
    path = voc_folder / "ImageSets/Segmentation/train.txt"
    for called in (train(), call("inspect", voc_folder)):
        assert called.message == (
            f"{path}: split 'train' names 2 of 3 images that {voc_folder / 'JPEGImages'} lacks: 2007_000099, "
            "2007_000098; add the images, or take the names out of the list"
        )
    assert not out.exists()


def test_broken_files_are_skipped_counted_and_recorded_on_request(
    train: TrainCall, voc_folder: Path, out: Path
) -> None:
    truncate(voc_folder)
    save_palette(voc_folder / f"SegmentationClass/{VOC_IDS[5]}.png", np.full((24, 32), 37))
    refused = train()
    assert f"{FIRST}.jpg: " in refused.message
    assert f"note: 1 more broken files; `labelwise inspect {voc_folder}` lists them all" in refused.err
    assert not out.exists()
    trained = train("--skip-broken", "--json")
    assert trained.code == 0
    assert trained.json["skipped"] == [FIRST, VOC_IDS[5]]
    assert trained.json["labeled"] == 3 and trained.json["images"] == 1
    assert f'"skipped": [\n    "{FIRST}",\n    "{VOC_IDS[5]}"\n  ]' in (out / "results.json").read_text()
    assert trained.err.count("note: skipped: ") == 2


def test_no_image_is_left_after_skipping(train: TrainCall, voc_folder: Path, out: Path) -> None:
    listed(voc_folder, FIRST)
    truncate(voc_folder)
    message = train("--skip-broken").message
    assert (
        message
        == f"--labels masks:all: no usable labelled image is left in split 'train' of {voc_folder}; mend the files"
    )
    assert not out.exists()


# ----------------------------------------------------------------- odd images


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """A VOC folder of whole images that nobody thinks of, all in train and val, with masks of the upright image."""
    root = tmp_path / "odd" / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    names = {f"{number:02}": name for number, name in enumerate(ODD_IMAGES)}
    for id, name in names.items():
        path = root / f"JPEGImages/{id}{Path(name).suffix}"
        ODD_IMAGES[name](path)
        mask = np.zeros(read_image(path).shape[1:])
        mask[:, ::2] = CAT
        save_palette(root / f"SegmentationClass/{id}.png", mask)
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
    return root


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_odd_images_go_all_the_way(train: TrainCall, call: Call, odd_folder: Path, tmp_path: Path, out: Path) -> None:
    inspected = call("inspect", odd_folder, "--out", tmp_path / "look")
    assert inspected.code == 0 and "broken" not in inspected.out
    # Every image is drawn; the crop is larger than all of them, and some are smaller than the stride.
    steps = -(-len(ODD_IMAGES) // 4)
    trained = train("--json", data=odd_folder, backbone="mobilenetv2_100", crop=48, batch_size=4, steps=steps)
    assert trained.code == 0 and trained.json["images"] == len(ODD_IMAGES), trained.err
    several = ("--scales", 0.5, "--scales", 1.5, "--flip", "--window", 16)
    assert call("evaluate", out, "--data", odd_folder, *several).code == 0
    assert call("predict", out, odd_folder / "JPEGImages", "--out", tmp_path / "predicted").code == 0
    assert call("annotate", out, "--data", odd_folder, "--out", tmp_path / "annotated").code == 0
    for path in (odd_folder / "JPEGImages").iterdir():
        height, width = read_image(path).shape[1:]
        for folder in ("predicted", "annotated/SegmentationClass"):
            with Image.open(tmp_path / folder / f"{path.stem}.png") as predicted:
                assert predicted.size == (width, height), path
    # Its images are upright, so that their labels are known to fit.
    assert call("inspect", tmp_path / "annotated").code == 0


# --------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ("masks:5", "asks for 5 masks; the split 'train' has 4; ask for masks:4 or fewer"),
        ("mask:1/8", "no label kind 'mask'; did you mean 'masks'?"),
        ("masks:", "nothing follows the colon; write masks, masks:1/8, masks:92 or a list"),
        ("masks:9/8", "'9/8' is no share of the images; write a fraction such as 1/8"),
        ("masks:1/0", "'1/0' is no share of the images; write a fraction such as 1/8"),
        ("masks:0", "'0' allows no label; write a number from 1 on, or none"),
        ("masks:-3", "'-3' is no number, fraction, published list or file"),
        (
            "masks:clasic/183",
            "'clasic/183' is no number, fraction, published list or file; did you mean 'classic/183'?",
        ),
        ("masks:classic/183", "183 of the 183 images of list 'classic/183' are missing in split 'train'"),
        ("masks+masks:2", "names masks twice; give one term per kind of label"),
        ("", "no label kind ''"),
        (
            "tags",
            "gives tags, but 'supervised' needs masks; `labelwise methods --labels tags` lists the methods that fit",
        ),
        ("none", "gives nothing, but 'supervised' needs masks; `labelwise methods --labels none` lists the methods"),
        ("captions", "gives captions, but 'supervised' needs masks"),
    ],
)
def test_a_label_specification_that_cannot_be_met(train: TrainCall, out: Path, labels: str, reason: str) -> None:
    message = train(labels=labels).message
    assert message.startswith(f"--labels {labels}: {reason}")
    assert not out.exists()


def notes(called: Called) -> list[str]:
    assert called.code == 0, called.err
    return [line.removeprefix("note: ") for line in called.err.splitlines() if line.startswith("note: ")]


@pytest.fixture
def first_time() -> None:
    """Notes are said once per process; let this be a new one."""
    preparation.note.cache_clear()


@pytest.mark.usefixtures("first_time")
@pytest.mark.parametrize("method", ["supervised", "cps"])
def test_fewer_labelled_images_than_a_batch(train: TrainCall, method: str) -> None:
    trained = train("--json", method=method, labels="masks:1", batch_size=4, steps=2)
    assert trained.code == 0
    assert (trained.json["labeled"], trained.json["unlabeled"], trained.json["steps"]) == (1, 3, 2)


@pytest.mark.usefixtures("first_time")
def test_no_unlabelled_images_are_left(train: TrainCall) -> None:
    bare = "every image is labelled: the unlabelled stream draws the same images without their labels"
    trained = train("--json", method="fixmatch", labels="masks:all")
    assert bare in notes(trained)
    assert (trained.json["labeled"], trained.json["unlabeled"]) == (4, 4)
    assert bare not in notes(train(labels="masks:all", out=Path(trained.json["folder"]).with_name("supervised")))


@pytest.mark.usefixtures("first_time")
def test_classes_that_no_labelled_image_shows_are_named_once(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    dataset = labelwise.open(shapes_folder)
    id, classes = dataset.ids("train")[0], dataset.classes
    (tmp_path / "ids.txt").write_text(f"{id}\n")
    shown = set(dataset.read(id, (Kind.MASKS,)).mask.unique().tolist())
    absent = ", ".join(name for number, name in enumerate(classes.names) if number not in shown)
    assert absent
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY_OPTIONS | {"steps": 1}).items()]
    words += ["--workers=0", f"--data={shapes_folder}", f"--labels=masks:{tmp_path / 'ids.txt'}"]
    expected = (
        f"--labels masks:{tmp_path / 'ids.txt'}: no labelled image shows {absent}; the model cannot learn to find them"
    )
    assert notes(call("train", "cps", *words, f"--out={tmp_path / 'cps'}")) == [expected]
    assert notes(call("train", "supervised", *words, f"--out={tmp_path / 'again'}")) == []


@pytest.mark.usefixtures("first_time")
def test_no_class_is_missed_where_all_are_shown_and_none_is_looked_for_among_many(
    train: TrainCall, voc_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mask = np.zeros((24, 32))
    mask[:3, :7] = np.arange(21).reshape(3, 7)
    save_palette(voc_folder / f"SegmentationClass/{FIRST}.png", mask)
    assert notes(train(out=tmp_path / "all")) == []
    monkeypatch.setattr(preparation, "_FEW", 2)
    for id in VOC_IDS[:4]:
        save_palette(voc_folder / f"SegmentationClass/{id}.png", np.zeros((24, 32)))
    assert notes(train(out=tmp_path / "many")) == []
    assert "shows aeroplane, " in notes(train(out=tmp_path / "few", labels="masks:2"))[0]


def test_a_list_of_ids_that_the_split_lacks(train: TrainCall, tmp_path: Path, voc_folder: Path, out: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(f"{FIRST}\n2007_000099\n")
    assert train(labels=f"masks:{path}").message == (
        f"--labels masks:{path}: 1 of the 2 images of {path} are missing in split 'train' of {voc_folder} "
        "(2007_000099); add them, or ask for a share such as masks:1/8"
    )
    path.write_text("\n")
    assert train(labels=f"masks:{path}").message == f"--labels: {path} lists no image; write one image id per line"
    assert not out.exists()


# -------------------------------------------------------------- splits, names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "{data}: no split 'trian'; did you mean 'train'?"),
        ({"val_split": "vall"}, "{data}: no split 'vall'; did you mean 'val'?"),
        ({"backbone": "mobilenetv2_10"}, "unknown backbone 'mobilenetv2_10'; did you mean 'mobilenetv2_1"),
        ({"backbone": "tinny"}, "unknown backbone 'tinny'; did you mean 'tiny'?"),
        ({"backbone_weights": "imagenet"}, "backbone 'tiny' has no ImageNet weights; --backbone-weights none"),
        ({"preset": "minni"}, "--preset minni: neither a preset of 'supervised' nor a file; did you mean 'mini'?"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"steps": -1}, "--steps -1: must be at least 0"),
        ({"epochs": 0, "steps": 0}, "--epochs 0.0: must be above 0"),
        ({"learning_rate": "fast"}, "--learning-rate fast: must be a number"),
        ({"learning_rate": "inf"}, "--learning-rate inf: must be finite"),
        ({"crop": "32.5"}, "--crop 32.5: must be a whole number"),
        ({"output_stride": 9}, "--output-stride 9: must be one of 4, 8, 16, 32"),
        ({"accelerator": "gpux"}, "--accelerator gpux: must be one of"),
        ({"devices": 0}, "--devices 0: must be at least 1"),
        ({"seed": -1}, "--seed -1: must be from 0 to 4294967295"),
        ({"seed": 2**70}, "--seed 1180591620717411303424: must be from 0 to 4294967295"),
    ],
)
def test_an_option_that_cannot_be_met(
    train: TrainCall, voc_folder: Path, out: Path, options: dict[str, Any], message: str
) -> None:
    assert train(**options).message.startswith(message.format(data=voc_folder))
    assert not out.exists()


def test_a_batch_that_cannot_be_divided(train: TrainCall, out: Path) -> None:
    called = train(batch_size=3, accumulate=2)
    assert called.code == 2
    assert called.err.splitlines()[-1] == (
        "error: --batch-size 3: cannot be divided over 1 devices and 2 passes; take a multiple of 2"
    )
    assert not out.exists()


def test_no_split_to_score_on_is_said_and_does_not_stop_a_training(
    train: TrainCall, call: Call, voc_folder: Path, out: Path
) -> None:
    for folder in ("Segmentation", "Main"):
        (voc_folder / f"ImageSets/{folder}/val.txt").unlink()
    trained = train("--json")
    assert trained.code == 0 and "miou" not in trained.json
    assert f"note: {voc_folder} has no split 'val': the model will not be scored" in trained.err
    scored = call("evaluate", out, "--data", voc_folder)
    assert scored.message == f"{voc_folder}: no split 'val'; known are train"


def test_weights_of_another_network(train: TrainCall, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"stem.weight": torch.zeros(3)}, path)
    message = train(backbone_weights=path).message
    assert message.startswith(f"{path}: not the weights of 'tiny' (missing: ") and "\n" not in message
    path.write_bytes(b"\0" * 50)
    assert train(backbone_weights=path).message.startswith(
        f"{path}: cannot be read as weights; give a safetensors file"
    )
    assert train(backbone_weights=tmp_path / "none.pth").message.startswith(f"{tmp_path / 'none.pth'}: no such file")
    assert not out.exists()


def test_weights_that_would_run_code(train: TrainCall, tmp_path: Path, out: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "harm").touch, ())

    path = tmp_path / "weights.pth"
    torch.save({"stem.weight": Harm()}, path)
    assert train(backbone_weights=path).message.startswith(f"{path}: cannot be read as weights")
    assert not (tmp_path / "harm").exists() and not out.exists()


# -------------------------------------------------------------- output folders


def test_the_run_folder_of_another_method(train: TrainCall, out: Path) -> None:
    assert train().code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    message = train(method="cps").message
    assert message == f"--out {out}: holds a run of 'supervised', not of 'cps'; name another folder"
    message = train(crop=33).message
    assert message.startswith(f"--out {out}: holds a run with other options (options.crop: 32 -> 33); name another")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_output_folder_that_holds_something_else(train: TrainCall, out: Path) -> None:
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    assert train().message == f"--out {out}: holds something else than a run; name a new or empty folder"
    assert [path.name for path in out.iterdir()] == ["letter.txt"]
    assert train(out=out / "letter.txt").message == f"--out {out / 'letter.txt'}: is a file; name a folder"
    inside = out / "letter.txt" / "run"
    assert train(out=inside).message.startswith(f"{inside}: not a directory")
    assert (out / "letter.txt").read_text() == "dear"


def test_a_folder_that_may_not_be_written_to(train: TrainCall, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    message = train(out=locked / "run").message
    assert message == f"{locked / 'run'}: may not be read or written; change its permissions or name another folder"


def test_a_read_only_disk(train: TrainCall, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    make = Path.mkdir

    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        if self == out:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = train().message
    assert message == f"{out}: may not be read or written; change its permissions or name another folder"
    assert not out.exists()


@pytest.mark.parametrize("verb", ["train", "predict", "annotate", "inspect", "shapes"])
def test_a_full_disk(
    call: Call,
    train: TrainCall,
    monkeypatch: pytest.MonkeyPatch,
    trained_run: Path,
    shapes_folder: Path,
    tmp_path: Path,
    verb: str,
) -> None:
    folder = tmp_path / "run"
    replaced: list[Path] = []
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if folder in target.parents:
            replaced.append(target)
            if len(replaced) > 2 or verb == "inspect":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return replace(self, target)

    monkeypatch.setattr(files.Path, "replace", full)
    image = shapes_folder / "JPEGImages/val_000000.jpg"
    called = {
        "train": lambda: train(),
        "predict": lambda: call("predict", trained_run, image, image.with_name("val_000001.jpg"), "--out", folder),
        "annotate": lambda: call("annotate", trained_run, "--data", shapes_folder, "--out", folder),
        "inspect": lambda: call("inspect", shapes_folder, "--out", folder),
        "shapes": lambda: call("shapes", folder, "--train", 2, "--val", 1, "--size", 48),
    }[verb]()
    assert called.code == 2 and "Traceback" not in called.err
    line = called.err.splitlines()[-1]
    assert line.startswith(f"error: {folder}") and line.endswith(
        ": the disk is full; free some space and repeat the same call"
    )
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
