"""What DeepLab v1 promises: the paper's networks, and multi-scale prediction that leaves the trained one alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from labelwise.methods.masks.deeplab_v1 import DeepLabV1
from labelwise.models.complexity import count_parameters
from labelwise.samples import Batch
from labelwise.saved import load_model
from labelwise.verbs.train import train

CLASSES = Classes(("background", "cat", "dog"))
VOC = Classes(tuple(map(str, range(21))))
TINY = {"backbone": "tiny", "backbone_weights": "none", "head_channels": 8, "crop": 32}
MACHINE = {"accelerator": "cpu", "precision": "32-true", "workers": 0}


def paper_network(**options: object) -> nn.Module:
    with torch.device("meta"):
        return DeepLabV1(DeepLabV1.Config(**options), VOC, training=False).network


def method(earlier: DeepLabV1 | None = None, **options: object) -> DeepLabV1:
    torch.manual_seed(0)
    runs = {"single_scale": earlier} if earlier else {}
    return DeepLabV1(DeepLabV1.Config(**TINY | options), CLASSES, earlier=runs)


def labeled() -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mask = torch.randint(3, (2, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(ids=("a", "b"), image=image, mask=mask)


@pytest.mark.parametrize(
    ("variant", "count", "kernel", "rate"),
    [
        ("7x7", 134_346_581, 7, 4),
        ("4x4", 65_140_565, 4, 4),
        ("4x4r8", 65_140_565, 4, 8),
        ("largefov", 20_505_429, 3, 12),
    ],
)
def test_the_papers_variants(variant: str, count: int, kernel: int, rate: int) -> None:
    network = paper_network(variant=variant)
    assert count_parameters(network) == count
    fc6 = network.head.branches[0].fc6
    assert (fc6.kernel_size[0], fc6.dilation[0]) == (kernel, rate)
    for size, grid in ((321, 41), (513, 65)):
        assert network.score_map(torch.zeros(1, 3, size, size, device="meta")).shape == (1, 21, grid, grid)


def test_restored_strides_are_the_ordinary_fully_convolutional_network() -> None:
    network = paper_network(variant="7x7", output_stride=32)
    assert {conv.dilation for conv in network.modules() if isinstance(conv, nn.Conv2d)} == {(1, 1)}
    assert network.score_map(torch.zeros(1, 3, 321, 321, device="meta")).shape[2:] == (11, 11)


@pytest.mark.parametrize(
    ("options", "averages"),
    [({}, True), ({"pool5a": False}, False), ({"variant": "4x4"}, False), ({"variant": "7x7"}, False)],
)
def test_the_average_pool_is_largefovs(options: dict[str, object], averages: bool) -> None:
    pools = [module for module in paper_network(**options).modules() if isinstance(module, nn.AvgPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == ([(3, 1, 1)] if averages else [])


def test_multi_scale_prediction_adds_the_papers_640_channels() -> None:
    added = count_parameters(paper_network(msc=True)) - count_parameters(paper_network())
    convolutions = sum(9 * inputs * 128 + 128 + 128 * 128 + 128 for inputs in (3, 64, 128, 256, 512))
    assert added == convolutions + 640 * 21


def test_the_rate_falls_to_a_tenth_after_each_third() -> None:
    segmenter = method(steps=6000)
    assert [segmenter.rate_factor(step) for step in (0, 1999, 2000, 3999, 4000, 5999)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_multi_scale_prediction_trains_new_weights_alone() -> None:
    first = method().eval()
    segmenter = method(first, msc=True, dropout=0.0).train()
    state = first.network.state_dict()
    assert all(torch.equal(value, segmenter.network.state_dict()[name]) for name, value in state.items())
    optimizer = segmenter.configure_optimizers()["optimizer"]
    before = {name: value.clone() for name, value in segmenter.network.state_dict().items()}
    sum(segmenter.losses(labeled=labeled()).values()).backward()
    optimizer.step()
    changed = {name for name, value in segmenter.network.state_dict().items() if not torch.equal(value, before[name])}
    # Statistics of normalisations included.
    assert changed
    assert all(name.startswith("skips.") for name in changed)


def test_multi_scale_prediction_is_made_of_two_runs(shapes_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = TINY | {"steps": 3, "batch_size": 2, "msc": True}
    train("deeplab_v1", data=shapes_folder, out=run, hardware=Hardware(**MACHINE), **options)
    first, both = load_model(run / "stages" / "1-single_scale"), load_model(run)
    assert not first.config.msc and both.config.msc
    theirs = both.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in first.network.state_dict().items())
    assert any(name.startswith("skips.") for name in theirs)


@pytest.mark.parametrize("options", [{"head_channels": 4}, {"backbone": "micro_w4", "output_stride": 4}])
def test_a_trained_network_of_another_form_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--single-scale largefov: its network is another"):
        method(method(**options), msc=True)
