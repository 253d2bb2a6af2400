"""`/v1/chat/completions` and `/v1/responses` as OpenAI's own client sees them, on any engine."""

import json
from typing import Any

import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletion

from bluejay.text.chat_templates import ChatMessage, chat_prompt
from serving.text_server import TextServer

SAID = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "see the sea"},
]
PATH = "/v1/chat/completions"


def chat(served: TextServer, **given: Any) -> ChatCompletion:
    defaults: dict[str, Any] = {"model": "small", "messages": SAID, "max_tokens": 8, "seed": 3}
    answer: ChatCompletion = served.client.chat.completions.create(**(defaults | given))
    return answer


def prompt_of(served: TextServer, messages: list[dict[str, str]]) -> list[int]:
    """The ids that the model reads for a conversation."""
    service = served.service
    said = [ChatMessage(role=m["role"], content=m["content"]) for m in messages]
    return list(chat_prompt(service.tokenizer, service.chat_template, said).ids)


def greedy_text(served: TextServer, ids: list[int], count: int) -> str:
    assert served.reference is not None
    found = list(ids)
    for _ in range(count):
        found.append(int(np.argmax(served.reference(found))))
    return served.service.tokenizer.decode(found[len(ids) :])


def test_the_answer_is_what_the_model_says_behind_the_template(served: TextServer) -> None:
    answer = chat(served, temperature=0)
    ids = prompt_of(served, SAID)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "small"
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == greedy_text(served, ids, 8).lstrip()
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 8)


def test_parts_and_other_names_of_roles_are_the_same_conversation(served: TextServer) -> None:
    in_parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "see "}, {"type": "text", "text": "the sea"}],
        },
    ]
    expected = chat(served, temperature=0).choices
    assert chat(served, temperature=0, messages=in_parts).choices == expected
    newer = chat(served, temperature=0, max_tokens=None, max_completion_tokens=8)
    assert newer.choices == expected


def test_an_answer_can_be_sent_back_as_it_came(served: TextServer) -> None:
    first = chat(served, temperature=0).choices[0].message
    again = [*SAID, first, {"role": "user", "content": "more"}]
    answer = chat(served, temperature=0, messages=again)
    said = [
        *SAID,
        {"role": "assistant", "content": first.content or ""},
        {"role": "user", "content": "more"},
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt_of(served, said))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2},
        {"logprobs": True, "n": 2, "max_tokens": 30},
        {"stop": ["a", " t"], "logprobs": True, "max_tokens": 40},
        {"temperature": 0},
    ],
    ids=str,
)
def test_streamed_is_whole(served: TextServer, given: dict[str, Any]) -> None:
    whole = chat(served, **given)
    events = list(chat(served, **given, stream=True, stream_options={"include_usage": True}))
    assert {event.object for event in events} == {"chat.completion.chunk"}
    assert {event.id for event in events} == {events[0].id}
    for choice in whole.choices:
        own = [c for event in events for c in event.choices if c.index == choice.index]
        assert own[0].delta.model_dump(exclude_none=True) == {"role": "assistant", "content": ""}
        assert all(c.delta.role is None for c in own[1:])
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        tokens = [t for c in own if c.logprobs is not None for t in c.logprobs.content or []]
        assert tokens == ((choice.logprobs and choice.logprobs.content) or [])
    assert events[-1].choices == []
    assert whole.usage is not None
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(event.usage is None for event in events[:-1])


def test_logprobs_are_the_models_own(served: TextServer) -> None:
    assert served.reference is not None
    tokenizer = served.service.tokenizer
    answer = chat(served, logprobs=True, top_logprobs=2, max_tokens=12)
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content
    ids = prompt_of(served, SAID)
    for token in content:
        row = served.reference(ids)
        data = bytes(token.bytes or [])
        ids.append(next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == data))
        assert token.logprob == pytest.approx(row[ids[-1]], abs=1e-4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(
            np.sort(row)[::-1][:2], abs=1e-4
        )
        assert data.decode("utf-8", "replace") == token.token or token.token.startswith("bytes:")
    plain = chat(served, logprobs=True, max_tokens=1).choices[0].logprobs
    assert plain is not None
    assert plain.content is not None
    assert plain.content[0].top_logprobs == []


def test_an_answer_without_max_tokens_goes_on_until_it_ends(served: TextServer) -> None:
    service = served.service
    [letter] = service.tokenizer.encode("q")
    on = chat(served, max_tokens=None, logit_bias={str(letter): 100})
    assert on.usage is not None
    assert on.usage.total_tokens == service.context_length
    assert on.choices[0].finish_reason == "length"
    end = str(min(service.conventions.stop_ids))
    ended = chat(served, max_tokens=None, logit_bias={end: 100})
    assert ended.choices[0].message.content == ""
    assert ended.choices[0].finish_reason == "stop"


def test_an_answer_keeps_to_a_schema(served: TextServer) -> None:
    schema = {
        "type": "object",
        "properties": {"blue": {"type": "boolean"}},
        "required": ["blue"],
        "additionalProperties": False,
    }
    wrapped = {
        "type": "json_schema",
        "json_schema": {"name": "sky", "schema": schema, "strict": True},
    }
    answer = chat(served, max_tokens=100, response_format=wrapped)
    assert json.loads(answer.choices[0].message.content or "")["blue"] in (True, False)


def test_the_response_interface_gives_the_same_answer(served: TextServer) -> None:
    expected = chat(served, temperature=0)
    answer = served.client.responses.create(
        model="small",
        instructions="Be short.",
        input="see the sea",
        max_output_tokens=8,
        temperature=0,
    )
    assert answer.output_text == expected.choices[0].message.content
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert expected.usage is not None
    assert answer.usage.input_tokens == expected.usage.prompt_tokens
    assert answer.usage.output_tokens == 8
    as_list = served.client.responses.create(
        model="small",
        input=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "input_text", "text": "see the sea"}]},
        ],
        max_output_tokens=8,
        temperature=0,
        store=False,
        truncation="disabled",
    )
    assert as_list.output_text == answer.output_text


def test_output_can_be_sent_back_as_input(served: TextServer) -> None:
    first = served.client.responses.create(model="small", input="the", max_output_tokens=4)
    said: list[Any] = [{"role": "user", "content": "the"}, *first.output]
    said.append({"role": "user", "content": "more"})
    second = served.client.responses.create(model="small", input=said, max_output_tokens=4)
    assert second.usage is not None
    roles = [("user", "the"), ("assistant", first.output_text), ("user", "more")]
    messages = [{"role": role, "content": text} for role, text in roles]
    assert second.usage.input_tokens == len(prompt_of(served, messages))


def test_events_of_a_response_are_those_that_the_client_follows(served: TextServer) -> None:
    given: dict[str, Any] = {"model": "small", "input": "the", "temperature": 1}
    given |= {"extra_body": {"seed": 4, "max_output_tokens": 6}}
    whole = served.client.responses.create(**given)
    events = list(served.client.responses.create(**given, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert "".join(deltas) == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage


def test_a_response_has_the_log_probabilities_that_chat_has(served: TextServer) -> None:
    expected = chat(served, messages=[SAID[1]], logprobs=True, top_logprobs=3).choices[0]
    assert expected.logprobs is not None
    given: dict[str, Any] = {
        "model": "small",
        "input": "see the sea",
        "max_output_tokens": 8,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 3,
        "extra_body": {"seed": 3},
    }
    whole = served.client.responses.create(**given)
    [part] = whole.output[0].content
    told = [token.model_dump() for token in expected.logprobs.content or ()]
    assert len(told) == 8
    assert all(len(token["top_logprobs"]) == 3 for token in told)
    assert [token.model_dump() for token in part.logprobs] == told
    assert whole.top_logprobs == 3
    events = list(served.client.responses.create(**given, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    [done] = [event for event in events if event.type == "response.output_text.done"]
    pieces = [token.model_dump() for event in deltas for token in event.logprobs]
    assert pieces == [token.model_dump() for token in done.logprobs]
    assert [(token["token"], token["logprob"]) for token in pieces] == [
        (token["token"], token["logprob"]) for token in told
    ]
    assert [len(token["top_logprobs"]) for token in pieces] == [3] * 8
    [last], [first] = events[-1].response.output, whole.output
    assert last.model_dump(exclude={"id"}) == first.model_dump(exclude={"id"})
    # Without being asked for there are none; and what was answered can be sent back.
    assert (
        served.client.responses.create(model="small", input="a").output[0].content[0].logprobs == []
    )
    again = [*whole.output, {"role": "user", "content": "more"}]
    assert served.client.responses.create(model="small", input=again, max_output_tokens=2).output


def test_the_clients_own_stream_of_a_response_completes(served: TextServer) -> None:
    schema = {"enum": ["yes", "no"]}
    flat = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    with served.client.responses.stream(model="small", input="the", text=flat) as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed"
    assert snapshots[-1] == final.output_text
    assert json.loads(final.output_text) in ("yes", "no")


CHAT_REFUSALS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"messages": []}, "length >= 1", "messages"),
    ({"messages": "hello"}, "wrong", "messages"),
    ({"messages": [{"role": "user"}]}, "missing", "messages[0].content"),
    ({"messages": [{"content": "a"}]}, "missing", "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "'tool'", "messages[0].role"),
    ({"messages": [{"role": "user", "content": None}]}, "wrong", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "name", "messages[0].name"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "'image_url'",
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "missing", None),
    ({"tools": []}, "not trained to call tools", "tools"),
    ({"functions": []}, "not trained to call tools", "functions"),
    ({"audio": {}}, "text only", "audio"),
    ({"modalities": ["audio"]}, "'audio'", "modalities[0]"),
    ({"store": True}, "nothing is stored", "store"),
    ({"reasoning_effort": "high"}, "do not reason", "reasoning_effort"),
    ({"echo": True}, "only /v1/completions", "echo"),
    ({"max_tokens": 0}, "max_tokens is 0", "max_tokens"),
    ({"max_completion_tokens": -1}, "is -1", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "send one", "max_tokens"),
    ({"max_tokens": 10**6}, "context holds", "messages"),
    ({"top_logprobs": 2}, "only of use with logprobs", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "--max-logprobs", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "is -1", "top_logprobs"),
    ({"logprobs": 5}, "wrong", "logprobs"),
    ({"n": 9}, "--max-samples", "n"),
    ({"temperature": 2.01}, "temperature is 2.01", "temperature"),
    ({"stop": ["a"] * 5}, "--max-stop-strings", "stop"),
    ({"context_policy": "keep"}, "send both", "context_keep"),
    ({"context_keep": 1}, "send both", "context_keep"),
    ({"context_policy": "keep", "context_keep": 5}, "from 0 to 2", "context_keep"),
    ({"context_policy": "keep", "context_keep": "Be"}, "number of messages", "context_keep"),
    ({"message": []}, "did you mean 'messages'", "message"),
    ({"messages": [{"role": "user", "content": "a" * 32769}]}, "--max-prompt-ch", "messages"),
]


@pytest.mark.parametrize(
    ("body", "part", "param"), CHAT_REFUSALS, ids=lambda value: str(value)[:60]
)
def test_what_chat_refuses(
    served: TextServer, body: dict[str, Any], part: str, param: str | None
) -> None:
    error = served.refusal(PATH, **({"messages": SAID} | body))
    assert error["status"] == 400, error
    assert part in error["message"], error
    assert param is None or error["param"] == param


def test_a_conversation_that_does_not_fit_is_refused(served: TextServer) -> None:
    context = served.service.context_length
    said = [{"role": "user", "content": " a b" * (context // 2 + 8)}]
    error = served.refusal(PATH, messages=said)
    assert error["status"] == 400
    assert error["code"] == "context_length_exceeded"
    assert f"{context:,}" in error["message"]


RESPONSE_REFUSALS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"input": []}, "length >= 1", "input"),
    ({"input": 5}, "wrong", "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'", None),
    ({"store": True}, "nothing is stored", "store"),
    ({"previous_response_id": "resp_1"}, "nothing is stored", "previous_response_id"),
    ({"tools": [{"type": "web_search"}]}, "length <= 0", "tools"),
    ({"include": ["reasoning.encrypted_content"]}, "invalid enum value", "include[0]"),
    ({"top_logprobs": 2}, "only of use with include", "top_logprobs"),
    (
        {"top_logprobs": 21, "include": ["message.output_text.logprobs"]},
        "--max-logprobs",
        "top_logprobs",
    ),
    ({"reasoning": {}}, "do not reason", "reasoning"),
    ({"max_output_tokens": 0}, "max_output_tokens is 0", "max_output_tokens"),
    ({"max_tokens": 5}, "max_output_tokens", "max_tokens"),
    ({"text": {"format": {"type": "xml"}}}, "'xml'", "text.format.type"),
    ({"truncation": "left"}, "'left'", "truncation"),
    ({"temperature": -1}, "temperature is -1", "temperature"),
]


@pytest.mark.parametrize(
    ("body", "part", "param"), RESPONSE_REFUSALS, ids=lambda value: str(value)[:60]
)
def test_what_responses_refuses(
    served: TextServer, body: dict[str, Any], part: str, param: str | None
) -> None:
    error = served.refusal("/v1/responses", **({"input": "the"} | body))
    assert error["status"] == 400, error
    assert part in error["message"], error
    assert param is None or error["param"] == param


def test_openais_client_raises_what_it_should(served: TextServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(served, tools=[])
    assert caught.value.param == "tools"
    assert caught.value.code == "unsupported_field"
    with pytest.raises(openai.NotFoundError):
        chat(served, model="gpt-7")
    with pytest.raises(openai.NotFoundError):
        served.client.responses.create(model="gpt-7", input="a")
