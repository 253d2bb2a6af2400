"""Prompts as clients send them, to ids that fit into the context."""

from collections.abc import Sequence
from dataclasses import dataclass

from bluejay.core.errors import BluejayError
from bluejay.serving.errors import ApiError
from bluejay.serving.limits import ENGINE_FLAGS
from bluejay.serving.service import TextService
from bluejay.text.prompt import ContextPolicy, fit_context

PromptField = str | list[str | int | list[int]] | None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Ids that a model reads. The first `num_hidden` were put there by us and are never shown; the
    first `num_kept` stay when the prompt is cut."""

    ids: tuple[int, ...]
    num_hidden: int = 0
    num_kept: int = 0


async def read_prompts(service: TextService, prompt: PromptField) -> list[Prompt]:
    """A prompt as text or ids, or several of one kind; None is an empty document.

    Texts begin as the model's training documents did; ids are taken as they are.
    """
    if prompt is None:
        return [_empty_document(service)]
    if isinstance(prompt, str):
        return await _texts(service, [prompt])
    if not prompt:
        raise ApiError(400, "prompt is an empty list: give at least one prompt.", param="prompt")
    texts = [item for item in prompt if isinstance(item, str)]
    ids = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    if len(prompt) not in (len(texts), len(ids), len(lists)):
        raise ApiError(
            400,
            "prompt mixes texts, ids and lists of ids: send one text, a list of texts, a list of"
            " ids, or a list of lists of ids.",
            param="prompt",
        )
    service.limits.request.check("prompts", len(texts) or len(lists) or 1, param="prompt")
    return await _texts(service, texts) if texts else [_of_ids(service, i) for i in lists or [ids]]


def fit_prompt(
    service: TextService,
    prompt: Prompt,
    *,
    max_tokens: int,
    policy: str | None = None,
    keep: str | int | None = None,
) -> Prompt:
    """A prompt such that `max_tokens` more ids fit into the context, by the client's policy."""
    num_kept = _num_kept(service, prompt, policy, keep)
    how: ContextPolicy = "trim" if policy in ("trim", "keep") else "refuse"
    try:
        ids = fit_context(
            prompt.ids,
            context_length=service.context_length,
            max_tokens=max_tokens,
            policy=how,
            num_kept=num_kept,
        )
    except BluejayError as error:
        raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from None
    return Prompt(ids=tuple(ids), num_hidden=prompt.num_hidden, num_kept=num_kept)


def require_room(service: TextService, prompts: Sequence[Prompt], num_samples: int) -> None:
    """Refuse a call that the queue could never hold."""
    limits = service.engine.limits
    num_sequences = len(prompts) * num_samples
    service.limits.request.check("sequences", num_sequences)
    num_tokens = num_samples * sum(len(prompt.ids) for prompt in prompts)
    for name, value in (("queued_requests", num_sequences), ("queued_tokens", num_tokens)):
        most = getattr(limits, name)
        if value > most:
            what = "samples" if name == "queued_requests" else "tokens in its prompts"
            raise ApiError(
                400,
                f"The request has {value:,} {what} and the queue holds {most:,}: send it in parts,"
                f" or raise the limit with the server's {ENGINE_FLAGS[name]}.",
                param="prompt",
                code="limit_exceeded",
            )


def _empty_document(service: TextService) -> Prompt:
    start = service.conventions.document_start
    if not start:
        raise ApiError(
            400,
            "There is no prompt, and this model has no token that begins a text: give a prompt.",
            param="prompt",
        )
    return Prompt(ids=start, num_hidden=len(start), num_kept=len(start))


async def _texts(service: TextService, texts: Sequence[str]) -> list[Prompt]:
    if not all(texts):
        raise ApiError(
            400,
            "prompt is empty: give at least one character, or leave prompt out to begin a new"
            " document.",
            param="prompt",
        )
    num_start = len(service.conventions.document_start)
    found = await service.all_prompt_ids(texts)
    return [Prompt(ids=tuple(i), num_hidden=num_start, num_kept=num_start) for i in found]


def _of_ids(service: TextService, ids: Sequence[int]) -> Prompt:
    service.require_ids(ids)
    start = service.conventions.document_start
    begins = bool(start) and tuple(ids[: len(start)]) == start
    return Prompt(ids=tuple(ids), num_kept=len(start) if begins else 0)


def _num_kept(
    service: TextService, prompt: Prompt, policy: str | None, keep: str | int | None
) -> int:
    """How many ids stay at the beginning of a prompt that is cut."""
    if (policy == "keep") != (keep is not None):
        raise ApiError(
            400,
            "context_keep marks the beginning that context_policy 'keep' keeps: send both or"
            " neither.",
            param="context_keep",
        )
    if keep is None:
        return prompt.num_kept
    if isinstance(keep, int):
        if not 0 <= keep <= service.context_length:
            raise ApiError(
                400,
                f"context_keep is {keep}, but it must be from 0 to the context's"
                f" {service.context_length} tokens.",
                param="context_keep",
            )
        return max(prompt.num_kept, min(prompt.num_hidden + keep, len(prompt.ids)))
    return max(prompt.num_kept, prompt.num_hidden + _num_tokens_of(service, prompt, keep))


def _num_tokens_of(service: TextService, prompt: Prompt, beginning: str) -> int:
    """How many shown tokens begin inside of the text that the prompt begins with."""
    wanted = beginning.encode("utf-8")
    num_bytes = num_tokens = 0
    for token in prompt.ids[prompt.num_hidden :]:
        if num_bytes >= len(wanted):
            break
        data = service.tokenizer.token_bytes(token)
        if data[: len(wanted) - num_bytes] != wanted[num_bytes : num_bytes + len(data)]:
            break
        num_bytes += len(data)
        num_tokens += 1
    if num_bytes < len(wanted):
        raise ApiError(
            400,
            "context_keep is no text that the prompt begins with: copy it from there, or give a"
            " number of tokens.",
            param="context_keep",
        )
    return num_tokens
