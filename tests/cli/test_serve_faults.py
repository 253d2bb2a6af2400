"""Faults of a server's process and of its files: rows S2, S3, S5 and S6 of the fault matrix, and
an engine that gives up."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bluejay
from bluejay.core.errors import BluejayError
from cli.served_process import PATIENCE, Served, running, start
from serving.live_server import Answer, Raw, read_answer
from text_models import write_text_model

COMPLETIONS = "/v1/completions"
JSON = [("Content-Type", "application/json")]
# Token 0 is no end here: texts are as long as they may be.
LONG: dict[str, Any] = {"prompt": "the sea", "max_tokens": 200, "temperature": 0}


@dataclass(frozen=True, kw_only=True)
class Site:
    """The server that was killed once and started again, its model, and what it wrote before."""

    served: Served
    base: Path
    other: Path
    texts: dict[str, str]

    @property
    def raw(self) -> Raw:
        return Raw(port=self.served.port)


def ask(raw: Raw, **fields: Any) -> Answer | None:
    """An answer, or None where the line broke before one began."""
    body = json.dumps(LONG | fields).encode()
    try:
        with raw.connect() as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(raw.encode("POST", COMPLETIONS, headers=JSON, body=body))
            return read_answer(connection)
    except (ConnectionError, AssertionError):
        return None


def text_of(answer: Answer | None) -> str:
    assert answer is not None
    assert answer.status == 200, answer.body
    return str(json.loads(answer.body)["choices"][0]["text"])


def frames(answer: Answer) -> list[str]:
    """The frames that came whole."""
    return answer.body.decode().split("\n\n")[:-1]


def killed_under_load(served: Served) -> list[Answer | None]:
    """What 16 clients got, half of them streams, of a server that was killed meanwhile."""
    raw = Raw(port=served.port)
    begun = threading.Semaphore(0)

    def client(number: int) -> list[Answer | None]:
        found = []
        while not found or (found[-1] is not None and found[-1].is_whole):
            found.append(ask(raw, stream=number % 2 == 0))
            begun.release()
        return found

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, number) for number in range(16)]
        for _ in range(20):
            assert begun.acquire(timeout=PATIENCE)
        served.process.kill()
        assert served.process.wait(PATIENCE) == -signal.SIGKILL
        return [answer for one in clients for answer in one.result(PATIENCE)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """S2: a server that is killed under load starts again at once, on the same port."""
    folder = tmp_path_factory.mktemp("faults")
    base, other = write_text_model(folder / "base"), write_text_model(folder / "other", seed=9)
    texts = {
        name: bluejay.load(place).generate(LONG["prompt"], max_tokens=200, temperature=0.0)
        for name, place in (("base", base), ("pirate", other))
    }
    options = ["--slots", "4", "--context", "256", "--adapter", f"pirate={other}"]
    with running(start(folder / "first", str(base), "--port", "0", *options)) as first:
        first.wait_until_ready()
        _check_broken(killed_under_load(first))
        again = start(folder / "second", str(base), "--port", str(first.port), *options)
    with running(again):
        again.wait_until_ready()
        yield Site(served=again, base=base, other=other, texts=texts)


def _check_broken(answers: list[Answer | None]) -> None:
    """Whole or visibly cut off; what is cut off never looks complete, no event is half a one."""
    cut = 0
    for answer in answers:
        if answer is None:
            continue
        assert answer.status == 200
        if answer.headers["content-type"].startswith("text/event-stream"):
            found = frames(answer)
            assert answer.is_whole == (found[-1:] == ["data: [DONE]"])
            for frame in found[: -1 if answer.is_whole else None]:
                json.loads(frame.removeprefix("data: "))
        elif answer.is_whole:
            json.loads(answer.body)
        cut += not answer.is_whole
    assert len(answers) > cut + answers.count(None) > 0


def test_s2_a_killed_server_writes_the_same_again(site: Site) -> None:
    for name, text in site.texts.items():
        assert text_of(ask(site.raw, model=name)) == text
    assert site.texts["base"] != site.texts["pirate"]


def test_s5_and_s6_files_that_change_meanwhile_change_no_text(site: Site) -> None:
    """The model's files and the adapter's are replaced, overwritten and cut while both write: each
    request has the weights that were loaded at the start, and only those."""
    stop = threading.Event()

    def client(number: int) -> list[tuple[str, str]]:
        name = ("base", "pirate")[number % 2]
        found = []
        while not stop.is_set():
            found.append((name, text_of(ask(site.raw, model=name))))
        return found

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, number) for number in range(6)]
        try:
            for folder, others in ((site.base, site.other), (site.other, site.base)):
                for path in sorted(folder.iterdir()):
                    time.sleep(0.05)
                    _spoil(path, others / path.name)
            time.sleep(0.5)
        finally:
            stop.set()
        found = [pair for one in clients for pair in one.result(PATIENCE)]
    assert len(found) > 12
    assert all(text == site.texts[name] for name, text in found)
    for place in (site.base, site.other):
        with pytest.raises(BluejayError):
            bluejay.load(place)


def _spoil(path: Path, other: Path) -> None:
    """Another file in its place, then the file itself overwritten, then cut."""
    original = path.read_bytes()
    if other.exists():
        new = path.with_name("new")
        new.write_bytes(other.read_bytes())
        os.replace(new, path)
    with path.open("r+b") as file:
        file.write(original[::-1])
        file.truncate(len(original) // 3)


def test_s3_sigterm_under_32_streams_cuts_none_off(site: Site) -> None:
    """Last, for it ends the server of the others."""
    began = threading.Semaphore(0)

    def client(number: int) -> Answer:
        body = json.dumps(LONG | {"stream": True, "seed": number}).encode()
        with site.raw.connect() as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(site.raw.encode("POST", COMPLETIONS, headers=JSON, body=body))
            began.release()
            return read_answer(connection)

    with ThreadPoolExecutor(32) as pool:
        clients = [pool.submit(client, number) for number in range(32)]
        for _ in range(32):
            assert began.acquire(timeout=PATIENCE)
        while not site.served.figures()["bluejay_num_requests_running"]:
            assert not any(one.done() for one in clients)
        site.served.process.send_signal(signal.SIGTERM)
        refused = [ask(site.raw, max_tokens=1) for _ in range(40)]
        answers = [one.result(PATIENCE) for one in clients]
    assert site.served.process.wait(PATIENCE) == 0
    assert site.served.rest().splitlines()[-1] == "Stopped."
    # The first may be served, before the signal is heard; the last is refused or finds no server.
    late = [answer for answer in refused if answer is not None]
    assert {answer.status for answer in late} <= {200, 503}
    assert refused[-1] is None or refused[-1].status == 503
    for answer in answers:
        assert answer.is_whole
        if answer.status == 503:
            assert json.loads(answer.body)["error"]["code"] in ("draining", "stopped")
            continue
        last = frames(answer)[-1]
        assert last == "data: [DONE]" or "error" in json.loads(last.removeprefix("data: "))
    assert sum(answer.status == 200 for answer in answers) >= 4
    assert "Traceback" not in site.served.log.read_text()


def test_an_engine_that_gives_up_ends_the_process_for_who_watches_over_it(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "base")
    failing = start(
        tmp_path / "log",
        str(model),
        *("--port", "0", "--slots", "1", "--context", "256"),
        BLUEJAY_FAILPOINT="engine-step@20+:full",
    )
    with running(failing):
        failing.wait_until_ready()
        with ThreadPoolExecutor(12) as pool:
            raw = Raw(port=failing.port)
            answers = list(pool.map(lambda _: ask(raw), range(12)))
        assert {answer.status for answer in answers if answer is not None} <= {200, 503}
        assert any(answer is not None and answer.status == 503 for answer in answers)
        try:
            assert failing.process.wait(PATIENCE) == 1
        except subprocess.TimeoutExpired:
            pytest.fail(failing.log.read_text())
    log = failing.log.read_text()
    assert log.count("The engine has failed and begins again. OSError") == 3
    assert "The engine has failed: the log says where." in log
    assert "Traceback" not in log
    assert "the sea" not in log
