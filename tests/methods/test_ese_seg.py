"""What ESE-Seg promises: shapes are encoded as they are seen, decoded at the image's own size, and runs resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise import methods
from labelwise.configuration import load_preset, make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.methods.instances.ese_seg import SBD_OFFSET, ESESeg, Shapes, center_targets, shape_loss
from labelwise.models.yolo_v3 import Predictions, YoloV3, yolo_targets
from labelwise.samples import Batch, Kind, Sample, collate
from labelwise.verbs.train import train
from tests.tiny_runs import MACHINE, cut, outcome

CLASSES = Classes(("background", "cat", "dog", "cow"))
TINY: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_weights": "none",
    "head_channels": 16,
    "short_side": 64,
    "train_sizes": (48, 64),
    "resize_every": 2,
    "batch_size": 2,
    "steps": 6,
}


def method(**options: Any) -> ESESeg:
    torch.manual_seed(0)
    return ESESeg(ESESeg.Config(**{**TINY, **options}), CLASSES)


def ellipse(height: int, width: int, x: float, y: float, a: float, b: float) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1


def sample(*shapes: Tensor, height: int = 60, width: int = 90) -> Sample:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(100, (3, height, width), generator=generator, dtype=torch.uint8)
    masks = torch.stack(shapes) if shapes else torch.zeros(0, height, width, dtype=torch.bool)
    for mask in masks:
        image[0, mask] += 150
    return Sample(
        id="a",
        image=tv_tensors.Image(image),
        instances=tv_tensors.Mask(masks),
        instance_labels=torch.tensor([1 + number % 3 for number in range(len(masks))], dtype=torch.int64),
    )


def two_objects() -> Sample:
    return sample(ellipse(60, 90, 25, 30, 15, 22), ellipse(60, 90, 65, 28, 20, 12))


def batch_of(ese_seg: ESESeg, *samples: Sample) -> Batch:
    torch.manual_seed(0)
    return collate([ese_seg.labeled_view(each) for each in samples])


# ------------------------------------------------------------------- targets


def test_shapes_are_encoded_after_the_image_was_stretched() -> None:
    ese_seg = method(expand=0.0, train_sizes=(128,))
    # On the image a circle, in the square an upright ellipse of 80 x 36 times a factor.
    circle = sample(ellipse(60, 90, 40, 30, 20, 20))
    shapes = ese_seg.shapes_of(batch_of(ese_seg, circle), 128)
    width, height = (shapes.boxes[0, 2:] - shapes.boxes[0, :2]).tolist()
    assert width == pytest.approx(40 * 128 / 90, abs=2)
    assert height == pytest.approx(40 * 128 / 60, abs=2)
    codec = ese_seg.network.codec
    outline = codec.decode(codec.standardized(shapes.coefficients), shapes.centers, shapes.boxes)[0]
    reach = outline - shapes.centers[0]
    assert float(reach[0, 0]) == pytest.approx(width / 2, rel=0.1)
    assert float(reach[90, 1]) == pytest.approx(height / 2, rel=0.1)


def test_a_flipped_view_has_flipped_shapes() -> None:
    ese_seg = method(expand=0.0, color_jitter=False, basis="polar", coefficient_scale="measured", coefficients=36)
    corner = torch.zeros(60, 90, dtype=torch.bool)
    corner[10:50, 10:30] = True
    corner[40:50, 10:70] = True
    found = {}
    for seed in range(8):
        torch.manual_seed(seed)
        shapes = ese_seg.shapes_of(collate([ese_seg.labeled_view(sample(corner))]), 64)
        found[bool(shapes.boxes[0, 0] > 10)] = shapes
    plain, flipped = found[False], found[True]
    assert torch.equal(flipped.boxes[0, [0, 2]], 64 - plain.boxes[0, [2, 0]])
    torch.testing.assert_close(flipped.centers[0, 0], 64 - plain.centers[0, 0])
    mirrored = (18 - torch.arange(36)) % 36
    torch.testing.assert_close(flipped.coefficients[0], plain.coefficients[0, mirrored], atol=1e-5, rtol=1e-5)


def test_the_inputs_size_scales_places_and_leaves_coefficients_alone() -> None:
    ese_seg = method()
    batch = batch_of(ese_seg, two_objects(), two_objects())
    large, small = ese_seg.shapes_of(batch, 64), ese_seg.shapes_of(batch, 48)
    assert torch.equal(large.coefficients, small.coefficients)
    torch.testing.assert_close(small.boxes, large.boxes * 0.75)
    torch.testing.assert_close(small.centers, large.centers * 0.75)
    assert large.images.tolist() == [0, 0, 1, 1]
    assert large.labels.tolist() == [0, 1, 0, 1]


def test_the_size_of_a_step_follows_from_its_number() -> None:
    ese_seg = method(train_sizes=(32, 48, 64, 80), resize_every=10)

    class At(ESESeg):
        step = 0
        global_step = property(lambda self: self.step)

    ese_seg.__class__ = At
    sides = []
    for step in range(200):
        At.step = step
        sides.append(ese_seg.side_of_step())
    assert all(len(set(sides[start : start + 10])) == 1 for start in range(0, 200, 10))
    assert set(sides) == {32, 48, 64, 80}


def test_views_have_the_largest_size_and_only_what_is_learned() -> None:
    views = method().labeled_view(replace(two_objects(), tags=torch.ones(4, dtype=torch.uint8)))
    view = views.sample
    assert view.image.shape == (3, 64, 64)
    assert view.image.dtype == torch.uint8
    assert view.tags is None
    assert view.instances is None
    assert {name: tuple(value.shape) for name, value in views.targets.items()} == {
        "boxes": (2, 4),
        "labels": (2,),
        "centers": (2, 2),
        "coefficients": (2, 18),
    }


# -------------------------------------------------------------------- losses


def one_shape() -> tuple[Predictions, Shapes, Any, Any]:
    ese_seg = method()
    shapes = ese_seg.shapes_of(batch_of(ese_seg, sample(ellipse(60, 90, 40, 30, 20, 25))), 64)
    grids = ese_seg.network.yolo.grids((64, 64))
    targets = yolo_targets(shapes.boxes, shapes.images, grids)
    count = len(grids.corners)
    offsets, centers, coefficients, classes = (torch.zeros(1, count, size) for size in (4, 2, 18, 3))
    return Predictions(offsets, centers, coefficients, torch.zeros(1, count), classes), shapes, grids, targets


@pytest.mark.parametrize("power", [1, 2])
def test_the_shape_terms_are_weighted_sums_of_differences(power: int) -> None:
    predictions, shapes, grids, targets = one_shape()
    terms = shape_loss(predictions, shapes, shapes.coefficients, targets, grids, power)
    width, height = (shapes.boxes[0, 2:] - shapes.boxes[0, :2]).tolist()
    weight = 2 - width * height / 64**2
    expected = weight * float((shapes.coefficients.abs() ** power).sum())
    assert float(terms["coefficients"]) == pytest.approx(expected, rel=1e-5)
    anchor = grids.sizes[targets.predictors[0]].tolist()
    away = (shapes.centers[0] - shapes.boxes[0, :2]).tolist()
    logarithms = [math.log(one / other) for one, other in zip(away, anchor, strict=True)]
    assert float(terms["center"]) == pytest.approx(weight * sum(abs(each) ** power for each in logarithms), rel=1e-4)


def test_a_center_at_the_corner_is_a_pixel_away() -> None:
    shapes = Shapes(
        images=torch.tensor([0]),
        boxes=torch.tensor([[10.0, 10.0, 11.0, 11.0]]),
        labels=torch.tensor([0]),
        centers=torch.tensor([[10.5, 10.5]]),
        coefficients=torch.zeros(1, 18),
    )
    torch.testing.assert_close(center_targets(shapes, torch.tensor([[2.0, 4.0]])), -torch.tensor([[2.0, 4.0]]).log())


def test_without_weight_of_shapes_the_terms_are_those_of_yolo() -> None:
    ese_seg = method(shape_weight=0.0)
    batch = batch_of(ese_seg, two_objects())
    assert set(ese_seg.losses(batch)) == {"objectness", "place", "size", "class"}
    assert set(method().losses(batch)) == {"objectness", "place", "size", "class", "center", "coefficients"}
    doubled = method(shape_weight=2.0).losses(batch)["coefficients"]
    torch.testing.assert_close(doubled, 2 * method().losses(batch)["coefficients"])


def broken() -> Tensor:
    mask = ellipse(60, 90, 40, 30, 30, 20)
    mask[:, 36:44] = False
    return mask


def one_pixel() -> Tensor:
    mask = torch.zeros(60, 90, dtype=torch.bool)
    mask[30, 45] = True
    return mask


@pytest.mark.parametrize("shapes", [(), (one_pixel(),), (broken(),)], ids=["no object", "one pixel", "broken"])
@pytest.mark.parametrize("train_sizes", [(64,), (128,)])
def test_odd_images_can_be_learned(shapes: tuple[Tensor, ...], train_sizes: tuple[int, ...]) -> None:
    ese_seg = method(train_sizes=train_sizes)
    batch = batch_of(ese_seg, sample(*shapes), two_objects())
    terms = ese_seg.losses(batch)
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    gradients = [parameter.grad for parameter in ese_seg.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_batch_without_any_object_teaches_silence() -> None:
    ese_seg = method()
    terms = ese_seg.losses(batch_of(ese_seg, sample(), sample()))
    assert float(terms["objectness"].detach()) > 0
    assert all(float(term.detach()) == 0 for name, term in terms.items() if name != "objectness")


def test_an_image_without_instances_is_refused() -> None:
    with pytest.raises(UserError, match=r"image 'a' has no instances; --labels instances:all"):
        method().labeled_view(replace(two_objects(), instances=None))


def test_a_few_steps_on_one_batch_lower_every_term() -> None:
    ese_seg = method(optimizer="adamw", learning_rate=0.01, train_sizes=(), warm_up=0.0)
    batch = batch_of(ese_seg, two_objects())
    optimizer = ese_seg.make_optimizer(ese_seg.parameter_groups())
    seen = []
    for _ in range(30):
        terms = ese_seg.losses(batch)
        seen.append({name: float(term.detach()) for name, term in terms.items()})
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert all(seen[-1][name] < 0.9 * seen[0][name] for name in seen[0]), (seen[0], seen[-1])


# ---------------------------------------------------------------- statistics


def test_coefficients_are_measured_before_the_training(tmp_path: Path) -> None:
    ese_seg = method(coefficient_scale="measured", basis="monomial")
    samples = [sample(ellipse(60, 90, 40, 30, 12 + size, 22 - size)) for size in range(6)]
    ese_seg.prepare(samples, tmp_path)
    codec = ese_seg.network.codec
    once = codec.mean.clone(), codec.spread.clone()
    assert float(once[1].max()) > 10 * float(once[1].min())
    ese_seg.prepare(samples, tmp_path)
    assert torch.equal(codec.mean, once[0])
    assert torch.equal(codec.spread, once[1])
    with pytest.raises(UserError, match="too few objects"):
        ese_seg.prepare(samples[:1], tmp_path)


def test_on_sbd_nothing_is_measured(tmp_path: Path) -> None:
    ese_seg = method()
    ese_seg.prepare([], tmp_path)
    codec = ese_seg.network.codec
    assert codec.mean.tolist() == pytest.approx([SBD_OFFSET] + [0] * 17)
    assert bool((codec.spread == 1).all())


# ---------------------------------------------------------------- prediction


class Oracle(YoloV3):
    """Says what it was given."""

    answer: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [1, P, V]."""
        return self.answer


def taught(ese_seg: ESESeg, shown: Sample) -> ESESeg:
    """A network that says exactly what it should learn of an image."""
    shapes = ese_seg.shapes_of(collate([ese_seg.labeled_view(shown)]), 64)
    yolo, codec = ese_seg.network.yolo, ese_seg.network.codec
    grids = yolo.grids((64, 64))
    targets = yolo_targets(shapes.boxes, shapes.images, grids)
    boxes, sizes = shapes.boxes[targets.objects], grids.sizes[targets.predictors]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 / grids.strides[targets.predictors, None]
    answer = torch.zeros(1, len(grids.corners), sum(yolo.parts))
    answer[..., 24] = -20.0
    classes = torch.full((len(boxes), 3), -20.0)
    classes[torch.arange(len(boxes)), shapes.labels[targets.objects]] = 20.0
    said = [
        (middle - grids.corners[targets.predictors]).logit(eps=1e-6),
        ((boxes[:, 2:] - boxes[:, :2]) / sizes).log(),
        center_targets(shapes, torch.ones(2))[targets.objects] - sizes.log(),
        codec.standardized(shapes.coefficients)[targets.objects],
        torch.full((len(boxes), 1), 20.0),
        classes,
    ]
    answer[0, targets.predictors] = torch.cat(said, dim=1)
    yolo.__class__ = Oracle
    yolo.answer = answer
    return ese_seg.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"coefficients": 18, "center_rule": "code"}, {"basis": "monomial", "coefficient_scale": "measured"}],
    ids=["chebyshev", "center of the code", "monomial"],
)
def test_what_is_learned_leads_back_to_the_shapes_at_the_images_own_size(options: dict[str, Any]) -> None:
    shown = two_objects()
    ese_seg = method(train_sizes=(), expand=0.0, color_jitter=False, **options)
    ese_seg.geometric = lambda: ese_seg.resize()  # type: ignore[method-assign]
    found = taught(ese_seg, shown).detect(Sample(id="a", image=shown.image))
    found = found[found.labels.argsort()]
    assert found.labels.tolist() == [1, 2]
    assert found.masks is not None
    assert found.masks.shape == (2, 60, 90)
    assert found.masks.dtype == torch.bool
    assert shown.instances is not None
    for mask, truth in zip(found.masks, shown.instances.bool(), strict=True):
        assert float((mask & truth).sum() / (mask | truth).sum()) > 0.93
    torch.testing.assert_close(found.boxes[0], torch.tensor([10.0, 8.0, 40.0, 52.0]), atol=1.5, rtol=0)


def test_boxes_and_masks_stay_in_the_image() -> None:
    ese_seg = method(score_threshold=0.0).eval()
    with torch.no_grad():
        found = ese_seg.detect(sample(height=37, width=51))
    assert 0 < len(found) <= 100
    assert bool((found.boxes >= 0).all())
    assert bool((found.boxes <= torch.tensor([51, 37, 51, 37])).all())
    assert found.masks is not None
    assert found.masks.shape == (len(found), 37, 51)
    assert set(found.labels.tolist()) <= {1, 2, 3}
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_nothing_found_is_no_masks_of_the_images_size() -> None:
    with torch.no_grad():
        found = method(score_threshold=1.0).eval().detect(two_objects())
    assert len(found) == 0
    assert found.masks is not None
    assert found.masks.shape == (0, 60, 90)


# ------------------------------------------------------------------- options


def test_the_defaults_are_those_of_the_released_code() -> None:
    default = ESESeg.Config()
    assert (default.coefficients, default.basis, default.shape_loss) == (18, "chebyshev", "l1")
    assert (default.score_threshold, default.nms_threshold, default.max_detections) == (0.01, 0.45, 100)
    assert default.sides == tuple(range(320, 609, 32))
    assert make_config(ESESeg, load_preset(ESESeg, "paper"), {}) == replace(default, backbone_weights="imagenet")


def test_the_learning_rate_rises_and_falls_twice() -> None:
    ese_seg = method()
    ese_seg.total_steps = 200
    factors = [ese_seg.rate_factor(step) for step in range(200)]
    assert factors[:10] == sorted(factors[:10])
    assert 0 < factors[0] < 0.2
    assert factors[10:160] == [1.0] * 150
    assert factors[160:180] == pytest.approx([0.1] * 20)
    assert factors[180:] == pytest.approx([0.01] * 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"short_side": 60}, "60 is no multiple of 16"),
        ({"train_sizes": (64, 70)}, "70 is no multiple of 16"),
        ({"anchors": (10.0, 20.0, 30.0)}, "--anchors"),
        ({"anchors": (10.0, -20.0)}, "--anchors"),
        ({"coefficients": 0}, "--coefficients 0: must be at least 1"),
        ({"coefficients": 91}, "--coefficients 91: must be at most 90"),
        ({"basis": "monomial"}, "--coefficient-scale measured"),
        ({"expand": 1.5}, "--expand"),
        ({"backbone": "darknet_tiny", "short_side": 64, "train_sizes": (64,), "anchors": (8.0, 8.0)}, "--anchors: 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        method(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("coefficients", [20, 18, 10, 8])
def test_the_papers_numbers_of_coefficients_can_be_had(coefficients: int) -> None:
    ese_seg = method(coefficients=coefficients)
    assert sum(ese_seg.network.yolo.parts) == 4 + 2 + coefficients + 1 + 3
    assert "coefficients" in ese_seg.losses(batch_of(ese_seg, two_objects()))


def test_it_says_what_it_needs_and_gives() -> None:
    card = methods.load("ese_seg").card
    assert card.needs.labels == {Kind.INSTANCES}
    assert card.gives == {Kind.INSTANCES, Kind.MASKS}


# ---------------------------------------------------------------------- runs


def run(data: Path, out: Path, **options: Any) -> Path:
    hardware = Hardware(**MACHINE | {"checkpoint_every": 1})
    train("ese_seg", data=data, out=out, hardware=hardware, **{**TINY, **options})
    return out


def test_a_run_cut_at_several_steps_ends_like_an_uninterrupted_one(shapes_folder: Path, tmp_path: Path) -> None:
    options = {"coefficient_scale": "measured"}
    for step in (1, 4):
        with cut(step):
            run(shapes_folder, tmp_path / "cut", **options)
    run(shapes_folder, tmp_path / "cut", **options)
    run(shapes_folder, tmp_path / "whole", **options)
    weights, results, _ = outcome(tmp_path / "cut")
    assert (weights, results) == outcome(tmp_path / "whole")[:2]
    assert {"map", "ap", "boxes"} <= set(results)
