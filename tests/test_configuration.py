from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labelwise import methods
from labelwise.configuration import load_preset, make_config, option_names, preset_names
from labelwise.errors import UserError
from labelwise.method import MethodConfig
from labelwise.methods.few_masks.cps import CPS


class Example(CPS):
    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        whole: int = 1
        number: float = 1.0
        flag: bool = False
        word: str = "a"
        choice: Literal["x", "y"] = "x"
        size: Literal[8, 16] = 8
        limit: int | None = None
        pair: tuple[float, float] = (0.0, 1.0)
        many: tuple[int, ...] = ()


def config_of(**options: Any) -> Any:
    return make_config(Example, {}, options)


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("whole", 3, 3),
        ("number", 3, 3.0),
        ("number", "1e-4", 1e-4),
        ("flag", True, True),
        ("word", "b", "b"),
        ("choice", "y", "y"),
        ("size", 16, 16),
        ("limit", None, None),
        ("limit", 3, 3),
        ("pair", [1, 2], (1.0, 2.0)),
        ("pair", (0.5, "2e0"), (0.5, 2.0)),
        ("many", [], ()),
        ("many", [1, 2, 3], (1, 2, 3)),
        ("many", 4, (4,)),
    ],
)
def test_a_value_gets_the_type_of_its_option(name: str, value: Any, stored: Any) -> None:
    found = getattr(config_of(**{name: value}), name)
    assert found == stored and type(found) is type(stored)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("whole", 1.0, "--whole 1.0: must be a whole number"),
        ("whole", True, "--whole True: must be a whole number"),
        ("whole", "3", "--whole 3: must be a whole number"),
        ("whole", None, "--whole None: must be a whole number"),
        ("number", "x", "--number x: must be a number"),
        ("number", True, "--number True: must be a number"),
        ("number", float("nan"), "--number nan: must be finite"),
        ("number", "inf", "--number inf: must be finite"),
        ("flag", 1, "--flag 1: must be true or false"),
        ("word", 3, "--word 3: must be text"),
        ("choice", "z", "--choice z: must be one of x, y"),
        ("choice", ["x"], "--choice ['x']: must be one of x, y"),
        ("size", 9, "--size 9: must be one of 8, 16"),
        ("limit", "3", "--limit 3: must be a whole number"),
        ("pair", [1], "--pair [1]: must be 2 values"),
        ("pair", 1, "--pair 1: must be 2 values"),
        ("pair", [1, "x"], "--pair x: must be a number"),
        ("many", [1, 2.5], "--many 2.5: must be a whole number"),
        ("batch_size", 0, "--batch-size 0: must be at least 1"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_options_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        config_of(**{name: value})
    assert str(refusal.value) == message


def test_options_win_over_the_preset_and_the_preset_over_the_defaults() -> None:
    config: Any = make_config(Example, {"whole": 2, "number": 2.0}, {"number": 3.0})
    assert (config.whole, config.number, config.word) == (2, 3.0, "a")


@pytest.mark.parametrize("name", ["wole", "who le", 7])
def test_an_unknown_option_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match=r"method 'cps' has no option .*; (did you mean 'whole'|known are batch_size)"):
        make_config(Example, {name: 3}, {})


@given(
    st.builds(
        CPS.Config,
        crop=st.integers(8, 900),
        learning_rate=st.floats(1e-6, 1),
        cutmix=st.booleans(),
        average=st.sampled_from(["joint", "sum"]),
        scale_range=st.tuples(st.floats(0.1, 1), st.floats(1, 3)),
    )
)
def test_a_configuration_survives_its_own_yaml(config: CPS.Config) -> None:
    written = yaml.safe_dump({name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()})
    assert make_config(CPS, yaml.safe_load(written), {}) == config


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_shipped_presets_are_found_and_valid(name: str) -> None:
    method = methods.load(name)
    assert {"mini", "paper"} <= set(preset_names(name))
    for preset in preset_names(name):
        options = load_preset(method, preset)
        assert options
        config = make_config(method, options, {})
        assert {key: asdict(config)[key] for key in options} == {
            key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
        }


def test_the_options_of_a_method_are_listed() -> None:
    assert option_names(Example) == tuple(field.name for field in fields(Example.Config))
    assert preset_names("no_such_method") == ()


def test_no_preset_changes_nothing() -> None:
    assert load_preset(CPS, None) == {}


def test_a_file_of_options_and_the_configuration_of_a_run_are_presets(tmp_path: Path, trained_run: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("crop: 64\nlearning_rate: 1e-3\n")
    assert load_preset(CPS, str(path)) == {"crop": 64, "learning_rate": "1e-3"}
    supervised = methods.load("supervised")
    assert load_preset(supervised, str(trained_run / "config.yaml"))["decoder_channels"] == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("crop: 64\ncrop: 65\n", "key given twice"),
        ("crop: [", "not usable YAML"),
        ("- crop\n", "must hold `name: value` lines"),
        ("!!python/object/apply:os.system ['true']\n", "not usable YAML"),
        ("method: supervised\noptions: {}\n", "belongs to method 'supervised', not 'cps'"),
        ("options: 3\n", "its 'options' must hold `name: value` lines"),
        ("crosweight: 3\n", "method 'cps' has no option 'crosweight'; did you mean 'cross_weight'?"),
        ("crop: large\n", "--crop large: must be a whole number"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        load_preset(CPS, str(path))
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_unknown_preset_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="--preset papr: neither a preset of 'cps' nor a file; did you mean 'paper'"):
        load_preset(CPS, "papr")
