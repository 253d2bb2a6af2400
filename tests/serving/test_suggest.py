import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from bluejay.serving.access import make_access
from bluejay.serving.limits import DeskLimits
from bluejay.serving.suggest import suggest_routes
from bluejay.text.next_tokens import Question
from bluejay.text.suggestions import suggest
from serving.live_server import PATIENCE
from serving.route_server import Client, serve_routes
from serving.table_models import TableWords
from serving.text_server import small_tokenizer


@pytest.fixture
def served() -> Iterator[tuple[Client, TableWords]]:
    model = TableWords()
    with serve_routes(lambda service: suggest_routes(service, model)) as client:
        try:
            yield client, model
        finally:
            model.open()


@pytest.mark.parametrize("text", ["", "the ", "the s", "a", "x. ", "is it "])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_words_are_those_of_the_search(
    served: tuple[Client, TableWords], text: str, k: int
) -> None:
    client, _ = served
    found = client.post("/v1/suggest", text=text, k=k, max_calls=40)
    expected = suggest(TableWords(), small_tokenizer(), text, k=k, max_calls=40)
    assert expected
    assert found["suggestions"] == [
        {
            "word": item.word,
            "probability": pytest.approx(item.probability),
            "appended": item.appended,
            "completes": item.completes,
        }
        for item in expected
    ]
    assert found["object"] == "suggestions"


def test_fewer_calls_are_fewer_calls(served: tuple[Client, TableWords]) -> None:
    client, model = served
    client.post("/v1/suggest", text="the s", max_calls=2)
    assert len(model.calls) == 2


def sent(client: Client, **body: Any) -> dict[str, Any]:
    answer = client.send("/v1/suggest", body)
    found: dict[str, Any] = json.loads(answer.body)
    return found | {"status": answer.status}


def test_a_later_request_of_a_session_ends_the_one_before(
    served: tuple[Client, TableWords],
) -> None:
    client, model = served
    model.is_gated = True
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(sent, client, text="the s", session="me")
        assert model.began.acquire(timeout=PATIENCE)
        waiting = pool.submit(sent, client, text="the se", session="me")
        # At once, while the model is still in the first call.
        assert first.result(PATIENCE)["status"] == 409
        assert first.result()["error"]["code"] == "superseded"
        last = pool.submit(sent, client, text="the sea", session="me")
        assert waiting.result(PATIENCE)["status"] == 409
        model.open()
        found = last.result(PATIENCE)
    assert found["status"] == 200
    assert found["suggestions"] == sent(client, text="the sea")["suggestions"]
    # The first search asked nothing after its first call, the second nothing at all.
    whole = TableWords()
    suggest(whole, small_tokenizer(), "the sea", k=5)
    assert model.calls == [model.calls[0], *whole.calls, *whole.calls]
    assert len(model.threads) == 1


def test_a_request_that_arrives_late_is_ended(served: tuple[Client, TableWords]) -> None:
    client, _ = served
    assert sent(client, text="the s", session="me", sequence=7)["status"] == 200
    assert sent(client, text="the", session="me", sequence=6)["status"] == 409
    assert sent(client, text="the", session="you", sequence=6)["status"] == 200
    assert sent(client, text="the se", session="me", sequence=8)["status"] == 200


def test_sessions_of_other_keys_are_others() -> None:
    model = TableWords(is_gated=True)
    access = make_access("127.0.0.1", keys=["key-a", "key-b"])
    with (
        serve_routes(lambda service: suggest_routes(service, model), access=access) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        of_a, of_b = (
            Client(raw=client.raw.with_defaults(x_api_key=key), engine=client.engine)
            for key in ("key-a", "key-b")
        )
        first = pool.submit(sent, of_a, text="the s", session="me")
        assert model.began.acquire(timeout=PATIENCE)
        second = pool.submit(sent, of_b, text="the s", session="me")
        model.open()
        assert first.result(PATIENCE)["status"] == second.result(PATIENCE)["status"] == 200


def test_a_client_that_leaves_ends_its_search(served: tuple[Client, TableWords]) -> None:
    client, model = served
    model.is_gated = True
    body = b'{"text": "the s"}'
    headers = [("Content-Type", "application/json")]
    with client.raw.connect() as connection:
        connection.sendall(client.raw.encode("POST", "/v1/suggest", headers=headers, body=body))
        assert model.began.acquire(timeout=PATIENCE)
    pause = threading.Event()
    for _ in range(int(PATIENCE * 20)):
        if b'status="499"' in client.raw.request("GET", "/metrics").body:
            break
        pause.wait(0.05)
    model.open()
    client.post("/v1/suggest", text="x. ", max_calls=1)
    assert len(model.calls) == 2


def test_too_many_that_wait_are_turned_away(served: tuple[Client, TableWords]) -> None:
    client, model = served
    most = DeskLimits().suggestions
    model.is_gated = True
    with ThreadPoolExecutor(most + 8) as pool:
        sendings = [pool.submit(sent, client, text="a") for _ in range(most + 8)]
        turned_away = []
        pause = threading.Event()
        for _ in range(int(PATIENCE * 20)):
            turned_away = [one for one in sendings if one.done()]
            if len(turned_away) == 8:
                break
            pause.wait(0.05)
        told = [one.result() for one in turned_away]
        assert {one["status"] for one in told} == {429}
        assert all("--max-suggest-requests" in one["error"]["message"] for one in told)
        model.open()
        statuses = [one.result(PATIENCE)["status"] for one in sendings]
    assert statuses.count(200) == most


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": 5}, "text"),
        ({"text": "a", "k": 0}, "k"),
        ({"text": "a", "k": 21}, "k"),
        ({"text": "a", "max_calls": 0}, "max_calls"),
        ({"text": "a", "max_calls": 129}, "max_calls"),
        ({"text": "a", "session": ""}, "session"),
        ({"text": "a", "session": "x" * 65}, "session"),
        ({"text": "a", "sequence": 1}, "sequence"),
        ({"text": "a", "session": "x", "sequence": -1}, "sequence"),
        ({"text": "a", "model": "pirate"}, "model"),
        ({"text": "a" * 40_000}, "text"),
        ({"text": "a", "n": 3}, "n"),
    ],
)
def test_bad_bodies(served: tuple[Client, TableWords], body: dict[str, Any], param: str) -> None:
    error = served[0].refusal("/v1/suggest", **body)
    assert (error["status"], error["param"]) == (400, param)
    assert served[1].calls == []


def test_a_model_that_remembers_is_asked_for_each_tenant() -> None:
    class Remembering(TableWords):
        num_at_once = 2
        tenants: ClassVar[dict[str, TableWords]] = {}

        def answers(self, asked: Sequence[tuple[str, Question]]) -> list[Any]:
            raise AssertionError("only one asks at a time here")

        def recalled(self, tenant: str, question: Question) -> None:
            return None

        def of_tenant(self, tenant: str) -> TableWords:
            return self.tenants.setdefault(tenant, TableWords())

    model = Remembering()
    access = make_access("127.0.0.1", keys=["key-a", "key-b"])
    with serve_routes(lambda service: suggest_routes(service, model), access=access) as client:
        for key, text in (("key-a", "the s"), ("key-b", "a"), ("key-a", "the se")):
            raw = client.raw.with_defaults(x_api_key=key)
            Client(raw=raw, engine=client.engine).post("/v1/suggest", text=text)
    assert model.calls == []
    plain = [TableWords(), TableWords()]
    for table, text in ((plain[0], "the s"), (plain[0], "the se"), (plain[1], "a")):
        suggest(table, small_tokenizer(), text)
    assert [asked.calls for asked in model.tenants.values()] == [table.calls for table in plain]
