"""A process that hangs is ended with its stacks shown; one that was only stopped is not."""

import os
import signal
import subprocess
import sys
import time

HANGING = """
import time
from bluejay.training.signals import Watchdog

def the_function_that_hangs():
    time.sleep(60)

with Watchdog(factor=2.0, least=1.0, first=60.0) as watchdog:
    for _ in range(3):
        watchdog.beat()
    print("begun", flush=True)
    the_function_that_hangs()
"""
WORKING = """
import time
from bluejay.training.signals import Watchdog

with Watchdog(factor=2.0, least=1.0, first=60.0) as watchdog:
    for number in range(20):
        watchdog.beat()
        print(number, flush=True)
        time.sleep(0.1)
"""


def begin(script: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True)


def test_a_process_that_hangs_shows_where_and_ends() -> None:
    process = begin(HANGING)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "the_function_that_hangs" in told
    assert "`bluejay resume RUN`" in told


def test_a_process_that_was_stopped_for_a_while_goes_on() -> None:
    process = begin(WORKING)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "3":
        pass
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(process.pid, signal.SIGCONT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
