"""A recipe is run stage by stage, each once; what changed runs again with all that is downstream, and nothing else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelwise import datasets
from labelwise.datasets.voc import VOC
from labelwise.hardware import Hardware
from labelwise.method import NonFiniteLoss
from labelwise.samples import Kind, Sample
from labelwise.verbs import stage_kinds
from labelwise.verbs.run import run
from tests.conftest import TINY_OPTIONS, Called
from tests.tiny_runs import MACHINE, ended, outcome, start, train_slowly, wait_for

Command = Callable[..., Called]

RECIPE = """about: A segmenter labels its own images, and another learns from these labels
stages:
  teacher: {train: supervised, data: data, labels: "masks:6"}
  student: {train: supervised, data: labels}
  labels: {annotate: teacher, data: data}
  label_score: {evaluate: labels, data: data, split: train}
  score: {evaluate: student, data: data}
"""
NAMES = ["teacher", "labels", "student", "label_score", "score"]


def words(recipe: Path, data: Path, out: Path, *more: str, **options: object) -> list[str]:
    given = [f"--option={name}={value}" for name, value in (TINY_OPTIONS | options).items()]
    machine = [f"--{name}={value}" for name, value in (MACHINE | {"checkpoint_every": 1}).items()]
    flags = [flag.replace("checkpoint_every", "checkpoint-every") for flag in machine]
    return ["run", str(recipe), f"--data={data}", f"--out={out}", *given, *flags, *more]


def run_tiny(recipe: Path, data: Path, out: Path, **more: Any) -> dict[str, Any]:
    options = TINY_OPTIONS | more.pop("options", {})
    return run(str(recipe), data=data, out=out, options=options, hardware=Hardware(**MACHINE), **more)


def ran(result: dict[str, Any]) -> list[str]:
    return [stage["name"] for stage in result["stages"] if stage["status"] != "unchanged"]


def times(folder: Path) -> dict[Path, int]:
    """Of all files but the page and what says what was called last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipes") / "self.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def finished(recipe: Path, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished recipe; read only."""
    out = tmp_path_factory.mktemp("recipes") / "out"
    assert ran(run_tiny(recipe, shapes_folder, out)) == NAMES
    return out


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere, that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_every_stage_is_an_ordinary_run_data_set_or_evaluation_in_the_order_of_execution(finished: Path) -> None:
    folders = sorted(path.name for path in finished.iterdir() if path.is_dir() and path.name != "pictures")
    assert folders == ["1-teacher", "2-labels", "3-student", "4-label_score", "5-score"]
    assert len(datasets.open(finished / "2-labels").ids("train")) == 12
    assert json.loads((finished / "3-student" / "status.json").read_text())["status"] == "finished"
    record = json.loads((finished / "5-score.json").read_text())
    assert record["results"] == json.loads((finished / "5-score" / "results.json").read_text())
    assert record["score"] == {"name": "mIoU", "value": record["results"]["miou"]}
    assert json.loads((finished / "4-label_score.json").read_text())["score"]["name"] == "mask mIoU"


def test_the_same_call_again_repeats_nothing_even_where_the_folder_was_moved(
    recipe: Path, shapes_folder: Path, again: Path
) -> None:
    before = times(again)
    assert ran(run_tiny(recipe, shapes_folder, again)) == []
    assert times(again) == before


def test_json_tells_of_each_stage(call: Command, recipe: Path, shapes_folder: Path, again: Path) -> None:
    called = call(*words(recipe, shapes_folder, again, "--json"))
    assert called.code == 0
    assert called.json["recipe"] == "self" and called.json["report"] == str(again / "report.html")
    assert [stage["name"] for stage in called.json["stages"]] == NAMES
    assert {stage["status"] for stage in called.json["stages"]} == {"unchanged"}
    assert called.json["stages"][1]["results"]["images"] == 12
    assert "5/5 score: unchanged, mIoU " in called.err
    table = call(*words(recipe, shapes_folder, again)).out
    assert "label_score" in table and f"report with pictures: {again / 'report.html'}" in table


@pytest.mark.parametrize(
    ("change", "again_run"),
    [
        ({"options": {"student.crop": 24}}, ["student", "score"]),
        ({"options": {"score.flip": True}}, ["score"]),
        ({"options": {"labels.flip": True}}, ["labels", "student", "label_score", "score"]),
        ({"seed": 1, "until": "teacher"}, ["teacher"]),
    ],
)
def test_what_changed_runs_again_with_what_is_downstream(
    recipe: Path, shapes_folder: Path, again: Path, change: dict[str, Any], again_run: list[str]
) -> None:
    before = times(again)
    assert ran(run_tiny(recipe, shapes_folder, again, **change)) == again_run
    changed = {path.parts[0] for path, time in times(again).items() if before.get(path) != time}
    assert {name.partition("-")[2] for name in changed} - {""} == set(again_run)
    assert ran(run_tiny(recipe, shapes_folder, again, **change)) == []


def test_labels_edited_by_hand_run_again_what_reads_them_and_are_not_lost(
    recipe: Path, shapes_folder: Path, again: Path
) -> None:
    shutil.copytree(shapes_folder / "SegmentationClass", again / "2-labels" / "SegmentationClass", dirs_exist_ok=True)
    mask = again / "2-labels" / "SegmentationClass" / "train_000003.png"
    edited = mask.read_bytes()
    assert ran(run_tiny(recipe, shapes_folder, again)) == ["student", "label_score", "score"]
    assert mask.read_bytes() == edited
    with pytest.raises(Exception, match=r"2-labels: was edited by hand, and stage 'labels' has to run again"):
        run_tiny(recipe, shapes_folder, again, options={"labels.flip": True})
    assert mask.read_bytes() == edited
    (again / "2-labels").rename(again.parent / "mine")
    assert ran(run_tiny(recipe, shapes_folder, again, options={"labels.flip": True})) == NAMES[1:]


def test_tags_become_maps_sure_masks_and_a_list_of_images_without_a_class(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out, taken = tmp_path / "tags.yaml", tmp_path / "out", {}
    recipe.write_text("""stages:
  classifier: {train: cam, data: data, labels: tags, options: {steps: 2, crop: 32}}
  seeds: {annotate: classifier, data: data}
  sure: {refine: confident, data: seeds}
  hard: {mine_ood: classifier, data: data, options: {least_score: 0.0}}
  maps: {train: w_ood, data: data, labels: tags, ood: hard}
""")
    call = {"data": shapes_folder, "out": out, "preset": "mini", "hardware": Hardware(**MACHINE)}
    assert ran(run(str(recipe), until="hard", **call)) == ["classifier", "seeds", "sure", "hard"]
    assert datasets.open(out / "2-seeds").kinds("train") > datasets.open(out / "3-sure").kinds("train") >= {Kind.MASKS}
    images = (out / "4-hard" / "ood.txt").read_text().splitlines()
    assert len(images) > 3
    # A person has taken a line out of the list; then it is read.
    (out / "4-hard" / "ood.txt").write_text("\n".join(images[:-1]))
    monkeypatch.setattr(stage_kinds, "train_anywhere", lambda method, call, options, _: taken.update(options) or {})
    assert ran(run(str(recipe), **call)) == ["maps"]
    assert taken["ood"] == str(out / "4-hard" / "ood.txt")


def test_a_changed_image_of_the_data_is_a_changed_input(recipe: Path, shapes_folder: Path, tmp_path: Path) -> None:
    data, out = Path(shutil.copytree(shapes_folder, tmp_path / "data")), tmp_path / "out"
    assert ran(run_tiny(recipe, data, out, until="teacher")) == ["teacher"] and not (out / "2-labels").exists()
    (data / "JPEGImages" / "val_000000.jpg").touch()
    assert ran(run_tiny(recipe, data, out, until="teacher")) == ["teacher"]


def test_a_recipe_that_grows_repeats_nothing(shapes_folder: Path, again: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown.yaml"
    grown.write_text(RECIPE.replace("  student", "  before: {evaluate: teacher, data: data}\n  student"))
    assert ran(run_tiny(grown, shapes_folder, again)) == ["before"]
    assert (again / "2-before").is_dir() and (again / "2-labels").is_dir()


def test_a_folder_that_no_stage_made_is_left_alone(recipe: Path, shapes_folder: Path, again: Path) -> None:
    (again / "2-labels.json").unlink()
    with pytest.raises(Exception, match=r"2-labels: is not of this recipe's making; move it away"):
        run_tiny(recipe, shapes_folder, again)
    assert len(datasets.open(again / "2-labels").ids("train")) == 12


def test_a_call_that_is_killed_while_it_removes_a_stage_does_not_take_the_rest_for_whole(
    recipe: Path, shapes_folder: Path, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("labelwise.verbs.run.shutil.rmtree", half)
        run_tiny(recipe, shapes_folder, again, options={"student.crop": 24})
    # The same weights again, so that their score stands.
    assert ran(run_tiny(recipe, shapes_folder, again)) == ["student"]


def test_a_run_stopped_in_a_training_goes_on_and_ends_like_an_uninterrupted_one(
    recipe: Path, shapes_folder: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(words(recipe, shapes_folder, out), tmp_path, train_slowly)
    wait_for(lambda: list((out / "3-student").glob("checkpoints/step-*.ckpt")), process)
    process.terminate()
    assert ended(process) == 128 + signal.SIGTERM
    record = json.loads((out / "3-student.json").read_text())
    assert (record["status"], record["reason"]) == ("stopped", "SIGTERM")
    before = {name: times(out / name) for name in ("1-teacher", "2-labels")}
    assert ran(run_tiny(recipe, shapes_folder, out)) == ["student", "label_score", "score"]
    assert {name: times(out / name) for name in before} == before
    assert outcome(out / "3-student") == outcome(finished / "3-student")


def test_a_stage_that_was_interrupted_is_completed_not_begun_anew(
    call: Command, recipe: Path, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = VOC.write

    def interrupted(self: VOC, sample: Sample) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(sample.id)
        write(self, sample)

    call_words = words(recipe, shapes_folder, tmp_path / "out", "--until=labels")
    monkeypatch.setattr(VOC, "write", interrupted)
    called = call(*call_words)
    assert called.code == 130 and "2/5 labels: stopped; nothing after it is run" in called.err
    assert json.loads((tmp_path / "out" / "2-labels.json").read_text())["status"] == "stopped"
    monkeypatch.setattr(VOC, "write", lambda self, sample: (written.append(sample.id), write(self, sample)))
    assert call(*call_words).code == 0
    assert len(written) == len(set(written)) == 12


def test_an_evaluation_that_was_killed_is_made_anew(recipe: Path, shapes_folder: Path, again: Path) -> None:
    record = again / "5-score.json"
    record.write_text(record.read_text().replace('"finished"', '"running"'))
    (again / "5-score" / "results.json").rename(again / "5-score" / ".0f3e.tmp")
    assert ran(run_tiny(recipe, shapes_folder, again)) == ["score"]
    assert (again / "5-score" / "results.json").is_file()


@pytest.mark.parametrize(
    ("error", "code"), [(NonFiniteLoss("loss term 'x' is nan"), 1), (subprocess.CalledProcessError(3, "train"), 3)]
)
def test_a_stage_that_fails_stops_the_recipe_with_its_exit_code(
    call: Command,
    recipe: Path,
    shapes_folder: Path,
    again: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage_kinds, "train_anywhere", fail)
    assert call(*words(recipe, shapes_folder, again, **{"student.crop": 24})).code == code
    record = json.loads((again / "3-student.json").read_text())
    assert (record["status"], record["reason"]) == ("stopped", str(error))
    assert "Stage &#39;student&#39; stopped: " in (again / "report.html").read_text()
    assert json.loads((again / "5-score.json").read_text())["status"] == "finished"


def test_a_second_process_is_kept_out(call: Command, recipe: Path, shapes_folder: Path, again: Path) -> None:
    hold = (
        f"import sys; from pathlib import Path; from labelwise.runs import locked\n"
        f"with locked(Path({str(again)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert "another process is at work in this run" in call(*words(recipe, shapes_folder, again)).message
        holder.communicate()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--until=scores"], "--until scores: the recipe has no such stage; did you mean 'score'?"),
        (["--option=crops=3"], "--option crops: no stage of the recipe has it; did you mean 'crop'?"),
        (["--option=techer.crop=3"], "--option techer.crop: the recipe has no stage 'techer'; did you mean 'teacher'?"),
        (["--option=student.corp=3"], "--option student.corp: method 'supervised' has no option 'corp'; did you mean"),
        (["--option=crop=x"], "--option crop: --crop x: must be a whole number"),
        (["--option=labels.least_score=2"], "--option labels.least_score: --least-score 2.0: must be between 0 and 1"),
        (["--option=label_score.flip=true"], "--option label_score.flip: labels are scored as they are; leave 'flip'"),
        (["--preset=mimi"], "{recipe}:3: --preset mimi: neither a preset of 'supervised' nor a file"),
        (["--seed=-1"], "--seed -1: must be from 0 to"),
        (["--out={recipe}"], "--out {recipe}: is a file; name a folder"),
        (["--out={data}"], "--out {data}: holds something else than a recipe's stages; name a new or empty folder"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_written(
    call: Command, recipe: Path, shapes_folder: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    known = {"recipe": recipe, "data": shapes_folder}
    before = times(shapes_folder.parent)
    extra = [word.format(**known) for word in more]
    given = [word for word in words(recipe, shapes_folder, tmp_path / "out") if word != "--option=crop=32"]
    given = [word for word in given if not (word.startswith("--out") and extra[0].startswith("--out"))]
    assert call(*given, *extra).message.startswith(message.format(**known))
    assert not (tmp_path / "out").exists() and times(shapes_folder.parent) == before


def test_processes_of_a_launcher_do_not_run_recipes(
    recipe: Path, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(Exception, match="a launcher has started several processes"):
        run_tiny(recipe, shapes_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_folder_the_run_is_named_after_the_call(
    recipe: Path, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = TINY_OPTIONS | {"teacher.steps": 1}
    result = run(str(recipe), data=shapes_folder, options=options, until="teacher", hardware=Hardware(**MACHINE))
    assert Path(result["folder"]) == Path("runs") / "self-shapes-seed0" and Path(result["report"]).is_file()
