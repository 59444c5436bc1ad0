"""Proposals are made once and kept; files that somebody made are checked before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from labelwise.errors import BadFile, UserError
from labelwise.models.selective_search import selective_search_regions
from labelwise.samples import Sample
from labelwise.tasks import proposal_sources
from labelwise.tasks.proposal_sources import ProposalSource

HEIGHT, WIDTH = 24, 32


@pytest.fixture
def sample() -> Sample:
    image = torch.full((3, HEIGHT, WIDTH), 40, dtype=torch.uint8)
    image[:, 5:15, 8:20] = torch.tensor([200, 90, 30], dtype=torch.uint8)[:, None, None]
    return Sample(id="one", image=tv_tensors.Image(image))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABELWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "proposals"


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to search from now on."""

    def search(*arguments: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(proposal_sources, "selective_search_regions", search)


def write(folder: Path, **content: Any) -> Path:
    path = folder / "one.npz"
    np.savez(path, **content)
    return path


def test_selective_search_finds_the_object(sample: Sample, cache: Path) -> None:
    boxes = ProposalSource("single")(sample)
    assert boxes.dtype == torch.float32 and boxes.shape[1] == 4
    assert [0, 0, WIDTH, HEIGHT] in boxes.tolist() and [8, 5, 20, 15] in boxes.round().tolist()


def test_what_was_found_is_kept(sample: Sample, cache: Path, request: pytest.FixtureRequest) -> None:
    boxes = ProposalSource("single")(sample)
    (file,) = cache.iterdir()
    request.getfixturevalue("no_search")
    again = ProposalSource("single")(sample)
    assert torch.equal(again, boxes)
    with np.load(file, allow_pickle=False) as content:
        assert content["size"].tolist() == [HEIGHT, WIDTH] and "single" in str(content["made_by"])
    boxes[:] = -1
    assert (ProposalSource("single")(sample) >= 0).all()


def test_other_pixels_and_other_modes_are_other_files(sample: Sample, cache: Path) -> None:
    ProposalSource("single")(sample)
    ProposalSource("fast")(sample)
    ProposalSource("single")(Sample(id="two", image=sample.image))
    assert len(list(cache.iterdir())) == 2
    sample.image[0, 0, 0] += 1
    ProposalSource("single")(sample)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None], ids=["empty", "no archive", "cut off"])
def test_a_damaged_file_of_the_cache_is_made_anew(sample: Sample, cache: Path, damage: bytes | None) -> None:
    boxes = ProposalSource("single")(sample)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert torch.equal(ProposalSource("single")(sample), boxes)
    with np.load(file) as content:
        assert content["boxes"].tolist() == boxes.tolist()


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(sample: Sample, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("in the way")
    assert len(ProposalSource("single")(sample)) > 0


def test_boxes_of_a_folder(sample: Sample, tmp_path: Path, no_search: None) -> None:
    boxes = [[1, 2, 5, 6], [0, 0, WIDTH, HEIGHT], [0.5, 0, 3.25, 9]]
    write(tmp_path, boxes=np.array(boxes), size=np.array([HEIGHT, WIDTH]))
    found = ProposalSource(str(tmp_path))(sample)
    assert found.dtype == torch.float32 and found.tolist() == boxes


def test_what_the_cache_holds_can_be_given_as_a_folder(sample: Sample, cache: Path, tmp_path: Path) -> None:
    boxes = ProposalSource("single")(sample)
    (file,) = cache.iterdir()
    file.rename(tmp_path / "one.npz")
    assert torch.equal(ProposalSource(str(tmp_path))(sample), boxes)


GOOD = np.array([[1, 2, 5, 6.0]])
SIZE = np.array([HEIGHT, WIDTH])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"boxes": GOOD}, "cannot be read"),
        ({"boxes": np.array([None]), "size": SIZE}, "cannot be read"),
        ({"boxes": GOOD, "size": SIZE[::-1]}, "an image of 32 x 24 pixels, but this one has 24 x 32"),
        ({"boxes": GOOD, "size": np.array(24)}, "size is not height and width"),
        ({"boxes": GOOD, "size": np.array(["24", "32"])}, "size is not height and width"),
        ({"boxes": GOOD[:, :3], "size": SIZE}, "float64 [1, 3]"),
        ({"boxes": GOOD[0], "size": SIZE}, "float64 [4]"),
        ({"boxes": GOOD[:0], "size": SIZE}, "float64 [0, 4]"),
        ({"boxes": GOOD.astype(str), "size": SIZE}, "not numbers"),
        ({"boxes": np.array([[1, 2, 5, 6], [5, 2, 1, 6]]), "size": SIZE}, "box 1 (5, 2, 1, 6)"),
        ({"boxes": np.array([[1, 2, 1, 6]]), "size": SIZE}, "box 0 (1, 2, 1, 6)"),
        ({"boxes": np.array([[1, 2, 33, 6]]), "size": SIZE}, "inside the image"),
        ({"boxes": np.array([[-1, 2, 3, 6]]), "size": SIZE}, "inside the image"),
        ({"boxes": np.array([[np.nan, 2, 3, 6]]), "size": SIZE}, "box 0 (nan, 2, 3, 6)"),
    ],
)
def test_a_bad_file_is_named_with_a_mend(sample: Sample, tmp_path: Path, content: dict, words: str) -> None:
    path = write(tmp_path, **content)
    with pytest.raises(BadFile) as caught:
        ProposalSource(str(tmp_path))(sample)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "; make the file anew" in message
    assert "\n" not in message and caught.value.problem.id == "one"


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_file_that_is_no_archive_is_named(sample: Sample, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one.npz").write_bytes(content)
    with pytest.raises(BadFile, match=r"one\.npz: cannot be read"):
        ProposalSource(str(tmp_path))(sample)


def test_an_array_without_a_name_is_no_archive(sample: Sample, tmp_path: Path) -> None:
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, GOOD)
    with pytest.raises(BadFile, match=r"one\.npz: cannot be read"):
        ProposalSource(str(tmp_path))(sample)


def test_a_missing_file_is_named(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"one\.npz: no proposals for this image; add the file, or"):
        ProposalSource(str(tmp_path))(sample)


def test_a_source_that_is_neither_mode_nor_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--proposals fats: neither .* did you mean 'fast'"):
        ProposalSource("fats")
    with pytest.raises(UserError, match=r"--proposals .*nowhere"):
        ProposalSource(str(tmp_path / "nowhere"))


def test_the_source_agrees_with_the_search(sample: Sample, cache: Path) -> None:
    image = sample.image.permute(1, 2, 0).contiguous().numpy()
    assert ProposalSource("fast")(sample).tolist() == selective_search_regions(image, "fast").boxes.tolist()
