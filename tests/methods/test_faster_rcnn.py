"""What Faster R-CNN promises: which part learns what in which step, boxes in the right pixels, padding without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise.configuration import load_preset, make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.methods.boxes.fast_rcnn import FastRCNN
from labelwise.methods.boxes.faster_rcnn import JOINT, FasterRCNN, alternating_schedule
from labelwise.models.region_proposals import RegionProposalNetwork
from labelwise.samples import Batch, Sample
from labelwise.verbs.stages import planned_runs
from labelwise.verbs.train import train
from tests.tiny_runs import MACHINE, cut, outcome

CLASSES = Classes(("background", "cat", "dog"))
TINY: dict[str, Any] = {
    "backbone": "micro_w2",
    "backbone_weights": "none",
    "output_stride": 4,
    "frozen_stages": 0,
    "freeze_norms": False,
    "short_side": 32,
    "long_side": 64,
    "anchor_sizes": (8, 16),
    "rpn_channels": 8,
    "min_side": 2,
    "train_before_nms": 100,
    "train_proposals": 40,
    "before_nms": 100,
    "max_proposals": 20,
    "rois_per_image": 16,
    "roi_size": 3,
    "head_width": 16,
    "steps": 4,
}
PYRAMID = {"backbone": "tiny", "output_stride": 16, "pyramid": True, "anchor_sizes": (8, 16, 32, 48)}


def method(earlier: FasterRCNN | None = None, seed: int = 0, **options: Any) -> FasterRCNN:
    torch.manual_seed(seed)
    before = {"start": earlier} if earlier else None
    return FasterRCNN(FasterRCNN.Config(**TINY | options), CLASSES, earlier=before)


def step(number: int, earlier: FasterRCNN | None = None, **options: Any) -> FasterRCNN:
    chosen = {"training": "alternating", "alternating_step": number, **options}
    return method(earlier, seed=number, **chosen)


def labeled(*boxes: Tensor, size: tuple[int, int] = (32, 48)) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        ids=tuple("abc"[: len(boxes)]),
        image=torch.randint(256, (len(boxes), 3, *size), generator=generator, dtype=torch.uint8),
        boxes=list(boxes),
        box_labels=[torch.arange(len(each)) % 2 + 1 for each in boxes],
    )


def two_images() -> Batch:
    return labeled(torch.tensor([[4.0, 4, 20, 16]]), torch.tensor([[8.0, 8, 16, 24], [20, 4, 44, 30]]))


def sample(size: tuple[int, int]) -> Sample:
    generator = torch.Generator().manual_seed(1)
    return Sample(
        id="a", image=tv_tensors.Image(torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8))
    )


def learning(faster: FasterRCNN) -> set[str]:
    """The parts of the network that a step's losses move."""
    torch.stack(list(faster.losses(two_images()).values())).sum().backward()
    found = set()
    for name, part in faster.network.named_children():
        if any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in part.parameters()):
            found.add(name)
    return found


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def on_meta(**options: Any) -> int:
    with torch.device("meta"):
        network = FasterRCNN(FasterRCNN.Config(**options), Classes(tuple(map(str, range(21)))), training=False).network
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_network_with_vgg16_has_as_many_parameters_as_the_papers() -> None:
    assert on_meta() == 137_078_239


def test_a_pyramid_has_one_head_and_one_proposer_for_all_maps() -> None:
    faster = method(**PYRAMID)
    assert faster.network.strides == (4, 8, 16, 32)
    proposers = [module for module in faster.network.modules() if isinstance(module, RegionProposalNetwork)]
    assert len(proposers) == 1 and proposers[0].anchors == 3
    counts = [len(each) for each in faster.network(torch.zeros(1, 3, 32, 64)).anchors]
    assert counts == [3 * 8 * 16, 3 * 4 * 8, 3 * 2 * 4, 3 * 1 * 2]


@pytest.mark.parametrize("options", [{}, PYRAMID])
def test_joint_training_moves_every_part(options: dict[str, Any]) -> None:
    faster = method(**options)
    expected = {"backbone", "rpn", "head"} | ({"pyramid"} if options else set())
    assert learning(faster) == expected
    assert set(faster.losses(two_images())) == {"rpn_scores", "rpn_offsets", "classification", "boxes"}


def test_the_four_steps_are_those_of_the_paper() -> None:
    first, second, third, fourth = alternating_schedule()
    convolutions = {"backbone", "pyramid"}
    # Both start from ImageNet; the second shares nothing with the proposer whose boxes it is given.
    assert not first.taken_over and not second.taken_over
    assert (first.losses, second.losses, third.losses, fourth.losses) == (("rpn",), ("head",), ("rpn",), ("head",))
    assert convolutions <= set(first.trained) and convolutions <= set(second.trained)
    assert [each.proposals for each in (first, second, third, fourth)] == ["own", "before", "own", "own"]
    # From the third on the convolutions are the detector's and stay as they are.
    assert third.trained == ("rpn",) and set(third.taken_over) == convolutions | {"head"}
    assert fourth.trained == ("head",) and set(fourth.taken_over) == convolutions | {"rpn", "head"}
    assert set(JOINT.trained) == convolutions | {"rpn", "head"}


def test_alternating_training_is_four_runs_and_a_proposers_have_twice_the_steps_of_half_the_images() -> None:
    config = FasterRCNN.Config(**TINY, training="alternating")
    chain = [config]
    while planned := planned_runs(FasterRCNN, chain[-1]):
        ((name, options),) = planned
        assert name == "faster_rcnn"
        chain.append(FasterRCNN.Config(**options))
    assert [each.alternating_step for each in chain] == [4, 3, 2, 1]
    assert [each.total_steps(100) for each in chain] == [4, 8, 4, 8]
    assert [each.plan.share for each in chain] == [1, 0.5, 1, 0.5]
    assert step(1).streams()["labeled"].share == 0.5
    by_epochs = FasterRCNN.Config(**TINY | {"steps": 0, "epochs": 3, "training": "alternating", "alternating_step": 1})
    assert by_epochs.total_steps(100) == 300


def test_joint_training_is_one_run() -> None:
    assert planned_runs(FasterRCNN, FasterRCNN.Config(**TINY)) == []


def test_each_step_learns_its_part_from_what_the_one_before_left() -> None:
    first = step(1)
    assert learning(first) == {"backbone", "rpn"}

    second = step(2, first)
    assert second.network.proposer is not None
    assert same(second.network.proposer.backbone, first.network.backbone)
    assert same(second.network.proposer.rpn, first.network.rpn)
    assert not same(second.network.backbone, first.network.backbone)
    assert learning(second) == {"backbone", "head"}

    third = step(3, second)
    assert same(third.network.backbone, second.network.backbone) and same(third.network.head, second.network.head)
    assert not same(third.network.rpn, first.network.rpn)
    assert learning(third) == {"rpn"}

    fourth = step(4, third)
    assert fourth.network.proposer is None
    assert all(same(getattr(fourth.network, name), getattr(third.network, name)) for name in ("backbone", "rpn"))
    assert learning(fourth) == {"head"}


def test_frozen_parts_stay_in_evaluation_and_keep_their_statistics() -> None:
    fourth = step(4, step(3, step(2, step(1))))
    fourth.train()
    before = {name: value.clone() for name, value in fourth.network.backbone.state_dict().items()}
    fourth.losses(two_images())
    assert fourth.network.head.training and not fourth.network.backbone.training and not fourth.network.rpn.training
    assert all(torch.equal(before[name], value) for name, value in fourth.network.backbone.state_dict().items())


def test_the_second_step_detects_on_the_proposals_of_the_first() -> None:
    first = step(1)
    second = step(2, first)
    image = sample((32, 48))
    for faster in (first, second):
        faster.eval()
    with torch.no_grad():
        torch.testing.assert_close(second.propose(image), first.propose(image))


def test_a_step_refuses_a_run_that_is_not_the_one_before() -> None:
    first = step(1)
    for earlier, options in ((first, {"alternating_step": 3}), (first, {"anchor_sizes": (8, 32)}), (method(), {})):
        chosen = {"training": "alternating", "alternating_step": 2, **options}
        with pytest.raises(UserError, match="--start previous: is no step"):
            method(earlier, **chosen)


@pytest.mark.parametrize("options", [{}, PYRAMID])
def test_an_image_without_objects_teaches_background_alone(options: dict[str, Any]) -> None:
    faster = method(**options)
    terms = faster.losses(labeled(torch.zeros(0, 4)))
    torch.stack(list(terms.values())).sum().backward()
    assert float(terms["rpn_offsets"].detach()) == 0 == float(terms["boxes"].detach())
    assert float(terms["rpn_scores"].detach()) > 0 < float(terms["classification"].detach())
    assert not bool(faster.network.head.offsets.weight.grad.any())  # type: ignore[union-attr]


def test_padding_never_proposes() -> None:
    faster = method(min_side=1)
    batch = two_images()
    batch.padding = torch.zeros(2, 32, 48, dtype=torch.bool)
    batch.padding[0, 20:], batch.padding[0, :, 24:] = True, True
    scored = faster.network(faster.input_of(batch))
    found = faster.network.propose(scored, batch.sizes, min_side=1, before=10**6, after=10**6, nms_threshold=1.0)
    small, large = (boxes for boxes, _ in found)
    assert len(small) and float(small[:, 2].max()) <= 24 and float(small[:, 3].max()) <= 20
    assert float(large[:, 2].max()) > 24 and float(large[:, 3].max()) > 20
    terms = faster.losses(batch)
    assert all(bool(term.isfinite()) for term in terms.values())


def test_no_anchor_in_the_padding_is_learned() -> None:
    faster = method()
    batch = two_images()
    batch.padding = torch.zeros(2, 32, 48, dtype=torch.bool)
    batch.padding[:, :, 24:] = True
    batch.boxes = [torch.tensor([[4.0, 4, 20, 16]])] * 2
    batch.box_labels = [torch.tensor([1])] * 2
    scored = faster.network(faster.input_of(batch))
    total = torch.stack(list(faster.proposer_losses(scored, batch).values())).sum()
    (gradient,) = torch.autograd.grad(total, scored.logits)
    learned = gradient.abs().sum(dim=(0, 2)) > 0
    assert bool(learned.any())
    assert float(torch.cat(scored.anchors)[learned][:, 2].max()) <= 24


def test_with_given_proposals_the_head_learns_as_that_of_fast_rcnn(monkeypatch: pytest.MonkeyPatch) -> None:
    faster, batch = method(dropout=0.0), two_images()
    names = ("backbone", "backbone_weights", "output_stride", "frozen_stages", "freeze_norms", "roi_size", "head_width")
    shared = {name: TINY[name] for name in (*names, "short_side", "long_side", "rois_per_image")}
    fast = FastRCNN(FastRCNN.Config(**shared, dropout=0.0, background_low=0.0, target_statistics="fixed"), CLASSES)
    fast.network.load_state_dict(faster.network.state_dict(), strict=False)
    corner = 20 * torch.rand(2, 60, 2, generator=torch.Generator().manual_seed(0))
    proposals = torch.cat([corner, corner + 12], dim=2)
    batch.proposals = list(proposals)
    monkeypatch.setattr(faster.network, "propose", lambda *_, **__: [(each, None) for each in proposals])
    torch.manual_seed(5)
    expected = fast.losses(batch)
    maps = faster.network.maps(faster.input_of(batch))
    torch.manual_seed(5)
    terms = faster.head_losses(maps, faster.network.score_anchors(maps), batch)
    assert float(terms["boxes"].detach()) > 0
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])


def test_objects_come_in_pixels_of_the_image_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = method()
    proposal = torch.tensor([[8.0, 4, 24, 20], [40, 24, 70, 40]])
    logits = torch.tensor([[0.0, 0, 9], [0.0, 9, 0]])
    monkeypatch.setattr(faster.network, "propose", lambda *_, **__: [(proposal, None)])
    monkeypatch.setattr(faster.network, "classify", lambda *_: (logits, torch.zeros(2, 12)))
    found = faster.detect(sample((64, 96)))
    # Scaled by a half; the second box ends beyond the border.
    assert found.boxes.tolist() == [[16, 8, 48, 40], [80, 48, 96, 64]]
    assert found.labels.tolist() == [2, 1]
    assert faster.propose(sample((64, 96)))[0].tolist() == [16, 8, 48, 40]


def test_offsets_are_learned_in_units_of_the_fixed_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = method()
    offsets = torch.zeros(1, 3, 4)
    offsets[0, 1, 0] = 1
    monkeypatch.setattr(faster.network, "propose", lambda *_, **__: [(torch.tensor([[8.0, 4, 28, 24]]), None)])
    monkeypatch.setattr(faster.network, "classify", lambda *_: (torch.tensor([[0.0, 9, 0]]), offsets.flatten(1)))
    assert faster.detect(sample((32, 48))).boxes.tolist() == [[10, 4, 30, 24]]


def test_proposals_are_few_and_an_image_may_have_none() -> None:
    faster = method()
    faster.eval()
    with torch.no_grad():
        assert 0 < len(faster.propose(sample((40, 60)))) <= 20
        none = method(min_side=1000.0)
        assert none.propose(sample((40, 60))).shape == (0, 4)
        assert len(none.eval().detect(sample((40, 60)))) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_sizes": ()}, "--anchor-sizes"),
        ({"anchor_ratios": (0.5, 0.0)}, "--anchor-ratios"),
        ({"rpn_channels": 0}, "--rpn-channels 0"),
        ({"rois_per_image": 0}, "--rois-per-image 0"),
        ({"min_side": -1.0}, "--min-side"),
        ({"dropout": 1.5}, "--dropout 1.5"),
        ({"alternating_step": 2}, "--training joint: is one run"),
        ({"training": "alternating", "batch_size": 3, "alternating_step": 1}, "--batch-size 3"),
        ({"pyramid": True, "backbone": "vgg16"}, "--pyramid: backbone 'vgg16' has one map alone"),
        ({"pyramid": True, "backbone": "tiny", "output_stride": 8}, "--pyramid: backbone 'tiny' has features at"),
        (PYRAMID | {"anchor_sizes": (8, 16)}, "--anchor-sizes 8 16: a pyramid of 4 maps wants 4 sizes"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    chosen = {"output_stride": 16, **options} if options.get("backbone") == "vgg16" else options
    with pytest.raises(UserError, match=message):
        method(**chosen)


@pytest.mark.parametrize("preset", ["fpn", "alternating"])
def test_further_presets_are_what_they_are_named_after(preset: str) -> None:
    config = make_config(FasterRCNN, load_preset(FasterRCNN, preset), {})
    assert config.pyramid if preset == "fpn" else config.training == "alternating"
    with torch.device("meta"):
        network = FasterRCNN(config, CLASSES, training=False).network
    assert len(network.first_anchors) == (5 if preset == "fpn" else 1)


def run(data: Path, out: Path, **options: Any) -> Path:
    hardware = Hardware(**MACHINE | {"checkpoint_every": 1})
    train("faster_rcnn", data=data, labels="boxes:6", out=out, hardware=hardware, **TINY | options)
    return out


def test_a_run_that_was_cut_ends_as_one_that_was_not(shapes_folder: Path, tmp_path: Path) -> None:
    whole = run(shapes_folder, tmp_path / "whole")
    with cut(2):
        run(shapes_folder, tmp_path / "cut")
    assert outcome(run(shapes_folder, tmp_path / "cut")) == outcome(whole)
    results = json.loads((whole / "results.json").read_text())
    assert 0 < results["proposals"]["mean_number"] <= 20 and 0 <= results["map"] <= 100


def test_after_four_steps_both_share_the_convolutions_of_the_second(shapes_folder: Path, tmp_path: Path) -> None:
    options = {"training": "alternating", "steps": 1}
    with cut(1):
        run(shapes_folder, tmp_path / "run", **options)
    fourth = run(shapes_folder, tmp_path / "run", **options)
    third = fourth / "stages" / "1-start"
    second = third / "stages" / "1-start"
    first = second / "stages" / "1-start"
    weights = [load_file(each / "model.safetensors") for each in (first, second, third, fourth)]
    for name, value in weights[3].items():
        ours = [torch.equal(each[name], value) for each in weights]
        if name.startswith("backbone."):
            assert ours[1:] == [True, True, True]
        if name.startswith("rpn."):
            assert ours[2:] == [True, True]
    proposer = {name: value for name, value in weights[1].items() if name.startswith("proposer.")}
    assert proposer and all(
        torch.equal(weights[0][name.removeprefix("proposer.")], proposer[name]) for name in proposer
    )
    assert not torch.equal(weights[2]["head.scores.weight"], weights[3]["head.scores.weight"])
