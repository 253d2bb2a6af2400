"""A call that does not come back is told from slow ones, from idleness, and from a process that was
stopped: row T5 of the fault matrix, in imagined time."""

import threading
from collections.abc import Iterator

import pytest

from bluejay.generation.pulse import Pulse
from bluejay.serving.hang_watch import Hang, HangWatch

LEAST = 120.0


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Site:
    """An engine that is watched."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pulse = Pulse(self.clock)
        self.watch = HangWatch({"The engine": self.pulse}, least=LEAST, clock=self.clock)

    def looks(self, seconds: float) -> Iterator[Hang | None]:
        """What is seen by a look in each second from now on."""
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            yield self.watch.look()

    def step(self, seconds: float) -> None:
        """One that takes so long, and is looked at."""
        self.pulse.begin()
        assert not any(self.looks(seconds))
        self.pulse.end()


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_step_that_does_not_end_hangs_when_its_time_is_over(site: Site) -> None:
    for _ in range(5):
        site.step(1)
    site.pulse.begin()
    seen = list(site.looks(LEAST + 5))
    first = next(number for number, hang in enumerate(seen, 1) if hang)
    assert first == LEAST + 2, "it was seen for the first time after a second"
    assert seen[first - 1] == Hang("The engine", LEAST + 1, LEAST)


def test_a_step_that_is_seen_for_the_first_time_has_just_begun(site: Site) -> None:
    site.pulse.begin()
    site.clock.now += 100_000
    assert not any(site.looks(LEAST))


def test_a_slow_engine_that_moves_never_hangs(site: Site) -> None:
    for seconds in (119, 5, 119, 60) * 10:
        site.step(seconds)


def test_the_limit_follows_ten_times_the_usual_step(site: Site) -> None:
    for _ in range(9):
        site.step(30)
    site.step(299)
    site.pulse.begin()
    hangs = [hang for hang in site.looks(310) if hang]
    assert hangs[0].limit == pytest.approx(300, abs=0.1)


def test_steps_that_follow_each_other_at_once_never_hang(site: Site) -> None:
    """A busy engine is in a step at every look, in another one."""
    site.pulse.begin()
    for _ in range(1000):
        assert not any(site.looks(1))
        site.pulse.end()
        site.pulse.begin()


def test_an_idle_engine_never_hangs(site: Site) -> None:
    assert not any(site.looks(1000))
    site.step(1)
    assert not any(site.looks(100_000))


def test_a_process_that_was_stopped_has_not_hung(site: Site) -> None:
    """The time in which nobody looked does not count, but for some seconds."""
    site.pulse.begin()
    assert not any(site.looks(100))
    site.clock.now += 100_000
    assert site.watch.look() is None
    assert not any(site.looks(10))
    assert any(site.looks(10))


def test_work_in_parts_has_the_time_of_all(site: Site) -> None:
    site.pulse.begin(parts=8)
    assert not any(site.looks(8 * LEAST))
    assert any(site.looks(3))


def test_a_step_that_fails_has_ended(site: Site) -> None:
    with pytest.raises(OSError, match="full"), site.pulse.piece():
        raise OSError("full")
    assert not any(site.looks(1000))


def test_whoever_hangs_is_named() -> None:
    clock = Clock()
    pulses = {name: Pulse(clock) for name in ("a", "b", "c")}
    watch = HangWatch(pulses, least=LEAST, clock=clock)
    pulses["b"].begin()
    for _ in range(int(LEAST) + 2):
        clock.now += 1.0
        with pulses["a"].piece():
            found = watch.look()
    assert found is not None
    assert found.name == "b"


def test_readers_and_the_writer_need_no_lock() -> None:
    pulse, stop = Pulse(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with pulse.piece():
                pass

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(2000):
            assert 0 <= pulse.median < 10
            assert pulse.beat.parts in (0, 1)
    finally:
        stop.set()
        worker.join()
