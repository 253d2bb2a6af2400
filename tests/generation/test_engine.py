"""The engine against `generate`: the same bits in any company, and an end for everybody."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from bluejay.core.errors import UsageError
from bluejay.generation.engine import SlotEngine
from bluejay.generation.engine_requests import (
    EngineRequest,
    EngineStoppedError,
    Failed,
    Finished,
    QueueFullError,
)
from bluejay.generation.sampling_params import SamplingParams
from bluejay.kernels.library import cpu_library
from engine_models import LIMITS, Client, expected, prompts_of, running
from speculation_models import VOCAB, runner_of

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
RUNNER = runner_of("llama", 4, "float16")
SAMPLINGS = [
    SamplingParams(seed=1),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.7, top_p=0.9, seed=9, repetition_penalty=1.3),
    SamplingParams(seed=2**40 + 7, top_k=9, logit_bias={5: 3.0}, presence_penalty=0.3),
    SamplingParams(seed=3, min_p=0.02, typical_p=0.9, frequency_penalty=0.7, temperature=1.4),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[SlotEngine]:
    with running(RUNNER) as engine:
        yield engine


def mixed_requests() -> list[EngineRequest]:
    prompts = prompts_of([1, 3, 16, 17, 40, 64, 100, 130, 256, 300])
    return [
        EngineRequest(
            prompts=[prompt],
            max_tokens=1 + 7 * number % 30,
            sampling=SAMPLINGS[number % len(SAMPLINGS)],
            sample_index=number % 3,
            num_alternatives=(0, 4, 20)[number % 3],
            stop_ids=frozenset({11, 12}) if number % 4 == 1 else frozenset(),
        )
        for number, prompt in enumerate([*prompts, *prompts[:6]])
    ]


def test_a_crowd_gets_what_each_gets_alone(engine: SlotEngine) -> None:
    requests = mixed_requests()
    crowd = [Client(engine, request) for request in requests]
    for request, client in zip(requests, crowd, strict=True):
        assert client.wait().tokens == expected(RUNNER, request)
        met_stop = len(client.tokens) < request.max_tokens
        assert client.ending == Finished(reason="stop" if met_stop else "length")
    alone = [Client(engine, request).wait().tokens for request in requests[:5]]
    assert alone == [client.tokens for client in crowd[:5]]
    assert engine.status().recompiles == 0


@pytest.mark.parametrize(
    ("family", "bits", "cache"), [("gptj", 32, "float32"), ("gpt2", 8, "int8")]
)
def test_other_families_and_types(family: str, bits: int, cache: str) -> None:
    runner = runner_of(family, bits, cache)
    requests = mixed_requests()[2:9]
    with running(runner, limits=replace(LIMITS, num_slots=3)) as engine:
        clients = [Client(engine, request) for request in requests]
        for request, client in zip(requests, clients, strict=True):
            assert client.wait().tokens == expected(runner, request)
        assert engine.status().recompiles == 0


def test_who_comes_while_others_write_changes_nothing(engine: SlotEngine) -> None:
    """Requests that are submitted from a listener, in the middle of what is written."""
    first, *others = [replace(request, max_tokens=25) for request in mixed_requests()[:5]]
    late: list[Client] = []

    def join(client: Client, event: object) -> None:
        if len(late) < len(others) and client.tokens:
            late.append(Client(engine, others[len(late)]))

    begun = Client(engine, replace(first, max_tokens=60), join)
    assert begun.wait().tokens[:25] == expected(RUNNER, first)
    for request, client in zip(others, late, strict=True):
        assert client.wait().tokens == expected(RUNNER, request)


def test_a_prefix_that_is_reused_has_the_bits_of_one_that_is_not(engine: SlotEngine) -> None:
    [prompt] = prompts_of([333])
    request = EngineRequest(prompts=[prompt], max_tokens=12, sampling=SAMPLINGS[0], tenant="a")
    other = replace(request, prompts=[[*prompt[:330], 7, 8, 9]])
    cold = Client(engine, request).wait()
    assert cold.progress.num_cached == 0
    again, similar, foreign = (
        Client(engine, asked).wait() for asked in (request, other, replace(request, tenant="b"))
    )
    assert again.progress.num_cached == similar.progress.num_cached == 256 + 64
    assert foreign.progress.num_cached == 0
    assert cold.tokens == again.tokens == foreign.tokens == expected(RUNNER, request)
    assert similar.tokens == expected(RUNNER, other)


def test_a_prefix_is_copied_while_its_owner_writes(engine: SlotEngine) -> None:
    [prompt] = prompts_of([290])
    request = EngineRequest(prompts=[prompt], max_tokens=40, sampling=SAMPLINGS[0], tenant="copy")
    second: list[Client] = []

    def join(client: Client, event: object) -> None:
        if client.tokens and not second:
            second.append(Client(engine, replace(request, sample_index=1)))

    first = Client(engine, request, join).wait()
    assert second[0].wait().progress.num_cached == 288
    assert first.tokens == expected(RUNNER, request)
    assert second[0].tokens == expected(RUNNER, replace(request, sample_index=1))


def test_scores_of_a_prompt_are_those_of_the_model(engine: SlotEngine) -> None:
    [prompt] = prompts_of([300])
    request = EngineRequest(
        prompts=[prompt],
        max_tokens=6,
        sampling=SAMPLINGS[1],
        num_alternatives=5,
        scores_prompt=True,
    )
    client = Client(engine, request).wait()
    logits = RUNNER.score(prompt).astype(np.float64)
    logits[:, 3] = -np.inf
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert [score.id for score in client.prompt_scores] == prompt
    assert client.prompt_scores[0].logprob is None
    for at, score in enumerate(client.prompt_scores[1:]):
        assert score.logprob == pytest.approx(logprobs[at, score.id], abs=1e-4)
        best = np.sort(logprobs[at])[::-1][:5]
        np.testing.assert_allclose([value for _, value in score.alternatives], best, atol=1e-4)
    assert client.tokens == expected(RUNNER, request)
    only = Client(engine, replace(request, max_tokens=0)).wait()
    assert only.prompt_scores == client.prompt_scores
    assert only.events[-1] == Finished(reason="length")
    assert only.tokens == []


def test_what_can_never_run_is_refused(engine: SlotEngine) -> None:
    request = EngineRequest(prompts=[[1, 2]], max_tokens=3)
    for wrong, words in (
        (replace(request, prompts=[[1, VOCAB]]), "outside the model's 97 embedding rows"),
        (replace(request, prompts=[[-1]]), "Token id -1"),
        (replace(request, prompts=[[]]), "prompt is empty"),
        (replace(request, max_tokens=511), "exceed the context of 512"),
        (replace(request, num_alternatives=21), "must be 0 to 20"),
        (replace(request, adapter="poet"), "no adapter 'poet'"),
        (replace(request, sampling=SamplingParams(logit_bias={VOCAB: 1.0})), "Token id 97"),
    ):
        with pytest.raises(UsageError, match=words):
            Client(engine, wrong)
    with pytest.raises(UsageError, match="exceeds the model's 512"):
        SlotEngine(
            RUNNER,
            allowed=np.ones(VOCAB, np.bool_),
            limits=replace(LIMITS, context_length=513),
        )


def test_one_too_many_is_refused_and_the_others_run() -> None:
    request = EngineRequest(prompts=[[1, 2]], max_tokens=3)
    limits = replace(LIMITS, num_slots=1, queued_requests=2)
    engine = SlotEngine(RUNNER, allowed=np.ones(VOCAB, np.bool_), limits=limits)
    waiting = [Client(engine, request) for _ in range(2)]
    with pytest.raises(QueueFullError):
        Client(engine, request)
    assert not engine.status().is_ready
    engine.start()
    assert [len(client.wait().tokens) for client in waiting] == [3, 3]
    assert engine.drain(60)
    assert engine.stop(60)
    status = engine.status()
    assert (status.finished, status.rejected, status.new_tokens) == (2, 1, 6)


def test_draining_ends_what_runs_and_takes_nothing_new() -> None:
    request = EngineRequest(prompts=[[1, 2]], max_tokens=100)
    with running(RUNNER) as engine:
        client = Client(engine, request)
        assert engine.drain(60)
        assert client.ending == Finished(reason="length")
        assert not engine.status().is_ready
        with pytest.raises(EngineStoppedError):
            Client(engine, request)


def test_stopping_fails_what_still_runs() -> None:
    request = EngineRequest(prompts=[[1, 2]], max_tokens=500)
    with running(RUNNER, limits=replace(LIMITS, num_slots=1)) as engine:
        clients = [Client(engine, request) for _ in range(3)]
        assert engine.stop(60)
        endings = [client.wait().ending for client in clients]
    assert all(isinstance(ending, Failed) and ending.is_transient for ending in endings)


def test_more_rows_than_dense_products_keep_their_bits_in() -> None:
    """Products with weights that are not packed keep a row's bits among up to 16 rows."""
    runner = runner_of("gptj")
    requests = [
        EngineRequest(prompts=[prompt], max_tokens=12, sampling=SamplingParams(seed=number))
        for number, prompt in enumerate(prompts_of([20 + number for number in range(20)]))
    ]
    group = EngineRequest(
        prompts=prompts_of(range(5, 23)), max_tokens=4, combine=lambda logits: logits[17]
    )
    with running(runner, limits=replace(LIMITS, num_slots=20)) as engine:
        clients = [Client(engine, request) for request in requests]
        for request, client in zip(requests, clients, strict=True):
            assert client.wait().tokens == expected(runner, request)
        followed = replace(group, prompts=group.prompts[17:], combine=None)
        assert Client(engine, group).wait().tokens == expected(runner, followed)
        assert engine.status().recompiles == 0
