"""Who is refused comes back when there is room, and not with everybody else."""

from collections import Counter

from bluejay.serving.return_times import LATEST, ReturnTimes


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(clock: Clock, times: ReturnTimes, number: int, *, finished: int) -> list[int]:
    return [times.next(finished) for _ in range(number)]


def test_the_first_comes_back_soon() -> None:
    assert ReturnTimes(Clock()).next(0) == 1


def test_a_crowd_is_spread_at_twice_the_rate_of_what_ends() -> None:
    clock = Clock()
    times = ReturnTimes(clock)
    times.next(0)
    clock.now += 5.0
    found = Counter(told(clock, times, 200, finished=50))  # 10 a second end: 20 a second come back
    assert set(found) <= set(range(1, 13))
    assert max(found.values()) <= 21
    assert sum(found.values()) == 200


def test_nobody_is_told_more_than_the_latest_and_the_line_begins_anew() -> None:
    clock = Clock()
    found = told(clock, ReturnTimes(clock), 500, finished=0)
    assert max(found) == LATEST
    assert found.count(1) > 1
    clock.now += 1000.0
    assert ReturnTimes(clock).next(0) == 1
