"""Everything at once, with some requests cancelled at any moment: the rest get what they get alone,
nothing is compiled, and nothing is left behind."""

import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from bluejay.generation.engine_requests import EngineRequest, Finished, PromptProgress
from bluejay.generation.sampling_params import SamplingParams
from bluejay.kernels.library import cpu_library
from engine_models import LIMITS, Client, EvenIds, expected, prompts_of, running, wait_until
from speculation_models import VOCAB, runner_of

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
RUNNER = runner_of("llama", 4, "float16")
BEGINNINGS = prompts_of([256, 64, 40])


def average(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = logits.mean(axis=0, dtype=np.float32)
    return mean


def drawn_request(rng: random.Random) -> EngineRequest:
    prompt = rng.choice(BEGINNINGS) + [rng.randrange(4, VOCAB) for _ in range(rng.randrange(40))]
    request = EngineRequest(
        prompts=[prompt],
        max_tokens=rng.randrange(1, 40),
        sampling=SamplingParams(
            temperature=rng.choice([0, 0.7, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
            logit_bias=rng.choice([{}, {}, {6: 4.0}]),
            seed=rng.randrange(1000),
        ),
        num_alternatives=rng.choice([0, 0, 5]),
        stop_ids=rng.choice([frozenset(), frozenset({rng.randrange(VOCAB)})]),
        tenant=rng.choice(["a", "b"]),
    )
    kind = rng.choice(["plain", "plain", "plain", "group", "constraint", "scores"])
    if kind == "group":
        return replace(request, prompts=[prompt, rng.choice(BEGINNINGS)], combine=average)
    if kind == "constraint":
        return replace(request, constraint=EvenIds())
    return replace(request, scores_prompt=kind == "scores")


def is_plain(request: EngineRequest) -> bool:
    return request.combine is None and request.constraint is None


def test_a_mixed_load() -> None:
    rng = random.Random(8)
    requests = [drawn_request(rng) for _ in range(40)]
    patience = [rng.randrange(12) if rng.random() < 0.3 else None for _ in requests]
    left: list[int] = []

    def leave(client: Client, event: object) -> None:
        number = clients.index(client) if client in clients else -1
        limit = patience[number] if number >= 0 else None
        if limit is not None and len(client.events) > limit and client.ending is None:
            left.append(number)
            patience[number] = None
            client.cancel()

    clients: list[Client] = []
    with running(RUNNER, limits=replace(LIMITS, num_slots=4)) as engine:
        clients.extend(Client(engine, request, leave) for request in requests)
        for number, client in enumerate(clients):
            if patience[number] is None:
                wait_until(lambda at=number, of=client: of.ending is not None or at in left)
        wait_until(lambda: engine.status().slots_in_use == engine.status().queued_requests == 0)
        status = engine.status()
        assert status.recompiles == 0
        assert status.failed == 0
        # Who leaves when the last ids come has finished already.
        assert status.cancelled + status.finished == len(requests)
        assert 0 < status.cancelled <= len(left)
        for number in {*range(len(requests))} - {*left}:
            request, found = requests[number], clients[number].tokens
            assert isinstance(clients[number].ending, Finished)
            if is_plain(request):
                assert found == expected(RUNNER, request)
            else:
                assert found == Client(engine, request).wait().tokens
        assert engine.status().recompiles == 0
        reused = [
            event.num_cached
            for client in clients
            for event in client.events
            if isinstance(event, PromptProgress)
        ]
        assert max(reused) >= 256
