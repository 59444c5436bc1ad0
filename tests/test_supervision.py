from __future__ import annotations

import math
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from labelwise import partitions
from labelwise.datasets.base import Classes, DataSet
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, Problem, UserError
from labelwise.samples import Kind, Sample
from labelwise.supervision import Streams, Supervision, seeded_order

MASKS, TAGS, BOXES = frozenset({Kind.MASKS}), frozenset({Kind.TAGS}), frozenset({Kind.BOXES})


class Listed(DataSet):
    """A data set of names only: which ids there are and which of them have which labels."""

    layout = "listed"
    root = Path("listed")
    classes = Classes(("background", "thing"))

    def __init__(self, ids: Collection[str], **labels: Collection[str]) -> None:
        self._ids, self._known = tuple(ids), frozenset(ids)
        self._labels = {Kind(kind): frozenset(having) for kind, having in labels.items()}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def ids(self, split: str) -> tuple[str, ...]:
        self.require_split(split)
        return self._ids

    def having(self, kind: Kind, ids: Collection[str]) -> frozenset[str]:
        return self._labels.get(kind, frozenset()) & frozenset(ids)

    def image_file(self, id: str) -> Path:
        if id not in self._known:
            raise BadFile(Problem(Path(id), "there is no such image", "add it", id))
        return Path(id)

    def label_files(self, id: str, kind: Kind) -> tuple[Path, ...]:
        return ()

    def label_folders(self) -> tuple[Path, ...]:
        return ()

    def read(self, id: str, kinds: Collection[Kind] = ()) -> Sample:
        raise AssertionError("choosing images opens no file")

    def write(self, sample: Sample) -> None:
        raise AssertionError("choosing images writes no file")


IDS = tuple(f"image{number:03}" for number in range(100))


def full(ids: Collection[str] = IDS) -> Listed:
    return Listed(ids, masks=ids, boxes=ids, tags=ids)


def streams(spec: str, dataset: DataSet, seed: int = 0) -> Streams:
    return Supervision.parse(spec).streams(dataset, "train", seed)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("masks", "masks"),
        ("masks:all", "masks"),
        ("masks:1/8", "masks:1/8"),
        ("masks:2/16", "masks:1/8"),
        ("masks:3/3", "masks"),
        ("masks:92", "masks:92"),
        ("boxes:1/4", "boxes:1/4"),
        ("masks:classic/183", "masks:classic/183"),
        ("masks:blender/1/8", "masks:blender/1_8"),
        ("masks:cityscapes/1_16", "masks:cityscapes/1_16"),
        ("points:20", "points:20"),
        ("tags + masks:1/8", "masks:1/8+tags"),
        ("captions", "captions"),
        ("none", "none"),
    ],
)
def test_a_specification_has_one_canonical_form(spec: str, canonical: str) -> None:
    parsed = Supervision.parse(spec)
    assert str(parsed) == canonical
    assert Supervision.parse(canonical) == parsed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mask:1/8", "did you mean 'masks'?"),
        ("masks:1/8+", "no label kind ''"),
        ("", "no label kind ''"),
        ("masks:", "nothing follows the colon"),
        ("masks:0", "allows no label"),
        ("masks:-3", "no number"),
        ("masks:3/2", "no share"),
        ("masks:1/0", "no share"),
        ("masks:0/4", "no share"),
        ("masks:clasic/183", "did you mean 'classic/183'?"),
        ("masks:no_such_file.txt", "no number, fraction, published list or file"),
        ("masks:1/8+masks:1/4", "masks twice"),
        ("masks+none", "no label kind 'none'"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Supervision.parse(spec)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--labels {spec}: ")
    assert "\n" not in str(caught.value)


def test_kinds_are_those_allowed_on_some_image() -> None:
    assert Supervision.parse("masks:1/8+tags").kinds == MASKS | TAGS
    assert Supervision.parse("none").kinds == frozenset()


@given(top=st.integers(1, 20), bottom=st.integers(1, 20), images=st.integers(20, 60), seed=st.integers(0, 9))
def test_a_fraction_is_rounded_up_and_splits_the_images(top: int, bottom: int, images: int, seed: int) -> None:
    top = min(top, bottom)
    result = streams(f"masks:{top}/{bottom}", full(IDS[:images]), seed)
    assert len(result.labeled) == math.ceil(images * top / bottom - 1e-9)
    assert sorted(result.labeled + result.unlabeled) == list(IDS[:images])
    assert all(result.allowed[id] == MASKS for id in result.labeled)
    assert all(result.allowed[id] == frozenset() for id in result.unlabeled)


@given(few=st.integers(1, 100), more=st.integers(1, 100), seed=st.integers(0, 9))
def test_a_larger_budget_contains_a_smaller_one(few: int, more: int, seed: int) -> None:
    few, more = sorted((few, more))
    dataset = full()
    larger = streams(f"masks:{more}", dataset, seed).labeled
    assert streams(f"masks:{few}", dataset, seed).labeled == larger[:few]


def test_budgets_of_different_kinds_nest_too() -> None:
    dataset = full()
    assert set(streams("masks:1/8", dataset).labeled) < set(streams("boxes:1/4", dataset).labeled)
    result = streams("boxes:1/4+masks:1/8", dataset)
    assert len(result.labeled) == 13
    assert sorted(len(kinds) for kinds in result.allowed.values()) == [0] * 75 + [1] * 12 + [2] * 13


def test_another_seed_chooses_other_images() -> None:
    dataset = full()
    assert streams("masks:10", dataset, 0).labeled == streams("masks:10", dataset, 0).labeled
    assert set(streams("masks:10", dataset, 0).labeled) != set(streams("masks:10", dataset, 1).labeled)


def test_the_choice_does_not_depend_on_the_order_of_the_list_or_on_unlabelled_images() -> None:
    some = IDS[::2]
    assert streams("masks:10", Listed(IDS[::-1], masks=some)).labeled == streams("masks:10", full(some)).labeled


def test_each_image_is_chosen_equally_often() -> None:
    counts = dict.fromkeys(IDS, 0)
    for seed in range(400):
        for id in seeded_order(IDS, seed)[:10]:
            counts[id] += 1
    # binomial with mean 40 and standard deviation 6
    assert min(counts.values()) > 15 and max(counts.values()) < 65


def test_only_images_that_have_the_label_are_chosen() -> None:
    some = IDS[20:40]
    result = streams("masks:1/8", Listed(IDS, masks=some))
    assert len(result.labeled) == 13 and set(result.labeled) <= set(some)
    assert set(streams("masks", Listed(IDS, masks=some)).labeled) == set(some)


def test_tags_may_stay_on_images_without_masks() -> None:
    result = streams("masks:1/8+tags", Listed(IDS, masks=IDS, tags=IDS[:50]))
    for id in IDS:
        assert (Kind.MASKS in result.allowed[id]) == (id in result.labeled)
        assert (Kind.TAGS in result.allowed[id]) == (id in IDS[:50])


def test_no_labels_leave_every_image_bare() -> None:
    result = streams("none", full())
    assert (result.labeled, result.unlabeled, result.protocol) == ((), IDS, "no labels")
    assert set(result.allowed.values()) == {frozenset()}


def test_more_labels_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"asks for 125 masks; the split 'train' has 100"):
        streams("masks:125", full())
    with pytest.raises(UserError, match=r"asks for 50 masks; the split 'train' has 20"):
        streams("masks:1/2", Listed(IDS, masks=IDS[:20]))
    with pytest.raises(UserError, match="has no captions"):
        streams("captions", full())


def test_the_protocol_tells_lists_apart(tmp_path: Path) -> None:
    path = tmp_path / "few.txt"
    path.write_text("image003\n\nimage001\nimage003\n")
    assert streams("masks:1/8", full(), seed=7).protocol == "own lists, seed 7"
    assert streams("masks", full()).protocol == "every label"
    assert streams("masks:1/8+tags", full()).protocol == "own lists, seed 0"
    assert partitions.fingerprint(["image001", "image003"]) in streams(f"masks:{path}", full()).protocol


def test_a_file_names_the_labelled_images(tmp_path: Path) -> None:
    path = tmp_path / "few.txt"
    path.write_text("image003\n\nimage001\nimage003\n")
    result = streams(f"masks:{path}+tags", full())
    assert set(result.labeled) == {"image001", "image003"} and len(result.unlabeled) == 98
    path.write_text("image003\nelsewhere\n")
    with pytest.raises(UserError, match=r"1 of the 2 images of .* are missing .*\(elsewhere\)"):
        streams(f"masks:{path}", full())
    with pytest.raises(UserError, match=r"1 of the 1 images of .* have no masks"):
        path.write_text("image003\n")
        streams(f"masks:{path}", Listed(IDS, masks=IDS[:2]))
    path.write_text("\n")
    with pytest.raises(UserError, match="lists no image"):
        Supervision.parse(f"masks:{path}")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        Supervision.parse(f"masks:{path}")


TRAIN_AUG = partitions.read("voc2012/train_aug.txt")


@pytest.mark.parametrize(
    ("name", "labeled", "unlabeled"),
    [
        ("classic/92", 92, 10490),
        ("classic/1464", 1464, 9118),
        ("blender/1/8", 1323, 9259),
        ("priority/1_4", 2646, 7936),
    ],
)
def test_a_published_list_brings_its_own_unlabelled_images(name: str, labeled: int, unlabeled: int) -> None:
    dataset = Listed((*TRAIN_AUG, *partitions.read("voc2012/val.txt")), masks=TRAIN_AUG, tags=TRAIN_AUG)
    result = streams(f"masks:{name}+tags", dataset)
    assert (len(result.labeled), len(result.unlabeled)) == (labeled, unlabeled)
    assert set(result.labeled) | set(result.unlabeled) == set(TRAIN_AUG)
    assert set(result.labeled) == set(partitions.load(name.replace("1/8", "1_8")).labeled)
    assert all(Kind.TAGS in result.allowed[id] for id in TRAIN_AUG)


def test_unlabelled_images_of_a_published_list_are_those_there_are() -> None:
    careful = partitions.read("voc2012/train.txt")
    result = streams("masks:classic/183", Listed(careful, masks=careful))
    assert (len(result.labeled), len(result.unlabeled)) == (183, 1464 - 183)
    assert result.protocol == "classic/183"


def test_a_data_set_that_lacks_images_of_a_published_list_is_refused_with_counts() -> None:
    lacking = partitions.load("classic/92").labeled[5:]
    with pytest.raises(UserError, match=r"5 of the 92 images of list 'classic/92' are missing"):
        streams("masks:classic/92", full(lacking))


def small_voc(root: Path) -> VOC:
    """16 images with masks, boxes and written points."""
    dataset = VOC.create(root, Classes(("background", "thing", "other")))
    ids = [f"image{number:02}" for number in range(16)]
    for number, id in enumerate(ids):
        mask = torch.zeros(12, 14, dtype=torch.uint8)
        mask[2 : 4 + number % 5, 3:9] = 1 + number % 2
        dataset.write(
            Sample(
                id=id,
                image=tv_tensors.Image((mask * 90).expand(3, 12, 14).contiguous()),
                mask=tv_tensors.Mask(mask),
                boxes=tv_tensors.BoundingBoxes(
                    torch.tensor([[3.0, 2, 9, 4 + number % 5]]), format="XYXY", canvas_size=(12, 14)
                ),
                box_labels=torch.tensor([1 + number % 2]),
                difficult=torch.tensor([False]),
            )
        )
    dataset.write_split("train", ids)
    return VOC(root)


def content(sample: Sample) -> dict[str, object]:
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in vars(sample).items()
        if value is not None
    }


@pytest.mark.parametrize(
    "spec", ["masks:1/8", "masks:5+tags", "boxes:1/4", "tags", "points:20", "masks:1/8+boxes:1/4", "none"]
)
def test_deleting_every_forbidden_label_changes_nothing(tmp_path: Path, spec: str) -> None:
    whole = small_voc(tmp_path / "whole")
    before = streams(spec, whole)
    allowed = {
        file.relative_to(whole.root)
        for id, kinds in before.allowed.items()
        for kind in kinds
        for file in whole.label_files(id, kind)
    }
    shutil.copytree(whole.root, tmp_path / "bare")
    labels = [
        file.relative_to(whole.root)
        for folder in ("SegmentationClass", "SegmentationObject", "Annotations", "Points")
        for file in (whole.root / folder).glob("*")
    ]
    forbidden = set(labels) - allowed
    assert forbidden
    for file in forbidden:
        (tmp_path / "bare" / file).unlink()
    bare = VOC(tmp_path / "bare")
    after = streams(spec, bare)
    assert after == before
    for id in (*before.labeled, *before.unlabeled):
        assert content(before.read(whole, id)) == content(after.read(bare, id))


def test_forbidden_labels_are_absent_from_the_samples(tmp_path: Path) -> None:
    dataset = small_voc(tmp_path)
    result = streams("masks:1/8", dataset)
    assert [result.read(dataset, id).mask is None for id in result.labeled] == [False, False]
    assert all(result.read(dataset, id).mask is None for id in result.unlabeled)


def test_clicks_are_few_seeded_and_on_their_class(tmp_path: Path) -> None:
    dataset = small_voc(tmp_path)
    result = streams("points:20", dataset)
    assert len(result.labeled) == 16 and result.points_per_image == 20
    id = result.labeled[0]
    sample = result.read(dataset, id)
    mask = dataset.read(id, {Kind.MASKS}).mask
    assert sample.mask is None and mask is not None
    assert sample.points is not None and sample.point_labels is not None
    columns, rows = sample.points.long().unbind(1)
    assert len(set(zip(columns.tolist(), rows.tolist(), strict=True))) == 20
    assert torch.equal(mask[rows, columns].long(), sample.point_labels)
    assert content(result.read(dataset, id)) == content(sample)
    assert content(streams("points:20", dataset, seed=1).read(dataset, id)) != content(sample)


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """Clicks on the first two images, in a folder whose name has a plus sign."""
    folder = tmp_path / "a+b" / "clicks"
    folder.mkdir(parents=True)
    for id in IDS[:2]:
        (folder / f"{id}.json").write_text('{"points": []}')
    return folder


def test_a_folder_of_clicks_names_the_labelled_images(clicks: Path) -> None:
    spec = f"points:{clicks}"
    parsed = Supervision.parse(spec)
    assert str(parsed) == spec and parsed.kinds == {Kind.POINTS}
    # Of the data set's own points nothing is known any more.
    dataset = Listed(IDS, points=IDS, masks=IDS)
    result = parsed.streams(dataset, "train", 0)
    assert set(result.labeled) == set(IDS[:2]) and set(result.unlabeled) == set(IDS[2:])
    assert result.points_per_image is None and result.protocol == f"clicks of {clicks}"
    view = parsed.view(dataset)
    assert result == parsed.streams(view, "train", 0)
    assert parsed.view(view) is view
    assert Supervision.parse("points:3").view(dataset) is dataset


def test_a_folder_of_clicks_of_other_images_is_refused(clicks: Path) -> None:
    with pytest.raises(UserError) as caught:
        streams(f"points:{clicks}", full(IDS[5:]))
    assert str(caught.value) == (
        f"--labels points:{clicks}: {clicks} has no <id>.json of any image of the split 'train' of listed; "
        "name the folder that holds these files"
    )


def test_a_folder_is_no_list_of_masks_and_a_lost_one_is_named(clicks: Path) -> None:
    with pytest.raises(UserError, match="is no number, fraction, published list or file"):
        Supervision.parse(f"masks:{clicks}")
    parsed = Supervision.parse(f"points:{clicks}")
    shutil.rmtree(clicks)
    with pytest.raises(UserError, match=f"there is no folder {re.escape(str(clicks))}"):
        parsed.streams(full(), "train", 0)
