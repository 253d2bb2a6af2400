"""Faults of a server while it serves: they cost those whom they hit, and nobody else a bit.

Rows S1 and S4 of the fault matrix; S2, S3, S5 and S6 need a process (tests/cli/test_serve_faults).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bluejay.core import failpoints
from serving.live_server import Answer, Raw, captured_log, read_answer
from serving.model_server import ServedModel, serve_model

COMPLETIONS = "/v1/completions"
JSON = [("Content-Type", "application/json")]
SECRET = "xylophone"


@pytest.fixture(scope="module")
def served() -> Iterator[ServedModel]:
    """One of its own, which is to stay as it was after every fault."""
    with serve_model() as found:
        yield found


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def arm(place: str) -> None:
        monkeypatch.setattr(failpoints, "_passed", Counter[str]())
        monkeypatch.setenv("BLUEJAY_FAILPOINT", place)

    return arm


def body_of(number: int, **fields: Any) -> bytes:
    """A text of its own for each number, long enough to be in the middle of it."""
    asked = {"prompt": f"{SECRET} {number}", "max_tokens": 100, "seed": number, "logprobs": 1}
    return json.dumps(asked | {"logit_bias": {"0": -100}} | fields).encode()


def choice(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["choices"]


def is_failure(answer: Answer) -> bool:
    """A whole answer that says that it may be sent again, and no other status than 200 or 503."""
    if answer.status == 200:
        return False
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert json.loads(answer.body)["error"]["code"] == "engine_failure"
    return True


def crowd(raw: Raw, count: int) -> list[Answer]:
    """The answers to so many requests at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda number: raw.post(COMPLETIONS, body_of(number)), range(count)))


def test_s1_a_fault_of_the_engine_ends_what_ran_and_the_engine_goes_on(
    served: ServedModel, fail_at: Callable[[str], None]
) -> None:
    alone = [choice(served.raw.post(COMPLETIONS, body_of(number))) for number in range(12)]
    before = served.server.status()
    with captured_log() as log:
        fail_at("engine-step@40:full")
        answers = crowd(served.raw, 12)
        assert served.raw.request("GET", "/ready").status == 200
    failed = [number for number, answer in enumerate(answers) if is_failure(answer)]
    assert 1 <= len(failed) <= 4, "those that held a slot"
    for number in {*range(12)} - {*failed}:
        assert choice(answers[number]) == alone[number]
    after = served.server.status()
    assert (after.restarts - before.restarts, after.recompiles) == (1, before.recompiles)
    assert after.failed - before.failed == len(failed)
    assert after.slots_in_use == after.queued_requests == 0
    assert choice(served.raw.post(COMPLETIONS, body_of(failed[0]))) == alone[failed[0]]
    assert b"bluejay_engine_restarts_total 1.0" in served.raw.request("GET", "/metrics").body
    assert "begins again. OSError" in log.getvalue()
    assert SECRET not in log.getvalue()
    assert "Traceback" not in log.getvalue()


def test_s1_a_stream_that_a_fault_ends_has_an_error_and_no_end(
    served: ServedModel, fail_at: Callable[[str], None]
) -> None:
    with served.raw.connect() as connection:
        sent = served.raw.encode("POST", COMPLETIONS, headers=JSON, body=body_of(1, stream=True))
        fail_at("engine-step@4:full")
        connection.sendall(sent)
        answer = read_answer(connection)
    frames = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert answer.is_whole
    assert len(frames) > 2
    assert json.loads(frames[-1].removeprefix("data: "))["error"]["code"] == "engine_failure"
    assert all("error" not in frame for frame in frames[:-1])


def test_s4_no_memory_for_one_request_is_told_to_it_and_felt_by_nobody_else(
    served: ServedModel, fail_at: Callable[[str], None]
) -> None:
    """The device runs out of memory while it reads the second half of one long prompt."""
    alone = [choice(served.raw.post(COMPLETIONS, body_of(number))) for number in range(20, 23)]
    large = body_of(30, prompt=[300 + number % 50 for number in range(140)])
    with ThreadPoolExecutor(3) as pool, served.raw.connect() as connection:
        others = [
            pool.submit(served.raw.post, COMPLETIONS, body_of(number, stream=number == 20))
            for number in range(20, 23)
        ]
        while served.server.engine.status().slots_in_use < 3:
            assert not all(other.done() for other in others)
        fail_at("engine-prefill@2:memory")
        connection.sendall(served.raw.encode("POST", COMPLETIONS, headers=JSON, body=large))
        refused = read_answer(connection)
        answers = [other.result() for other in others]
    assert is_failure(refused)
    assert "MemoryError" in json.loads(refused.body)["error"]["message"]
    assert [choice(answer) for answer in answers[1:]] == alone[1:]
    pieces = [json.loads(frame[6:]) for frame in answers[0].body.decode().split("\n\n")[:-2]]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == alone[0][0]["text"]
    assert choice(served.raw.post(COMPLETIONS, large))
    assert served.server.status().is_ready
