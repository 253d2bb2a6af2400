"""Places at which a test makes the process fail. Without BLUEJAY_FAILPOINT nothing happens.

The variable holds `NAME:ACTION`, or `NAME@N:ACTION` for the N-th time that the place is passed, or
`NAME@N+:ACTION` for that time and every later one.
"""

import errno
import os
import signal
import time
from collections import Counter

_VARIABLE = "BLUEJAY_FAILPOINT"
_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Pass the place `name`: return, unless a test has asked for a failure there."""
    wanted = os.environ.get(_VARIABLE)
    if not wanted:
        return
    place, _, action = wanted.partition(":")
    target, _, count = place.partition("@")
    if target != name:
        return
    _passed[name] += 1
    first = int(count.removesuffix("+") or 1)
    if _passed[name] == first or (count.endswith("+") and _passed[name] > first):
        _fail(action)


def _fail(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "memory":
        raise MemoryError
    elif action == "hang":
        time.sleep(3600)
    else:
        raise ValueError(f"{_VARIABLE} asks for {action!r}: kill, full, memory or hang")
