from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import labelwise
from labelwise.annotator import server
from labelwise.annotator.jobs import Jobs
from labelwise.annotator.server import bind
from labelwise.annotator.session import AnnotationSession
from labelwise.datasets.queries import Query, QueryFile, read_queries, write_queries
from labelwise.datasets.voc import VOC
from labelwise.errors import UserError
from labelwise.samples import Kind
from labelwise.verbs import label as module
from labelwise.verbs.labelling_folder import class_list, labelling_folder
from tests.annotator.serving import Client
from tests.conftest import VOC_IDS, Called
from tests.tiny_runs import PATIENCE, ended, start, wait_for

Call = Callable[..., Called]
SESSIONS: list[AnnotationSession] = []
JOBS: list[Jobs] = []


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What sessions were served; each of them ends at once, as by Ctrl-C."""
    told: list[dict[str, Any]] = []
    create = server.create_app

    def created(session: AnnotationSession, jobs: Jobs, token: str, port: int, mode: str) -> Any:
        told.append(
            session.describe() | session.queries(100) | {"mode": mode, "jobs": jobs.settings, "model": jobs.model}
        )
        return create(session, jobs, token, port, mode)

    monkeypatch.setattr(server, "create_app", created)
    monkeypatch.setattr(server, "serve", lambda app, listening: int(signal.SIGINT))
    monkeypatch.setattr(Jobs, "start", lambda self, action: told.append({"started": action}))
    return told


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A bare folder of three images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "c d.webp"):
        Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


# ------------------------------------------------------- the folder of the labels


def test_a_voc_folder_is_labelled_where_it_is(call: Call, served: list[dict[str, Any]], voc_folder: Path) -> None:
    called = call("label", voc_folder, "--mode", "boxes", "--no-browser")
    assert called.code == 130 and str(voc_folder) in called.out
    assert re.fullmatch(r"labelling at http://127\.0\.0\.1:\d+/\?token=[\w-]{43} \(Ctrl-C ends it\)\n", called.err)
    (told,) = served
    assert told["data"] == str(voc_folder) and told["mode"] == "boxes" and told["images"] == 4
    assert sorted(path.name for path in voc_folder.iterdir()) == [
        "Annotations", "ImageSets", "JPEGImages", "Labelling", "SegmentationClass", "SegmentationObject"
    ]  # fmt: skip


def test_a_bare_folder_is_copied_once_and_gone_on_with(
    call: Call, served: list[dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    words = ["label", pictures, "--out", tmp_path / "out", "--mode", "masks", "--no-browser", "--json"]
    called = call(*words, "--classes", "cat, dog")
    assert called.code == 130 and called.json["data"] == str(tmp_path / "out") and called.json["images"] == 3
    out = VOC(tmp_path / "out")
    assert out.classes.names == ("background", "cat", "dog") and out.ids("train") == ("a", "b", "c d")
    assert "val" not in out.splits
    for file in pictures.glob("*.*g*"):
        assert (out.root / "JPEGImages" / file.name).read_bytes() == file.read_bytes()
    mask = np.full((24, 32), 2, np.uint8)
    (out.root / "SegmentationClass").mkdir()
    Image.fromarray(mask).save(out.root / "SegmentationClass/a.png")
    Image.new("RGB", (32, 24)).save(pictures / "new.png")
    assert call(*words).code == 130
    again = VOC(tmp_path / "out")
    assert again.ids("train") == ("a", "b", "c d", "new") and again.classes.names == out.classes.names
    assert (again.read("a", [Kind.MASKS]).mask == torch.from_numpy(mask)).all()


def test_another_layout_is_copied_with_its_labels(tmp_path: Path, pictures: Path) -> None:
    data = tmp_path / "plain"
    for split, name in (("train", "a.jpg"), ("val", "b.png")):
        (data / split / "images").mkdir(parents=True)
        (data / split / "masks").mkdir()
        shutil.copy(pictures / name, data / split / "images")
        Image.fromarray(np.full((24, 32), 1, np.uint8)).save(data / split / "masks" / f"{name[0]}.png")
    with pytest.raises(UserError, match=r"is in the layout 'folders', which cannot hold these labels; .* --out DIR"):
        labelling_folder(data, None)
    with pytest.raises(UserError, match=r"--classes: .* has its own, class_0, class_1; leave it out"):
        labelling_folder(data, tmp_path / "out", ["cat"])
    for _ in range(2):
        copy = labelling_folder(data, tmp_path / "out")
        assert copy.ids("train") == ("a",) and copy.ids("val") == ("b",)
        assert (copy.read("a", [Kind.MASKS]).mask == 1).all()
        assert copy.classes.names == ("class_0", "class_1")


def test_plain_folders_without_masks_keep_their_splits(tmp_path: Path, pictures: Path) -> None:
    data = tmp_path / "plain"
    for split, name in (("train", "a.jpg"), ("val", "b.png")):
        (data / split / "images").mkdir(parents=True)
        shutil.copy(pictures / name, data / split / "images")
    with pytest.raises(UserError, match="its classes are not known; name them with --classes cat,dog"):
        labelling_folder(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    copy = labelling_folder(data, tmp_path / "out", ["sky", "road"], background=False)
    assert copy.ids("train") == ("a",) and copy.ids("val") == ("b",)
    assert copy.classes.names == ("sky", "road") and copy.classes.background is None


def test_an_interrupted_copy_is_completed(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_image, done = VOC.copy_image, []

    def dies(self: VOC, id: str, source: Path) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(id)
        copy_image(self, id, source)

    monkeypatch.setattr(VOC, "copy_image", dies)
    with pytest.raises(KeyboardInterrupt):
        labelling_folder(pictures, tmp_path / "out", ["cat"])
    monkeypatch.setattr(VOC, "copy_image", copy_image)
    assert labelling_folder(pictures, tmp_path / "out").ids("train") == ("a", "b", "c d")


def test_voc_images_without_labels_get_the_classes_given(tmp_path: Path, pictures: Path) -> None:
    pictures.rename(tmp_path / "JPEGImages")
    assert labelling_folder(tmp_path, None, ["cat", "dog"]).classes.names == ("background", "cat", "dog")
    assert labelling_folder(tmp_path, None, ["cat", "dog"]).classes.names == ("background", "cat", "dog")
    assert labelling_folder(tmp_path, None).classes.names == ("background", "cat", "dog")
    with pytest.raises(UserError, match="has its own, background, cat, dog; leave it out"):
        labelling_folder(tmp_path, None, ["cat"])


def test_classes_of_a_labelled_folder_are_not_changed(voc_folder: Path) -> None:
    with pytest.raises(UserError, match=r"--classes: .* has its own, background, aeroplane"):
        labelling_folder(voc_folder, None, ["cat", "dog"])
    assert not (voc_folder / "classes.txt").exists()


@pytest.mark.parametrize(
    ("names", "background", "expected"),
    [
        (["cat"], True, ("background", "cat")),
        (["cat", "background"], True, ("background", "cat")),
        (["sky", "road"], False, ("sky", "road")),
    ],
)
def test_the_background_is_class_0(names: list[str], background: bool, expected: tuple[str, ...]) -> None:
    classes = class_list(names, background)
    assert classes.names == expected and classes.background == (0 if background else None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "cat"], "'cat' is there twice"),
        (["cat", " "], "'' cannot be a class"),
        (["a/b"], "'a/b' cannot be a class"),
        (["a\nb"], "cannot be a class"),
        (["#a"], "'#a' would be a comment"),
        ([str(number) for number in range(255)], "256 classes are too many"),
    ],
)
def test_names_that_no_class_can_have_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        class_list(names, True)


# ------------------------------------------------------------------ wrong calls


def test_a_wrong_call_is_one_line(
    call: Call, served: list[dict[str, Any]], pictures: Path, voc_folder: Path, tmp_path: Path, trained_run: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]")
    for words, message in (
        ([tmp_path / "nowhere"], "there is no such folder"),
        ([wrong], "is a file"),
        ([tmp_path / "full"], "not a known layout"),
        ([pictures], "is a bare folder of images, which cannot hold these labels; name a folder for a copy with --out"),
        ([pictures, "--out", out], "its classes are not known; name them with --classes"),
        ([pictures, "--out", tmp_path / "full", "--classes=a"], "holds something else"),
        ([pictures, "--out", wrong, "--classes=a"], f"--out {wrong}: is a file"),
        ([pictures, "--out", out, "--classes=a,a"], "--classes: 'a' is there twice"),
        ([tmp_path / "empty"], "no image"),
        ([voc_folder, "--split", "tran"], "no split 'tran'; did you mean 'train'?"),
        ([voc_folder, "--classes", "x,y"], "--classes: "),
        ([voc_folder, "--run", trained_run], "has 21 classes, but the model was trained on"),
        ([voc_folder, "--run", tmp_path / "nowhere"], "no such run folder"),
        ([voc_folder, "--queries", wrong], f"{wrong}: it is not a file of queries"),
        ([voc_folder, "--queries", tmp_path / "nowhere.json"], "nowhere.json: there is no such file"),
        ([voc_folder, "--pixels", "0"], "--pixels 0: must be at least 1"),
        ([voc_folder, "--port", "65536"], "--port 65536: must be from 0 "),
        ([voc_folder, "--mode", "point"], "must be one of points, tags, boxes, masks, browse; did you mean 'points'?"),
        ([voc_folder, "--method", "pixelpik"], "did you mean 'pixelpick'?"),
        ([voc_folder, "--method", "irn"], "--method irn: cannot learn from points"),
        ([voc_folder, "--preset", "min"], "min"),
        ([voc_folder, "--option", "stepps=3"], "stepps"),
        ([voc_folder, "--option", "steps"], "--option steps: must be NAME=VALUE"),
        ([voc_folder, "--option", "accelerator=abacus"], "--accelerator abacus"),
    ):
        message_of_call = call("label", *words, "--no-browser").message
        assert message in message_of_call, words
    assert served == [] and not out.exists()


def test_a_port_in_use_is_one_line(call: Call, voc_folder: Path) -> None:
    with bind(0) as listening:
        port = listening.getsockname()[1]
        message = call("label", voc_folder, "--port", port, "--no-browser").message
    assert message == f"--port {port}: address already in use; take another, or 0 for any free one"


def test_a_folder_that_cannot_be_written_to_is_one_line(call: Call, voc_folder: Path) -> None:
    (voc_folder / "Labelling").write_text("a file")
    assert str(voc_folder) in call("label", voc_folder, "--no-browser").message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(call: Call, voc_folder: Path) -> None:
    voc_folder.chmod(0o555)
    assert str(voc_folder) in call("label", voc_folder, "--no-browser").message


def test_a_broken_image_of_a_bare_folder_is_one_line(call: Call, pictures: Path, tmp_path: Path) -> None:
    (pictures / "bad.jpg").write_bytes(b"no image")
    message = call("label", pictures, "--out", tmp_path / "out", "--classes=a", "--no-browser").message
    assert message.startswith(f"{pictures / 'bad.jpg'}: ")


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_extra_the_mend_is_told(
    call: Call, voc_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    find = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else find(name))
    message = call("label", voc_folder).message
    assert message == f"label: {package} not installed; run `pip install 'labelwise[annotator]'`"


# ------------------------------------------------------------- what is asked for


def queries_of(folder: Path, x: int = 3) -> Path:
    path = folder / "asked.json"
    write_queries(path, QueryFile((Query(VOC_IDS[0], 24, 32, (x,), (4,)),), "margin", "runs/9", 3))
    return path


def test_the_queries_given_are_asked_and_kept_for_the_next_call(
    call: Call, served: list[dict[str, Any]], voc_folder: Path, tmp_path: Path
) -> None:
    file = queries_of(tmp_path)
    assert call("label", voc_folder, "--queries", file, "--no-browser").code == 130
    file.unlink()
    assert call("label", voc_folder, "--no-browser").code == 130
    for told in served:
        assert (told["round"], told["total"], told["strategy"]) == (3, 1, "margin")
    assert read_queries(voc_folder / "Labelling/queries.json").model == "runs/9"


def test_without_queries_pixels_are_chosen_in_the_background(
    call: Call, served: list[dict[str, Any]], voc_folder: Path
) -> None:
    assert call("label", voc_folder, "--no-browser").code == 130
    assert served[0] == {"started": "select"}


@pytest.mark.parametrize("mode", ["tags", "boxes", "masks", "browse"])
def test_in_other_modes_no_pixels_are_chosen(
    call: Call, served: list[dict[str, Any]], voc_folder: Path, mode: str
) -> None:
    assert call("label", voc_folder, "--mode", mode, "--no-browser").code == 130
    assert served[0]["mode"] == mode and served[0]["total"] == 0


def test_options_of_the_training_are_handed_on(
    call: Call, served: list[dict[str, Any]], voc_folder: Path, tmp_path: Path
) -> None:
    words = ["--preset=mini", "--option=steps=6", "--option", "accelerator=cpu", "--option", "scale-range=[0.5, 1.0]"]
    assert (
        call("label", voc_folder, "--queries", queries_of(tmp_path), *words, "--pixels=3", "--no-browser").code == 130
    )
    settings = served[0]["jobs"]
    assert settings.options == ("--steps=6", "--accelerator=cpu", "--scale-range", "0.5", "1.0")
    assert (settings.method, settings.preset, settings.pixels) == ("pixelpick", "mini", 3)


def test_predictions_of_an_earlier_call_are_shown(
    call: Call, served: list[dict[str, Any]], voc_folder: Path, tmp_path: Path
) -> None:
    shown = voc_folder / "Labelling/predictions"
    (shown / "JPEGImages").mkdir(parents=True)
    assert call("label", voc_folder, "--mode=masks", "--no-browser").code == 130
    assert served[0]["has_predictions"] is True


def test_the_browser_is_opened_where_there_is_a_screen(
    served: list[dict[str, Any]], voc_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    addresses: list[str] = []
    monkeypatch.setattr(module.webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    labelwise.label(voc_folder, mode="tags", ready=addresses.append)
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    labelwise.label(voc_folder, mode="tags", browser=False, ready=addresses.append)
    labelwise.label(voc_folder, mode="tags", ready=addresses.append)
    wait_until(lambda: opened)
    assert opened == addresses[2:]


# ------------------------------------------------------------- the whole command


def wait_until(condition: Callable[[], Any]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, "nothing happens"
        time.sleep(0.02)


@contextmanager
def labelling(output: Path, *words: object) -> Iterator[tuple[Any, Client]]:
    """The command in a process, and a client with its cookie."""
    process = start(["label", *map(str, words), "--no-browser"], output)
    try:
        error = output / "stderr"
        found: list[re.Match[str]] = []

        def has_address() -> bool:
            match = re.search(r"http://\S+", error.read_text()) if error.is_file() else None
            found.extend([match] if match else [])
            return bool(match)

        wait_for(has_address, process)
        address = urlsplit(found[0][0])
        yield process, Entered(address.port or 0, address.query.removeprefix("token="))
    finally:
        if process.is_alive():
            process.terminate()
            process.join(PATIENCE)


class Entered(Client):
    """A client that has come in by the printed address."""

    def __init__(self, port: int, token: str) -> None:
        super().__init__(port)
        answer = super().ask("GET", f"/?token={token}", headers={"Cookie": None})
        object.__setattr__(self, "cookie", (answer.header("Set-Cookie") or "").partition(";")[0])

    def ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> Any:
        cookie = getattr(self, "cookie", None)
        return super().ask(method, path, body, ({"Cookie": cookie} if cookie else {}) | (headers or {}))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_the_next_call_goes_on(
    voc_folder: Path, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    file = queries_of(tmp_path)
    with labelling(tmp_path / "first", voc_folder, "--queries", file) as (process, client):
        body = {"answer": "a-1", "id": VOC_IDS[0], "x": 3, "y": 4, "class": 8, "seconds": 1.5}
        assert client.post("/api/points", body).json["done"] == 1
        os.kill(process.pid, signum)
        assert ended(process) == code
    assert (tmp_path / "first/stdout").read_text() == f"the labels are in {voc_folder}; repeat the same call to go on\n"
    assert len((tmp_path / "first/stderr").read_text().splitlines()) == 1
    assert json.loads((voc_folder / f"Points/{VOC_IDS[0]}.json").read_text())["points"] == [
        {"x": 3, "y": 4, "class": "cat"}
    ]
    if signum is signal.SIGINT:
        with labelling(tmp_path / "second", voc_folder) as (process, client):
            told = client.get("/api/queries").json
            assert (told["done"], told["total"]) == (1, 1)


def test_a_second_call_on_the_same_labels_is_refused(call: Call, voc_folder: Path, tmp_path: Path) -> None:
    with labelling(tmp_path / "first", voc_folder, "--queries", queries_of(tmp_path)):
        message = call("label", voc_folder, "--no-browser").message
    assert str(voc_folder) in message
