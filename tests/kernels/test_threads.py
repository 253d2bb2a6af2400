"""How many threads compute, and where: looked up in what the system knows of the process."""

import json
import os
import subprocess
import sys

import pytest

import bluejay
from bluejay.core.errors import UsageError
from bluejay.kernels.threads import VARIABLE, usable_cores, use_threads

# The cores that each thread may run on, before and after a pool of two workers exists.
LOOK = """
import json, os, sys
from pathlib import Path

def threads():
    found = {}
    for task in Path('/proc/self/task').iterdir():
        lines = (task / 'status').read_text().splitlines()
        [cores] = [line.split()[1] for line in lines if line.startswith('Cpus_allowed_list')]
        found[int(task.name)] = cores
    return found

from bluejay.kernels.library import library
native = library()
native.set_num_threads(1)
before = threads()
native.set_num_threads(3)
import numpy as np
native.read_bandwidth(np.ones(1 << 24, np.uint8))
many = threads()
native.set_num_threads(1)
print(json.dumps([before, many, threads(), os.getpid()]))
"""


def look(**environment: str) -> tuple[dict[str, str], dict[str, str], dict[str, str], str]:
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    before, many, after, pid = json.loads(done.stdout)
    return before, many, after, str(pid)


def test_workers_come_and_go_with_the_number() -> None:
    before, many, after, _ = look()
    assert len(many) == len(before) + 2
    assert after.keys() == before.keys()
    assert set(many.values()) == set(before.values()), "nobody asked for pinning"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux pins threads")
def test_pinned_workers_have_a_core_each_and_the_caller_keeps_all() -> None:
    before, many, _, caller = look(BLUEJAY_PIN="1")
    workers = [many[task] for task in many.keys() - before.keys()]
    usable = sorted(os.sched_getaffinity(0))
    wanted = {str(usable[number % len(usable)]) for number in (1, 2)}
    assert set(workers) == wanted
    assert many[caller] == before[caller]


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_a_number_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=rf"threads is {count}, .* from 1 to {usable_cores()}"):
        bluejay.load("bluejay-tiny", threads=count)


@pytest.mark.parametrize("text", ["0", "many", "-3", "1.5"])
def test_a_variable_out_of_range_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=f"{VARIABLE} is "):
        use_threads()


@pytest.mark.parametrize("given", [None, 1, min(2, usable_cores())])
def test_load_and_the_variable_set_kernels_and_xla(given: int | None) -> None:
    """The variable says 1; XLA names its threads."""
    code = (
        f"import bluejay; lm = bluejay.load('bluejay-tiny', threads={given});"
        "lm.suggest('How');"
        "from pathlib import Path;"
        "names = [(t / 'comm').read_text() for t in Path('/proc/self/task').iterdir()];"
        "from bluejay.kernels.library import library;"
        "print(library().num_threads, sum('XLAEigen' in name for name in names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {VARIABLE: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(given or 1)] * 2
