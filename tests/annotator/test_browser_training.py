"""Training from the page: offered, watched while labelling goes on, and done in earnest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from labelwise.datasets.queries import read_queries
from tests.annotator.browser import (
    CLASSES,
    IdleJobs,
    Program,
    Visit,
    ask,
    make_images,
    name,
    served,
    stored_points,
    visiting,
)
from tests.tiny_runs import MACHINE, OPTIONS

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

PATIENCE = 120_000
"""Milliseconds until a job is taken to hang."""


def test_a_finished_batch_leads_to_training_and_to_the_next_one(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one"], CLASSES)
    jobs = IdleJobs()
    with (
        served(dataset.root, jobs=jobs, queries=ask(tmp_path / "queries.json", ["one"], 1)) as address,
        visiting(context, address) as visit,
    ):
        visit.wait_changed("")
        visit.press("c")
        visit.page.get_by_role("heading", name="This batch is done").wait_for()
        visit.press("Enter")
        visit.page.get_by_text("step 19 of 40").wait_for()
        assert jobs.started == ["next"]
        assert visit.page.locator(".curve").is_visible()
        visit.page.get_by_role("button", name="Stop").click()
        visit.page.get_by_text("Training on your labels: stopped").wait_for()


def test_labelling_goes_on_while_a_model_is_trained_and_its_batch_takes_over(
    context: BrowserContext, tmp_path: Path
) -> None:
    dataset = make_images(tmp_path / "data", ["one", "two"], CLASSES)
    jobs = IdleJobs()
    batches = ask(tmp_path / "first.json", ["one", "two"], 3), ask(tmp_path / "second.json", ["two"], 1)
    with served(dataset.root, jobs=jobs, queries=batches[0]) as address, visiting(context, address) as visit:
        answers: dict[str, str | None] = {}
        visit.wait_changed("")
        visit.press("Shift+T")
        visit.page.get_by_text("No pixel is labeled yet").wait_for()
        name(visit, "c", answers)
        train = visit.page.get_by_role("button", name="Train on what is labeled")
        train.wait_for()
        visit.press("Shift+T")
        visit.page.locator(".panel").get_by_text("step 19 of 40").wait_for()
        assert jobs.started == ["next"] and train.is_hidden()
        name(visit, "d", answers)
        kept = visit.drawn()
        jobs.session.load_queries(batches[1])
        jobs.finish()
        visit.page.get_by_text("are asked for from here on, 1 in all").wait_for()
        assert visit.drawn() == kept
        name(visit, "t", answers)
        assert visit.drawn().endswith(" two") and train.is_visible()
        new = visit.drawn()
        visit.press("Backspace")
        assert visit.wait_changed(new) == kept
        name(visit, "b", answers)
        assert visit.drawn() == new
        name(visit, "c", answers)
        visit.page.get_by_role("heading", name="This batch is done").wait_for()
    assert len(answers) == 4 and stored_points(dataset.root) == answers


def test_a_model_is_trained_from_the_page_asks_back_and_predicts(
    context: BrowserContext, shapes_folder: Path, tmp_path: Path
) -> None:
    """Random pixels, answers, a training while labelling goes on, the model's pixels, its masks, one of them mended."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(3):
        shutil.copy(shapes_folder / f"JPEGImages/train_00000{number}.jpg", images / f"{number}.jpg")
    options = [f"--option={name}={value}" for name, value in (OPTIONS | MACHINE).items()]
    words = ["--out", str(out), "--classes=ball,star", "--pixels=2", "--mode=browse", *options]
    program = Program(images, *words)
    try:
        with visiting(context, program.address) as visit:
            visit.page.set_default_timeout(PATIENCE)
            visit.page.get_by_role("link", name="Points").click()
            visit.page.get_by_role("button", name="Choose pixels").wait_for()
            visit.press("Enter")
            visit.page.get_by_text("What is at the red mark?").wait_for()
            first = answered(visit, "bbs")
            visit.press("Shift+T")
            visit.page.get_by_text("Training on your labels…").wait_for()
            first |= answered(visit, "s")
            visit.page.locator(".job .curve").wait_for()
            kept = visit.drawn()
            visit.page.get_by_text("Round 1: the pixels that the new model has chosen").wait_for()
            assert visit.drawn() == kept, "the pixel on the screen was taken away"
            answered(visit, "b")
            asked = visit.page.evaluate("fetch('/api/queries?count=100').then(reply => reply.json())")
            assert (asked["round"], asked["strategy"], asked["done"], asked["total"]) == (1, "margin", 0, 6)
            assert not first & {f"{query['x']} {query['y']} {query['id']}" for query in asked["queries"]}
            correct_a_prediction(visit)
            visit.page.get_by_role("link", name="Points").click()
            visit.page.get_by_text("What is at the red mark?").wait_for()
            visit.press("Shift+T")
            visit.page.get_by_text("Training on your labels…").wait_for()
    finally:
        program.end(kill=False)
    assert program.process.returncode == 143, "a training does not keep it from ending"
    points = [json.loads(file.read_text())["points"] for file in (out / "Points").iterdir()]
    assert sum(map(len, points)) == 5, "an answer was lost"
    queries = read_queries(out / "Labelling/queries.json")
    assert queries.model == str(out / "Labelling/runs/1")
    config = (out / "Labelling/runs/1/config.yaml").read_text()
    assert "method: pixelpick" in config and "labels: points:" in config


def answered(visit: Visit, keys: str) -> set[str]:
    """Name the pixels that are drawn, one after the other."""
    named = set()
    for key in keys:
        shown = visit.drawn()
        visit.press(key)
        visit.wait_changed(shown)
        named.add(shown)
    visit.wait_saved()
    return named


def correct_a_prediction(visit: Visit) -> None:
    """Let the model predict all masks, paint a pixel of the first one, save it."""
    root = Path(visit.page.locator("#data").get_attribute("title") or "")
    visit.page.get_by_role("link", name="Masks").click()
    visit.page.get_by_role("button", name="Let the model predict masks").click()
    visit.page.get_by_text("The model's mask, not saved yet").wait_for()
    (id,) = {visit.drawn()}
    with Image.open(root / f"Labelling/predictions/SegmentationClass/{id}.png") as file:
        expected = np.array(file)
    x, y = expected.shape[1] // 2, expected.shape[0] // 2
    # Void, which no model predicts.
    visit.press(*"[" * 30, "Shift+V", "Space", "Control+s")
    visit.page.get_by_text("Saved", exact=True).wait_for()
    expected[y, x] = 255
    with Image.open(root / f"SegmentationClass/{id}.png") as file:
        np.testing.assert_array_equal(np.array(file), expected)
