from __future__ import annotations

from collections.abc import Callable

import pytest

import labelwise
from labelwise import methods
from labelwise.errors import UserError
from labelwise.samples import Kind
from tests.conftest import Called

Call = Callable[..., Called]

# Tags and points follow from masks.
MASK_METHODS = [
    name for name in methods.METHODS if methods.load(name).card.needs.labels in ({Kind.MASKS}, {Kind.MASKS, Kind.TAGS})
]
POINT_METHODS = [name for name in methods.METHODS if methods.load(name).card.needs.labels == {Kind.POINTS}]
REFINEMENTS = ["irn", "psa"]
TAG_METHODS = [name for name in methods.METHODS if methods.load(name).card.needs.labels == {Kind.TAGS}]
BOX_METHODS = [name for name in methods.METHODS if methods.load(name).card.needs.labels == {Kind.BOXES}]


def test_the_listing_has_the_promised_keys_for_every_method(call: Call) -> None:
    listed = call("methods", "--json").json
    assert [entry["name"] for entry in listed] == sorted(methods.METHODS)
    assert all(list(entry) == ["name", "task", "needs", "gives", "paper", "year"] for entry in listed)
    cps = next(entry for entry in listed if entry["name"] == "cps")
    assert cps["needs"] == "few masks + bare images" and cps["gives"] == "masks" and cps["year"] == 2021


def test_the_table_has_a_line_for_every_method(call: Call) -> None:
    lines = call("methods").out.splitlines()
    assert lines[0].split() == ["name", "task", "needs", "gives", "year"]
    assert [line.split()[0] for line in lines[1:]] == sorted(methods.METHODS)


def test_a_card_tells_what_the_paper_does_and_how_to_run_it(call: Call) -> None:
    (card,) = call("methods", "cps", "--json").json
    assert card["command"] == "labelwise train cps --data DATA --labels masks:1/16"
    assert card["published"][0] == {
        "setting": "VOC 2012 val, blender 1/16, ResNet-50",
        "metric": "mIoU",
        "value": 68.21,
        "source": "paper, as remembered",
    }
    text = call("methods", "cps").out
    assert card["idea"] in text and card["claim"] in text and "published, not measured here" in text


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--labels", "masks:1/8"], sorted([*MASK_METHODS, *POINT_METHODS, *TAG_METHODS])),
        # Clicks are masks that are silent elsewhere, for all that do not need whole ones.
        (
            ["--labels", "points"],
            sorted({*MASK_METHODS, *POINT_METHODS, *TAG_METHODS} - {"adele", "irn", "mars", "psa"}),
        ),
        (["--labels", "boxes"], sorted([*BOX_METHODS, *TAG_METHODS])),
        (
            ["--labels", "masks+boxes"],
            sorted([*MASK_METHODS, *BOX_METHODS, *POINT_METHODS, *TAG_METHODS, "rcnn_regions"]),
        ),
        (["--labels", "instances"], list(methods.METHODS)),
        (["--labels", "tags"], TAG_METHODS),
        (["--labels", "none"], []),
        (["--task", "semantic segmentation"], sorted({*MASK_METHODS, *POINT_METHODS, "rcnn_regions"} - {*REFINEMENTS})),
        (["--task", "detection"], ["fast_rcnn", "faster_rcnn", "rcnn"]),
        (["--task", "instance segmentation"], ["ese_seg"]),
        (["--task", "localisation"], ["bas", "cam", "w_ood"]),
        (["--task", "refinement"], REFINEMENTS),
        (["--task", "pretraining"], []),
        (["cps", "--labels", "masks"], ["cps"]),
        (["cps", "--labels", "tags"], []),
    ],
)
def test_the_listing_is_narrowed_to_what_fits(call: Call, words: list[str], names: list[str]) -> None:
    assert [entry["name"] for entry in call("methods", *words, "--json").json] == names
    text = call("methods", *words)
    assert text.code == 0
    assert text.out == "no method fits\n" or names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["spervised"], "unknown method 'spervised'; did you mean 'supervised'? (`labelwise methods` lists them)"),
        (["--task", "segmentation"], "--task segmentation: no such task; did you mean 'semantic segmentation'?"),
        (["--labels", "mask"], "--labels mask: no label kind 'mask'; did you mean 'masks'?"),
    ],
)
def test_a_wrong_name_is_refused(call: Call, words: list[str], message: str) -> None:
    assert call("methods", *words).message == message


def test_the_catalogue_is_the_same_from_python(call: Call) -> None:
    assert labelwise.catalogue("cps") == call("methods", "cps", "--json").json
    with pytest.raises(UserError, match="no such task"):
        labelwise.catalogue(task="x")
