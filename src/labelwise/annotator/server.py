"""The annotator's server: a labelling session and its jobs behind HTTP, for one browser on this machine."""

from __future__ import annotations

import gzip
import math
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import PurePath
from types import FrameType
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from labelwise.annotator.fields import decimal, is_box, is_whole, name_of, number_of, seconds_of, text_of, whole_of
from labelwise.annotator.jobs import Busy, Jobs
from labelwise.annotator.points import NEXT
from labelwise.annotator.security import (
    JSON_LIMIT,
    Guard,
    JSONAnswer,
    TooLarge,
    gunzip,
    packed_limit,
    parse_object,
    read_body,
    refusal,
)
from labelwise.annotator.session import AnnotationSession, Conflict, UnknownImage
from labelwise.errors import UserError

HOST = "127.0.0.1"
MODES = ("points", "tags", "boxes", "masks", "browse")
"""What a person can do in the page."""

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_GRACE = 5
"""Seconds that answers on their way have when the server ends."""
_MOST_IMAGES = 500
_MOST_SEARCHED = 200


def bind(port: int) -> socket.socket:
    """A socket of this machine's own address, which no other machine reaches.

    Args:
        port: 0 for any free one.

    Raises:
        UserError: the port is in use, or may not be used.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 0 (any free one) to 65535")
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # So that a server can be started again at once: connections of the one before linger.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
        bound.listen()
    except OSError as error:
        bound.close()
        reason = (error.strerror or "cannot be used").lower()
        raise UserError(f"--port {port}: {reason}; take another, or 0 for any free one") from None
    return bound


def create_app(session: AnnotationSession, jobs: Jobs, token: str, port: int, mode: str = "points") -> Guard:
    """The page and its interface.

    Args:
        session: the labels.
        jobs: what runs beside.
        token: the secret that lets a browser in.
        port: on which the server listens, for the checks of where a request comes from.
        mode: one of `MODES`, which the page opens with.

    Returns:
        An ASGI application that answers to this machine and this token only.
    """
    api = _Api(session, jobs, mode)
    static = _static_files()
    routes = [
        Route("/", _served(static, "index.html")),
        *(Route(f"/static/{name}", _served(static, name)) for name in static),
        Route("/api/session", api.session),
        Route("/api/images", api.images),
        Route("/api/image/{id:path}", api.image),
        Route("/api/thumbnail/{id:path}", api.thumbnail),
        Route("/api/labels/{id:path}", api.labels),
        Route("/api/mask/{id:path}", api.mask, methods=["GET"]),
        Route("/api/mask/{id:path}", api.set_mask, methods=["POST"]),
        Route("/api/queries", api.queries),
        Route("/api/statistics", api.statistics),
        Route("/api/job", api.job, methods=["GET"]),
        Route("/api/points", _posted(api.point), methods=["POST"]),
        Route("/api/undo", _posted(api.undo), methods=["POST"]),
        Route("/api/tags/{id:path}", _posted(api.tags), methods=["POST"]),
        Route("/api/boxes/{id:path}", _posted(api.boxes), methods=["POST"]),
        Route("/api/open/{id:path}", _posted(api.open), methods=["POST"]),
        Route("/api/job", _posted(api.change_job), methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers=_REFUSALS)
    app.router.redirect_slashes = False
    return Guard(app, token=token, port=port)


def server_of(app: Guard) -> uvicorn.Server:
    """A server that speaks plain HTTP, and writes down nothing but errors."""
    config = uvicorn.Config(
        app,
        http="h11",  # the parser that bounds the head of a request
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def serve(app: Guard, listening: socket.socket) -> int:
    """Answer requests until the process is asked to end; answers that are on their way are given first.

    Args:
        app: of `create_app`.
        listening: of `bind`; it is closed at the end.

    Returns:
        The number of the signal that ended it: SIGINT (Ctrl-C), SIGTERM, or SIGHUP (the terminal was closed).
    """
    server = server_of(app)
    received: list[int] = []

    def end(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        server.handle_exit(signum, frame)

    # uvicorn takes over the first two while it runs, and repeats what it received when it has ended.
    before = {signum: signal.signal(signum, end) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        server.run(sockets=[listening])
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return received[0] if received else signal.SIGTERM


class _Api:
    """The answers; all but the reading of bodies runs in threads."""

    def __init__(self, session: AnnotationSession, jobs: Jobs, mode: str) -> None:
        self._session, self._jobs, self._mode = session, jobs, mode

    # -------------------------------------------------------------------- GET

    def session(self, request: Request) -> Response:
        return JSONAnswer({**self._session.describe(), "mode": self._mode, "modes": MODES})

    def images(self, request: Request) -> Response:
        given = request.query_params
        search = given.get("search", "")
        if len(search) > _MOST_SEARCHED:
            raise ValueError(f"search: has more than {_MOST_SEARCHED} characters")
        offset, count = number_of(given, "offset", 0), number_of(given, "count", 60, most=_MOST_IMAGES)
        order = given.get("order", "list")
        return JSONAnswer(self._session.images(given.get("filter", "all"), search, order, offset, count))

    def image(self, request: Request) -> Response:
        content, media_type = self._session.image_file(_id(request))
        return Response(content, media_type=media_type)

    def thumbnail(self, request: Request) -> Response:
        with_labels = request.query_params.get("labels", "0") == "1"
        return Response(self._session.thumbnail(_id(request), with_labels), media_type="image/jpeg")

    def labels(self, request: Request) -> Response:
        return JSONAnswer(self._session.labels(_id(request)))

    def mask(self, request: Request) -> Response:
        source = request.query_params.get("source", "labels")
        if source not in ("labels", "prediction"):
            raise ValueError("source: must be labels or prediction")
        mask = self._session.mask(_id(request), source)
        content = gzip.compress(np.ascontiguousarray(mask).tobytes(), compresslevel=1, mtime=0)
        return Response(content, media_type="application/octet-stream", headers={"Content-Encoding": "gzip"})

    def queries(self, request: Request) -> Response:
        count = number_of(request.query_params, "count", NEXT, most=_MOST_IMAGES)
        return JSONAnswer(self._session.queries(count))

    def statistics(self, request: Request) -> Response:
        return JSONAnswer(self._session.statistics())

    def job(self, request: Request) -> Response:
        return JSONAnswer(self._jobs.describe())

    # ------------------------------------------------------------------- POST

    def point(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._session.answer_point(
            name_of(body, "answer"),
            text_of(body, "id"),
            whole_of(body, "x"),
            whole_of(body, "y"),
            None if "class" in body and body["class"] is None else whole_of(body, "class"),
            seconds_of(body),
        )

    def undo(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._session.undo(name_of(body, "answer"))

    def tags(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        tags = body.get("tags")
        if not isinstance(tags, list) or not all(map(is_whole, tags)):
            raise ValueError("tags: must be a list of class numbers")
        return self._session.set_tags(
            name_of(body, "answer"), _id(request), whole_of(body, "revision"), tags, seconds_of(body)
        )

    def boxes(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        boxes = body.get("boxes")
        if not isinstance(boxes, list) or not all(map(is_box, boxes)):
            raise ValueError('boxes: must be a list of {"box": [x1, y1, x2, y2], "class": number, "difficult": bool}')
        return self._session.set_boxes(
            name_of(body, "answer"), _id(request), whole_of(body, "revision"), boxes, seconds_of(body)
        )

    def open(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._session.heartbeat(_id(request), name_of(body, "tab"))

    def change_job(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        match body.get("action"):
            case "next" | "select" | "predict" as action:
                self._jobs.start(action)
            case "stop":
                self._jobs.stop()
            case _:
                raise ValueError("action: must be next, select, predict or stop")
        return self._jobs.describe()

    async def set_mask(self, request: Request) -> Response:
        if request.headers.get("content-encoding") != "gzip":
            raise HTTPException(415, "a mask is sent with Content-Encoding: gzip")
        given, id = request.query_params, _id(request)
        answer, revision = name_of(given, "answer"), number_of(given, "revision", None)
        seconds = seconds_of({"seconds": decimal(given.get("seconds", ""))})
        told = await run_in_threadpool(self._session.labels, id)
        shape = told["height"], told["width"]
        packed = await read_body(request, packed_limit(math.prod(shape)))

        def store() -> dict[str, Any]:
            mask = np.frombuffer(gunzip(packed, math.prod(shape)), np.uint8).reshape(shape)
            return self._session.set_mask(answer, id, revision, mask, seconds)

        return JSONAnswer(await run_in_threadpool(store))


def _posted(work: Callable[[Request, Mapping[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    """A handler of JSON bodies, which are read here and worked on in a thread."""

    async def handler(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the body must be application/json")
        body = parse_object(await read_body(request, JSON_LIMIT))
        return JSONAnswer(await run_in_threadpool(work, request, body))

    return handler


def _static_files() -> dict[str, tuple[bytes, str]]:
    """The page's files, read once: no path of a request is ever looked for on the disk."""
    files = (resources.files("labelwise.annotator") / "static").iterdir()
    return {
        file.name: (file.read_bytes(), _MEDIA_TYPES[PurePath(file.name).suffix])
        for file in files
        if PurePath(file.name).suffix in _MEDIA_TYPES
    }


def _served(files: Mapping[str, tuple[bytes, str]], name: str) -> Callable[[Request], Response]:
    content, media_type = files[name]
    return lambda request: Response(content, headers={"Content-Type": media_type})


def _id(request: Request) -> str:
    id = str(request.path_params["id"])
    # The pattern of a route passes over a line feed at the end.
    if not request.scope["path"].endswith(id):
        raise UnknownImage("there is no such image")
    return id


# ------------------------------------------------------------------- refusals


def _refuser(status: int) -> Callable[[Request, Exception], Response]:
    return lambda request, error: refusal(status, str(error) or "the request cannot be granted")


def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail, error.headers)


def _refuse_conflict(request: Request, error: Exception) -> Response:
    assert isinstance(error, Conflict)
    return refusal(409, str(error) or "somebody else has changed this image meanwhile", revision=error.revision)


def _refuse_bug(request: Request, error: Exception) -> Response:
    return refusal(500, f"an error in labelwise ({type(error).__name__}); the terminal shows it")


_REFUSALS: Mapping[Any, Any] = {
    HTTPException: _refuse_http,
    Conflict: _refuse_conflict,
    UnknownImage: _refuser(404),
    Busy: _refuser(409),
    TooLarge: _refuser(413),
    UserError: _refuser(400),
    ValueError: _refuser(400),
    OSError: _refuser(500),
    ClientDisconnect: _refuser(400),
    Exception: _refuse_bug,
}
"""How each error is answered: those of a session by their kind, anything else as a bug."""
