"""What labels cost."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise.costs import (
    COSTS,
    annotation_minutes,
    cost_table,
    count_annotations,
    drawn_kinds,
    parse_costs,
    sure_costs,
)
from labelwise.datasets.journal import Measured
from labelwise.errors import UserError
from labelwise.samples import DERIVABLE, Kind
from labelwise.supervision import Streams

PAGE = Path(__file__).parents[1] / "docs" / "label-costs.md"
KINDS = st.frozensets(st.sampled_from(list(Kind)))


def streams(**allowed: frozenset[Kind]) -> Streams:
    return Streams(labeled=(), unlabeled=(), allowed=allowed, protocol="", seed=0)


def test_every_kind_has_a_cost_and_a_source() -> None:
    assert COSTS.keys() == set(Kind)
    # A model makes score maps; no person draws them.
    assert all((cost.seconds > 0) == (kind is not Kind.MAPS) and cost.source for kind, cost in COSTS.items())


def test_the_page_has_the_table_as_it_is_used() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in PAGE.read_text().splitlines() if "| `" in line]
    told = {name.strip("`"): (float(seconds), per) for name, seconds, per in rows if name.strip("`") in set(Kind)}
    assert told == {kind.value: (cost.seconds, cost.per) for kind, cost in COSTS.items()}


def test_a_voc_mask_is_its_absent_classes_and_its_objects() -> None:
    assert COSTS[Kind.MASKS].seconds == pytest.approx(18.5 * 1 + 2.8 * COSTS[Kind.INSTANCES].seconds)


def test_own_costs_replace_published_ones() -> None:
    table = cost_table(parse_costs(["masks=60", "boxes=7.5"]))
    published = {kind.value: cost.seconds for kind, cost in COSTS.items()}
    assert table == published | {"masks": 60.0, "boxes": 7.5}
    assert cost_table({}) == published


def test_a_person_is_believed_who_was_timed_often_enough() -> None:
    few, many = Measured(seconds=1.5, count=9), Measured(seconds=80.0, count=10)
    measured = sure_costs({Kind.POINTS: few, Kind.MASKS: many})
    assert measured == {"masks": 80.0}
    assert cost_table({}, measured) == cost_table({"masks": 80.0})
    assert cost_table({"masks": 60.0}, measured)["masks"] == 60.0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["maks=60"], "--cost maks=60: no label kind 'maks'; did you mean 'masks'?"),
        (["masks=-1"], "--cost masks=-1: must be a finite number of seconds, 0 or more"),
        (["masks=inf"], "--cost masks=inf: must be a finite number of seconds, 0 or more"),
        (["masks=nan"], "--cost masks=nan: must be a finite number of seconds, 0 or more"),
        (["masks=long"], "--cost masks=long: 'long' is no number of seconds; write masks=60"),
        (["masks="], "--cost masks=: '' is no number of seconds; write masks=60"),
        (["masks"], "--cost masks: must be KIND=SECONDS, such as masks=60"),
        (["=60"], "--cost =60: must be KIND=SECONDS, such as masks=60"),
        (["masks=60", "masks=70"], "--cost masks=70: gives masks twice; give it once"),
    ],
)
def test_a_wrong_cost_is_refused_in_one_line(pairs: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        cost_table(parse_costs(pairs))
    assert str(error.value) == message


def test_what_follows_from_a_stronger_label_is_not_drawn() -> None:
    both = streams(
        a=frozenset({Kind.MASKS, Kind.TAGS, Kind.CAPTIONS}),
        b=frozenset({Kind.TAGS}),
        c=frozenset(),
        d=frozenset({Kind.INSTANCES, Kind.BOXES, Kind.MASKS, Kind.POINTS}),
        e=frozenset({Kind.MASKS}),
    )
    assert drawn_kinds(both, skipped={"e"}) == {
        "a": {Kind.MASKS, Kind.CAPTIONS},
        "b": {Kind.TAGS},
        "c": set(),
        "d": {Kind.INSTANCES},
    }


@given(KINDS)
def test_what_is_drawn_gives_all_that_is_allowed(kinds: frozenset[Kind]) -> None:
    drawn = drawn_kinds(streams(a=kinds))["a"]
    assert drawn.union(*(DERIVABLE[kind] for kind in drawn)) >= kinds
    assert drawn <= kinds and not any(drawn & DERIVABLE[kind] for kind in drawn)


def test_objects_and_clicks_are_counted_one_by_one() -> None:
    drawn = {
        "a": frozenset({Kind.BOXES, Kind.POINTS}),
        "b": frozenset({Kind.BOXES, Kind.TAGS}),
        "c": frozenset({Kind.INSTANCES, Kind.CAPTIONS}),
        "d": frozenset({Kind.MASKS}),
        "e": frozenset({Kind.TAGS}),
    }
    counted = count_annotations(drawn, objects={"a": 3, "b": 0, "c": 2}, clicks={"a": 20})
    assert counted == {"masks": 1, "instances": 2, "boxes": 3, "tags": 2, "points": 20, "captions": 1}


def test_nothing_drawn_costs_nothing() -> None:
    assert count_annotations({"a": frozenset()}, {}, {}) == {}
    assert annotation_minutes({}, cost_table({})) == 0


@given(st.dictionaries(st.sampled_from([kind.value for kind in Kind]), st.integers(0, 10**6)))
def test_minutes_add_up_over_the_kinds(annotations: dict[str, int]) -> None:
    exact = sum(number * Fraction(str(COSTS[Kind(kind)].seconds)) for kind, number in annotations.items()) / 60
    assert annotation_minutes(annotations, cost_table({})) == pytest.approx(float(exact))
