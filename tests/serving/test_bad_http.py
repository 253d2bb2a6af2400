"""Bad HTTP on a real socket: every case gets a 4xx in the envelope, and the next one is served."""

import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator

import pytest

from bluejay.serving.app import App
from serving.example_routes import SECRET, example_routes
from serving.live_server import PATIENCE, Answer, Raw, captured_log, live_server, read_answer

JSON = ("Content-Type", "application/json")
BODY = json.dumps({"prompt": SECRET}).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Raw]:
    with live_server(App(example_routes())) as listening:
        yield Raw(port=listening.port)


@pytest.fixture(autouse=True)
def good_requests_are_served_afterwards(server: Raw) -> Iterator[None]:
    with captured_log() as log:
        yield
        assert server.post("/v1/echo", b'{"prompt":"next"}').status == 200
    assert SECRET not in log.getvalue()
    assert "Traceback" not in log.getvalue()


def refused(answer: Answer, status: int, part: str = "") -> None:
    """The answer is that status with the envelope, and its sentence has `part`."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert part in error["message"]


def post(path: str = "/v1/echo", body: bytes = BODY, **headers: str) -> Callable[[Raw], bytes]:
    named = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return lambda raw: raw.encode("POST", path, headers=list(named.items()), body=body)


def get(path: str, *headers: tuple[str, str], method: str = "GET") -> Callable[[Raw], bytes]:
    return lambda raw: raw.encode(method, path, headers=headers)


def plain(text: str) -> Callable[[Raw], bytes]:
    return lambda raw: text.replace("PORT", str(raw.port)).encode("latin-1")


GZIP = zlib.compress(b'{"prompt":"' + b"0" * 10_000_000 + b'"}', wbits=31)
RANGES = "bytes=" + ",".join(["0-"] * 10_000)
CASES: dict[str, tuple[Callable[[Raw], bytes], int, str]] = {
    "a header of 40 KB": (get("/v1/models/a", ("X-Long", "h" * 40_000)), 431, "--max-header-bytes"),
    "a header of 1 MB": (get("/v1/models/a", ("X-Long", "h" * 1_000_000)), 431, "--max-header-by"),
    "a path of 40 KB": (get("/" + "p" * 40_000), 431, "32,768"),
    "5,000 headers": (get("/live", *[("X-A", "b")] * 5000), 431, ""),
    "101 headers": (get("/live", *[("X-A", "b")] * 100), 431, "101 headers and the limit is 100"),
    "headers of 33 KB": (get("/live", *[("X-A", "b" * 700)] * 48), 431, "--max-header-bytes"),
    "no Host": (plain("GET /live HTTP/1.1\r\n\r\n"), 400, "Host"),
    "no Host in HTTP/1.0": (plain("GET /live HTTP/1.0\r\n\r\n"), 400, "Host"),
    "an empty Host": (plain("GET /live HTTP/1.1\r\nHost:\r\n\r\n"), 400, "Host"),
    "a Host that is none": (plain("GET /live HTTP/1.1\r\nHost: a b/c\r\n\r\n"), 400, "Host"),
    "two Hosts": (plain("GET /live HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n"), 400, "Host"),
    "a foreign Host": (plain("GET /live HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 403, "evil.exam"),
    "a length and chunks": (
        lambda raw: raw.encode(
            "POST",
            "/v1/echo",
            headers=[JSON, ("Content-Length", "3"), ("Transfer-Encoding", "chunked")],
            body=b"0\r\n\r\n",
        ),
        400,
        "not both",
    ),
    "two lengths": (
        lambda raw: raw.encode(
            "POST", "/v1/echo", headers=[("Content-Length", "2"), ("Content-Length", "3")]
        ),
        400,
        "Content-Length",
    ),
    "a negative length": (post(Content_Length="-1"), 400, ""),
    "a length that is no number": (post(Content_Length="many"), 400, ""),
    "a length of 60 digits": (post(Content_Length="9" * 60), 400, ""),
    "another transfer encoding": (post(Transfer_Encoding="gzip"), 400, ""),
    "no HTTP at all": (plain("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), 400, ""),
    "HTTP/2 at once": (plain("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 400, ""),
    "HTTP/3.0": (plain("GET /live HTTP/3.0\r\nHost: localhost\r\n\r\n"), 400, ""),
    "a space in the path": (plain("GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400, ""),
    "a folded header": (plain("GET /x HTTP/1.1\r\nHost: localhost\r\n X: y\r\n\r\n"), 400, ""),
    "a header without a name": (
        plain("GET /x HTTP/1.1\r\nHost: localhost\r\n: \r\n\r\n"),
        400,
        "",
    ),
    "a NUL in a header": (get("/live", ("X-A", "a\0b")), 400, ""),
    "text as the type": (post(Content_Type="text/plain"), 415, "'text/plain'"),
    "a form as the type": (post(Content_Type="application/x-www-form-urlencoded"), 415, "JSON"),
    "no type": (lambda raw: raw.encode("POST", "/v1/echo", body=BODY), 415, "JSON"),
    "JSON in Latin-1": (post(Content_Type="application/json; charset=latin-1"), 415, "latin-1"),
    "a gzip bomb": (post(body=GZIP, Content_Encoding="gzip"), 415, "uncompressed"),
    "Brotli": (post(Content_Encoding="br"), 415, "'br'"),
    "1 MiB and a byte": (post(body=b" " * (1 << 20) + b"1"), 413, "--max-body-bytes"),
    "10 MiB announced": (
        lambda raw: raw.encode("POST", "/v1/echo", headers=[JSON, ("Content-Length", "10485760")]),
        413,
        "10,485,760",
    ),
    "nothing": (post(body=b""), 400, "empty"),
    "an absolute address": (get("http://127.0.0.1/live"), 400, "proxy"),
    "an asterisk": (get("*", method="OPTIONS"), 400, "'/'"),
    "a tunnel": (get("evil.example:443", method="CONNECT"), 400, ""),
    "an unknown path": (get("/v1/nothing"), 404, "/openapi.json"),
    "the path of another case": (get("/LIVE"), 404, ""),
    "a slash too many": (get("/live/"), 404, ""),
    "two slashes": (get("//live"), 404, ""),
    "NUL in the path": (get("/live%00"), 404, ""),
    "a line break in the path": (get("/live%0d%0aSet-Cookie:%20a=b"), 404, ""),
    "out of the folder": (get("/static/..%2f..%2fetc/passwd"), 404, ""),
    "out of the folder plainly": (get("/static/../../etc/passwd"), 404, ""),
    "out of the folder twice": (get("/%252e%252e/etc/passwd"), 404, ""),
    "not UTF-8 in the path": (get("/%ff%fe"), 404, ""),
    "the wrong method": (get("/v1/echo"), 405, "POST"),
    "a method of its own": (get("/live", method="BREW"), 405, "GET"),
    "TRACE": (get("/live", method="TRACE"), 405, "GET"),
    "DELETE": (get("/v1/models/a", method="DELETE"), 405, ""),
    "OPTIONS": (get("/v1/echo", method="OPTIONS"), 405, ""),
    "OPTIONS from elsewhere": (
        get("/v1/echo", ("Origin", "https://evil.example"), method="OPTIONS"),
        403,
        "--cors-origin",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_requests_are_refused_in_the_envelope(server: Raw, name: str) -> None:
    make, status, part = CASES[name]
    refused(server.send(make(server)), status, part)


def test_wrong_methods_are_told_the_right_ones(server: Raw) -> None:
    assert server.request("GET", "/v1/echo").headers["allow"] == "POST"
    assert server.request("PUT", "/live").headers["allow"] == "GET, HEAD"


def test_ranges_are_ignored(server: Raw) -> None:
    answer = server.request("GET", "/live", headers=[("Range", RANGES)])
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "live"})


def test_head_is_a_get_without_its_body(server: Raw) -> None:
    with server.connect() as connection:
        connection.sendall(server.encode("HEAD", "/live") + server.encode("GET", "/live"))
        head = read_answer(connection, method="HEAD")
    assert head.status == 200
    assert head.headers["content-length"] == "17"


def test_http_1_0_is_answered_and_closed(server: Raw) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n")
        everything = b""
        while part := connection.recv(65536):
            everything += part
    assert everything.endswith(b'{"status":"live"}')


def test_expect_is_answered_with_continue(server: Raw) -> None:
    with server.connect() as connection:
        headers = [JSON, ("Expect", "100-continue"), ("Content-Length", str(len(BODY)))]
        connection.sendall(server.encode("POST", "/v1/echo", headers=headers))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        answer = read_answer(connection)
    assert json.loads(answer.body)["prompt"] == SECRET


def test_a_body_that_will_be_refused_is_not_asked_for(server: Raw) -> None:
    headers = [JSON, ("Expect", "100-continue"), ("Content-Length", "2000000")]
    with server.connect() as connection:
        connection.sendall(server.encode("POST", "/v1/echo", headers=headers))
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_body_in_chunks_of_a_byte_is_read(server: Raw) -> None:
    chunks = b"".join(b"1\r\n" + BODY[i : i + 1] + b"\r\n" for i in range(len(BODY)))
    headers = [JSON, ("Transfer-Encoding", "chunked")]
    answer = server.request("POST", "/v1/echo", headers=headers, body=chunks + b"0\r\n\r\n")
    assert json.loads(answer.body)["prompt"] == SECRET


def test_a_chunked_body_is_counted_as_it_comes(server: Raw) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    headers = [JSON, ("Transfer-Encoding", "chunked")]
    body = chunk * 17 + b"0\r\n\r\n"
    refused(server.request("POST", "/v1/echo", headers=headers, body=body), 413, "1,048,576")


def test_a_broken_chunk_is_refused(server: Raw) -> None:
    headers = [JSON, ("Transfer-Encoding", "chunked")]
    body = b'5\r\n{"pro\r\nnonsense\r\n\r\n'
    refused(server.request("POST", "/v1/echo", headers=headers, body=body), 400)


def test_more_than_the_announced_body_is_the_next_request(server: Raw) -> None:
    with server.connect() as connection:
        connection.sendall(
            server.encode("POST", "/v1/echo", headers=[JSON], body=BODY) + b"x y\r\n\r\n"
        )
        everything = b""
        while part := connection.recv(65536):
            everything += part
    first, second = everything.split(b"HTTP/1.1 400", 1)
    assert first.startswith(b"HTTP/1.1 200")
    assert b"invalid_request_error" in second


def test_garbage_behind_a_stream_harms_nobody(server: Raw) -> None:
    body = b'{"count":3,"pause":0.05}'
    with server.connect() as connection:
        connection.sendall(server.encode("POST", "/v1/stream", headers=[JSON], body=body))
        connection.sendall(b"\0\0garbage\r\n\r\n")
        answer = read_answer(connection)
    assert answer.is_whole
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_two_requests_at_once_are_answered_in_order(server: Raw) -> None:
    both = b"".join(
        server.encode("POST", "/v1/echo", headers=[JSON], body=b'{"max_tokens":%d}' % number)
        for number in (1, 2)
    )
    with server.connect() as connection:
        connection.sendall(both)
        reader = b""
        while reader.count(b'"max_tokens"') < 2:
            reader += connection.recv(65536)
    assert reader.index(b'"max_tokens":1') < reader.index(b'"max_tokens":2')


def test_whoever_closes_his_half_has_left(server: Raw) -> None:
    with server.connect() as connection:
        connection.sendall(server.encode("POST", "/v1/wait", headers=[JSON], body=b"{}"))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_every_answer_tells_browsers_to_be_careful(server: Raw) -> None:
    for answer in (
        server.request("GET", "/live"),
        server.request("GET", "/metrics"),
        server.request("GET", "/nothing"),
        server.post("/v1/echo", BODY),
        server.post("/v1/stream", b"{}"),
    ):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(answer.headers["x-request-id"]) == 32
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_refusals_are_quick(server: Raw) -> None:
    """A quarter of a second, for the best of three: a busy machine is not a failure."""
    body = b'{"prompt":"' + b"a" * (1 << 20) + b'"}'
    times = []
    for _ in range(3):
        start = time.monotonic()
        assert server.post("/v1/echo", body).status == 413
        times.append(time.monotonic() - start)
    assert min(times) < 0.25 < PATIENCE
