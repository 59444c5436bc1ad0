"""Recipes: read with line numbers, put into order, told apart by fingerprints."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise.errors import UserError
from labelwise.stages import (
    DATA,
    Keys,
    Stage,
    fingerprint,
    in_order,
    load_recipe,
    parse_recipe,
    shipped_recipes,
)

KINDS = {
    "train": Keys(reads=("data",), may_read=("ood",), words=("labels", "split")),
    "annotate": Keys(reads=("annotate", "data"), words=("split",)),
    "refine": Keys(reads=("data",), several=("data",)),
}
GOOD = """# a comment
about: Tags to masks
stages:
  last: {refine: sum, data: [seeds, more]}
  model:
    train: cam
    data: data
    labels: tags
    options:
      steps: 3
      scales: [0.5, 1.0]
  seeds: {annotate: model, data: data, split: val}
  more: {annotate: model, data: data}
"""


def stages_of(*lines: str) -> str:
    """A recipe of one stage per line; the first is line 2."""
    return "stages:\n" + "".join(f"  {line}\n" for line in lines)


def stage(name: str, *reads: str) -> Stage:
    return Stage(name, "refine", {"data": reads}, {"refine": "sum"}, {}, {"": f"r.yaml:{name}"})


def test_a_recipe_is_read_with_names_words_options_and_their_lines() -> None:
    recipe = parse_recipe(GOOD, "folder/chain.yaml", KINDS)
    assert (recipe.name, recipe.about, recipe.text) == ("chain", "Tags to masks", GOOD)
    assert [stage.name for stage in recipe.stages] == ["model", "seeds", "more", "last"]
    model, seeds, _, last = recipe.stages
    assert (model.kind, model.subject, model.words) == ("train", "cam", {"train": "cam", "labels": "tags"})
    assert model.options == {"steps": 3, "scales": [0.5, 1.0]}
    assert model.places["options.scales"] == "folder/chain.yaml:11" and model.places[""] == "folder/chain.yaml:5"
    assert (seeds.subject, seeds.words) == ("model", {"split": "val"})
    assert seeds.reads == {"annotate": ("model",), "data": (DATA,)} and seeds.inputs == ("model", DATA)
    assert last.reads == {"data": ("seeds", "more")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: is empty; write `stages:`"),
        ("- a", "r.yaml:1: a recipe must hold `name: value`"),
        ("about: x", "r.yaml:1: a recipe needs `stages:`"),
        ("about: x\nstagse: {}", "r.yaml:2: a recipe has no 'stagse'; did you mean 'stages'?"),
        ("stages: {}", "r.yaml:1: there is no stage"),
        ("stages:\n  a: [\n", "r.yaml:3: not usable YAML: expected the node content"),
        ("stages:\n  a: \t{", "r.yaml:2: not usable YAML: found character"),
        ("stages:\n  a: !!python/name:os.system", "r.yaml:2: stage 'a' must hold `name: value`"),
        (stages_of("a: 3"), "r.yaml:2: stage 'a' must hold `name: value`"),
        (stages_of("data: {train: x, data: data}"), "r.yaml:2: stage 'data': the name means the data set of the call"),
        (stages_of("../a: {train: x, data: data}"), "r.yaml:2: stage '../a': the name must be letters, digits and _"),
        (stages_of("a: {train: x, data: data}", "a: {train: x, data: data}"), "r.yaml:3: 'a' is there twice"),
        (stages_of("a: {trian: x, data: data}"), "r.yaml:2: unknown kind of stage 'trian'; did you mean 'train'?"),
        (stages_of("a: {data: data}"), "r.yaml:2: stage 'a' does not say what it does; write one of train, annotate"),
        (
            stages_of("a: {train: x, refine: y, data: data}"),
            "r.yaml:2: stage 'a' says `train:` and `refine:`; make two",
        ),
        (stages_of("a: {train: x}"), "r.yaml:2: stage 'a' (train) needs `data:`"),
        (stages_of("a: {train: x, data: data,", "  lables: tags}"), "r.yaml:3: stage 'a' (train) has no 'lables'; did"),
        (stages_of("a: {train: [x], data: data}"), "r.yaml:2: 'train' must be a word"),
        (stages_of("a: {train: x, data: [data]}"), "r.yaml:2: 'data' must be a word"),
        (stages_of("a: {refine: x, data: []}"), "r.yaml:2: 'data' must be a word"),
        (stages_of("a: {train: x, data: data, options: 3}"), "r.yaml:2: 'options' must hold `name: value`"),
        (
            stages_of("a: {train: x, data: data,", "  options: {n: !!python/name:os.system ''}}"),
            "r.yaml:3: not usable YAML: could not determine a constructor",
        ),
        (stages_of("a: {train: x, data: b}"), "r.yaml:2: stage 'a' reads 'b', which is no stage; known are data"),
        (
            stages_of("a: {train: x, data:", "  seds}", "seeds: {refine: y, data: data}"),
            "r.yaml:2: stage 'a' reads 'seds'",
        ),
        (stages_of("a: {train: x, data: a}"), "r.yaml:2: these stages wait for each other: 'a' -> 'a'"),
        (
            stages_of("z: {refine: x, data: data}", "a: {refine: x, data: b}", "b: {refine: x, data: a}"),
            "r.yaml:3: these stages wait for each other: ",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml", KINDS)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@given(names=st.permutations("abcdef"), data=st.data())
def test_every_stage_comes_after_what_it_reads_and_otherwise_stays_where_it_was_written(
    names: list[str], data: st.DataObject
) -> None:
    subsets = {name: data.draw(st.sets(st.sampled_from([DATA, *names[:place]]))) for place, name in enumerate(names)}
    stages = [stage(name, *subsets[name]) for name in sorted(names)]
    order = [each.name for each in in_order(stages)]
    assert sorted(order) == sorted(names)
    assert all(order.index(read) < order.index(name) for name in names for read in subsets[name] - {DATA})
    for place, name in enumerate(order):
        ready = [other for other in order[place:] if subsets[other] <= {DATA, *order[:place]}]
        assert name == min(ready)


def test_an_option_of_the_call_wins_and_is_blamed() -> None:
    model = parse_recipe(GOOD, "r.yaml", KINDS).stages[0].with_option("steps", 9, "--option model.steps")
    assert model.options == {"steps": 9, "scales": [0.5, 1.0]}
    with pytest.raises(UserError, match=r"^--option model.steps: --steps 9: too many$"), model.at("options"):
        raise UserError("--steps 9: too many")
    with pytest.raises(UserError, match=r"^r.yaml:11: no option 'scales'$"), model.at("options"):
        raise UserError("no option 'scales'")
    with pytest.raises(UserError, match=r"^r.yaml:9: the memory does not suffice$"), model.at("options"):
        raise UserError("the memory does not suffice")


def test_a_fingerprint_depends_on_everything_but_the_order_of_names() -> None:
    same = fingerprint("train", {"a": 1, "b": (2, 3)}, {"data": ["x"]})
    assert same == fingerprint("train", {"b": [2, 3], "a": 1}, {"data": ["x"]})
    others = [
        fingerprint("refine", {"a": 1, "b": [2, 3]}, {"data": ["x"]}),
        fingerprint("train", {"a": 1, "b": [3, 2]}, {"data": ["x"]}),
        fingerprint("train", {"a": 1, "b": [2, 3]}, {"data": ["y"]}),
        fingerprint("train", {"a": 1, "b": [2, 3]}, {"data": ["x", "x"]}),
    ]
    assert len({same, *others}) == 5


def test_shipped_recipes_say_what_they_do() -> None:
    recipes = shipped_recipes()
    assert {"tags_cam_irn", "tags_bas_irn", "tags_w_ood_mars", "masks_adele"} <= recipes.keys()
    assert all(len(about) > 20 and "\n" not in about for about in recipes.values())


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(stages_of("a: {train: x, data: data}"))
    assert load_recipe(str(file), KINDS).name == "own"
    with pytest.raises(
        UserError, match=r"^tags_cam_im: neither a file nor a recipe that is shipped; did you mean 'tag"
    ):
        load_recipe("tags_cam_im", KINDS)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"own.yaml: is no text"):
        load_recipe(str(file), KINDS)
