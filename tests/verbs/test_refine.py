from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import labelwise
from labelwise.datasets.voc import VOC
from labelwise.hardware import Hardware
from labelwise.samples import IGNORE_INDEX, Kind, ScoreMaps
from labelwise.verbs import refine as module
from tests.conftest import Called

Call = Callable[..., Called]
TINY = {
    "backbone": "micro_w2",
    "output_stride": 4,
    "backbone_weights": "none",
    "freeze_norms": False,
    "crop": 48,
    "batch_size": 2,
    "steps": 2,
    "log_steps": 3,
}


def blurred(mask: Tensor, labels: Tensor) -> ScoreMaps:
    """Score maps that are the classes' own pixels, blurred."""
    own = (mask == labels[:, None, None]).float()
    fine = functional.avg_pool2d(own[:, None], 9, 1, 4)
    fine = fine / (fine.amax((2, 3), keepdim=True) + 1e-5)
    return ScoreMaps(labels=labels, fine=fine[:, 0], coarse=functional.avg_pool2d(fine, 4, ceil_mode=True)[:, 0])


def write_seeds(source: Path, root: Path, drop: int = 0) -> Path:
    """A data set of the same images with score maps and tags; without the first `drop` classes of each image."""
    data = VOC(source)
    seeds = VOC.create(root, data.classes)
    for split in ("train", "val"):
        for id in data.ids(split):
            sample = data.read(id, {Kind.MASKS})
            assert sample.mask is not None
            mask = sample.mask.as_subclass(Tensor)
            present = [number for number in mask.unique().tolist() if number not in (0, IGNORE_INDEX)]
            labels = torch.tensor(present[drop:], dtype=torch.int64)
            tags = torch.zeros(len(data.classes), dtype=torch.uint8)
            tags[labels] = 1
            seeds.copy_image(id, data.image_file(id))
            seeds.write(replace(sample, tags=tags, maps=blurred(mask, labels)))
        seeds.write_split(split, data.ids(split))
    return root


@pytest.fixture(scope="module")
def seeds(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeds(shapes_folder, tmp_path_factory.mktemp("seeds") / "seeds")


def masks_of(folder: Path, split: str = "train") -> Iterator[tuple[str, Tensor]]:
    data = labelwise.open(folder)
    for id in data.ids(split):
        mask = data.read(id, {Kind.MASKS}).mask
        assert mask is not None
        yield id, mask.as_subclass(Tensor)


@pytest.mark.parametrize("by", ["confident", "psa_confident", "crf", "threshold"])
def test_every_way_gives_a_data_set_with_masks_and_the_tags(call: Call, seeds: Path, tmp_path: Path, by: str) -> None:
    called = call("refine", seeds, "--by", by, "--out", tmp_path / "out", "--json")
    assert called.json == {"images": 12, "skipped": [], "out": str(tmp_path / "out")}
    source, refined = VOC(seeds), VOC(tmp_path / "out")
    assert refined.classes == source.classes and refined.splits == ("train",)
    found = call("inspect", tmp_path / "out", "--json").json
    assert found["kinds"]["masks"] == {"train": 12} and found["kinds"]["tags"] == {"train": 12}
    for id, mask in masks_of(tmp_path / "out"):
        assert refined.image_file(id).read_bytes() == source.image_file(id).read_bytes()
        tags = source.read(id, {Kind.TAGS}).tags
        again = refined.read(id, {Kind.TAGS}).tags
        assert tags is not None and again is not None and torch.equal(tags, again)
        assert set(mask.unique().tolist()) <= {0, IGNORE_INDEX, *tags.nonzero().flatten().tolist()}


def test_confident_labels_are_right_and_unsure_at_the_contours(
    seeds: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    labelwise.refine("confident", data=seeds, out=tmp_path / "out")
    truth = dict(masks_of(shapes_folder))
    right = unsure = sure = 0
    for id, mask in masks_of(tmp_path / "out"):
        known = (mask != IGNORE_INDEX) & (truth[id] != IGNORE_INDEX)
        right += int((mask == truth[id])[known].sum())
        sure += int(known.sum())
        unsure += int((mask == IGNORE_INDEX).sum())
    assert unsure > 0
    assert right / sure > 0.85


def test_a_higher_constant_leaves_less_of_the_seed(seeds: Path, tmp_path: Path) -> None:
    shares = []
    for background in (0.1, 0.6):
        out = tmp_path / str(background)
        labelwise.refine("threshold", data=seeds, out=out, background=background)
        shares.append(sum(float((mask > 0).float().mean()) for _, mask in masks_of(out)))
    assert shares[0] > shares[1] > 0


def test_the_maps_of_two_data_sets_are_added(shapes_folder: Path, seeds: Path, tmp_path: Path) -> None:
    poor = write_seeds(shapes_folder, tmp_path / "poor", drop=1)
    labelwise.refine("sum", data=[poor, seeds], out=tmp_path / "sum")
    first, second, summed = VOC(poor), VOC(seeds), VOC(tmp_path / "sum")
    for id in summed.ids("train"):
        parts, whole = [data.read(id, {Kind.MAPS}).maps for data in (first, second)], summed.read(id, {Kind.MAPS}).maps
        assert whole is not None and parts[1] is not None and torch.equal(whole.labels, parts[1].labels)
        # Twice the same, or it plus nothing: after the division by the maximum the same again.
        assert torch.allclose(whole.fine, parts[1].fine, atol=2e-3)
        assert torch.allclose(whole.coarse, parts[1].coarse / parts[1].coarse.amax((1, 2), keepdim=True), atol=2e-3)


def test_a_stopped_call_goes_on_and_writes_the_tags_of_all(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelwise.refine("confident", data=seeds, out=tmp_path / "whole")
    refine_one, count = module.confident_labels, 0

    def stop(*arguments: object) -> Tensor:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return refine_one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "confident_labels", stop)
    with pytest.raises(KeyboardInterrupt):
        labelwise.refine("confident", data=seeds, out=tmp_path / "cut")
    labelwise.refine("confident", data=seeds, out=tmp_path / "cut")
    assert count == 6 + 12 - 5
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.*")}
    assert whole == {path.relative_to(tmp_path / "cut"): path.read_bytes() for path in (tmp_path / "cut").rglob("*.*")}


def test_another_call_into_the_same_folder_is_refused(call: Call, seeds: Path, tmp_path: Path) -> None:
    labelwise.refine("threshold", data=seeds, out=tmp_path / "out")
    called = call("refine", seeds, "--by", "threshold", "--background", 0.2, "--out", tmp_path / "out")
    assert "holds something else than this call's data set" in called.message
    assert json.loads((tmp_path / "out" / module.ORIGIN).read_text())["background"] == 0.15


def test_an_image_without_score_maps_is_named(call: Call, seeds: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds, tmp_path / "seeds")
    gone = sorted((tmp_path / "seeds" / "ScoreMaps").iterdir())[:2]
    for path in gone:
        path.unlink()
    ids = VOC(seeds).ids("train")
    missing = [id for id in ids if id in {path.stem for path in gone}]
    called = call("refine", tmp_path / "seeds", "--by", "confident", "--out", tmp_path / "out")
    assert f"image '{missing[0]}'" in called.message and "has no score maps; make them with" in called.message
    assert not (tmp_path / "out").exists()


def test_a_broken_file_of_maps_is_named_or_skipped(call: Call, seeds: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds, tmp_path / "seeds")
    id = VOC(seeds).ids("train")[0]
    (tmp_path / "seeds" / "ScoreMaps" / f"{id}.npz").write_bytes(b"no maps")
    words = ["refine", tmp_path / "seeds", "--by", "threshold", "--out", tmp_path / "out"]
    assert f"{id}.npz" in call(*words).message
    assert call(*words, "--skip-broken", "--json").json["skipped"] == [id]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "sum"], "--by sum: takes the maps of two or more data sets; name them all"),
        (["--by", "blur"], "--by blur: must be one of confident, psa_confident, crf, sum, threshold"),
        (["--by", "crf", "--background", "2"], "--background 2.0: must be between 0 and 1"),
        (["--by", "crf", "--crf", "cams"], "--crf cams: neither a preset nor a file; did you mean 'cam'?"),
        (["--by", "crf", "--split", "tran"], "tran"),
        (
            ["--by", "confident", "--sure-foreground", "0.1", "--sure-background", "0.2"],
            "--sure-background 0.2: must not be above --sure-foreground 0.1",
        ),
        (["--by", "psa_confident", "--low-alpha", "40"], "--low-alpha 40: must not be above --high-alpha 32"),
    ],
)
def test_wrong_calls_are_one_line(call: Call, seeds: Path, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in call("refine", seeds, *words, "--out", tmp_path / "out").message
    assert not (tmp_path / "out").exists()


def test_data_sets_that_do_not_belong_together_are_refused(
    call: Call, seeds: Path, voc_folder: Path, tmp_path: Path
) -> None:
    words = ["--out", tmp_path / "out"]
    assert "has other classes than" in call("refine", seeds, voc_folder, "--by", "sum", *words).message
    assert "takes one data set, not 2" in call("refine", seeds, seeds, "--by", "crf", *words).message
    half = tmp_path / "half"
    shutil.copytree(seeds, half)
    id = VOC(seeds).ids("train")[-1]
    (half / "ScoreMaps" / f"{id}.npz").unlink()
    assert f"{half}: image '{id}' of split 'train' has no" in call("refine", seeds, half, "--by", "sum", *words).message


def test_the_command_offers_every_way(call: Call) -> None:
    text = call("refine", "--help").out
    assert all(way in text for way in get_args(module.By))


def test_the_whole_chain_from_maps_to_refined_masks(call: Call, seeds: Path, tmp_path: Path) -> None:
    labelwise.refine("confident", data=seeds, out=tmp_path / "confident")
    hardware = Hardware(workers=0)
    result = labelwise.train("irn", data=tmp_path / "confident", out=tmp_path / "irn", hardware=hardware, **TINY)
    assert "miou" not in result, "there is no val split to score on"
    called = call("annotate", tmp_path / "irn", "--data", seeds, "--out", tmp_path / "masks", "--json")
    assert called.json["images"] == 12
    assert call("inspect", tmp_path / "masks", "--json").json["kinds"]["masks"] == {"train": 12}
    scores = call("evaluate", tmp_path / "irn", "--data", seeds, "--json").json
    assert scores["images"] == 4 and {"miou", "seed_miou", "seed_threshold"} <= scores.keys()


def test_a_refinement_without_score_maps_says_where_they_come_from(
    call: Call, shapes_folder: Path, seeds: Path, tmp_path: Path
) -> None:
    labelwise.train("psa", data=seeds, labels="masks", out=tmp_path / "psa", hardware=Hardware(workers=0), **TINY)
    image = VOC(shapes_folder).image_file(VOC(shapes_folder).ids("val")[0])
    assert (
        "refines score maps, which an image file has not"
        in call("predict", tmp_path / "psa", image, "--out", tmp_path / "out").message
    )
    message = call("annotate", tmp_path / "psa", "--data", shapes_folder, "--out", tmp_path / "masks").message
    assert "has no score maps; make them with `labelwise annotate` first" in message
