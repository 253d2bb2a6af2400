"""What is left to do for the prompts of a request that runs. Starts without JAX."""

from bluejay.generation.prefix_index import prefix_keys
from bluejay.generation.prompt_chunks import chunks
from bluejay.generation.scheduled_steps import CopyPrefix, PrefillChunk, ScheduledRequest
from bluejay.generation.slots import Reuse, Slots


class PromptWork:
    """The prompts of a request, one after the other, each chunk by chunk.

    Takes a slot for each. What can be reused is looked up when a prompt's turn comes, so that the
    second of two equal prompts finds the first.
    """

    def __init__(self, scheduled: ScheduledRequest, slots: Slots) -> None:
        self.scheduled = scheduled
        self._slots = slots
        self._prompts = scheduled.request.prompts
        self._chunks = [chunks(len(ids)) for ids in self._prompts]
        self._keys = _prefix_keys(scheduled)
        scheduled.slots = slots.take(list(map(self._reusable, range(len(self._prompts)))))
        self._prompt = 0
        self._chunk: int | None = None  # None: what can be reused is not looked up yet
        self._copying: Reuse | None = None

    @property
    def is_done(self) -> bool:
        """Whether all prompts are in the cache."""
        return self._prompt == len(self._prompts)

    def next_step(self) -> PrefillChunk | CopyPrefix:
        """What comes next; the same again until it is done."""
        slot = self.scheduled.slots[self._prompt]
        if self._chunk is None:
            reuse = self._slots.reuse(slot, self._reusable(self._prompt))
            if reuse and reuse.source != slot:
                self._copying = reuse
                return CopyPrefix(
                    request=self.scheduled, source=reuse.source, target=slot, length=reuse.length
                )
            self._begin(reuse)
        return self._next_chunk(slot)

    def done(self, step: PrefillChunk | CopyPrefix) -> None:
        """The step is done."""
        if isinstance(step, CopyPrefix):
            assert self._copying is not None
            self._slots.copied(step.target, self._copying)
            self._begin(self._copying)
            return
        assert self._chunk is not None
        keys = self._keys[self._prompt]
        if self._chunk < len(keys):
            self._slots.computed(step.slot, keys[self._chunk], end=step.begin + step.size)
        self.scheduled.num_done += len(step.ids)
        self._chunk += 1
        if step.is_last:
            self._prompt, self._chunk = self._prompt + 1, None

    def _reusable(self, prompt: int) -> tuple[bytes, ...]:
        """Keys of all chunks but the last, whose logits choose the first id."""
        return self._keys[prompt][: len(self._chunks[prompt]) - 1]

    def _begin(self, reuse: Reuse | None) -> None:
        """Chunks are computed from here on."""
        self._chunk = reuse.num_chunks if reuse else 0
        self._copying = None
        if reuse:
            self.scheduled.num_done += reuse.length
            self.scheduled.num_cached += reuse.length

    def _next_chunk(self, slot: int) -> PrefillChunk:
        assert self._chunk is not None
        cut = self._chunks[self._prompt]
        begin, size = cut[self._chunk]
        is_last = self._chunk == len(cut) - 1
        return PrefillChunk(
            request=self.scheduled,
            slot=slot,
            begin=begin,
            size=size,
            ids=tuple(self._prompts[self._prompt][begin : begin + size]),
            is_last=is_last,
            ends_prompts=is_last and self._prompt == len(self._prompts) - 1,
        )


def _prefix_keys(scheduled: ScheduledRequest) -> list[tuple[bytes, ...]]:
    """Keys of each prompt's complete chunks; none where the prompt is scored.

    Scores need the logits of every position, so nothing may be left out. Nor is anything left to
    others: another program computes such chunks, and its bits may be others.
    """
    request = scheduled.request
    if request.scores_prompt:
        return [() for _ in request.prompts]
    return [
        prefix_keys(ids, tenant=request.tenant, adapter=request.adapter) for ids in request.prompts
    ]
