"""What a recipe chains is checked before anything runs: types, methods, options, splits; with the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from labelwise import datasets
from labelwise.hardware import Hardware
from labelwise.samples import Kind
from labelwise.stages import load_recipe, shipped_recipes
from labelwise.verbs.run import planned, with_options
from labelwise.verbs.stage_kinds import KINDS, Call, Labels, Model, _one_device
from tests.conftest import Called

Command = Callable[..., Called]

MODEL = "model: {train: supervised, data: data}"
DETECTOR = "detector: {train: faster_rcnn, data: data, labels: boxes}"
OBJECTS = "objects: {annotate: detector, data: data}"
CAM = "cam: {train: cam, data: data, labels: tags}"
SEEDS = "seeds: {annotate: cam, data: data}"
SCORE = "score: {evaluate: model, data: data}"
KEYS = {name: kind.keys for name, kind in KINDS.items()}


@pytest.mark.parametrize(
    ("stages", "line", "message"),
    [
        (["a: {train: supervisd, data: data}"], 2, "unknown method 'supervisd'; did you mean 'supervised'?"),
        (
            ["a: {train: supervised, data: data, preset: mimi}"],
            2,
            "--preset mimi: neither a preset of 'supervised' nor",
        ),
        (["a: {train: supervised, data: data,", "  options: {", "  corp: 3}}"], 4, "method 'supervised' has no option"),
        (["a: {train: supervised, data: data,", "  options: {crop: x}}"], 3, "--crop x: must be a whole number"),
        (["a: {train: supervised, data: data,", "  labels: mask}"], 3, "--labels mask: no label kind 'mask'; did you"),
        (
            ["a: {train: supervised, data: data,", "  labels: tags}"],
            3,
            "stage 'a' may see tags, but 'supervised' needs",
        ),
        (
            ["a: {train: supervised, data: data,", "  split: trian}"],
            3,
            "stage 'a' reads split 'trian', which 'data' does",
        ),
        (["a: {train: supervised, data: data,", "  val_split: test}"], 3, "stage 'a' reads split 'test', which 'data'"),
        (
            ["a: {train: irn, data: data, labels: masks}"],
            2,
            "stage 'a' reads maps, but split 'val' of 'data' has boxes",
        ),
        (["a: {train: supervised, data: data,", "  ood: data}"], 3, "'supervised' takes no images without a class"),
        # Boxes into a method of masks.
        (
            [DETECTOR, OBJECTS, "a: {train: supervised, data: objects}"],
            4,
            "stage 'a' reads masks, but split 'train' of",
        ),
        (
            [MODEL, "a: {train: supervised, data: model}"],
            3,
            "stage 'a' reads a data set, but 'model' is a trained model",
        ),
        (
            [MODEL, SCORE, "a: {annotate: model, data: score}"],
            4,
            "stage 'a' reads a data set, but 'score' is a table of",
        ),
        (["a: {annotate: data, data: data}"], 2, "stage 'a' needs a trained model, but 'data' is a data set"),
        (
            [MODEL, "a: {annotate: model, data: data,", "  split: test}"],
            4,
            "stage 'a' reads split 'test', which 'data'",
        ),
        ([MODEL, "a: {annotate: model, data: data,", "  options: {scale: 2}}"], 4, "`annotate` has no option 'scale'"),
        ([MODEL, "a: {annotate: model, data: data,", "  options: {crf: x}}"], 4, "--crf x: "),
        (
            [MODEL, "a: {annotate: model, data: data,", "  options: {scales: [0]}}"],
            4,
            "--scales 0.0: must be one or more",
        ),
        (
            [DETECTOR, "a: {annotate: detector, data: data,", "  options: {flip: true}}"],
            4,
            "--flip: 'faster_rcnn' does",
        ),
        ([CAM, SEEDS, "a: {train: irn, data: data, labels: masks}"], 4, "stage 'a' reads maps, but split 'val' of"),
        (
            [
                CAM,
                SEEDS,
                "c: {refine: confident, data: seeds}",
                "i: {train: irn, data: c}",
                "a: {annotate: i, data: c}",
            ],
            6,
            "stage 'a' reads maps, but split 'train' of 'c' has masks, tags; name another data set",
        ),
        ([MODEL, "a: {mine_ood: model, data: data}"], 3, "'supervised' predicts no tags; name a classifier"),
        ([CAM, "a: {mine_ood: cam, data: data,", "  options: {most: -1}}"], 4, "--most -1: must be at least 0"),
        ([CAM, "a: {train: w_ood, data: data,", "  ood: cam}"], 4, "stage 'a' needs what a stage `mine_ood` gives"),
        (
            [CAM, "hard: {mine_ood: cam, data: data}", "a: {train: cam, data: hard}"],
            4,
            "stage 'a' reads a data set, but",
        ),
        (["a: {refine: confident, data: data}"], 2, "stage 'a' reads maps, but split 'train' of 'data' has boxes"),
        (["a: {refine: confidnt, data: data}"], 2, "no way to refine is called 'confidnt'; did you mean 'confident'?"),
        ([CAM, SEEDS, "a: {refine: sum, data: seeds}"], 4, "`refine: sum` reads two or more data sets"),
        ([CAM, SEEDS, "a: {refine: crf, data: [seeds, seeds]}"], 4, "`refine: sum` reads two or more data sets"),
        (
            [CAM, SEEDS, "a: {refine: crf, data: seeds,", "  options: {background: 2}}"],
            5,
            "--background 2.0: must be bet",
        ),
        (
            [CAM, SEEDS, "a: {refine: crf, data: seeds,", "  options: {backgrund: 1}}"],
            5,
            "`refine` has no option 'backgr",
        ),
        ([MODEL, SCORE, "a: {evaluate: score, data: data}"], 4, "stage 'a' needs a trained model or a data set, but"),
        (
            [MODEL, "l: {annotate: model, data: data}", "a: {evaluate: model, data: l}"],
            4,
            "stage 'a' reads split 'val'",
        ),
        (
            [DETECTOR, OBJECTS, "a: {evaluate: objects, data: data, split: train}"],
            4,
            "stage 'a' reads masks, but split",
        ),
        (
            ["a: {evaluate: data, data: data,", "  options: {flip: true}}"],
            3,
            "labels are scored as they are; leave",
        ),
        (["a: {train: w_ood, data: data}"], 2, "--ood ood: is no split of"),
        (["a: {train: supervised, data: data,", "  options: {backbone: tinny}}"], 3, "unknown backbone 'tinny'"),
        (
            [MODEL, "a: {train: supervised, data: data,", "  options: {backbone: tiny}}"],
            4,
            "backbone 'tiny' has no Imag",
        ),
    ],
)
def test_what_cannot_be_chained_is_refused_before_anything_runs(
    call: Command, shapes_folder: Path, tmp_path: Path, stages: list[str], line: int, message: str
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stages:\n" + "".join(f"  {stage}\n" for stage in stages))
    quick = ["--option=model.backbone=tiny", "--option=model.backbone_weights=none"] if MODEL in stages else []
    called = call("run", recipe, "--data", shapes_folder, "--out", tmp_path / "out", *quick)
    assert called.message.startswith(f"{recipe}:{line}: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", shipped_recipes())
@pytest.mark.parametrize("preset", ["mini", "paper"])
def test_shipped_recipes_fit_a_data_set_with_tags_and_masks(shapes_folder: Path, recipe: str, preset: str) -> None:
    read = load_recipe(recipe, KEYS)
    plans = planned(with_options(read, {}), datasets.open(shapes_folder), Call(0, preset))
    assert isinstance(plans[0].gives, Model)
    assert {plan.stage.name for plan in plans if plan.score} >= {"score"}


def test_maps_stay_with_what_gives_maps_again(shapes_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    more = ["both: {refine: sum, data: [seeds, seeds]}", "sure: {refine: confident, data: both}"]
    recipe.write_text("stages:\n" + "".join(f"  {stage}\n" for stage in [CAM, SEEDS, *more]))
    plans = planned(with_options(load_recipe(str(recipe), KEYS), {}), datasets.open(shapes_folder), Call(0, None))
    with_maps = [Kind.MAPS in plan.gives.kinds["train"] for plan in plans if isinstance(plan.gives, Labels)]
    assert with_maps == [True, True, False]


def test_only_trainings_use_several_devices() -> None:
    hardware = _one_device(Hardware(devices=4, nodes=2, strategy="ddp", accelerator="cpu"))
    assert (hardware.world, hardware.strategy, hardware.accelerator) == (1, "auto", "cpu")
