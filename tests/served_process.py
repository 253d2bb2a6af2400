"""`bluejay serve` in a process of its own, and what its clients need."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

# A busy machine may stand still for a minute.
PATIENCE = 240.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server in a process of its own; `said` are the lines of its stdout so far, `log` the file
    with its stderr."""

    process: subprocess.Popen[str]
    port: int
    said: list[str]
    log: Path
    key: str = "none"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str | None = None) -> OpenAI:
        given = key or self.key
        return OpenAI(base_url=f"{self.url}/v1", api_key=given, max_retries=0, timeout=PATIENCE)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status, and the JSON or text of the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        sent = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, body=sent, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(text) if is_json else text

    def read_line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.said.append(line.rstrip("\n"))
        return self.said[-1]

    def wait_until_ready(self) -> None:
        while not self.read_line().startswith("Ready after"):
            pass

    def rest(self) -> str:
        """What it says until its end."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def figures(self) -> dict[str, float]:
        status, text = self.request("GET", "/metrics")
        assert status == 200
        families = text_string_to_metric_families(text)
        return {
            sample.name: sample.value
            for family in families
            for sample in family.samples
            if not sample.labels
        }


def start(folder: Path, *arguments: str, key: str = "none", **environment: str) -> Served:
    """A server that listens, and still warms up."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    kept = {name: value for name, value in os.environ.items() if name != "BLUEJAY_API_KEY"}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "bluejay", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=kept | environment,
        )
    said: list[str] = []
    served = Served(process=process, port=0, said=said, log=log, key=key)
    found = re.search(r"at http://127\.0\.0\.1:(\d+)$", served.read_line())
    assert found, said
    return Served(process=process, port=int(found[1]), said=said, log=log, key=key)


@contextmanager
def running(served: Served) -> Iterator[Served]:
    """Nothing of it is left behind the block."""
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait(PATIENCE)
        assert served.process.stdout is not None
        served.process.stdout.close()
