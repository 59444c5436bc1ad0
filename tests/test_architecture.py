"""The rules of the house: imports point downwards, one paper is one file, every method is complete."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import labelwise
from labelwise import methods
from labelwise.configuration import load_preset, make_config, option_names, preset_names
from labelwise.datasets.shapes import ShapesOptions
from labelwise.method import TASKS, Method, MethodConfig
from labelwise.samples import Kind
from labelwise.supervision import Supervision

ROOT = Path(labelwise.__file__).parent

# From the top to the ground; a part imports from the rows below its own.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"commands"},
    {"verbs", "output"},
    {"scoring", "saved", "engine"},
    {"monitoring"},
    {"configuration", "progress", "stages"},
    {"reports", "runs", "checkpoints"},
    {"loaders"},
    {"methods"},
    {"tasks"},
    {"method"},
    {"losses", "models", "metrics", "transforms"},
    {"costs"},
    {"supervision", "annotator"},
    {"datasets", "partitions"},
    {"samples"},
    {"hardware", "files", "inference_options", "detections", "compiled"},
    {"errors"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# What these parts may not even reach for, so that they can be used and read alone.
FORBIDDEN = {
    "models": {"lightning", "labelwise.datasets", "labelwise.files", "labelwise.supervision", "labelwise.samples"},
    "losses": {"lightning", "labelwise.datasets", "labelwise.files", "labelwise.supervision", "labelwise.models"},
    "metrics": {"lightning", "labelwise.models", "labelwise.losses", "labelwise.datasets", "labelwise.files"},
    "transforms": {"lightning", "labelwise.models", "labelwise.losses", "labelwise.datasets"},
    "datasets": {"lightning", "timm", "torchmetrics"},
    "supervision": {"lightning", "timm", "torchmetrics"},
    "annotator": {"lightning", "timm", "torchmetrics"},
    "reports": {"lightning", "timm", "torch"},
    "samples": {"lightning", "timm"},
    "tasks": {"labelwise.methods", "labelwise.supervision"},
    "method": {"labelwise.methods", "labelwise.models", "labelwise.losses", "timm"},
    "methods": {"labelwise.datasets", "labelwise.supervision", "labelwise.files", "labelwise.engine"},
}
LIGHT = ("cli", "commands", "output", "stages", "errors", "hardware", "inference_options", "__init__", "__main__")
HEAVY = {"torch", "torchvision", "lightning", "timm", "numpy", "PIL", "matplotlib", "torchmetrics"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST, *, lazy: bool) -> Iterator[ast.AST]:
    """Everything that runs, without imports for type checkers, and without function bodies unless they count too."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child) or (not lazy and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        yield child
        yield from statements(child, lazy=lazy)


@cache
def imports(module: str, *, lazy: bool) -> frozenset[str]:
    """The modules that a module imports; `from labelwise import x` counts as `labelwise.x` where that is a module."""
    found: set[str] = set()
    for node in statements(ast.parse(MODULES[module].read_text()), lazy=lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in inner}
    return frozenset(found)


def part_of(module: str) -> str:
    """`labelwise.datasets.voc` -> `datasets`."""
    return module.partition(".")[2].partition(".")[0]


def test_every_part_has_its_layer() -> None:
    assert {part_of(module) for module in MODULES} - {""} == LEVEL.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    own = part_of(module)
    for other in imports(module, lazy=True):
        if other.startswith("labelwise.") and part_of(other) != own and own:
            assert LEVEL[own] < LEVEL[part_of(other)], f"{module} imports {other}, which lies above or beside it"


def test_no_circle_of_imports() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in imports(module, lazy=False):
                if other in MODULES:
                    visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("part", FORBIDDEN)
def test_a_part_does_not_know_what_it_need_not_know(part: str) -> None:
    for module in MODULES:
        if part_of(module) == part:
            for name in imports(module, lazy=True):
                wrong = [banned for banned in FORBIDDEN[part] if name == banned or name.startswith(f"{banned}.")]
                assert not wrong, f"{module} imports {name}"


@pytest.mark.parametrize("part", LIGHT)
def test_the_command_line_imports_nothing_heavy_until_it_must(part: str) -> None:
    module = "labelwise" if part == "__init__" else f"labelwise.{part}"
    assert not {name.split(".")[0] for name in imports(module, lazy=False)} & HEAVY


def method_files() -> dict[str, str]:
    """The methods' modules by the name of their file."""
    names = [module for module in MODULES if module.startswith("labelwise.methods.") and module.count(".") == 3]
    return {module.rpartition(".")[2]: module for module in names}


def test_the_listing_and_the_files_agree() -> None:
    assert {name: entry.split(":")[0] for name, entry in methods.METHODS.items()} == method_files()
    assert list(methods.METHODS) == sorted(methods.METHODS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_no_method_imports_another(name: str) -> None:
    others = [other for other in imports(method_files()[name], lazy=True) if other.startswith("labelwise.methods")]
    assert others == []


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_is_named_like_its_file_and_has_a_whole_card(name: str) -> None:
    method = methods.load(name)
    card = method.card
    assert issubclass(method, Method) and issubclass(method.Config, MethodConfig)
    assert card.name == name == method.__module__.rpartition(".")[2]
    assert card.task in TASKS
    assert card.title and card.idea.endswith(".") and len(card.idea) < 200
    assert str(card.year) in card.paper
    assert card.gives and card.gives <= set(Kind) and card.needs.labels <= set(Kind)
    assert card.published and all(number.source and number.metric for number in card.published)
    # Refinements start from the score maps of other methods, of which there are no synthetic scenes.
    assert card.claim is not None or card.task == "refinement"
    if card.claim is None:
        return
    assert card.claim.baseline in methods.METHODS
    Supervision.parse(card.claim.labels)
    Supervision.parse(card.claim.paper_labels)
    ShapesOptions(**card.claim.scenes)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_claim_can_be_measured(name: str) -> None:
    claim = methods.load(name).card.claim
    if claim is None:
        pytest.skip("it claims nothing that could be measured at mini scale")
    baseline = methods.load(claim.baseline)
    assert set(claim.baseline_options) <= set(option_names(baseline)) & set(option_names(methods.load(name)))
    for preset in ("mini", "paper"):
        make_config(baseline, load_preset(baseline, preset), claim.baseline_settings)
    assert claim.baseline != name or claim.ceiling or claim.baseline_settings, "both sides are the same"


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_tells_its_idea_its_source_and_its_departures(name: str) -> None:
    text = import_module(method_files()[name]).__doc__ or ""
    assert text.splitlines()[0].endswith(".")
    for heading in ("Needs: ", "Gives: ", "Published", "Departures: "):
        assert heading in text, f"{name}: the docstring lacks '{heading.strip(': ')}'"
    assert "Citation. " in text or name == "supervised"


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_has_presets_that_are_valid(name: str) -> None:
    method = methods.load(name)
    assert {"mini", "paper"} <= set(preset_names(name))
    for preset in preset_names(name):
        make_config(method, load_preset(method, preset), {})


def test_no_preset_is_left_without_a_method() -> None:
    assert {path.name for path in (ROOT / "presets").iterdir()} == set(methods.METHODS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_option_of_a_method_has_a_help_text(name: str) -> None:
    texts: dict[str, str] = {}
    for base in reversed(methods.load(name).Config.__mro__):
        if base is not object:
            texts |= option_texts(base)
    for field in fields(methods.load(name).Config):
        assert len(texts.get(field.name, "")) > 8, f"--{field.name} of {name} has no help text"


def option_texts(config: type) -> dict[str, str]:
    """The string under each option of a configuration."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        option.target.id: text.value.value
        for option, text in pairwise(definition.body)
        if isinstance(option, ast.AnnAssign)
        and isinstance(option.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
