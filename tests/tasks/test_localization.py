"""What every method promises that learns score maps from tags."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.methods.tags.cam import Cam
from labelwise.samples import Batch, Sample
from labelwise.tasks.localization import FRAME, LocalizationConfig, LocalizationMethod

CLASSES = Classes(("background", "red", "green", "blue"))
NO_TAGS = torch.zeros(0, dtype=torch.int64)


class Colors(LocalizationMethod):
    """Maps are the colors of the image, logits their means."""

    def build_network(self, *, pretrained: bool) -> nn.Module:
        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

            def maps(self, x: Tensor) -> Tensor:
                return (x * self.weight).clamp(min=0)

            def forward(self, x: Tensor) -> Tensor:
                return (x * self.weight).mean((2, 3))

        return Network()


def colors(**options: Any) -> Colors:
    method = Colors(LocalizationConfig(**{"crop": 16, "map_scales": (1.0,), "output_stride": 1, **options}), CLASSES)
    return method.eval()  # type: ignore[return-value]


def scene(*boxes: tuple[int, int, int, int, int], height: int = 32, width: int = 40) -> Batch:
    """One black image with a box (x1, y1, x2, y2, class) in the color of each class."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    mask = torch.zeros(height, width, dtype=torch.uint8)
    for x1, y1, x2, y2, label in boxes:
        image[label - 1, y1:y2, x1:x2] = 255
        mask[y1:y2, x1:x2] = label
    tags = torch.zeros(4, dtype=torch.uint8)
    tags[[box[4] for box in boxes]] = 1
    corners = torch.tensor([box[:4] for box in boxes], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([box[4] for box in boxes])
    return Batch(ids=("a",), image=image[None], mask=mask[None], tags=tags[None], boxes=[corners], box_labels=[labels])


def scored(method: LocalizationMethod, *batches: Batch) -> dict[str, Any]:
    method.log = lambda *arguments, **options: None  # type: ignore[method-assign, assignment]
    for number, batch in enumerate(batches):
        method.validation_step(batch, number)
    method.on_validation_epoch_end()
    return method.results


def test_a_data_set_without_background_is_refused() -> None:
    with pytest.raises(UserError, match="needs a background"):
        Colors(LocalizationConfig(), Classes(("sky", "road"), background=None))


def test_maps_are_those_of_the_classes_asked_for() -> None:
    batch = scene((4, 6, 20, 22, 3), (24, 2, 36, 14, 1))
    maps = colors().localize(batch.image[0], torch.tensor([3, 1]))
    assert maps.labels.tolist() == [3, 1]
    assert maps.fine.shape == (2, 32, 40) and maps.coarse.shape == (2, 8, 10)
    assert maps.fine[0, 14, 12] > 0.99 and maps.fine[1, 14, 12] == 0
    assert maps.fine[1, 8, 30] > 0.99 and maps.fine[0, 8, 30] == 0


def test_perfect_maps_have_perfect_scores() -> None:
    results = scored(colors(), scene((4, 6, 28, 26, 3)), scene((8, 8, 36, 30, 1), (0, 0, 6, 6, 2)))
    assert results["map"] == pytest.approx(100)
    assert results["seed_miou"] > 99
    assert results["gt_known"] == 100 and results["max_box_acc_v2"] == 100 and results["top1_localization"] == 100
    assert results["pxap"] > 97
    # The image of two objects is none of localisation.
    assert results["localized_images"] == 1 and results["images"] == 2


def test_scores_without_truth_are_not_told() -> None:
    batch = scene((4, 6, 28, 26, 3))
    results = scored(colors(), replace(batch, mask=None, boxes=None))
    assert "map" in results and not {"seed_miou", "gt_known", "pxap"} & set(results)
    results = scored(colors(), replace(batch, mask=None))
    assert "gt_known" in results and not {"seed_miou", "pxap"} & set(results)
    results = scored(colors(), replace(batch, boxes=None))
    assert {"seed_miou", "pxap"} <= set(results) and "gt_known" not in results


def test_an_image_without_tags_is_background() -> None:
    assert scored(colors(), scene((4, 6, 28, 26, 3)), scene())["seed_miou"] > 99


def test_difficult_objects_are_learned_and_do_not_count_as_tags() -> None:
    batch = scene((4, 6, 28, 26, 3))
    assert batch.tags is not None
    batch.tags[0, 2] = 255
    assert colors().tags_of(batch).tolist() == [[0, 1, 1]]
    assert scored(colors(), batch)["ap"]["green"] is None


def test_a_framed_map_covers_the_whole_image_from_0_to_1() -> None:
    batch = scene((0, 0, 20, 32, 3))
    maps = colors().localize(batch.image[0], torch.tensor([3]))
    framed = colors().framed_map(batch.image[0], maps)
    assert framed.shape == (FRAME, FRAME) and float(framed.min()) == 0 and float(framed.max()) > 0.99
    assert (framed > 0.5).float().mean() == pytest.approx(0.5, abs=0.02)
    boxes = colors().framed_boxes(torch.tensor([[0.0, 0.0, 20.0, 32.0]]), (32, 40))
    assert boxes.tolist() == [[0, 0, 112, 224]]


def test_unknown_tags_are_the_likely_ones_and_at_least_one() -> None:
    method = colors()
    assert method.tags(torch.tensor([0.9, 0.2, 0.6])).tolist() == [1, 3]
    assert method.tags(torch.tensor([0.1, 0.3, 0.2])).tolist() == [2]


def test_views_hold_tags_and_no_stronger_label() -> None:
    batch = scene((4, 6, 28, 26, 3))
    assert batch.mask is not None
    sample = Sample(id="a", image=tv_tensors.Image(batch.image[0]), mask=tv_tensors.Mask(batch.mask[0]))
    views = colors(resize_range=(8, 24)).tagged_view(sample)
    assert views.sample.mask is None and views.sample.image.shape == (3, 16, 16)
    assert views.sample.tags is not None and views.sample.tags.tolist() == [0, 0, 0, 1]


def cam(**options: Any) -> Cam:
    return Cam(Cam.Config(backbone="resnet18", backbone_weights="none", crop=32, **options), CLASSES)


def test_frozen_layers_are_not_trained() -> None:
    method = cam(frozen_layers=("conv1", "bn1", "layer1"))
    frozen = {name for name, parameter in method.network.named_parameters() if not parameter.requires_grad}
    assert frozen and all(
        name.startswith(tuple(f"backbone.body.{part}." for part in ("conv1", "bn1", "layer1"))) for name in frozen
    )
    trained = sum(len(group["params"]) for group in method.parameter_groups())  # type: ignore[arg-type]
    assert trained == len(list(method.network.parameters())) - len(frozen)
    with pytest.raises(UserError, match="--frozen-layers layer9: the backbone has no such layer"):
        cam(frozen_layers=("layer9",))


def test_the_default_momentum_is_none() -> None:
    optimizer = cam().make_optimizer(cam().parameter_groups())
    assert {group["momentum"] for group in optimizer.param_groups} == {0.0}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"resize_range": (64, 32)}, "--resize-range 64 32"),
        ({"map_scales": ()}, "--map-scales"),
        ({"background": 1.5}, "--background"),
        ({"crop": 4}, "--crop"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        LocalizationConfig(**options)
