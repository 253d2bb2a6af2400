"""Which requests an engine refuses, and in which words. Starts without JAX."""

from bluejay.core.errors import UsageError
from bluejay.generation.engine_requests import EngineLimits, EngineRequest, QueueFullError
from bluejay.generation.fair_queue import FairQueue
from bluejay.generation.scheduled_steps import ScheduledRequest


def require_fit(request: EngineRequest, limits: EngineLimits) -> None:
    """Raise UsageError for a request that could not run even alone."""
    if len(request.prompts) > limits.num_slots:
        raise UsageError(
            f"A group of {len(request.prompts)} prompts exceeds the engine's {limits.num_slots}"
            " slots: send fewer, or start the server with more --slots."
        )
    for ids in request.prompts:
        if not len(ids):
            raise UsageError("The prompt is empty: give it at least one token.")
        if len(ids) + request.max_tokens > limits.context_length:
            raise UsageError(
                f"{len(ids)} prompt tokens and {request.max_tokens} new ones exceed the context of"
                f" {limits.context_length} tokens: shorten the prompt, lower max_tokens, or start"
                " the server with a larger --context."
            )
    num_tokens = sum(map(len, request.prompts))
    if num_tokens > limits.queued_tokens:
        raise UsageError(
            f"{num_tokens} prompt tokens exceed the whole queue of {limits.queued_tokens} tokens:"
            " shorten the prompts, or start the server with a larger --queue-tokens."
        )


def require_place(scheduled: ScheduledRequest, limits: EngineLimits, queue: FairQueue) -> None:
    """Raise QueueFullError if the queue has no place for the request."""
    require_any_place(limits, queue)
    if queue.num_tokens + scheduled.num_tokens > limits.queued_tokens:
        raise QueueFullError(
            f"{queue.num_tokens} prompt tokens wait already, the queue takes"
            f" {limits.queued_tokens}, and this request brings {scheduled.num_tokens}: try again"
            " later, or start the server with a larger --queue-tokens.",
            limit="queued_tokens",
        )


def require_any_place(limits: EngineLimits, queue: FairQueue, num_ahead: int = 0) -> None:
    """Raise QueueFullError if the queue has no place for any request behind so many more."""
    num_requests = queue.num_requests + num_ahead
    if num_requests >= limits.queued_requests:
        raise QueueFullError(
            f"{num_requests} requests wait already, and the queue takes"
            f" {limits.queued_requests}: try again later, or start the server with a larger"
            " --queue-requests.",
            limit="queued_requests",
        )
