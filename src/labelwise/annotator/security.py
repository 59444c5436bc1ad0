"""Who may speak to the annotator: one person, from this machine, in pages that it served itself.

The guard stands before everything else and judges the head of a request alone. The socket listens on 127.0.0.1 only,
but that is no wall: every page that is open in the browser can send requests there. So a request

- must name this server as its host, or a foreign name that was turned to 127.0.0.1 (DNS rebinding) could read answers,
- must come from a page of this server where it says where it comes from, which every POST must (cross-site requests),
- must bring the cookie that only the address printed in the terminal gives; a style sheet alone is free.
"""

from __future__ import annotations

import hmac
import json
import zlib
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_LIMIT = 64 * 1024
"""The most bytes of a JSON body."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every response says, whatever it is."""

_LOCKED_OUT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>labelwise</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/style.css">
<header class="bar plain"><span class="brand">labelwise</span></header>
<main>
<div class="empty">
<h1>This browser is not let in yet</h1>
<p>Please open the address that <code>labelwise label</code> printed in the terminal, with everything behind the
question mark. It is a new one at each start.</p>
</div>
</main>
</html>
"""

_OPEN = "/static/style.css"
"""What that page needs to look like the others: served without the cookie, as it holds nothing of anybody."""


class TooLarge(Exception):
    """A body has more bytes than it may have."""


class JSONAnswer(Response):
    """JSON in ASCII, so that a name of any characters can be answered."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content; a number that JSON lacks is a mistake of ours and raises `ValueError`."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def refusal(status: int, reason: str, headers: Mapping[str, str] | None = None, **more: Any) -> JSONAnswer:
    """The answer to a request that cannot be granted: `{"error": "one line"}`."""
    return JSONAnswer({"error": " ".join(reason.split()), **more}, status, headers)


class Guard:
    """An application behind the rules above, every response with the headers above."""

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        """Guard an application.

        Args:
            app: the application.
            token: the secret of the printed address, which becomes the cookie's value.
            port: on which the server listens.
        """
        self.app = app
        self._token = token.encode()
        self._hosts = frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})
        self._origins = frozenset(f"http://{host}" for host in self._hosts)
        # Cookies know no ports: two annotators at a time would take each other's.
        self.cookie = f"labelwise_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refused(scope)
        await (answer or self.app)(scope, receive, send_guarded)

    def _refused(self, scope: Scope) -> Response | None:
        """The answer to a request that does not reach the application; None for one that may."""
        headers = Headers(scope=scope)
        if not self._is_one_of(headers.getlist("host"), self._hosts):
            return refusal(403, "this server answers to 127.0.0.1 and localhost only")
        origins = headers.getlist("origin")
        if (origins or scope["method"] == "POST") and not self._is_one_of(origins, self._origins):
            return refusal(403, "this request comes from another page")
        tokens = QueryParams(scope["query_string"]).getlist("token")
        if tokens and scope["path"] == "/" and scope["method"] == "GET":
            return self._entrance(tokens)
        if not any(self._is_token(value) for value in self._cookies(headers)):
            if scope["path"] == _OPEN and scope["method"] == "GET":
                return None
            if scope["path"] == "/":
                return HTMLResponse(_LOCKED_OUT, 401)
            return refusal(401, "open the address that `labelwise label` printed in the terminal")
        return None

    def _entrance(self, tokens: list[str]) -> Response:
        """Take the token out of the address, so that neither the page nor a picture of the screen shows it."""
        if len(tokens) != 1 or not self._is_token(tokens[0]):
            return HTMLResponse(_LOCKED_OUT, 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie, tokens[0], path="/", httponly=True, samesite="strict")
        return answer

    def _cookies(self, headers: Headers) -> list[str]:
        found = []
        for header in headers.getlist("cookie"):
            # Other programs on this machine set cookies as well, in whatever form.
            for pair in header.split(";"):
                try:
                    found += [morsel.value for name, morsel in SimpleCookie(pair).items() if name == self.cookie]
                except CookieError:
                    continue
        return found

    def _is_token(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self._token)

    @staticmethod
    def _is_one_of(given: list[str], allowed: frozenset[str]) -> bool:
        return len(given) == 1 and given[0].lower() in allowed


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, given up as soon as it is known to be too large.

    Raises:
        TooLarge: it has, or says that it has, more bytes than `limit`.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body has {int(declared):,} bytes, more than {limit:,}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body has more than {limit:,} bytes")
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("the body is no JSON object")
    return content


def gunzip(content: bytes, size: int) -> bytes:
    """Unpack one gzip member of a known size; no more than that is ever unpacked.

    Raises:
        ValueError: it is no gzip file, or holds fewer or more bytes.
    """
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(content, size + 1)
    except zlib.error as error:
        raise ValueError(f"the body cannot be unpacked ({error})") from None
    if len(unpacked) != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"the body does not unpack to exactly {size:,} bytes")
    return unpacked


def packed_limit(size: int) -> int:
    """The most bytes that gzip makes of so many: blocks that it stores as they are have a head of 5 bytes each."""
    return size + size // 1000 + 1024


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
