"""Write the method pages and the README's method table from the cards; `--check` only says whether they are stale."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object

from labelwise import methods
from labelwise.configuration import preset_names
from labelwise.method import Card, Method
from labelwise.verbs.reproduce import Side

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- methods: written by docs/build.py -->", "<!-- end of methods -->"


def method_table() -> str:
    """The README's table: what each method needs and gives, linked to its page."""
    lines = ["| method | task | learns from | gives | paper |", "|---|---|---|---|---|"]
    for name in methods.METHODS:
        card = methods.load(name).card
        gives = ", ".join(sorted(card.gives))
        lines.append(f"| [`{name}`](docs/methods/{name}.md) | {card.task} | {card.needs} | {gives} | {card.paper} |")
    return "\n".join(lines)


def method_page(method: type[Method]) -> str:
    """One method's page: idea, command, options, published numbers, claim, and the file's own account."""
    card = method.card
    account = inspect.getdoc(inspect.getmodule(method)) or ""
    parts = [
        f"# {card.title} (`{card.name}`)",
        card.idea,
        f"Task: {card.task}. Learns from: {card.needs}. Gives: {', '.join(sorted(card.gives))}.",
        f"Paper: {card.paper}.",
        "## Run it",
        f"```\nlabelwise train {card.name} --data DATA --labels {_labels(card)}\n```",
        f"Presets: {', '.join(f'`--preset {name}`' for name in preset_names(card.name))}.",
        "## Options",
        _options(method),
        *_published(card),
        *_claim(card),
        "## The method, and where this implementation departs from it",
        account,
    ]
    return "\n\n".join(parts) + "\n"


def _options(method: type[Method]) -> str:
    help_of: dict[str, str | None] = {}
    for owner in reversed(method.Config.__mro__[:-1]):
        help_of |= {entry.arg_name: entry.description for entry in parse_from_object(owner).params}
    rows = [
        f"| `{_flag(field.name)}` | {_shown(field.default)} | {help_of[field.name]} |"
        for field in fields(method.Config)
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


def _published(card: Card) -> list[str]:
    if not card.published:
        return []
    rows = [f"| {number.setting} | {number.metric} | {number.value} | {number.source} |" for number in card.published]
    table = ["| setting | metric | value | source |", "|---|---|---|---|", *rows]
    return ["## Published numbers (not measured here)", "\n".join(table)]


def _claim(card: Card) -> list[str]:
    if card.claim is None:
        return []
    baseline = Side(card.claim.baseline, card.claim.labels, card.claim.baseline_settings)
    return ["## Claim", f"{card.claim.text} Baseline: `{baseline.name}`."]


def _labels(card: Card) -> str:
    return card.claim.labels if card.claim else card.needs.all_labels


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def pages() -> dict[Path, str]:
    """Every generated file and what it has to hold."""
    wanted = {DOCS / "methods" / f"{name}.md": method_page(methods.load(name)) for name in methods.METHODS}
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    wanted[README] = f"{before}{BEGIN}\n{method_table()}\n{END}{after}"
    return wanted


def main() -> int:
    """Write the pages, or with `--check` name the stale ones; returns the exit code."""
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is stale; run `python docs/build.py`")
        return 1 if stale else 0
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
