"""What the dual-level Siamese structure network promises."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy, masked_cross_entropy, pseudo_label
from labelwise.methods.few_masks import dssn
from labelwise.methods.few_masks.dssn import DSSN, class_aware_selection, pixel_contrast, standardize_scores
from labelwise.models.perturbation import perturbed_decode
from labelwise.samples import Batch
from labelwise.tasks.few_masks import MixedView
from labelwise.transforms.mixing import paste, sample_cutmix_boxes
from labelwise.transforms.random_ops import RandomOperations
from tests.tiny_runs import cut, outcome, tiny_run

CLASSES = Classes(("background", "cat", "dog"))
TERMS = {"supervised", "feature", "image", "feature_contrast", "image_contrast"}
seeds = st.integers(0, 1000)


def logits(seed: int, classes: int = 5, batch: int = 2, size: int = 4, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(batch, classes, size, size, generator=torch.Generator().manual_seed(seed))


def log_probabilities(*pixels: tuple[float, ...]) -> Tensor:
    """[1, K, 1, pixels] logits whose soft-max these probabilities are."""
    return torch.tensor(pixels, dtype=torch.float64).log().T[None, :, None].float()


def batch(seed: int, labeled: bool = False, padded: int = 0) -> Batch:
    """Two images, the lowest rows of which may be padding."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (4, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mask = torch.randint(len(CLASSES), (2, 32, 32), generator=generator, dtype=torch.uint8) if labeled else None
    padding = torch.zeros(2, 32, 32, dtype=torch.bool)
    padding[:, 32 - padded :] = True
    return Batch(ids=("a", "b"), image=image[0], mask=mask, strong=(image[1], image[2]), padding=padding)


def method(step: int = 1, **options: object) -> DSSN:
    """The method as it stands before a step of ten; its first step is special."""
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "crop": 32, "steps": 10}
    made = DSSN(DSSN.Config(**{**settings, **options}), CLASSES)
    made.trainer = SimpleNamespace(global_step=step)
    return made


def terms_of(model: DSSN, padded: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return model.losses(labeled=batch(0, True), unlabeled=batch(1, padded=padded), partner=batch(2, padded=padded))


def confident(model: DSSN) -> DSSN:
    """With running statistics and scores like those of a trained network, the same for student and teacher."""
    norms = [module for module in model.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        model.network(model.normalize(batch(1).image))
        for norm in norms:
            norm.momentum = 0.1
        model.network.classifier.weight *= 30
    model.teacher.copy(model.network)
    return model


# The pixel contrast.


@given(seeds, st.integers(2, 21))
def test_the_contrast_is_a_distance_of_correlations(seed: int, classes: int) -> None:
    first, second = logits(seed, classes), logits(seed + 1, classes)
    vectors = torch.stack([first, second]).double().movedim(2, -1).reshape(2, -1, classes)
    correlation = torch.stack([torch.corrcoef(pair)[0, 1] for pair in vectors.unbind(1)])
    expected = 2 * (classes - 1) / classes * (1 - correlation).mean()
    assert pixel_contrast(first, second).item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


@given(seeds, st.integers(2, 21))
def test_scores_that_differ_by_scale_and_shift_cost_nothing_and_by_sign_the_most(seed: int, classes: int) -> None:
    scores = logits(seed, classes)
    scale = 0.1 + torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    shift = logits(seed + 1, 1)
    assert pixel_contrast(scores, scale * scores + shift) < 1e-5
    opposite = pixel_contrast(scores, -scale * scores + shift).item()
    assert opposite == pytest.approx(4 * (classes - 1) / classes, abs=1e-4)


@given(seeds)
def test_the_contrast_is_symmetric_and_blind_to_scale_and_shift(seed: int) -> None:
    first, second = logits(seed), logits(seed + 1)
    value = pixel_contrast(first, second)
    torch.testing.assert_close(pixel_contrast(second, first), value)
    torch.testing.assert_close(pixel_contrast(3 * first - 2, 0.5 * second + 7), value, rtol=1e-4, atol=1e-5)


def test_standardised_scores_have_mean_zero_and_unbiased_deviation_one() -> None:
    scores = standardize_scores(logits(0, classes=7, scale=4.0) + 3)
    torch.testing.assert_close(scores.mean(1), torch.zeros(2, 4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.std(1, unbiased=True), torch.ones(2, 4, 4))


@pytest.mark.parametrize("level", [0.0, 0.1, -1e4])
def test_equal_scores_give_zeros_and_finite_gradients(level: float) -> None:
    scores = logits(0, classes=21)
    scores[:, :, 1] = level
    scores.requires_grad_()
    pixel_contrast(scores, logits(1, classes=21)).backward()
    assert torch.isfinite(scores.grad).all()
    assert standardize_scores(scores)[:, :, 1].abs().max() < 0.1


def test_an_epsilon_is_added_to_the_deviation() -> None:
    scores = logits(0)
    expected = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 0.5)
    torch.testing.assert_close(standardize_scores(scores, epsilon=0.5), expected)


def test_both_views_receive_gradients() -> None:
    first, second = logits(0).requires_grad_(), logits(1).requires_grad_()
    pixel_contrast(first, second).backward()
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0


def test_a_mask_leaves_pixels_out_of_sum_and_count() -> None:
    first, second = logits(0), logits(1)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert pixel_contrast(first, second, mask) == 0
    mask[0, :2] = True
    torch.testing.assert_close(pixel_contrast(first, second, mask), pixel_contrast(first[:1, :, :2], second[:1, :, :2]))
    torch.testing.assert_close(pixel_contrast(first, second, mask | True), pixel_contrast(first, second))


# The selection of pseudo-labels.


def test_a_class_selects_what_exceeds_its_share_of_its_best() -> None:
    # The best of the first class is 0.95, so its threshold is 0.912; the second's best, 0.90, is too low.
    keep = class_aware_selection(log_probabilities((0.95, 0.05), (0.92, 0.08), (0.90, 0.10), (0.10, 0.90)))
    assert keep.tolist() == [[[True, True, False, False]]]


def test_a_pixel_at_the_threshold_is_not_selected() -> None:
    probability = torch.tensor([0.75, 0.25])
    exact = probability.log().view(1, 2, 1, 1)
    best = exact.softmax(1).amax().item()
    assert not class_aware_selection(exact, floor=best).any()
    assert class_aware_selection(exact, floor=best - 1e-6, ratio=0.99).all()
    assert not class_aware_selection(exact, floor=0.0, ratio=1.0).any()


@given(seeds)
def test_classes_that_are_nowhere_confident_select_nothing(seed: int) -> None:
    # Two scores 2.4 apart make a probability of 0.917.
    scores = logits(seed, classes=2).clamp(-1.2, 1.2)
    assert not class_aware_selection(scores).any()


@given(seeds)
def test_certain_scores_are_all_selected(seed: int) -> None:
    scores = logits(seed) + 5 * functional.one_hot(logits(seed).argmax(1), 5).movedim(-1, 1)
    assert class_aware_selection(100 * scores).all()


@given(seeds, st.floats(1, 8))
def test_only_confident_pixels_are_selected_and_the_constants_are_the_codes(seed: int, scale: float) -> None:
    scores = logits(seed, scale=scale)
    keep, probability = class_aware_selection(scores), scores.softmax(1)
    assert (probability.amax(1)[keep] > 0.8832).all()
    for image in range(2):
        for number in range(5):
            chosen = probability[image, number]
            if chosen.max() > 0.92 + 1e-5:
                assert keep[image][chosen == chosen.max()].all()


@given(seeds)
def test_the_selection_is_blind_to_shifts_and_follows_the_images(seed: int) -> None:
    scores = logits(seed, batch=3, scale=4.0)
    keep = class_aware_selection(scores)
    assert torch.equal(class_aware_selection(scores + logits(seed, 1, 3).round()), keep)
    assert torch.equal(class_aware_selection(scores[[2, 0, 1]]), keep[[2, 0, 1]])


def test_the_best_confidence_is_that_of_one_image() -> None:
    sure, less = log_probabilities((0.999, 0.001)), log_probabilities((0.93, 0.07))
    assert class_aware_selection(torch.cat([sure, less])).all()
    assert class_aware_selection(torch.cat([sure, less], dim=3)).tolist() == [[[True, False]]]


# The training step.


def test_a_step_has_five_terms_of_the_published_weights() -> None:
    terms = terms_of(confident(method()))
    assert terms.keys() == TERMS
    half = terms_of(confident(method(contrast_weight=0.005)))
    for name in ("feature_contrast", "image_contrast"):
        torch.testing.assert_close(2 * half[name], terms[name])
    assert 0 < terms["image_contrast"] < 0.01 / 2 * 4 * 2 / 3


def test_without_its_own_parts_it_is_unimatch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = confident(method(contrast_weight=0.0)).eval()
    monkeypatch.setattr(dssn, "class_aware_selection", lambda scores: scores.softmax(1).amax(1) >= 0.95)
    ours = sum(terms_of(model, padded=4).values())

    torch.manual_seed(1)
    labeled, unlabeled, partner = batch(0, True), batch(1, padded=4), batch(2, padded=4)
    boxes = [sample_cutmix_boxes(2, 32) for _ in range(2)]
    _, *thinned = perturbed_decode(
        model.network, *model.network.forward_features(model.normalize(torch.cat([labeled.image, unlabeled.image]))), 2
    )
    label, confidence = pseudo_label(model.network(model.normalize(unlabeled.image)))
    other_label, other_confidence = pseudo_label(model.network(model.normalize(partner.image)))
    strong = torch.zeros(())
    for number, box in enumerate(boxes):
        image = paste(unlabeled.strong[number], partner.strong[number], box)
        keep = paste(confidence, other_confidence, box) >= 0.95
        valid = ~paste(unlabeled.padding, partner.padding, box)
        target = paste(label, other_label, box)
        strong = strong + masked_cross_entropy(model.network(model.normalize(image)), target, keep, valid)
    full_size = [functional.interpolate(part[2:], 32, mode="bilinear", align_corners=True) for part in thinned]
    feature = [masked_cross_entropy(part, label, confidence >= 0.95, ~unlabeled.padding) for part in full_size]
    supervised = cross_entropy(model.network(model.normalize(labeled.image)), labeled.mask)
    theirs = (supervised + strong / 4 + sum(feature) / 2 / 2) / 2
    assert strong > 0 and all(part > 0 for part in feature)
    torch.testing.assert_close(ours, theirs)


def test_the_teacher_labels_strong_views_and_the_student_feature_views() -> None:
    plain, other = terms_of(confident(method())), confident(method())
    with torch.no_grad():
        other.teacher.module.classifier.weight.neg_()
    changed = terms_of(other)
    assert not torch.isclose(plain["image"], changed["image"])
    for name in TERMS - {"image"}:
        torch.testing.assert_close(plain[name], changed[name])


def test_selection_sees_the_pasted_map(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = confident(method()), []
    monkeypatch.setattr(dssn, "class_aware_selection", lambda scores: seen.append(scores) or scores.argmax(1) >= 0)
    views = [MixedView(torch.zeros(2, 3, 32, 32), torch.rand(2, 32, 32) < 0.5, ~batch(1).padding) for _ in range(2)]
    model._teacher_labels(batch(1), batch(2), views)
    outer, inner = (model.teacher(model.normalize(batch(seed).image)) for seed in (1, 2))
    for scores, view in zip(seen, views, strict=True):
        torch.testing.assert_close(scores, paste(outer, inner, view.box))


def test_padding_is_unmixed_for_feature_views_and_pasted_for_strong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[dssn.TaughtView] = []
    monkeypatch.setattr(dssn, "consistency", lambda views: taught.extend(views) or torch.zeros(()))
    model, unlabeled, partner = method(), batch(1, padded=16), batch(2)
    torch.manual_seed(3)
    model.losses(labeled=batch(0, True), unlabeled=unlabeled, partner=partner)
    torch.manual_seed(3)
    boxes = [sample_cutmix_boxes(2, 32) for _ in range(2)]
    assert any((box & unlabeled.padding).any() for box in boxes)
    for view in taught[:2]:
        assert torch.equal(view.valid, ~unlabeled.padding)
    for view, box in zip(taught[2:], boxes, strict=True):
        assert torch.equal(view.valid, ~unlabeled.padding | box)


def test_the_two_strong_views_are_one_batch_and_the_weak_ones_another() -> None:
    model, passes = method(), []
    model.network.backbone.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    terms_of(model)
    assert sorted(passes) == [4, 4]
    counts = {int(module.num_batches_tracked) for module in model.network.modules() if hasattr(module, "running_mean")}
    assert counts == {2}


def test_every_label_teaches_where_all_are_selected() -> None:
    model = method(selection="all")
    assert model.pseudo_labels(batch(1).image).keep.all()
    terms_of(model)
    assert model._observed["pseudo/coverage"] == 1
    unsure = method()
    terms_of(unsure)
    assert unsure._observed["pseudo/coverage"] == 0


def test_different_content_may_be_left_out_of_the_contrast() -> None:
    plain, same = terms_of(method(), padded=4), terms_of(method(contrast_mask="same_content"), padded=4)
    assert not torch.isclose(plain["image_contrast"], same["image_contrast"])
    torch.testing.assert_close(plain["feature_contrast"], same["feature_contrast"])
    box = torch.zeros(2, 32, 32, dtype=torch.bool)
    box[:, 8:16] = True
    views = [MixedView(torch.zeros(2, 3, 32, 32), part, ~batch(1, padded=4).padding) for part in (box, ~(box | True))]
    mask = method(contrast_mask="same_content")._comparable(views)
    assert torch.equal(mask, ~box & ~batch(1, padded=4).padding)


# The teacher.


def test_the_first_step_has_no_image_level_labels_and_ends_in_equality() -> None:
    model = method(step=0)
    with torch.no_grad():
        model.teacher.module.classifier.weight.add_(1)
    assert terms_of(model).keys() == TERMS - {"image"}
    model.after_step()
    torch.testing.assert_close(model.teacher.module.state_dict(), model.network.state_dict())


def test_later_steps_move_the_teacher_and_its_statistics_a_little() -> None:
    model = method(teacher_keep=0.9)
    model.teacher.copy(model.network)
    start = {name: value.clone() for name, value in model.network.state_dict().items()}
    terms_of(model)["supervised"].backward()
    torch.optim.SGD(model.network.parameters(), lr=0.1).step()
    model.after_step()
    assert not torch.equal(start["classifier.weight"], model.network.classifier.weight)
    for name in ("classifier.weight", "low.1.running_mean"):
        expected = 0.9 * start[name] + 0.1 * model.network.state_dict()[name]
        torch.testing.assert_close(model.teacher.module.state_dict()[name], expected)


def test_the_teacher_copies_for_a_share_of_the_steps() -> None:
    for step, copies in ((0, True), (2, True), (3, False)):
        model = method(step=step, copy_share=0.3)
        assert model.copying == copies
        assert ("image" in terms_of(model)) != copies


def test_labels_alone_teach_during_the_supervised_share_and_the_teacher_is_the_student() -> None:
    model = method(step=2, supervised_share=0.3)
    with torch.no_grad():
        model.network.classifier.weight.add_(1)
    terms = terms_of(model)
    assert list(terms) == ["supervised"]
    torch.testing.assert_close(
        terms["supervised"], cross_entropy(model.network(model.normalize(batch(0).image)), batch(0, True).mask)
    )
    model.after_step()
    assert torch.equal(model.teacher.module.classifier.weight, model.network.classifier.weight)


def test_the_teacher_is_not_trained_and_keeps_running_statistics() -> None:
    model = confident(method()).train()
    held = {id(value) for group in model.parameter_groups() for value in group["params"]}
    assert held == {id(parameter) for parameter in model.network.parameters()}
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    sum(terms_of(model).values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    torch.testing.assert_close(model.teacher.state_dict(), before)
    assert method(teacher_bn_mode="train").train().teacher.module.training


def test_pseudo_labels_are_the_teachers() -> None:
    model = confident(method()).eval()
    scores = model.teacher(model.normalize(batch(1).image))
    with torch.no_grad():
        model.network.classifier.weight.neg_()
    label, keep = model.pseudo_labels(batch(1).image)
    assert torch.equal(label, scores.argmax(1))
    assert torch.equal(keep, class_aware_selection(scores))


# Streams, options, a whole run.


def test_each_image_has_two_strong_views_with_the_random_list() -> None:
    streams = method().streams()
    assert list(streams) == ["labeled", "unlabeled", "partner"]
    assert streams["unlabeled"].transform.views == 2
    added = streams["unlabeled"].transform.photometric.transforms[-1]
    assert isinstance(added, RandomOperations) and added.most == 3
    plain = method(random_operations=0).streams()["unlabeled"].transform.photometric
    assert not any(isinstance(part, RandomOperations) for part in plain.transforms)


@pytest.mark.parametrize(
    ("option", "value"),
    [("teacher_keep", 1.2), ("copy_share", -0.1), ("contrast_weight", -1.0), ("contrast_epsilon", -1)],
)
def test_impossible_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}"):
        method(**{option: value})


def test_the_papers_network_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = DSSN(DSSN.Config(backbone_weights="none"), Classes(tuple(map(str, range(21)))))
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 40_475_957
    assert sum(parameter.numel() for parameter in model.teacher.parameters()) == 40_475_957


def teacher_state(run: Path) -> dict[str, Tensor]:
    state = torch.load(max((run / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("teacher.")}


def test_a_run_cut_twice_ends_like_a_whole_one_and_scores_the_teacher(shapes_folder: Path, tmp_path: Path) -> None:
    options = {"eval_every": 4, "copy_share": 0.2, "teacher_keep": 0.9}
    whole = tiny_run("dssn", shapes_folder, tmp_path / "whole", **options)
    for step in (1, 4):
        with cut(step):
            tiny_run("dssn", shapes_folder, tmp_path / "cut", **options)
    resumed = tiny_run("dssn", shapes_folder, tmp_path / "cut", **options)
    assert outcome(resumed) == outcome(whole)
    torch.testing.assert_close(teacher_state(resumed), teacher_state(whole), rtol=0, atol=0)
    assert 0 < json.loads((whole / "results.json").read_text())["miou_teacher"] < 100
    assert "pseudo/coverage" in (whole / "metrics.csv").read_text()
    # The first two of six steps copy, which counts as one, and four average.
    assert teacher_state(whole)["teacher.n_averaged"] == 5
