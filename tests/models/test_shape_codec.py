"""Outlines as numbers: closed forms, invariances, and which basis bears errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import polygon2mask
from torch import Tensor

from labelwise.errors import UserError
from labelwise.models.shape_codec import (
    ANGLES,
    ShapeCodec,
    decode_shape,
    describe_shapes,
    diagonals,
    encode_shape,
    flip_signature,
    inner_center,
    joined,
    polar_matrix,
    polygons_to_masks,
    radial_signature,
    series_matrices,
)

SIZE = 128
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE] + 0.5
TURN = np.arange(ANGLES) * (2 * np.pi / ANGLES)


def disc(x: float = 64, y: float = 64, radius: float = 40) -> np.ndarray:
    return np.hypot(COLUMNS - x, ROWS - y) < radius


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def flower() -> np.ndarray:
    return np.hypot(COLUMNS - 64, ROWS - 64) < 40 * (1 + 0.4 * np.cos(5 * np.arctan2(ROWS - 64, COLUMNS - 64)))


def letter() -> np.ndarray:
    return rectangle(20, 20, 50, 110) | rectangle(20, 80, 110, 110)


def box_of(mask: np.ndarray) -> Tensor:
    rows, columns = np.nonzero(mask)
    return torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=torch.float64)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def stars(count: int, seed: int = 0) -> np.ndarray:
    """Radii [count, 360] of smooth random outlines, about 0.3 of a diagonal of 1."""
    rng = np.random.default_rng(seed)
    orders = np.arange(1, 7)
    strength = rng.normal(size=(count, 6)) * 0.35 / orders
    waves = np.cos(orders[:, None] * TURN + rng.uniform(0, 2 * np.pi, (count, 6, 1)))
    return 0.3 * np.exp(np.einsum("nk,nka->na", strength, waves))


def mean_overlap(truth: Tensor, found: Tensor) -> float:
    """The mean IoU of outlines around one centre, by their radii [N, 360]."""
    found = found.clamp(min=0)
    common, either = torch.minimum(truth, found).square().sum(1), torch.maximum(truth, found).square().sum(1)
    return float((common / either).mean())


# --------------------------------------------------------------- closed forms


def test_a_disc_is_its_radius_over_the_diagonal_and_nothing_else() -> None:
    mask = disc()
    centers, radii = describe_shapes(mask[None])
    series, fit = series_matrices("chebyshev", 18)
    coefficients = encode_shape(torch.from_numpy(radii), diagonals(box_of(mask)), fit)[0]
    assert series.shape == (360, 18)
    assert centers[0] == pytest.approx([64, 64], abs=0.5)
    assert float(coefficients[0]) == pytest.approx(40 / (80 * 2**0.5), abs=0.005)
    assert float(coefficients[1:].abs().max()) < 0.01


def test_the_radii_of_a_square_are_exact() -> None:
    mask = rectangle(40, 40, 81, 81)
    radii = radial_signature(mask, (60.5, 60.5))
    expected = 20.5 / np.maximum(np.abs(np.cos(TURN)), np.abs(np.sin(TURN)))
    np.testing.assert_allclose(radii, expected)


def test_degrees_run_clockwise_on_the_screen_from_the_right() -> None:
    radii = radial_signature(rectangle(10, 10, 40, 90), (20.5, 30.5))
    assert [radii[angle] for angle in (0, 90, 180, 270)] == pytest.approx([19.5, 59.5, 10.5, 20.5])


def test_of_several_crossings_the_outermost_counts() -> None:
    mask = rectangle(10, 60, 40, 70) | rectangle(80, 60, 90, 70)
    assert radial_signature(mask, (20.5, 65.5))[0] == pytest.approx(69.5)


@given(st.integers(0, 10**6))
def test_radii_are_those_of_walking_along_the_rays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 9)) < 0.5
    mask[4, 4] = True
    radii = radial_signature(mask, (4.5, 4.5), 36)
    steps = np.arange(0, 7, 0.002)
    for number, radius in enumerate(radii):
        angle = number * 2 * np.pi / 36 + 1e-7
        columns = np.floor(4.5 + steps * np.cos(angle)).astype(int)
        rows = np.floor(4.5 + steps * np.sin(angle)).astype(int)
        within = (columns >= 0) & (columns < 9) & (rows >= 0) & (rows < 9)
        inside = steps[within][mask[rows[within], columns[within]]]
        # Along an axis or a diagonal a ray may run along the sides of pixels.
        if number % 9:
            assert radius == pytest.approx(inside.max(), abs=0.01)


def test_the_center_is_deepest_inside_and_of_several_the_nearest_to_the_middle() -> None:
    assert inner_center(rectangle(10, 10, 31, 121)) == (20.5, 65.5)
    x, y = inner_center(letter())
    assert letter()[int(y), int(x)]
    assert x < 50
    assert y > 80


def test_the_released_codes_center_is_the_middle_of_the_box_if_that_is_inside() -> None:
    assert inner_center(disc(50, 70, 30), "code") == (50.5, 70.5)
    x, y = inner_center(letter(), "code")
    window = letter()[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2]
    assert window.all()
    assert inner_center(rectangle(5, 8, 6, 20), "code")[0] == 5.5


# ------------------------------------------------------------- odd objects


def test_broken_parts_are_joined_and_holes_filled() -> None:
    mask = rectangle(20, 20, 60, 100) | rectangle(66, 30, 100, 90)
    mask[40:50, 30:40] = False
    region = joined(mask)
    assert bool((region >= mask).all())
    assert region[60, 63]
    assert region[45, 35]
    assert not region[25, 63]


def test_small_parts_far_away_are_joined_as_well() -> None:
    mask = disc(30, 30, 10) | disc(100, 100, 10)
    region = joined(mask)
    assert region[65, 65]
    assert bool((region >= mask).all())


def test_a_whole_shape_stays_as_it_is() -> None:
    np.testing.assert_array_equal(joined(letter()), letter())


def test_one_pixel_is_a_shape() -> None:
    centers, radii = describe_shapes(rectangle(7, 9, 8, 10)[None])
    assert tuple(centers[0]) == (7.5, 9.5)
    assert radii.min() == pytest.approx(0.5)
    assert radii.max() == pytest.approx(0.5 * 2**0.5, abs=1e-3)


def test_no_objects_are_described_by_nothing() -> None:
    centers, radii = describe_shapes(np.zeros((0, 5, 5), dtype=bool))
    assert (centers.shape, radii.shape) == ((0, 2), (0, 360))
    assert polygons_to_masks(torch.zeros(0, 360, 2), (5, 6)).shape == (0, 5, 6)


# -------------------------------------------------------------- invariances


@given(st.integers(-15, 15), st.integers(-15, 15))
def test_translation_leaves_the_radii_alone(right: int, down: int) -> None:
    mask = flower()[8:-8, 8:-8]
    wide = np.pad(mask, 24)
    moved = np.roll(wide, (down, right), axis=(0, 1))
    centers, radii = describe_shapes(np.stack([wide, moved]))
    np.testing.assert_allclose(radii[0], radii[1])
    assert centers[1] - centers[0] == pytest.approx([right, down])


@given(st.sampled_from([3, 5]))
def test_scaling_leaves_the_coefficients_alone(factor: int) -> None:
    mask = letter()[::2, ::2]
    center = inner_center(mask)
    large = np.kron(mask, np.ones((factor, factor), dtype=bool))
    fit = series_matrices("chebyshev", 18)[1]
    coefficients = [
        encode_shape(torch.from_numpy(radial_signature(each, place))[None], diagonals(box_of(each)), fit)
        for each, place in ((mask, center), (large, (factor * center[0], factor * center[1])))
    ]
    torch.testing.assert_close(*coefficients)


def test_a_flipped_mask_has_the_flipped_signature_and_twice_is_once() -> None:
    mask = letter()
    x, y = inner_center(mask)
    radii = radial_signature(mask, (x, y))
    np.testing.assert_allclose(radial_signature(mask[:, ::-1], (SIZE - x, y)), flip_signature(radii))
    np.testing.assert_array_equal(flip_signature(flip_signature(radii)), radii)


def test_coefficients_come_back_from_the_shape_that_they_describe() -> None:
    series, fit = series_matrices("chebyshev", 18)
    coefficients = torch.from_numpy(0.4 * stars(5)) @ fit.T
    box = torch.tensor([[0.0, 0.0, 600.0, 600.0]], dtype=torch.float64).repeat(5, 1)
    center = torch.full((5, 2), 300.5, dtype=torch.float64)
    masks = polygons_to_masks(decode_shape(coefficients, center, box, series), (601, 601)).numpy()
    radii = np.stack([radial_signature(mask, (300.5, 300.5)) for mask in masks])
    again = encode_shape(torch.from_numpy(radii), diagonals(box), fit)
    assert float((again - coefficients).abs().max()) < 1e-2


# --------------------------------------------------------------------- bases


def test_chebyshev_and_monomials_are_the_same_functions() -> None:
    radii = torch.from_numpy(stars(20))
    found = []
    for basis in ("chebyshev", "monomial"):
        series, fit = series_matrices(basis, 18)
        found.append(radii @ fit.T @ series.T)
    torch.testing.assert_close(*found, atol=1e-7, rtol=1e-7)


def test_reconstruction_improves_with_the_number_of_coefficients() -> None:
    radii = torch.from_numpy(stars(30))
    scores = []
    for degree in (5, 9, 13, 17, 25):
        series, fit = series_matrices("chebyshev", degree + 1)
        scores.append(mean_overlap(radii, radii @ fit.T @ series.T))
    assert scores == sorted(scores)
    assert scores[0] < 0.95
    assert scores[3] > 0.96
    assert scores[4] > 0.98


def test_chebyshev_bears_errors_that_ruin_monomials() -> None:
    radii = torch.from_numpy(stars(40))
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for basis in ("chebyshev", "monomial"):
        series, fit = series_matrices(basis, 18)
        coefficients = radii @ fit.T
        noise = torch.randn(coefficients.shape, generator=generator, dtype=torch.float64)
        scores[basis] = mean_overlap(radii, (coefficients + 0.1 * coefficients.std(0) * noise) @ series.T)
    assert scores["chebyshev"] > 0.88
    assert scores["monomial"] < 0.1


@pytest.mark.parametrize(
    ("mask", "least"),
    [
        (disc(), 0.99),
        (((COLUMNS - 64) / 50) ** 2 + ((ROWS - 64) / 22) ** 2 < 1, 0.97),
        (rectangle(20, 40, 110, 90), 0.96),
        (flower(), 0.89),
        (letter(), 0.85),
        (disc(64, 64, 45) & ~disc(84, 64, 40), 0.68),
    ],
    ids=["disc", "ellipse", "rectangle", "flower", "L", "crescent"],
)
def test_eighteen_coefficients_reconstruct_as_well_as_the_released_code(mask: np.ndarray, least: float) -> None:
    centers, radii = describe_shapes(mask[None], "code")
    series, fit = series_matrices("chebyshev", 18)
    box = box_of(mask)
    coefficients = encode_shape(torch.from_numpy(radii), diagonals(box), fit)
    outline = decode_shape(coefficients, torch.from_numpy(centers), box, series)
    assert overlap(polygons_to_masks(outline, (SIZE, SIZE))[0].numpy(), mask) >= least


def test_polar_coefficients_are_radii_and_what_lies_between_is_interpolated() -> None:
    series, fit = series_matrices("polar", 18)
    radii = torch.from_numpy(stars(3))
    coefficients = radii @ fit.T
    torch.testing.assert_close(coefficients, radii[:, ::20])
    again = coefficients @ series.T
    torch.testing.assert_close(again[:, ::20], coefficients)
    torch.testing.assert_close(again[:, 350], (coefficients[:, 17] + coefficients[:, 0]) / 2)
    torch.testing.assert_close(polar_matrix(ANGLES, 7).sum(1), torch.ones(ANGLES, dtype=torch.float64))


def test_an_unknown_basis_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'chebyshev'"):
        series_matrices("chebishev", 18)  # type: ignore[arg-type]


# ------------------------------------------------------------------ decoding


def test_the_length_unit_is_the_diagonal_of_the_box_given() -> None:
    coefficients = torch.zeros(2, 18)
    coefficients[:, 0] = 0.2
    boxes = torch.tensor([[0.0, 0.0, 30.0, 40.0], [0.0, 0.0, 60.0, 80.0]])
    outlines = decode_shape(coefficients, boxes[:, 2:] / 2, boxes, series_matrices("chebyshev", 18)[0])
    radii = torch.linalg.vector_norm(outlines - boxes[:, None, 2:] / 2, dim=-1)
    torch.testing.assert_close(radii, torch.tensor([[10.0], [20.0]]).expand(2, 360))


def test_outlines_are_cut_at_their_boxes_and_negative_radii_are_none() -> None:
    coefficients = torch.zeros(2, 18)
    coefficients[:, 0] = torch.tensor([5.0, -1.0])
    boxes = torch.tensor([[10.0, 20.0, 30.0, 50.0]]).repeat(2, 1)
    centers = torch.tensor([[20.0, 30.0]]).repeat(2, 1)
    large, negative = decode_shape(coefficients, centers, boxes, series_matrices("chebyshev", 18)[0])
    assert large.min(0).values.tolist() == [10, 20]
    assert large.max(0).values.tolist() == [30, 50]
    torch.testing.assert_close(negative, centers[:1].expand(360, 2))


@given(st.integers(0, 10**6))
def test_polygons_are_filled_like_scikit_image_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Also beyond the image, and crossing itself.
    polygons = rng.uniform(-8, 28, (3, 7, 2))
    found = polygons_to_masks(torch.from_numpy(polygons), (20, 24)).numpy()
    expected = np.stack([polygon2mask((20, 24), each[:, ::-1] - 0.5) for each in polygons])
    assert (found != expected).sum() <= 1


def square_of(shift: float) -> Tensor:
    return torch.tensor([[[2, 2], [6, 2], [6, 6], [2, 6]]]) + shift


@pytest.mark.parametrize(("shift", "first", "last"), [(0.0, 2, 5), (0.4, 2, 5), (0.6, 3, 6), (-3.0, 0, 2)])
def test_a_pixel_belongs_to_a_polygon_if_its_center_does(shift: float, first: int, last: int) -> None:
    mask = polygons_to_masks(square_of(shift), (9, 9))[0]
    rows, columns = mask.nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (first, last, first, last)


# --------------------------------------------------------------------- codec


def test_measured_coefficients_have_mean_zero_and_spread_one() -> None:
    codec = ShapeCodec("monomial", 18)
    coefficients = codec.encode(torch.from_numpy(stars(60)), torch.ones(60)).float()
    codec.measure(coefficients)
    scaled = codec.standardized(coefficients)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(18), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(0), torch.ones(18))


@pytest.mark.parametrize("basis", ["chebyshev", "monomial", "polar"])
def test_what_is_regressed_leads_back_to_the_outline(basis: str, one: Callable[[str], ShapeCodec]) -> None:
    codec = one(basis)
    radii = torch.from_numpy(stars(4, seed=3))
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0]]).repeat(4, 1)
    centers = torch.full((4, 2), 50.0)
    coefficients = codec.encode(radii * diagonals(boxes).double()[:, None], diagonals(boxes).double())
    outlines = codec.decode(codec.standardized(coefficients.float()), centers, boxes)
    exact = decode_shape(coefficients, centers.double(), boxes.double(), series_matrices(codec.basis, 18)[0])
    assert float((outlines - exact).abs().max()) < 0.1


@pytest.fixture
def one() -> Callable[[str], ShapeCodec]:
    """A codec of a basis, measured."""

    def make(basis: str) -> ShapeCodec:
        codec = ShapeCodec(basis, 18)  # type: ignore[arg-type]
        codec.measure(codec.encode(torch.from_numpy(stars(60)), torch.ones(60)).float())
        return codec

    return make


def test_the_mean_of_the_first_coefficient_is_taken_off_and_kept_with_the_weights() -> None:
    codec = ShapeCodec("chebyshev", 18, 0.263289)
    coefficients = torch.full((1, 18), 0.5)
    assert codec.standardized(coefficients)[0, :2].tolist() == pytest.approx([0.5 - 0.263289, 0.5])
    assert set(codec.state_dict()) == {"mean", "spread"}
