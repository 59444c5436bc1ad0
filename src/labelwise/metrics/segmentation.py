"""Mean intersection over union of PASCAL VOC, from one joint histogram over the whole set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from labelwise.errors import UserError

IGNORE_INDEX = 255
MOST_CLASSES = 254
_LANES = 16
_BLOCK = 256 * _LANES


@dataclass
class Scores:
    """What `SegmentationScores` computes; percentages.

    Attributes:
        miou: the mean of `iou` over the classes that are not None.
        iou: class name -> intersection over union; None for a class that occurs in neither masks nor predictions.
        pixel_accuracy: the share of pixels whose class is right.
        images: how many images were scored.
        histogram: [K, K] int64, pixels by true class (row) and predicted class (column).
    """

    miou: float
    iou: dict[str, float | None]
    pixel_accuracy: float
    images: int
    histogram: Tensor

    @property
    def mean_accuracy(self) -> float:
        """The mean over the classes that occur in masks of the share of their pixels that is found."""
        pixels = self.histogram.sum(dim=1)
        found = self.histogram.diagonal()[pixels > 0] / pixels[pixels > 0].double()
        return 100 * float(found.mean())

    @property
    def frequency_weighted_iou(self) -> float:
        """The mean of the classes' IoU, each weighted by its share of the pixels in masks (FCN, section 5)."""
        pixels, right = self.histogram.sum(dim=1), self.histogram.diagonal()
        union = pixels + self.histogram.sum(dim=0) - right
        return 100 * float((pixels * right / union.clamp(min=1).double()).sum() / pixels.sum())


class SegmentationScores(Metric):
    """Accumulates the joint histogram of true and predicted classes; sums exactly over updates and processes.

    Pixels whose true label is `ignore_index` are dropped, whatever is predicted there. The score is computed from the
    counts of the whole set, never as a mean over images.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    histogram: Tensor
    images: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_index: int = IGNORE_INDEX,
        absent: Literal["skip", "zero"] = "skip",
    ) -> None:
        """Start empty.

        Args:
            class_names: one name per class number, at most 254.
            ignore_index: the mask value of pixels that do not count; no class number.
            absent: a class that occurs in neither masks nor predictions is left out of the mean ("skip", as Cross
                Pseudo Supervision does) or counts as 0 ("zero", as UniMatch does).

        Raises:
            ValueError: too many classes, or `ignore_index` is a class number or no uint8.
        """
        super().__init__()
        classes = len(class_names)
        if not 1 <= classes <= MOST_CLASSES:
            raise ValueError(f"{classes} classes; a mask of bytes can have 1 to {MOST_CLASSES}")
        if not classes <= ignore_index <= 255:
            raise ValueError(f"ignore_index {ignore_index} is not between the last class and 255")
        self.class_names = tuple(class_names)
        self.ignore_index = ignore_index
        self.absent = absent
        self.add_state("histogram", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one image or a batch of images; an update that raises counts nothing.

        Args:
            prediction: [..., H, W] class numbers, any integer type; uint8 is fastest.
            target: of the same size, class numbers or `ignore_index`.

        Raises:
            UserError: sizes differ, a value is no class number, or a mask holds a label that is neither a class
                nor ignored.
        """
        histogram = joint_histogram(prediction, target, len(self.class_names), self.ignore_index)
        self.histogram += histogram.to(self.histogram.device)
        self.images += target.shape[:-2].numel()

    def compute(self) -> Scores:
        """The scores of everything counted so far, over all processes.

        Raises:
            UserError: no pixel was counted.
        """
        histogram = self.histogram.cpu()
        pixels = int(histogram.sum())
        if pixels == 0:
            raise UserError("nothing to score: no evaluated image has a labeled pixel; give a split with masks")
        right = histogram.diagonal()
        union = histogram.sum(dim=0) + histogram.sum(dim=1) - right
        iou, miou = class_scores(self.class_names, right, union, self.absent)
        return Scores(miou, iou, 100 * int(right.sum()) / pixels, int(self.images), histogram.clone())


def class_scores(
    names: Sequence[str], intersection: Tensor, union: Tensor, absent: Literal["skip", "zero"]
) -> tuple[dict[str, float | None], float]:
    """Intersection over union in percent, per class and their mean.

    Args:
        names: K class names.
        intersection: [K] int64 counts.
        union: [K] int64 counts, with at least one that is not 0.
        absent: "skip" gives None for a class without union and leaves it out of the mean, "zero" counts it as 0.

    Returns:
        Class name -> percent, and the mean.
    """
    nothing = 0.0 if absent == "zero" else None
    counts = zip(names, intersection.tolist(), union.tolist(), strict=True)
    iou = {name: 100 * both / either if either else nothing for name, both, either in counts}
    present = [value for value in iou.values() if value is not None]
    return iou, sum(present) / len(present)


def joint_histogram(prediction: Tensor, target: Tensor, classes: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """How often each pair of true and predicted class occurs.

    Args:
        prediction: [..., H, W] integers.
        target: integers of the same size.
        classes: K, at most 254.
        ignore_index: the label of pixels to drop.

    Returns:
        [K, K] int64; rows are true classes, columns predicted ones.

    Raises:
        UserError: as `SegmentationScores.update`.
    """
    check_sizes(prediction, target)
    target = as_bytes(target, "mask")
    prediction = as_bytes(prediction, "prediction")
    # Row 0 takes the ignored pixels (255 + 1 wraps to 0), row K + 1 and column K every wrong value.
    row = target + 1
    if ignore_index != IGNORE_INDEX:
        row = row.masked_fill_(row == 0, classes + 1).masked_fill_(target == ignore_index, 0)
    row = row.clamp_(max=classes + 1)
    rows, columns = classes + 2, classes + 1
    counts = _count_pairs(row, prediction.clamp(max=classes), rows, columns)
    if counts[-1].any():
        raise wrong_label("mask", target, classes, ignore_index)
    if counts[1:, -1].any():
        raise wrong_label("prediction", prediction[row != 0], classes)
    return counts[1:-1, :-1]


def _count_pairs(row: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    # Neighbouring pixels mostly have the same pair. Counting them in one bin makes every increment wait for the one
    # before; so neighbours count in lanes of their own, which are added up at the end.
    bins = rows * columns
    narrow = bins * _LANES <= torch.iinfo(torch.int16).max
    pair = row.to(torch.int16 if narrow else torch.int32).mul_(columns).add_(column).flatten()
    lanes = torch.arange(0, bins * _LANES, bins, dtype=pair.dtype, device=pair.device)
    # A few pixels at the end stay in the first lane; long blocks, since adding short ones is slow.
    whole = pair.numel() - pair.numel() % _BLOCK
    pair[:whole].view(-1, _BLOCK).add_(lanes.repeat(_BLOCK // _LANES))
    return torch.bincount(pair, minlength=bins * _LANES).view(_LANES, rows, columns).sum(dim=0)


def check_sizes(prediction: Tensor, target: Tensor) -> None:
    """Refuse a prediction of another size than its mask.

    Raises:
        UserError: the sizes differ.
    """
    if prediction.shape != target.shape:
        sizes = ["x".join(map(str, values.shape)) for values in (prediction, target)]
        raise UserError(f"the prediction is {sizes[0]} pixels, the mask {sizes[1]}; predict at the image's own size")


def as_bytes(values: Tensor, what: str) -> Tensor:
    """Class numbers as uint8.

    Raises:
        UserError: the values are not integers, or do not fit.
    """
    if values.dtype == torch.uint8:
        return values
    if values.is_floating_point() or values.is_complex():
        raise UserError(f"the {what} holds {values.dtype} values; class numbers are integers")
    if not _all_fit(values):
        low, high = (int(bound) for bound in torch.aminmax(values))
        raise UserError(f"the {what} holds {low if low < 0 else high}; class numbers are 0 to 255")
    return values.to(torch.uint8)


def _all_fit(values: Tensor) -> bool:
    if values.is_cpu:
        # The bits that any value has: found several times faster than the smallest and the largest value.
        return not int(np.bitwise_or.reduce(values.numpy(), axis=None)) & ~255
    return bool(((values >= 0) & (values <= 255)).all())


def wrong_label(what: str, values: Tensor, classes: int, ignore_index: int | None = None) -> UserError:
    """The error that names the values which are no class number.

    Args:
        what: "mask" or "prediction".
        values: uint8.
        classes: the number of classes.
        ignore_index: a value that is allowed beside them.
    """
    wrong = [value for value in torch.unique(values).tolist() if value >= classes and value != ignore_index]
    ignored = "" if ignore_index is None else f" or {ignore_index} (ignored)"
    return UserError(
        f"the {what} holds {', '.join(map(str, wrong))}; the {classes} classes are 0 to {classes - 1}{ignored}"
    )
