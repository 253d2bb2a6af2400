"""Loops that draft: the same choices whoever drafts, and fewer passes when the drafts are right."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.core.errors import UsageError
from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.generate import GenerationRequest, Sample, generate
from bluejay.generation.runner import Runner
from bluejay.generation.sampling import Choice
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.speculation import LookupDrafter, Speculation, SpeculativeLoop
from bluejay.generation.speculation_length import Acceptance, PassTimes
from bluejay.generation.speculation_model import ModelDrafter
from small_models import drawn_params
from speculation_models import FAMILIES, VOCAB, loop_of, params_of, prompt_of, runner_of

DRAWN = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.1, seed=5)
MAX_TOKENS = 60
ALL = np.ones(VOCAB, np.bool_)


class ScriptedDrafter:
    """Drafts a given text, shifted by `error`, as if it cost nothing."""

    is_free, cost = True, 0.0

    def __init__(self, text: Sequence[int], *, error: int = 0) -> None:
        self._text = [(token + error) % VOCAB for token in text]
        self._at = 0

    def acceptance(self) -> Acceptance:
        return Acceptance((0,), (0.9,))

    def kind(self) -> int:
        return 0 if self._at < len(self._text) else -1

    def proposal(self, count: int) -> list[int]:
        return self._text[self._at : self._at + count]

    def extend(self, ids: Sequence[int]) -> None:
        self._at += len(ids)

    def num_programs(self) -> int:
        return 0


class Clock:
    """Every call takes a second, whatever it does, and what it is told to spend beside that."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 0.5
        return self._now

    def spend(self, seconds: float) -> None:
        self._now += seconds


def decode_loop(max_tokens: int = MAX_TOKENS) -> DecodeLoop:
    return loop_of(runner_of("gptj"), prompt_of(20), DRAWN, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def expected() -> list[Choice]:
    loop, found = decode_loop(), list[Choice]()
    while loop.remaining:
        found += loop.advance(1)[0]
    return found


def written(loop: SpeculativeLoop, inner: DecodeLoop) -> tuple[list[Choice], int]:
    """All choices, and how many calls they took."""
    found, calls = list[Choice](), 0
    while inner.remaining:
        found += loop.advance()[0]
        calls += 1
    return found, calls


def scripted(
    expected: list[Choice], *, error: int, per_position: float = 0.0
) -> tuple[list[Choice], int, SpeculativeLoop]:
    inner, clock = decode_loop(), Clock()
    check = inner.check

    def slow_check(drafted: Sequence[int], *, positions: int) -> list[Choice]:
        clock.spend(per_position * positions)
        return check(drafted, positions=positions)

    inner.check = slow_check  # type: ignore[method-assign]
    drafter = ScriptedDrafter([choice.id for choice in expected], error=error)
    loop = SpeculativeLoop(inner, drafter, times=PassTimes(), counts_loading=False, clock=clock)
    return *written(loop, inner), loop


def test_right_drafts_are_taken_whole(expected: list[Choice]) -> None:
    found, calls, loop = scripted(expected, error=0)
    assert found == expected
    assert loop.num_accepted == loop.num_drafted > MAX_TOKENS // 2
    assert calls < MAX_TOKENS // 4


def test_wrong_drafts_are_given_up(expected: list[Choice]) -> None:
    """A position costs a fifth of a step: after a few failures ordinary steps go on."""
    found, _, loop = scripted(expected, error=1, per_position=0.2)
    assert found == expected
    assert loop.num_accepted == 0
    assert 0 < loop.num_drafted < MAX_TOKENS


def test_right_drafts_that_cost_more_than_steps_are_given_up(expected: list[Choice]) -> None:
    """The first pass of a size loads its program, the second tells what it costs."""
    found, _, loop = scripted(expected, error=0, per_position=3.0)
    assert found == expected
    assert 0 < loop.num_drafted < MAX_TOKENS - 15


def test_a_model_that_drafts_for_itself_is_always_right(expected: list[Choice]) -> None:
    """Equal parameters, equal random numbers: equal draws, penalties included."""
    inner = decode_loop()
    drafter = ModelDrafter(runner_of("gptj"), prompt_of(20), inner)
    loop = SpeculativeLoop(inner, drafter, times=PassTimes(), counts_loading=False, clock=Clock())
    found, calls = written(loop, inner)
    assert found == expected
    assert loop.num_accepted == loop.num_drafted > MAX_TOKENS // 2
    assert calls < MAX_TOKENS // 4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_another_model_drafts(family: str, expected: list[Choice]) -> None:
    """Random parameters of another family, hardly ever right: nothing changes."""
    inner = decode_loop()
    drafter = ModelDrafter(runner_of(family), prompt_of(20), inner)
    loop = SpeculativeLoop(inner, drafter, times=PassTimes(), counts_loading=False, clock=Clock())
    assert written(loop, inner)[0] == expected
    assert loop.num_drafted > 0


def test_a_draft_model_catches_up_after_ordinary_steps(expected: list[Choice]) -> None:
    """What it drafts does not depend on what it drafted before."""
    inner = decode_loop()
    drafter = ModelDrafter(runner_of("gptj"), prompt_of(20), inner)
    text = [choice.id for choice in expected]
    drafter.extend([choice.id for choice in inner.advance(1)[0]])
    at = 1
    for steps in (1, 2, 7, 20):
        assert drafter.proposal(6) == text[at : at + 6]
        for _ in range(steps):
            drafter.extend([choice.id for choice in inner.advance(1)[0]])
            at += 1


def test_a_draft_model_stops_at_the_end_of_its_own_context() -> None:
    config = replace(FAMILIES["gptj"], context_length=64)
    short = Runner(params_of("gptj"), config=config)
    inner = decode_loop(max_tokens=100)
    drafter = ModelDrafter(short, prompt_of(20), inner)
    loop = SpeculativeLoop(inner, drafter, times=PassTimes(), counts_loading=False, clock=Clock())
    found, _ = written(loop, inner)
    other = decode_loop(max_tokens=100)
    assert found == [choice for _ in range(100) for choice in other.advance(1)[0]]
    assert 0 < loop.num_drafted < 64


@pytest.mark.parametrize("rows", [VOCAB - 5, VOCAB + 7])
def test_a_vocabulary_filled_up_to_another_size_drafts_too(
    rows: int, expected: list[Choice]
) -> None:
    config = replace(FAMILIES["gptj"], vocab_size=rows)
    inner = decode_loop()
    drafter = ModelDrafter(Runner(drawn_params(config), config=config), prompt_of(20), inner)
    loop = SpeculativeLoop(inner, drafter, times=PassTimes(), counts_loading=False, clock=Clock())
    assert written(loop, inner)[0] == expected


def test_look_ups_find_what_the_prompt_repeats() -> None:
    """A bias makes the model copy: it must repeat one id for ever."""
    copying = SamplingParams(temperature=0, logit_bias={9: 100})
    inner = loop_of(runner_of("gptj"), prompt_of(20), copying, max_tokens=MAX_TOKENS)
    drafter = LookupDrafter(prompt_of(20))
    loop = SpeculativeLoop(inner, drafter, times=PassTimes(), counts_loading=False, clock=Clock())
    found, calls = written(loop, inner)
    assert [choice.id for choice in found] == [9] * MAX_TOKENS
    assert loop.num_accepted > MAX_TOKENS // 2
    assert calls < MAX_TOKENS // 3


def ids_of(samples: Sequence[Sample]) -> list[list[int]]:
    last = {(sample.request_index, sample.sample_index): sample.ids for sample in samples}
    return [last[key] for key in sorted(last)]


def test_samples_and_prompts_are_the_same_with_every_speculation() -> None:
    runner = runner_of("gptj")
    requests = [
        GenerationRequest(prompt_ids=prompt_of(30, seed=2), max_tokens=30, sampling=DRAWN),
        GenerationRequest(prompt_ids=[4, 5, 6, 4, 5], max_tokens=9, sampling=DRAWN, num_samples=2),
    ]
    found = [
        ids_of(list(generate(runner, asked, allowed=ALL, speculation=speculation)))
        for asked in (requests, requests[:1])
        for speculation in (
            Speculation(mode="off"),
            Speculation(),
            Speculation(mode="ngram"),
            Speculation(draft=runner),
        )
    ]
    assert found[:4] == [found[0]] * 4
    assert found[4:] == [found[0][:1]] * 4


def test_where_positions_change_bits_nothing_is_speculated() -> None:
    """bfloat16 rows go through XLA."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params_of("gptj"))
    narrow = Runner(params, config=FAMILIES["gptj"])
    assert not narrow.repeats_positions
    request = GenerationRequest(prompt_ids=[9] * 20, max_tokens=20)
    [last] = list(generate(narrow, [request], allowed=ALL))[-1:]
    assert last.num_drafted == 0
    for speculation in (Speculation(mode="ngram"), Speculation(draft=runner_of("gptj"))):
        with pytest.raises(UsageError, match="Speculation needs the native kernels and float32"):
            next(generate(narrow, [request], allowed=ALL, speculation=speculation))


def test_modes_that_do_not_exist_or_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match="speculation must be auto, ngram, off, not 'fast'"):
        Speculation(mode="fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leaves the draft model without work"):
        Speculation(mode="off", draft=runner_of("gptj"))
