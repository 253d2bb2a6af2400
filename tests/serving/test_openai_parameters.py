"""Every parameter of OpenAI's client: it works, or the server refuses it by name.

The tables are compared with the signatures of the client that is installed: one that brings a new
parameter fails here until somebody says what becomes of it.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI

from bluejay.serving.chat import chat_routes
from bluejay.serving.completions import completion_routes
from bluejay.serving.embeddings import Pooling, embedding_routes
from bluejay.serving.models import model_routes
from bluejay.serving.responses import response_routes
from bluejay.serving.routes import Route
from bluejay.serving.service import TextService
from serving.fake_engine import TinyModel
from serving.route_server import Client, serve_routes
from serving.text_server import NUM_ROWS, small_tokenizer

OF_THE_CLIENT = {"extra_headers", "extra_query", "extra_body", "timeout"}
"""Parameters that say how it sends, not what."""

SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
SAID = [{"role": "user", "content": "hi"}]

Table = dict[str, Any]
WORKS: dict[str, Table] = {
    "completions": {
        "model": "owner/small",
        "prompt": ["the", "sea"],
        "best_of": 2,
        "echo": True,
        "frequency_penalty": 0.5,
        "logit_bias": {"65": 1},
        "logprobs": 2,
        "max_tokens": 3,
        "n": 2,
        "presence_penalty": -0.5,
        "seed": 7,
        "stop": ["x", "y"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.5,
        "user": "somebody",
    },
    "chat": {
        "model": "owner/small",
        "messages": SAID,
        "frequency_penalty": 0.5,
        "logit_bias": {"65": 1},
        "logprobs": True,
        "max_completion_tokens": 3,
        "max_tokens": 3,
        "modalities": ["text"],
        "n": 2,
        "presence_penalty": -0.5,
        "response_format": {"type": "text"},
        "seed": 7,
        "stop": "x",
        "store": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_logprobs": 2,
        "top_p": 0.5,
        "user": "somebody",
    },
    "responses": {
        "top_logprobs": 2,
        "model": "owner/small",
        "input": "hi",
        "include": [],
        "instructions": "Be short.",
        "max_output_tokens": 4,
        "store": False,
        "stream": True,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tools": [],
        "top_p": 0.5,
        "truncation": "auto",
        "user": "somebody",
    },
    "embeddings": {
        "model": "owner/small",
        "input": "the sea",
        "dimensions": 5,
        "encoding_format": "float",
        "user": "somebody",
    },
}
REFUSED: dict[str, Table] = {
    # The small model was not trained to fill gaps.
    "completions": {"suffix": "end"},
    "chat": {
        "audio": {"format": "mp3", "voice": "alloy"},
        "function_call": "none",
        "functions": [{"name": "f"}],
        "metadata": {"a": "b"},
        "moderation": {"model": "m"},
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "a"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {},
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "safety_identifier": "s",
        "service_tier": "auto",
        "tool_choice": "auto",
        "tools": [TOOL],
        "verbosity": "low",
        "web_search_options": {},
    },
    "responses": {
        "access_programs": [],
        "background": True,
        "background_options": {},
        "context_management": [],
        "conversation": "c",
        "image": {},
        "max_tool_calls": 1,
        "metadata": {"a": "b"},
        "moderation": {"model": "m"},
        "parallel_tool_calls": True,
        "previous_response_id": "r",
        "prompt": {"id": "p"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {},
        "prompt_cache_retention": "24h",
        "reasoning": {"effort": "low"},
        "safety_identifier": "s",
        "service_tier": "auto",
        "stream_options": {"include_obfuscation": False},
        "tool_choice": "auto",
    },
    "embeddings": {},
}
NEEDS: dict[str, Table] = {
    "best_of": {"n": 1},
    "stream_options": {"stream": True},
}
"""What a parameter is only of use with."""

BASE: dict[str, Table] = {
    "completions": {"prompt": "the sea", "max_tokens": 3},
    "chat": {"messages": SAID, "max_tokens": 3},
    "responses": {"input": "hi", "max_output_tokens": 3},
    "embeddings": {"input": "the sea"},
}


def method(client: OpenAI, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = {
        "completions": client.completions.create,
        "chat": client.chat.completions.create,
        "responses": client.responses.create,
        "embeddings": client.embeddings.create,
    }[name]
    return found


class Ones:
    """An embedder whose vectors say nothing."""

    width = 5

    def embed(self, ids: Any, *, pooling: Pooling, tenant: str, adapter: Any) -> NDArray[Any]:
        return np.ones(self.width, np.float32)


def routes(service: TextService) -> list[Route]:
    makers = (completion_routes, chat_routes, response_routes, model_routes)
    found = [route for make in makers for route in make(service)]
    return [*found, *embedding_routes(service, Ones())]


@pytest.fixture(scope="module")
def server() -> Iterator[Client]:
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    with serve_routes(routes, model.answer) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: Client) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{server.raw.port}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("name", WORKS)
def test_every_parameter_of_the_installed_client_has_its_case(client: OpenAI, name: str) -> None:
    known = set(inspect.signature(method(client, name)).parameters)
    assert known >= OF_THE_CLIENT
    assert WORKS[name].keys() | REFUSED[name].keys() == known - OF_THE_CLIENT, openai.__version__
    assert not WORKS[name].keys() & REFUSED[name].keys()


def cases(table: dict[str, Table]) -> list[tuple[str, str, bool]]:
    """Each parameter of each method, whole and, where the method streams, streamed."""
    return [
        (name, parameter, streams)
        for name, values in table.items()
        for parameter in values
        for streams in ((False,) if name == "embeddings" else (False, True))
        if not (parameter in ("stream", "stream_options", "best_of") and streams)
    ]


def body_of(name: str, parameter: str, value: Any, *, streams: bool) -> Table:
    needed = NEEDS.get(parameter, {})
    if (name, parameter) == ("chat", "top_logprobs"):
        needed = {"logprobs": True}
    if (name, parameter) == ("responses", "top_logprobs"):
        needed = {"include": ["message.output_text.logprobs"]}
    base = {"model": "owner/small"} | BASE[name] | needed | {parameter: value}
    if parameter == "max_completion_tokens":
        del base["max_tokens"]
    return base | ({"stream": True} if streams else {})


@pytest.mark.parametrize(("name", "parameter", "streams"), cases(WORKS), ids=str)
def test_a_parameter_that_works(
    server: Client, client: OpenAI, name: str, parameter: str, streams: bool
) -> None:
    body = body_of(name, parameter, WORKS[name][parameter], streams=streams)
    answer = method(client, name)(**body)
    if body.get("stream"):
        events = list(answer)
        assert len(events) > 1
        if name == "responses":
            assert events[-1].type in ("response.completed", "response.incomplete")
        return
    check_effect(name, parameter, answer, server)


def check_effect(name: str, parameter: str, answer: Any, server: Client) -> None:
    """What can be seen of a parameter, in the answer or in what the engine was asked."""
    if name == "embeddings":
        assert len(answer.data[0].embedding) == Ones.width == WORKS[name]["dimensions"]
        return
    asked = server.engine.requests[-1]
    sampling = {"frequency_penalty", "presence_penalty", "seed", "temperature", "top_p"}
    if parameter in sampling:
        assert getattr(asked.sampling, parameter) == WORKS[name][parameter]
    elif parameter == "logit_bias":
        assert asked.sampling.logit_bias == {65: 1.0}
    elif parameter in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        assert asked.max_tokens == WORKS[name][parameter]
    elif parameter == "n":
        assert len(answer.choices) == 2
    elif parameter == "best_of":
        assert len(answer.choices) == 1
        assert [r.sample_index for r in server.engine.requests[-2:]] == [0, 1]
    elif parameter == "echo":
        assert answer.choices[0].text.startswith("the sea")
    elif parameter == "prompt":
        assert len(answer.choices) == 2
    elif name != "responses" and parameter in ("logprobs", "top_logprobs"):
        assert answer.choices[0].logprobs is not None
        assert asked.num_alternatives == (2 if WORKS[name][parameter] == 2 else 0)
    elif parameter == "instructions":
        [prompt] = asked.prompts
        assert "Be short." in small_tokenizer().decode(prompt)


@pytest.mark.parametrize(("name", "parameter", "streams"), cases(REFUSED), ids=str)
def test_a_parameter_that_is_refused_by_name(
    client: OpenAI, name: str, parameter: str, streams: bool
) -> None:
    body = body_of(name, parameter, REFUSED[name][parameter], streams=streams)
    with pytest.raises(openai.BadRequestError) as caught:
        method(client, name)(**body)
    assert caught.value.param == parameter
    # Known, and not offered: with a reason, and not as if it were misspelt.
    assert f"{parameter!r} is not supported" in str(caught.value) or parameter == "suffix"
    assert "there is no field" not in str(caught.value)


def test_how_the_client_sends(client: OpenAI) -> None:
    ways: dict[str, Any] = {
        "extra_headers": {"X-Request-Id": "mine"},
        "extra_query": {"a": "b"},
        "extra_body": {"top_k": 3},
        "timeout": 60.0,
    }
    assert ways.keys() == OF_THE_CLIENT
    for name, base in BASE.items():
        given = ways | ({"extra_body": {}} if name in ("responses", "embeddings") else {})
        assert method(client, name)(model="owner/small", **base, **given)


def test_every_method_of_models_that_only_reads(client: OpenAI) -> None:
    for found in (client.models.list, client.models.retrieve):
        parameters = set(inspect.signature(found).parameters)
        assert parameters - {"model"} == OF_THE_CLIENT
    [card, *_] = client.models.list()
    assert client.models.retrieve(card.id) == card
