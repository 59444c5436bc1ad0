from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from labelwise import datasets
from labelwise.costs import COSTS, cost_table
from labelwise.datasets.journal import Measured
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.reports.statistics import paired_difference
from labelwise.samples import Kind
from labelwise.verbs import compare as module
from tests.conftest import TINY_OPTIONS, VOC_IDS, Called

Call = Callable[..., Called]

OPTIONS = TINY_OPTIONS | {"steps": 2, "scale_range": "[0.75, 1.5]"}
OWN = {"cutmix": "false", "cps.cross_weight": 0.5}
SPECS = ("masks:1/2", "masks:all")


def words(
    data: Path, out: Path, *more: object, seeds: int = 1, labels: Sequence[str] = SPECS[:1], own: bool = True
) -> list[object]:
    """The rest of a call of `compare` after the names of the methods, with or without the options of `cps` alone."""
    options = OPTIONS | (OWN if own else {})
    pairs = [part for name, value in options.items() for part in ("--option", f"{name}={value}")]
    specs = [part for spec in labels for part in ("--labels", spec)]
    return ["--data", data, "--out", out, "--seeds", seeds, *specs, *pairs, "--workers", 0, *more]


@pytest.fixture(scope="module")
def comparison(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two methods over two budgets and two seeds; read only."""
    from labelwise.cli import main

    out = tmp_path_factory.mktemp("comparisons") / "finished"
    code = main(["compare", "supervised", "cps", *map(str, words(shapes_folder, out, seeds=2, labels=SPECS))])
    assert code == 0
    return out


@pytest.fixture
def finished(comparison: Path, tmp_path: Path) -> Path:
    """A comparison of one run, taken from the other one; to be changed."""
    out = tmp_path / "finished"
    content = stored(comparison)
    content["runs"] = [run for run in content["runs"] if (run["method"], run["labels"]) == ("supervised", SPECS[0])][:1]
    content |= {"methods": ["supervised"], "labels": [SPECS[0]], "seeds": 1}
    (out / "runs").mkdir(parents=True)
    shutil.copytree(comparison / content["runs"][0]["folder"], out / content["runs"][0]["folder"])
    (out / "comparison.json").write_text(json.dumps(content))
    return out


def stored(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return content


def test_every_method_is_run_on_every_budget_and_seed(comparison: Path) -> None:
    content = stored(comparison)
    assert content["methods"] == ["supervised", "cps"] and content["baseline"] == "supervised"
    assert content["labels"] == list(SPECS) and content["seeds"] == 2 and content["metric"] == "miou"
    runs = {(run["method"], run["labels"], run["seed"]): run for run in content["runs"]}
    assert runs.keys() == {(m, spec, seed) for m in ("supervised", "cps") for spec in SPECS for seed in (0, 1)}
    for (method, spec, seed), run in runs.items():
        config = yaml.safe_load((comparison / run["folder"] / "config.yaml").read_text())
        assert (config["method"], config["labels"], config["seed"]) == (method, spec, seed)
        assert run["score"] == json.loads((comparison / run["folder"] / "results.json").read_text())["miou"]
        assert run["labeled"] == (6 if spec == "masks:1/2" else 12)


def test_options_go_to_the_methods_that_have_them(comparison: Path) -> None:
    for run in stored(comparison)["runs"]:
        options = yaml.safe_load((comparison / run["folder"] / "config.yaml").read_text())["options"]
        assert options["steps"] == 2 and options["backbone"] == "tiny" and options["scale_range"] == [0.75, 1.5]
        if run["method"] == "cps":
            assert options["cutmix"] is False and options["cross_weight"] == 0.5
        else:
            assert "cutmix" not in options


def test_table_plot_and_page_are_written(comparison: Path) -> None:
    rows = list(csv.DictReader((comparison / "table.csv").open()))
    assert [(row["labels"], row["method"], row["seeds"]) for row in rows] == [
        (spec, method, "2") for spec in SPECS for method in ("supervised", "cps")
    ]
    assert (comparison / "table.md").read_text().startswith("| labels | method | seeds | mean IoU (%) | against super")
    with Image.open(comparison / "pictures" / "side_by_side.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 4 * 48
    page = (comparison / "report.html").read_text()
    assert "data:image/png;base64," in page and "<svg" in page and "runs/cps-shapes-masks-all-seed1/report.html" in page


def test_a_method_can_be_compared_with_a_form_of_itself(shapes_folder: Path, tmp_path: Path) -> None:
    forms = {"cps, without cutmix": module.Form("cps", {"cutmix": False}), "unused": module.Form("mgd")}
    call = {"data": shapes_folder, "labels": ["masks:1/2"], "seeds": 1, "out": tmp_path / "out"}
    call |= {"options": TINY_OPTIONS | {"steps": 1, "cps.cutmix": True}, "hardware": Hardware(workers=0)}
    content = module.compare(["cps, without cutmix", "cps"], forms=forms, **call)
    assert content["methods"] == ["cps, without cutmix", "cps"] == list(content["options"])
    assert [content["options"][name]["cutmix"] for name in content["methods"]] == [False, True]
    assert [run["folder"] for run in content["runs"]] == [
        f"runs/cps{form}-shapes-masks-1-2-seed0" for form in ("-without-cutmix", "")
    ]
    assert "| cps, without cutmix | 1 |" in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(UserError, match="out: holds a comparison with other settings"):
        module.compare(["cps, without cutmix"], forms={"cps, without cutmix": module.Form("cps")}, **call)


def test_differences_are_paired_by_seed(comparison: Path) -> None:
    scores = {(run["method"], run["labels"], run["seed"]): run["score"] for run in stored(comparison)["runs"]}
    rows = {(row["labels"], row["method"]): row for row in csv.DictReader((comparison / "table.csv").open())}
    for spec in SPECS:
        ours, theirs = ([scores[name, spec, seed] for seed in (0, 1)] for name in ("cps", "supervised"))
        gain = paired_difference(ours, theirs)
        row = rows[spec, "cps"]
        assert float(row["difference"]) == pytest.approx(gain.mean)
        assert float(row["difference_half_width"]) == pytest.approx(gain.half_width)
        assert row["pairs"] == "2" and rows[spec, "supervised"]["difference"] == ""


def test_methods_see_the_same_labelled_images(comparison: Path) -> None:
    for spec in SPECS:
        for seed in (0, 1):
            protocols = {
                json.loads((comparison / run["folder"] / "results.json").read_text())["protocol"]
                for run in stored(comparison)["runs"]
                if (run["labels"], run["seed"]) == (spec, seed)
            }
            assert len(protocols) == 1


def test_the_same_call_again_trains_nothing_and_prints_the_same(
    call: Call, comparison: Path, shapes_folder: Path
) -> None:
    before = {path: path.read_bytes() for path in comparison.rglob("model.safetensors")}
    times = {path: path.stat().st_mtime_ns for path in before}
    again = call("compare", "supervised", "cps", *words(shapes_folder, comparison, "--json", seeds=2, labels=SPECS))
    assert again.code == 0 and again.err.count("finished already") == 8 and "step " not in again.err
    assert {path: path.stat().st_mtime_ns for path in before} == times and len(before) == 8
    assert again.json["report"] == str(comparison / "report.html")
    assert again.json["runs"] == stored(comparison)["runs"]
    table = call("compare", "supervised", "cps", *words(shapes_folder, comparison, seeds=2, labels=SPECS)).out
    assert re.search(r"^masks:all +cps +2 +\d+\.\d\d ± \d+\.\d\d +[+−-]\d+\.\d\d", table, re.M)
    assert table.endswith(f"report with pictures: {comparison / 'report.html'}\n")


def test_runs_and_tables_tell_what_their_labels_cost(comparison: Path) -> None:
    content = stored(comparison)
    assert content["costs"] == cost_table({})
    for run in content["runs"]:
        masks = 6 if run["labels"] == "masks:1/2" else 12
        assert run["annotations"] == {"masks": masks}
        assert run["annotation_minutes"] == round(masks * COSTS[Kind.MASKS].seconds / 60, 2)
    rows = list(csv.DictReader((comparison / "table.csv").open()))
    assert [(row["labeled"], float(row["annotation_minutes"])) for row in rows] == [("6", 23.97)] * 2 + [
        ("12", 47.94)
    ] * 2
    assert "| 12 | 48 |" in (comparison / "table.md").read_text()
    page = (comparison / "report.html").read_text()
    assert "Score over labeled images" in page and "Score over annotation minutes" in page


def test_another_cost_only_redraws(call: Call, finished: Path, shapes_folder: Path) -> None:
    weights = {path: path.stat().st_mtime_ns for path in finished.rglob("model.safetensors")}
    again = call("compare", "supervised", *words(shapes_folder, finished, "--cost", "masks=10", "--json", own=False))
    assert again.code == 0 and "step " not in again.err
    assert again.json["costs"]["masks"] == 10 and again.json["costs"]["boxes"] == COSTS[Kind.BOXES].seconds
    assert stored(finished)["runs"][0]["annotation_minutes"] == 1.0
    assert "masks 10 s per image (given by --cost)" in (finished / "report.html").read_text()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("model.safetensors")} == weights


def test_what_the_labels_of_this_data_set_took_counts_instead_of_published_times(
    call: Call, monkeypatch: pytest.MonkeyPatch, finished: Path, shapes_folder: Path
) -> None:
    took = {Kind.MASKS: Measured(seconds=30.0, count=12), Kind.BOXES: Measured(seconds=9.0, count=3)}
    monkeypatch.setattr(module, "measured_costs", lambda root: took if root == shapes_folder else {})
    again = call("compare", "supervised", *words(shapes_folder, finished, "--json", own=False)).json
    assert again["measured_costs"] == {"masks": 30.0}
    assert again["costs"] == cost_table({"masks": 30.0})
    assert again["runs"][0]["annotation_minutes"] == 3.0
    page = (finished / "report.html").read_text()
    assert "masks 30 s per image (measured when this data set was labeled)" in page
    given = call("compare", "supervised", *words(shapes_folder, finished, "--cost", "masks=10", "--json", own=False))
    assert given.json["costs"]["masks"] == 10


def test_a_comparison_of_a_version_without_costs_gets_them(call: Call, finished: Path, shapes_folder: Path) -> None:
    content = stored(finished)
    del content["costs"]
    for run in content["runs"]:
        del run["annotations"], run["annotation_minutes"]
    (finished / "comparison.json").write_text(json.dumps(content))
    assert call("report", finished).code == 0
    assert call("compare", "supervised", *words(shapes_folder, finished, own=False)).code == 0
    assert stored(finished)["runs"][0]["annotation_minutes"] == 23.97


@pytest.mark.parametrize(
    ("spec", "annotations"),
    [
        ("masks:1/2+tags", {"masks": 2, "tags": 2}),
        ("boxes", {"boxes": 8}),
        ("instances:1/4", {"instances": 2}),
        ("points:20", {"points": 80}),
        ("points", {"points": 4}),
        ("none", {}),
    ],
)
def test_annotations_are_counted_for_every_kind(voc_folder: Path, spec: str, annotations: dict[str, int]) -> None:
    (voc_folder / "Points").mkdir()
    for id in VOC_IDS[:4]:
        (voc_folder / "Points" / f"{id}.json").write_text('{"points": [{"x": 1, "y": 2, "class": "cat"}]}')
    assert module._annotations(datasets.open(voc_folder), spec, 0, "train", ()) == annotations


def test_skipped_images_cost_nothing(voc_folder: Path) -> None:
    assert module._annotations(datasets.open(voc_folder), "boxes", 0, "train", VOC_IDS[:1]) == {"boxes": 6}


def test_more_methods_labels_and_seeds_extend_a_comparison(
    call: Call, monkeypatch: pytest.MonkeyPatch, shapes_folder: Path, tmp_path: Path
) -> None:
    # The pages of the runs would take longer than the runs.
    monkeypatch.setattr("labelwise.verbs.train.write_run_report", lambda folder: None)
    out = tmp_path / "out"
    plain = words(shapes_folder, out, own=False)
    assert call("compare", "supervised", *plain).code == 0
    own = words(shapes_folder, out, "--labels", "masks:1/4", "--json")
    more = call("compare", "cps", "supervised", *own).json
    assert more["methods"] == ["cps", "supervised"] and more["baseline"] == "cps"
    assert more["labels"] == ["masks:1/2", "masks:1/4"]
    assert [(run["labels"], run["method"]) for run in more["runs"]] == [
        ("masks:1/2", "supervised"),
        ("masks:1/2", "cps"),
        ("masks:1/4", "cps"),
        ("masks:1/4", "supervised"),
    ]
    fewer = call("compare", "supervised", *plain, "--json").json
    assert len(fewer["runs"]) == 4 and fewer["methods"] == ["supervised", "cps"]
    assert len((out / "table.csv").read_text().splitlines()) == 5


def test_other_settings_are_refused_in_one_line(call: Call, comparison: Path, shapes_folder: Path) -> None:
    before = (comparison / "comparison.json").read_bytes()
    refused = call("compare", "supervised", *words(shapes_folder, comparison, "--option", "steps=3", own=False))
    assert refused.message == (
        f"--out {comparison}: holds a comparison with other settings (options.supervised.steps: 2 -> 3); "
        "name another folder"
    )
    assert (comparison / "comparison.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for out in (tmp_path, tmp_path / "letter.txt"):
        message = call("compare", "supervised", *words(shapes_folder, out, own=False)).message.split(": ", 1)[1]
        assert message == "holds something else than a comparison; name a new or empty folder"
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("call_words", "message"),
    [
        (["supervised", "csp"], "unknown method 'csp'; did you mean 'cps'?"),
        (["supervised", "supervised"], "METHOD supervised: given twice; give it once"),
        (["supervised", "--labels", "masks:1/2", "--labels", "masks:1/2"], "--labels masks:1/2: given twice"),
        (["supervised", "--labels", "masks:1/2", "--labels", "masks:99"], "--labels masks:99: asks for 99 masks; the"),
        (["supervised", "cps", "--labels", "tags"], "--labels tags: gives tags, but 'supervised' needs masks"),
        (
            ["supervised", "adele", "--labels", "points:5", "--labels", "points:9"],
            "METHOD adele: learns from masks, which none of --labels points:5, points:9 gives; leave it",
        ),
        (
            ["supervised", "adele", "--labels", "masks", "--labels", "tags"],
            "--labels tags: none of supervised, adele learns from it; leave it out, or add a method that `labelwise",
        ),
        (
            ["supervised", "--labels", "masks", "--labels", "tags"],
            "--labels tags: gives tags, but 'supervised' needs m",
        ),
        (["supervised", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["supervised", "--option", "crosweight=1"], "--option crosweight: 'supervised' has no option 'crosweight'"),
        (["supervised", "cps", "--option", "crosweight=1"], "--option crosweight: none of supervised, cps has an opti"),
        (["supervised", "--option", "cps.crop=1"], "--option cps.crop: 'cps' is not among the methods compared (super"),
        (["cps", "--option", "cps.crp=1"], "--option cps.crp: 'cps' has no option 'crp'; did you mean 'crop'?"),
        (["cps", "--option", "crop=big"], "--crop big: must be a whole number"),
        (["cps", "--option", "crop"], "--option crop: must be NAME=VALUE, such as crop=64 or cps.cutmix=false"),
        (["cps", "--preset", "mimi"], "--preset mimi: neither a preset of 'cps' nor a file; did you mean 'mini'?"),
        (["cps", "--split", "trian"], ": no split 'trian'; did you mean 'train'?"),
        (["cps", "--val-split", "vall"], ": no split 'vall'; did you mean 'val'?"),
        (["cps", "--devices", "0"], "--devices 0: must be at least 1"),
        (["cps", "--cost", "maks=3"], "--cost maks=3: no label kind 'maks'; did you mean 'masks'?"),
        (["cps", "--cost", "masks=-3"], "--cost masks=-3: must be a finite number of seconds, 0 or more"),
        (["cps", "--cost", "masks=long"], "--cost masks=long: 'long' is no number of seconds; write masks=60"),
    ],
)
def test_a_wrong_call_trains_nothing(
    call: Call, shapes_folder: Path, tmp_path: Path, call_words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    refused = call("compare", *call_words, "--data", shapes_folder, "--out", out, "--workers", 0)
    assert message in refused.message
    assert not out.exists()


def test_a_run_of_several_processes_is_one_call_of_train(
    call: Call, monkeypatch: pytest.MonkeyPatch, shapes_folder: Path, tmp_path: Path, comparison: Path
) -> None:
    calls: list[list[str]] = []

    class Launched(Exception):
        pass

    def launch(command: list[str], **options: Any) -> None:
        assert options == {"check": True, "stdout": subprocess.DEVNULL}
        calls.append(command)
        raise Launched

    monkeypatch.setattr("labelwise.verbs.train.subprocess.run", launch)
    with pytest.raises(Launched):
        call(
            "compare",
            "cps",
            *words(shapes_folder, tmp_path / "out", "--devices", 2, "--deterministic", "--skip-broken"),
        )
    (command,) = calls
    assert command[:5] == [sys.executable, "-m", "labelwise", "train", "cps"]
    monkeypatch.undo()
    heard: dict[str, Any] = {}
    monkeypatch.setattr("labelwise.verbs.train.train", lambda name, **given: heard.update(given) or {"miou": 1.0})
    assert call(*command[3:]).code == 0
    assert heard["hardware"].devices == 2 and heard["hardware"].deterministic and heard["hardware"].workers == 0
    assert heard["seed"] == 0 and heard["skip_broken"] is True and heard["labels"] == "masks:1/2"
    assert heard["cutmix"] is False and heard["scale_range"] == (0.75, 1.5) and heard["cross_weight"] == 0.5
    assert heard["out"] == tmp_path / "out" / "runs" / "cps-shapes-masks-1-2-seed0"
