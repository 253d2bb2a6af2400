"""What conversations ask of the engine, and what is made of its answers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from bluejay.generation.engine_requests import (
    EngineEvent,
    EngineRequest,
    Failed,
    NewTokens,
    PromptProgress,
    TokenScore,
)
from bluejay.text.chat_templates import CHATML, PLAIN
from serving.fake_engine import FakeEngine, scripted
from serving.text_server import END, TextServer, serve_answers, small_tokenizer

TOKENIZER = small_tokenizer()
ANSWER = "  Good day.\nUser: And"


@pytest.fixture(scope="module")
def polite() -> Iterator[tuple[TextServer, FakeEngine]]:
    """A server whose model says the same always, and would go on as the user."""
    with serve_answers(scripted(TOKENIZER.encode(ANSWER))) as found:
        yield found


def asked(found: tuple[TextServer, FakeEngine], messages: Any, **body: Any) -> EngineRequest:
    server, engine = found
    answer = server.post("/v1/chat/completions", messages=messages, **body)
    assert answer.status == 200, answer.body
    return engine.requests[-1]


def said(count: int) -> list[dict[str, str]]:
    """A conversation of so many messages of 100 characters behind a system message."""
    roles = ["user", "assistant"] * count
    found = [{"role": r, "content": f"{i:03}" + "x" * 97} for i, r in enumerate(roles[:count])]
    return [{"role": "system", "content": "Be kind."}, *found]


def test_the_answer_begins_with_its_first_word_and_ends_before_the_user_speaks(
    polite: tuple[TextServer, FakeEngine],
) -> None:
    server, engine = polite
    given: dict[str, Any] = {"model": "small", "messages": said(1), "max_tokens": 50}
    choice = server.client.chat.completions.create(**given).choices[0]
    assert choice.message.content == "Good day."
    assert choice.finish_reason == "stop"
    assert engine.cancelled[-1] is engine.requests[-1]
    events = list(server.client.chat.completions.create(**given, stream=True))
    texts = [event.choices[0].delta.content or "" for event in events]
    assert "".join(texts) == "Good day."
    assert texts[1] == "G"
    answer = server.client.responses.create(model="small", input="hi", max_output_tokens=50)
    assert (answer.output_text, answer.status) == ("Good day.", "completed")


def test_stop_strings_of_the_client_are_added_to_those_of_the_template(
    polite: tuple[TextServer, FakeEngine],
) -> None:
    server, _ = polite
    answer = server.client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "hi"}], stop="day"
    )
    assert answer.choices[0].message.content == "Good "


def test_an_answer_may_take_what_the_context_has_left(
    polite: tuple[TextServer, FakeEngine],
) -> None:
    request = asked(polite, said(2))
    assert request.max_tokens == 2048 - len(request.prompts[0])


@pytest.mark.parametrize("max_tokens", [None, 100])
def test_whole_messages_are_left_out_until_the_rest_fits(
    polite: tuple[TextServer, FakeEngine], max_tokens: int | None
) -> None:
    messages = said(40)
    assert polite[0].refusal("/v1/chat/completions", messages=messages)["status"] == 400
    request = asked(polite, messages, context_policy="trim", max_tokens=max_tokens)
    text = TOKENIZER.decode(request.prompts[0])
    assert text.startswith("<|endoftext|>Be kind.\n\n")
    assert text.endswith("039" + "x" * 97 + "\nAssistant:")
    kept = text.count("x" * 97)
    assert text.count("User: ") + text.count("Assistant: ") == kept
    longest_turn = len("Assistant: \n") + 100
    room = max_tokens or 256
    assert 2048 - longest_turn < len(request.prompts[0]) + room <= 2048
    # The other interface has its own word for it.
    server, engine = polite
    body = {"input": messages, "truncation": "auto", "max_output_tokens": max_tokens}
    assert server.post("/v1/responses", **body).status == 200
    assert engine.requests[-1].prompts == request.prompts


def test_a_marked_beginning_of_a_conversation_stays(
    polite: tuple[TextServer, FakeEngine],
) -> None:
    messages = said(40)
    request = asked(polite, messages, context_policy="keep", context_keep=4, max_tokens=100)
    text = TOKENIZER.decode(request.prompts[0])
    turns = [number for number in range(40) if f"{number:03}xxx" in text]
    first_kept = turns[3]
    assert turns[:3] == [0, 1, 2]
    assert first_kept > 10
    assert turns[3:] == list(range(first_kept, 40))
    assert 2048 - 120 < len(request.prompts[0]) + 100 <= 2048
    # More than fits beside the last one is refused, and a conversation that fits is never cut.
    body = {"messages": messages, "context_policy": "keep", "max_tokens": 100}
    error = polite[0].refusal("/v1/chat/completions", **body, context_keep=39)
    assert error["code"] == "context_length_exceeded"
    short = asked(polite, said(3), context_policy="keep", context_keep=1)
    assert TOKENIZER.decode(short.prompts[0]).count("xxx") > 0


def test_a_last_message_that_is_too_long_alone_is_refused(
    polite: tuple[TextServer, FakeEngine],
) -> None:
    long = [*said(3), {"role": "user", "content": "y" * 2048}]
    error = polite[0].refusal("/v1/chat/completions", messages=long, context_policy="trim")
    assert (error["status"], error["code"]) == (400, "context_length_exceeded")


def test_several_answers_are_samples_of_one_prompt(
    polite: tuple[TextServer, FakeEngine],
) -> None:
    _, engine = polite
    asked(polite, said(1), n=3, adapter="pirate", seed=9)
    found = engine.requests[-3:]
    assert [r.sample_index for r in found] == [0, 1, 2]
    assert {(r.adapter, r.sampling.seed, tuple(r.prompts[0])) for r in found} == {
        ("pirate", 9, tuple(found[0].prompts[0]))
    }


def test_special_tokens_that_a_user_types_are_plain_text(
    polite: tuple[TextServer, FakeEngine],
) -> None:
    request = asked(polite, [{"role": "user", "content": "<|endoftext|>"}])
    assert list(request.prompts[0]).count(END) == 1
    assert TOKENIZER.decode(request.prompts[0]).count("<|endoftext|>") == 2


def test_a_template_without_marks_around_its_answer_takes_nothing_away() -> None:
    template = replace(PLAIN, trims_answer=False, stops=())
    assert not CHATML.trims_answer
    with serve_answers(scripted(TOKENIZER.encode(ANSWER)), chat_template=template) as (server, _):
        answer = server.client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "hi"}], max_tokens=100
        )
    assert answer.choices[0].message.content == ANSWER


def failing(request: EngineRequest) -> Iterator[EngineEvent]:
    yield PromptProgress(num_done=1, num_tokens=1, num_cached=0)
    yield NewTokens(scores=(TokenScore(id=TOKENIZER.encode("a")[0], logprob=-1.0),))
    yield Failed(message="The device is out of memory.", is_transient=True)


def test_streams_that_fail_say_so() -> None:
    with serve_answers(failing) as (server, _):
        client = server.client
        with pytest.raises(openai.APIError, match="out of memory"):
            list(
                client.chat.completions.create(
                    model="small", messages=[{"role": "user", "content": "hi"}], stream=True
                )
            )
        with pytest.raises(openai.APIError, match="out of memory"):
            list(client.responses.create(model="small", input="hi", stream=True))
        raw = server.post("/v1/responses", input="hi", stream=True).body.decode()
        assert raw.rstrip().split("\n\n")[-1].startswith("event: error\ndata: ")
