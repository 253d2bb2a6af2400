"""How long calls are, by given times."""

from bluejay.generation.engine_pace import (
    CALL_SECONDS,
    HOST_SHARE,
    MOMENT,
    CallPace,
)


def paced(step: float, host: float, *, rows: int = 1) -> CallPace:
    pace = CallPace()
    for _ in range(9):
        pace.observe_call(rows, steps=2, seconds=CALL_SECONDS + 2 * step)
        pace.observe_host(host)
    return pace


def test_the_first_call_takes_one_step() -> None:
    assert CallPace().num_steps(1, most=16) == 1
    assert paced(0.001, 0.001).num_steps(2, most=16) == 1  # of so many rows nothing is known


def test_as_few_steps_as_keep_the_hosts_share_small() -> None:
    for step, host in ((0.004, 0.0002), (0.0008, 0.0001), (0.008, 0.0004), (0.002, 0.0006)):
        count = paced(step, host).num_steps(1, most=100)
        between = host + CALL_SECONDS
        assert between / (count * step) <= HOST_SHARE * 1.0001 or (count + 1) * step > MOMENT
        if count > 1:
            assert between / ((count - 1) * step) > HOST_SHARE


def test_no_call_is_longer_than_a_moment_or_what_is_asked() -> None:
    assert paced(0.0001, 0.01).num_steps(1, most=16) == 16
    assert paced(0.0001, 0.01).num_steps(1, most=1000) <= MOMENT / 0.0001
    assert paced(0.0025, 0.01).num_steps(1, most=16) == 4
    assert paced(0.3, 0.01).num_steps(1, most=16) == 1


def test_a_pause_of_the_whole_machine_changes_nothing() -> None:
    pace = paced(0.004, 0.0002)
    before = pace.num_steps(1, most=16)
    pace.observe_call(1, steps=2, seconds=60.0)
    pace.observe_host(60.0)
    assert pace.num_steps(1, most=16) == before


def test_a_call_without_steps_says_nothing() -> None:
    pace = CallPace()
    pace.observe_call(1, steps=0, seconds=1.0)
    assert pace.num_steps(1, most=16) == 1
