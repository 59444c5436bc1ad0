"""A server in a thread, and a client that says just what it is told to."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from labelwise.annotator.security import Guard
from labelwise.annotator.server import bind, server_of

TOKEN = "correct-horse"
PATIENCE = 20


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header that is there once at most."""
        values = [value for other, value in self.headers if other.lower() == name.lower()]
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of a refused request, which is one line."""
        assert self.status >= 400, self
        message = self.json["error"]
        assert message and "\n" not in message
        return str(message)


@dataclass(frozen=True)
class Client:
    port: int

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """One request as the page makes it, but for the headers given; None leaves one out."""
        sent: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Cookie": f"labelwise_{self.port}={TOKEN}",
            "Origin": f"http://127.0.0.1:{self.port}" if method == "POST" else None,
        }
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        if body is not None:
            sent["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in (sent | dict(headers or {})).items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str | None] | None = None) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: bytes | dict[str, Any], headers: Mapping[str, str | None] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)


@contextmanager
def serving(make_app: Callable[[str, int], Guard]) -> Iterator[Client]:
    """Serve what is made of the token and the port."""
    listening = bind(0)
    port = listening.getsockname()[1]
    server = server_of(make_app(TOKEN, port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        began = time.monotonic()
        while not server.started:
            assert thread.is_alive() and time.monotonic() - began < PATIENCE
            time.sleep(0.005)
        yield Client(port)
    finally:
        server.should_exit = True
        thread.join()
