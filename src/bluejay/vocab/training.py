"""Trains a byte-level BPE vocabulary on text."""

from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from bluejay.core.errors import DataError, UsageError
from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS
from bluejay.vocab.quoting import quoted
from bluejay.vocab.roles import END_OF_TEXT, assign_roles
from bluejay.vocab.tokenizer import Tokenizer


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    single_digits: bool = False,
    min_frequency: int = 2,
    max_token_length: int | None = None,
) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens; the same texts always give the same one.

    Ids are laid out as GPT-2's: the 256 bytes, the merges from most frequent, the special tokens
    last. Text is split as GPT-2 splits it before merging; `single_digits` also keeps every digit
    apart, as SmolLM2 does. `max_token_length`, in bytes, keeps out long rulers of dashes.
    Raises DataError if the texts do not have that many different pieces.
    """
    _check_request(vocab_size, special_tokens)
    if max_token_length is not None and max_token_length < 2:
        raise UsageError(
            f"tokens of at most {max_token_length} bytes cannot be learned: allow 2 or more"
        )
    num_learned = vocab_size - len(special_tokens)
    trained = _untrained(models.BPE(), single_digits=single_digits)
    trainer = trainers.BpeTrainer(
        vocab_size=num_learned,
        min_frequency=min_frequency,
        # The trainer joins two pieces only if that stays below its limit.
        max_token_length=max_token_length and max_token_length + 1,
        initial_alphabet=list(BYTE_CHARACTERS),
        show_progress=False,
    )
    trained.train_from_iterator(_checked(texts), trainer=trainer)
    found = trained.get_vocab_size()
    if found < num_learned:
        raise DataError(
            f"the texts give only {found + len(special_tokens)} tokens of the {vocab_size} asked"
            f" for: take more text or a vocabulary of {found + len(special_tokens)}"
        )
    trained.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special_tokens]
    )
    end = special_tokens[0] if special_tokens else None
    ends = {"bos": trained.token_to_id(end), "eos": trained.token_to_id(end)} if end else {}
    return Tokenizer(trained, roles=assign_roles(ends, id_of=trained.token_to_id))


def _untrained(model: models.BPE, *, single_digits: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    splits = pre_tokenizers.Sequence([digits, by_bytes]) if single_digits else by_bytes
    tokenizer.pre_tokenizer = splits
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _check_request(vocab_size: int, special_tokens: Sequence[str]) -> None:
    least = len(BYTE_CHARACTERS) + len(special_tokens)
    if vocab_size < least:
        raise UsageError(
            f"a vocabulary of {vocab_size} has no room for the 256 bytes and"
            f" {len(special_tokens)} special tokens: ask for {least} or more"
        )
    if len(set(special_tokens)) < len(special_tokens) or not all(special_tokens):
        raise UsageError(f"special tokens must have different names: {list(special_tokens)}")


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"text {number} is {quoted(text)}, not str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {number} has a lone surrogate at position {error.start}: replace it"
            ) from error
        yield text
