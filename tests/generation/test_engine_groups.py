"""Samples whose next id something of their own decides: groups in lockstep, constraints; adapters;
and the engine on plain XLA."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from bluejay.generation import runner as runner_module
from bluejay.generation.engine import SlotEngine
from bluejay.generation.engine_requests import EngineRequest, Failed, Finished
from bluejay.generation.runner import Runner
from bluejay.generation.sampling import Sampler
from bluejay.generation.sampling_params import SamplingParams
from bluejay.kernels.library import cpu_library
from engine_models import LIMITS, Client, EvenIds, allowed_ids, expected, prompts_of, running
from small_models import drawn_params
from speculation_models import FAMILIES, VOCAB, params_of, runner_of

native = pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
RUNNER = runner_of("llama", 4, "float16")
PROMPTS = prompts_of([40, 17, 100])
PLAIN = EngineRequest(prompts=[PROMPTS[2]], max_tokens=40, sampling=SamplingParams(seed=5))
SAMPLINGS = [
    SamplingParams(temperature=0),
    SamplingParams(seed=3, top_p=0.9),
    SamplingParams(seed=4, repetition_penalty=1.4, logit_bias={9: 2.0}, min_p=0.01),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[SlotEngine]:
    with running(RUNNER) as engine:
        yield engine


def guided(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Away from the second prompt, as classifier-free guidance has it."""
    return logits[1] + 1.5 * (logits[0] - logits[1])


def in_lockstep(prompts: Sequence[list[int]], sampling: SamplingParams, count: int) -> list[int]:
    """The same by single steps of a runner, one prompt beside the other."""
    sampler = Sampler(sampling, allowed=allowed_ids())
    sampler.observe_prompt(prompts[0])
    prefixes = [RUNNER.start(prompt, reserve=count) for prompt in prompts]
    ids: list[int] = []
    while len(ids) < count:
        logits = guided(np.stack([np.asarray(prefix.logits) for prefix in prefixes]))
        ids.append(sampler.choose(jnp.asarray(logits), is_native=True).id)
        prefixes = [RUNNER.step(prefix, ids[-1]) for prefix in prefixes]
    return ids


@native
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_group_goes_on_in_lockstep(engine: SlotEngine, sampling: SamplingParams) -> None:
    """Beside a plain text and another group, neither of which feels it."""
    group = EngineRequest(prompts=PROMPTS[:2], max_tokens=20, sampling=sampling, combine=guided)
    other = replace(group, prompts=PROMPTS[1:])
    plain = Client(engine, PLAIN)
    clients = [Client(engine, group), Client(engine, other)]
    assert clients[0].wait().ids == in_lockstep(group.prompts, sampling, 20)
    assert clients[1].wait().ids == in_lockstep(other.prompts, sampling, 20)
    assert plain.wait().tokens == expected(RUNNER, PLAIN)
    assert engine.status().recompiles == 0


@native
def test_a_function_of_one_prompts_logits_sees_each_of_them_once(engine: SlotEngine) -> None:
    seen: list[int] = []

    def note(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        assert logits.shape == (1, VOCAB)
        seen.append(int(logits[0].argmax()))
        return logits[0]

    client = Client(engine, replace(PLAIN, combine=note)).wait()
    assert client.tokens == expected(RUNNER, PLAIN)
    assert len(seen) == PLAIN.max_tokens


@native
def test_probabilities_are_the_models_own_whatever_the_function_left(engine: SlotEngine) -> None:
    """Even ids only, by a function and by a constraint: the same ids, scored the same."""

    def even(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(np.arange(VOCAB) % 2 == 0, logits[0], -np.inf).astype(np.float32)

    asked = replace(PLAIN, num_alternatives=5)
    by_constraint = Client(engine, replace(asked, constraint=EvenIds())).wait()
    by_function = Client(engine, replace(asked, combine=even)).wait()
    assert by_function.tokens == by_constraint.tokens
    assert any(token.alternatives[0][0] % 2 for token in by_function.tokens)
    assert engine.status().recompiles == 0


@dataclass
class Alternating:
    """Even ids, then odd ones, and so on; complete after `length` of them."""

    length: int
    accepted: list[int]

    def allowed(self) -> NDArray[np.bool_]:
        return np.arange(VOCAB) % 2 == len(self.accepted) % 2

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def is_complete(self) -> bool:
        return len(self.accepted) == self.length


def constrained(request: EngineRequest, count: int) -> tuple[list[int], list[float]]:
    """Ids as a sampler chooses them that may choose no others, and the model's own scores."""
    sampler = Sampler(request.sampling, allowed=allowed_ids())
    sampler.observe_prompt(request.prompts[0])
    prefix = RUNNER.start(request.prompts[0], reserve=count)
    ids: list[int] = []
    logprobs: list[float] = []
    for number in range(count):
        mask = allowed_ids() & (np.arange(VOCAB) % 2 == number % 2)
        sampler.rows = replace(sampler.rows, allowed=jnp.asarray(mask[None]))
        ids.append(sampler.choose(prefix.logits, is_native=True).id)
        logits = np.where(allowed_ids(), np.asarray(prefix.logits, np.float64), -np.inf)
        logprobs.append(float(logits[ids[-1]] - np.log(np.exp(logits).sum())))
        prefix = RUNNER.step(prefix, ids[-1])
    return ids, logprobs


@native
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_constraint_narrows_the_choice_and_not_the_scores(
    engine: SlotEngine, sampling: SamplingParams
) -> None:
    request = EngineRequest(
        prompts=[PROMPTS[0]], max_tokens=20, sampling=sampling, constraint=Alternating(12, [])
    )
    plain, bound = Client(engine, PLAIN), Client(engine, request)
    ids, logprobs = constrained(request, 12)
    assert bound.wait().ids == ids
    assert [token.logprob for token in bound.tokens] == pytest.approx(logprobs, abs=1e-4)
    assert bound.ending == Finished(reason="stop")
    assert plain.wait().tokens == expected(RUNNER, PLAIN)
    short = Client(engine, replace(request, max_tokens=5, constraint=Alternating(12, []))).wait()
    assert (short.ids, short.ending) == (ids[:5], Finished(reason="length"))
    assert engine.status().recompiles == 0


@native
def test_what_a_request_brings_and_fails_by_ends_it_alone(engine: SlotEngine) -> None:
    def broken(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        raise KeyError("secret")

    class Nothing(Alternating):
        def allowed(self) -> NDArray[np.bool_]:
            return np.zeros(VOCAB, np.bool_)

    class Refusing(Alternating):
        def accept(self, token: int) -> None:
            raise ValueError("secret")

    plain = Client(engine, PLAIN)
    for changes, words in (
        ({"combine": broken}, "KeyError"),
        ({"combine": lambda logits: logits[0, :5]}, "gave shape"),
        ({"combine": lambda logits: logits[0] * np.nan}, "not finite"),
        ({"constraint": Nothing(3, [])}, "admits no token"),
        ({"constraint": Refusing(3, [])}, "ValueError"),
    ):
        changed: dict[str, Any] = changes
        ending = Client(engine, replace(PLAIN, **changed)).wait().ending
        assert isinstance(ending, Failed), words
        assert words in ending.message
        assert "secret" not in ending.message
        assert not ending.is_transient
    assert plain.wait().tokens == expected(RUNNER, PLAIN)
    assert engine.status().is_ready


@native
def test_each_request_runs_on_its_own_adapter() -> None:
    config = FAMILIES["gptj"]
    other = drawn_params(config, seed=8)
    runners = {None: runner_of("gptj"), "poet": Runner(other, config=config)}
    limits = replace(LIMITS, num_slots=3)
    with running(runners[None], limits=limits, adapters={"poet": other}) as engine:
        requests = [
            EngineRequest(
                prompts=[PROMPTS[2]],
                max_tokens=15,
                sampling=SAMPLINGS[number % 3],
                adapter=("poet", None)[number % 2],
            )
            for number in range(6)
        ]
        clients = [Client(engine, request) for request in requests]
        for request, client in zip(requests, clients, strict=True):
            assert client.wait().tokens == expected(runners[request.adapter], request)
        # Not one chunk of the one is used for the other.
        assert clients[0].progress.num_cached == 0
        assert clients[1].progress.num_cached == 0
        assert engine.status().recompiles == 0


def test_plain_xla_keeps_its_bits_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr(runner_module, "cpu_library", lambda: None)
        runner = Runner(params_of("llama"), config=FAMILIES["llama"])
    assert not runner.is_native
    requests = [
        EngineRequest(prompts=[prompt], max_tokens=12, sampling=SAMPLINGS[number % 3])
        for number, prompt in enumerate([*PROMPTS, *prompts_of([300, 5])])
    ]
    group = EngineRequest(prompts=PROMPTS[:2], max_tokens=9, combine=guided)
    with running(runner, limits=replace(LIMITS, num_slots=3)) as engine:
        crowd = [Client(engine, request) for request in [*requests, group]]
        for client in crowd:
            client.wait()
        for request, client in zip([*requests, group], crowd, strict=True):
            alone = Client(engine, request).wait()
            assert alone.tokens == client.tokens
            assert len(alone.tokens) == request.max_tokens
        assert engine.status().recompiles == 0
    for request, client in zip(requests, crowd, strict=False):
        near = expected(runner_of("llama"), request)
        assert client.ids == [token.id for token in near]
        assert [token.logprob for token in client.tokens] == pytest.approx(
            [token.logprob for token in near], abs=1e-3
        )
