import pytest
import tokenizers

from bluejay.core.errors import UsageError
from bluejay.text.conventions import TextConventions, conventions_of
from bluejay.text.prompt import fit_context, prompt_ids
from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS
from bluejay.vocab.gpt2 import gpt2_tokenizer, gptj_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from tokenizers_for_tests import smollm2_tokenizer


def without_roles() -> Tokenizer:
    vocab = {char: number for number, char in enumerate(BYTE_CHARACTERS)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(backend)


def test_gpt2_and_gptj_start_and_stop_at_50256() -> None:
    expected = TextConventions(document_start=(50256,), stop_ids=frozenset([50256]))
    assert conventions_of(gpt2_tokenizer()) == expected
    assert conventions_of(gptj_tokenizer()) == expected


def test_smollm2_starts_at_0_and_not_at_its_bos_and_stops_at_0_and_2() -> None:
    expected = TextConventions(document_start=(0,), stop_ids=frozenset([0, 2]))
    assert conventions_of(smollm2_tokenizer()) == expected


def test_a_prompt_is_its_ids_behind_the_document_start() -> None:
    assert prompt_ids(gpt2_tokenizer(), "Hello world") == [50256, 15496, 995]
    assert prompt_ids(gpt2_tokenizer(), "") == [50256]


def test_special_names_in_a_prompt_are_plain_text() -> None:
    assert prompt_ids(gpt2_tokenizer(), "<|endoftext|>").count(50256) == 1


def test_an_empty_prompt_without_a_document_start_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one character"):
        prompt_ids(without_roles(), "")


def test_a_prompt_that_fits_is_left_alone() -> None:
    assert fit_context([1, 2, 3], context_length=5, max_tokens=2) == [1, 2, 3]


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match=r"of 4 tokens and 2 new ones .* of 5 tokens by 1: "):
        fit_context([1, 2, 3, 4], context_length=5, max_tokens=2)


def test_trimming_drops_the_oldest_behind_the_kept_ones() -> None:
    ids = [0, 11, 12, 13, 14]
    trimmed = fit_context(ids, context_length=5, max_tokens=2, policy="trim", num_kept=1)
    assert trimmed == [0, 13, 14]
    assert fit_context(ids, context_length=5, max_tokens=2, policy="trim") == [12, 13, 14]


@pytest.mark.parametrize("policy", ["refuse", "trim"])
def test_new_tokens_that_leave_no_room_for_the_prompt_are_refused(policy: str) -> None:
    with pytest.raises(UsageError, match="set max_tokens to 2 or lower"):
        fit_context([0, 1, 2], context_length=5, max_tokens=5, policy=policy, num_kept=1)
