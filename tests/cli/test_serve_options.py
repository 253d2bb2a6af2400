"""What `bluejay serve` is told wrongly, what its environment says, and what a phone is shown."""

import re
import socket
from dataclasses import fields
from pathlib import Path

import pytest

from bluejay.cli.commands import COMMANDS, command_parser
from bluejay.cli.main import run
from bluejay.cli.serve import served_name
from bluejay.cli.serve_lan import new_key
from bluejay.cli.serve_limits import LIMIT_WORDS
from bluejay.cli.serve_options import capacity_of, limits_of, place_of
from bluejay.core.errors import UsageError
from bluejay.serving.limits import (
    ENGINE_FLAGS,
    ConnectionLimits,
    DeskLimits,
    RequestLimits,
    WaitLimits,
)
from text_models import write_text_model


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLUEJAY_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "99999"], "--port must be between 0 and 65535, not 99999."),
        (["--port", "x"], "--port takes a whole number, not 'x'."),
        (["--host", "0.0.0.0"], "no API key is set"),
        (["--host", "no.such.host.invalid"], "no API key is set"),
        (["--host", "203.0.113.7", "--api-key-file", "/nowhere"], "cannot be read"),
        (["--tls-key", "key.pem"], "--tls-certificate and --tls-key are needed together."),
        (["--slots", "0"], "--slots takes a whole number of at least 1, not '0'."),
        (["--adapter", "pirate"], "--adapter takes NAME=DIR"),
        (["--body-timeout", "-1"], "--body-timeout takes seconds, more than 0, not '-1'."),
        (["--body-timeout", "nan"], "--body-timeout takes seconds, more than 0, not 'nan'."),
        (["--lan", "--host", "127.0.0.1"], "--lan chooses the address itself"),
        (["--cors-origin", "*"], "--cors-origin '*' is no origin"),
        (["--context-length", "5"], "has no option --context-length: perhaps you meant --context"),
    ],
)
def test_wrong_values_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--port" not in arguments:
        arguments = [*arguments, "--port", "0"]
    assert run(["serve", *arguments]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.startswith("bluejay: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_every_flag_that_a_message_names_is_an_option() -> None:
    parser = command_parser(COMMANDS["serve"])
    kinds = (ConnectionLimits, RequestLimits, DeskLimits, WaitLimits)
    flags = [bound.metadata["flag"] for kind in kinds for bound in fields(kind)]
    assert set(LIMIT_WORDS) == set(flags)
    named, of_clients = {*flags, *ENGINE_FLAGS.values()}, ("--model", "--api-key-env", "--url")
    sources = Path(__file__).resolve().parents[2] / "src" / "bluejay"
    for path in (*sources.glob("serving/*.py"), *sources.glob("generation/*.py")):
        found = re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text())
        named |= {flag for flag in found if flag not in of_clients}
    assert {flag for flag in named if parser.action_of(flag) is None} == set()


def test_limits_and_capacity_take_what_was_given() -> None:
    given = ["--max-prompts", "3", "--queue-timeout", "1.5", "--slots", "2", "--queue-tokens", "9"]
    arguments = command_parser(COMMANDS["serve"]).parse(given)
    limits = limits_of(arguments)
    assert limits.request == RequestLimits(prompts=3)
    assert limits.wait == WaitLimits(queue_seconds=1.5)
    assert limits.connection == ConnectionLimits()
    assert capacity_of(arguments) == {"num_slots": 2, "queued_tokens": 9}


def test_the_environment_sets_options_and_arguments_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "PORT": "0",
        "SLOTS": "3",
        "LOG_JSON": "1",
        "ALLOWED_HOST": "a.example, b.example",
        "ADAPTER": "x=one,y=two",
        "MAX_PROMPTS": "7",
        "QUEUE_REQUESTS": "",
    }.items():
        monkeypatch.setenv(f"BLUEJAY_SERVE_{name}", value)
    arguments = command_parser(COMMANDS["serve"]).parse(["--slots", "5"])
    assert arguments.port == 0
    assert arguments.slots == 5
    assert arguments.log_json is True
    assert arguments.allowed_host == ["a.example", "b.example"]
    assert arguments.adapter == [("x", "one"), ("y", "two")]
    assert arguments.queue_requests is None
    assert limits_of(arguments).request.prompts == 7
    for name, value, sentence in (
        ("PORT", "tcp://10.0.0.1", "BLUEJAY_SERVE_PORT takes a whole number"),
        ("LOG_JSON", "yes", "BLUEJAY_SERVE_LOG_JSON is 1 or 0, not 'yes'."),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(f"BLUEJAY_SERVE_{name}", value)
            with pytest.raises(UsageError, match=sentence):
                command_parser(COMMANDS["serve"])


def test_a_key_makes_any_address_possible_and_loopback_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser = command_parser(COMMANDS["serve"])
    assert place_of(parser.parse(["--port", "0"])).access.keys_sha256 == ()
    monkeypatch.setenv("BLUEJAY_API_KEY", "a-key")
    place = place_of(parser.parse(["--port", "0", "--host", "0.0.0.0"]))
    assert len(place.access.keys_sha256) == 1
    assert place.made_key is None


def test_lan_binds_an_address_of_this_machine_with_a_key_of_its_own() -> None:
    try:
        place = place_of(command_parser(COMMANDS["serve"]).parse(["--port", "0", "--lan"]))
    except UsageError as error:
        pytest.skip(str(error))
    with socket.socket() as probe:
        probe.bind((place.settings.host, 0))
    assert place.made_key is not None
    headers = [(b"authorization", f"Bearer {place.made_key}".encode())]
    assert place.access.tenant(headers)


def test_keys_are_words_that_can_be_said_and_never_the_same() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch(r"([bdfghjklmnprstvz][aiou]){3}(-\w{6}){4}", key) for key in keys)
    # 64 syllables in 15 places: each of them is there among so many.
    syllables = {part for key in keys for part in re.findall("..", key.replace("-", ""))}
    assert len(syllables) == 64


def test_models_are_called_by_name_and_not_by_path(tmp_path: Path) -> None:
    assert served_name("bluejay-tiny") == "bluejay-tiny"
    assert served_name("owner/name") == "owner/name"
    assert served_name(str(write_text_model(tmp_path / "mine"))) == "mine"
    (tmp_path / "A.Q4.gguf").touch()
    assert served_name(str(tmp_path / "A.Q4.gguf")) == "A.Q4"
