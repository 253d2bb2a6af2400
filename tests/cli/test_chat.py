"""`bluejay chat`: what is asked of the model, what a person sees, and keys of a real terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bluejay
from bluejay.cli.chat import Conversation
from bluejay.core.errors import UsageError
from bluejay.text.chat_templates import PLAIN, ChatMessage, chat_prompt
from fake_completions import FakeServer, fake_server
from fake_writing import text_of
from text_models import write_text_model

COMMAND = [sys.executable, "-m", "bluejay", "chat"]


def url_of(server: FakeServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def answer_to(messages: list[dict[str, str]], seed: int, num_tokens: int = 3) -> str:
    return text_of(json.dumps(messages), seed, num_tokens)


def chat(server: FakeServer, typed: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A conversation whose questions come through a pipe."""
    given = ["--url", url_of(server), "--max-tokens", "3", "--seed", "7", *options]
    return subprocess.run(
        [*COMMAND, *given], input=typed, capture_output=True, text=True, timeout=60, check=False
    )


def test_undo_takes_back_a_question_with_its_answer() -> None:
    talk = Conversation(seed=3, system="brief")
    talk.ask("a")
    talk.answer("1")
    talk.ask("b")
    talk.answer("2")
    assert talk.undo() == "b"
    assert talk.messages == [
        {"role": "system", "content": "brief"},
        user("a"),
        assistant("1"),
    ]
    assert talk.seed == 5
    assert talk.undo() == "a"
    with pytest.raises(UsageError, match="Nothing has been asked"):
        talk.undo()


def test_questions_answers_and_commands(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    typed = (
        f"one\ntwo\n/retry\n/undo\n/edit three\n/save {saved}\n/clear\nfour \\\nmore\n/exit\nnever"
    )
    with fake_server() as server:
        done = chat(server, typed, "--system", "brief")
        asked = [(request["messages"], request["seed"]) for request in server.requests]
    assert done.returncode == 0, done.stderr
    system = {"role": "system", "content": "brief"}
    first = answer_to([system, user("one")], 7)
    so_far = [system, user("one"), assistant(first)]
    assert asked == [
        ([system, user("one")], 7),
        ([*so_far, user("two")], 8),
        ([*so_far, user("two")], 9),  # another answer to the same question
        ([system, user("three")], 10),  # in place of "one", after "two" was taken back
        ([system, user("four \nmore")], 11),
    ]
    answers = [answer_to(messages, seed) for messages, seed in asked]
    assert done.stdout == "".join(f"{answer}\n" for answer in answers)
    assert json.loads(saved.read_text()) == {
        "model": "fake",
        "messages": [system, user("three"), assistant(answers[3])],
    }


def test_what_cannot_be_done_is_said_and_the_conversation_goes_on(tmp_path: Path) -> None:
    there = tmp_path / "there.txt"
    there.write_text("mine")
    typed = f"/retry\n/edit\n/nonsense\n/save\n/save {there}\n/save {tmp_path}/no/x\n\none\n"
    with fake_server() as server:
        done = chat(server, typed)
    assert done.returncode == 0
    said = done.stderr.splitlines()
    for number, word in enumerate(("asked", "asked", "/nonsense", "name", "there.txt", "no/x")):
        assert word in said[number]
    assert done.stdout == answer_to([user("one")], 7) + "\n"
    assert there.read_text() == "mine"
    assert "Traceback" not in done.stderr


def test_saved_text_can_be_saved_again(tmp_path: Path) -> None:
    file = tmp_path / "talk.txt"
    with fake_server() as server:
        done = chat(server, f"one\n/save {file}\ntwo\n/save {file}\n")
    assert done.stderr.count("Saved as") == 2
    first = answer_to([user("one")], 7)
    second = answer_to([user("one"), assistant(first), user("two")], 8)
    expected = f"user:\none\n\nassistant:\n{first}\n\nuser:\ntwo\n\nassistant:\n{second}\n"
    assert file.read_text() == expected


def test_a_question_that_failed_can_be_asked_again() -> None:
    with fake_server(ready_after=60.0) as server:
        done = chat(server, "one\n/retry\n")
    assert done.returncode == 0
    assert done.stderr.count("503") == 2
    assert done.stdout == ""
    assert "Nothing has been asked" not in done.stderr


def test_a_local_model_answers_by_its_template(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "jay")
    given = ["-m", str(folder), "--max-tokens", "8", "--seed", "4", "--temperature", "0"]
    done = subprocess.run(
        [*COMMAND, *given], input="the sea\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lm = bluejay.load(folder)
    ids = chat_prompt(lm.tokenizer, PLAIN, [ChatMessage(role="user", content="the sea")]).ids
    [expected] = lm.complete(list(ids), max_tokens=8, temperature=0.0, stop=list(PLAIN.stops))
    assert done.stdout.removesuffix("\n") == expected.text.lstrip().removesuffix("\n")


class Terminal:
    """A process at a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, seconds: float = 30.0) -> str:
        """All that was shown up to and with that text; it counts as seen."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.seen!r}"
            if select.select([self._master], [], [], left)[0]:
                self.seen += os.read(self._master, 65536).decode("utf-8", "replace")
        shown, _, self.seen = self.seen.partition(text)
        return shown + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._master)


@contextmanager
def at_terminal(server: FakeServer) -> Iterator[Terminal]:
    given = ["--url", url_of(server), "--max-tokens", "300", "--seed", "7"]
    terminal = Terminal([*COMMAND, *given])
    try:
        terminal.wait_for("/help lists commands")
        terminal.wait_for("> ")
        yield terminal
    finally:
        terminal.close()


def wait_until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    with fake_server(token_seconds=0.1) as server, at_terminal(server) as terminal:
        whole = answer_to([user("one")], 7, 300)
        terminal.type("one\r")
        terminal.wait_for(whole[:10].strip())
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Stopped")
        terminal.wait_for("> ")
        wait_until(lambda: server.counters.cancelled == 1)
        terminal.type("two\r")
        wait_until(lambda: len(server.requests) == 2)
        first = server.requests[1]["messages"][1]["content"]
        assert first
        assert whole.startswith(first)  # what came is part of the conversation
        assert len(first) < len(whole)
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Stopped")
        terminal.wait_for("> ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Ctrl-D or /exit ends")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0


def test_edit_shows_the_question_and_arrows_bring_back_what_was_typed() -> None:
    with fake_server() as server, at_terminal(server) as terminal:
        terminal.type("one\r")
        terminal.wait_for("> ")
        terminal.type("/edit\r")
        terminal.wait_for("> one")
        terminal.type(" more\r")
        terminal.wait_for("> ")
        terminal.type("/clear\r")
        terminal.wait_for("new conversation")
        terminal.wait_for("> ")
        terminal.type("\x1b[A\x1b[A\r")  # two up: what was edited
        terminal.wait_for("> ")
        terminal.type("/exit\r")
        assert terminal.process.wait(20) == 0
        asked = [request["messages"] for request in server.requests]
    assert asked == [[user("one")], [user("one more")], [user("one more")]]
