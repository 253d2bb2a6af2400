"""Texts with a gap, for models that were trained to fill it. Starts without JAX."""

from collections.abc import Sequence
from dataclasses import dataclass

from bluejay.vocab.tokenizer import Tokenizer

# Of StarCoder and SantaCoder, and of what came after them (Qwen2.5-Coder).
_NAMES = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
)


@dataclass(frozen=True, kw_only=True)
class FillMarks:
    """The special ids before what precedes a gap, before what follows it, and before its text."""

    prefix: int
    suffix: int
    middle: int

    def prompt(self, before: Sequence[int], after: Sequence[int]) -> list[int]:
        """What a model continues with the text between `before` and `after`."""
        return [self.prefix, *before, self.suffix, *after, self.middle]


def fill_marks(tokenizer: Tokenizer) -> FillMarks | None:
    """The marks that a tokenizer has as special tokens; None where its models cannot fill a gap.

    GPT-J, CodeGen and SmolLM2 have none.
    """
    for names in _NAMES:
        prefix, suffix, middle = (tokenizer.token_id(name) for name in names)
        if prefix is None or suffix is None or middle is None:
            continue
        if {prefix, suffix, middle} <= tokenizer.special_ids:
            return FillMarks(prefix=prefix, suffix=suffix, middle=middle)
    return None
