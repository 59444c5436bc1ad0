"""MGD: what its three granularities see, what of its teachers moves, and the sizes of its networks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labelwise import methods
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.few_masks import mgd
from labelwise.methods.few_masks.cps import CPS
from labelwise.methods.few_masks.mgd import (
    MGD,
    hard_pixel_distillation,
    image_level_l1,
    region_content_loss,
    self_similarity,
)
from labelwise.methods.masks.supervised import Supervised
from labelwise.samples import Batch
from labelwise.transforms.mixing import paste
from labelwise.verbs.stages import planned_runs

CLASSES = Classes(("background", "cat", "dog"))
VOC_CLASSES = Classes(tuple(map(str, range(21))))
SETTINGS: dict[str, Any] = {
    "backbone": "micro_w2",
    "backbone_weights": "none",
    "output_stride": 4,
    "decoder_channels": 8,
    "crop": 32,
    "window": 0,
    "steps": 10,
}
seeds = st.integers(0, 10_000)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(seed: int, labeled: bool = False, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mask = torch.randint(len(CLASSES), (size, 32, 32), generator=generator, dtype=torch.uint8) if labeled else None
    return Batch(ids=tuple("abcd"[:size]), image=image, mask=mask)


def teacher(seed: int, backbone: str) -> CPS:
    torch.manual_seed(seed)
    made = CPS(CPS.Config(**SETTINGS | {"backbone": backbone, "decoder_channels": 12}), CLASSES, training=False)
    made.network.classifier.weight.data *= 20
    return made


def method(step: int = 5, earlier: dict[str, Any] | None = None, **options: Any) -> MGD:
    """The method as it stands before a step of ten, with small teachers."""
    earlier = earlier or {"wide_teacher": teacher(1, "micro_w4"), "deep_teacher": teacher(2, "micro_w3")}
    torch.manual_seed(0)
    learner = MGD(MGD.Config(**SETTINGS | options), CLASSES, earlier=earlier)
    learner.trainer = SimpleNamespace(global_step=step)
    return learner.train()


def step_of(learner: MGD, size: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return learner.losses(labeled=batch(0, True), unlabeled=batch(1, size=size), partner=batch(2, size=size))


# The image level.


@given(seeds)
def test_the_image_term_is_a_sum_over_images_and_classes_of_mean_scores(seed: int) -> None:
    student, guide = random(seed, 2, 3, 4, 5), random(seed + 1, 2, 3, 4, 5)
    expected = sum(
        abs(student[image, number].mean() - guide[image, number].mean()) for image in range(2) for number in range(3)
    )
    torch.testing.assert_close(image_level_l1(student, guide), expected)
    assert image_level_l1(student, student) == 0


@given(seeds)
def test_the_image_term_is_blind_to_where_scores_are(seed: int) -> None:
    student, guide = random(seed, 2, 3, 4, 5), random(seed + 1, 2, 3, 8, 10)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    moved = student.flatten(2)[:, :, order].reshape(student.shape)
    torch.testing.assert_close(image_level_l1(moved, guide), image_level_l1(student, guide))


# The region level.


@given(seeds, st.integers(1, 7))
def test_similarities_are_symmetric_cosines_with_ones_on_the_diagonal(seed: int, grid: int) -> None:
    feature = random(seed, 2, 6, 14, 9)
    similarity = self_similarity(feature, grid)
    assert similarity.shape == (2, grid**2, grid**2)
    torch.testing.assert_close(similarity, similarity.transpose(1, 2))
    torch.testing.assert_close(similarity.diagonal(dim1=1, dim2=2), torch.ones(2, grid**2), atol=1e-3, rtol=0)
    assert similarity.abs().max() <= 1 + 1e-5
    cells = nn.functional.adaptive_avg_pool2d(feature, grid).flatten(2)
    first, last = cells[1, :, 0], cells[1, :, -1]
    expected = torch.cosine_similarity(first, last, dim=0)
    torch.testing.assert_close(similarity[1, 0, -1], expected, atol=1e-3, rtol=1e-3)


@given(seeds)
def test_similarities_see_neither_the_size_of_a_column_nor_a_turn_of_the_channels(seed: int) -> None:
    feature = random(seed, 2, 6, 7, 7)
    scale = 0.5 + torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    turn, _ = torch.linalg.qr(random(seed + 1, 6, 6))
    similarity = self_similarity(feature)
    for changed in (scale * feature, torch.einsum("ij,bjhw->bihw", turn, feature)):
        torch.testing.assert_close(self_similarity(changed), similarity, atol=1e-4, rtol=1e-4)


def test_a_dead_cell_is_similar_to_nothing_and_has_a_finite_gradient() -> None:
    feature = random(0, 1, 4, 7, 7)
    feature[:, :, 2, 3] = 0
    feature.requires_grad_()
    similarity = self_similarity(feature)
    assert not similarity[0, 17].any() and not similarity[0, :, 17].any()
    region_content_loss(feature, random(1, 1, 4, 7, 7)).backward()
    assert feature.grad.isfinite().all()


@given(seeds)
def test_the_region_term_is_0_for_equal_and_for_scaled_features_and_adapts_sizes(seed: int) -> None:
    feature = random(seed, 2, 6, 7, 7)
    assert region_content_loss(feature, feature) == 0
    assert region_content_loss(feature, 3 * feature) < 1e-9
    other = random(seed + 1, 2, 9, 14, 21)
    expected = (self_similarity(feature) - self_similarity(other)).pow(2).mean()
    torch.testing.assert_close(region_content_loss(feature, other), expected)
    assert expected > 0.01


@given(seeds)
def test_pixel_distillation_adds_a_mean_over_all_pixels_for_each_teacher(seed: int) -> None:
    student, generator = random(seed, 2, 3, 4, 4), torch.Generator().manual_seed(seed)
    wide, deep = torch.randint(3, (2, 2, 4, 4), generator=generator)
    expected = nn.functional.cross_entropy(student, wide) + nn.functional.cross_entropy(student, deep)
    torch.testing.assert_close(hard_pixel_distillation(student, wide, deep), expected)


# One training step.


def fixed_box(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    box = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    box[0, :, 4:20, 10:30] = True
    box[1, :, 16:, :12] = True
    monkeypatch.setattr(mgd, "sample_cutmix_masks", lambda count, shape: box)
    return box.squeeze(1)


@pytest.mark.parametrize("norms", ["batch", "running"])
def test_a_step_is_the_specifications(monkeypatch: pytest.MonkeyPatch, norms: str) -> None:
    box = fixed_box(monkeypatch)
    terms = step_of(method(image_weight=0.02, region_weight=7.0, teacher_norms=norms))
    learner = method()
    wide, deep = teacher(1, "micro_w4").network, teacher(2, "micro_w3").network
    for network in (wide, deep):
        network.train(norms == "batch")
    here, there = (learner.normalize(batch(seed).image) for seed in (1, 2))
    labeled, mixed = learner.normalize(batch(0).image), learner.normalize(paste(batch(1).image, batch(2).image, box))
    logits, feature = [], []
    learner.network.classifier.register_forward_hook(lambda module, args, output: feature.append(args[0]))
    wide_feature: list[Tensor] = []
    wide.classifier.register_forward_hook(lambda module, args, output: wide_feature.append(args[0]))
    for image in (labeled, mixed):
        logits.append(learner.network(image))
    with torch.no_grad():
        wide(mixed)
        deep_logits = deep(mixed)
        on_labeled = [network(labeled).argmax(1) for network in (wide, deep)]
        on_mixed = [paste(network(here).argmax(1), network(there).argmax(1), box) for network in (wide, deep)]
    expected = {
        "supervised": cross_entropy(logits[0], batch(0, True).mask),
        "pixel_labeled": sum(cross_entropy(logits[0], label) for label in on_labeled),
        "pixel_unlabeled": sum(cross_entropy(logits[1], label) for label in on_mixed),
        "image": 0.02 * image_level_l1(logits[1], deep_logits),
        "region": 7.0 * region_content_loss(feature[1], wide_feature[0]),
    }
    torch.testing.assert_close(terms, expected)
    assert all(term > 0 for term in terms.values())


def test_the_image_weight_belongs_to_two_images() -> None:
    """Twice the images give the same term, not a doubled one, where all images are alike."""
    alike = [Batch(ids=tuple("abcd"[:size]), image=batch(1, size=1).image.expand(size, -1, -1, -1)) for size in (2, 4)]
    terms = [
        method(teacher_norms="running").losses(labeled=batch(0, True), unlabeled=images, partner=images)["image"]
        for images in alike
    ]
    torch.testing.assert_close(*terms)


def test_teachers_like_the_student_leave_its_own_labels_alone_to_learn_from() -> None:
    same = teacher(3, "micro_w2")
    learner = method(earlier={"wide_teacher": same, "deep_teacher": same}, decoder_channels=12)
    learner.network.load_state_dict(same.network.state_dict())
    terms = step_of(learner)
    torch.testing.assert_close(terms["image"], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(terms["region"], torch.tensor(0.0), atol=1e-6, rtol=0)
    assert terms["pixel_unlabeled"] > 0


def test_shifts_of_a_teachers_scores_change_the_image_term_alone() -> None:
    plain = step_of(method())
    shifted = {"wide_teacher": teacher(1, "micro_w4"), "deep_teacher": teacher(2, "micro_w3")}
    for made in shifted.values():
        made.network.classifier.bias.data += 5
    terms = step_of(method(earlier=shifted))
    for name in ("supervised", "pixel_labeled", "pixel_unlabeled", "region"):
        torch.testing.assert_close(terms[name], plain[name])
    assert (terms["image"] - plain["image"]).abs() > 1e-3


def test_the_supervised_start_is_the_baseline() -> None:
    learner = method(supervised_share=0.9)
    baseline = Supervised(Supervised.Config(**SETTINGS | {"head": "concatenated"}), CLASSES)
    baseline.network.load_state_dict(learner.network.state_dict())
    torch.testing.assert_close(step_of(learner), baseline.losses(labeled=batch(0, True)))


def test_teachers_receive_no_gradient_and_are_not_optimised() -> None:
    learner = method()
    sum(step_of(learner).values()).backward()
    for network in (learner.wide, learner.deep):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in learner.network.parameters())
    held = {id(parameter) for group in learner.parameter_groups() for parameter in group["params"]}
    assert held == {id(parameter) for parameter in learner.network.parameters()}


@pytest.mark.parametrize("norms", ["batch", "running"])
def test_teachers_statistics_do_not_move(norms: str) -> None:
    learner = method(teacher_norms=norms)
    before = {name: value.clone() for name, value in learner.state_dict().items() if "running" in name}
    step_of(learner)
    after = learner.state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"network"}


def modes(network: nn.Module) -> set[bool]:
    return {part.training for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}


@pytest.mark.parametrize(("norms", "training"), [("batch", {True}), ("running", {False})])
def test_teachers_normalise_by_the_batch_or_as_they_have_learnt(norms: str, training: set[bool]) -> None:
    learner = method(teacher_norms=norms)
    assert modes(learner.wide) == modes(learner.deep) == training
    assert modes(learner.network) == {True}
    learner.eval()
    assert modes(learner) == {False}


@pytest.mark.parametrize(("norms", "rest"), [("batch", {True}), ("running", {False})])
def test_frozen_normalisations_of_backbones_are_frozen_in_teachers_too(norms: str, rest: set[bool]) -> None:
    learner = method(teacher_norms=norms, freeze_norms=True)
    for network in (learner.network, learner.wide, learner.deep):
        assert modes(network.backbone) == {False}
    assert modes(learner.network.aspp) == {True}
    assert modes(learner.wide.aspp) == modes(learner.deep.aspp) == rest


def test_only_the_student_is_kept_and_it_predicts_alone() -> None:
    learner = method().eval()
    alone = MGD(learner.config, CLASSES, training=False)
    alone.network.load_state_dict(learner.network.state_dict())
    assert not hasattr(alone, "wide") and not hasattr(alone, "deep")
    torch.testing.assert_close(alone.eval().predict(batch(0).image), learner.predict(batch(0).image))


def test_pseudo_labels_are_the_deep_teachers_where_the_wide_one_agrees() -> None:
    learner = method().eval()
    clean = learner.normalize(batch(1).image)
    label, keep = learner.pseudo_labels(batch(1).image)
    assert torch.equal(label, learner.deep(clean).argmax(1))
    assert torch.equal(keep, label == learner.wide(clean).argmax(1))


@pytest.mark.parametrize("options", [{"image_weight": -1.0}, {"region_weight": -1.0}, {"grid": 0}])
def test_numbers_that_no_training_can_have_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(options)).replace('_', '-')} "):
        MGD.Config(**options)


# The networks of the paper.


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def built(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        made = methods.load(name)
        return made(made.Config(**options | {"backbone_weights": "none"}), VOC_CLASSES, training=False).network


def teachers(**options: Any) -> list[dict[str, Any]]:
    """The options of the wide and of the deep teacher's run."""
    names, chosen = zip(*planned_runs(MGD, MGD.Config(**options)), strict=True)
    assert names == ("cps", "cps")
    return list(chosen)


def test_the_students_have_the_papers_sizes() -> None:
    resnet = built("mgd")
    assert (parameters(resnet.backbone), parameters(resnet)) == (11_195_744, 16_627_413)
    blocks = [[block.conv1, block.conv2] for block in resnet.backbone.body.layer4]
    assert [[conv.dilation[0] for conv in pair] for pair in blocks] == [[2, 2], [4, 4]]
    mobile = built("mgd", backbone="mobilenetv2_100", output_stride=32, low_channels=24)
    assert parameters(mobile.backbone) == 1_811_712
    # The specification's 7,041,133 is more than its layers have, by just a classifier of 1,000 classes.
    assert parameters(mobile) + 1280 * 1000 + 1000 == 7_041_133
    assert mobile.low[0].in_channels == mobile.low[0].out_channels == 24


def test_the_teachers_are_runs_of_cps_with_the_papers_networks() -> None:
    wide, deep = teachers()
    sizes = [(66_834_240, 83_678_389), (42_623_936, 59_468_085)]
    for options, expected in zip((wide, deep), sizes, strict=True):
        network = built("cps", **options)
        assert (parameters(network.backbone), parameters(network)) == expected
        assert [block.conv2.dilation[0] for block in network.backbone.body.layer4] == [2, 4, 8]
    assert (wide["learning_rate"], deep["learning_rate"]) == (0.004, 0.01)
    for options in (wide, deep):
        config = CPS.Config(**options)
        assert (config.cutmix, config.cross_weight, config.crop, config.epochs) == (True, 1.0, 512, 34.0)


def test_the_teachers_share_the_students_recipe_but_not_its_network() -> None:
    chosen = teachers(
        **{"backbone": "mobilenetv2_100", "output_stride": 32, "low_channels": 24, "cross_weight": 5.0, "crop": 800},
        teacher_weights="none",
        teacher_channels=64,
        supervised_share=0.3,
        ohem_pixels=50_000,
    )
    for options in chosen:
        assert (options["output_stride"], options["low_channels"], options["decoder_channels"]) == (16, 0, 64)
        assert (options["cross_weight"], options["crop"], options["ohem_pixels"]) == (5.0, 800, 50_000)
        assert (options["backbone_weights"], options["supervised_share"]) == ("none", 0.3)
        assert options["backbone"] != "mobilenetv2_100"


def test_the_decoder_feature_is_what_the_classifier_sees() -> None:
    learner = method()
    seen: list[Tensor] = []
    learner.network.classifier.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    image = learner.normalize(batch(0).image)
    learner.network.eval()
    logits, feature = mgd._logits_and_feature(learner.network, image)
    torch.testing.assert_close(seen[0], feature)
    torch.testing.assert_close(logits, learner.network(image))
