"""`bluejay serve --lan` with a certificate: an address that others reach, a key, and TLS alone."""

import io
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path

import pytest
import segno
from openai import APIConnectionError, AuthenticationError, DefaultHttpxClient, OpenAI

from bluejay.cli.serve_lan import lan_address
from bluejay.core.errors import UsageError
from text_models import write_text_model

PATIENCE = 240.0


@dataclass(frozen=True, kw_only=True)
class Lan:
    """A server in the network; `said` is what it printed until it was ready."""

    url: str
    key: str
    said: str
    certificate: Path
    other_certificate: Path


def write_certificate(path: Path, address: str) -> None:
    """A self-made certificate of an address, with its key, as PEM."""
    subject = ["-subj", "/CN=bluejay", "-addext", f"subjectAltName=IP:{address}"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", *subject, "-out", str(path), "-keyout", f"{path}.key"],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    folder = tmp_path_factory.mktemp("lan")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    try:
        address = lan_address()
    except UsageError as error:
        pytest.skip(str(error))
    for name in ("own.pem", "other.pem"):
        write_certificate(folder / name, address)
    options = ["--lan", "--port", "0", "--slots", "1", "--context", "64"]
    tls = ["--tls-certificate", str(folder / "own.pem"), "--tls-key", str(folder / "own.pem.key")]
    model = str(write_text_model(folder / "small"))
    process = subprocess.Popen(
        [sys.executable, "-m", "bluejay", "serve", model, *options, *tls],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    try:
        yield read_lan(process, folder)
    finally:
        process.kill()
        process.communicate()


def read_lan(process: "subprocess.Popen[str]", folder: Path) -> Lan:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ready after"):
            break
    said = "".join(lines)
    url, key = (
        re.search(r" at (https://\S+)$", said, re.M),
        re.search(r"^  key: (\S+)$", said, re.M),
    )
    assert url, said
    assert key, said
    own, other = folder / "own.pem", folder / "other.pem"
    return Lan(url=url[1], key=key[1], said=said, certificate=own, other_certificate=other)


def client(lan: Lan, *, trusts: Path, key: str) -> OpenAI:
    context = ssl.create_default_context(cafile=str(trusts))
    http = DefaultHttpxClient(verify=context, timeout=PATIENCE)
    return OpenAI(base_url=f"{lan.url}/v1", api_key=key, http_client=http, max_retries=0)


def test_it_prints_an_address_of_this_machine_a_key_and_their_code(lan: Lan) -> None:
    assert lan.url.startswith(f"https://{lan_address()}:")
    drawn = io.StringIO()
    segno.make_qr(f"{lan.url}/#key={lan.key}", error="l").terminal(drawn, compact=True, border=2)
    assert drawn.getvalue() in lan.said
    assert "not encrypted" not in lan.said


def test_the_openai_client_checks_the_certificate_and_is_served(lan: Lan) -> None:
    with client(lan, trusts=lan.certificate, key=lan.key) as own:
        answer = own.completions.create(model="small", prompt="the sea", max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 0
        events = list(own.completions.create(model="small", prompt="the", stream=True))
        assert events[-1].choices[0].finish_reason in ("stop", "length")


def test_another_certificate_or_key_or_no_tls_gets_nothing(lan: Lan) -> None:
    with (
        client(lan, trusts=lan.other_certificate, key=lan.key) as wary,
        pytest.raises(APIConnectionError) as caught,
    ):
        wary.models.list()
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.__cause__)
    with (
        client(lan, trusts=lan.certificate, key="wrong") as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.models.list()
    host, _, port = lan.url.removeprefix("https://").partition(":")
    plain = HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        plain.request("GET", "/live")
        with pytest.raises((RemoteDisconnected, ConnectionError)):
            plain.getresponse()
    finally:
        plain.close()
