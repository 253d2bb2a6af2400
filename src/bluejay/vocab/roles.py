"""Which ids start, end, pad and stop text."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

END_OF_TEXT = "<|endoftext|>"
"""The token between documents in GPT-2 and what followed it (GPT-J, CodeGen, NeoX, SmolLM2)."""


@dataclass(frozen=True, kw_only=True)
class SpecialRoles:
    """The ids with a job; `None` where a tokenizer has none for it.

    `document_start` comes before a text as it did before each training document: the id of
    `<|endoftext|>` if there is one, else bos (SmolLM2 has bos 1 `<|im_start|>`, which opens a chat
    turn, and starts documents with 0). `stops` end a generated text. `prefix` and `suffix` are
    what the tokenizer's own files put around an input.
    """

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    document_start: int | None = None
    stops: frozenset[int] = frozenset()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


def assign_roles(
    named: dict[str, int | None],
    *,
    id_of: Callable[[str], int | None],
    stops: Iterable[int] = (),
    prefix: tuple[int, ...] = (),
    suffix: tuple[int, ...] = (),
) -> SpecialRoles:
    """Roles from the ids of `bos`, `eos`, `pad` and `unk` in `named`, and more `stops`."""
    end_of_text = id_of(END_OF_TEXT)
    bos, eos = named.get("bos"), named.get("eos")
    return SpecialRoles(
        bos=bos,
        eos=eos,
        pad=named.get("pad"),
        unk=named.get("unk"),
        document_start=bos if end_of_text is None else end_of_text,
        stops=frozenset({*stops, *(i for i in (eos, end_of_text) if i is not None)}),
        prefix=prefix,
        suffix=suffix,
    )
