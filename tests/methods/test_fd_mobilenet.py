"""What FD-MobileNet promises as a classifier on tags, and as a backbone afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import labelwise
from labelwise.datasets.base import Classes
from labelwise.datasets.shapes import ShapesOptions, write_shapes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.methods.tags.fd_mobilenet import FDMobileNet
from labelwise.models.complexity import count_macs, count_parameters
from labelwise.reports.statistics import PairedDifference, verdict
from labelwise.samples import Batch, Kind
from labelwise.saved import load_model
from labelwise.scoring import write_prediction_sheet
from labelwise.verbs.train import train
from tests.conftest import VOC_IDS, Called

Call = Callable[..., Called]
CLASSES = Classes(("background", "cat", "dog"))
TINY: dict[str, Any] = {"width": 0.125, "crop": 32, "resize": 32, "steps": 4, "batch_size": 4, "eval_every": 2}


def method(**options: Any) -> FDMobileNet:
    torch.manual_seed(0)
    return FDMobileNet(FDMobileNet.Config(**{"width": 0.125, "crop": 32, "resize": 32, **options}), CLASSES)


def labeled() -> Batch:
    image = torch.randint(60, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tags = torch.zeros(8, 3, dtype=torch.uint8)
    image[:4, 0] += 150
    tags[:4, 1] = 1
    tags[4:, 2] = 1
    return Batch(ids=tuple("abcdefgh"), image=image, tags=tags)


@pytest.mark.parametrize("loss", ["multi_label", "single_label"])
def test_a_few_steps_on_one_batch_lower_the_loss(loss: str) -> None:
    classifier, batch = method(loss=loss, optimizer="adamw", learning_rate=0.01), labeled()
    optimizer = classifier.configure_optimizers()["optimizer"]  # type: ignore[index]
    terms = []
    for _ in range(20):
        term = classifier.losses(labeled=batch)["tags"]
        terms.append(term.item())
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert terms[-1] < 0.5 * terms[0]


def test_the_claims_sides_have_equal_multiply_adds() -> None:
    claim = FDMobileNet.card.claim
    assert claim is not None and claim.baseline == "fd_mobilenet"
    ours, theirs = method(width=0.25).network, method(**claim.baseline_settings).network
    assert count_macs(ours, (224, 224)) == pytest.approx(count_macs(theirs, (224, 224)), rel=0.02)
    # Fewer than 2.05, which counts the classifier of ImageNet.
    assert count_parameters(ours) > 1.9 * count_parameters(theirs)


def test_the_claim_allows_a_loss_of_two_points() -> None:
    claim = FDMobileNet.card.claim
    assert claim is not None
    assert verdict(PairedDifference(-1.0, 0.5, 3), claim.margin) == "holds"
    assert verdict(PairedDifference(-4.0, 0.5, 3), claim.margin) == "does not hold"


def test_a_width_that_the_papers_do_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"--width 0.3: must be one of 1, 0.5, 0.25, 0.125"):
        method(width=0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on twelve scenes of which only the tags may be seen; read only."""
    root = tmp_path_factory.mktemp("tags")
    write_shapes(root / "data", ShapesOptions(train=12, val=4, size=48))
    train("fd_mobilenet", data=root / "data", out=root / "run", hardware=Hardware(workers=0), **TINY)
    return root / "run"


def test_tags_are_what_it_learns_from_unless_told_otherwise(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert json.loads((run / "config.json").read_text())["task"] == "classification"
    assert "labels: tags:all" in (run / "config.yaml").read_text()
    assert {"map", "ap", "images", "best_map", "best_step"} <= results.keys()
    assert results["images"] == 4 and results["labeled"] == 12
    assert 0 <= results["map"] <= 100 and "background" not in results["ap"]


def test_its_report_and_card_tell_the_scores(run: Path) -> None:
    report = (run / "report.html").read_text()
    assert "mean average precision" in report and "Average precision of each class on val" in report
    assert " mAP on 4 images" in (run / "README.md").read_text()
    assert (run / "pictures" / "predictions.png").is_file()


def test_evaluation_repeats_the_score(call: Call, run: Path, shapes_folder: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    scored = call("evaluate", run, "--data", run.parent / "data", "--json").json
    assert scored["map"] == pytest.approx(results["map"]) and scored["ap"] == results["ap"]


def test_predictions_are_tags_and_scores(call: Call, run: Path, tmp_path: Path) -> None:
    image = next((run.parent / "data" / "JPEGImages").iterdir())
    (row,) = call("predict", run, image, "--out", tmp_path / "out", "--json").json["images"]
    assert list(row["scores"]) == list(load_model(run).classes.names[1:])
    assert row["tags"] == [name for name, score in row["scores"].items() if score >= 0.5]
    stored = json.loads((tmp_path / "out" / f"{image.stem}.json").read_text())
    assert (stored["tags"], stored["scores"]) == (row["tags"], row["scores"])
    # Predicting again replaces the prediction; another file of the name stays.
    assert call("predict", run, image, "--out", tmp_path / "out").code == 0
    (tmp_path / "out" / f"{image.stem}.json").write_text("{}")
    assert "which is no prediction" in call("predict", run, image, "--out", tmp_path / "out").message


def test_annotations_are_tags_that_others_can_learn_from(call: Call, run: Path, tmp_path: Path) -> None:
    data, out = run.parent / "data", tmp_path / "annotated"
    assert call("annotate", run, "--data", data, "--out", out, "--json").json["images"] == 12
    annotated, predicted = labelwise.open(out), load_model(run)
    ids = annotated.ids("train")
    assert annotated.kinds("train") == {Kind.TAGS} and len(ids) == 12
    for id in ids:
        sample = annotated.read(id, {Kind.TAGS})
        logits = predicted.predict(sample.image[None])
        assert sample.tags is not None
        assert torch.equal(sample.tags, predicted.tags(predicted.probabilities(logits))[0])  # type: ignore[operator]
    tags = {path: path.read_bytes() for path in (out / "ImageSets" / "Main").iterdir()}
    # An unfinished data set is completed.
    first = next(iter(tags))
    first.unlink()
    assert call("annotate", run, "--data", data, "--out", out).code == 0
    assert {path: path.read_bytes() for path in tags} == tags
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    again = call("train", "fd_mobilenet", "--data", out, "--out", tmp_path / "run", "--workers", 0, *options)
    assert again.code == 0


def test_a_segmenter_takes_the_classifier_as_its_backbone(run: Path, shapes_folder: Path, tmp_path: Path) -> None:
    options = {"decoder_channels": 16, "crop": 32, "batch_size": 2, "steps": 1, "learning_rate": 0.0}
    weights = {"backbone": "fd_mobilenet_0125", "backbone_weights": str(run)}
    out = tmp_path / "segmenter"
    train("supervised", data=shapes_folder, out=out, hardware=Hardware(workers=0), **options, **weights)
    stem = load_model(out).network.state_dict()["backbone.body.stem.0.weight"]
    torch.testing.assert_close(stem, load_model(run).network.state_dict()["stem.0.weight"])


def without(folder: Path, *names: str) -> Path:
    """The folder with unreadable files in place of these labels."""
    for name in names:
        for path in (folder / name).iterdir():
            path.write_bytes(b"must not be opened")
    return folder


@pytest.mark.parametrize(("labels", "hidden"), [("boxes", "SegmentationClass"), ("masks:2", "Annotations")])
def test_stronger_labels_are_reduced_to_tags_and_no_other_is_opened(
    voc_folder: Path, tmp_path: Path, labels: str, hidden: str
) -> None:
    folders = {"SegmentationObject", hidden}
    if hidden == "Annotations":
        # The score is one of tags, which boxes tell best.
        for id in VOC_IDS[:4]:
            (voc_folder / "Annotations" / f"{id}.xml").write_bytes(b"must not be opened")
        folders -= {hidden}
    without(voc_folder, *folders)
    out = tmp_path / "run"
    result = train(
        "fd_mobilenet",
        data=voc_folder,
        labels=labels,
        out=out,
        hardware=Hardware(workers=0),
        **TINY | {"eval_every": 0},
    )
    assert result["labeled"] == (4 if labels == "boxes" else 2)
    assert {name for name, value in result["ap"].items() if value is not None} == {"cat", "person"}


def test_single_label_data_with_several_tags_is_refused(call: Call, run: Path, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    words = ["--loss", "single_label", "--out", tmp_path / "run", "--workers", 0, *options]
    called = call("train", "fd_mobilenet", "--data", run.parent / "data", *words)
    assert called.code == 2 and "tags, not one; take multi_label" in called.err


def test_methods_of_another_task_are_not_compared(call: Call, run: Path, tmp_path: Path) -> None:
    called = call("compare", "supervised", "fd_mobilenet", "--data", run.parent / "data", "--out", tmp_path / "out")
    assert called.message == (
        "METHOD fd_mobilenet: does classification, but 'supervised' semantic segmentation; compare methods of one task"
    )


def test_networks_are_compared_by_mean_average_precision(call: Call, run: Path, tmp_path: Path) -> None:
    preset = tmp_path / "tiny.yaml"
    preset.write_text("".join(f"{name}: {value}\n" for name, value in TINY.items()))
    words = ["--data", run.parent / "data", "--preset", preset, "--seeds", 1, "--workers", 0, "--out", tmp_path / "out"]
    compared = call("compare", "fd_mobilenet", *words, "--json").json
    (entry,) = compared["runs"]
    assert (compared["metric"], compared["task"], compared["labels"]) == ("map", "classification", ["tags:all"])
    assert entry["score"] == json.loads((tmp_path / "out" / entry["folder"] / "results.json").read_text())["map"]
    assert entry["ap"] and "mean average precision" in (tmp_path / "out" / "report.html").read_text()


def test_the_sheet_shows_images_without_any_tag(run: Path, tmp_path: Path) -> None:
    dataset, trained = labelwise.open(run.parent / "data"), load_model(run)
    trained.tags = lambda probabilities: torch.zeros(1, 9, dtype=torch.uint8)  # type: ignore[assignment, method-assign]
    write_prediction_sheet({"none": trained}, dataset, dataset.ids("val"), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0
