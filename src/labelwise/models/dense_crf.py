"""The fully connected CRF with Gaussian edge potentials (Krähenbühl and Koltun, NIPS 2011).

Every pixel is a variable and every pair of pixels is connected. With the labels x, the unary energies U and the Potts
model, the energy is

    E(x) = sum_i U_i(x_i) + sum_{i<j} sum_m w_m [x_i != x_j] k_m(f_i, f_j),    k_m = exp(-|f_i - f_j|^2 / 2)

with two kernels: appearance (position and color) and smoothness (position alone). Mean field fits a product of
independent distributions by parallel updates, each of which is a Gaussian filter of the label maps. The permutohedral
lattice (`labelwise.models.permutohedral`) approximates that filter in linear time; the exact kernel, of N x N numbers,
is the definition.

Departures from the paper: a pixel's message to itself is kept, as both public libraries do. By default kernels are
normalized by row, as in the library of 2011 that DeepLab used; `symmetric` is the library of 2013 (pydensecrf).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

import torch
import yaml
from torch import Tensor
from torch.nn import functional

from labelwise.errors import UserError, did_you_mean

Normalization = Literal["after", "symmetric", "before", "mean", "none"]
Backend = Literal["lattice", "exact"]
Filter = Callable[[Tensor], Tensor]
Compatibility = float | Tensor

_KernelT = TypeVar("_KernelT", bound="Kernel")

_TINY = 1e-20
_LARGEST_MATRIX = 10_000
_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class CRFParameters:
    """The scalars of the model; DeepLab tunes them on 100 images (`labelwise.models.crf_search`)."""

    appearance_weight: float
    "weight of the kernel over position and color"
    appearance_xy: float
    "its standard deviation in pixels"
    appearance_rgb: float
    "its standard deviation in color levels, 0 to 255"
    smoothness_weight: float
    "weight of the kernel over position"
    smoothness_xy: float
    "its standard deviation in pixels"
    iterations: int = 10
    "updates of the mean field"
    normalization: Normalization = "after"
    "after: by row; symmetric; before: by column; mean: by the mean row; none: weights must be far smaller then"

    def __post_init__(self) -> None:
        """Refuse what is no model.

        Raises:
            UserError: names the parameter.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "normalization":
                if value not in get_args(Normalization):
                    raise UserError(
                        f"--crf: normalization '{value}'{did_you_mean(str(value), get_args(Normalization))}"
                    )
            elif field.name == "iterations":
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise UserError(f"--crf: iterations {value}: must be a whole number of at least 0")
            else:
                _require_size(field.name, value, positive=not field.name.endswith("weight"))


def _require_size(name: str, value: object, *, positive: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (positive and value == 0):  # type: ignore[operator]
        raise UserError(f"--crf: {name} {value}: must be a number {'above 0' if positive else 'of at least 0'}")


def _preset(*values: float, normalization: Normalization = "after") -> CRFParameters:
    names = [field.name for field in fields(CRFParameters)][: len(values)]
    return CRFParameters(**dict(zip(names, values, strict=True)), normalization=normalization)  # type: ignore[arg-type]


PRESETS: dict[str, CRFParameters] = {
    # DeepLab v1 does not print what it found. These defaults of the authors' program lie within the ranges that the
    # paper searches; the values of their v2 script for the same network do not.
    "deeplab_v1": _preset(5, 70, 5, 3, 3),
    # The authors' script for DeepLab v2 on VGG-16 with a large field of view.
    "deeplab_v2_vgg": _preset(4, 49, 5, 3, 3),
    # The authors' values for DeepLab v2 on ResNet-101, as a public port uses them.
    "deeplab_v2": _preset(4, 67, 3, 3, 1),
    # Krähenbühl and Koltun, section 6, for their own unaries; the smoothness kernel is uncertain.
    "nips_2011": _preset(10, 61, 11, 1, 1),
    # Usual for class activation maps, with `unary_from_labels(..., certainty=0.7)`.
    "cam": _preset(10, 50, 5, 3, 3, normalization="symmetric"),
    # The example of pydensecrf, usual for class activation maps that are probabilities.
    "pydensecrf": _preset(10, 80, 13, 3, 3, normalization="symmetric"),
}
"""Published parameters by name; see the comment beside each for its source."""


def parse_crf(text: str) -> CRFParameters:
    """The parameters that a user names.

    Args:
        text: a preset (`deeplab_v2`), a preset with changes (`deeplab_v2:appearance_weight=5,iterations=5`), or a
            YAML or JSON file that holds every parameter by name, as the search writes it.

    Raises:
        UserError: no such preset, file or parameter, or a value that is none.
    """
    name, _, changes = text.partition(":")
    if name in PRESETS:
        return replace(PRESETS[name], **_parse_changes(changes)) if changes else PRESETS[name]
    if not Path(text).is_file():
        raise UserError(f"--crf {text}: neither a preset nor a file{did_you_mean(name, PRESETS)}")
    return _read_parameters(Path(text))


def _parse_changes(text: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for change in text.split(","):
        name, equals, value = (part.strip() for part in change.partition("="))
        if not equals:
            raise UserError(f"--crf: '{change}': write changes as name=value, separated by commas")
        changes[_known(name)] = _parse_value(value)
    return changes


def _known(name: object) -> str:
    names = [field.name for field in fields(CRFParameters)]
    if name not in names:
        raise UserError(f"--crf: no parameter '{name}'{did_you_mean(str(name), names)}")
    return str(name)


def _parse_value(text: str) -> float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _read_parameters(path: Path) -> CRFParameters:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--crf {path}: cannot be read as YAML or JSON; write `name: value` lines") from error
    if not isinstance(content, dict):
        raise UserError(f"--crf {path}: holds no `name: value` lines")
    values = {_known(name): value for name, value in content.items()}
    missing = [field.name for field in fields(CRFParameters) if field.name not in values]
    if missing:
        raise UserError(f"--crf {path}: lacks {', '.join(missing)}")
    return CRFParameters(**values)


def format_crf(parameters: CRFParameters) -> str:
    """The text of a YAML file that `parse_crf` reads back."""
    return str(yaml.safe_dump(asdict(parameters), sort_keys=False))


def unary_from_logits(logits: Tensor) -> Tensor:
    """Energies -log softmax of a network's outputs: [K, ...] -> [K, ...]; nothing needs to be clipped."""
    return -functional.log_softmax(logits.float(), dim=0)


def unary_from_softmax(probabilities: Tensor, scale: float | None = None, clip: float = 1e-5) -> Tensor:
    """Energies -log p.

    Args:
        probabilities: [K, ...], which sum to 1 over K.
        scale: how far to trust them: p becomes scale p + (1 - scale) / K.
        clip: smallest probability, for softmaxes that reach 0.

    Returns:
        [K, ...] float32.
    """
    p = probabilities.float()
    if scale is not None:
        p = scale * p + (1 - scale) / len(p)
    return -p.clamp(clip, 1).log()


def unary_from_labels(labels: Tensor, classes: int, certainty: float = 0.7, zero_unsure: bool = False) -> Tensor:
    """Energies of a map of labels that may be wrong.

    Args:
        labels: [H, W], whole numbers.
        classes: K, the number of labels; without the 0 where it stands for unknown.
        certainty: probability that a label is right; the others share the rest.
        zero_unsure: 0 means unknown (all labels are equally probable), and label k is row k - 1 of the result.

    Returns:
        [K, H, W] float32.

    Raises:
        ValueError: a label outside the range, or a certainty that is no probability between 0 and 1.
    """
    if not 0 < certainty < 1:
        raise ValueError(f"certainty {certainty} is not between 0 and 1")
    given = labels.long() - int(zero_unsure)
    if len(outside := labels[(given < -int(zero_unsure)) | (given >= classes)]):
        raise ValueError(f"label {int(outside[0])} is none of {classes} classes")
    others = -math.log((1 - certainty) / max(classes - 1, 1))
    energy = torch.full((classes, *labels.shape), others, device=labels.device)
    energy.scatter_(0, given.clamp(min=0)[None], -math.log(certainty))
    return torch.where(given[None] < 0, math.log(classes), energy)


def gaussian_features(height: int, width: int, xy: float, device: torch.device | str = "cpu") -> Tensor:
    """Position, column first, in standard deviations: [H * W, 2] float32."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([columns, rows], dim=-1).reshape(-1, 2) / xy).to(device, torch.float32)


def bilateral_features(image: Tensor, xy: float, rgb: float) -> Tensor:
    """Position and color in standard deviations.

    Args:
        image: [3, H, W] uint8, the original colors.
        xy: standard deviation in pixels.
        rgb: standard deviation in color levels.

    Returns:
        [H * W, 5] float32: column, row, red, green, blue.
    """
    position = gaussian_features(image.shape[1], image.shape[2], xy, image.device)
    return torch.cat([position, image.flatten(1).T.float() / rgb], dim=1)


def kernel_matrix(features: Tensor, exclude_self: bool = False) -> Tensor:
    """The exact kernel exp(-|f_i - f_j|^2 / 2): [N, d] -> [N, N] float64.

    Args:
        features: in standard deviations.
        exclude_self: leave a point's message to itself out, as the paper's derivation does.
    """
    kernel = _kernel_rows(features.double(), features.double())
    return kernel.fill_diagonal_(0) if exclude_self else kernel


def _kernel_rows(rows: Tensor, features: Tensor) -> Tensor:
    # Differences, not products: nearly equal points would lose their distance to rounding.
    distance = torch.cdist(rows, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square_().mul_(-0.5).exp_()


def normalization_factors(sums: Tensor, mode: Normalization) -> tuple[Tensor, Tensor]:
    """The diagonals that stand before and after a kernel K in its normalized form ``diag(after) K diag(before)``.

    Args:
        sums: [N], the kernel's row sums K 1, which are the diagonal D.
        mode: "after" D^-1 K; "before" K D^-1; "symmetric" D^-1/2 K D^-1/2; "mean" N K / sum(D); "none" K.

    Returns:
        before, after: [N] each.
    """
    sums = sums + _TINY
    ones = torch.ones_like(sums)
    match mode:
        case "after":
            return ones, 1 / sums
        case "before":
            return 1 / sums, ones
        case "symmetric":
            return sums.rsqrt(), sums.rsqrt()
        case "mean":
            return ones, ones / sums.mean()
        case "none":
            return ones, ones


def normalize_kernel(kernel: Tensor, mode: Normalization) -> Tensor:
    """A kernel [N, N] in its normalized form; see `normalization_factors`."""
    before, after = normalization_factors(kernel.sum(dim=1), mode)
    return after[:, None] * kernel * before[None, :]


class Kernel(Protocol):
    """A Gaussian filter of N fixed points, as a matrix K."""

    def row_sums(self) -> Tensor:
        """K 1: [N]."""

    def weighted(self, before: Tensor, after: Tensor) -> Self:
        """The filter ``diag(after) K diag(before)``; [N] each."""


class ExactKernel:
    """The definition of the filter: every pair of points, in float64.

    Up to 10,000 points the matrix is kept, 800 MB; beyond, its rows are computed again whenever they are used.
    """

    def __init__(self, features: Tensor) -> None:
        self._features = features.double()
        self._matrix = kernel_matrix(features) if len(features) <= _LARGEST_MATRIX else None
        self._before = self._after = self._features.new_ones(len(features))

    def row_sums(self) -> Tensor:
        """K 1: [N]."""
        return self.filter(torch.ones_like(self._before)[:, None])[:, 0]

    def filter(self, values: Tensor) -> Tensor:
        """K values: [N, C] -> [N, C], in the values' type."""
        weighted = values.double() * self._before[:, None]
        if self._matrix is None:
            rows = [_kernel_rows(rows, self._features) @ weighted for rows in self._features.split(_ROWS)]
            result = torch.cat(rows)
        else:
            result = self._matrix @ weighted
        return (result * self._after[:, None]).to(values.dtype)

    def weighted(self, before: Tensor, after: Tensor) -> ExactKernel:
        """The filter ``diag(after) K diag(before)``; [N] each."""
        other = copy.copy(self)
        other._before, other._after = self._before * before, self._after * after
        return other


def mean_field(
    unary: Tensor, filters: Sequence[Filter], compatibilities: Sequence[Compatibility], iterations: int
) -> Tensor:
    """Fit a product of independent distributions by parallel updates.

    Args:
        unary: [N, K] energies.
        filters: of each kernel, normalized: [N, K] -> [N, K].
        compatibilities: of each kernel. A number w is the Potts model, which rewards agreement: A += w F. A tensor [K]
            or [K, K] is a cost, A -= F M^T.
        iterations: updates; 0 gives softmax(-unary).

    Returns:
        [N, K], which sum to 1 over K.
    """
    q = (-unary).softmax(dim=1)
    for _ in range(iterations):
        agreement = -unary
        for kernel, compatibility in zip(filters, compatibilities, strict=True):
            message = kernel(q)
            if isinstance(compatibility, Tensor):
                cost = compatibility.to(message)
                agreement -= message @ cost.T if cost.ndim == 2 else message * cost
            else:
                agreement.add_(message, alpha=compatibility)
        q = agreement.softmax(dim=1)
    return q


@torch.no_grad()
def dense_crf(image: Tensor, unary: Tensor, parameters: CRFParameters, backend: Backend = "lattice") -> Tensor:
    """Label probabilities of every pixel after mean-field inference.

    Args:
        image: [3, H, W] uint8, the original colors: neither scaled nor normalized, at the unaries' size.
        unary: [K, H, W] float energies (`unary_from_logits` and its siblings).
        parameters: the model.
        backend: "lattice" for images; "exact" compares every pair of pixels, for small images and tests.

    Returns:
        [K, H, W] float32 on the unaries' device, which sum to 1 over K.

    Raises:
        ValueError: an image of other colors or of another size.
        UserError: standard deviations too small for the lattice.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"the CRF takes an image [3, H, W] of uint8, not {list(image.shape)} of {image.dtype}")
    if unary.ndim != 3 or unary.shape[1:] != image.shape[1:]:
        raise ValueError(f"unaries {list(unary.shape)} do not have the size of the image {list(image.shape)}")
    kernels = _kernels(image.to(unary.device), parameters)
    if not kernels:
        return (-unary.float()).softmax(dim=0)
    energies = unary.float().flatten(1).T.contiguous()
    if backend == "exact":
        exact = [_normalized(ExactKernel(points), weight, parameters) for weight, points in kernels]
        q = mean_field(energies, [kernel.filter for kernel in exact], [1.0] * len(exact), parameters.iterations)
    else:
        q = _lattice_mean_field(energies, kernels, parameters)
    return q.T.reshape(unary.shape).contiguous()


def _kernels(image: Tensor, parameters: CRFParameters) -> list[tuple[float, Tensor]]:
    """Weight and features of each kernel that has a weight."""
    bilateral = bilateral_features(image, parameters.appearance_xy, parameters.appearance_rgb)
    position = gaussian_features(image.shape[1], image.shape[2], parameters.smoothness_xy, image.device)
    kernels = [(parameters.appearance_weight, bilateral), (parameters.smoothness_weight, position)]
    return [(weight, features) for weight, features in kernels if weight]


def _normalized(kernel: _KernelT, weight: float, parameters: CRFParameters) -> _KernelT:
    """The normalized kernel times its weight."""
    before, after = normalization_factors(kernel.row_sums(), parameters.normalization)
    return kernel.weighted(before, weight * after)


def _lattice_mean_field(energies: Tensor, kernels: list[tuple[float, Tensor]], parameters: CRFParameters) -> Tensor:
    # Imported here, since it loads the compiler.
    from labelwise.models.permutohedral import CompiledLattice, TensorLattice, potts_mean_field

    if energies.device.type == "cpu":
        compiled = [_normalized(CompiledLattice(points), weight, parameters) for weight, points in kernels]
        return potts_mean_field(energies, compiled, parameters.iterations)
    tensors = [_normalized(TensorLattice(points), weight, parameters) for weight, points in kernels]
    return mean_field(energies, [lattice.filter for lattice in tensors], [1.0] * len(tensors), parameters.iterations)
