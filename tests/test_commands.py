from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelwise import methods
from labelwise.commands import models, shared, training
from labelwise.configuration import load_preset, make_config
from labelwise.errors import UserError
from labelwise.hardware import Hardware
from tests.conftest import TINY_OPTIONS, Called

Call = Callable[..., Called]


def shown_default(value: Any) -> str:
    parts = value if isinstance(value, tuple) else (value,)
    # Text comes in quotes, a single value with a comma.
    return "'?" + "'?.{0,3}".join(re.escape(str(part)) for part in parts) + "'?,?"


@pytest.mark.parametrize("name", methods.METHODS)
@pytest.mark.parametrize("preset", [None, "mini", "paper"])
def test_the_help_of_a_method_shows_its_own_options_with_the_presets_values(
    call: Call, monkeypatch: pytest.MonkeyPatch, name: str, preset: str | None
) -> None:
    called = call("train", name, *([] if preset is None else ["--preset", preset]), "--help")
    assert called.code == 0
    text = re.sub(r"[│\s]+", " ", called.out)
    method = methods.load(name)
    config = make_config(method, load_preset(method, preset), {})
    for field in fields(config):
        value = getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        assert re.search(rf"{flag} (?:(?! --)[^│])*\[default: [(\[]?{shown_default(value)}[)\]]?\]", text), (
            flag,
            value,
        )
    for field in fields(Hardware):
        assert f"--{field.name.replace('_', '-')} " in text
    assert method.card.idea.split(",")[0] in text


def test_the_help_of_a_preset_file_shows_its_values(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("crop: 77\n")
    assert re.search(
        r"--crop INT.*\[default: 77\]", call("train", "cps", f"--preset={tmp_path / 'mine.yaml'}", "--help").out
    )


def test_options_reach_the_run_and_win_over_the_preset(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump(TINY_OPTIONS | {"window": 7}))
    out = tmp_path / "run"
    words = ["--preset", preset, "--data", shapes_folder, "--labels", "masks:1/2", "--seed", 3, "--workers", 0]
    called = call(
        "train", "cps", *words, "--steps", 1, "--no-cutmix", "--scale-range", 0.75, 1.5, "--out", out, "--json"
    )
    assert called.code == 0
    assert called.json["steps"] == 1 and called.json["folder"] == str(out)
    assert called.json["labeled"] == 6 and called.json["unlabeled"] == 6
    assert "step 1/1" in called.err
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["seed"] == 3 and config["labels"] == "masks:1/2"
    assert config["options"] | TINY_OPTIONS == config["options"] | {"steps": 4}
    assert config["options"]["cutmix"] is False
    assert config["options"]["scale_range"] == [0.75, 1.5]
    assert config["options"]["window"] == 7


def test_of_several_processes_the_first_one_prints_the_result(
    call: Call, monkeypatch: pytest.MonkeyPatch, shapes_folder: Path, trained_run: Path
) -> None:
    for module in (models, training):
        monkeypatch.setattr(module, "process_rank", lambda: 1)
    assert call("evaluate", trained_run, "--data", shapes_folder, "--json").out == ""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in TINY_OPTIONS.items()]
    # The run is finished already, so that only its result is at stake.
    repeated = call("train", "supervised", "--data", shapes_folder, "--out", trained_run, *words, "--json")
    assert (repeated.code, repeated.out) == (0, "")
    for module in (models, training):
        monkeypatch.setattr(module, "process_rank", lambda: 0)
    assert (
        call("train", "supervised", "--data", shapes_folder, "--out", trained_run, *words, "--json").json["images"] == 4
    )


def test_results_are_tables_for_a_person(call: Call, shapes_folder: Path, trained_run: Path) -> None:
    called = call("evaluate", trained_run, "--data", shapes_folder)
    assert called.code == 0
    assert re.search(r"^miou +\d+\.\d\d", called.out, re.M)
    assert re.search(r"^images +4$", called.out.replace(" \n", "\n"), re.M) or re.search(
        r"^images +4 *$", called.out, re.M
    )
    assert re.search(r"^ladder +(\d+\.\d|absent)", called.out, re.M)


def test_names_with_brackets_are_printed_as_they_are(call: Call, shapes_folder: Path, tmp_path: Path) -> None:
    called = call("shapes", tmp_path / "a[b]c", "--train", 1, "--val", 1, "--size", 48)
    assert called.out == f"{tmp_path / 'a[b]c'}: 1 training and 1 validation images\n"
    assert f"{tmp_path / 'a[b]c'}: VOC layout" in call("inspect", tmp_path / "a[b]c").out


@pytest.mark.parametrize(
    ("pairs", "options"),
    [
        ([], {}),
        (["crop=64"], {"crop": 64}),
        (["cps.cross-weight=1e-1", "backbone=tiny"], {"cps.cross_weight": "1e-1", "backbone": "tiny"}),
        (["cutmix=false", "scale_range=[0.5, 1]"], {"cutmix": False, "scale_range": [0.5, 1]}),
        (["backbone_weights=a=b.safetensors"], {"backbone_weights": "a=b.safetensors"}),
    ],
)
def test_pairs_are_read_as_yaml_reads_them(pairs: list[str], options: dict[str, Any]) -> None:
    assert shared.parsed_options(pairs) == options


@pytest.mark.parametrize("pair", ["crop", "=3", "crop=[3", "crop={"])
def test_a_malformed_pair_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--option {pair}: ")):
        shared.parsed_options([pair])


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["--data", "x"], None),
        (["--preset"], None),
        (["--preset", "mini"], "mini"),
        (["--data", "x", "--preset=my.yaml", "--crop", "3"], "my.yaml"),
    ],
)
def test_the_preset_is_found_before_the_options_are_known(words: list[str], value: str | None) -> None:
    assert training._value_of("--preset", words) == value
