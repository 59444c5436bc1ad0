"""A real browser before a real server: what the page does, what it asks for, and what it complains about."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from labelwise.datasets.base import Classes
from labelwise.datasets.queries import Query, QueryFile, write_queries
from labelwise.datasets.voc import VOC
from tests.annotator.serving import TOKEN, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from labelwise.annotator.session import AnnotationSession

WIDTH, HEIGHT = 48, 36
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
MARGIN = 10
"""CSS pixels that the page leaves free around an image."""
CLASSES = Classes(("background", "cat", "dog", "tree"))
KEYS = {"b": "background", "c": "cat", "d": "dog", "t": "tree"}


@contextmanager
def chromium() -> Iterator[Browser]:
    """The installed browser; the test is skipped where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium: install Debian's chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: install playwright for Python")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is watched: what it fetches and what goes wrong."""

    page: Page
    origin: str
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def drawn(self) -> str:
        """What the canvas shows: the image, and in points mode the pixel before it."""
        return self.page.locator(".picture").get_attribute("data-drawn") or ""

    def wait_drawn(self, text: str) -> None:
        self.page.wait_for_selector(f'.picture[data-drawn="{text}"]')

    def wait_changed(self, before: str) -> str:
        """Wait until something else than before is drawn."""
        changed = "text => ![undefined, text].includes(document.querySelector('.picture')?.dataset.drawn)"
        self.page.wait_for_function(changed, arg=before)
        return self.drawn()

    def wait_saved(self) -> None:
        self.page.wait_for_selector('#saved[data-state="saved"]')

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def place(self, x: float, y: float, width: int = WIDTH, height: int = HEIGHT) -> tuple[float, float]:
        """Where on the page a position of the whole image is."""
        frame = self.page.locator(".picture").bounding_box()
        assert frame is not None
        scale = min((frame["width"] - 2 * MARGIN) / width, (frame["height"] - 2 * MARGIN) / height)
        left = frame["x"] + frame["width"] / 2 + (x - width / 2) * scale
        return left, frame["y"] + frame["height"] / 2 + (y - height / 2) * scale


@contextmanager
def visiting(context: BrowserContext, address: str, *, may_fail: bool = False) -> Iterator[Visit]:
    """Open the page; at the end nothing may have left the origin, broken the policy or failed.

    Args:
        context: cookies and screen.
        address: with the token.
        may_fail: the test makes requests fail, which the console notes.
    """
    visit = Visit(context.new_page(), address.split("/?")[0])
    visit.page.set_default_timeout(15_000)
    visit.page.on("request", lambda request: _check_origin(visit, request.url))
    visit.page.on("console", lambda message: _check_console(visit, message, may_fail))
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.add_init_script(
        "addEventListener('securitypolicyviolation', event => console.error('policy: ' + event.violatedDirective))"
    )
    visit.page.goto(address)
    yield visit
    visit.page.close()
    assert visit.complaints == []
    assert visit.strangers == []


def _check_origin(visit: Visit, url: str) -> None:
    if not url.startswith((visit.origin + "/", "data:", "blob:")):
        visit.strangers.append(url)


def _check_console(visit: Visit, message: Any, may_fail: bool) -> None:
    failed_request = message.text.startswith("Failed to load resource")
    if message.type in ("error", "warning") and not (may_fail and failed_request):
        visit.complaints.append(message.text)


class IdleJobs:
    """Jobs that only tell what they are made to tell."""

    session: AnnotationSession

    def __init__(self) -> None:
        self.told: dict[str, Any] = {
            "state": "idle", "what": None, "step": 0, "steps": 0, "losses": [], "score": None, "seconds": 0.0,
            "message": None,
        }  # fmt: skip
        self.started: list[str] = []

    def describe(self) -> dict[str, Any]:
        return self.told

    def start(self, action: str) -> None:
        self.started.append(action)
        losses = [[step, 2 / step] for step in range(1, 20)]
        self.told = self.told | {"state": "running", "what": "training", "step": 19, "steps": 40, "losses": losses}

    def stop(self) -> None:
        self.told = self.told | {"state": "stopped"}

    def finish(self) -> None:
        self.told = self.told | {"state": "finished", "what": "selecting", "score": 43.2}


@contextmanager
def served(root: Path, mode: str = "points", jobs: IdleJobs | None = None, **files: Path) -> Iterator[str]:
    """Serve a data set's labelling in a thread; gives the address with the token."""
    from labelwise.annotator.server import create_app
    from labelwise.annotator.session import AnnotationSession

    folder = root / "Labelling"
    folder.mkdir(exist_ok=True)
    session = AnnotationSession(VOC(root), "train", folder, **files)
    at_work: Any = jobs or IdleJobs()
    at_work.session = session
    try:
        with serving(lambda token, port: create_app(session, at_work, token, port, mode)) as client:
            yield f"http://127.0.0.1:{client.port}/?token={TOKEN}"
    finally:
        session.close()


def make_images(root: Path, ids: Sequence[str], classes: Classes) -> VOC:
    """A data set of small images without labels."""
    dataset = VOC.create(root, classes)
    for number, id in enumerate(ids):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(dataset.root / "JPEGImages" / f"{id}.png")
    dataset = VOC(root)
    dataset.write_split("train", ids)
    return dataset


def ask(path: Path, ids: Sequence[str], pixels: int) -> Path:
    """A file of queries for these images."""
    random = np.random.default_rng(0)
    queries = []
    for id in ids:
        chosen = random.choice(WIDTH * HEIGHT, pixels, replace=False)
        x, y = (chosen % WIDTH).tolist(), (chosen // WIDTH).tolist()
        queries.append(Query(id, HEIGHT, WIDTH, tuple(x), tuple(y)))
    write_queries(path, QueryFile(tuple(queries), "random", None, 0))
    return path


def name(visit: Visit, key: str, answers: dict[str, str | None]) -> None:
    """Name the pixel that is drawn, and wait for the next one."""
    shown = visit.drawn()
    visit.press(key)
    answers[shown] = KEYS[key]
    visit.wait_changed(shown)


def stored_points(root: Path) -> dict[str, str]:
    """`x y image` -> class of every point on the disk."""
    found = {}
    for path in (root / "Points").iterdir():
        told = json.loads(path.read_text())
        found |= {f"{point['x']} {point['y']} {told['image']}": point["class"] for point in told["points"]}
    return found


class Program:
    """`labelwise label` as a process of its own, which can be killed."""

    def __init__(self, root: Path, *words: str) -> None:
        arguments = [sys.executable, "-m", "labelwise", "label", str(root), "--no-browser", *words]
        quiet = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=quiet)
        self.address = self._address()

    def _address(self) -> str:
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                return found[0]
        raise AssertionError("".join(said))

    def end(self, *, kill: bool) -> None:
        (self.process.kill if kill else self.process.terminate)()
        self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()
