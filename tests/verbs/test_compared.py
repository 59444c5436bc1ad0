"""Recipes are compared with methods: each on the labels that it learns from, by the last stage that scores a model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.stages import parse_recipe
from labelwise.verbs import compared as module
from labelwise.verbs.compare import compare
from labelwise.verbs.stage_kinds import KINDS
from tests.conftest import TINY_OPTIONS, Called
from tests.tiny_runs import MACHINE

Call = Callable[..., Called]

RECIPE = """about: A segmenter labels images, from which another learns
stages:
  teacher: {train: supervised, data: data, labels: "masks:6"}
  labels: {annotate: teacher, data: data}
  student: {train: supervised, data: labels}
  teacher_score: {evaluate: teacher, data: data}
  score: {evaluate: student, data: data}
"""
SPECS = ("points:5", "masks:6")


def run_tiny(recipe: Path, data: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Compare a method of masks, which learns from points too, and a recipe."""
    options = TINY_OPTIONS | {"steps": 2} | more.pop("options", {})
    call = {"labels": SPECS, "seeds": 1, "hardware": Hardware(**MACHINE)} | more
    return compare(["supervised", str(recipe)], data=data, out=out, options=options, **call)


def written(folder: Path, text: str, name: str = "self.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recipes"), RECIPE)


@pytest.fixture(scope="module")
def finished(recipe: Path, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison; read only."""
    out = tmp_path_factory.mktemp("comparisons") / "out"
    run_tiny(recipe, shapes_folder, out, options={"self.student.steps": 3})
    return out


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def stored(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return content


def test_each_is_run_on_the_labels_that_it_fits(finished: Path) -> None:
    content = stored(finished)
    assert content["methods"] == ["supervised", "self"] and content["labels"] == list(SPECS)
    assert [(run["labels"], run["method"]) for run in content["runs"]] == [
        ("points:5", "supervised"),
        ("masks:6", "supervised"),
        ("masks:6", "self"),
    ]


def test_a_recipe_is_scored_by_its_last_evaluation_and_costs_what_its_stages_take(finished: Path) -> None:
    run = stored(finished)["runs"][2]
    folder = finished / run["folder"]
    assert run["folder"] == "runs/self-shapes-masks-6-seed0" and run["model"] == f"{run['folder']}/3-student"
    score = json.loads((folder / "5-score" / "results.json").read_text())
    assert (run["score"], run["iou"]) == (score["miou"], score["iou"])
    records = [json.loads(file.read_text()) for file in folder.glob("?-*.json")]
    assert len(records) == 5 and run["seconds"] == pytest.approx(sum(record["seconds"] for record in records), abs=0.1)
    assert run["steps"] == 2 + 3 and run["peak_memory_mb"] is None
    assert (run["labeled"], run["unlabeled"]) == (6, 6)
    assert run["annotations"] == {"masks": 6} and run["annotation_minutes"] == 23.97


def test_table_charts_and_picture_leave_out_what_was_not_run(finished: Path) -> None:
    rows = list(csv.DictReader((finished / "table.csv").open()))
    assert [(row["labels"], row["method"], row["pairs"]) for row in rows] == [
        ("points:5", "supervised", ""),
        ("masks:6", "supervised", ""),
        ("masks:6", "self", "1"),
    ]
    assert len((finished / "table.md").read_text().splitlines()) == 2 + 3
    page = (finished / "report.html").read_text()
    assert "Not every method was run on all of these labels" in page and "Score over annotation minutes" in page
    assert "runs/self-shapes-masks-6-seed0/report.html" in page
    with Image.open(finished / "pictures" / "side_by_side.png") as sheet:
        assert sheet.width > 4 * 160


def test_the_same_call_again_trains_nothing(finished: Path, again: Path, recipe: Path, shapes_folder: Path) -> None:
    weights = {path: path.stat().st_mtime_ns for path in again.rglob("model.safetensors")}
    content = run_tiny(recipe, shapes_folder, again, options={"self.student.steps": 3})
    assert content["runs"] == stored(finished)["runs"]
    assert {path: path.stat().st_mtime_ns for path in again.rglob("model.safetensors")} == weights
    assert len(weights) == 4


def test_a_comparison_that_was_cut_goes_on_with_the_stage_at_which_it_was(
    finished: Path, again: Path, recipe: Path, shapes_folder: Path
) -> None:
    folder = again / "runs" / "self-shapes-masks-6-seed0"
    (again / "comparison.json").unlink()
    shutil.rmtree(folder / "5-score")
    (folder / "5-score.json").unlink()
    before = {name: (folder / name).stat().st_mtime_ns for name in ("1-teacher.json", "3-student.json")}
    content = run_tiny(recipe, shapes_folder, again, options={"self.student.steps": 3})
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert [run["score"] for run in content["runs"]] == [run["score"] for run in stored(finished)["runs"]]


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (RECIPE, {"self.student.steps": 4}, r"options\.self\.settings\.student\.options\.steps: 3 -> 4\)"),
        (RECIPE, {"flip": True}, r"options\.self\.settings\.labels\.options\.flip: False -> True"),
        (RECIPE.replace("annotate: teacher", "annotate: student").replace("data: labels", "data: data"), {}, "reads"),
        (RECIPE.replace("  teacher_score: {evaluate: teacher, data: data}\n", ""), {}, r"options\.self\.stages: \["),
    ],
)
def test_a_changed_recipe_is_refused_as_other_settings(
    again: Path, shapes_folder: Path, tmp_path: Path, text: str, options: dict[str, Any], told: str
) -> None:
    before = (again / "comparison.json").read_bytes()
    with pytest.raises(UserError, match=f"holds a comparison with other settings .*{told}") as refused:
        changed = written(tmp_path / "changed", text)
        run_tiny(changed, shapes_folder, again, options={"self.student.steps": 3} | options)
    assert "\n" not in str(refused.value) and (again / "comparison.json").read_bytes() == before


def test_a_comment_is_no_change(again: Path, shapes_folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "commented", f"# A teacher and a student.\n{RECIPE}")
    weights = {path: path.stat().st_mtime_ns for path in again.rglob("model.safetensors")}
    run_tiny(file, shapes_folder, again, options={"self.student.steps": 3})
    assert {path: path.stat().st_mtime_ns for path in again.rglob("model.safetensors")} == weights


def test_options_go_to_the_stages_that_have_them_and_to_one_by_its_name() -> None:
    recipe = parse_recipe(RECIPE, "self.yaml", {name: kind.keys for name, kind in KINDS.items()})
    forms = {"cps": module.Form("cps")}
    options = {"steps": 2, "flip": True, "self.crop": 48, "self.student.crop": 24, "cps.crop": 32}
    assert module.options_of_forms(forms, options, [recipe]) == {
        "cps": {"steps": 2, "crop": 32},
        "self": {"steps": 2, "flip": True, "crop": 48, "student.crop": 24},
    }


def test_a_recipe_alone_is_compared_on_its_own_labels(shapes_folder: Path, recipe: Path, tmp_path: Path) -> None:
    setting = module.Setting(shapes_folder, "train", "val", False, "mini", 0, Hardware(**MACHINE))
    (each,) = module.load_compared([str(recipe)], {}, TINY_OPTIONS, setting).values()
    assert (each.name, each.labels, each.card.name) == ("self", "masks:6", "supervised")


@pytest.mark.parametrize(
    ("teacher", "student", "labels"),
    [
        ("masks:6", "data: data, labels: tags", "masks:6+tags"),
        ("masks:6", "data: data, labels: masks", "masks"),
        ("masks:all", "data: labels, labels: masks", "masks"),
    ],
)
def test_the_labels_of_a_recipe_are_what_its_trainings_on_the_data_see(
    shapes_folder: Path, tmp_path: Path, teacher: str, student: str, labels: str
) -> None:
    trained = "cam" if "tags" in student else "supervised"
    text = f"""stages:
  teacher: {{train: supervised, data: data, labels: "{teacher}"}}
  labels: {{annotate: teacher, data: data}}
  student: {{train: {trained}, {student}}}
  score: {{evaluate: teacher, data: data}}
"""
    setting = module.Setting(shapes_folder, "train", "val", False, "mini", 0, Hardware(**MACHINE))
    (each,) = module.load_compared([str(written(tmp_path, text))], {}, {}, setting).values()
    assert each.labels == labels


@pytest.mark.parametrize(
    ("text", "call_words", "message"),
    [
        (RECIPE, ["--labels", "tags"], "--labels tags: the recipe 'self' learns from masks:6; write --labels masks:6"),
        (
            RECIPE,
            ["supervised", "--labels", "masks", "--labels", "masks:1/2"],
            "METHOD self: learns from masks:6, which none of --labels masks, masks:1/2 gives; leave it",
        ),
        (
            RECIPE,
            ["supervised", "--labels", "masks:6", "--labels", "tags"],
            "--labels tags: none of self, supervised learns from it; leave it out, or add a method that",
        ),
        (RECIPE, ["supervised", "--labels", "masks"], "--labels masks: the recipe 'self' learns from masks:6; write"),
        (
            RECIPE,
            ["cam", "--labels", "masks:6"],
            "METHOD cam: does localisation, but 'self' semantic segmentation; comp",
        ),
        (
            RECIPE,
            ["--val-split", "train"],
            "METHOD self: no stage of the recipe scores a model on split 'train' of the",
        ),
        (
            RECIPE,
            ["--split", "val"],
            "self.yaml:3: stage 'teacher' learns from split 'train' of the data, but the compar",
        ),
        (RECIPE, ["--skip-broken"], "--skip-broken: the recipe 'self' stops at broken files; leave one of both out"),
        (RECIPE, ["--monitor", "2"], "--monitor 2: none of self makes pseudo-labels; leave it out"),
        (
            RECIPE,
            ["--option", "studnt.crop=3"],
            "--option studnt.crop: 'studnt' is not among the methods compared (self)",
        ),
        (
            RECIPE,
            ["--option", "self.student.corp=3"],
            "--option self.student.corp: 'self' has no option 'student.corp'; did you mean 'student.crop'?",
        ),
        (RECIPE, ["--option", "self.student.crop=x"], "--option student.crop: --crop x: must be a whole number"),
        (RECIPE.replace("masks:6", "masks:99"), [], "--labels masks:99: asks for 99 masks; the split 'train' has 12"),
        (
            RECIPE.replace("supervised, data: labels", 'supervised, data: data, labels: "masks:3"'),
            [],
            "METHOD self: the recipe's stages learn from masks:3 and masks:6; let all of them learn from one",
        ),
        (RECIPE.replace("supervised", "superwised", 1), [], "self.yaml:3: unknown method 'superwised'; did you mean"),
    ],
)
def test_a_recipe_that_cannot_be_compared_is_refused_before_anything_is_trained(
    call: Call, shapes_folder: Path, tmp_path: Path, text: str, call_words: list[str], message: str
) -> None:
    file = written(tmp_path / "recipes", text)
    out = tmp_path / "out"
    refused = call("compare", file, *call_words, "--data", shapes_folder, "--out", out, "--workers", 0)
    assert refused.message.removeprefix(f"{file.parent}/").startswith(message)
    assert not out.exists()


def test_names_of_methods_win_and_names_are_told_apart(
    call: Call, monkeypatch: pytest.MonkeyPatch, shapes_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "no recipe", "supervised")
    written(tmp_path, RECIPE, "cps.yaml")
    for folder in ("one", "other"):
        written(tmp_path / folder, RECIPE)
    end = ("--data", shapes_folder, "--out", tmp_path / "out")
    assert call("compare", "supervised", *end, "--labels", "tags").message.startswith(
        "--labels tags: gives tags, but 's"
    )
    assert call("compare", "cps.yaml", *end).message == (
        "METHOD cps.yaml: something else is called 'cps' too; rename the file"
    )
    assert call("compare", "one/self.yaml", "other/self.yaml", *end).message == (
        "METHOD one/self.yaml: something else is called 'self' too; rename the file"
    )
    assert call("compare", "tags_cam_im", *end).message.startswith(
        "unknown method 'tags_cam_im'; did you mean 'tags_cam_irn'?"
    )
    assert call("compare", "gone.yaml", *end).message.startswith(
        "gone.yaml: neither a file nor a recipe that is shipped"
    )
