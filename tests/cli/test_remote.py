"""`bluejay generate --url` as a shell meets it, and its client on a real socket."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bluejay.core.errors import BluejayError, UsageError
from bluejay.serving.client import RemoteModel, RemoteServer, ServerError
from fake_completions import FakeServer, fake_server
from fake_writing import text_of
from text_models import write_text_model

BLUEJAY = [sys.executable, "-m", "bluejay"]


def url_of(server: FakeServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def model_of(server: FakeServer) -> RemoteModel:
    return RemoteModel(RemoteServer(url_of(server)), "fake")


def bluejay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "BLUEJAY_API_KEY"}
    return subprocess.run(
        [*BLUEJAY, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=kept | environment,
    )


def test_generate_streams_what_the_server_writes() -> None:
    with fake_server(name="jay") as server:
        given = ["generate", "the sea", "--url", url_of(server), "--max-tokens", "9"]
        done = bluejay(*given, "--seed", "3", "--top-k", "5", "--logit-bias", "7=-1.5")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "the sea" + text_of("the sea", 3, 9) + "\n"
        assert "9 tokens" in done.stderr
        (sent,) = server.requests
    # What is always sent are the defaults of a local model, so that the same seed can be repeated.
    assert sent == {
        "model": "jay",
        "prompt": "the sea",
        "n": 1,
        "max_tokens": 9,
        "seed": 3,
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 5,
        "logit_bias": {"7": -1.5},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_generate_json_has_every_sample_with_its_tokens() -> None:
    with fake_server(name="jay", key="sesame") as server:
        given = ["generate", "the sea", "--url", url_of(server) + "/v1", "--max-tokens", "3"]
        given += ["--seed", "3", "--json", "-n", "2", "--logprobs", "1", "--model", "jay"]
        done = bluejay(*given, "--api-key-env", "MY_KEY", MY_KEY="sesame")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["prompt"], found["seed"]) == ("jay", "the sea", 3)
    first, second = found["completions"]
    assert first["text"] == text_of("the sea", 3, 3)
    assert second["text"] == text_of("the sea", "3.1", 3)
    assert "".join(token["text"] for token in first["tokens"]) == first["text"]
    assert [token["logprob"] for token in first["tokens"]] == [-1 / 8, -2 / 8, -3 / 8]


def test_ctrl_c_ends_the_text_and_the_server_stops() -> None:
    with fake_server(token_seconds=0.05) as server:
        command = [*BLUEJAY, "generate", "a", "--url", url_of(server), "--max-tokens", "2000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.read(12)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"stopped by Ctrl-C" in said
        assert soon(lambda: server.counters.cancelled == 1 and not server.counters.slots_in_use)


def soon(is_so: object, seconds: float = 20.0) -> bool:
    """Whether that comes true within a while."""
    assert callable(is_so)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--url", "ftp://x"], "ftp://x"),
        (["--url", "http://127.0.0.1:99999"], "99999"),
        (["--url", "{url}", "--threads", "2"], "--threads"),
        (["--url", "{url}", "--speculate", "off"], "--speculate"),
        (["--url", "{url}", "--draft", "small"], "--draft"),
        (["--url", "{url}", "--dtype", "bfloat16"], "--dtype"),
        (["--url", "{url}", "--api-key-env", "NO_SUCH_NAME"], "NO_SUCH_NAME"),
        (["--url", "{url}"], "--api-key-env"),
    ],
)
def test_a_wrong_request_ends_with_a_sentence(arguments: list[str], word: str) -> None:
    with fake_server(key="sesame") as server:
        given = [argument.format(url=url_of(server)) for argument in arguments]
        done = bluejay("generate", "x", *given)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_importing_the_client_brings_no_jax_and_no_http_library() -> None:
    code = (
        "import sys, bluejay.cli.remote, bluejay.serving.client;"
        "print([m for m in ('jax', 'numpy', 'httpx', 'starlette', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_refusal_is_a_usage_error_and_a_busy_server_is_not() -> None:
    with fake_server() as server, pytest.raises(UsageError, match=r"400.*no_such_field"):
        list(model_of(server).deltas("a", no_such_field=1))
    with fake_server(ready_after=60.0) as server, pytest.raises(ServerError, match="503"):
        list(model_of(server).deltas("a", max_tokens=1))
    with fake_server(slots=1, queue=0, prefill_seconds=0.5) as server:
        busy = threading.Thread(target=lambda: list(model_of(server).deltas("a", max_tokens=1)))
        busy.start()
        assert soon(lambda: server.counters.slots_in_use == 1)
        with pytest.raises(ServerError, match=r"429.*Try again in 1 s"):
            list(model_of(server).deltas("b", max_tokens=1))
        busy.join()
    with pytest.raises(ServerError, match="Nothing answers"):
        list(model_of(server).deltas("a"))


@contextmanager
def canned(answer: bytes, *, is_open: bool = False) -> Iterator[str]:
    """The URL of a socket that answers one request with these bytes, and then closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
            if is_open:
                done.wait(20)
            # Closing with something unread would reset the connection.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        thread.join(20)
        listener.close()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
FIRST = b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (STREAM + FIRST, "middle of its answer"),
        (STREAM + FIRST + b'data: {"error": {"message": "no slot"}}\n\n', "no slot"),
        (STREAM + FIRST + b"data: {nonsense\n\n", "else than JSON"),
        (STREAM + FIRST + b"data: [DONE]\n\n", "0 of 1"),
        (STREAM + b'data: {"choices": [{"index": 5, "text": "a"}]}\n\n', "not asked for"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + FIRST[:20], "broke"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broke"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", "502"),
        (b"", "broke"),
    ],
)
def test_an_answer_that_breaks_is_never_taken_for_a_whole_one(answer: bytes, sentence: str) -> None:
    with canned(answer) as url, pytest.raises(ServerError, match=sentence):
        list(RemoteModel(RemoteServer(url), "m").deltas("a"))


def test_a_silent_server_is_given_up() -> None:
    with canned(STREAM + FIRST, is_open=True) as url:
        deltas = RemoteModel(RemoteServer(url, seconds=0.2), "m").deltas("a")
        assert next(deltas).text == "a"
        with pytest.raises(ServerError, match=r"said nothing for 0\.2 s"):
            next(deltas)


def test_text_arrives_as_it_is_written() -> None:
    with fake_server(token_seconds=0.1) as server:
        began = time.monotonic()
        deltas = model_of(server).deltas("a", max_tokens=20)
        assert next(deltas).text == text_of("a", None, 1)
        assert time.monotonic() - began < 20 * 0.1
        deltas.close()
        assert soon(lambda: server.counters.cancelled == 1)


def test_chat_pieces_make_the_answer() -> None:
    messages = [{"role": "user", "content": "hello"}]
    with fake_server() as server:
        pieces = list(model_of(server).chat(messages, max_tokens=4, seed=1))
    assert pieces == [text_of(json.dumps(messages), 1, n + 1)[5 * n :] for n in range(4)]


def test_a_server_without_models_is_asked_to_name_one() -> None:
    body = b'{"data": []}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with canned(answer) as url:
        done = bluejay("generate", "x", "--url", url)
    assert done.returncode == 2
    assert "--model" in done.stderr


def test_local_text_on_the_way_is_the_text_at_the_end(tmp_path: Path) -> None:
    given = ["generate", "the sea", "-m", str(write_text_model(tmp_path / "model"))]
    given += ["--max-tokens", "12", "--seed", "5"]
    whole = json.loads(bluejay(*given, "--json").stdout)["completions"][0]["text"]
    assert bluejay(*given).stdout.removesuffix("\n") == ("the sea" + whole).removesuffix("\n")


def test_errors_of_the_client_have_the_exit_codes_of_their_kind() -> None:
    assert (UsageError.exit_code, ServerError.exit_code) == (2, BluejayError.exit_code)
