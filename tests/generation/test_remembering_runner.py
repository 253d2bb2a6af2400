"""A runner that remembers, against one that does not: the same bits, whatever was asked before."""

import random

import numpy as np
import pytest

from bluejay.core.errors import UsageError
from bluejay.generation.remembered_rows import OwnedIds, RememberedRows
from bluejay.generation.remembering_runner import (
    FEWEST_ROWS,
    RememberingRunner,
    can_remember,
)
from bluejay.kernels.library import cpu_library
from speculation_models import VOCAB, runner_of

native = pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
RUNNER = runner_of("llama", 4, "float16")
CONTEXT = 200


def remembering(*, most_bytes: int = 1 << 20, rows: int = FEWEST_ROWS) -> RememberingRunner:
    return RememberingRunner(RUNNER, context_length=CONTEXT, num_rows=rows, most_bytes=most_bytes)


def ids_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@native
@pytest.mark.parametrize(
    "form", [("llama", 4, "float16"), ("gptj", 32, "float32"), ("gpt2", 8, "int8")]
)
def test_bits_are_those_of_the_runner_whatever_rows_are_copied(
    form: tuple[str, int, str],
) -> None:
    """Heads that grow and shrink over the sizes of chunks, and steps behind them, several in one
    call, with more of them than rows and with logits that are forgotten soon."""
    runner = runner_of(*form)
    assert can_remember(runner)
    memory = RememberingRunner(runner, context_length=CONTEXT, num_rows=FEWEST_ROWS, most_bytes=1)
    asked, draw = memory.of_tenant("a"), random.Random(1)
    text = ids_of(CONTEXT)
    for length in (3, 4, 6, 15, 17, 62, 63, 64, 65, 67, 80, 128, 131, 127, 66, 63, 5, 194, 197):
        other = [*text[: length - 1], draw.randrange(VOCAB)]
        for head in (text[:length], other, text[:length]):
            plain, found = runner.start(head, reserve=3), asked.start(head, reserve=3)
            assert np.array_equal(plain.logits, found.logits)
            tokens = draw.sample(range(VOCAB), 5)
            asked.branch_first([(found, token) for token in tokens])
            for token in tokens:
                one, mine = runner.branch(plain, token), asked.branch(found, token)
                assert np.array_equal(one.logits, mine.logits)
                two, mine = runner.branch(one, tokens[0]), asked.branch(mine, tokens[0])
                assert np.array_equal(two.logits, mine.logits)


@native
def test_what_was_asked_is_not_run_again_for_its_owner_alone() -> None:
    memory = remembering()
    head = ids_of(30)

    def calls_of(tenant: str) -> int:
        before, asked = memory.num_calls, memory.of_tenant(tenant)
        for token in (1, 2, 3):
            asked.branch(asked.start(head), token)
        return memory.num_calls - before

    first = calls_of("a")
    assert first == 2 + 3  # chunks of 16 ids, and steps
    assert calls_of("a") == 0
    assert calls_of("b") == first
    # What is typed on is one step of the head that is there, and another.
    memory.of_tenant("a").start([*head, 1])
    assert memory.num_calls == 2 * first


@native
def test_likely_steps_come_with_the_first() -> None:
    memory = remembering()
    asked = memory.of_tenant("")
    head = asked.start(ids_of(9))
    asked.branch_first([(head, token) for token in (5, 6, 7, 8)])
    before = memory.num_calls
    for token in (6, 7, 8):
        asked.branch(head, token)
    assert memory.num_calls == before
    # No call is made for guesses alone.
    asked.branch_first([(head, 5), (head, 9)])
    assert memory.num_calls == before


@native
def test_a_call_that_fails_leaves_a_memory_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = remembering()
    asked, text = memory.of_tenant(""), ids_of(20)
    asked.start(text[:10])
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_run_pieces", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asked.start(text)
    expected = RUNNER.start(text).logits
    assert np.array_equal(asked.start(text).logits, expected)


@native
def test_what_does_not_fit_is_refused() -> None:
    asked = remembering().of_tenant("")
    for ids, reserve, sentence in (
        ([], 0, "The prompt is empty"),
        ([VOCAB], 0, f"Token id {VOCAB} is outside"),
        ([1] * CONTEXT, 1, f"{CONTEXT + 1} tokens exceed the context of {CONTEXT}"),
    ):
        with pytest.raises(UsageError, match=sentence):
            asked.start(ids, reserve=reserve)
    full = asked.start([1] * CONTEXT)
    with pytest.raises(UsageError, match=f"{CONTEXT + 1} tokens exceed the context"):
        asked.branch(full, 1)


def test_positions_are_shared_where_they_ran_in_the_same_chunks() -> None:
    text = tuple(range(1000))

    def shared(held: int, wanted: int, *, same: int = 1000) -> int:
        other = (*text[:same], *(-1 for _ in text[same:]))
        of_held, of_wanted = (OwnedIds.of_prompt("", ids) for ids in (text[:held], other[:wanted]))
        return of_held.shared(of_wanted)

    # Below 64 all chunks have 16 positions, which have the bits of single steps.
    assert shared(20, 63) == 20
    assert shared(40, 30, same=25) == 25
    # The chunk of 64 has bits of its own.
    assert shared(63, 64) == shared(64, 63) == 0
    assert shared(100, 127) == 100
    assert shared(100, 130) == 64
    assert shared(100, 130, same=63) == 0
    # So has the chunk of 256.
    assert shared(255, 256) == 0
    assert shared(300, 400) == 256
    step = OwnedIds.of_prompt("", text[:63]).followed_by(63)
    assert step.shared(OwnedIds.of_prompt("", text[:64])) == 0
    assert step.shared(OwnedIds.of_prompt("", text[:60])) == 60


def test_loose_rows_do_not_take_the_place_of_firm_ones_and_owners_share_none() -> None:
    rows = RememberedRows(4, num_loose=2)
    head = OwnedIds.of_prompt("a", (1, 2, 3))
    rows.hold(rows.take(is_loose=False), head)
    for token in range(9):
        rows.hold(rows.take(is_loose=True), head.followed_by(token))
    assert rows.row_of(head) is not None
    assert rows.row_of(head.followed_by(6)) is None
    assert rows.row_of(head.followed_by(7)) is not None
    assert rows.nearest(OwnedIds.of_prompt("a", (1, 2, 3, 4)))[1] == 3
    assert rows.nearest(OwnedIds.of_prompt("b", (1, 2, 3, 4))) == (-1, 0)
