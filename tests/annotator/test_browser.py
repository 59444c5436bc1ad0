from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.voc import VOC
from labelwise.samples import Kind, Sample
from tests.annotator.browser import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Program,
    Visit,
    ask,
    make_images,
    name,
    served,
    stored_points,
    visiting,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Dialog

ODD = "a <b>&' é 1"
"""An image's name that is markup, needs an escape in an address, and is not ASCII."""


def test_points_named_by_keyboard_outlive_a_killed_server(context: BrowserContext, tmp_path: Path) -> None:
    ids = [f"image_{number}" for number in range(4)]
    root = make_images(tmp_path / "data", ids, CLASSES).root
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ("--queries", str(ask(tmp_path / "queries.json", ids, 6)), "--port", port)
    program = Program(root, *words)
    answers: dict[str, str | None] = {}
    try:
        with visiting(context, program.address, may_fail=True) as visit:
            visit.page.wait_for_selector(".picture[data-drawn]")
            for key in "cdtb" * 2:
                name(visit, key, answers)
            refuse_a_wrong_key(visit)
            skip_and_undo(visit, answers)
            visit.wait_saved()
            shown = visit.drawn()
            visit.page.reload()
            visit.wait_drawn(shown)
            for key in "cdt":
                name(visit, key, answers)
            visit.wait_saved()
            program.end(kill=True)
            for key in "cd":
                name(visit, key, answers)
            visit.page.wait_for_selector('#saved[data-state="retrying"]')
            assert "not saved yet" in visit.page.locator("#saved").inner_text()
            assert "does not answer" in visit.page.locator("#notices").inner_text()

            program = Program(root, *words)
            visit.page.get_by_text("The server was started anew").wait_for()
            with visiting(context, program.address):
                visit.wait_saved()
            for key in "tbcdtb":
                name(visit, key, answers)
            visit.wait_saved()
            assert "20 of 24" in visit.page.locator(".figures").inner_text()
    finally:
        program.end(kill=False)
    assert sum(label is not None for label in answers.values()) == 19
    assert stored_points(root) == {place: label for place, label in answers.items() if label is not None}
    check_journal(root, answers)


def refuse_a_wrong_key(visit: Visit) -> None:
    shown = visit.drawn()
    visit.press("x")
    assert "No class has the key" in visit.page.locator("#message").inner_text()
    assert visit.drawn() == shown


def skip_and_undo(visit: Visit, answers: dict[str, str | None]) -> None:
    first = visit.drawn()
    visit.press("c")
    second = visit.wait_changed(first)
    visit.press("Backspace")
    assert visit.wait_changed(second) == first
    visit.press("Space")
    visit.wait_changed(first)
    answers[first] = None


def check_journal(root: Path, answers: dict[str, str | None]) -> None:
    entries = [json.loads(line) for line in (root / "Labelling" / "journal.jsonl").read_text().splitlines()]
    assert [entry["number"] for entry in entries] == list(range(1, len(entries) + 1))
    assert len({entry["answer"] for entry in entries}) == len(entries) == len(answers) + 2
    assert {entry["kind"] for entry in entries} == {"points"}
    assert sum("undo" in entry for entry in entries) == sum("skipped" in entry for entry in entries) == 1
    assert all(0 <= entry["seconds"] < 60 for entry in entries)


def test_a_predicted_mask_is_corrected_to_the_pixel(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", [ODD], CLASSES)
    predicted = np.zeros((HEIGHT, WIDTH), np.uint8)
    predicted[5:20, 6:30] = 1
    write_prediction(tmp_path / "predictions", dataset, ODD, predicted)
    with (
        served(dataset.root, "masks", predictions=tmp_path / "predictions") as address,
        visiting(context, address) as visit,
    ):
        visit.page.wait_for_selector(".picture[data-drawn]")
        visit.page.get_by_text("The model's mask, not saved yet").wait_for()
        visit.press(*"[" * 30, "d", "Space")
        expected = predicted.copy()
        x, y = WIDTH // 2, HEIGHT // 2
        expected[y, x] = 2
        paint_along_the_way(visit)
        expected[y, x : x + 4] = 2
        visit.press("Shift+V", "Shift+ArrowDown", "Space")
        expected[y + 10, x + 3] = 255
        visit.press("Shift+E", "Shift+ArrowUp", "Shift+ArrowUp", "Space")
        expected[y - 10, x + 3] = 0
        visit.press("Space", "t", "Space", "Control+z")
        fill_rectangle_by_corners(visit)
        expected[y - 10 : y - 6, x + 3 : x + 8] = 3
        visit.press("Control+s")
        visit.page.get_by_text("Saved", exact=True).wait_for()
        visit.page.reload()
        visit.wait_drawn(ODD.replace('"', '\\"'))
        assert visit.page.locator(".chip").inner_text() == "Saved"
    with Image.open(dataset.root / "SegmentationClass" / f"{ODD}.png") as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.asarray(stored), expected)


def write_prediction(root: Path, dataset: VOC, id: str, mask: np.ndarray) -> None:
    predictions = VOC.create(root, dataset.classes)
    predictions.copy_image(id, dataset.image_file(id))
    image = dataset.read(id).image
    predictions.write(Sample(id=id, image=image, mask=tv_tensors.Mask(torch.from_numpy(mask))))
    predictions.write_split("train", [id])


def paint_along_the_way(visit: Visit) -> None:
    visit.page.keyboard.down("Space")
    visit.press("ArrowRight", "ArrowRight", "ArrowRight")
    visit.page.keyboard.up("Space")


def fill_rectangle_by_corners(visit: Visit) -> None:
    """A polygon of five by four pixels from the cursor on, with tree."""
    visit.press("t", "Shift+P", "Space", *["ArrowRight"] * 5, "Space", *["ArrowDown"] * 4, "Space")
    visit.press(*["ArrowLeft"] * 5, "Space", "Enter")


def test_strokes_of_the_mouse_and_their_undoing(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one"], CLASSES)
    with served(dataset.root, "masks") as address, visiting(context, address) as visit:
        visit.wait_drawn("one")
        visit.press("c")
        mouse = visit.page.mouse
        mouse.move(*visit.place(10.5, 10.5))
        mouse.down()
        mouse.move(*visit.place(30.5, 10.5))
        mouse.up()
        visit.press("Shift+P")
        for corner in ((20, 24), (30, 24), (30, 32), (20, 32)):
            mouse.click(*visit.place(*corner))
        visit.press("Enter", "Control+z", "Control+y", "Control+s")
        visit.page.get_by_text("Saved", exact=True).wait_for()
    with Image.open(dataset.root / "SegmentationClass" / "one.png") as stored:
        mask = np.asarray(stored)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    stroke = (columns - np.clip(columns, 10, 30)) ** 2 + (rows - 10) ** 2 <= 7.5**2
    np.testing.assert_array_equal(mask, stroke | ((rows >= 24) & (rows < 32) & (columns >= 20) & (columns < 30)))


def test_boxes_by_keyboard_by_drag_and_by_four_clicks(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one", "two"], CLASSES)
    with served(dataset.root, "boxes") as address, visiting(context, address) as visit:
        visit.wait_drawn("one")
        visit.press("n", "d", "ArrowLeft", "ArrowUp", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown", "Shift+D")
        visit.press("Escape", "c")
        mouse = visit.page.mouse
        mouse.move(*visit.place(2.2, 3.2))
        mouse.down()
        mouse.move(*visit.place(9.8, 8.8))
        mouse.up()
        visit.press("Escape", "Shift+X", "t")
        for corner in ((40.5, 20.5), (35.5, 25.5), (41.5, 33.5), (46.5, 24.5)):
            mouse.click(*visit.place(*corner))
        visit.press("Shift+N", "Delete", "Enter")
        visit.wait_drawn("two")
        visit.wait_saved()
    sample = dataset.read("one", [Kind.BOXES])
    assert sample.boxes is not None and sample.box_labels is not None and sample.difficult is not None
    assert sample.boxes.tolist() == [[17, 12, 30, 22], [2, 3, 10, 9], [35, 20, 47, 34]]
    assert sample.box_labels.tolist() == [2, 1, 3]
    assert sample.difficult.tolist() == [True, False, False]
    assert not (dataset.root / "Annotations" / "two.xml").exists()


def test_tags_are_saved_and_drafts_are_kept(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one", "two"], CLASSES)
    with served(dataset.root, "tags") as address, visiting(context, address) as visit:
        visit.wait_drawn("one")
        visit.press("c", "t", "c", "d", "Enter")
        visit.wait_drawn("two")
        visit.press("c", "ArrowLeft")
        visit.wait_drawn("one")
        visit.page.get_by_text("unsaved changes in 1 other image").wait_for()
        visit.press("ArrowRight")
        visit.wait_drawn("two")
        assert visit.page.locator(".class[aria-pressed=true]").inner_text().startswith("Cat")
        visit.press("Control+s")
        visit.page.get_by_text("Saved", exact=True).wait_for()
        assert visit.page.evaluate("location.hash") == "#tags/two"
    lists = dataset.root / "ImageSets" / "Main"
    rows = {name: (lists / f"{name}_tagged.txt").read_text().split() for name in ("cat", "dog", "tree")}
    assert rows == {
        "cat": ["one", "-1", "two", "1"],
        "dog": ["one", "1", "two", "-1"],
        "tree": ["one", "1", "two", "-1"],
    }


def test_two_tabs_on_one_image(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one"], CLASSES)
    with (
        served(dataset.root, "tags") as address,
        visiting(context, address) as first,
        visiting(context, address, may_fail=True) as second,
    ):
        first.wait_drawn("one")
        second.wait_drawn("one")
        second.page.get_by_text("one is open in another tab, too.").wait_for()
        second.press("d")
        first.press("c", "Control+s")
        first.page.get_by_text("Saved", exact=True).wait_for()
        second.press("Control+s")
        second.page.get_by_text("one was changed in another tab.").wait_for()
        second.page.get_by_text("Load the other version").click()
        second.page.get_by_text("Saved", exact=True).wait_for()
        assert second.page.locator(".class[aria-pressed=true]").all_inner_texts()[0].startswith("Cat")


def test_unsaved_changes_ask_before_the_page_is_left(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one"], CLASSES)
    with served(dataset.root, "tags") as address, visiting(context, address) as visit:
        visit.wait_drawn("one")
        asked: list[str] = []

        def accept(dialog: Dialog) -> None:
            asked.append(dialog.type)
            dialog.accept()

        visit.page.on("dialog", accept)
        visit.press("c")
        visit.page.reload()
        assert asked == ["beforeunload"]
        visit.wait_drawn("one")
        visit.page.reload()
        assert len(asked) == 1


def test_an_image_that_does_not_decode_is_shown_as_such_and_passed(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["bad", "good"], CLASSES)
    dataset.image_file("bad").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    queries = ask(tmp_path / "queries.json", ["bad", "good"], 1)
    with served(dataset.root, "tags", queries=queries) as address, visiting(context, address, may_fail=True) as visit:
        visit.page.get_by_role("heading", name="This image cannot be shown").wait_for()
        assert "bad" in visit.page.locator(".over").inner_text()
        visit.press("Enter")
        visit.wait_drawn("good")
        visit.page.goto(f"{visit.origin}/#points")
        visit.page.wait_for_function("() => document.querySelector('.picture').dataset.drawn?.endsWith(' good')")
        visit.press("c")
        visit.page.get_by_text("lie in images that cannot be read").wait_for()
        visit.page.goto(f"{visit.origin}/#browse")
        visit.page.get_by_text("Cannot be shown:").wait_for()


def test_more_classes_than_keys_are_found_by_search(context: BrowserContext, tmp_path: Path) -> None:
    names = ("background", *(f"class {number:02}" for number in range(44)), "<img src=x onerror=alert(1)>")
    dataset = make_images(tmp_path / "data", [ODD], Classes(names))
    queries = ask(tmp_path / "queries.json", [ODD], 2)
    with served(dataset.root, queries=queries) as address, visiting(context, address) as visit:
        shown = visit.wait_changed("")
        visit.press("/", *"class 4", "ArrowDown", "ArrowDown", "Enter")
        shown_next = visit.wait_changed(shown)
        visit.press("/", *"onerror", "Enter")
        visit.page.get_by_role("heading", name="This batch is done").wait_for()
        visit.wait_saved()
    assert stored_points(dataset.root) == {shown: "class 42", shown_next: names[-1]}


def test_a_browser_that_is_not_let_in_sees_a_page_of_the_same_look(context: BrowserContext, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one"], CLASSES)
    with served(dataset.root) as address, visiting(context, address.split("token")[0], may_fail=True) as visit:
        visit.page.get_by_role("heading", name="This browser is not let in yet").wait_for()
        assert visit.page.locator(".empty").evaluate("card => getComputedStyle(card).borderRadius") == "14px"


def test_a_phone_names_pixels_by_touch(browser: Browser, tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "data", ["one"], CLASSES)
    phone = browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    with (
        served(dataset.root, queries=ask(tmp_path / "queries.json", ["one"], 2)) as address,
        visiting(phone, address) as visit,
    ):
        shown = visit.wait_changed("")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        for button in visit.page.locator("button:visible").all():
            frame = button.bounding_box()
            assert frame is not None and min(frame["width"], frame["height"]) >= 44, button.inner_text()
        visit.page.get_by_role("button", name="Dog").tap()
        assert visit.wait_changed(shown)
        visit.wait_saved()
    phone.close()
    assert stored_points(dataset.root) == {shown: "dog"}


def test_browse_filters_and_opens_an_image_by_keyboard(context: BrowserContext, tmp_path: Path) -> None:
    ids = [f"image_{number:03}" for number in range(70)]
    dataset = make_images(tmp_path / "data", ids, CLASSES)
    with served(dataset.root, "browse") as address, visiting(context, address) as visit:
        visit.page.get_by_text("70 images", exact=True).wait_for()
        visit.press("ArrowRight", "Enter")
        visit.wait_drawn("image_001")
        visit.press("c", "Control+s")
        visit.page.get_by_text("Saved", exact=True).wait_for()
        visit.page.get_by_role("link", name="Browse").click()
        visit.page.get_by_label("Show").select_option("tags")
        visit.page.get_by_text("1 image", exact=True).wait_for()
        visit.page.get_by_label("Show").select_option("all")
        visit.press("/", *"_06")
        visit.page.get_by_text("10 images", exact=True).wait_for()
        assert visit.page.locator(".card .name").first.inner_text() == "image_060"
