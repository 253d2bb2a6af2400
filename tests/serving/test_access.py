"""Who is let in: keys on every route, names of the host, and pages of other origins."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bluejay.core.errors import UsageError
from bluejay.serving.access import Access, make_access, read_keys
from bluejay.serving.app import App
from bluejay.serving.server import ServerSettings, bind, run_server
from serving.example_routes import example_routes
from serving.live_server import Raw, captured_log, live_server, make_app

KEY = "Sesame-open-7c1f"
OTHER = "another-tenant"
BODY = b'{"prompt":"a"}'
JSON = [("Content-Type", "application/json")]


@pytest.fixture(scope="module")
def app() -> App:
    access = make_access(
        "127.0.0.1",
        keys=[KEY, OTHER],
        allowed_hosts=["bluejay.lan"],
        origins=["https://Friend.example/"],
    )
    return make_app(example_routes(), access=access)


@pytest.fixture(scope="module")
def server(app: App) -> Iterator[Raw]:
    with live_server(app) as listening:
        yield Raw(port=listening.port)


def test_without_a_key_every_route_but_live_is_closed(app: App, server: Raw) -> None:
    for route in app.routes:
        path = route.path.replace("{model:path}", "a/b")
        body = BODY if route.method == "POST" else None
        for method in (route.method, "HEAD", "OPTIONS"):
            if route.path == "/live" and method != "OPTIONS":
                continue
            with server.connect() as connection:
                connection.sendall(server.encode(method, path, body=body))
                assert connection.recv(12) == b"HTTP/1.1 401", f"{method} {path}"
    assert server.request("GET", "/live").status == 200


def test_without_a_key_nobody_learns_which_paths_there_are(server: Raw) -> None:
    answers = [server.request("GET", path) for path in ("/v1/echo", "/nothing", "/metrics")]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert json.loads(answers[0].body)["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", KEY)],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", f"Bearer {KEY[:-1]}")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", f"Bearer {KEY.lower()}")],
        [("Authorization", f"Bearer {KEY.swapcase()}")],
        [("Authorization", f"Bearer {KEY} {KEY}")],
        [("Authorization", f"Bearer {KEY}\xe9")],
        [("Authorization", "Bearer \xe9\xff")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer wrong")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("Authorization", f"Bearer {KEY}"), ("X-API-Key", KEY)],
        [("X-API-Key", "")],
        [("X-API-Key", KEY.lower())],
        [("X-API-Key", f"Bearer {KEY}")],
        [("Cookie", f"key={KEY}")],
        [("Proxy-Authorization", f"Bearer {KEY}")],
    ],
)
def test_wrong_keys_are_refused(server: Raw, headers: list[tuple[str, str]]) -> None:
    assert server.post("/v1/echo", BODY, headers=headers).status == 401


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "token", "access_token"])
def test_a_key_in_the_query_opens_nothing_and_is_not_logged(server: Raw, name: str) -> None:
    with captured_log() as log:
        assert server.request("GET", f"/metrics?{name}={KEY}").status == 401
        with_key = [("Authorization", f"Bearer {KEY}")]
        assert server.request("GET", f"/metrics?{name}={KEY}", headers=with_key).status == 200
    assert "GET /metrics 401" in log.getvalue()
    assert KEY not in log.getvalue()


def test_both_forms_of_a_key_name_the_same_tenant(server: Raw) -> None:
    def tenant(*header: str) -> str:
        answer = server.post("/v1/echo", BODY, headers=[header])
        assert answer.status == 200
        return str(json.loads(answer.body)["tenant"])

    first = tenant("Authorization", f"Bearer {KEY}")
    assert first == tenant("X-API-Key", KEY) == tenant("authorization", f"bearer  {KEY} ")
    assert first != tenant("Authorization", f"Bearer {OTHER}")
    assert KEY not in first
    assert len(first) == 32


HOSTS = {
    "127.0.0.1": True,
    "127.0.0.1:PORT": True,
    "127.8.8.8": True,
    "localhost": True,
    "LOCALHOST:80": True,
    "a.localhost": True,
    "[::1]": True,
    "[::1]:8000": True,
    "bluejay.lan": True,
    "BLUEJAY.LAN:8000": True,
    "evil.example": False,
    "evil.example:PORT": False,
    "localhost.evil.example": False,
    "127.0.0.1.evil.example": False,
    "evil-localhost": False,
    "bluejay.lan.": False,
    "10.0.0.7": False,
    "0.0.0.0": False,
    "[fe80::1]": False,
    "2130706433": False,
    "localhost:80:80": False,
    "user@localhost": False,
    "localhost/evil.example": False,
    "localhost:": False,
}


@pytest.mark.parametrize("host", HOSTS)
def test_only_known_names_of_the_host_are_answered(server: Raw, host: str) -> None:
    answer = server.request("GET", "/live", host=host.replace("PORT", str(server.port)))
    assert (answer.status == 200) == HOSTS[host]
    if not HOSTS[host]:
        assert answer.status in (400, 403)


ORIGINS = {
    "http://127.0.0.1:PORT": True,
    "https://friend.example": True,
    "https://FRIEND.example": True,
    "http://friend.example": False,
    "https://friend.example:8443": False,
    "https://friend.example.evil": False,
    "http://127.0.0.1:PORT.evil.example": False,
    "http://127.0.0.1": False,
    "http://localhost:PORT": False,
    "https://evil.example": False,
    "null": False,
    "": False,
    "file://": False,
    "chrome-extension://abcdef": False,
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_pages_of_other_origins_are_refused(server: Raw, origin: str) -> None:
    given = ("Origin", origin.replace("PORT", str(server.port)))
    key = ("Authorization", f"Bearer {KEY}")
    answer = server.post("/v1/echo", BODY, headers=[given, key])
    assert answer.status == (200 if ORIGINS[origin] else 403)
    read = server.request("GET", "/live", headers=[given])
    assert read.status == answer.status
    is_friend = ORIGINS[origin] and "friend" in origin.lower()
    allowed = "https://friend.example" if is_friend else None
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert "access-control-allow-credentials" not in answer.headers


def test_a_friendly_page_may_ask_before_it_sends_its_key(server: Raw) -> None:
    asked = [
        ("Origin", "https://friend.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,content-type,x-stainless-lang"),
    ]
    answer = server.request("OPTIONS", "/v1/echo", headers=asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    refused = server.post("/v1/echo", BODY, headers=asked[:1])
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://friend.example"


def test_a_server_that_others_reach_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org", ""):
        with pytest.raises(UsageError, match=r"BLUEJAY_API_KEY.*--api-key-file"):
            make_access(host)
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        assert make_access(host).keys_sha256 == ()
    with pytest.raises(UsageError, match="key"):
        run_server(make_app([]), ServerSettings(host="0.0.0.0", port=0))


def test_a_server_that_others_reach_answers_to_addresses() -> None:
    access = make_access("0.0.0.0", keys=[KEY], allowed_hosts=["Box.lan"])
    for host in (b"192.168.1.7:8000", b"[fe80::1]:8000", b"box.lan", b"localhost"):
        access.check_host([(b"host", host)])
    with pytest.raises(Exception, match=r"--allowed-host evil\.example"):
        access.check_host([(b"host", b"evil.example")])


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of this house\n{KEY}\n\n{OTHER}\r\n")
    assert read_keys({"BLUEJAY_API_KEY": "first"}, path) == ("first", KEY, OTHER)
    assert read_keys({}) == ()
    assert read_keys({"BLUEJAY_API_KEY": ""}) == ()


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"two words\n", b"key\xc3\xa9\n", None])
def test_unusable_key_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_keys({}, path)
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "tab\t", "key\u00e9", "line\n"])
def test_unusable_keys_are_refused_without_being_shown(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_access("127.0.0.1", keys=[key])
    assert not key or key not in str(caught.value)


def test_unusable_hosts_and_origins_are_refused() -> None:
    with pytest.raises(UsageError, match="--allowed-host"):
        make_access("127.0.0.1", allowed_hosts=["http://a"])
    for origin in ("example.org", "*", "https://*.example.org", "https://a/b", "https://"):
        with pytest.raises(UsageError, match="--cors-origin"):
            make_access("127.0.0.1", origins=[origin])


def test_keys_are_not_shown(app: App) -> None:
    assert KEY not in repr(app.access)
    assert KEY not in repr(vars(app.access))


def test_all_keys_are_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append(second)
        return first == second

    monkeypatch.setattr("bluejay.serving.access.hmac.compare_digest", compare)
    access = make_access("127.0.0.1", keys=[KEY, OTHER, "third"])
    access.tenant([(b"x-api-key", KEY.encode())])
    assert tuple(compared) == access.keys_sha256


def test_nothing_is_asked_of_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections and look-ups from inside the server's process fail here; nothing needs one."""
    attempts: list[Any] = []

    def refuse(*wanted: Any) -> NoReturn:
        attempts.append(wanted)
        raise OSError("no outbound requests")

    with live_server(make_app(example_routes())) as listening:
        raw = Raw(port=listening.port)
        connections = [raw.connect() for _ in range(6)]
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        requests = [
            raw.encode("GET", "/openapi.json"),
            raw.encode("GET", "/metrics"),
            raw.encode("GET", "/v1/models/http://evil.example/a"),
            raw.encode(
                "POST", "/v1/echo", headers=[("Content-Type", "application/json")], body=BODY
            ),
            raw.encode("GET", "/live", host="evil.example"),
            raw.encode("GET", "/ready"),
        ]
        for connection, request in zip(connections, requests, strict=True):
            with connection:
                connection.sendall(request)
                assert connection.recv(12).startswith(b"HTTP/1.1 ")
        monkeypatch.undo()
    assert attempts == []


def test_a_taken_port_is_one_sentence() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"Port {port} of 127\.0\.0\.1 is taken: .* --port"):
            run_server(make_app([]), ServerSettings(port=port))


def test_addresses_of_other_machines_are_one_sentence() -> None:
    access = Access(keys_sha256=(b"0" * 32,))
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(UsageError, match="no address of this machine"):
            run_server(make_app([], access=access), ServerSettings(host=host, port=0))
    with pytest.raises(UsageError, match="between 0 and 65535"):
        ServerSettings(port=65536)


def test_a_certificate_needs_its_key_and_both_must_be_pem(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tls-key"):
        ServerSettings(certificate=tmp_path / "a.pem")
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    for certificate in (tmp_path / "missing.pem", broken):
        settings = ServerSettings(port=0, certificate=certificate, certificate_key=certificate)
        with pytest.raises(UsageError, match="--tls-certificate"):
            run_server(make_app([]), settings)
