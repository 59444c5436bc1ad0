"""CW-BASS: closed forms of its pure functions, a literal Sobel filter, and what one training step does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.nn import functional

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import IGNORE_INDEX, cross_entropy, pseudo_label
from labelwise.methods.few_masks import cw_bass
from labelwise.methods.few_masks.cw_bass import (
    CWBASS,
    Padding,
    boundary_cross_entropy,
    confidence_weighted_cross_entropy,
    dynamic_threshold,
    sobel_boundary,
    targets,
)
from labelwise.methods.masks.supervised import Supervised
from labelwise.samples import Batch
from tests.tiny_runs import cut, outcome, tiny_run

CLASSES = Classes(("background", "cat", "dog"))
SETTINGS: dict[str, Any] = {
    "backbone": "micro_w2",
    "backbone_weights": "none",
    "output_stride": 4,
    "decoder_channels": 8,
    "crop": 32,
    "steps": 10,
    "ramp_share": 0.0,
}
PADDINGS = get_args(Padding)
seeds = st.integers(0, 10_000)


def logits(seed: int, size: int = 6, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch(seed: int, labeled: bool = False, padded: int = 0, strong: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image, changed = torch.randint(256, (2, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mask = torch.randint(len(CLASSES), (2, 32, 32), generator=generator, dtype=torch.uint8) if labeled else None
    padding = torch.zeros(2, 32, 32, dtype=torch.bool)
    padding[:, 32 - padded :] = True
    views = (changed,) if strong else ()
    return Batch(ids=("a", "b"), image=image, mask=mask, strong=views, padding=padding)


def method(step: int = 5, earlier: dict[str, Any] | None = None, **options: Any) -> CWBASS:
    """The method as it stands before a step of ten, with the statistics and the sureness of a trained network."""
    torch.manual_seed(0)
    learner = CWBASS(CWBASS.Config(**SETTINGS | options), CLASSES, earlier=earlier)
    learner.trainer = SimpleNamespace(global_step=step)
    learner.network.classifier.weight.data *= 20
    norms = [part for part in learner.network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        learner.network(learner.normalize(batch(1).image))
    for norm in norms:
        norm.momentum = 0.1
    if earlier is None:
        learner.teacher.copy(learner.network)
    return learner.train()


def step_of(learner: CWBASS, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return learner.losses(labeled=batch(0, True), unlabeled=batch(1, **changes))


# The threshold.


@pytest.mark.parametrize(
    ("mean", "base", "slope", "expected"),
    [
        (0.5, 0.6, 0.5, 0.3),
        (1.0, 0.6, 0.5, 0.337306),
        (0.1, 0.6, 0.5, 0.3),
        (1.0, 0.9, 10.0, 0.8),
        (0.5, 1.2, 0.5, 0.6),
        (1.0, 1.2, 0.5, 0.674612),
    ],
)
def test_the_threshold_in_closed_form(mean: float, base: float, slope: float, expected: float) -> None:
    confidence = torch.full((2, 4, 4), mean)
    assert dynamic_threshold(confidence, base, slope).item() == pytest.approx(expected, abs=1e-6)


@given(seeds, st.floats(0, 3), st.floats(0, 20))
def test_the_threshold_is_that_of_the_mean_over_the_batch_and_stays_in_its_bounds(
    seed: int, base: float, slope: float
) -> None:
    confidence = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(seed))
    value = dynamic_threshold(confidence, base, slope)
    same_mean = confidence.mean().expand(2, 4, 4)
    torch.testing.assert_close(value, dynamic_threshold(same_mean, base, slope))
    assert 0.3 - 1e-6 <= value <= 0.8 + 1e-6


# The boundary.


def literal_boundary(label: Tensor, classes: int, padding: str) -> Tensor:
    """The magnitudes of 3x3 Sobel filters on the one-hot map, summed over the classes."""
    maps = functional.one_hot(label, classes).movedim(-1, 1).double()
    mode = {"zero": "constant", "replicate": "replicate"}[padding]
    maps = functional.pad(maps, (1, 1, 1, 1), mode=mode).flatten(0, 1)[:, None]
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    horizontal, vertical = (functional.conv2d(maps, kernel[None, None]) for kernel in (sobel, sobel.T))
    magnitude = (horizontal**2 + vertical**2).sqrt().reshape(len(label), classes, *label.shape[1:])
    return magnitude.sum(1) > 0


label_maps = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(2, 6)).flatmap(
    lambda shape: arrays("int64", (2, *shape[:2]), elements=st.integers(0, shape[2] - 1))
)


@pytest.mark.parametrize("padding", PADDINGS)
@given(label=label_maps)
def test_the_boundary_is_where_a_sobel_filter_on_the_one_hot_map_is_not_zero(padding: Padding, label: Any) -> None:
    found = sobel_boundary(torch.from_numpy(label), padding)
    assert torch.equal(found, literal_boundary(torch.from_numpy(label), 6, padding))


@pytest.mark.parametrize("padding", PADDINGS)
def test_opposite_patterns_that_balance_are_no_boundary(padding: Padding) -> None:
    """Random maps hardly have 1 of one class and 2 x 1 of another on both sides."""
    label = torch.tensor([[[0, 2, 1], [1, 2, 0], [0, 2, 1]], [[0, 1, 0], [1, 0, 1], [0, 1, 0]]])
    found = sobel_boundary(label, padding)
    assert torch.equal(found, literal_boundary(label, 3, padding))
    assert not found[1, 1, 1]


def frame(height: int, width: int) -> Tensor:
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return ~inside


def test_a_uniform_map_has_the_frame_alone_and_none_when_its_edge_goes_on() -> None:
    label = torch.full((1, 6, 9), 2)
    assert torch.equal(sobel_boundary(label, "zero")[0], frame(6, 9))
    assert not sobel_boundary(label, "replicate").any()


def test_two_halves_meet_in_two_columns() -> None:
    label = torch.zeros(1, 6, 8, dtype=torch.int64)
    label[:, :, 4:] = 1
    columns = torch.zeros(6, 8, dtype=torch.bool)
    columns[:, 3:5] = True
    assert torch.equal(sobel_boundary(label, "zero")[0], frame(6, 8) | columns)
    assert torch.equal(sobel_boundary(label, "replicate")[0], columns)


def test_an_isolated_pixel_has_boundary_around_it_but_not_on_it() -> None:
    label = torch.zeros(1, 7, 7, dtype=torch.int64)
    label[0, 3, 3] = 2
    ring = torch.zeros(7, 7, dtype=torch.bool)
    ring[2:5, 2:5] = True
    ring[3, 3] = False
    assert torch.equal(sobel_boundary(label, "replicate")[0], ring)


# The two terms.


def kept_labels(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (2, 6, 6), generator=generator)
    return label.masked_fill(torch.rand(2, 6, 6, generator=generator) < 0.4, IGNORE_INDEX)


def confidences(seed: int) -> Tensor:
    return 0.3 + 0.7 * torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(seed))


@given(seeds, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_the_gradient_is_the_weighted_difference_from_the_label_over_the_kept_pixels(seed: int, gamma: float) -> None:
    prediction, label, confidence = logits(seed).requires_grad_(), kept_labels(seed), confidences(seed)
    confidence_weighted_cross_entropy(prediction, label, confidence, gamma).backward()
    keep = label != IGNORE_INDEX
    one_hot = functional.one_hot(label.masked_fill(~keep, 0), 3).movedim(-1, 1)
    expected = (confidence**gamma * keep / keep.sum())[:, None] * (prediction.detach().softmax(1) - one_hot)
    torch.testing.assert_close(prediction.grad, expected)
    assert not prediction.grad.movedim(1, -1)[~keep].any()


@given(seeds)
def test_gamma_0_is_the_plain_mean_over_the_kept_pixels(seed: int) -> None:
    label = kept_labels(seed)
    weighted = confidence_weighted_cross_entropy(logits(seed), label, confidences(seed), 0.0)
    torch.testing.assert_close(weighted, functional.cross_entropy(logits(seed), label, ignore_index=IGNORE_INDEX))


@given(seeds)
def test_the_boundary_term_is_the_plain_mean_over_kept_boundary_pixels(seed: int) -> None:
    label = kept_labels(seed)
    boundary = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(seed)) < 0.5
    each = functional.cross_entropy(logits(seed), label, ignore_index=IGNORE_INDEX, reduction="none")
    chosen = boundary & (label != IGNORE_INDEX)
    torch.testing.assert_close(boundary_cross_entropy(logits(seed), label, boundary), each[chosen].mean())


def test_nothing_kept_costs_nothing_and_teaches_nothing() -> None:
    prediction = logits(0).requires_grad_()
    nothing = torch.full((2, 6, 6), IGNORE_INDEX)
    everywhere = torch.ones(2, 6, 6, dtype=torch.bool)
    total = confidence_weighted_cross_entropy(prediction, nothing, confidences(0), 1.0)
    total = total + boundary_cross_entropy(prediction, nothing, everywhere)
    total = total + boundary_cross_entropy(prediction, kept_labels(0), ~everywhere)
    assert total == 0
    total.backward()
    assert not prediction.grad.any()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
@given(seed=seeds)
def test_a_constant_decay_scales_the_weighted_term_and_nothing_else(gamma: float, seed: int) -> None:
    teacher, student = logits(seed), logits(seed + 1)
    plain, decayed = (targets(teacher, 1.2, 0.5, decay, "zero") for decay in (1.0, 0.9))
    for name in ("label", "boundary", "threshold"):
        assert torch.equal(getattr(plain, name), getattr(decayed, name))
    one, other = (confidence_weighted_cross_entropy(student, t.label, t.confidence, gamma) for t in (plain, decayed))
    torch.testing.assert_close(other, 0.9**gamma * one)


@given(seeds)
def test_labels_at_the_threshold_are_ignored_and_boundaries_come_before_it(seed: int) -> None:
    said = targets(logits(seed), 1.2, 0.5, 1.0, "replicate")
    label, confidence = pseudo_label(logits(seed))
    keep = confidence > said.threshold
    assert torch.equal(said.label, torch.where(keep, label, IGNORE_INDEX))
    assert torch.equal(said.boundary, sobel_boundary(label, "replicate"))
    torch.testing.assert_close(said.confidence, confidence)


def test_a_confidence_of_exactly_the_threshold_is_not_enough() -> None:
    # Equal scores of two classes: confidence and threshold are both a half.
    even = torch.zeros(1, 2, 3, 3)
    assert (targets(even, 1.0, 0.5, 1.0, "zero").label == IGNORE_INDEX).all()
    assert (targets(even, 0.99, 0.5, 1.0, "zero").label == 0).all()


# One training step.


def test_a_step_is_the_specifications() -> None:
    terms = step_of(method(gamma=2.0, boundary_weight=0.7, threshold_base=1.2, unlabeled_weight=0.4))
    learner = method(gamma=2.0)
    clean = learner.normalize(batch(1).image)
    said = targets(learner.teacher(clean), 1.2, 0.5, 1.0, "zero")
    assert 0 < (said.label == IGNORE_INDEX).float().mean() < 1
    supervised = cross_entropy(learner.network(learner.normalize(batch(0).image)), batch(0, True).mask)
    student = learner.network(clean)
    expected = {
        "supervised": supervised,
        "weighted": 0.4 * confidence_weighted_cross_entropy(student, said.label, said.confidence, 2.0),
        "boundary": 0.4 * 0.7 * boundary_cross_entropy(student, said.label, said.boundary),
    }
    torch.testing.assert_close(terms, expected)


def test_gamma_0_without_boundary_and_threshold_is_a_mean_teacher_with_hard_labels() -> None:
    learner = method(gamma=0.0, boundary_weight=0.0, threshold_base=0.0)
    # The threshold's floor is 0.3, and the best of three classes has at least a third.
    label = learner.teacher(learner.normalize(batch(1).image)).argmax(1)
    terms = step_of(learner)
    assert terms["boundary"] == 0
    prediction = method(gamma=0.0).network(learner.normalize(batch(1).image))
    torch.testing.assert_close(terms["weighted"], cross_entropy(prediction, label))


def test_without_the_unlabelled_weight_it_is_the_supervised_baseline() -> None:
    learner = method(unlabeled_weight=0.0)
    baseline = Supervised(
        Supervised.Config(**{name: SETTINGS[name] for name in SETTINGS if name != "ramp_share"}), CLASSES
    )
    baseline.network.load_state_dict(learner.network.state_dict())
    terms = step_of(learner)
    torch.testing.assert_close(terms["supervised"], baseline.losses(labeled=batch(0, True))["supervised"])
    sum(terms.values()).backward()
    baseline.losses(labeled=batch(0, True))["supervised"].backward()
    assert terms["weighted"] == terms["boundary"] == 0
    # The second forward pass has moved nothing but the running statistics.
    for own, theirs in zip(learner.network.parameters(), baseline.network.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad)


@pytest.mark.parametrize(("step", "share", "expected"), [(0, 0.4, 0.0), (1, 0.4, 0.25), (4, 0.4, 1.0), (9, 0.4, 1.0)])
def test_the_weight_on_bare_images_rises_from_0_to_its_value(step: int, share: float, expected: float) -> None:
    ramped, whole = step_of(method(step, ramp_share=share)), step_of(method(step))
    assert ramped["supervised"] == whole["supervised"]
    for name in ("weighted", "boundary"):
        torch.testing.assert_close(ramped[name], expected * whole[name])


@pytest.mark.parametrize(("decay", "factor"), [("none", 1.0), ("constant", 0.9), ("progressive", 0.9**4)])
def test_decay_multiplies_the_weighted_term_alone(decay: str, factor: float) -> None:
    plain, decayed = step_of(method(gamma=2.0)), step_of(method(gamma=2.0, decay=decay, epochs=9.0))
    torch.testing.assert_close(decayed["weighted"], factor**2 * plain["weighted"])
    torch.testing.assert_close(decayed["boundary"], plain["boundary"])


def test_the_teacher_has_no_gradients_and_takes_no_part_in_the_optimiser() -> None:
    learner = method()
    sum(step_of(learner).values()).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in learner.teacher.parameters())
    assert all(parameter.grad is not None for parameter in learner.network.parameters())
    held = {id(parameter) for group in learner.parameter_groups() for parameter in group["params"]}
    assert held == {id(parameter) for parameter in learner.network.parameters()}


def test_the_teacher_follows_slowly_and_takes_over_the_statistics() -> None:
    learner = method(teacher_keep=0.9)
    learner.after_step()
    before = [parameter.clone() for parameter in learner.teacher.module.parameters()]
    with torch.no_grad():
        for parameter in learner.network.parameters():
            parameter += 1
    learner.network(learner.normalize(batch(0).image))
    learner.after_step()
    for old, now, student in zip(
        before, learner.teacher.module.parameters(), learner.network.parameters(), strict=True
    ):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * student)
    pairs = zip(learner.teacher.module.buffers(), learner.network.buffers(), strict=True)
    assert all(torch.equal(now, student) for now, student in pairs)


def test_the_teacher_labels_by_running_statistics_whatever_the_student_does() -> None:
    learner = method()
    assert not any(module.training for module in learner.teacher.modules())
    before = {name: value.clone() for name, value in learner.teacher.module.named_buffers()}
    step_of(learner)
    assert all(torch.equal(value, before[name]) for name, value in learner.teacher.module.named_buffers())


def test_during_the_supervised_start_the_teacher_is_the_student() -> None:
    learner = method(0, supervised_share=0.5)
    assert list(step_of(learner)) == ["supervised"]
    for _ in range(2):
        with torch.no_grad():
            learner.network.classifier.weight += 1
        learner.after_step()
        assert torch.equal(learner.teacher.module.classifier.weight, learner.network.classifier.weight)


def test_the_student_sees_the_teachers_view_unless_a_strong_one_is_asked_for() -> None:
    views = {view: method(student_view=view).streams()["unlabeled"].transform for view in ("weak", "strong")}
    assert not hasattr(views["weak"], "photometric") and views["strong"].views == 1
    seen: list[Tensor] = []
    learner = method(student_view="strong")
    learner.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    step_of(learner, strong=True)
    torch.testing.assert_close(seen[1], learner.normalize(batch(1, strong=True).strong[0]))


def test_cut_out_pixels_are_black_and_have_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    box = torch.zeros(2, 32, 32, dtype=torch.bool)
    box[0, 3:9, 5:30] = True

    def sample(count: int, size: int, **options: Any) -> Tensor:
        drawn.update(options, count=count, size=size)
        return box

    monkeypatch.setattr(cw_bass, "sample_cutmix_boxes", sample)
    image, label = method(cutout=0.5)._student_view(batch(1), torch.zeros(2, 32, 32, dtype=torch.int64))
    assert drawn == {"count": 2, "size": 32, "p": 0.5, "ratio": (0.3, 3.3)}
    hidden = box[:, None].expand_as(image)
    assert not image[hidden].any() and torch.equal(image[~hidden], batch(1).image[~hidden])
    assert torch.equal(label == IGNORE_INDEX, box)


def test_padding_is_learned_from_unless_it_is_masked() -> None:
    label = torch.ones(2, 32, 32, dtype=torch.int64)
    unlabeled = batch(1, padded=7)
    assert torch.equal(method()._student_view(unlabeled, label)[1], label)
    masked = method(mask_padding=True)._student_view(unlabeled, label)[1]
    assert torch.equal(masked == IGNORE_INDEX, unlabeled.padding)


def test_coverage_and_threshold_are_observed() -> None:
    learner = method(threshold_base=1.2)
    step_of(learner)
    said = targets(learner.teacher(learner.normalize(batch(1).image)), 1.2, 0.5, 1.0, "zero")
    assert learner._observed["pseudo/threshold"] == said.threshold
    torch.testing.assert_close(learner._observed["pseudo/coverage"], (said.label != IGNORE_INDEX).float().mean())


def test_pseudo_labels_are_the_teachers_above_the_threshold() -> None:
    learner = method(threshold_base=1.2).eval()
    nn.init.zeros_(learner.network.classifier.weight)
    said = targets(learner.teacher(learner.normalize(batch(1).image)), 1.2, 0.5, 1.0, "zero")
    label, keep = learner.pseudo_labels(batch(1).image)
    assert torch.equal(keep, said.label != IGNORE_INDEX)
    assert torch.equal(label[keep], said.label[keep])


@pytest.mark.parametrize(
    "options",
    [{"gamma": -1.0}, {"boundary_weight": -0.5}, {"ramp_share": 1.5}, {"teacher_keep": -0.1}, {"cutout": 2.0}],
)
def test_numbers_that_no_training_can_have_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(options)).replace('_', '-')} "):
        method(**options)


# The teacher that is trained first.


def test_only_another_teacher_than_the_average_is_a_stage() -> None:
    assert CWBASS.stages(CWBASS.Config()) == ()
    for teacher in ("supervised", "runs/teacher"):
        (stage,) = CWBASS.stages(CWBASS.Config(teacher=teacher))
        assert (stage.option, stage.word, stage.method) == ("teacher", "supervised", "supervised")


def test_a_teacher_of_an_earlier_run_stays_as_it_is() -> None:
    torch.manual_seed(7)
    settings = {name: value for name, value in SETTINGS.items() if name != "ramp_share"}
    earlier = Supervised(Supervised.Config(**settings | {"backbone": "micro_w3"}), CLASSES, training=False)
    learner = method(earlier={"teacher": earlier}, teacher="supervised")
    before = {name: value.clone() for name, value in learner.teacher.module.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in earlier.network.state_dict().items())
    sum(step_of(learner).values()).backward()
    learner.after_step()
    assert all(torch.equal(value, before[name]) for name, value in learner.teacher.module.state_dict().items())
    assert all(not parameter.requires_grad for parameter in learner.teacher.parameters())


def test_the_two_stage_variant_trains_its_teacher_first_and_continues(shapes_folder: Path, tmp_path: Path) -> None:
    options = {"steps": 2, "ramp_share": 0.0, "teacher": "supervised", "student_view": "strong", "cutout": 0.5}
    with cut(1):
        tiny_run("cw_bass", shapes_folder, tmp_path / "cut", **options)
    ends = [outcome(tiny_run("cw_bass", shapes_folder, tmp_path / name, **options)) for name in ("cut", "whole")]
    assert ends[0] == ends[1]
    stage = tmp_path / "whole" / "stages" / "1-teacher"
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["miou_teacher"] == json.loads((stage / "results.json").read_text())["miou"]
    config = json.loads((stage / "config.json").read_text())
    assert (config["method"], config["options"]["steps"], config["options"]["backbone"]) == ("supervised", 2, "tiny")


def test_the_averaged_teacher_is_scored_and_not_saved(shapes_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = tiny_run("cw_bass", shapes_folder, tmp_path, steps=2)
    assert "miou_teacher" in json.loads((run / "results.json").read_text())
    saved = load_file(run / "model.safetensors")
    assert not any("teacher" in name for name in saved)
    assert not (run / "stages").exists()
