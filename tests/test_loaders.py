"""What a step sees is a function of the seed and the step; what an evaluation sees is every image once."""

from __future__ import annotations

import signal
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from labelwise import datasets
from labelwise.errors import UserError
from labelwise.loaders import (
    EndlessBatches,
    EveryOnce,
    StreamSet,
    derive_seed,
    evaluation_loader,
    training_loader,
)
from labelwise.method import Method, Stream
from labelwise.methods.few_masks.cps import CPS
from labelwise.samples import Kind, Sample, Views
from tests.tiny_runs import tiny_run

sizes, counts = st.integers(1, 20), st.integers(1, 5)


def plan(size: int, batch: int, seed: int, stop: int, **options: int) -> list[list[tuple[int, int]]]:
    return list(EndlessBatches(size, batch, seed=seed, start=options.pop("start", 0), stop=stop, **options))


@given(size=sizes, batch=counts, seed=st.integers(0, 3), stop=st.integers(0, 12), data=st.data())
def test_a_plan_that_starts_later_is_the_rest_of_the_whole_plan(
    size: int, batch: int, seed: int, stop: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, stop))
    assert plan(size, batch, seed, stop, start=start) == plan(size, batch, seed, stop)[start:]


@given(size=sizes, batch=counts, world=counts, seed=st.integers(0, 3))
def test_all_devices_together_see_what_one_with_the_whole_batch_sees(
    size: int, batch: int, world: int, seed: int
) -> None:
    shares = [plan(size, batch, seed, 6, rank=rank, world=world) for rank in range(world)]
    together = [list(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]
    assert together == plan(size, batch * world, seed, 6)


@given(size=sizes, batch=counts, passes=counts, seed=st.integers(0, 3))
def test_a_divided_batch_holds_the_same_images(size: int, batch: int, passes: int, seed: int) -> None:
    divided = chain.from_iterable(plan(size, batch, seed, 4 * passes))
    assert list(divided) == list(chain.from_iterable(plan(size, batch * passes, seed, 4)))


@given(size=sizes, batch=counts, seed=st.integers(0, 3))
def test_each_pass_shows_each_image_once_and_each_draw_has_its_own_number(size: int, batch: int, seed: int) -> None:
    drawn = list(chain.from_iterable(plan(size, batch, seed, 4 * size)))
    assert [draw for _, draw in drawn] == list(range(len(drawn)))
    for first in range(0, len(drawn) - size, size):
        assert sorted(index for index, _ in drawn[first : first + size]) == list(range(size))


def test_passes_and_seeds_have_their_own_order() -> None:
    orders = [[index for index, _ in plan(50, 50, seed, 3)[number]] for seed in (0, 1) for number in range(3)]
    assert all(first != second for first, second in pairwise(orders))


@given(size=st.integers(0, 30), world=st.integers(1, 7))
def test_an_evaluation_sees_each_image_once_over_all_devices(size: int, world: int) -> None:
    shares = [list(EveryOnce(size, rank, world)) for rank in range(world)]
    assert Counter(chain.from_iterable(shares)) == Counter(range(size))
    assert [len(EveryOnce(size, rank, world)) for rank in range(world)] == list(map(len, shares))


def test_more_devices_than_images_to_score_are_refused(shapes_folder: Path) -> None:
    dataset = datasets.open(shapes_folder)
    ids = dataset.ids("val")[:2]
    with pytest.raises(UserError, match="3 devices cannot share 2 images"):
        evaluation_loader(dataset, ids, frozenset({Kind.MASKS}), rank=0, world=3)
    assert len(evaluation_loader(dataset, ids, frozenset({Kind.MASKS}), rank=1, world=2)) == 1


@given(first=st.integers(), second=st.text(), other=st.integers())
def test_a_seed_depends_on_every_part(first: int, second: str, other: int) -> None:
    seed = derive_seed(first, "draw", second)
    assert 0 <= seed < 2**63
    assert (derive_seed(other, "draw", second) == seed) == (other == first)


def read_noise(id: str) -> Sample:
    return Sample(id=id, image=tv_tensors.Image(torch.zeros(3, 2, 2, dtype=torch.uint8)))


def add_noise(sample: Sample) -> Views:
    return Views(sample=sample, strong=(torch.rand(4),))


def loader(workers: int, start: int = 0) -> Any:
    images = StreamSet(read_noise, ("a", "b", "c"), Stream("labeled", add_noise), seed=5)
    return training_loader(images, EndlessBatches(3, 2, seed=5, start=start, stop=6), workers)


def test_augmentation_depends_on_the_draw_and_not_on_the_process_or_the_start() -> None:
    torch.manual_seed(1)
    whole = [(batch.ids, batch.strong[0].tolist()) for batch in loader(0)]
    torch.manual_seed(2)
    cut = [(batch.ids, batch.strong[0].tolist()) for batch in loader(1, start=2)]
    assert cut == whole[2:]
    assert len({str(noise) for _, noise in whole}) == len(whole)


def test_augmentation_leaves_the_step_s_own_random_numbers_alone() -> None:
    batches = iter(loader(0))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(batches)
    assert torch.equal(torch.rand(3), expected)


def read_dispositions(_: str) -> Sample:
    ignored = [signal.getsignal(signum) is signal.SIG_IGN for signum in (signal.SIGTERM, signal.SIGINT)]
    return Sample(id=f"{ignored}, {torch.get_num_threads()}", image=read_noise("").image)


def test_loader_processes_leave_signals_to_the_main_process_and_cores_to_each_other() -> None:
    images = StreamSet(read_dispositions, "a", Stream("labeled", add_noise), seed=5)
    (batch,) = training_loader(images, EndlessBatches(1, 1, seed=5, start=0, stop=1), workers=1)
    assert batch.ids == ("[True, True], 1",)


@pytest.mark.parametrize(("labels", "shared"), [("masks:all", True), ("masks:6", False)])
def test_an_unlabelled_stream_carries_no_labels_even_of_labelled_images(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: str, shared: bool
) -> None:
    losses, seen = CPS.losses, []

    def watched(self: Method, **streams: Any) -> Any:
        seen.append(streams)
        return losses(self, **streams)

    monkeypatch.setattr(CPS, "losses", watched)
    tiny_run("cps", shapes_folder, tmp_path, labels=labels, steps=6)
    ids = {name: {id for streams in seen for id in streams[name].ids} for name in ("labeled", "unlabeled", "partner")}
    assert (ids["unlabeled"] <= ids["labeled"]) == shared
    assert ids["unlabeled"].isdisjoint(ids["labeled"]) != shared
    for streams in seen:
        assert streams["labeled"].mask is not None
        for name in ("unlabeled", "partner"):
            present = {field for field, value in vars(streams[name]).items() if value is not None and len(value)}
            assert present == {"ids", "image", "padding"}
