"""mIoU update against torchmetrics and the classical three histograms: agreement first, then times.

The classical version is the one most segmentation code bases carry: one `np.histogram` each for the pixels that agree,
the prediction and the ground truth. Run with `python benchmarks/miou.py`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from labelwise.metrics.segmentation import SegmentationScores
from timing import medians_ms, print_table

HEIGHT, WIDTH, CLASSES, IGNORE = 375, 500, 21, 255
IMAGES, REPETITIONS, GATE = 20, 15, 8.0
Pair = tuple[Tensor, Tensor]


def scenes() -> list[Pair]:
    """Masks with areas and contours as in VOC: rectangles over background, a void line around each, some errors."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(IMAGES):
        target = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for label in rng.integers(1, CLASSES, size=4):
            top, left = rng.integers(0, HEIGHT - 80), rng.integers(0, WIDTH - 80)
            height, width = rng.integers(40, 250, size=2)
            target[top : top + height, left : left + width] = IGNORE
            target[top + 3 : top + height - 3, left + 3 : left + width - 3] = label
        prediction = np.where(target == IGNORE, 0, target).astype(np.uint8)
        prediction = np.roll(prediction, rng.integers(-9, 10, size=2), axis=(0, 1))
        noisy = rng.random((HEIGHT, WIDTH)) < 0.02
        prediction[noisy] = rng.integers(0, CLASSES, size=int(noisy.sum()))
        pairs.append((torch.from_numpy(prediction), torch.from_numpy(target)))
    return pairs


class ThreeHistograms:
    """Areas of intersection, prediction and ground truth by `np.histogram`, summed over images."""

    def __init__(self) -> None:
        self.areas = np.zeros((3, CLASSES), dtype=np.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        truth = target.numpy().ravel()
        guess = prediction.numpy().ravel().copy()
        guess[truth == IGNORE] = IGNORE
        edges = np.arange(CLASSES + 1)
        for area, values in zip(self.areas, (guess[guess == truth], guess, truth), strict=True):
            area += np.histogram(values, bins=edges)[0]


def ours() -> SegmentationScores:
    return SegmentationScores([str(number) for number in range(CLASSES)])


def torchmetrics_jaccard(validate: bool) -> MulticlassJaccardIndex:
    return MulticlassJaccardIndex(CLASSES, ignore_index=IGNORE, validate_args=validate)


def agreement(pairs: list[Pair]) -> dict[str, bool]:
    """Whether the peers' counts equal ours, pixel for pixel."""
    mine, jaccard, classical = ours(), torchmetrics_jaccard(True), ThreeHistograms()
    for pair in pairs:
        mine.update(*pair)
        jaccard.update(*pair)
        classical.update(*pair)
    histogram = mine.histogram
    areas = torch.stack([histogram.diagonal(), histogram.sum(dim=0), histogram.sum(dim=1)])
    return {
        "torchmetrics": torch.equal(jaccard.confmat.long(), histogram),
        "three histograms": torch.equal(torch.from_numpy(classical.areas), areas),
    }


def timing_rows(pairs: list[Pair]) -> tuple[list[list[str]], float]:
    """A table row per implementation, and the smallest ratio to ours on maps of bytes, as they are stored.

    Class maps fresh from an arg-max are int64; reading and checking these eight times as many bytes is memory-bound.
    """
    updates: dict[str, Callable[[Tensor, Tensor], None]] = {
        "labelwise": ours().update,
        "three histograms (numpy)": ThreeHistograms().update,
        "torchmetrics": torchmetrics_jaccard(True).update,
        "torchmetrics, validate_args=False": torchmetrics_jaccard(False).update,
    }
    narrow = per_image(updates, pairs)
    wide = per_image(updates, [(prediction.long(), target) for prediction, target in pairs])
    rows, ratios = [], []
    for name in updates:
        ratio, wide_ratio = narrow[name] / narrow["labelwise"], wide[name] / wide["labelwise"]
        ratios.append(ratio)
        rows.append([name, f"{narrow[name]:.3f}", f"{ratio:.1f}x", f"{wide[name]:.3f}", f"{wide_ratio:.1f}x"])
    return rows, min(ratios[1:])


def per_image(updates: dict[str, Callable[[Tensor, Tensor], None]], pairs: list[Pair]) -> dict[str, float]:
    def one_pass(update: Callable[[Tensor, Tensor], None]) -> Callable[[], None]:
        def run() -> None:
            for pair in pairs:
                update(*pair)

        return run

    passes = {name: one_pass(update) for name, update in updates.items()}
    # Processor time of the one thread: other programs do not count.
    medians = medians_ms(passes, REPETITIONS, clock=time.process_time)
    return {name: taken / len(pairs) for name, taken in medians.items()}


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def deterministic_rows(pair: Pair) -> list[list[str]]:
    """One image under `torch.use_deterministic_algorithms(True)`: time and growth of the process's peak memory."""
    rows: list[list[str]] = []
    mine = 0.0
    for name, metric in (("labelwise", ours()), ("torchmetrics", torchmetrics_jaccard(True))):
        before = peak_mb()
        with deterministic():
            start = time.process_time()
            metric.update(*pair)
            taken = 1000 * (time.process_time() - start)
        mine = mine or taken
        rows.append([name, f"{taken:.2f}", f"{taken / mine:.0f}x", f"{peak_mb() - before:.0f}"])
    return rows


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    torch.set_num_threads(1)
    pairs = scenes()
    print(f"torch {torch.__version__}, torchmetrics {torchmetrics.__version__}, numpy {np.__version__}, one thread")
    print(f"{IMAGES} images of {HEIGHT} x {WIDTH}, {CLASSES} classes; processor time, median of {REPETITIONS} passes")
    exact = agreement(pairs)
    for peer, same in exact.items():
        print(f"counts equal to {peer}: {'exactly' if same else 'NO'}")
    if not all(exact.values()):
        return 1
    print_table(
        "One image, deterministic algorithms on", ["update", "ms", "ratio", "peak + MB"], deterministic_rows(pairs[0])
    )
    rows, least = timing_rows(pairs)
    print_table("Update per image", ["update", "uint8, ms", "ratio", "int64 prediction, ms", "ratio"], rows)
    print(f"smallest ratio on uint8 {least:.1f}x, wanted {GATE:.0f}x: {'met' if least >= GATE else 'NOT MET'}")
    return 0 if least >= GATE else 1


if __name__ == "__main__":
    sys.exit(main())
