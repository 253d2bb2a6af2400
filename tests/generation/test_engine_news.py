"""When listeners hear of words, by a given clock."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from bluejay.generation.engine_news import MOST_APART, PATIENT_APART, News, time_apart
from bluejay.generation.engine_requests import (
    EngineEvent,
    EngineRequest,
    Finished,
    NewTokens,
    PromptProgress,
)
from bluejay.generation.engine_samples import Outcome, Sample
from bluejay.generation.scheduled_steps import ScheduledRequest
from bluejay.generation.slot_rows import host_choices


@dataclass
class Teller:
    """A sample of a news whose clock stands where it is put."""

    now: float = 10.0
    is_patient: bool = False
    heard: list[EngineEvent] = field(default_factory=list)
    cancelled: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.news = News(self.cancelled.append, clock=lambda: self.now)
        request = EngineRequest(prompts=[(1, 2)], max_tokens=50, is_patient=self.is_patient)
        self.sample = Sample(ScheduledRequest(request=request), self.heard.append)

    def step(self, token: int, ending: Finished | None = None) -> None:
        choices = host_choices(np.array([[[token, 0]]], np.int32))
        self.news.add(
            self.sample,
            Outcome(sample=self.sample, choices=choices, num_new=1, ending=ending),
        )

    def tell(self, *, at: float, apart: float) -> list[list[int]]:
        """Ids of each event of words that is heard then."""
        self.now, before = at, len(self.heard)
        self.news.tell(apart=apart)
        return [
            [score.id for score in event.scores]
            for event in self.heard[before:]
            if isinstance(event, NewTokens)
        ]


def test_the_first_word_is_told_at_once_and_later_ones_apart() -> None:
    teller = Teller()
    teller.news.add(teller.sample, PromptProgress(num_done=2, num_tokens=2, num_cached=0))
    assert teller.tell(at=9.999, apart=5.0) == []
    teller.step(7)
    assert teller.tell(at=10.0, apart=0.02) == [[7]]
    teller.step(8)
    assert teller.tell(at=10.01, apart=0.02) == []
    assert bool(teller.news)
    teller.step(9)
    assert teller.tell(at=10.02, apart=0.02) == [[8, 9]]
    assert not teller.news
    teller.step(3)
    assert teller.tell(at=10.03, apart=0.0) == [[3]]


def test_an_end_is_told_at_once_behind_what_waits() -> None:
    teller = Teller()
    teller.step(7)
    teller.tell(at=10.0, apart=1.0)
    teller.step(8)
    assert teller.tell(at=10.1, apart=1.0) == []
    teller.step(9, Finished(reason="length"))
    assert teller.tell(at=10.2, apart=1.0) == [[8, 9]]
    assert teller.heard[-1] == Finished(reason="length")


def test_samples_wait_each_for_itself() -> None:
    first, second = Teller(), Teller()
    second.news = first.news
    first.step(1)
    first.tell(at=10.0, apart=1.0)
    first.step(2)
    second.step(5)
    assert first.tell(at=10.5, apart=1.0) == []
    assert [event.scores[0].id for event in second.heard if isinstance(event, NewTokens)] == [5]


@pytest.mark.parametrize(("count", "least", "most"), [(1, 0, 0.003), (8, 0.008, 0.025)])
def test_few_hear_each_word(count: int, least: float, most: float) -> None:
    assert least <= time_apart(count) <= most
    assert time_apart(1000) == MOST_APART


def test_a_pause_lasts_until_the_first_of_them_is_due() -> None:
    first, second = Teller(), Teller()
    for teller, told in ((first, 10.0), (second, 10.4)):
        teller.step(1)
        teller.tell(at=told, apart=1.0)
    both = [first.sample, second.sample]
    first.now = 10.6
    assert first.news.pause(both, apart=1.0) == pytest.approx(0.4)
    assert first.news.pause(both[1:], apart=1.0) == pytest.approx(0.8)
    first.now = 11.5
    assert first.news.pause(both, apart=1.0) == 0.0


def test_who_is_nearly_due_hears_with_the_others() -> None:
    teller = Teller()
    teller.step(1)
    teller.tell(at=10.0, apart=1.0)
    teller.step(2)
    assert teller.tell(at=10.7, apart=1.0) == []
    assert teller.tell(at=10.8, apart=1.0) == [[2]]


def test_who_is_patient_hears_the_first_word_the_end_and_large_parts_between() -> None:
    teller = Teller(is_patient=True)
    teller.step(1)
    assert teller.tell(at=10.0, apart=0.0) == [[1]]
    teller.step(2)
    teller.step(3)
    assert teller.tell(at=10.2, apart=0.0) == []
    assert teller.news.pause([teller.sample], apart=0.0) > 0.2
    assert teller.tell(at=10.0 + PATIENT_APART, apart=0.0) == [[2, 3]]
    teller.step(4, Finished(reason="length"))
    assert teller.tell(at=10.6, apart=0.0) == [[4]]


def test_nothing_of_one_who_has_cancelled_is_kept_back() -> None:
    teller = Teller(is_patient=True)
    teller.step(1)
    teller.tell(at=10.0, apart=0.0)
    teller.step(2)
    teller.sample.is_cancelled = True
    assert teller.tell(at=10.1, apart=0.0) == []
    assert not teller.news
