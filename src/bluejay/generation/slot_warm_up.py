"""Every program of a device once, so that no request waits for one.

Axes: V vocabulary
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np

from bluejay.generation.engine_requests import EngineRequest
from bluejay.generation.prompt_chunks import CHUNK_SIZES
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.scheduled_steps import PrefillChunk, ScheduledRequest
from bluejay.generation.slot_device import CallForm, SlotDevice
from bluejay.generation.slot_rows import HostChoices, SlotRow, fixed_numbers
from bluejay.generation.speculation_length import SIZES

OnProgram = Callable[[int, int], None]
"""Called with how many programs are done, and how many there are."""


def warm_up(device: SlotDevice, report: OnProgram = lambda done, total: None) -> None:
    """Run all that requests may need, at first with nothing in the slots: what it writes there,
    the first prompts overwrite."""
    runs = list(_runs(device))
    for number, run in enumerate(runs):
        report(number, len(runs))
        run()
    report(len(runs), len(runs))


def _runs(device: SlotDevice) -> Iterator[Callable[[], object]]:
    fixed = fixed_numbers(SamplingParams())
    logits = np.zeros((1, device.config.vocab_size), np.float32)
    forms = [CallForm(*choice) for choice in product((False, True), repeat=2)]
    for adapter in (None, *sorted(device.adapters)):
        for size in CHUNK_SIZES:
            if size <= device.capacity:
                chunk = _chunk(size, adapter)
                yield partial(device.prefill, chunk)
                yield partial(device.score, chunk)
        for count in device.sizes:
            rows = [SlotRow(slot=slot, length=1, fixed=fixed) for slot in range(count)]
            yield partial(device.peek, rows, adapter=adapter)
            for form in forms:
                yield partial(device.decode, rows, form, num_steps=1, hear=_nobody, adapter=adapter)
        if device.checks_drafts:
            for positions in SIZES:
                [first, *_] = rows
                yield partial(device.check, first, [0], positions=positions, adapter=adapter)
    row = SlotRow(slot=0, fixed=fixed)
    yield partial(device.fill, 0, [0], {})
    yield partial(device.copy, 0, 0, 1)
    for form in forms:
        yield partial(device.choose_first, logits, row, form)


def _nobody(choices: HostChoices, is_last: bool) -> None:
    pass


def _chunk(size: int, adapter: str | None) -> PrefillChunk:
    ids = (0,) * size
    request = EngineRequest(prompts=[ids], max_tokens=0, adapter=adapter)
    return PrefillChunk(
        request=ScheduledRequest(request=request),
        slot=0,
        begin=0,
        size=size,
        ids=ids,
        is_last=True,
        ends_prompts=True,
    )
