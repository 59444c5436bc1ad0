"""What all detectors share: views, classes, optimiser, scores, on a detector that learns nothing."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.detections import Detections
from labelwise.errors import UserError
from labelwise.loaders import evaluation_loader
from labelwise.method import Card, Needs
from labelwise.samples import Batch, Kind, Sample, collate
from labelwise.tasks.detection import DetectionMethod, ScaledConfig, ScaledMethod
from labelwise.tasks.instances import InstanceConfig, InstanceMethod, boxes_of_instances

CLASSES = Classes(("cup", "nothing", "key"), background=1)
CARD = Card("still", "Still", "detection", Needs(frozenset({Kind.BOXES})), frozenset({Kind.BOXES}), "", 2000, "Still.")


class Still(ScaledMethod):
    """Says what it is told to."""

    card = CARD
    answer: Detections = Detections.none()

    def build_network(self, *, pretrained: bool) -> nn.Module:
        return nn.ModuleDict({"backbone": nn.Conv2d(3, 2, 1), "head": nn.Linear(2, 2)})

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        return {}

    def detect(self, sample: Sample) -> Detections:
        return self.answer

    def propose(self, sample: Sample) -> Tensor:
        return torch.tensor([[0.0, 0.0, 8.0, 8.0]])


def method(**options: Any) -> Still:
    return Still(ScaledConfig(**{"steps": 8, "short_side": 32, "long_side": 64, **options}), CLASSES)


def boxes(*corners: tuple[float, ...], size: tuple[int, int] = (16, 24)) -> tv_tensors.BoundingBoxes:
    data = torch.tensor(corners).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(data, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)


def sample(height: int = 16, width: int = 24, **labels: Any) -> Sample:
    given: dict[str, Any] = {
        "boxes": boxes((0, 0, 8, 8), (4, 2, 20, 12), size=(height, width)),
        "box_labels": torch.tensor([0, 2]),
        "difficult": torch.tensor([False, True]),
        "tags": torch.zeros(3, dtype=torch.uint8),
    }
    image = tv_tensors.Image(torch.arange(3 * height * width).reshape(3, height, width).remainder(251).to(torch.uint8))
    return Sample(id="a", image=image, **given | labels)


def test_classes_are_counted_without_the_background() -> None:
    detector = method()
    assert detector.object_names == ("cup", "key")
    assert detector.columns(torch.tensor([2, 0, 2])).tolist() == [1, 0, 1]
    assert detector.class_numbers(torch.tensor([1, 0])).tolist() == [2, 0]
    with pytest.raises(UserError, match="labelled as background"):
        detector.columns(torch.tensor([1]))


@pytest.mark.parametrize(("use_difficult", "count"), [(False, 1), (True, 2)])
def test_views_are_scaled_and_hold_the_boxes_to_learn_alone(use_difficult: bool, count: int) -> None:
    torch.manual_seed(0)
    view = method(use_difficult=use_difficult).labeled_view(sample()).sample
    assert view.image.shape == (3, 32, 48) and view.tags is None and view.difficult is None
    assert view.boxes is not None and view.box_labels is not None
    assert len(view.boxes) == len(view.box_labels) == count
    first = view.boxes[0].tolist()
    assert first in ([0, 0, 16, 16], [32, 0, 48, 16])


def test_an_image_with_difficult_objects_alone_has_none_to_learn() -> None:
    view = method().labeled_view(sample(difficult=torch.tensor([True, True]))).sample
    assert view.boxes is not None and view.boxes.shape == (0, 4)


def test_the_long_side_is_bounded() -> None:
    assert method().labeled_view(
        sample(10, 40, boxes=boxes(size=(10, 40)), box_labels=torch.zeros(0).long(), difficult=torch.zeros(0).bool())
    ).sample.image.shape == (3, 16, 64)


def test_flipped_views_have_flipped_boxes_and_proposals() -> None:
    seen = set()
    shown = sample(proposals=boxes((0, 0, 8, 8)))
    for seed in range(8):
        torch.manual_seed(seed)
        view = method().labeled_view(shown).sample
        assert view.boxes is not None and view.proposals is not None
        assert view.boxes[0].tolist() == view.proposals[0].tolist()
        seen.add(view.boxes[0, 0].item())
    assert seen == {0.0, 32.0}


def test_an_image_without_boxes_is_refused() -> None:
    with pytest.raises(UserError, match=r"image 'a' has no boxes; --labels boxes:all"):
        method().labeled_view(sample(boxes=None))


def test_what_fills_up_a_smaller_image_is_zero_to_the_network() -> None:
    detector = method()
    views = [
        detector.labeled_view(sample(16, 24)),
        detector.labeled_view(
            sample(
                16, 16, boxes=boxes(size=(16, 16)), box_labels=torch.zeros(0).long(), difficult=torch.zeros(0).bool()
            )
        ),
    ]
    batch = collate(views)
    inputs = detector.input_of(batch)
    assert batch.sizes == [(32, 48), (32, 32)] and inputs.shape == (2, 3, 32, 48)
    assert float(inputs[1, :, :, 32:].abs().max()) == 0 and float(inputs[0, :, :, 32:].abs().max()) > 0


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    detector = method(learning_rate=0.1, head_multiplier=3.0)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in detector.parameter_groups()
        for name, parameter in detector.named_parameters()
        if any(parameter is each for each in group["params"])  # type: ignore[attr-defined]
    }
    assert found["network.backbone.weight"] == (0.1, 5e-4)
    assert found["network.backbone.bias"] == (0.2, 0.0)
    assert found["network.head.weight"] == (pytest.approx(0.3), 5e-4)
    assert found["network.head.bias"] == (pytest.approx(0.6), 0.0)


def test_the_rate_falls_once() -> None:
    detector = method()
    detector.total_steps = 8
    assert [detector.rate_factor(step) for step in range(8)] == [1.0] * 6 + [0.1] * 2
    constant = method(rate_drop=1.0)
    constant.total_steps = 8
    assert {constant.rate_factor(step) for step in range(8)} == {1.0}


def test_predictions_of_a_batch_are_those_of_its_images() -> None:
    found = method().predict(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert len(found) == 2 and all(len(each) == 0 for each in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 8}, "--short-side 8"),
        ({"long_side": 32}, "--long-side 32"),
        ({"nms_threshold": 1.5}, "--nms-threshold 1.5"),
        ({"max_detections": 0}, "--max-detections 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**options)


class Folder:
    """As much of a data set as an evaluation reads."""

    def read(self, id: str, kinds: Any = ()) -> Sample:
        return sample()


def validated(detector: DetectionMethod, dataset: Any) -> dict[str, Any]:
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, inference_mode=False
    )
    trainer.validate(detector, evaluation_loader(dataset, ["a", "b"], detector.card.gives), verbose=False)
    return detector.results


def test_difficult_objects_neither_count_nor_cost() -> None:
    detector = method()
    detector.thorough = True
    detector.answer = Detections(
        boxes=torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 2.0, 20.0, 12.0]]),
        labels=torch.tensor([0, 2]),
        scores=torch.tensor([0.4, 0.9]),
    )
    results = validated(detector, Folder())
    assert results["map"] == pytest.approx(100.0) and results["ap"] == {"cup": pytest.approx(100.0), "key": None}
    assert results["images"] == 2 and results["proposals"]["recall"]["0.5"]["1"] == pytest.approx(100.0)


class Shapely(InstanceMethod):
    """Finds the shape that it is told."""

    card = CARD
    answer: Detections = Detections.none()

    def build_network(self, *, pretrained: bool) -> nn.Module:
        return nn.Linear(1, 1)

    def losses(self, labeled: Batch) -> dict[str, Tensor]:
        return {}

    def detect(self, sample: Sample) -> Detections:
        return self.answer


class ShapeFolder:
    """Images with one shape, a part of which nobody knows."""

    def read(self, id: str, kinds: Any = ()) -> Sample:
        instances = torch.zeros(1, 16, 24, dtype=torch.bool)
        instances[0, 2:10, 4:12] = True
        mask = torch.ones(16, 24, dtype=torch.uint8)
        mask[2:10, 4:12] = 2
        mask[2:10, 12:20] = 255
        return Sample(
            id=id,
            image=tv_tensors.Image(torch.zeros(3, 16, 24, dtype=torch.uint8)),
            instances=tv_tensors.Mask(instances),
            instance_labels=torch.tensor([2]),
            mask=tv_tensors.Mask(mask),
        )


def test_shapes_are_scored_without_the_pixels_that_nobody_knows() -> None:
    detector = Shapely(InstanceConfig(steps=1), CLASSES)
    masks = torch.zeros(1, 16, 24, dtype=torch.bool)
    # Twice as wide as the truth, but the other half is unknown.
    masks[0, 2:10, 4:20] = True
    detector.answer = Detections(
        boxes=boxes_of_instances(masks), labels=torch.tensor([2]), scores=torch.tensor([0.5]), masks=masks
    )
    detector.thorough = True
    results = validated(detector, ShapeFolder())
    assert results["map"] == pytest.approx(100.0)
    assert set(results["map_r"]) == {"sds", "mnc", "ese_seg"}
    assert results["boxes"]["map"] == pytest.approx(100.0)  # an overlap of exactly a half


def test_boxes_around_shapes_are_half_open() -> None:
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:7] = True
    masks[1, 5, 0] = True
    assert boxes_of_instances(masks).tolist() == [[2, 1, 7, 3], [0, 5, 1, 6]]
    assert boxes_of_instances(masks[:0]).shape == (0, 4)
