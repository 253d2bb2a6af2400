"""How many programs JAX has compiled, or read from what an earlier run compiled, by thread."""

import threading
from collections import Counter
from functools import cache

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_compiled: Counter[int] = Counter()


def num_compiled_here() -> int:
    """Programs of the calling thread since it first asked."""
    _listen()
    return _compiled[threading.get_ident()]


@cache
def _listen() -> None:
    # Once for the process: JAX has no public way to take a listener back.
    jax.monitoring.register_event_duration_secs_listener(_count)


def _count(event: str, duration_secs: float, **others: str | int) -> None:
    del duration_secs, others
    if event == _EVENT:
        _compiled[threading.get_ident()] += 1


def num_compiled_anywhere() -> int:
    """Programs of all threads since somebody first asked."""
    _listen()
    return sum(list(_compiled.values()))
