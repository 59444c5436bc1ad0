from __future__ import annotations

import gzip
import random
import socket
import tracemalloc
import zlib
from collections.abc import Iterator
from http.cookies import SimpleCookie

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from labelwise.annotator import security
from labelwise.annotator.security import (
    HEADERS,
    JSON_LIMIT,
    Guard,
    TooLarge,
    gunzip,
    packed_limit,
    parse_object,
    read_body,
    refusal,
)
from labelwise.annotator.server import bind
from labelwise.errors import UserError
from tests.annotator.serving import PATIENCE, TOKEN, Client, serving

STATIC = ("/static/style.css", "/static/app.js")
REACHED: list[str] = []
"""The requests that came through the guard."""


async def inside(request: Request) -> Response:
    REACHED.append(request.url.path)
    if request.method == "POST":
        try:
            return PlainTextResponse(str(len(await read_body(request, JSON_LIMIT))))
        except TooLarge as error:
            return refusal(413, str(error))
    if request.url.path == "/bug":
        raise RuntimeError("a bug")
    return PlainTextResponse("inside", headers={"Cache-Control": "public", "X-Frame-Options": "ALLOWALL"})


def guarded(token: str, port: int) -> Guard:
    routes = [Route(path, inside, methods=["GET", "POST"]) for path in ("/", "/api", "/bug", *STATIC)]
    return Guard(Starlette(routes=routes), token=token, port=port)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(guarded) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_reached() -> None:
    REACHED.clear()


def test_who_has_the_cookie_comes_in(client: Client) -> None:
    assert client.get("/api").body == b"inside"
    assert client.get("/api", {"Host": f"localhost:{client.port}"}).status == 200
    assert client.post("/api", b"12345").body == b"5"
    assert client.post("/api", b"", {"Origin": f"http://localhost:{client.port}"}).status == 200
    assert REACHED == ["/api"] * 4


def test_the_token_becomes_a_cookie_and_leaves_the_address(client: Client) -> None:
    answer = client.get(f"/?token={TOKEN}", {"Cookie": None})
    assert answer.status == 303 and answer.header("Location") == "/" and REACHED == []
    (cookie,) = SimpleCookie(answer.header("Set-Cookie")).values()
    assert (cookie.key, cookie.value) == (f"labelwise_{client.port}", TOKEN)
    assert cookie["httponly"] and cookie["samesite"] == "strict" and cookie["path"] == "/" and not cookie["domain"]
    assert client.get("/", {"Cookie": cookie.OutputString(attrs=[])}).body == b"inside"


@pytest.mark.parametrize(
    "query",
    [
        "token=",
        "token=wrong",
        f"token={TOKEN}x",
        f"token={TOKEN[:-1]}",
        f"token={TOKEN}&token=wrong",
        "token=%ff%00%C3%A9",
    ],
)
def test_a_wrong_token_gives_no_cookie(client: Client, query: str) -> None:
    answer = client.get(f"/?{query}", {"Cookie": None})
    assert answer.status == 401 and answer.header("Set-Cookie") is None and REACHED == []


def test_the_token_counts_in_the_address_of_the_page_only(client: Client) -> None:
    assert client.get(f"/api?token={TOKEN}", {"Cookie": None}).status == 401
    assert client.post(f"/?token={TOKEN}", b"", {"Cookie": None}).status == 401
    assert REACHED == []


@pytest.mark.parametrize(
    "cookie", [None, "", "labelwise_{port}=", "labelwise_{port}=wrong", "labelwise_1={token}", "{token}", "=;;\x01=;="]
)
def test_without_the_cookie_nothing_is_answered(client: Client, cookie: str | None) -> None:
    sent = {"Cookie": cookie and cookie.format(port=client.port, token=TOKEN)}
    assert client.get("/api", sent).error == "open the address that `labelwise label` printed in the terminal"
    assert client.post("/api", b"{}", sent).status == client.get("/nowhere", sent).status == 401
    page = client.get("/", sent)
    assert page.status == 401 and b"printed in the terminal" in page.body
    assert page.header("Content-Type") == "text/html; charset=utf-8"
    assert REACHED == []


def test_without_the_cookie_the_style_sheet_alone_is_free(client: Client) -> None:
    sent = {"Cookie": None}
    for path in ("/static/app.js", "/static/style.css/", "/static//style.css", "/static/style.css%2f..%2fapp.js"):
        assert client.get(path, sent).status == 401
    assert client.post("/static/style.css", b"", sent).status == 401
    assert client.get("/static/style.css", sent | {"Host": "evil.example"}).status == 403
    assert client.get("/static/style.css", sent | {"Origin": "http://evil.example"}).status == 403
    assert REACHED == []
    assert b'href="/static/style.css"' in client.get("/", sent).body
    assert client.get("/static/style.css", sent).status == 200 and REACHED == ["/static/style.css"]


def test_cookies_of_other_programs_do_no_harm(client: Client) -> None:
    mine = f"labelwise_{client.port}={TOKEN}"
    assert client.get("/api", {"Cookie": f'a/b=1; {{"c": 2}}; _xsrf="x; {mine}; d='}).status == 200


def test_token_and_cookie_are_compared_in_constant_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    client.get("/?token=one", {"Cookie": None})
    client.get("/api", {"Cookie": f"labelwise_{client.port}=two"})
    assert compared == [(b"one", TOKEN.encode()), (b"two", TOKEN.encode())]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "[::1]:{port}",
     "127.0.0.1:{port}.evil.example", "user@127.0.0.1:{port}", "0.0.0.0:{port}", ""],
)  # fmt: skip
def test_a_foreign_name_turned_to_this_machine_reads_nothing(client: Client, host: str) -> None:
    answer = client.get("/api", {"Host": host.format(port=client.port)})
    assert answer.error == "this server answers to 127.0.0.1 and localhost only" and REACHED == []
    entrance = client.get(f"/?token={TOKEN}", {"Host": host.format(port=client.port)})
    assert entrance.status == 403 and entrance.header("Set-Cookie") is None


def test_a_request_without_or_with_two_hosts_is_refused(client: Client) -> None:
    good = f"Host: 127.0.0.1:{client.port}\r\n"
    for version, hosts in (("1.0", ""), ("1.1", ""), ("1.1", good + "Host: evil.example\r\n")):
        head = f"GET /api HTTP/{version}\r\n{hosts}Cookie: labelwise_{client.port}={TOKEN}\r\n\r\n"
        assert raw(client, head.encode()).split()[1] in (b"400", b"403")
    assert REACHED == []


@pytest.mark.parametrize(
    "origin",
    [None, "", "null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://127.0.0.1",
     "http://127.0.0.1:{port}/", "http://127.0.0.1:{port}.evil.example", "file://", "http://[::1]:{port}"],
)  # fmt: skip
def test_a_request_of_another_page_is_refused(client: Client, origin: str | None) -> None:
    sent = {"Origin": origin and origin.format(port=client.port)}
    assert client.post("/api", b"{}", sent).error == "this request comes from another page"
    if origin is not None:
        assert client.get("/api", sent).status == 403
    assert REACHED == []


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("GET", "/api", {}, 200),
        ("GET", f"/?token={TOKEN}", {}, 303),
        ("GET", "/", {"Cookie": None}, 401),
        ("GET", "/api", {"Cookie": None}, 401),
        ("GET", "/api", {"Host": "evil.example"}, 403),
        ("POST", "/api", {"Origin": None}, 403),
        ("GET", "/nowhere", {}, 404),
        ("PUT", "/api", {}, 405),
        ("POST", "/api", {"Content-Length": str(JSON_LIMIT + 1)}, 413),
        ("GET", "/bug", {}, 500),
    ],
)
def test_every_response_says_what_a_browser_must_not_do(
    client: Client, method: str, path: str, sent: dict[str, str | None], status: int
) -> None:
    answer = client.ask(method, path, headers=sent)
    assert answer.status == status
    assert {name: answer.header(name) for name in HEADERS} == HEADERS
    assert answer.header("Server") is None


def test_the_policy_allows_scripts_and_styles_of_the_page_itself_only() -> None:
    rules = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert rules.pop("img-src") == "'self' blob: data:"
    assert rules.pop("script-src") == rules.pop("style-src") == rules.pop("connect-src") == "'self'"
    assert rules == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")


def test_a_body_that_says_it_is_too_large_is_not_waited_for(client: Client) -> None:
    assert raw(client, head(client, "Content-Length: 1000000000")).split()[1] == b"413"


def test_a_body_of_unknown_length_is_given_up_at_the_bound(client: Client) -> None:
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    assert raw(client, head(client, "Transfer-Encoding: chunked") + chunk * 5).split()[1] == b"413"
    whole = head(client, "Transfer-Encoding: chunked") + chunk * 4 + b"0\r\n\r\n"
    assert raw(client, whole).endswith(str(JSON_LIMIT).encode())


def test_a_body_just_as_large_as_it_may_be_is_taken(client: Client) -> None:
    assert client.post("/api", b"x" * JSON_LIMIT).body == str(JSON_LIMIT).encode()
    assert client.post("/api", b"x" * (JSON_LIMIT + 1)).error == "the body has 65,537 bytes, more than 65,536"


def test_a_head_without_end_is_refused(client: Client) -> None:
    assert raw(client, b"GET /api HTTP/1.1\r\nX: " + b"x" * 200_000).split()[1] == b"400"
    assert REACHED == []


def head(client: Client, length: str) -> bytes:
    here = f"127.0.0.1:{client.port}"
    cookie = f"labelwise_{client.port}={TOKEN}"
    return (
        f"POST /api HTTP/1.1\r\nHost: {here}\r\nOrigin: http://{here}\r\nCookie: {cookie}\r\nConnection: close\r\n"
        f"{length}\r\n\r\n"
    ).encode()


def raw(client: Client, content: bytes) -> bytes:
    """The answer to bytes on the wire, however they are meant."""
    with socket.create_connection(("127.0.0.1", client.port), PATIENCE) as connection:
        connection.sendall(content)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            # The server has answered and hung up on what else was sent.
            pass
        return answer


@given(st.binary(max_size=3000))
def test_what_was_packed_is_unpacked(content: bytes) -> None:
    for level in (0, 1, 9):
        packed = gzip.compress(content, level)
        assert gunzip(packed, len(content)) == content
        assert len(packed) <= packed_limit(len(content))


def test_the_bound_of_packed_bytes_holds_for_noise() -> None:
    for size in (0, 1, 65_536, 1_000_000):
        noise = random.Random(size).randbytes(size)
        assert len(gzip.compress(noise, 9)) <= packed_limit(size) < size * 1.0011 + 1025


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no gzip",
        b"0123456789",
        zlib.compress(b"0123456789"),
        gzip.compress(b"012345678"),
        gzip.compress(b"0123456789a"),
        gzip.compress(b"0123456789")[:-1],
        gzip.compress(b"0123456789")[:-5] + b"\0\0\0\0\0",
        gzip.compress(b"0123456789") + b"more",
        gzip.compress(b"01234") + gzip.compress(b"56789"),
    ],
    ids=["nothing", "text", "as it is", "zlib", "short", "long", "cut off", "wrong sum", "more behind", "two members"],
)
def test_a_body_that_does_not_unpack_to_the_right_size_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"cannot be unpacked|does not unpack to exactly 10 bytes"):
        gunzip(packed, 10)


def test_a_bomb_is_unpacked_no_further_than_to_the_size() -> None:
    bomb = gzip.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    with pytest.raises(ValueError, match="exactly 1,000 bytes"):
        gunzip(bomb, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(bomb) + 100_000


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b"null", b'"x"', b"\xff", b'{"x": NaN}', b'{"x": -Infinity}', b"[" * 60_000,
             b'{"x": ' + b"9" * 5000 + b"}"]
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="the body is no"):
        parse_object(body)


def test_an_answer_can_hold_any_characters() -> None:
    assert refusal(400, "two\n  lines \ud800").body == b'{"error":"two lines \\ud800"}'


def test_only_this_machine_reaches_the_socket() -> None:
    with bind(0) as listening:
        address, port = listening.getsockname()
        assert address == "127.0.0.1" and listening.family is socket.AF_INET
        socket.create_connection((address, port), PATIENCE).close()
        for other in {"127.0.0.2", *addresses()} - {"127.0.0.1"}:
            with pytest.raises(OSError):
                socket.create_connection((other, port), PATIENCE)


def addresses() -> set[str]:
    """The other addresses of this machine."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        return set()
    return {str(entry[4][0]) for entry in found}


def test_a_port_that_is_taken_or_none_is_refused() -> None:
    with bind(0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: address already in use; take another, or 0 for any free"):
            bind(port)
    for wrong in (-1, 65536):
        with pytest.raises(UserError, match=f"--port {wrong}: must be from 0 "):
            bind(wrong)
