"""A reader of pages that refuses what a self-contained page must not hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "img", "br", "input"}


class Reader(HTMLParser):
    """Text, tags and addresses of a page; checks that the tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture
def read_page() -> Callable[[Path], Reader]:
    """Read a page; fails if it is not well nested, runs a script or asks a server for anything."""

    def read(path: Path) -> Reader:
        content = path.read_text(encoding="utf-8")
        reader = Reader()
        reader.feed(content)
        assert reader.open == []
        assert "script" not in reader.tags and "iframe" not in reader.tags
        assert all(re.match(r"data:|#|[\w./%-]+$", address) for address in reader.addresses)
        assert not re.search(r"url\((?!#)|@import", content)
        reader.text = " ".join(reader.text.split())
        return reader

    return read
