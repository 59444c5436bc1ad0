"""Labels that change are kept in files, version by version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from labelwise import datasets
from labelwise.datasets.base import Classes
from labelwise.errors import BadFile, UserError
from labelwise.samples import Kind, Sample
from labelwise.tasks.label_store import (
    BIASED,
    LabelStore,
    StoredMaskView,
    UsedVersions,
    require_room_for_biased,
    write_label_folder,
)
from labelwise.transforms import RandomScaleCrop, WeakView

CLASSES = Classes(("background", "cat", "dog"))


def mask(seed: int = 0, values: int = 3) -> Tensor:
    return torch.randint(values, (6, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def sample(id: str = "a", seed: int = 0) -> Sample:
    return Sample(
        id=id, image=tv_tensors.Image(torch.full((3, 6, 8), 100, dtype=torch.uint8)), mask=tv_tensors.Mask(mask(seed))
    )


@pytest.mark.parametrize("id", ["2007_000027", "aachen/000_1", "../b", "a b", "ä%2F"])
def test_what_is_written_is_read_back(tmp_path: Path, id: str) -> None:
    store, written = LabelStore(tmp_path / "labels"), mask(values=256)
    store.write(3, id, written)
    assert torch.equal(store.read(3, id), written)
    assert all(path.is_relative_to(tmp_path / "labels" / "3") for path in tmp_path.rglob("*.png"))


def test_biased_pixels_are_told_from_ignored_ones(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    store.write(1, "a", torch.tensor([[0, BIASED, 255]], dtype=torch.uint8))
    assert store.read(1, "a").tolist() == [[0, BIASED, 255]]


def test_classes_that_leave_no_number_for_biased_pixels_are_refused() -> None:
    require_room_for_biased(Classes(tuple(map(str, range(254)))))
    with pytest.raises(UserError, match="255 classes"):
        require_room_for_biased(Classes(tuple(map(str, range(255)))))


def test_a_missing_mask_is_told_with_its_file_and_mend(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"7/a\.png.*labels of 'a' are missing.*new folder"):
        LabelStore(tmp_path).read(7, "a")


def test_a_version_is_there_when_it_was_finished(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels")
    store.write(1, "a", mask())
    assert not store.holds(1)
    store.finish(1)
    assert store.holds(1) and not store.holds(2)


def test_pruning_keeps_the_versions_that_are_named(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels")
    store.prune({1})
    for version in (1, 2, 3):
        store.write(version, "a", mask(version))
    store.prune({1, 3})
    assert torch.equal(store.read(1, "a"), mask(1)) and torch.equal(store.read(3, "a"), mask(3))
    with pytest.raises(BadFile):
        store.read(2, "a")


@given(st.lists(st.sampled_from(["correct", "save", "kill", "kill while saving", "damage"]), max_size=40))
def test_a_run_that_goes_on_finds_the_labels_of_any_checkpoint_that_is_kept(events: list[str]) -> None:
    """Two checkpoints are kept, the newest may turn out damaged; labels are pruned as ADELE does."""
    versions, kept, step = UsedVersions(), [], 0
    stored: set[int] = set()
    for event in events:
        if event == "correct":
            step += 1
            stored.add(step)
            versions.current = step
            stored &= versions.needed
        elif event == "save":
            checkpoint: dict[str, object] = {"step": step}
            versions.save(checkpoint)
            kept = [*kept, checkpoint][-2:]
        else:
            if event == "kill while saving":
                versions.save({})
            if event == "damage" and len(kept) > 1:
                kept.pop()
            versions, step = UsedVersions(), 0
            if kept:
                versions.load(kept[-1])
                step = kept[-1]["step"]
        assert all(set(checkpoint["label_versions"][:1]) <= stored | {0} for checkpoint in kept)
        assert versions.current in stored | {0}


def test_both_masks_are_cut_as_the_image_is() -> None:
    """The image's red channel holds the current mask, its green one the given mask."""
    given_mask, current = mask(0), mask(1)
    image = torch.stack([40 * current, 40 * given_mask, 0 * current])
    whole = Sample(id="a", image=tv_tensors.Image(image), mask=tv_tensors.Mask(given_mask))
    geometric = v2.Compose([RandomScaleCrop(5, scale=(1.0, 1.0)), v2.RandomHorizontalFlip()])
    for seed in range(5):
        torch.manual_seed(seed)
        views = StoredMaskView(WeakView(geometric), lambda _: current)(whole)
        assert torch.equal(40 * views.sample.mask, views.sample.image[0])
        assert torch.equal(40 * views.targets["original"], views.sample.image[1])


def test_labels_are_left_as_a_data_set_that_can_be_opened(tmp_path: Path) -> None:
    samples = [sample("a", 1), sample("b", 2)]
    for _ in range(2):
        write_label_folder(tmp_path / "labels", CLASSES, samples)
    left = datasets.open(tmp_path / "labels")
    assert left.ids("train") == ("a", "b") and left.classes == CLASSES
    assert all(torch.equal(left.read(each.id, {Kind.MASKS}).mask, each.mask) for each in samples)
