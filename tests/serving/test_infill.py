import json
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from bluejay.generation.engine_requests import (
    EngineEvent,
    EngineLimits,
    EngineRequest,
    Finished,
    NewTokens,
    PromptProgress,
    TokenScore,
)
from bluejay.serving.infill import infill_routes
from bluejay.vocab.roles import SpecialRoles
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.tokenizer_json import build_backend
from serving.fake_engine import FakeEngine, TinyModel, scripted
from serving.live_server import PATIENCE
from serving.route_server import Client, serve_routes
from serving.text_server import END, NUM_ROWS, small_tokenizer
from tokenizers_for_tests import small_document

BEFORE, AFTER, BETWEEN, FILE = 260, 261, 262, 263


@cache
def marked_tokenizer() -> Tokenizer:
    """The small tokenizer with StarCoder's tokens for filling in."""
    document = small_document()
    names = {
        "<fim_prefix>": BEFORE,
        "<fim_suffix>": AFTER,
        "<fim_middle>": BETWEEN,
        "<file_sep>": FILE,
    }
    document["added_tokens"] += [
        {"id": number, "content": name, "special": True} for name, number in names.items()
    ]
    roles = SpecialRoles(bos=END, eos=END, document_start=END, stops=frozenset([END]))
    return Tokenizer(build_backend(document, where="marked"), roles=roles)


def says(text: str, **given: Any) -> Any:
    return scripted(small_tokenizer().encode(text), **given)


def infill(client: Client, prefix: str = "def f(", suffix: str = "", **body: Any) -> dict[str, Any]:
    body = {"input_prefix": prefix, "input_suffix": suffix, "samplers": [], "n_predict": 64} | body
    found: dict[str, Any] = client.post("/infill", **body)
    return found


def filled(text: str, prefix: str = "def f(", suffix: str = "", **body: Any) -> dict[str, Any]:
    """What a server answers whose model says `text`."""
    with serve_routes(infill_routes, says(text)) as client:
        return infill(client, prefix, suffix, **body)


def prompt_of(client: Client, **body: Any) -> tuple[int, ...]:
    infill(client, **body)
    return tuple(client.engine.requests[-1].prompts[0])


@pytest.fixture(scope="module")
def plain() -> Iterator[Client]:
    with serve_routes(
        infill_routes,
        says("x"),
    ) as client:
        yield client


@pytest.fixture(scope="module")
def marked() -> Iterator[Client]:
    with serve_routes(infill_routes, says("x"), tokenizer=marked_tokenizer()) as client:
        yield client


def test_a_model_without_markers_reads_the_prefix_alone(plain: Client) -> None:
    ids = prompt_of(
        plain,
        prefix="a = 1\n",
        suffix="\nb = 2\n",
        prompt="c = ",
        input_extra=[
            {"text": "one\n", "time": [1, 2], "filename": "x.py"},
            {"text": "two", "filename": ""},
        ],
    )
    assert ids[0] == END
    assert small_tokenizer().decode(ids[1:]) == "one\ntwo\na = 1\nc = "


def test_a_model_with_markers_reads_both_sides(marked: Client) -> None:
    ids = prompt_of(
        marked, prefix="a = 1\n", suffix="\nb = 2\n", prompt="c = ", input_extra=[{"text": "one"}]
    )
    encode = marked_tokenizer().encode
    assert ids == (
        END, *encode("one\n"), BEFORE, *encode("a = 1\n"), AFTER, *encode("\nb = 2\n"), BETWEEN,
        *encode("c = "),
    )  # fmt: skip
    assert marked.engine.requests[-1].stop_ids == {END, BEFORE, AFTER, BETWEEN, FILE}
    # A name of a marker in the text is text.
    ids = prompt_of(marked, prefix="<fim_middle>", suffix="<fim_prefix>")
    assert [ids.count(marker) for marker in (BEFORE, AFTER, BETWEEN)] == [1, 1, 1]


def test_a_text_that_is_too_long_is_cut_far_from_the_cursor_in_steps() -> None:
    lines = [f"line {number:04d}\n" for number in range(400)]
    limits = EngineLimits(context_length=1024)
    for tokenizer in (small_tokenizer(), marked_tokenizer()):
        engine = FakeEngine(says("x"), limits=limits)
        with serve_routes(infill_routes, engine=engine, tokenizer=tokenizer) as client:
            found = infill(client, "".join(lines[:200]), "".join(lines[200:]))
            ids = engine.requests[-1].prompts[0]
            assert found["truncated"] is True
            assert len(ids) + 64 <= 1024
            text = tokenizer.decode(ids)
            assert "line 0199\n" in text
            assert "line 0000" not in text
            assert ("line 0200" in text) == (tokenizer is marked_tokenizer())
            assert "line 0399" not in text
            # A few letters more, and the prompt still begins where it did.
            infill(client, "".join(lines[:200]) + "abc", "".join(lines[200:]))
            assert engine.requests[-1].prompts[0][:500] == ids[:500]
            assert infill(client, "short")["truncated"] is False
        engine.close()


def test_other_texts_give_way_the_first_ones_first() -> None:
    engine = FakeEngine(says("x"), limits=EngineLimits(context_length=512))
    extra = [{"text": f"{letter * 150}\n"} for letter in "abcde"]
    with serve_routes(infill_routes, engine=engine) as client:
        found = infill(client, "p" * 100, input_extra=extra)
        text = small_tokenizer().decode(engine.requests[-1].prompts[0][1:])
        assert text == "d" * 150 + "\n" + "e" * 150 + "\n" + "p" * 100
        assert found["truncated"] is False
    engine.close()


@pytest.mark.parametrize(
    ("said", "suffix", "content", "word"),
    [
        # The suffix's next line begins again.
        (
            "x):\n    return x\nprint(f(1))\n",
            "\nprint(f(1))\n",
            "x):\n    return x",
            "\nprint(f(1))",
        ),
        ("x):\n    return x\n", "\n\n   \nprint(1)\n", "x):\n    return x\n", ""),
        # What stands behind the cursor on its line, once at the end of a line, once of the text.
        ("x, g(y)):\n", "):\n    pass\n", "x, g(y)", "):\n"),
        ("x, g(y))", ")\n    pass\n", "x, g(y)", ""),
        ("x)", "", "x)", ""),
        ("x\n)", "\n", "x\n)", ""),
    ],
)
def test_the_text_stops_where_the_suffix_begins_again(
    said: str, suffix: str, content: str, word: str
) -> None:
    found = filled(said, suffix=suffix)
    assert found["content"] == content
    assert found["stopping_word"] == word
    assert found["stop_type"] == ("word" if word else "eos")


def test_stop_strings_and_ends_have_their_names() -> None:
    found = filled("abc;def", stop=["xyz", ";"])
    assert (found["content"], found["stop_type"], found["stopping_word"]) == ("abc", "word", ";")
    assert filled("abcdef", n_predict=3)["stop_type"] == "limit"
    assert filled("abcdef", n_predict=3)["content"] == "abc"
    assert filled("abc")["stop_type"] == "eos"
    assert filled("ab\nc")["has_new_line"] is True


@pytest.mark.parametrize(
    ("said", "indent", "content"),
    [
        ("x = 1\n    y = 2\n  z = 3\n", 4, "x = 1\n    y = 2"),
        ("x = 1\n\n    y = 2\nend", 4, "x = 1\n\n    y = 2"),
        ("x = 1\n\ty\n\tz\n", 1, "x = 1\n\ty\n\tz\n"),
        ("x = 1\ny\n", 0, "x = 1\ny\n"),
        ("no indent here", 8, "no indent here"),
    ],
)
def test_a_line_with_less_white_space_ends_the_text(said: str, indent: int, content: str) -> None:
    assert filled(said, n_indent=indent)["content"] == content


def test_only_the_fields_that_are_asked_for(plain: Client) -> None:
    fields = ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "nothing/there"]
    found = infill(plain, response_fields=fields)
    assert set(found) == {"content", "timings/prompt_n", "timings/predicted_ms", "truncated"}
    assert infill(plain, response_fields=[""]) == {}
    whole = infill(plain)
    assert found["timings/prompt_n"] == whole["timings"]["prompt_n"]
    # llama.vim looks for this before it reads the answer as JSON.
    answer = plain.send("/infill", {"input_prefix": "a", "input_suffix": ""})
    assert b'"content":"' in answer.body


def test_timings_count_what_was_read_and_written() -> None:
    with serve_routes(infill_routes, says("abcde", num_cached=4)) as client:
        found = infill(client, "0123456789")
    timings = found["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (4, 7, 5)
    assert (found["tokens_evaluated"], found["tokens_cached"]) == (11, 16)
    assert timings["prompt_ms"] >= 0
    assert timings["prompt_per_second"] > 0


def test_reading_only_makes_no_token_and_is_not_hurried() -> None:
    with serve_routes(infill_routes, says("abc")) as client:
        found = infill(
            client, "", n_predict=0, t_max_prompt_ms=1, t_max_predict_ms=1,
            temperature=0.0, input_extra=[{"text": "something"}],
        )  # fmt: skip
        assert found["content"] == ""
        assert client.engine.requests[-1].max_tokens == 0
        assert client.engine.cancelled == []


def test_a_prompt_that_takes_too_long_gives_an_empty_text() -> None:
    gate = threading.Event()

    def slow(request: EngineRequest) -> Iterator[EngineEvent]:
        yield PromptProgress(num_done=1, num_tokens=len(request.prompts[0]), num_cached=0)
        assert gate.wait(PATIENCE)
        yield Finished(reason="stop")

    with serve_routes(infill_routes, slow) as client:
        found = infill(client, t_max_prompt_ms=20)
        assert (found["content"], found["stop_type"]) == ("", "limit")
        assert len(client.engine.cancelled) == 1
        gate.set()


def test_a_text_that_takes_too_long_ends_once_it_has_a_line() -> None:
    num_lines = 0

    def slow(request: EngineRequest) -> Iterator[EngineEvent]:
        nonlocal num_lines
        pause = threading.Event()
        for token in small_tokenizer().encode("ab\n" * request.max_tokens):
            pause.wait(0.005)
            num_lines += token == small_tokenizer().encode("\n")[0]
            yield NewTokens(scores=(TokenScore(id=token, logprob=-1.0),))

    with serve_routes(infill_routes, slow) as client:
        found = infill(client, n_predict=1000, t_max_predict_ms=30)
        assert found["stop_type"] == "limit"
        assert "\n" in found["content"]
        assert len(client.engine.cancelled) == 1


def test_all_that_fits_and_the_default_length(plain: Client) -> None:
    ids = prompt_of(plain, n_predict=-1)
    assert plain.engine.requests[-1].max_tokens == 2048 - len(ids)
    plain.post("/infill", input_prefix="a", input_suffix="")
    assert plain.engine.requests[-1].max_tokens == 128


def test_samplers_run_as_they_are_named() -> None:
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    left: list[set[int]] = []

    def answer(request: EngineRequest) -> Iterator[EngineEvent]:
        assert request.combine is not None
        logits = model.logprobs(request.prompts[0][-1])[None].astype(np.float32)
        left.append(set(np.flatnonzero(request.combine(logits) > -np.inf).tolist()))
        yield Finished(reason="length")

    with serve_routes(infill_routes, answer) as client:
        best = model.logprobs(small_tokenizer().encode("a")[-1]).argsort()[::-1].tolist()
        infill(client, "a", samplers=["top_k"], top_k=3)
        assert left[-1] == set(best[:3])
        infill(client, "a", samplers=[], top_k=3)
        assert len(left[-1]) == 260
        infill(client, "a", samplers=["temperature"], temperature=0)
        assert left[-1] == {best[0]}
        infill(client, "a", samplers=["penalties", "temperature"], temperature=0,
               repeat_penalty=1.0, frequency_penalty=9.0)  # fmt: skip
        assert left[-1] == {best[0]}
        client.post("/infill", input_prefix="a", input_suffix="")
        assert 1 <= len(left[-1]) <= 40
        infill(client, "a", samplers=["top_k", "top_p", "infill"], top_k=40, top_p=0.99)
        assert left[-1] == {END} or len(left[-1]) <= 5
        infill(client, "a", samplers=[], ignore_eos=True)
        assert END not in left[-1]
        infill(client, "a", samplers=[], grammar='root ::= "xyz"')
        assert left[-1] == {ord("x")}
        infill(client, "a", samplers=[], json_schema={"type": "integer"})
        assert left[-1] <= {ord(char) for char in "-0123456789"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 5}, "input_suffix"),
        ({"input_extra": [{"filename": "x"}]}, "input_extra[0].text"),
        ({"input_extra": [{"text": "a", "more": 1}]}, "input_extra[0].more"),
        ({"n_predict": -2}, "n_predict"),
        ({"n_predict": 2000}, "n_predict"),
        ({"n_indent": -1}, "n_indent"),
        ({"stream": True}, "stream"),
        ({"samplers": ["best"]}, "samplers"),
        ({"samplers": "kp"}, "samplers"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -2}, "seed"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "grammar"),
        ({"json_schema": {"type": "strong"}}, "json_schema"),
        ({"n_probs": 5}, "n_probs"),
        ({"mirostat": 2}, "mirostat"),
        ({"top_q": 1}, "top_q"),
        ({"model": "other"}, "model"),
    ],
)
def test_refusals_name_the_field(plain: Client, body: dict[str, Any], param: str) -> None:
    answer = plain.send("/infill", {"input_prefix": "a", "input_suffix": ""} | body)
    error = json.loads(answer.body)["error"]
    assert answer.status == (404 if param == "model" else 400)
    assert error["param"] == param
