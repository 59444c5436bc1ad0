"""Mean IoU in narrow bands around the boundaries of the ground truth (Kohli et al., IJCV 2009; DeepLab v1, v2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from labelwise.metrics.boundary import window_extreme
from labelwise.metrics.segmentation import IGNORE_INDEX, as_bytes, check_sizes, class_scores, wrong_label

WIDTHS = (1, 5, 10, 20, 40)
"""Of the 1 to 40 pixels that the papers' figures show."""


class TrimapIoU(Metric):
    """Mean IoU over the pixels that lie at most so many pixels away from a pixel of another label.

    An ignored pixel is one of another label, so that in VOC a band follows the void contours that its annotators drew
    around the objects; where there is no void it follows the borders of the regions. Distance is measured in square
    neighbourhoods. Ignored pixels are never scored. The counts of each class are added up over the set.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    histograms: Tensor

    def __init__(
        self, class_names: Sequence[str], widths: Sequence[int] = WIDTHS, ignore_index: int = IGNORE_INDEX
    ) -> None:
        """Start empty.

        Args:
            class_names: one name per class number, at most 254.
            widths: of the bands, in pixels on either side, rising.
            ignore_index: the mask value of pixels that do not count; no class number.

        Raises:
            ValueError: the widths do not rise from 1 or more.
        """
        super().__init__()
        if not widths or list(widths) != sorted({width for width in widths if width >= 1}):
            raise ValueError(f"widths {tuple(widths)} do not rise from 1 or more")
        self.class_names = tuple(class_names)
        self.widths = tuple(widths)
        self.ignore_index = ignore_index
        classes = len(self.class_names)
        # Of the ring between each band and the one before.
        empty = torch.zeros(len(self.widths), classes, classes, dtype=torch.int64)
        self.add_state("histograms", empty, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count one image or a batch of images of equal size; an update that raises counts nothing.

        Args:
            prediction: [..., H, W] class numbers, any integer type.
            target: of the same size, class numbers or `ignore_index`.

        Raises:
            UserError: sizes differ, a scored value is no class number, or a mask holds a label that is neither a
                class nor ignored.
        """
        check_sizes(prediction, target)
        target = as_bytes(target, "mask")
        prediction = as_bytes(prediction, "prediction")
        ring = nearest_band(target, self.widths)
        scored = (ring < len(self.widths)) & (target != self.ignore_index)
        true, guessed = target[scored].long(), prediction[scored].long()
        classes = len(self.class_names)
        for what, values in (("mask", true), ("prediction", guessed)):
            if values.numel() and int(values.max()) >= classes:
                raise wrong_label(what, values, classes)
        cell = (ring[scored] * classes + true) * classes + guessed
        counts = torch.bincount(cell, minlength=self.histograms.numel())
        self.histograms += counts.view_as(self.histograms).to(self.histograms.device)

    def compute(self) -> dict[int, float | None]:
        """Width -> mean IoU in percent of everything counted so far, over all processes; None where no pixel lies."""
        bands = self.histograms.cumsum(0).cpu()
        return dict(zip(self.widths, map(self._miou, bands), strict=True))

    def _miou(self, histogram: Tensor) -> float | None:
        right = histogram.diagonal()
        union = histogram.sum(0) + histogram.sum(1) - right
        return class_scores(self.class_names, right, union, absent="skip")[1] if union.any() else None


def nearest_band(labels: Tensor, widths: Sequence[int]) -> Tensor:
    """For each pixel the first of the bands that it lies in.

    Args:
        labels: [..., H, W] uint8.
        widths: rising; a pixel lies in a band where another label is at most so many pixels away, in a square.

    Returns:
        [..., H, W] int64, positions in `widths`; their number where a pixel lies in none.
    """
    return sum((highest == lowest).long() for highest, lowest in _extremes(labels, widths))  # type: ignore[return-value]


def _extremes(labels: Tensor, widths: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The highest and the lowest label around each pixel, for one width after the other, each from the one before."""
    highest = lowest = labels
    before = 0
    for width in widths:
        highest = _around(torch.maximum, highest, width - before, fill=0)
        lowest = _around(torch.minimum, lowest, width - before, fill=255)
        before = width
        yield highest, lowest


def _around(extreme: Callable[[Tensor, Tensor], Tensor], labels: Tensor, distance: int, fill: int) -> Tensor:
    padded = functional.pad(labels, (distance,) * 4, value=fill)
    return window_extreme(extreme, padded, 2 * distance + 1)
