"""Choosing the pixels that a person is to label next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import labelwise
from labelwise.datasets.journal import Journal
from labelwise.datasets.queries import QueryFile, read_queries
from labelwise.hardware import Hardware
from labelwise.models.acquisition import uncertainty
from labelwise.samples import Kind
from labelwise.tasks.acquisition import AcquisitionConfig
from labelwise.verbs.select import load_picker, mean_uncertainty, select
from tests.conftest import Called

Call = Callable[..., Called]


@pytest.fixture
def data(shapes_folder: Path, tmp_path: Path) -> Path:
    """The shapes with their own points, of which the first image has two of our choice."""
    folder = Path(shutil.copytree(shapes_folder, tmp_path / "data"))
    points = [{"x": x, "y": 5, "class": "background"} for x in (3, 40)]
    (folder / "Points" / "train_000000.json").write_text(json.dumps({"points": points}))
    return folder


def pixels(queries: QueryFile) -> dict[str, set[tuple[int, int]]]:
    return {query.id: set(zip(query.x, query.y, strict=True)) for query in queries.images}


def probabilities(run: Path, data: Path, id: str) -> Tensor:
    method = labelwise.load_model(run)
    with torch.no_grad():
        return method.predict(labelwise.open(data).read(id).image.as_subclass(Tensor)[None]).softmax(1)


def test_without_a_run_the_pixels_are_random(call: Call, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "queries.json"
    called = call("select", "--data", data, "--pixels", 5, "--out", out)
    assert called.code == 0 and called.out == f"60 pixels of 12 images to label in {out}\n"
    queries = read_queries(out)
    assert (queries.strategy, queries.model, queries.round) == ("random", None, 0)
    assert [query.id for query in queries.images] == list(labelwise.open(data).ids("train"))
    assert all((query.height, query.width, query.uncertainty) == (48, 48, None) for query in queries.images)
    assert len(set(map(frozenset, pixels(queries).values()))) == 12
    first = out.read_bytes()
    assert call("select", "--data", data, "--pixels", 5, "--out", out).code == 0
    assert out.read_bytes() == first
    assert call("select", "--data", data, "--pixels", 5, "--out", out, "--seed", 1).code == 0
    assert out.read_bytes() != first


def test_a_model_asks_for_the_pixels_with_the_smallest_margin(data: Path, trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "queries.json"
    result = select(trained_run, data=data, out=out, pixels=4, hardware=Hardware(precision="32-true"))
    assert result == {"images": 12, "pixels": 48, "strategy": "margin", "skipped": [], "out": str(out)}
    queries = read_queries(out)
    assert (queries.strategy, queries.model, queries.round) == ("margin", str(trained_run), 1)
    for query in queries.images[:3]:
        found = probabilities(trained_run, data, query.id)
        margin = uncertainty(found, "margin")[0]
        # One more than the candidates for each pixel that has a click and stands among them.
        worst = margin.flatten().kthvalue(int(0.05 * 48 * 48) + 9).values
        assert (margin[query.y, query.x] <= worst).all()
        assert query.uncertainty == pytest.approx(1 - float(margin.mean()), abs=1e-4)


def test_pixels_that_have_a_click_are_not_asked_again(data: Path, trained_run: Path, tmp_path: Path) -> None:
    size = 48 * 48
    select(trained_run, data=data, out=tmp_path / "all.json", pixels=size, share=1.0)
    asked = pixels(read_queries(tmp_path / "all.json"))["train_000000"]
    assert len(asked) == size - 2 and not asked & {(3, 5), (40, 5)}


def test_pixels_that_a_mask_knows_are_asked_all_the_same(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "Points")
    assert select(data=data, out=tmp_path / "queries.json", pixels=3)["pixels"] == 36


@pytest.mark.parametrize("strategy", ["margin", "entropy", "least_confidence"])
def test_an_image_is_unsure_between_0_and_1(strategy: str) -> None:
    for uniform, expected in ((True, 1.0), (False, 0.0)):
        found = torch.full((1, 3, 2, 2), 1 / 3) if uniform else torch.eye(3)[:, :1, None].expand(3, 2, 2)[None]
        score = uncertainty(found, strategy)[0]  # type: ignore[arg-type]
        assert mean_uncertainty(score, strategy, 3) == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]


def test_a_committee_is_reproducible_and_leaves_the_randomness_as_it_was(data: Path, trained_run: Path) -> None:
    image = labelwise.open(data).read("train_000001").image.as_subclass(Tensor)
    picker = load_picker(trained_run, AcquisitionConfig(votes=2), 0, 1, Hardware(precision="32-true"))
    assert picker.output is not None
    head = picker.output.method.network
    head.register_module("drop", torch.nn.Dropout(0.1))
    head.register_forward_pre_hook(lambda module, inputs: (module.drop(inputs[0]),))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    picks = [picker.pick("train_000001", image, 5) for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(picks[0].pixels, picks[1].pixels) and picks[0].uncertainty == picks[1].uncertainty
    single = load_picker(trained_run, AcquisitionConfig(), 0, 1, Hardware(precision="32-true"))
    assert single.pick("train_000001", image, 5).uncertainty != picks[0].uncertainty


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pixels", 0], "--pixels 0: must be at least 1"),
        (["--strategy", "margin"], "--strategy margin: needs a model; name a run, or leave it out for random pixels"),
        (["--share", 0], "--share 0.0: must be above 0 and at most 1"),
        (["--seed", -1], "--seed -1: must be from 0 to 4294967295"),
        (["--split", "trian"], "no split 'trian'; did you mean 'train'?"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_written(
    call: Call, data: Path, tmp_path: Path, words: list[object], message: str
) -> None:
    given = [] if "--pixels" in words else ["--pixels", 2]
    refused = call("select", "--data", data, "--out", tmp_path / "queries.json", *given, *words)
    assert refused.message.endswith(message)
    assert not (tmp_path / "queries.json").exists()


def test_votes_need_dropout(call: Call, data: Path, tmp_path: Path, fcn_run: Path) -> None:
    words = ["select", fcn_run, "--data", data, "--out", tmp_path / "q.json", "--pixels", 2, "--votes", 3]
    assert call(*words).message == "--votes 3: the network has no dropout; leave it out"


@pytest.fixture
def fcn_run(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose network is said to have no dropout."""
    from labelwise.verbs import select as module

    load = module.load_output

    def without_dropout(*arguments: object) -> object:
        output = load(*arguments)  # type: ignore[arg-type]
        for name, part in list(output.method.network.named_modules()):
            if isinstance(part, torch.nn.Dropout | torch.nn.Dropout2d):
                output.method.network.set_submodule(name, torch.nn.Identity())
        return output

    monkeypatch.setattr(module, "load_output", without_dropout)
    return trained_run


def test_another_file_is_never_replaced(call: Call, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.json"
    other.write_text('{"important": true}')
    words = ["select", "--data", data, "--pixels", 2, "--out"]
    assert call(*words, other).message == f"--out {other}: holds something else than queries; name another file"
    assert call(*words, tmp_path).message == f"--out {tmp_path}: is a folder; name a .json file"
    assert other.read_text() == '{"important": true}'


def test_a_broken_click_file_stops_or_is_skipped(call: Call, data: Path, tmp_path: Path) -> None:
    broken = data / "Points" / "train_000001.json"
    broken.write_text('{"points": [{"x": 1, "y": 99, "class": "background"}]}')
    words = ["select", "--data", data, "--pixels", 2, "--out", tmp_path / "queries.json"]
    assert call(*words).message.startswith(f"{broken}: point 1 at (1, 99) lies outside the 48x48 image")
    called = call(*words, "--skip-broken", "--json")
    assert called.json["skipped"] == ["train_000001"] and called.json["images"] == 11


def test_a_run_of_another_task_is_refused(call: Call, data: Path, tmp_path: Path, shapes_folder: Path) -> None:
    from tests.tiny_runs import LOCALIZER, tiny_run

    run = tiny_run("cam", shapes_folder, tmp_path / "cam", base=LOCALIZER, labels="tags:6", steps=1)
    refused = call("select", run, "--data", data, "--out", tmp_path / "queries.json", "--pixels", 2)
    assert refused.message == (
        f"{run}: is a run of 'cam', which knows no class of every pixel; name a segmenter's, or leave it out for "
        "random pixels"
    )
    assert not list(tmp_path.glob("*.json"))


def test_pixels_that_nobody_could_name_are_not_asked_again(data: Path, tmp_path: Path) -> None:
    (data / "Labelling").mkdir()
    with Journal(data / "Labelling" / "journal.jsonl") as journal:
        for x, y in ((7, 7), (8, 8), (4000, 1)):
            journal.append(f"skip-{x}", Kind.POINTS, "train_000001", 1.0, {"x": x, "y": y, "skipped": True})
        journal.append("undo", Kind.POINTS, "train_000001", 1.0, {"undo": 2, "x": 8, "y": 8, "skipped": True})
    select(data=data, out=tmp_path / "queries.json", pixels=48 * 48)
    asked = pixels(read_queries(tmp_path / "queries.json"))["train_000001"]
    assert (7, 7) not in asked and (8, 8) in asked


def test_clicks_taken_back_meanwhile_do_no_harm(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = data / "Points" / "train_000000.json"
    monkeypatch.setattr("labelwise.verbs.select.skipped_pixels", lambda root: clicks.unlink() or {})
    select(data=data, out=tmp_path / "queries.json", pixels=48 * 48)
    assert len(pixels(read_queries(tmp_path / "queries.json"))["train_000000"]) == 48 * 48
