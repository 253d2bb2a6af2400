"""`/v1/completions` as OpenAI's own client sees it, against any engine."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from openai.types import Completion, CompletionChoice

from bluejay.vocab.tokenizer import Tokenizer
from serving.text_server import TextServer

PROMPT = "see the sea"


def complete(served: TextServer, **given: Any) -> Completion:
    """One answer; what OpenAI's client does not know goes into `extra_body`."""
    defaults: dict[str, Any] = {"model": "small", "prompt": PROMPT, "max_tokens": 8, "seed": 3}
    answer: Completion = served.client.completions.create(**(defaults | given))
    return answer


def choice(served: TextServer, **given: Any) -> CompletionChoice:
    [only] = complete(served, **given).choices
    return only


def merged(events: Sequence[Completion]) -> list[dict[str, Any]]:
    """The choices that the events of a stream add up to."""
    found: dict[int, dict[str, Any]] = {}
    for event in events:
        for new in (part.model_dump() for part in event.choices):
            old = found.setdefault(new["index"], new | {"text": "", "logprobs": None})
            assert old["finish_reason"] is None
            old["text"] += new["text"]
            old["finish_reason"] = new["finish_reason"]
            if new["logprobs"] is not None:
                lists = old["logprobs"] or {name: [] for name in new["logprobs"]}
                old["logprobs"] = {name: lists[name] + new["logprobs"][name] for name in lists}
    return [found[index] for index in sorted(found)]


def ids_of(served: TextServer, text: str) -> list[int]:
    """The ids that the model reads for a prompt."""
    return [*served.service.conventions.document_start, *tokenizer(served).encode(text)]


def tokenizer(served: TextServer) -> Tokenizer:
    return served.service.tokenizer


def greedy(served: TextServer, ids: Sequence[int], count: int) -> list[int]:
    """What the likeliest continuation is, by the reference."""
    assert served.reference is not None
    found = list(ids)
    for _ in range(count):
        found.append(int(np.argmax(served.reference(found))))
    return found[len(ids) :]


def test_greedy_text_is_the_likeliest_and_its_tokens_are_counted(served: TextServer) -> None:
    ids = ids_of(served, PROMPT)
    answer = complete(served, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == "small"
    assert answer.id.startswith("cmpl-")
    assert len(answer.id) >= 32
    assert answer.choices[0].text == tokenizer(served).decode(greedy(served, ids, 8))
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == len(ids) + 8


def test_texts_and_ids_are_the_same_prompt(served: TextServer) -> None:
    ids = ids_of(served, PROMPT)
    texts = {
        choice(served, prompt=prompt, temperature=0).text
        for prompt in (PROMPT, [PROMPT], ids, [ids])
    }
    assert len(texts) == 1
    both = complete(served, prompt=["the", PROMPT], temperature=0, n=2).choices
    assert [c.index for c in both] == [0, 1, 2, 3]
    alone = [choice(served, prompt=prompt, temperature=0).text for prompt in ("the", PROMPT)]
    assert [c.text for c in both] == [alone[0], alone[0], alone[1], alone[1]]


def test_without_a_prompt_a_document_begins(served: TextServer) -> None:
    start = list(served.service.conventions.document_start)
    assert choice(served, prompt=None, temperature=0).text == tokenizer(served).decode(
        greedy(served, start, 8)
    )


def test_defaults_are_openais(served: TextServer) -> None:
    answer = served.client.completions.create(model="small", prompt=PROMPT)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16
    given = complete(served, max_tokens=16, temperature=1, top_p=1, n=1)
    assert complete(served, max_tokens=None, temperature=None, top_p=None, n=None).choices == (
        given.choices
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"n": 3},
        {"logprobs": 2},
        {"logprobs": 0, "echo": True},
        {"logprobs": 3, "echo": True, "n": 2, "prompt": ["see", PROMPT]},
        {"logprobs": 1, "echo": True, "max_tokens": 0, "n": 2},
        {"echo": True},
        {"stop": ["a", " t"], "logprobs": 1, "max_tokens": 40},
        {"max_tokens": 60, "n": 2},
    ],
    ids=str,
)
def test_streamed_is_whole(served: TextServer, given: dict[str, Any]) -> None:
    answer = complete(served, **given)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = list(complete(served, **given, **options))
    assert merged(events) == [c.model_dump() for c in answer.choices]
    assert {event.id for event in events} == {events[0].id}
    assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].choices == []
    assert events[-1].usage.model_dump() | {"prompt_tokens_details": None} == (
        answer.usage.model_dump() | {"prompt_tokens_details": None}
    )


def test_a_stream_counts_tokens_only_if_asked(served: TextServer) -> None:
    events = list(complete(served, stream=True))
    assert all(event.usage is None for event in events)
    assert len(events[-1].choices) == 1


def test_logprobs_are_the_models_own(served: TextServer) -> None:
    found = choice(served, temperature=0.7, logprobs=3).logprobs
    assert found is not None
    check_logprobs(served, ids_of(served, PROMPT), found.model_dump(), num_alternatives=3)


def check_logprobs(
    served: TextServer, context: Sequence[int], found: dict[str, Any], *, num_alternatives: int
) -> None:
    """Compare tokens that follow a context with the reference."""
    assert served.reference is not None
    names = [tokenizer(served).token_bytes(i) for i in range(tokenizer(served).vocab_size)]
    ids = list(context)
    for token, logprob, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        row = served.reference(ids)
        ids.append(next(i for i, name in enumerate(names) if name == bytes_of(token)))
        assert logprob == pytest.approx(row[ids[-1]], abs=1e-4)
        assert top[token] == logprob
        assert len(top) in (num_alternatives, num_alternatives + 1)
        likeliest = np.sort(row)[::-1][:num_alternatives]
        assert sorted(top.values(), reverse=True)[:num_alternatives] == pytest.approx(
            likeliest, abs=1e-4
        )


def bytes_of(token: str) -> bytes:
    """The bytes of a token as it is shown."""
    if token.startswith("bytes:"):
        return token[6:].encode().decode("unicode_escape").encode("latin-1")
    return token.encode()


def test_scoring_a_text_gives_every_token_but_the_first_its_log_probability(
    served: TextServer,
) -> None:
    scored = complete(served, max_tokens=0, echo=True, logprobs=1)
    found = scored.choices[0].logprobs
    assert found is not None
    assert scored.choices[0].text == PROMPT
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0
    own = tokenizer(served).encode(PROMPT)
    lists = found.model_dump()
    # The token that begins the document is not of the client, and so not shown.
    assert len(lists["tokens"]) == len(own)
    assert [values[0] for values in (lists["token_logprobs"], lists["top_logprobs"])] == [None] * 2
    rest = {name: values[1:] for name, values in lists.items()}
    context = ids_of(served, PROMPT)[: 1 - len(own)] if len(own) > 1 else ids_of(served, PROMPT)
    check_logprobs(served, context, rest, num_alternatives=1)


def test_scoring_ids_shows_each_of_them(served: TextServer) -> None:
    ids = ids_of(served, PROMPT)
    found = choice(served, prompt=[ids], max_tokens=1, echo=True, logprobs=1, temperature=0)
    assert found.logprobs is not None
    lists = found.logprobs.model_dump()
    # One number for each id and one for the new token: what lm-evaluation-harness counts on.
    assert len(lists["token_logprobs"]) == len(ids) + 1
    assert lists["token_logprobs"][0] is None
    rest = {name: values[1:] for name, values in lists.items()}
    check_logprobs(served, ids[:1], rest, num_alternatives=1)
    assert found.text == tokenizer(served).decode([*ids, *greedy(served, ids, 1)])


@pytest.mark.parametrize("max_tokens", [1, 7])
def test_the_end_of_a_scored_text_has_its_number_too(served: TextServer, max_tokens: int) -> None:
    ids = ids_of(served, PROMPT)
    [end] = sorted(served.service.conventions.stop_ids)[:1]
    given: dict[str, Any] = {"logit_bias": {str(end): 100}, "logprobs": 1, "echo": True}
    answer = complete(served, prompt=[ids], max_tokens=max_tokens, **given)
    found = answer.choices[0].logprobs
    assert found is not None
    lists = found.model_dump()
    # As OpenAI's API has it: without it, who takes one token to be new takes one of the prompt.
    assert [len(values) for values in lists.values()] == [len(ids) + 1] * 4
    rest = {name: values[1:] for name, values in lists.items()}
    check_logprobs(served, ids[:1], rest, num_alternatives=1)
    assert lists["text_offset"][-1] == len(answer.choices[0].text)
    assert answer.choices[0].text == tokenizer(served).decode(ids)
    assert (answer.usage and answer.usage.completion_tokens) == 0
    events = list(complete(served, prompt=[ids], max_tokens=max_tokens, **given, stream=True))
    assert merged(events) == [choice.model_dump() for choice in answer.choices]
    given["echo"] = False
    unscored = choice(served, prompt=[ids], max_tokens=max_tokens, **given).logprobs
    assert unscored is not None
    assert unscored.tokens == []


@pytest.mark.parametrize("echo", [False, True])
def test_offsets_say_where_tokens_begin_in_the_text(served: TextServer, echo: bool) -> None:
    found = choice(served, prompt="naïve €", echo=echo, logprobs=0, max_tokens=20)
    assert found.logprobs is not None
    tokens, offsets = found.logprobs.tokens or [], found.logprobs.text_offset or []
    assert len(tokens) == len(offsets)
    assert offsets[0] == 0
    data = found.text.encode()
    for (token, offset), (_, following) in pairwise(zip(tokens, offsets, strict=True)):
        assert offset <= following
        if not token.startswith("bytes:"):
            assert found.text[offset:].startswith(token)
    if echo:
        shown = b"".join(bytes_of(token) for token in tokens)
        assert shown.startswith("naïve €".encode())
        assert data.startswith("naïve €".encode())


def test_the_same_seed_gives_the_same_text(served: TextServer) -> None:
    first = complete(served, n=4, seed=5, max_tokens=12)
    texts = [c.text for c in first.choices]
    assert [c.text for c in complete(served, n=4, seed=5, max_tokens=12).choices] == texts
    assert [c.text for c in complete(served, n=2, seed=5, max_tokens=12).choices] == texts[:2]
    assert [c.text for c in complete(served, n=4, seed=6, max_tokens=12).choices] != texts
    assert len(set(texts)) > 1
    unseeded = {complete(served, seed=None, max_tokens=12).choices[0].text for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_text_ends_before_a_stop_string(served: TextServer, stop_at: int) -> None:
    ids = greedy(served, ids_of(served, PROMPT), 8)
    text = tokenizer(served).decode(ids)
    stop = text[stop_at : stop_at + 2]
    answer = complete(served, temperature=0, stop=["\0", stop], logprobs=0)
    ended = answer.choices[0]
    assert ended.text == text[: text.index(stop)]
    assert ended.finish_reason == "stop"
    assert complete(served, temperature=0, stop=stop).choices[0].text == ended.text
    # Tokens that begin in the text; those that were made until the stop string was complete.
    assert ended.logprobs is not None
    assert all(offset < len(ended.text) for offset in ended.logprobs.text_offset or [])
    needed = next(count for count in range(1, 9) if stop in tokenizer(served).decode(ids[:count]))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == needed


def test_logit_bias_forces_and_forbids(served: TextServer) -> None:
    [letter] = tokenizer(served).encode("q")
    assert choice(served, logit_bias={str(letter): 100}, max_tokens=5).text == "qqqqq"
    [likeliest] = greedy(served, ids_of(served, PROMPT), 1)
    without = choice(served, logit_bias={str(likeliest): -100}, temperature=0, max_tokens=1)
    assert without.text != tokenizer(served).decode([likeliest])


def test_the_end_of_the_text_ends_it(served: TextServer) -> None:
    [end] = sorted(served.service.conventions.stop_ids)[:1]
    answer = complete(served, logit_bias={str(end): 100})
    assert answer.choices[0].text == ""
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    on = complete(served, logit_bias={str(end): 100}, extra_body={"ignore_eos": True})
    assert on.choices[0].finish_reason == "length"
    assert on.usage is not None
    assert on.usage.completion_tokens == 8


def test_best_of_chooses_the_highest_log_probability_per_token(served: TextServer) -> None:
    given: dict[str, Any] = {"max_tokens": 10, "seed": 1}
    every = complete(served, n=6, logprobs=0, **given)
    values = [(c.logprobs and c.logprobs.token_logprobs) or [] for c in every.choices]
    means = [float(np.mean(v)) if v else -np.inf for v in values]
    ranked = sorted(range(6), key=means.__getitem__, reverse=True)
    best = complete(served, n=2, best_of=6, **given)
    assert [c.text for c in best.choices] == [every.choices[index].text for index in ranked[:2]]
    assert [c.index for c in best.choices] == [0, 1]
    assert best.usage is not None
    assert every.usage is not None
    assert best.usage.completion_tokens == every.usage.completion_tokens


def test_a_text_keeps_to_a_schema(served: TextServer) -> None:
    schema = {
        "type": "object",
        "properties": {"sky": {"enum": ["blue", "grey"]}, "birds": {"type": "boolean"}},
        "required": ["sky", "birds"],
        "additionalProperties": False,
    }
    wrapped = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
    for options in ({}, {"n": 2}):
        answer = complete(
            served, max_tokens=200, extra_body={"response_format": wrapped}, **options
        )
        for found in answer.choices:
            value = json.loads(found.text)
            assert value["sky"] in ("blue", "grey")
            assert value["birds"] in (True, False)
            assert found.finish_reason == "stop"


def test_a_text_keeps_to_a_grammar(served: TextServer) -> None:
    rules = 'root ::= "yes" | "no"'
    texts = {choice(served, seed=seed, extra_body={"grammar": rules}).text for seed in range(12)}
    assert texts <= {"yes", "no"}


def test_the_models_are_listed(served: TextServer) -> None:
    names = [model.id for model in served.client.models.list()]
    assert names[0] == served.service.model
    for name in (*names, *served.service.aliases):
        assert served.client.models.retrieve(name).id == name
