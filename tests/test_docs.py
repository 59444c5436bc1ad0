"""The generated pages follow from the cards."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", DOCS / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_and_readme_table_are_up_to_date(build: ModuleType) -> None:
    stale = [path.name for path, text in build.pages().items() if path.read_text() != text]
    assert not stale, "run `python docs/build.py`"


def test_links_between_pages_lead_somewhere() -> None:
    import re

    for page in (DOCS.parent / "README.md", *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_option_has_a_meaning_on_its_page(build: ModuleType) -> None:
    for path, text in build.pages().items():
        if path.parent.name == "methods":
            rows = [line for line in text.splitlines() if line.startswith("| `--")]
            assert rows
            assert all(line.rstrip(" |").split("|")[-1].strip() for line in rows)
