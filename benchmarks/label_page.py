"""How fast the annotator's page answers a key with 5,000 images in the set, and whether its server's memory stays flat.

A real `labelwise label` serves a set of 5,000 small scenes (hard links of a few), two pixels asked of each. Chromium
presses a class's key again and again. Measured in the page, over 200 answers: from the key's event to the frame in
which the next pixel is drawn, and from the key's event to the acknowledgement, at which the answer is on the disk.
Then the answers go on to 2,000, and the resident memory of the server is read from time to time. The promise: a median
and 95th percentile of the drawing below 100 ms, and no more than 10 % of memory gained after the first 200 answers.

Run: ``python benchmarks/label_page.py``
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labelwise.datasets.queries import Query, QueryFile, write_queries
from labelwise.datasets.shapes import ShapesOptions, write_shapes
from labelwise.datasets.voc import VOC

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES, SCENES, SIZE = 5000, 20, 128
TIMED, ANSWERS, EVERY = 200, 2000, 300
TARGET_MS, TARGET_GROWTH = 100, 1.1
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")

CLOCK = """
addEventListener('keydown', event => { window.pressed = event.timeStamp; }, true);
window.times = {drawn: [], saved: []};
function watch(element, attribute, list, wanted) {
  new MutationObserver(() => {
    if (wanted && element.getAttribute(attribute) !== wanted) return;
    const pressed = window.pressed;
    if (list === 'saved') window.times.saved.push(performance.now() - pressed);
    else requestAnimationFrame(() => window.times.drawn.push(performance.now() - pressed));
  }).observe(element, {attributes: true, attributeFilter: [attribute]});
}
addEventListener('load', function wait() {
  const canvas = document.querySelector('.picture');
  if (!canvas) return void setTimeout(wait, 20);
  watch(canvas, 'data-drawn', 'drawn');
  watch(document.getElementById('saved'), 'data-state', 'saved', 'saved');
});
"""


def make_set(root: Path) -> Path:
    """The folder of the set; `queries.json` lies beside it."""
    write_shapes(root / "scenes", ShapesOptions(train=SCENES, val=1, size=SIZE))
    scenes = VOC(root / "scenes")
    files = [scenes.image_file(id) for id in scenes.ids("train")]
    dataset = VOC.create(root / "data", scenes.classes)
    ids = [f"image_{number:05}" for number in range(IMAGES)]
    for number, id in enumerate(ids):
        source = files[number % SCENES]
        os.link(source, dataset.root / "JPEGImages" / f"{id}{source.suffix}")
    VOC(dataset.root).write_split("train", ids)
    pixels = np.random.default_rng(0).permuted(np.tile(np.arange(SIZE), (2 * IMAGES, 1)), axis=1)[:, :2].tolist()
    asked = [
        Query(id, SIZE, SIZE, tuple(pixels[2 * place]), tuple(pixels[2 * place + 1])) for place, id in enumerate(ids)
    ]
    write_queries(root / "queries.json", QueryFile(tuple(asked), "random", None, 0))
    return dataset.root


@contextmanager
def serving(root: Path) -> Iterator[tuple[int, str]]:
    """The server's process and address."""
    queries = root.parent / "queries.json"
    command = [sys.executable, "-m", "labelwise", "label", str(root), "--queries", str(queries), "--no-browser"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        yield process.pid, address
    finally:
        process.terminate()
        process.wait()


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def answer(page: Page, key: str) -> None:
    """Press a key and wait until the next pixel is drawn."""
    before = page.locator(".picture").get_attribute("data-drawn")
    page.keyboard.press(key)
    page.wait_for_function("text => document.querySelector('.picture').dataset.drawn !== text", arg=before)


def measure(page: Page, pid: int) -> tuple[dict[str, list[float]], list[tuple[int, float]]]:
    """The times in ms of the first answers, and the server's memory in MB after so many answers."""
    page.wait_for_selector(".picture[data-drawn]")
    page.wait_for_timeout(500)
    page.evaluate("window.times = {drawn: [], saved: []}")
    for _ in range(TIMED):
        answer(page, "b")
        page.wait_for_selector('#saved[data-state="saved"]')
        page.wait_for_timeout(30)
    times = page.evaluate("window.times")
    memory = [(TIMED, resident_mb(pid))]
    for number in range(TIMED + 1, ANSWERS + 1):
        answer(page, "b")
        if number % EVERY == 0 or number == ANSWERS:
            memory.append((number, resident_mb(pid)))
    return times, memory


def main() -> int:
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory() as folder,
        serving(make_set(Path(folder))) as (pid, address),
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page = browser.new_page()
        page.add_init_script(CLOCK)
        page.goto(address)
        times, memory = measure(page, pid)
        browser.close()
    for what, words in (("drawn", "key to next pixel drawn"), ("saved", "key to answer on disk")):
        median, most, last = (float(np.percentile(times[what], share)) for share in (50, 95, 100))
        print(f"{words}, {len(times[what])} answers: median {median:.1f} ms, 95 % {most:.1f} ms, max {last:.1f} ms")
    print("server memory: " + ", ".join(f"{megabytes:.0f} MB after {number}" for number, megabytes in memory))
    growth = memory[-1][1] / memory[0][1]
    quick = float(np.percentile(times["drawn"], 95)) < TARGET_MS
    print(f"below {TARGET_MS} ms: {'yes' if quick else 'no'}; memory grew by {100 * (growth - 1):.1f} %")
    return 0 if quick and growth < TARGET_GROWTH else 1


if __name__ == "__main__":
    raise SystemExit(main())
