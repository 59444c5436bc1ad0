"""What Fast R-CNN promises: what it samples and learns, the scales it looks at, its runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torchvision import tv_tensors

import labelwise
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.methods.boxes.fast_rcnn import FastRCNN, nearest_scales, offset_moments, offset_statistics
from labelwise.models.boxes import FIXED_DEVIATIONS, encode_boxes
from labelwise.models.regions import as_rois, best_overlaps, roi_max_pool
from labelwise.samples import Batch, Kind, Sample
from labelwise.saved import load_model
from labelwise.verbs.evaluate import evaluate
from labelwise.verbs.train import train
from tests.tiny_runs import MACHINE, cut, outcome

CLASSES = Classes(("background", "cat", "dog"))
TINY: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_weights": "none",
    "output_stride": 8,
    "frozen_stages": 0,
    "freeze_norms": False,
    "short_side": 48,
    "long_side": 96,
    "roi_size": 3,
    "head_width": 16,
    "rois_per_image": 16,
}
BOXES = torch.tensor([[4.0, 6.0, 28.0, 30.0], [24.0, 20.0, 44.0, 46.0]])
LABELS = torch.tensor([1, 2])


def around(boxes: Tensor, count: int, seed: int = 0, side: float = 48.0) -> Tensor:
    """Proposals of 48 x 48 pixels that overlap boxes more or less."""
    generator = torch.Generator().manual_seed(seed)
    moved = boxes.repeat(count, 1) + 6 * torch.randn(count * len(boxes), 4, generator=generator)
    moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 4)
    return moved.clamp(0, side)


def method(**options: Any) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(FastRCNN.Config(**{**TINY, **options}), CLASSES)


def labeled(boxes: Tensor = BOXES, labels: Tensor = LABELS) -> Batch:
    image = torch.randint(100, (2, 3, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(BOXES.int().tolist()):
        image[:, number, top:bottom, left:right] += 150
    return Batch(
        ids=("a", "b"),
        image=image,
        boxes=[boxes, boxes],
        box_labels=[labels, labels],
        proposals=[around(BOXES, 30, seed) for seed in range(2)],
    )


def proposal_folder(folder: Path, boxes: dict[str, Tensor], size: tuple[int, int] = (48, 48)) -> Path:
    folder.mkdir(exist_ok=True)
    for id, each in boxes.items():
        np.savez(folder / f"{id}.npz", boxes=each.numpy(), size=np.array(size))
    return folder


def sample(image: Tensor | None = None) -> Sample:
    return Sample(id="a", image=tv_tensors.Image(labeled().image[0] if image is None else image))


# ------------------------------------------------------------ statistics of the offsets


@given(st.integers(0, 2**31))
def test_normalised_targets_have_mean_0_and_deviation_1_over_images_and_their_mirror_images(seed: int) -> None:
    proposals = around(BOXES, 20, seed)
    moments = offset_moments(proposals, BOXES, LABELS - 1, 2, 0.5) + offset_moments(BOXES, BOXES, LABELS - 1, 2, 0.5)
    mean, deviation = offset_statistics(moments)
    candidates = torch.cat([proposals, BOXES, BOXES, BOXES])
    mirrored = torch.stack([48 - candidates[:, 2], candidates[:, 1], 48 - candidates[:, 0], candidates[:, 3]], 1)
    boxes_mirrored = torch.stack([48 - BOXES[:, 2], BOXES[:, 1], 48 - BOXES[:, 0], BOXES[:, 3]], 1)
    overlap, nearest = best_overlaps(candidates, BOXES)
    for column in range(2):
        of_class = (overlap >= 0.5) & (nearest == column)
        plain = encode_boxes(candidates[of_class], BOXES[[column]].expand(int(of_class.sum()), 4))
        flipped = encode_boxes(mirrored[of_class], boxes_mirrored[[column]].expand(int(of_class.sum()), 4))
        normal = (torch.cat([plain, flipped]) - mean[column + 1]) / deviation[column + 1]
        torch.testing.assert_close(normal.mean(0), torch.zeros(4), rtol=0, atol=1e-3)
        torch.testing.assert_close(normal.std(0, correction=0), torch.ones(4), rtol=1e-3, atol=1e-3)
    assert not mean[:, 0].any()


def test_classes_without_regions_or_without_spread_can_be_divided_by() -> None:
    alone = offset_moments(torch.zeros(0, 4), BOXES[:1], torch.tensor([0]), 3, 0.5)
    mean, deviation = offset_statistics(alone)
    assert not mean.any()
    torch.testing.assert_close(deviation[1], torch.tensor(FIXED_DEVIATIONS))
    assert torch.equal(deviation[[0, 2, 3]], torch.ones(3, 4))


def test_an_image_without_objects_adds_nothing_to_the_statistics() -> None:
    assert not offset_moments(around(BOXES, 5), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2, 0.5).any()


def test_the_statistics_are_measured_before_training_unless_they_are_fixed(tmp_path: Path) -> None:
    folder = proposal_folder(tmp_path / "proposals", {"a": around(BOXES, 30)})
    boxes = tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=(48, 48))  # type: ignore[call-overload]
    images = [replace(sample(), boxes=boxes, box_labels=LABELS, difficult=torch.tensor([False, True]))]
    fixed, measured = (method(proposals=str(folder), target_statistics=each) for each in ("fixed", "empirical"))
    for each in (fixed, measured, measured):
        each.prepare(images, tmp_path)
    assert torch.equal(fixed.head.offset_deviation, torch.tensor(FIXED_DEVIATIONS).expand(3, 4))
    expected = offset_statistics(offset_moments(around(BOXES, 30), BOXES[:1], LABELS[:1] - 1, 2, 0.5))
    torch.testing.assert_close(measured.head.offset_mean, expected[0])
    torch.testing.assert_close(measured.head.offset_deviation, expected[1])
    assert torch.equal(measured.head.offset_deviation[2], torch.ones(4)), "its only object is difficult"


# ------------------------------------------------------------------------------ losses


def test_the_losses_reach_every_layer() -> None:
    fast_rcnn = method()
    terms = fast_rcnn.losses(labeled=labeled())
    assert set(terms) == {"classification", "boxes"}
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in fast_rcnn.parameters())
    assert fast_rcnn.head.offsets.weight.grad is not None and fast_rcnn.head.offsets.weight.grad.any()


def test_frozen_stages_do_not_learn_and_keep_their_statistics() -> None:
    fast_rcnn = method(frozen_stages=2, freeze_norms=True).train()
    before = {name: value.clone() for name, value in fast_rcnn.network.backbone.named_buffers()}  # type: ignore[union-attr]
    sum(fast_rcnn.losses(labeled=labeled()).values()).backward()  # type: ignore[union-attr]
    untaught = {name for name, parameter in fast_rcnn.network.named_parameters() if parameter.grad is None}
    assert untaught and all(".stem." in name or ".layer1." in name for name in untaught)
    after = dict(fast_rcnn.network.backbone.named_buffers())  # type: ignore[union-attr]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    trained = sum(len(group["params"]) for group in fast_rcnn.parameter_groups())  # type: ignore[arg-type]
    assert trained == len(list(fast_rcnn.parameters())) - len(untaught)


def test_images_without_objects_or_proposals_cost_nothing() -> None:
    fast_rcnn = method()
    batch = labeled(BOXES[:0], LABELS[:0])
    batch.proposals = [around(BOXES, 30), torch.zeros(0, 4)]
    terms = fast_rcnn.losses(labeled=batch)
    assert all(term == 0 for term in terms.values())
    sum(terms.values()).backward()  # type: ignore[union-attr]


def test_without_their_weight_the_offsets_learn_nothing() -> None:
    fast_rcnn = method(box_weight=0.0, box_regression=False)
    terms = fast_rcnn.losses(labeled=labeled())
    assert terms["boxes"] == 0
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert fast_rcnn.head.offsets.weight.grad is not None and not fast_rcnn.head.offsets.weight.grad.any()


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    groups = method(head_multiplier=3.0, learning_rate=0.1, weight_decay=0.5).parameter_groups()
    assert {(round(group["lr"], 6), group["weight_decay"]) for group in groups} == {  # type: ignore[call-overload]
        (0.1, 0.5), (0.2, 0.0), (0.3, 0.5), (0.6, 0.0),
    }  # fmt: skip


def test_a_few_steps_on_one_batch_lower_both_terms() -> None:
    fine = {"output_stride": 4, "roi_size": 5, "rois_per_image": 64, "head_width": 64, "dropout": 0.0}
    fast_rcnn, batch = method(optimizer="adamw", learning_rate=3e-3, **fine), labeled()
    optimizer = fast_rcnn.configure_optimizers()["optimizer"]  # type: ignore[index]
    history = []
    for _ in range(30):
        terms = fast_rcnn.losses(labeled=batch)
        history.append([terms["classification"].item(), terms["boxes"].item()])
        optimizer.zero_grad()
        sum(terms.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    first, last = (np.mean(part, axis=0) for part in (history[:5], history[-5:]))
    assert (last < 0.6 * first).all()


# -------------------------------------------------------------------------- prediction


def test_a_region_is_looked_at_where_it_is_nearest_to_224_pixels() -> None:
    boxes = torch.tensor([[0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 112.0, 112.0], [0.0, 0.0, 40.0, 40.0]])
    assert nearest_scales(boxes, (0.5, 1.0, 2.0)).tolist() == [1, 2, 2]


def test_regions_that_share_their_cells_are_scored_as_if_each_were_alone(tmp_path: Path) -> None:
    fast_rcnn = method().eval()
    proposals = torch.cat([around(BOXES, 10), around(BOXES, 10) + 0.1])
    image = labeled().image[0]
    logits, offsets = fast_rcnn.score_regions(image, proposals)
    pooled = roi_max_pool(fast_rcnn.network(fast_rcnn.normalize(image[None])), as_rois([proposals]), 8, 3)
    expected = fast_rcnn.head(pooled)
    torch.testing.assert_close((logits, offsets), expected)


@pytest.mark.parametrize("roi_align", [False, True])
def test_each_region_is_scored_at_its_scale(roi_align: bool) -> None:
    image = torch.randint(256, (3, 120, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    proposals = torch.cat([around(BOXES, 5), torch.tensor([[0.0, 0.0, 150.0, 119.0], [3.0, 3.0, 158.0, 110.0]])])
    several = method(scales=(120, 480), long_side=800, roi_align=roi_align).eval()
    found = several.score_regions(image, proposals)
    scale = nearest_scales(proposals, (1.0, 4.0))
    assert set(scale.tolist()) == {0, 1}
    for number, side in enumerate((120, 480)):
        alone = method(short_side=side, long_side=800, roi_align=roi_align).eval()
        expected = alone.score_regions(image, proposals)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[scale == number], theirs[scale == number], rtol=1e-4, atol=1e-5)


def test_training_draws_among_the_scales() -> None:
    torch.manual_seed(0)
    fast_rcnn = method(scales=(24, 40))
    image = torch.zeros(3, 48, 48, dtype=torch.uint8)
    assert {fast_rcnn.resize()(image).shape[-1] for _ in range(20)} == {24, 40}


def test_detections_are_moved_proposals_within_the_image(tmp_path: Path) -> None:
    proposals = around(BOXES, 30)
    folder = proposal_folder(tmp_path / "proposals", {"a": proposals})
    options = {"proposals": str(folder), "score_threshold": 0.0, "max_detections": 20}
    moved, left = (method(**options, box_regression=each).eval() for each in (True, False))
    for each in (moved, left):
        each.head.set_statistics(torch.full((4,), 0.4), torch.ones(4))
    found = left.detect(sample())
    assert 0 < len(found) <= 20 and set(found.labels.tolist()) <= {1, 2}
    assert bool((found.boxes[:, None] == proposals).all(2).any(1).all())
    shifted = moved.detect(sample()).boxes
    assert bool((shifted >= 0).all()) and bool((shifted <= 48).all())
    assert not bool((shifted[:, None] == proposals).all(2).any())


def test_without_proposals_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_rcnn = method().eval()
    monkeypatch.setattr(fast_rcnn, "propose", lambda _: torch.zeros(0, 4))
    assert len(fast_rcnn.detect(sample())) == 0


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"box_weight": 0.0}, "--no-box-regression"),
        ({"background_high": 0.6}, "--background-high 0.6"),
        ({"scales": (48, 96)}, "--long-side 96: must be above 96"),
        ({"scales": (8, 48)}, "--scales 8: must be at least 16"),
        ({"long_side": 48}, "--long-side 48: must be at least 49"),
        ({"rois_per_image": 0}, "--rois-per-image 0"),
        ({"dropout": 1.5}, "--dropout 1.5"),
        ({"svd_ranks": (16, 17)}, "--svd-ranks 16 17: the layers have ranks of at most 16 16"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], mend: str) -> None:
    with pytest.raises(UserError, match=mend):
        method(**options)


def test_the_defaults_are_the_papers_network() -> None:
    with torch.device("meta"):
        voc = Classes(tuple(f"class {number}" for number in range(21)))
        whole = FastRCNN(FastRCNN.Config(backbone_weights="none"), voc, training=False).network
    assert sum(parameter.numel() for parameter in whole.parameters()) == 134_690_729


# -------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def proposals(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes around the objects of the synthetic images, and some of everywhere."""
    dataset = labelwise.open(shapes_folder)
    found = {}
    for split in ("train", "val"):
        for number, id in enumerate(dataset.ids(split)):
            boxes = dataset.read(id, {Kind.BOXES}).boxes
            assert boxes is not None
            somewhere = around(torch.tensor([[0.0, 0.0, 20.0, 20.0], [20.0, 20.0, 48.0, 48.0]]), 10, number)
            near = around(boxes.as_subclass(Tensor), 10, number)
            each = torch.cat([near, somewhere])
            found[id] = each[(each[:, 2:] - each[:, :2]).amin(1) > 0]
    return proposal_folder(tmp_path_factory.mktemp("data") / "proposals", found)


def tiny_run(data: Path, out: Path, proposals: Path, **options: Any) -> Path:
    machine = Hardware(**MACHINE | {"checkpoint_every": 1})
    given = {"steps": 4, "proposals": str(proposals), **options}
    train("fast_rcnn", data=data, out=out, hardware=machine, **TINY | given)
    return out


def test_a_run_that_was_cut_ends_as_if_it_had_not_been(shapes_folder: Path, proposals: Path, tmp_path: Path) -> None:
    whole = tiny_run(shapes_folder, tmp_path / "whole", proposals, eval_every=2)
    with cut(2):
        tiny_run(shapes_folder, tmp_path / "cut", proposals, eval_every=2)
    tiny_run(shapes_folder, tmp_path / "cut", proposals, eval_every=2)
    assert outcome(tmp_path / "cut") == outcome(whole)
    saved = load_file(whole / "model.safetensors")
    assert not torch.equal(saved["head.offset_deviation"][1:], torch.ones_like(saved["head.offset_deviation"][1:]))


def test_a_compressed_run_can_be_loaded_and_scored(shapes_folder: Path, proposals: Path, tmp_path: Path) -> None:
    run = tiny_run(shapes_folder, tmp_path / "run", proposals, svd_ranks=(6, 4))
    results = json.loads((run / "results.json").read_text())
    trained = load_model(run)
    layers = trained.network.head.layers  # type: ignore[union-attr]
    assert [layer.weight.shape[0] for layer in (layers.fc6[0], layers.fc7[0])] == [6, 4]  # type: ignore[index, union-attr]
    again = evaluate(run, data=shapes_folder, hardware=Hardware(**MACHINE))
    assert again["map"] == pytest.approx(results["map"])
