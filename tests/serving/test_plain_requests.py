"""What is taken for a plain request is one to the parser of HTTP as well, and the same one."""

import random

import h11
import pytest

from bluejay.serving.plain_requests import PlainRequest, PlainRequests

PLAIN = PlainRequests(["/v1/completions", "/infill", "/v1/{name}"])
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\n"
    b"Connection: keep-alive\r\nAuthorization: Bearer key with spaces\r\nContent-Length: 9\r\n\r\n"
)
BODY = b'{"a": 17}'


def parsed(data: bytes) -> tuple[str, list[tuple[bytes, bytes]], bytes]:
    """Path, headers and body as the parser has them; it must find one request and nothing else."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.http_version) == (b"POST", b"1.1")
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert connection.trailing_data == (b"", False)
    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.start_next_cycle()  # nothing is left of it, and the connection stays
    return request.target.decode(), list(request.headers), body


def test_a_plain_request_is_read() -> None:
    request = PLAIN.read(HEAD + BODY)
    assert request == PlainRequest(
        "/v1/completions",
        [
            (b"host", b"127.0.0.1:8000"),
            (b"accept", b"*/*"),
            (b"connection", b"keep-alive"),
            (b"authorization", b"Bearer key with spaces"),
            (b"content-length", b"9"),
        ],
        len(HEAD),
    )
    assert parsed(HEAD + BODY) == (request.path, request.headers, BODY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST", b"GET"),
        (b"POST", b"HEAD"),
        (b"POST", b"post"),
        (b"/v1/completions", b"/v1/completions?key=1"),
        (b"/v1/completions", b"/v1/%63ompletions"),
        (b"/v1/completions", b"/v1/chat/completions"),
        (b"/v1/completions", b"/v1/{name}"),
        (b"/v1/completions", b"http://127.0.0.1/v1/completions"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
        (b"POST /", b"\r\nPOST /"),
        (b"Host: ", b"Host:"),
        (b"Host: ", b"Host : "),
        (b"Host: ", b"Host:\t"),
        (b"Host: ", b" Host: "),
        (b"Host: ", b"Ghost: "),
        (b"*/*", b"*/*\r\n folded"),
        (b"*/*", b""),
        (b"*/*", b"*/* "),
        (b"*/*", b"\xe4"),
        (b"*/*", b"a\0b"),
        (b"*/*", b"a\rb"),
        (b"*/*", b"a\nb"),
        (b"keep-alive", b"close"),
        (b"keep-alive", b"keep-alive, upgrade"),
        (b"Accept: */*", b"Expect: 100-continue"),
        (b"Accept: */*", b"Transfer-Encoding: chunked"),
        (b"Accept: */*", b"Upgrade: websocket"),
        (b"Accept: */*", b"Content-Length: 9"),
        (b"Accept: */*", b"accept: text/html\r\naccept: */*"),
        (b"Content-Length: 9", b"Content-Length: 8"),
        (b"Content-Length: 9", b"Content-Length: 10"),
        (b"Content-Length: 9", b"Content-Length: +9"),
        (b"Content-Length: 9", b"Content-Length: 9, 9"),
        (b"Content-Length: 9", b"Content-Length: 00000009"),
        (b"Content-Length: 9", b"Content-Size: 9"),
        (b"17}", b"17}POST"),
    ],
)
def test_what_is_not_plain_goes_the_usual_way(old: bytes, new: bytes) -> None:
    data = HEAD + BODY
    assert old in data
    assert PLAIN.read(data.replace(old, new, 1)) is None


def test_part_of_a_request_is_not_plain() -> None:
    data = HEAD + BODY
    assert not any(PLAIN.read(data[:end]) for end in range(len(data)))
    assert PLAIN.read(data + data) is None


def test_whatever_is_taken_for_plain_the_parser_reads_alike() -> None:
    """Thousands of damaged requests, many of which are still plain ones."""
    draw, num_plain = random.Random(0), 0
    letters = [*b"\r\n\t :;,\0\x7f\x80\xff0129azAZ/{}%+-_"]
    for _ in range(20_000):
        data = bytearray(HEAD + BODY)
        for _ in range(draw.randint(1, 2)):
            at = draw.randrange(len(data))
            if draw.random() < 0.5:
                data[at] = draw.choice(letters)
            elif draw.random() < 0.5:
                del data[at]
            else:
                data.insert(at, draw.choice(letters))
        request = PLAIN.read(bytes(data))
        if request is not None:
            num_plain += 1
            path, headers, body = parsed(bytes(data))
            assert (path, headers) == (request.path, list(request.headers))
            assert len(body) == len(data) - request.head_bytes
    assert 1000 < num_plain < 19_000
