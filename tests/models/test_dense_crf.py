"""The dense CRF: limits that have a closed form, the exact kernel as the definition, and what it is for."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from labelwise.errors import UserError
from labelwise.models import dense_crf as module
from labelwise.models.crf_search import RANGES, SearchRanges, Trial, search_crf
from labelwise.models.dense_crf import (
    PRESETS,
    Backend,
    CRFParameters,
    ExactKernel,
    Normalization,
    bilateral_features,
    dense_crf,
    format_crf,
    gaussian_features,
    kernel_matrix,
    mean_field,
    normalize_kernel,
    parse_crf,
    unary_from_labels,
    unary_from_logits,
    unary_from_softmax,
)

MODES: tuple[Normalization, ...] = get_args(Normalization)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
SCENE = CRFParameters(
    appearance_weight=10, appearance_xy=30, appearance_rgb=13, smoothness_weight=3, smoothness_xy=3, iterations=10
)


def scene(seed: int, size: int = 32, noise: float = 1.6) -> tuple[Tensor, Tensor, Tensor]:
    """Two to four flat regions with noisy colors, their mask, and coarse noisy logits."""
    random = np.random.default_rng(seed)
    labels = int(random.integers(2, 5))
    rows, columns = np.mgrid[:size, :size]
    centers = random.uniform(0, size, (labels, 2))
    distance = (rows[..., None] - centers[:, 0]) ** 2 + (columns[..., None] - centers[:, 1]) ** 2
    mask = torch.from_numpy(distance.argmin(-1))
    colors = random.permutation([[40, 40, 40], [210, 60, 60], [60, 200, 90], [70, 90, 220]])[:labels]
    noisy = colors[mask.numpy()] + random.normal(size=(size, size, 3)) * 12
    image = torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
    scores = functional.one_hot(mask, labels).permute(2, 0, 1).float() * 2
    scores += noise * torch.from_numpy(random.normal(size=scores.shape)).float()
    return image, mask, functional.avg_pool2d(scores[None], 5, 1, 2, count_include_pad=False)[0]


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8))


def random_unary(labels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(labels, height, width)) * 2).float()


def accuracy(q: Tensor, mask: Tensor) -> float:
    return 100 * float((q.argmax(0) == mask).float().mean())


@pytest.mark.parametrize(
    ("parameters", "noise", "backend", "wanted"),
    [
        (SCENE, 2.5, "lattice", 99.8),
        (SCENE, 2.5, "exact", 99.8),
        # So narrow a kernel over colors leaves few vertices beside each other: the lattice loses a little.
        (PRESETS["deeplab_v2_vgg"], 1.0, "lattice", 99.6),
        (PRESETS["deeplab_v2_vgg"], 1.0, "exact", 99.8),
    ],
)
def test_it_mends_coarse_logits(parameters: CRFParameters, noise: float, backend: Backend, wanted: float) -> None:
    scenes = [scene(seed, noise=noise) for seed in range(8)]
    before = np.mean([accuracy(logits, mask) for _, mask, logits in scenes])
    after = np.mean([accuracy(dense_crf(i, unary_from_logits(u), parameters, backend), m) for i, m, u in scenes])
    assert 93 < before < 98.5
    assert after >= wanted


def test_the_wrong_image_does_not_help() -> None:
    scenes = [scene(seed) for seed in range(8)]
    images = [scenes[index - 1][0] for index in range(8)]
    before = np.mean([accuracy(logits, mask) for _, mask, logits in scenes])
    after = [
        accuracy(dense_crf(i, unary_from_logits(u), SCENE), m) for i, (_, m, u) in zip(images, scenes, strict=True)
    ]
    assert np.mean(after) < before


@pytest.mark.parametrize("mode", ["after", "symmetric"])
def test_the_lattice_agrees_with_the_exact_kernel(mode: Normalization) -> None:
    same = []
    for seed in range(4):
        image, _, logits = scene(seed, size=28)
        parameters = replace(SCENE, normalization=mode)
        exact, lattice = (
            dense_crf(image, unary_from_logits(logits), parameters, backend) for backend in BACKENDS[::-1]
        )
        same.append((exact.argmax(0) == lattice.argmax(0)).float().mean())
        assert (exact - lattice).abs().mean() < 0.01
    assert np.mean(same) >= 0.995


def test_the_operators_for_other_devices_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from labelwise.models import permutohedral

    image, _, logits = scene(0)
    q = dense_crf(image, unary_from_logits(logits), SCENE)

    def by_tensors(unary: Tensor, lattices: list[Any], iterations: int) -> Tensor:
        return mean_field(unary, [lattice.filter for lattice in lattices], [1.0] * len(lattices), iterations)

    monkeypatch.setattr(permutohedral, "CompiledLattice", permutohedral.TensorLattice)
    monkeypatch.setattr(permutohedral, "potts_mean_field", by_tensors)
    torch.testing.assert_close(dense_crf(image, unary_from_logits(logits), SCENE), q, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("mode", "backend"), list(itertools.product(MODES, BACKENDS)))
def test_without_weights_it_is_the_softmax(mode: Normalization, backend: Backend) -> None:
    parameters = replace(SCENE, appearance_weight=0, smoothness_weight=0, normalization=mode)
    unary = random_unary(3, 5, 7)
    for iterations in (0, 1, 5):
        q = dense_crf(random_image(5, 7), unary, replace(parameters, iterations=iterations), backend)
        assert torch.equal(q, (-unary).softmax(0))


@given(
    st.sampled_from(MODES), st.sampled_from(BACKENDS), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9),
    st.integers(0, 99),
)  # fmt: skip
def test_symmetries(mode: Normalization, backend: Backend, labels: int, height: int, width: int, seed: int) -> None:
    weights = 0.01 if mode == "none" else 1
    parameters = replace(
        SCENE, appearance_weight=3 * weights, smoothness_weight=weights, iterations=3, normalization=mode
    )
    image, unary = random_image(height, width, seed), random_unary(labels, height, width, seed)

    def fit(energies: Tensor) -> Tensor:
        return dense_crf(image, energies, parameters, backend)

    q = fit(unary)
    assert q.shape == unary.shape and q.dtype == torch.float32 and q.is_contiguous()
    torch.testing.assert_close(q.sum(0), torch.ones(height, width))
    torch.testing.assert_close(fit(torch.zeros_like(unary)), torch.full_like(unary, 1 / labels))
    torch.testing.assert_close(fit(unary.flip(0)), q.flip(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(fit(unary + random_unary(1, height, width, seed + 1)), q, atol=1e-3, rtol=0)
    if labels == 1:
        torch.testing.assert_close(q, torch.ones_like(q))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (6, 6)])
def test_a_constant_image_and_thin_images(size: tuple[int, int]) -> None:
    image, unary = torch.full((3, *size), 77, dtype=torch.uint8), random_unary(3, *size)
    for parameters in PRESETS.values():
        q = dense_crf(image, unary, parameters)
        assert torch.isfinite(q).all()
        torch.testing.assert_close(q.sum(0), torch.ones(size))


def one_step(image: Tensor, unary: Tensor, backend: Backend, **changes: float) -> Tensor:
    parameters = replace(SCENE, smoothness_weight=0, iterations=1, **changes)
    return dense_crf(image, unary, parameters, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flat", [True, False])
def test_without_color_appearance_is_a_gaussian_over_positions(flat: bool, backend: Backend) -> None:
    unary = functional.avg_pool2d(random_unary(2, 44, 44), 5, 1)
    image = torch.full((3, 40, 40), 9, dtype=torch.uint8) if flat else random_image(40, 40)
    changes = {"appearance_weight": 2, "appearance_xy": 4, "appearance_rgb": 13 if flat else 1e7}
    q = one_step(image, unary, backend, **changes)
    kernel = torch.exp(-0.5 * ((torch.arange(40)[:, None] - torch.arange(40)) / 4) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    wanted = (-unary + 2 * (kernel @ (-unary).softmax(0) @ kernel.T)).softmax(0)
    assert (q - wanted).abs().mean() < (1e-6 if backend == "exact" else 5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_positions_pixels_of_one_color_share_one_message(backend: Backend) -> None:
    mask = torch.arange(12).expand(10, 12) // 6
    image = (mask * 200).to(torch.uint8).expand(3, 10, 12)
    unary = random_unary(3, 10, 12)
    q = one_step(image, unary, backend, appearance_weight=4, appearance_xy=1e6, appearance_rgb=1)
    initial = (-unary).softmax(0)
    for color in (0, 1):
        message = initial[:, mask == color].mean(1, keepdim=True)
        wanted = (-unary[:, mask == color] + 4 * message).softmax(0)
        torch.testing.assert_close(q[:, mask == color], wanted, atol=2e-4, rtol=0)


def test_normal_forms_of_a_kernel() -> None:
    kernel = kernel_matrix(bilateral_features(random_image(5, 6), 3, 60))
    sums, one = kernel.sum(1), torch.ones(30, dtype=torch.float64)
    torch.testing.assert_close(normalize_kernel(kernel, "after") @ one, one)
    torch.testing.assert_close(one @ normalize_kernel(kernel, "before"), one)
    symmetric = normalize_kernel(kernel, "symmetric")
    torch.testing.assert_close(symmetric, symmetric.T)
    torch.testing.assert_close(symmetric, kernel / (sums[:, None] * sums).sqrt())
    torch.testing.assert_close((normalize_kernel(kernel, "mean") @ one).mean(), one[0])
    assert torch.equal(normalize_kernel(kernel, "none"), kernel)


def test_the_kernel_is_a_gaussian_of_the_features_with_the_column_first() -> None:
    features = gaussian_features(2, 3, 2.0)
    assert features.tolist() == [[0, 0], [0.5, 0], [1, 0], [0, 0.5], [0.5, 0.5], [1, 0.5]]
    kernel = kernel_matrix(features)
    assert kernel[0, 2] == pytest.approx(math.exp(-0.5))
    assert kernel[0, 5] == pytest.approx(math.exp(-0.5 * 1.25))
    assert torch.equal(kernel.diagonal(), torch.ones(6, dtype=torch.float64))
    assert torch.equal(kernel_matrix(features, exclude_self=True), kernel - torch.eye(6))
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)
    assert bilateral_features(image, 5, 10).tolist() == [[0, 0, 1, 2, 3]]


def test_a_kernel_too_large_to_keep_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, values = torch.randn(50, 3), torch.randn(50, 2)
    kept = ExactKernel(features).weighted(torch.rand(50).double(), torch.rand(50).double())
    monkeypatch.setattr(module, "_LARGEST_MATRIX", 10)
    monkeypatch.setattr(module, "_ROWS", 7)
    computed = ExactKernel(features).weighted(kept._before, kept._after)
    torch.testing.assert_close(computed.filter(values), kept.filter(values))
    assert computed._matrix is None


def test_potts_is_a_diagonal_and_a_matrix_of_costs() -> None:
    kernel = normalize_kernel(kernel_matrix(torch.randn(20, 2)), "after")
    unary = torch.randn(20, 3).double()
    filters = [lambda q: kernel @ q]
    potts = mean_field(unary, filters, [2.5], 4)
    torch.testing.assert_close(mean_field(unary, filters, [torch.full((3,), -2.5)], 4), potts)
    torch.testing.assert_close(mean_field(unary, filters, [2.5 * (1 - torch.eye(3))], 4), potts)
    one_way = torch.zeros(3, 3)
    one_way[0, 1] = 50
    # Label 0 pays where label 1 is near; label 1 does not pay for label 0.
    q = mean_field(torch.zeros(20, 3).double(), filters, [one_way], 4)
    assert (q[:, 0] < 0.01).all() and (q[:, 1] > 0.4).all()


def test_the_objective_falls() -> None:
    image, _, logits = scene(1)
    unary = unary_from_logits(logits).flatten(1).T.double()
    kernel = normalize_kernel(kernel_matrix(bilateral_features(image, 30, 13)), "symmetric")
    objectives = []
    for iterations in range(6):
        q = mean_field(unary, [lambda q: kernel @ q], [1.0], iterations)
        objectives.append(float((q * (q.clamp_min(1e-300).log() + unary)).sum() - (q * (kernel @ q)).sum() / 2))
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(objectives))


def test_memory_grows_with_the_pixels_not_their_square() -> None:
    image, unary = random_image(200, 300), random_unary(2, 200, 300)
    # The exact kernel of so many pixels would take 28 GB.
    q = dense_crf(image, unary, replace(PRESETS["deeplab_v2"], iterations=1))
    assert torch.isfinite(q).all()


@pytest.mark.parametrize(
    ("image", "unary"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(2, 4, 4)),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4)),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 5)),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4)),
    ],
)
def test_scaled_images_and_other_sizes_are_refused(image: Tensor, unary: Tensor) -> None:
    with pytest.raises(ValueError, match="image"):
        dense_crf(image, unary, SCENE)


def test_unaries_of_logits_and_of_probabilities() -> None:
    logits = torch.randn(4, 3, 3)
    torch.testing.assert_close((-unary_from_logits(logits)).softmax(0), logits.softmax(0))
    torch.testing.assert_close(unary_from_softmax(logits.softmax(0)), unary_from_logits(logits))
    assert torch.isfinite(unary_from_logits(torch.tensor([[[1000.0]], [[0.0]]]))).all()
    sure = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(unary_from_softmax(sure), torch.tensor([0.0, -math.log(1e-5)]))
    torch.testing.assert_close(unary_from_softmax(sure, scale=0.8), -torch.tensor([0.9, 0.1]).log())


def test_unaries_of_labels() -> None:
    energy = unary_from_labels(torch.tensor([[0, 2]]), 3, certainty=0.7)
    torch.testing.assert_close((-energy).exp(), torch.tensor([[[0.7, 0.15]], [[0.15, 0.15]], [[0.15, 0.7]]]))
    energy = unary_from_labels(torch.tensor([[0, 1, 2]], dtype=torch.uint8), 2, certainty=0.9, zero_unsure=True)
    torch.testing.assert_close((-energy).exp(), torch.tensor([[[0.5, 0.9, 0.1]], [[0.5, 0.1, 0.9]]]))
    with pytest.raises(ValueError, match="label 255 is none of 3 classes"):
        unary_from_labels(torch.tensor([[0, 255]]), 3)
    with pytest.raises(ValueError, match="certainty 1"):
        unary_from_labels(torch.tensor([[0]]), 3, certainty=1)


def test_presets_with_and_without_changes(tmp_path: Path) -> None:
    assert parse_crf("deeplab_v2") == PRESETS["deeplab_v2"]
    changed = parse_crf("deeplab_v2:appearance_weight=5.5, iterations=5,normalization=mean")
    assert changed == replace(PRESETS["deeplab_v2"], appearance_weight=5.5, iterations=5, normalization="mean")
    (tmp_path / "crf.yaml").write_text(format_crf(changed))
    (tmp_path / "crf.json").write_text(json.dumps({**vars(changed)}))
    assert parse_crf(str(tmp_path / "crf.yaml")) == parse_crf(str(tmp_path / "crf.json")) == changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deeplab_v3", "--crf deeplab_v3: neither a preset nor a file; did you mean 'deeplab_v2'?"),
        ("cam:apearance_xy=3", "--crf: no parameter 'apearance_xy'; did you mean 'appearance_xy'?"),
        ("cam:appearance_xy", "--crf: 'appearance_xy': write changes as name=value, separated by commas"),
        ("cam:appearance_xy=0", "--crf: appearance_xy 0: must be a number above 0"),
        ("cam:appearance_xy=nan", "--crf: appearance_xy nan: must be a number above 0"),
        ("cam:smoothness_weight=-1", "--crf: smoothness_weight -1: must be a number of at least 0"),
        ("cam:smoothness_weight=much", "--crf: smoothness_weight much: must be a number of at least 0"),
        ("cam:iterations=2.5", "--crf: iterations 2.5: must be a whole number of at least 0"),
        ("cam:normalization=symetric", "--crf: normalization 'symetric'; did you mean 'symmetric'?"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_crf(text)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"iterations: 3", "lacks appearance_weight, "),
        (b"[1, 2]", "holds no `name: value` lines"),
        (b"iteration: 3", "did you mean 'iterations'"),
        (b"a: [", "cannot be read as YAML or JSON"),
        (b"\xff\xfe\x00", "cannot be read as YAML or JSON"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "crf.yaml").write_bytes(content)
    with pytest.raises(UserError, match="--crf") as refused:
        parse_crf(str(tmp_path / "crf.yaml"))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_search_finds_better_parameters_coarse_to_fine() -> None:
    scenes = [scene(seed, size=20) for seed in range(2)]
    ranges = SearchRanges(appearance_weight=(0.1, 1, 10), appearance_xy=(2, 8, 30), appearance_rgb=(1, 4, 13))

    def score(maps: Iterable[Tensor]) -> float:
        return float(np.mean([float((m == mask).float().mean()) for m, (_, mask, _) in zip(maps, scenes, strict=True)]))

    reported: list[Trial] = []
    unaries = [unary_from_logits(logits) for _, _, logits in scenes]
    start = replace(SCENE, iterations=3, smoothness_xy=2)
    images = [image for image, _, _ in scenes]
    trials = search_crf(images, unaries, score, start=start, ranges=ranges, report=reported.append)
    assert sorted(trials, key=str) == sorted(reported, key=str)
    # 8 coarse ones, and those of the 27 around a corner of the ranges that are not among them: 7.
    assert len(trials) == len({trial.parameters for trial in trials}) == 15
    assert trials[0].score == max(trial.score for trial in trials) > trials[-1].score
    assert trials[0].parameters.appearance_weight > 0.1
    assert {trial.parameters.smoothness_xy for trial in trials} == {2}
    with pytest.raises(ValueError, match="at least one"):
        search_crf([], [], score, start=start, ranges=ranges)


def test_published_ranges_hold_their_presets() -> None:
    for name in ("deeplab_v1", "deeplab_v2"):
        preset, ranges = PRESETS[name], RANGES[name]
        assert preset.appearance_weight in ranges.appearance_weight
        assert ranges.appearance_xy[0] <= preset.appearance_xy <= ranges.appearance_xy[-1]
        assert ranges.appearance_rgb[0] <= preset.appearance_rgb <= ranges.appearance_rgb[-1]


def test_importing_it_loads_no_compiler() -> None:
    code = "import sys, labelwise.models.dense_crf, labelwise.models.crf_search; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
