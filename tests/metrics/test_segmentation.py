"""Mean IoU: exact counts against brute force, refusals, order, merging, processes, determinism."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labelwise.errors import UserError
from labelwise.metrics.segmentation import Scores, SegmentationScores, joint_histogram

NAMES = ("background", "cat", "dog", "bird")
K = len(NAMES)


def maps(seed: int, shape: tuple[int, ...] = (7, 9), classes: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    target = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    target[torch.rand(shape, generator=generator) < 0.2] = 255
    return prediction, target


def counted_by_hand(prediction: Tensor, target: Tensor, classes: int = K) -> list[list[int]]:
    table = [[0] * classes for _ in range(classes)]
    for guess, truth in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if truth != 255:
            table[truth][guess] += 1
    return table


def scores_of(*pairs: tuple[Tensor, Tensor], **options: object) -> Scores:
    metric = SegmentationScores(NAMES, **options)  # type: ignore[arg-type]
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric.compute()


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    classes=st.sampled_from([1, 2, 21, 100, 254]),
    dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
)
@settings(max_examples=50, deadline=None)
def test_the_histogram_counts_every_pair(seed: int, height: int, width: int, classes: int, dtype: torch.dtype) -> None:
    prediction, target = maps(seed, (height, width), classes)
    found = joint_histogram(prediction.to(dtype), target.to(dtype), classes)
    assert found.tolist() == counted_by_hand(prediction, target, classes)


def test_scores_by_hand() -> None:
    target = torch.tensor([[0, 0, 1, 1], [0, 2, 255, 1]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1, 1], [0, 0, 3, 0]], dtype=torch.uint8)
    found = scores_of((prediction, target))
    assert found.iou == {"background": pytest.approx(100 * 2 / 5), "cat": 50.0, "dog": 0.0, "bird": None}
    assert found.miou == pytest.approx((40 + 50 + 0) / 3)
    assert found.pixel_accuracy == pytest.approx(100 * 4 / 7)
    assert found.mean_accuracy == pytest.approx((200 / 3 + 200 / 3 + 0) / 3)
    assert found.frequency_weighted_iou == pytest.approx((3 * 40 + 3 * 50 + 1 * 0) / 7)
    assert found.images == 1
    assert found.histogram[1].tolist() == [1, 2, 0, 0]


def test_an_absent_class_can_count_as_zero() -> None:
    ones = torch.ones(2, 2, dtype=torch.uint8)
    assert scores_of((ones, ones)).miou == 100
    assert scores_of((ones, ones), absent="zero").miou == 25
    assert scores_of((ones, ones), absent="zero").iou["dog"] == 0


def test_a_class_that_is_only_predicted_has_no_accuracy() -> None:
    target = torch.tensor([[0, 0, 0, 0]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 0, 0, 1]], dtype=torch.uint8)
    found = scores_of((prediction, target))
    assert found.mean_accuracy == 75
    assert found.frequency_weighted_iou == 75
    assert found.miou == 37.5


def test_the_mean_is_over_the_set_and_not_over_images() -> None:
    right = (torch.ones(1, 9, dtype=torch.uint8), torch.ones(1, 9, dtype=torch.uint8))
    wrong = (torch.zeros(1, 1, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.uint8))
    assert scores_of(right, wrong).iou["cat"] == pytest.approx(90)


def test_predictions_on_ignored_pixels_do_not_matter() -> None:
    prediction, target = maps(0)
    expected = scores_of((prediction, target)).histogram
    for value in (0, 3, 255):
        changed = prediction.masked_fill(target == 255, value)
        assert torch.equal(scores_of((changed, target)).histogram, expected)


def test_another_ignore_index() -> None:
    prediction, target = maps(1)
    expected = scores_of((prediction, target)).histogram
    void = target.masked_fill(target == 255, 11)
    assert torch.equal(scores_of((prediction, void), ignore_index=11).histogram, expected)
    with pytest.raises(UserError, match="255"):
        scores_of((prediction, target), ignore_index=11)


@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=5), shuffled=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_neither_order_nor_batching_matters(seeds: list[int], shuffled) -> None:  # type: ignore[no-untyped-def]
    pairs = [maps(seed) for seed in seeds]
    together = tuple(torch.stack(part) for part in zip(*pairs, strict=True))
    expected = scores_of(together)  # type: ignore[arg-type]
    shuffled.shuffle(pairs)
    assert_same(scores_of(*pairs), expected)


def test_images_of_different_sizes_add_up() -> None:
    small, large = maps(0, (3, 4)), maps(1, (2, 8, 5))
    found = scores_of(small, large)
    assert found.images == 3
    assert torch.equal(found.histogram, scores_of(small).histogram + scores_of(large).histogram)


def test_reset_forgets() -> None:
    metric = SegmentationScores(NAMES)
    metric.update(*maps(0))
    metric.reset()
    metric.update(*maps(1))
    assert_same(metric.compute(), scores_of(maps(1)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(
    ("which", "value", "words"),
    [
        ("target", 37, r"mask holds 37; the 4 classes are 0 to 3 or 255 \(ignored\)"),
        ("target", 4, "mask holds 4;"),
        ("target", 254, "mask holds 254;"),
        ("prediction", 4, "prediction holds 4; the 4 classes are 0 to 3"),
        ("prediction", 255, "prediction holds 255;"),
    ],
)
def test_a_label_that_is_no_class_is_refused(which: str, value: int, words: str, dtype: torch.dtype) -> None:
    prediction, target = (part.to(dtype) for part in maps(0))
    target[0, 0] = 0
    (target if which == "target" else prediction)[0, 0] = value
    metric = SegmentationScores(NAMES)
    with pytest.raises(UserError, match=words):
        metric.update(prediction, target)
    assert not metric.histogram.any()
    assert metric.images == 0


@pytest.mark.parametrize("value", [-1, 256, 1000])
def test_numbers_beyond_a_byte_are_refused(value: int) -> None:
    prediction, target = maps(0)
    wide = prediction.long()
    wide[0, 0] = value
    with pytest.raises(UserError, match=f"prediction holds {value};"):
        scores_of((wide, target))


def test_floats_are_refused() -> None:
    prediction, target = maps(0)
    with pytest.raises(UserError, match="float32"):
        scores_of((prediction.float(), target))


def test_another_size_is_refused() -> None:
    prediction, target = maps(0)
    with pytest.raises(UserError, match="9x7 pixels, the mask 7x9"):
        scores_of((prediction.T, target))


def test_nothing_to_score_is_said() -> None:
    void = torch.full((2, 2), 255, dtype=torch.uint8)
    with pytest.raises(UserError, match="nothing to score"):
        scores_of((void, void))


@pytest.mark.parametrize(("names", "ignored"), [((), 255), (("a",) * 255, 255), (("a", "b"), 1), (("a",), 256)])
def test_impossible_settings_are_refused(names: tuple[str, ...], ignored: int) -> None:
    with pytest.raises(ValueError, match="class"):
        SegmentationScores(names, ignore_index=ignored)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode_is_exact_and_stays_small(deterministic: None) -> None:
    prediction, target = maps(3, (375, 500), 21)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        found = joint_histogram(prediction, target, 21)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert found.sum() == (target != 255).sum()
    assert allocated < 50_000_000


def assert_same(found: Scores, expected: Scores) -> None:
    assert torch.equal(found.histogram, expected.histogram)
    assert (found.miou, found.iou, found.pixel_accuracy, found.images) == (
        expected.miou,
        expected.iou,
        expected.pixel_accuracy,
        expected.images,
    )


def evaluate_share(rank: int, processes: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes
    )
    metric = SegmentationScores(NAMES)
    for seed in range(rank, 7, processes):
        metric.update(*maps(seed, (4 + seed, 5)))
    found = metric.compute()
    result = [found.miou, found.iou, found.pixel_accuracy, found.images, found.histogram.tolist()]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_scores(processes: int, tmp_path: Path) -> None:
    expected = scores_of(*(maps(seed, (4 + seed, 5)) for seed in range(7)))
    # Forked, since a spawned process would import torch again.
    multiprocessing.start_processes(evaluate_share, (processes, str(tmp_path)), nprocs=processes, start_method="fork")
    for rank in range(processes):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert_same(Scores(*found[:4], torch.tensor(found[4])), expected)
