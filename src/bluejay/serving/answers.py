"""What the text routes' answers share: how samples are sent, and how their tokens are counted."""

from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import groupby
from typing import Any

import msgspec
from starlette.responses import Response

from bluejay.serving.routes import Call, json_answer
from bluejay.serving.samples import FinishedSample, SampleRun, TokenUsage
from bluejay.serving.sse import Event, event_stream, until_disconnect


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`cached_tokens` of the prompt were not computed again."""

    cached_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request: each prompt once, and the new ones of all samples that were made.

    The token that completes a stop string counts, one that ends the model's text does not, not even
    where echo and logprobs show it.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def completion_usage(usage: TokenUsage) -> CompletionUsage:
    """In the shape of OpenAI's completions."""
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )


def best_samples(samples: Sequence[FinishedSample], count: int) -> list[FinishedSample]:
    """Of each prompt's samples the `count` with the highest log probability per token, the best
    first; all, in their order, where there are no more."""
    found: list[FinishedSample] = []
    for _, group in groupby(samples, key=lambda sample: sample.prompt_index):
        ranked = list(group)
        if len(ranked) > count:
            ranked.sort(key=lambda sample: -sample.mean_logprob)
        found += ranked[:count]
    return found


async def send_whole(
    call: Call[Any],
    run: SampleRun,
    answer: Callable[[Sequence[FinishedSample]], Any],
    *,
    seconds: float | None,
) -> Response:
    """Run the samples, and send what `answer` makes of them."""
    run.start(is_whole=True)
    try:
        samples = await until_disconnect(call, run.finished(), seconds=seconds)
    finally:
        run.cancel()
    return json_answer(answer(samples))


def send_stream(
    call: Call[Any],
    run: SampleRun,
    events: AsyncGenerator[Event, None],
    *,
    seconds: float | None,
    **options: Any,
) -> Response:
    """Run the samples, and send the events as they come. `options` are `event_stream`'s."""
    run.start()
    return event_stream(call, events, seconds=seconds, on_end=run.cancel, **options)
