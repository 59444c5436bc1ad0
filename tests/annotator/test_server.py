from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labelwise.annotator import server
from labelwise.annotator.jobs import Busy, JobSettings
from labelwise.annotator.security import Guard
from labelwise.annotator.server import MODES, create_app
from labelwise.annotator.session import AnnotationSession
from labelwise.datasets.queries import Query, QueryFile, write_queries
from labelwise.datasets.voc import VOC
from tests.annotator.serving import TOKEN, Client, serving
from tests.conftest import CAT, PERSON, VOC_IDS

HEIGHT, WIDTH = 24, 32
FIRST = VOC_IDS[0]
ODD = "a b%2F#?é+&"
"""An id of characters that mean something in an address."""


class FakeJobs:
    """Jobs that only note what was asked of them."""

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        self.asked: list[str] = []

    def start(self, action: str) -> None:
        if "next" in self.asked:
            raise Busy("a job is running already")
        self.asked.append(action)

    def stop(self) -> None:
        self.asked.append("stop")

    def describe(self) -> dict[str, Any]:
        return {"state": "idle"}


@pytest.fixture
def jobs(tmp_path: Path) -> FakeJobs:
    return FakeJobs(JobSettings(folder=tmp_path, split="train"))


@pytest.fixture
def dataset(voc_folder: Path) -> VOC:
    """The VOC folder, its first image under an odd name as well, and points asked for in two images."""
    shutil.copy(voc_folder / f"JPEGImages/{FIRST}.jpg", voc_folder / f"JPEGImages/{ODD}.jpg")
    with (voc_folder / "ImageSets/Main/train.txt").open("a") as main:
        main.write(f"{ODD}\n")
    asked = (Query(FIRST, HEIGHT, WIDTH, (20, 3), (1, 2), 0.5), Query(ODD, HEIGHT, WIDTH, (5,), (6,), 0.25))
    write_queries(voc_folder / "queries.json", QueryFile(asked, "margin", "runs/1", 1))
    return VOC(voc_folder)


@pytest.fixture
def client(dataset: VOC, jobs: FakeJobs, tmp_path: Path) -> Iterator[Client]:
    session = AnnotationSession(dataset, "Main/train", tmp_path / "work", queries=dataset.root / "queries.json")

    def app(token: str, port: int) -> Guard:
        return create_app(session, jobs, token, port, "tags")  # type: ignore[arg-type]

    with serving(app) as client:
        yield client
    session.close()


def pack(mask: np.ndarray) -> bytes:
    return gzip.compress(mask.astype(np.uint8).tobytes())


def send_mask(client: Client, id: str, body: bytes, seen: int, encoding: str | None = "gzip", **more: str) -> Any:
    query = {"answer": "m-1", "revision": str(seen), "seconds": "1.25"} | more
    path = f"/api/mask/{id}?" + "&".join(f"{name}={value}" for name, value in query.items())
    return client.post(path, body, {"Content-Encoding": encoding, "Content-Type": "application/octet-stream"})


def revision_of(client: Client, id: str = FIRST) -> int:
    return int(client.get(f"/api/labels/{id}").json["revision"])


def test_the_page_and_its_files_are_served_with_their_types(client: Client) -> None:
    page = client.get("/")
    assert page.status == 200 and page.header("Content-Type") == "text/html; charset=utf-8"
    assert page.body == (Path(server.__file__).parent / "static/index.html").read_bytes()
    for name, kind in (("style.css", "text/css; charset=utf-8"), ("app.js", "text/javascript; charset=utf-8")):
        file = client.get(f"/static/{name}")
        assert file.status == 200 and file.header("Content-Type") == kind
        assert file.body == (Path(server.__file__).parent / "static" / name).read_bytes()


def test_the_token_is_in_nothing_that_is_served(client: Client) -> None:
    for path in ("/", "/static/app.js", "/api/session", "/api/job", "/api/images"):
        answer = client.get(path)
        assert answer.status == 200
        assert TOKEN.encode() not in answer.body and TOKEN not in str(answer.headers)


@pytest.mark.parametrize(
    "path",
    ["/static", "/static/", "/static/nothing.js", "/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/x",
     "/static//etc/passwd", "/static/app.js%00", "/api", "/api/", "/api/session/", "/nothing", "//", "/static/app.js/"],
)  # fmt: skip
def test_nothing_but_the_listed_paths_is_found(client: Client, path: str) -> None:
    assert client.get(path).error == "Not Found"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("PUT", "/api/points"), ("GET", "/api/points"), ("DELETE", "/api/image/x"), ("PATCH", "/api/job"),
     ("POST", "/api/session"), ("OPTIONS", "/api/points"), ("TRACE", "/"), ("PUT", "/api/mask/x")],
)  # fmt: skip
def test_other_methods_are_not_allowed(client: Client, method: str, path: str) -> None:
    answer = client.ask(method, path, headers={"Origin": f"http://127.0.0.1:{client.port}"})
    assert answer.status == 405 and answer.error == "Method Not Allowed" and answer.header("Allow")


def test_the_session_is_described_with_what_the_page_may_do(client: Client, dataset: VOC) -> None:
    told = client.get("/api/session").json
    assert told["mode"] == "tags" and told["modes"] == list(MODES)
    assert told["data"] == str(dataset.root) and told["images"] == 5 and told["round"] == 1
    assert told["classes"][CAT]["name"] == "cat" and told["classes"][CAT]["color"] == "#400000"
    assert told["has_predictions"] is False and told["ignore"] == 255


def test_images_are_listed_in_pages(client: Client) -> None:
    told = client.get("/api/images?count=2&offset=1").json
    assert told["total"] == 5 and [image["id"] for image in told["images"]] == list(VOC_IDS[1:3])
    assert client.get("/api/images?search=000004").json["total"] == 1
    assert client.get("/api/images?order=least_sure&count=2").json["images"][0]["id"] == FIRST


@pytest.mark.parametrize(
    ("query", "message"),
    [("count=501", "count: "), ("count=-1", "count: "), ("offset=x", "offset: "), ("offset=99999999999", "offset: "),
     ("count=%D9%A1", "count: "), ("search=" + "x" * 201, "search: "), ("filter=nonsense", "nonsense"),
     ("order=nonsense", "nonsense")],
)  # fmt: skip
def test_a_wrong_page_of_images_is_refused(client: Client, query: str, message: str) -> None:
    answer = client.get(f"/api/images?{query}")
    assert answer.status == 400 and message in answer.error


def test_an_image_its_thumbnail_and_labels_are_given(client: Client, dataset: VOC) -> None:
    image = client.get(f"/api/image/{FIRST}")
    assert image.header("Content-Type") == "image/jpeg"
    assert image.body == (dataset.root / f"JPEGImages/{FIRST}.jpg").read_bytes()
    for query in ("", "?labels=1"):
        thumbnail = client.get(f"/api/thumbnail/{FIRST}{query}")
        assert thumbnail.header("Content-Type") == "image/jpeg"
        with Image.open(BytesIO(thumbnail.body)) as picture:
            assert picture.format == "JPEG"
    labels = client.get(f"/api/labels/{FIRST}").json
    assert (labels["id"], labels["width"], labels["height"], labels["mask"]) == (FIRST, WIDTH, HEIGHT, True)
    assert [box["class"] for box in labels["boxes"]] == [CAT, PERSON]


def test_an_id_of_any_characters_is_found_percent_encoded(client: Client) -> None:
    encoded = "a%20b%252F%23%3F%C3%A9%2B%26"
    assert client.get(f"/api/labels/{encoded}").json["id"] == ODD
    assert client.get(f"/api/image/{encoded}").status == 200
    assert client.post(f"/api/open/{encoded}", {"tab": "t-1"}).json["others"] is False


@pytest.mark.parametrize(
    "id",
    ["nothing", "..%2f..%2f..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "%2fetc%2fpasswd", "/etc/passwd",
     "..%5c..%5cetc", f"{FIRST}%00", f"{FIRST}%00.jpg", "%00", f"{FIRST}.jpg", f"../JPEGImages/{FIRST}", "%ff%fe", "",
     ".", "..", f"{FIRST}%0a", f"{FIRST}/", "%252e%252e%252fetc", VOC_IDS[5]],
)  # fmt: skip
def test_only_listed_images_are_served(client: Client, id: str) -> None:
    for kind in ("image", "thumbnail", "labels", "mask"):
        answer = client.get(f"/api/{kind}/{id}")
        assert answer.status == 404, kind
        assert b"root:" not in answer.body and answer.error
    body = {"answer": "a-1", "revision": 0, "tags": [], "boxes": [], "seconds": 1, "tab": "t-1"}
    for kind in ("tags", "boxes", "open"):
        assert client.post(f"/api/{kind}/{id}", body).status == 404, kind
    assert send_mask(client, id, b"", 0).status == 404


def test_a_mask_is_given_as_packed_rows(client: Client) -> None:
    answer = client.get(f"/api/mask/{FIRST}?source=labels")
    assert answer.header("Content-Encoding") == "gzip" and answer.header("Content-Type") == "application/octet-stream"
    rows = np.frombuffer(gzip.decompress(answer.body), np.uint8).reshape(HEIGHT, WIDTH)
    assert rows[8, 5] == CAT and rows[10, 20] == PERSON and rows[5, 20] == 255 and rows[0, 0] == 0
    assert client.get(f"/api/mask/{FIRST}?source=prediction").status == 404
    assert client.get(f"/api/mask/{FIRST}?source=/etc/passwd").error == "source: must be labels or prediction"


def test_a_mask_is_stored_and_given_back(client: Client, dataset: VOC) -> None:
    mask = np.random.default_rng(0).integers(0, 21, (HEIGHT, WIDTH), np.uint8)
    mask[3] = 255
    answer = send_mask(client, FIRST, pack(mask), revision_of(client))
    assert answer.status == 200 and answer.json["revision"] == revision_of(client)
    stored = gzip.decompress(client.get(f"/api/mask/{FIRST}").body)
    assert stored == mask.tobytes()
    with Image.open(dataset.root / f"SegmentationClass/{FIRST}.png") as picture:
        assert (np.array(picture) == mask).all()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (pack(np.zeros((HEIGHT, WIDTH - 1))), 400),
        (pack(np.zeros((HEIGHT, WIDTH + 1))), 400),
        (pack(np.full((HEIGHT, WIDTH), 21)), 400),
        (pack(np.zeros(HEIGHT * WIDTH))[:-3], 400),
        (b"", 400),
        (bytes(HEIGHT * WIDTH), 400),
        (gzip.compress(bytes(1_000_000)), 400),
        (bytes(HEIGHT * WIDTH * 2 + 1024), 413),
    ],
    ids=["narrow", "wide", "unknown class", "cut off", "nothing", "not packed", "a bomb", "too long"],
)
def test_a_mask_of_another_size_or_content_is_refused(client: Client, dataset: VOC, body: bytes, status: int) -> None:
    before = (dataset.root / f"SegmentationClass/{FIRST}.png").read_bytes()
    answer = send_mask(client, FIRST, body, revision_of(client))
    assert answer.status == status and answer.error
    assert (dataset.root / f"SegmentationClass/{FIRST}.png").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("answer", ""), ("answer", "../x"), ("answer", "x" * 65), ("seconds", "-1"), ("seconds", "nan"), ("seconds", ""),
     ("revision", ""), ("revision", "1e3")],
)  # fmt: skip
def test_a_mask_with_wrong_words_beside_it_is_refused(client: Client, name: str, value: str) -> None:
    answer = send_mask(client, FIRST, pack(np.zeros((HEIGHT, WIDTH))), revision_of(client), **{name: value})
    assert answer.status == 400 and answer.error.startswith(name)


def test_a_mask_that_is_not_packed_is_refused(client: Client) -> None:
    body = bytes(HEIGHT * WIDTH)
    assert send_mask(client, FIRST, body, revision_of(client), None).status == 415
    assert send_mask(client, FIRST, body, revision_of(client), "br").status == 415


def test_points_are_asked_answered_and_taken_back(client: Client, dataset: VOC) -> None:
    asked = client.get("/api/queries?count=2").json
    assert (asked["done"], asked["total"], asked["round"], asked["strategy"]) == (0, 3, 1, "margin")
    assert [(query["x"], query["y"]) for query in asked["queries"]] == [(3, 2), (20, 1)]
    answer = {"answer": "a-1", "id": FIRST, "x": 3, "y": 2, "class": CAT, "seconds": 1.5}
    told = client.post("/api/points", answer).json
    assert told["done"] == 1 and len(told["queries"]) == 2 and told["statistics"]["points"]["answers"] == 1
    assert client.post("/api/points", answer).json["done"] == 1
    skipped = client.post("/api/points", answer | {"answer": "a-2", "x": 20, "y": 1, "class": None}).json
    assert skipped["done"] == 2 and skipped["statistics"]["points"]["skipped"] == 1
    points = json.loads((dataset.root / f"Points/{FIRST}.json").read_text())["points"]
    assert points == [{"x": 3, "y": 2, "class": "cat"}]
    assert client.post("/api/undo", {"answer": "u-1"}).json["undone"]["x"] == 20
    told = client.post("/api/undo", {"answer": "u-2"}).json
    assert told["undone"] == {"id": FIRST, "x": 3, "y": 2, "class": CAT} and told["done"] == 0
    assert client.get("/api/statistics").json["points"]["answers"] == 0


def test_an_answer_to_what_was_answered_already_is_a_conflict(client: Client) -> None:
    answer = {"answer": "a-1", "id": FIRST, "x": 3, "y": 2, "class": CAT, "seconds": 1}
    assert client.post("/api/points", answer).status == 200
    refused = client.post("/api/points", answer | {"answer": "a-2", "class": PERSON})
    assert refused.status == 409 and refused.json["revision"] == revision_of(client) and refused.error


def test_tags_and_boxes_are_stored_against_the_revision_that_was_seen(client: Client, dataset: VOC) -> None:
    first = revision_of(client)
    told = client.post(f"/api/tags/{FIRST}", {"answer": "t-1", "revision": first, "tags": [CAT], "seconds": 2}).json
    assert told["revision"] == revision_of(client) != first
    assert client.get(f"/api/labels/{FIRST}").json["tags"] == [CAT]
    boxes = [{"box": [1, 2, 10.5, 20], "class": PERSON, "difficult": True}]
    body = {"answer": "b-1", "revision": first, "boxes": boxes, "seconds": 3.5}
    stale = client.post(f"/api/boxes/{FIRST}", body)
    assert stale.status == 409 and stale.json["revision"] == told["revision"]
    assert client.post(f"/api/boxes/{FIRST}", body | {"revision": told["revision"]}).status == 200
    (stored,) = client.get(f"/api/labels/{FIRST}").json["boxes"]
    assert (stored["class"], stored["difficult"]) == (PERSON, True)


POINT = {"answer": "a-1", "id": FIRST, "x": 3, "y": 2, "class": CAT, "seconds": 1.0}
TAGS = {"answer": "a-1", "revision": 0, "tags": [CAT], "seconds": 1.0}
BOXES = {"answer": "a-1", "revision": 0, "boxes": [], "seconds": 1.0}


@pytest.mark.parametrize(
    ("path", "good", "wrong"),
    [
        ("/api/points", POINT, {"answer": None}),
        ("/api/points", POINT, {"answer": "a b"}),
        ("/api/points", POINT, {"answer": "é"}),
        ("/api/points", POINT, {"answer": ["a"]}),
        ("/api/points", POINT, {"id": 3}),
        ("/api/points", POINT, {"x": "3"}),
        ("/api/points", POINT, {"x": 3.0}),
        ("/api/points", POINT, {"x": True}),
        ("/api/points", POINT, {"x": WIDTH}),
        ("/api/points", POINT, {"y": -1}),
        ("/api/points", POINT, {"class": 21}),
        ("/api/points", POINT, {"class": 10**30}),
        ("/api/points", POINT, {"class": "cat"}),
        ("/api/points", POINT, {"seconds": -1}),
        ("/api/points", POINT, {"seconds": 10**9}),
        ("/api/points", POINT, {"seconds": True}),
        ("/api/undo", {"answer": "a-1"}, {"answer": 5}),
        (f"/api/tags/{FIRST}", TAGS, {"tags": CAT}),
        (f"/api/tags/{FIRST}", TAGS, {"tags": ["cat"]}),
        (f"/api/tags/{FIRST}", TAGS, {"tags": [99]}),
        (f"/api/tags/{FIRST}", TAGS, {"revision": "0"}),
        (f"/api/boxes/{FIRST}", BOXES, {"boxes": {}}),
        (f"/api/boxes/{FIRST}", BOXES, {"boxes": [[1, 2, 3, 4]]}),
        (f"/api/boxes/{FIRST}", BOXES, {"boxes": [{"box": [1, 2, 3], "class": 1}]}),
        (f"/api/boxes/{FIRST}", BOXES, {"boxes": [{"box": [1, 2, 3, "4"], "class": 1}]}),
        (f"/api/boxes/{FIRST}", BOXES, {"boxes": [{"box": [1, 2, 3, 4], "class": 1, "difficult": 1}]}),
        (f"/api/boxes/{FIRST}", BOXES, {"boxes": [{"box": [9, 9, 3, 4], "class": 1, "difficult": False}]}),
        (f"/api/boxes/{FIRST}", BOXES, {"boxes": [{"box": [1, 2, 3, 4], "class": 99, "difficult": False}]}),
        (f"/api/open/{FIRST}", {"tab": "t"}, {"tab": ""}),
        ("/api/job", {"action": "stop"}, {"action": "train"}),
        ("/api/job", {"action": "stop"}, {"action": ["next"]}),
    ],
)
def test_a_wrong_value_is_refused_and_changes_nothing(
    client: Client, dataset: VOC, jobs: FakeJobs, path: str, good: dict[str, Any], wrong: dict[str, Any]
) -> None:
    answer = client.post(path, good | wrong)
    assert answer.status == 400 and next(iter(wrong)) in answer.error
    for field in wrong:
        left = {name: value for name, value in good.items() if name != field}
        assert client.post(path, left).status == 400, f"without {field}"
    assert not (dataset.root / "Points").exists() and jobs.asked == []
    assert client.get("/api/statistics").json["points"]["answers"] == 0


def test_a_body_must_be_json_and_say_so(client: Client) -> None:
    body = json.dumps(POINT).encode()
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert client.post("/api/points", body, {"Content-Type": kind}).status == 415
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert client.post("/api/points", body, {"Content-Type": kind}).status == 200
    sent = {"Content-Type": "application/json"}
    assert client.post("/api/points", b"[1]", sent).error == "the body is no JSON object"
    assert client.post("/api/points", body[:-1], sent).error == "the body is not JSON"
    assert client.post("/api/points", body + b" " * 65536, sent).status == 413


def test_a_name_that_is_no_text_is_an_unknown_image(client: Client) -> None:
    body = json.dumps(POINT | {"id": "\ud800"}).encode()
    assert client.post("/api/points", body, {"Content-Type": "application/json"}).status == 404


def test_jobs_are_started_stopped_and_told(client: Client, jobs: FakeJobs) -> None:
    assert client.get("/api/job").json == {"state": "idle"}
    for action in ("select", "predict", "next", "stop"):
        assert client.post("/api/job", {"action": action}).json == {"state": "idle"}
    assert jobs.asked == ["select", "predict", "next", "stop"]
    busy = client.post("/api/job", {"action": "next"})
    assert busy.status == 409 and busy.error == "a job is running already"


def test_a_broken_image_is_refused_by_what_is_wrong_with_it(client: Client, dataset: VOC) -> None:
    (dataset.root / f"JPEGImages/{FIRST}.jpg").write_bytes(b"no image")
    answer = client.get(f"/api/thumbnail/{FIRST}")
    assert answer.status == 400 and "it is not one of JPEG" in answer.error
    assert client.get(f"/api/labels/{FIRST}").json["problem"]
    assert send_mask(client, FIRST, pack(np.zeros((HEIGHT, WIDTH))), revision_of(client)).status == 400


def test_a_full_disk_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "Points/x.json")

    monkeypatch.setattr(AnnotationSession, "answer_point", full)
    answer = client.post("/api/points", POINT)
    assert answer.status == 500 and "No space left on device" in answer.error


def test_a_bug_is_answered_without_its_details(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: Any) -> None:
        raise ZeroDivisionError("secret details")

    monkeypatch.setattr(AnnotationSession, "statistics", buggy)
    answer = client.get("/api/statistics")
    assert answer.status == 500 and "ZeroDivisionError" in answer.error and b"secret" not in answer.body
    assert client.get("/api/session").status == 200
