"""The window network: the papers' classifiers, any backbone, and what is fitted on cached features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from labelwise.errors import UserError
from labelwise.models.boxes import decode_boxes
from labelwise.models.linear_svm import fit_svm
from labelwise.models.region_warp import warp_regions
from labelwise.models.window_fitting import NORM, CachedWindows, fit_machines, fit_ridges, fit_scales
from labelwise.models.window_network import CLASSIFIERS, WindowNetwork, create_window_body

WIDTH, POOL5, CLASSES = 128, 512, 3


def tiny_network() -> WindowNetwork:
    torch.manual_seed(0)
    return WindowNetwork(create_window_body("tiny", 32, 16, None), CLASSES, "fc7").eval()


def cached(path: Path, objects: list[int], count: int, seed: int) -> CachedWindows:
    """An image of random windows: its objects, then `count` proposals, the first of which is near the first object."""
    random = np.random.default_rng(seed)
    total = len(objects) + count
    features = random.random((total, WIDTH), np.float32)
    overlap = np.zeros((total, CLASSES), np.float32)
    for row, column in enumerate(objects):
        overlap[row, column] = 1.0
        features[row, column] += 3.0
    near = min(count, len(objects))
    pool5 = random.random((near, POOL5), np.float32)
    windows = CachedWindows(
        features=features.astype(np.float16),
        norms=np.linalg.norm(features, axis=1, keepdims=True).repeat(2, 1),
        overlap=overlap,
        objects=np.array(objects, np.int64),
        pool5=pool5.astype(np.float16),
        classes=np.array(objects[:near], np.int64),
        offsets=np.full((near, 4), 0.1, np.float32),
    )
    windows.save(path)
    return windows


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four images with objects of two of three classes, one of them without any object, one without any proposal."""
    plan = [([0, 1], 20), ([0], 20), ([], 20), ([1, 1], 0)]
    paths = [tmp_path / f"{number}.npz" for number in range(len(plan))]
    for number, (path, (objects, count)) in enumerate(zip(paths, plan, strict=True)):
        cached(path, objects, count, number)
    return paths


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_classifiers_have_the_layers_that_were_trained_for_imagenet(name: str) -> None:
    size, _ = CLASSIFIERS[name]
    with torch.device("meta"):
        body = create_window_body(name, size, 32, None).eval()
        features = body(torch.zeros(1, 3, size, size))
    assert tuple(layer.shape[1] for layer in features) == body.widths
    # With ImageNet's 1000 classes: CaffeNet of the paper, torchvision's AlexNet and VGG-16.
    whole = sum(parameter.numel() for parameter in body.parameters()) + 1000 * (4096 + 1)
    assert whole == {"caffenet": 60_965_224, "alexnet_tv": 61_100_840, "vgg16": 138_357_544}[name]


def test_windows_of_another_size_are_refused() -> None:
    with torch.device("meta"), pytest.raises(UserError, match="--crop 224"):
        create_window_body("vgg16", 227, 32, None)


def test_any_backbone_has_a_grid_and_a_mean() -> None:
    network = tiny_network()
    features = network.body(torch.randn(2, 3, 32, 32))
    assert features.pool5.shape == (2, POOL5) and features.fc7.shape == (2, WIDTH)
    torch.testing.assert_close(features.pool5.view(2, WIDTH, 4).mean(2), features.fc7)


@torch.no_grad()
def test_windows_in_parts_have_the_features_of_all_at_once() -> None:
    network, image = tiny_network(), torch.randn(3, 40, 60)
    boxes = torch.tensor([[5.0, 5.0, 25.0, 30.0]]).repeat(150, 1) + torch.arange(150)[:, None] / 15
    parts = list(network.features(image, boxes, 32, 4, "warp"))
    assert len(parts) == 2 and torch.equal(torch.cat([part for part, _ in parts]), boxes)
    together = network.body(warp_regions(image, boxes, 32, 4)[0])
    torch.testing.assert_close(torch.cat([found.fc7 for _, found in parts]), together.fc7, atol=1e-4, rtol=1e-4)
    assert list(network.features(image, boxes[:0], 32, 4, "warp")) == []


def test_a_new_network_fires_never_and_moves_no_box() -> None:
    network = tiny_network()
    features = network.body(torch.randn(2, 3, 32, 32))
    assert (network.margins(features).sigmoid() == 0).all()
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [0.0, 0.0, 5.0, 5.0]])
    torch.testing.assert_close(decode_boxes(boxes, network.offsets(features)), boxes[:, None].expand(-1, CLASSES, -1))


def test_scaled_features_have_the_wanted_mean_norm(files: list[Path]) -> None:
    network = tiny_network()
    fit_scales(network, files)
    rows = np.concatenate([CachedWindows.load(file).features for file in files]).astype(np.float32)
    assert np.linalg.norm(rows * float(network.feature_scale), axis=1).mean() == pytest.approx(NORM, rel=1e-3)


def test_machines_tell_objects_from_windows_and_a_class_without_objects_never_fires(files: list[Path]) -> None:
    network = tiny_network()
    fit_scales(network, files)
    assert fit_machines(network, files) == [2]
    rows = [CachedWindows.load(file) for file in files]
    features = torch.from_numpy(np.concatenate([windows.features for windows in rows])).float()
    overlap = torch.from_numpy(np.concatenate([windows.overlap for windows in rows]))
    margins = features * network.feature_scale @ network.svm_weight + network.svm_bias
    for column in (0, 1):
        positive = overlap[:, column] == 1
        assert margins[positive, column].min() > margins[~positive, column].max()
    assert (margins[:, 2] == -torch.inf).all()


def test_a_machine_of_one_image_is_that_of_all_its_negatives(files: list[Path]) -> None:
    network = tiny_network()
    fit_scales(network, files[:1])
    fit_machines(network, files[:1])
    windows = CachedWindows.load(files[0])
    features = windows.features.astype(np.float32) * float(network.feature_scale)
    # The object of the other class is among the negatives.
    expected = fit_svm(features[:1], features[1:])
    np.testing.assert_allclose(network.svm_weight[:, 0], expected.weight, atol=1e-6)
    assert float(network.svm_bias[0]) == pytest.approx(expected.bias, abs=1e-6)


def test_ridges_learn_the_offsets_of_their_class(files: list[Path]) -> None:
    network = tiny_network()
    fit_scales(network, files)
    fit_ridges(network, files)
    features = network.body(torch.randn(2, 3, 32, 32))
    offsets = network.offsets(features)
    torch.testing.assert_close(offsets[:, :2], torch.full((2, 2, 4), 0.1), atol=1e-4, rtol=0)
    assert (offsets[:, 2] == 0).all()


def test_what_was_fitted_is_in_the_state(files: list[Path]) -> None:
    network, other = tiny_network(), tiny_network()
    fit_scales(network, files)
    fit_machines(network, files)
    fit_ridges(network, files)
    other.load_state_dict(network.state_dict())
    features = network.body(torch.randn(2, 3, 32, 32))
    assert torch.equal(network.margins(features), other.margins(features))
    assert torch.equal(network.offsets(features), other.offsets(features))


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    written = cached(tmp_path / "0.npz", [0, 2], 3, 0)
    read = CachedWindows.load(tmp_path / "0.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["0.npz"]
    for name in ("features", "norms", "overlap", "objects", "pool5", "classes", "offsets"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
