"""How requests end that do not end by themselves: cancelled, failed, in a batch that fails."""

import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.core import failpoints
from bluejay.generation.engine import MOST_RESTARTS, SlotEngine
from bluejay.generation.engine_requests import (
    EngineRequest,
    EngineStoppedError,
    Failed,
    Finished,
    NewTokens,
    PromptProgress,
)
from bluejay.generation.runner import Runner
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.slot_device import CallForm, SlotDevice
from bluejay.generation.slot_rows import SlotRow, fixed_numbers
from bluejay.kernels.library import cpu_library
from bluejay.model.presets import gptj_config
from engine_models import LIMITS, PATIENCE, Client, expected, prompts_of, running, wait_until
from small_models import drawn_params
from speculation_models import FAMILIES, params_of, runner_of

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
RUNNER = runner_of("llama", 4, "float16")
PROMPT, LONG, OTHER = prompts_of([40, 400, 100])
REQUEST = EngineRequest(prompts=[PROMPT], max_tokens=30, sampling=SamplingParams(seed=5))
NOBODY = [
    EngineRequest(prompts=[OTHER], max_tokens=12, sampling=SamplingParams(seed=number))
    for number in range(3)
]


def fail_at(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(failpoints, "_passed", Counter[str]())
    monkeypatch.setenv("BLUEJAY_FAILPOINT", f"{place}:full")


def is_at_rest(engine: SlotEngine) -> bool:
    status = engine.status()
    return status.slots_in_use == status.queued_requests == status.queued_tokens == 0


def test_cancelled_in_the_queue_in_a_prompt_and_in_the_middle_of_a_text() -> None:
    heard: dict[str, Client] = {}

    def cancel_reading(client: Client, event: object) -> None:
        if isinstance(event, PromptProgress) and event.num_done >= 256:
            heard["reading"] = client
            client.cancel()

    def cancel_writing(client: Client, event: object) -> None:
        if len(client.tokens) >= 5:
            heard["writing"] = client
            client.cancel()

    with running(RUNNER, limits=replace(LIMITS, num_slots=2)) as engine:
        reading = Client(engine, replace(REQUEST, prompts=[LONG]), cancel_reading)
        writing = Client(engine, replace(REQUEST, max_tokens=400), cancel_writing)
        queued = [Client(engine, request) for request in NOBODY]
        for client in queued[:2]:
            client.cancel()
        wait_until(lambda: len(heard) == 2)
        assert queued[2].wait().tokens == expected(RUNNER, NOBODY[2])
        wait_until(lambda: is_at_rest(engine))
        counts = [len(client.events) for client in (reading, writing, *queued)]
        for client in (reading, writing, *queued):
            client.cancel()  # a second time, or too late: without effect
        status = engine.status()
        assert (status.cancelled, status.finished, status.failed) == (4, 1, 0)
        assert queued[0].events == queued[1].events == []
        assert not reading.tokens
        assert isinstance(reading.events[-1], PromptProgress)
        assert isinstance(writing.events[-1], NewTokens)
        # What was written is a beginning of the text, and of the whole text not much more.
        assert writing.tokens == expected(RUNNER, REQUEST)[: len(writing.tokens)]
        assert len(writing.tokens) < 30
        assert Client(engine, REQUEST).wait().tokens == expected(RUNNER, REQUEST)
        assert [len(client.events) for client in (reading, writing, *queued)] == counts


def test_cancelling_from_another_thread_frees_the_slot_soon() -> None:
    with running(RUNNER, limits=replace(LIMITS, num_slots=1)) as engine:
        endless = Client(engine, replace(REQUEST, max_tokens=470))
        wait_until(lambda: len(endless.tokens) > 3)
        endless.cancel()
        seen = len(endless.tokens)
        after = Client(engine, REQUEST).wait()
        assert after.tokens == expected(RUNNER, REQUEST)
        assert endless.ending is None
        assert len(endless.tokens) <= seen + 16  # a call that was running may have been heard


def test_a_batch_that_fails_takes_its_own_requests_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running(RUNNER, limits=replace(LIMITS, num_slots=2)) as engine:
        fail_at(monkeypatch, "engine-decode@2")
        clients = [Client(engine, replace(REQUEST, sample_index=number)) for number in range(4)]
        endings = [client.wait().ending for client in clients]
        hit = [number for number, ending in enumerate(endings) if isinstance(ending, Failed)]
        assert 0 in hit
        assert len(hit) <= 2
        assert all(ending.is_transient for ending in endings if isinstance(ending, Failed))
        for number in {0, 1, 2, 3} - {*hit}:
            request = replace(REQUEST, sample_index=number)
            assert clients[number].tokens == expected(RUNNER, request)
        wait_until(lambda: is_at_rest(engine))
        status = engine.status()
        assert status.is_ready
        assert (status.failed, status.finished) == (len(hit), 4 - len(hit))


def test_a_prompt_that_fails_leaves_a_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Client] = []

    def join(client: Client, event: object) -> None:
        if client.tokens and not late:
            fail_at(monkeypatch, "engine-prefill@2")
            late.append(Client(engine, replace(REQUEST, prompts=[LONG])))

    with running(RUNNER) as engine:
        writing = Client(engine, replace(REQUEST, max_tokens=100), join).wait()
        assert isinstance(late[0].wait().ending, Failed)
        assert writing.tokens == expected(RUNNER, replace(REQUEST, max_tokens=100))
        assert Client(engine, REQUEST).wait().tokens == expected(RUNNER, REQUEST)


def test_a_program_that_fails_leaves_other_slots_as_they_are() -> None:
    """What the device itself refuses: here the number of a cache that never was."""
    [kept] = prompts_of([300])
    reused = replace(REQUEST, prompts=[kept])

    forged: list[Client] = []

    def forge(client: Client, event: object) -> None:
        if len(client.tokens) >= 3 and not forged:
            forged.append(client)
            engine._device._cache = jax.device_put(np.array([2**31 - 1], np.int32))

    with running(RUNNER) as engine:
        before = Client(engine, reused).wait()
        failing = Client(engine, REQUEST, forge).wait()
        assert isinstance(failing.ending, Failed)
        assert failing.ending.is_transient
        assert "send it again" in failing.ending.message
        again = Client(engine, reused).wait()
        assert again.progress.num_cached == 256 + 2 * 16
        assert again.tokens == before.tokens == expected(RUNNER, reused)
        assert engine.status().recompiles == 0


def test_a_fault_of_the_engine_costs_those_who_run_and_nobody_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running(RUNNER, limits=replace(LIMITS, num_slots=2)) as engine:
        fail_at(monkeypatch, "engine-step@5")
        requests = [
            replace(REQUEST, sample_index=number, tenant="ab"[number % 2]) for number in range(6)
        ]
        clients = [Client(engine, request) for request in requests]
        endings = [client.wait().ending for client in clients]
        hit = [number for number, ending in enumerate(endings) if isinstance(ending, Failed)]
        assert 0 in hit
        assert len(hit) <= 2
        for number in {*range(6)} - {*hit}:
            assert clients[number].tokens == expected(RUNNER, requests[number])
        for client in clients:
            client.cancel()  # too late: without effect
        wait_until(lambda: is_at_rest(engine))
        status = engine.status()
        assert status.is_ready
        assert (status.restarts, status.recompiles) == (1, 0)
        assert (status.failed, status.finished) == (len(hit), 6 - len(hit))
        assert Client(engine, REQUEST).wait().tokens == expected(RUNNER, REQUEST)
        assert [len(client.events) for client in clients if client.ending] == [
            len(client.events) for client in clients
        ]


def test_an_engine_that_cannot_go_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(RUNNER, limits=replace(LIMITS, num_slots=1)) as engine:
        fail_at(monkeypatch, "engine-step@5+")
        clients = [Client(engine, REQUEST) for _ in range(9)]
        endings = [client.wait().ending for client in clients]
        assert all(isinstance(ending, Failed) and ending.is_transient for ending in endings)
        wait_until(lambda: engine.status().is_failed)
        status = engine.status()
        assert not status.is_ready
        assert status.restarts == MOST_RESTARTS
        with pytest.raises(EngineStoppedError):
            Client(engine, REQUEST)


def test_a_device_that_always_fails_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(RUNNER, limits=replace(LIMITS, num_slots=1)) as engine:

        def refuse(step: object) -> None:
            raise OSError("gone")

        monkeypatch.setattr(engine._device, "prefill", refuse)
        clients = [Client(engine, REQUEST) for _ in range(20)]
        assert all(isinstance(client.wait().ending, Failed) for client in clients)
        wait_until(lambda: engine.status().is_failed)


def test_weights_that_are_damaged_fail_the_rows_that_read_them() -> None:
    config, params = FAMILIES["gptj"], params_of("gptj")
    damaged = replace(params, embedding=params.embedding.at[7].set(jnp.nan))
    runner = Runner(damaged, config=config)
    [prompt] = prompts_of([20])
    sound = [token if token != 7 else 8 for token in prompt]
    request = EngineRequest(
        prompts=[sound],
        max_tokens=10,
        sampling=SamplingParams(temperature=0, logit_bias={7: -100.0}),
    )
    with running(runner) as engine:
        good, bad = (
            Client(engine, replace(request, prompts=[ids])) for ids in (sound, [*sound, 7])
        )
        ending = bad.wait().ending
        assert isinstance(ending, Failed)
        assert not ending.is_transient
        assert "not finite numbers" in ending.message
        assert not bad.tokens
        assert good.wait().ending == Finished(reason="length")
        assert good.tokens == expected(runner_of("gptj"), request)


def test_a_listener_that_fails_ends_its_own_request() -> None:
    def fail(client: Client, event: object) -> None:
        raise ValueError("no such window")

    with running(RUNNER) as engine:
        failing = Client(engine, REQUEST, fail)
        other = Client(engine, NOBODY[0]).wait()
        wait_until(lambda: engine.status().cancelled == 1)
        assert other.tokens == expected(RUNNER, NOBODY[0])
        assert len(failing.events) == 1


def test_a_call_is_short_when_others_wait() -> None:
    """Between two events of a text no more than 16 ids come, and one at a time beside a prompt."""
    sizes: list[int] = []

    def note(client: Client, event: object) -> None:
        if isinstance(event, NewTokens):
            sizes.append(len(event.scores))

    with running(RUNNER) as engine:
        Client(engine, replace(REQUEST, max_tokens=400), note).wait()
    assert max(sizes) <= 16
    assert np.sum(sizes) == 400


def test_a_cancelled_request_and_a_new_one_end_a_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls here take as many steps as there is room for: who waited for their end would see it."""
    endless, short = replace(REQUEST, max_tokens=450), replace(NOBODY[0], max_tokens=3)
    with running(RUNNER) as engine:
        device, begun, taken = engine._device, threading.Event(), list[int]()
        decode, halt = device.decode, threading.Event()

        def watched(*arguments: Any, **given: Any) -> int:
            begun.set()
            assert halt.wait(PATIENCE)
            taken.append(decode(*arguments, **given))
            return taken[-1]

        monkeypatch.setattr(device, "decode", watched)
        for end in ("cancelled", "joined"):
            begun.clear()
            halt.clear()
            first = Client(engine, endless)
            assert begun.wait(PATIENCE)
            if end == "cancelled":
                first.cancel()
            else:
                second = Client(engine, short)
            halt.set()
            wait_until(lambda: len(taken) > 0)
            assert taken[0] == 1
            if end == "joined":
                assert second.wait().tokens == expected(RUNNER, short)
                assert first.wait().tokens == expected(RUNNER, endless)
            else:
                wait_until(lambda: is_at_rest(engine))
            taken.clear()


def test_words_are_told_while_their_call_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In calls of 16 steps: nearly each word is an event of its own, and one who cancels in the
    middle of a call gets no more, nor does the device go on for it."""
    monkeypatch.setattr("bluejay.generation.engine.time_apart", lambda _count: 0.0)
    config = replace(gptj_config(2, 768, 8, rotary_dim=8, vocab_size=97), context_length=512)
    slow = Runner(drawn_params(config), config=config)  # two milliseconds a step
    endless = replace(REQUEST, max_tokens=450)
    sizes: list[int] = []

    def note(client: Client, event: object) -> None:
        if isinstance(event, NewTokens):
            sizes.append(len(event.scores))
            if len(client.tokens) >= 20:
                client.cancel()

    with running(slow, limits=replace(LIMITS, num_slots=2)) as engine:
        device, taken = engine._device, list[int]()
        decode = device.decode
        monkeypatch.setattr(
            device,
            "decode",
            lambda *given, **named: taken.append(decode(*given, **named)) or taken[-1],
        )
        other = Client(engine, replace(NOBODY[0], max_tokens=60))
        first = Client(engine, endless, note)
        assert other.wait().tokens == expected(slow, replace(NOBODY[0], max_tokens=60))
        wait_until(lambda: engine.status().cancelled == 1)
        wait_until(lambda: is_at_rest(engine))
        assert np.median(sizes) == 1
        assert sum(sizes[:-1]) < 20
        assert first.ids == [score.id for score in expected(slow, endless)[: len(first.ids)]]
        assert max(taken) <= 16
        # The call of its 20th word was cut short: those that were not are as long as they may be.
        assert sum(count not in (1, 16) for count in taken) >= 1


def test_who_is_patient_is_told_seldom_and_costs_few_wake_ups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [
        EngineRequest(
            prompts=[ids], max_tokens=200, sampling=SamplingParams(seed=at), is_patient=True
        )
        for at, ids in enumerate(prompts_of([40, 50]))
    ]
    with running(RUNNER) as engine:
        device, heard = engine._device, list[int]()
        decode = device.decode

        def counted(*given: Any, hear: Any, **named: Any) -> int:
            def noted(choices: Any, is_last: bool) -> None:
                heard.append(len(choices.ids))
                hear(choices, is_last)

            return decode(*given, hear=noted, **named)

        monkeypatch.setattr(device, "decode", counted)
        begun = time.monotonic()
        clients = [Client(engine, request) for request in requests]
        for client, request in zip(clients, requests, strict=True):
            assert client.wait().tokens == expected(RUNNER, replace(request, is_patient=False))
        rests = (time.monotonic() - begun) / 0.2
        for client in clients:
            words = [event for event in client.events if isinstance(event, NewTokens)]
            assert len(words[0].scores) == 1
            assert len(words) <= 3 + rests
        assert np.median(heard) == 16


def test_a_call_ends_itself_with_the_first_row_that_does() -> None:
    """Nobody needs to listen for that: whose pauses are long loses no step."""
    device = SlotDevice(
        RUNNER, allowed=np.ones(RUNNER.config.vocab_size, np.bool_), num_slots=2, context_length=64
    )
    device.pause = lambda: 60.0
    rows = [
        SlotRow(slot=at, token=5, remaining=most, fixed=fixed_numbers(SamplingParams()))
        for at, most in enumerate((9, 3))
    ]
    heard: list[tuple[int, bool]] = []
    form = CallForm(is_full=False, has_alternatives=False)
    taken = device.decode(
        rows, form, num_steps=8, hear=lambda found, is_last: heard.append((len(found.ids), is_last))
    )
    assert taken == 3
    assert heard == [(3, True)]


def test_a_row_that_ends_in_the_middle_of_a_call_ends_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By an id that the device does not look for, and with somebody who goes on."""
    whole = expected(RUNNER, replace(NOBODY[1], max_tokens=40))
    stop = next(score.id for at, score in enumerate(whole) if at >= 5)
    place = next(at for at, score in enumerate(whole) if score.id == stop)
    unused = set(range(97)) - {score.id for score in whole}
    stop_ids = frozenset([*sorted(unused)[:12], stop])
    assert stop not in sorted(stop_ids)[:8]
    with running(RUNNER) as engine:
        other = Client(engine, replace(NOBODY[0], max_tokens=60))
        ending = Client(engine, replace(NOBODY[1], max_tokens=40, stop_ids=stop_ids))
        assert ending.wait().tokens == whole[:place]
        assert isinstance(ending.ending, Finished)
        assert ending.ending.reason == "stop"
        assert other.wait().tokens == expected(RUNNER, replace(NOBODY[0], max_tokens=60))
