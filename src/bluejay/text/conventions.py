"""How a family of models starts a text and where it stops."""

from dataclasses import dataclass

from bluejay.vocab.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TextConventions:
    """`document_start` goes before every text; any of `stop_ids` ends a generated one."""

    document_start: tuple[int, ...]
    stop_ids: frozenset[int]


def conventions_of(tokenizer: Tokenizer) -> TextConventions:
    """The conventions of the training documents that this tokenizer was used on.

    A model expects what stood before its documents. GPT-2, GPT-J and CodeGen (50256), Pythia (0)
    and SmolLM2 (0) all packed documents behind `<|endoftext|>`, so wherever that token exists it
    starts a text, whatever the files call bos: SmolLM2's bos, `<|im_start|>`, opens a chat turn.
    Without the start SmolLM2 follows "How" with "-", with it by "does", "can", "to". Other families
    start with bos, or with nothing if they have none. Both that token and eos end a text
    (SmolLM2: 0 and `<|im_end|>`, 2).
    """
    start = tokenizer.document_start_id
    return TextConventions(
        document_start=() if start is None else (start,), stop_ids=tokenizer.stop_ids
    )
