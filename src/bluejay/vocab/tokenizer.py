"""Text to ids and back: byte-level byte-pair encoding."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import processors

from bluejay.core.errors import CheckpointError, DataError, UsageError
from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS, token_to_bytes
from bluejay.vocab.hf_files import write_tokenizer_files
from bluejay.vocab.quoting import quoted
from bluejay.vocab.roles import SpecialRoles

EXTRA_TOKEN = re.compile(r"<\|extratoken_[0-9]+\|>")
"""Names that GPT-J's tokenizer gives to padding rows of the embedding: never trained."""

# Encoding one text also computes its offsets, which takes 4 times as long as the ids of a long
# one (1 million combining marks: 2.0 s against 0.5 s). The way without starts a thread pool, and
# forking after that warns: it is left to texts that need it.
_LONG_TEXT = 1 << 16


class Tokenizer:
    """A byte-level tokenizer: every token stands for bytes, text is their concatenation.

    Names of special tokens inside text are plain text, unless a call allows them. Immutable and
    safe to share between threads. `backend` is taken over: do not use it elsewhere.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, roles: SpecialRoles | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        # Offsets that cover the text, spaces included.
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        self._backend = backend
        self._ids_by_name: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self._added: dict[int, tokenizers.AddedToken] = backend.get_added_tokens_decoder()
        self.roles = roles or SpecialRoles()
        self.vocab_size = 1 + max(self._ids_by_name.values(), default=-1)
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)
        self._check_roles()

    @property
    def bos_id(self) -> int | None:
        return self.roles.bos

    @property
    def eos_id(self) -> int | None:
        return self.roles.eos

    @property
    def pad_id(self) -> int | None:
        return self.roles.pad

    @property
    def unk_id(self) -> int | None:
        return self.roles.unk

    @property
    def document_start_id(self) -> int | None:
        """The id before each training document."""
        return self.roles.document_start

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a generated text."""
        return self.roles.stops

    def token_id(self, name: str) -> int | None:
        """The id of a token by its name: `<|endoftext|>`, or in GPT-2's alphabet `Ġthe`."""
        return self._ids_by_name.get(name)

    def token_name(self, token_id: int) -> str:
        """The name of a token, in GPT-2's alphabet unless it is an added token."""
        name = self._names.get(token_id)
        return self._refuse_id(token_id) if name is None else name

    def encode(
        self, text: str, *, add_special: bool = False, allow_special: bool = False
    ) -> list[int]:
        """Ids of `text`; `add_special` puts `roles.prefix` and `roles.suffix` around them.

        `allow_special` reads names of special tokens in the text as those tokens: only for text
        that no user wrote. Raises DataError for lone surrogates, and for characters that this
        tokenizer has no bytes for.
        """
        backend = self._backend_for_special if allow_special else self._backend
        try:
            if len(text) < _LONG_TEXT:
                ids: list[int] = backend.encode(text, add_special_tokens=False).ids
            else:
                [encoding] = backend.encode_batch_fast([text], add_special_tokens=False)
                ids = encoding.ids
        except TypeError as error:
            raise (_text_error(text) or error) from error
        self._check_bytes(text)
        return [*self.roles.prefix, *ids, *self.roles.suffix] if add_special else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores; as `encode` gives them one by one."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise next(filter(None, map(_text_error, texts)), None) or error from error
        for text in texts:
            self._check_bytes(text)
        return [encoding.ids for encoding in encodings]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each id of `encode(text)` the characters it has bytes of, as (start, end).

        A character whose bytes are spread over several tokens belongs to each of them.
        """
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise (_text_error(text) or error) from error
        self._check_bytes(text)
        offsets: list[tuple[int, int]] = encoding.offsets
        return offsets

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD as `bytes.decode` does it."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The concatenated bytes of the ids. DataError names an id that has no token."""
        table = self._bytes
        skipped = self.special_ids if skip_special else frozenset()
        try:
            return b"".join([table[i] for i in ids if i not in skipped])
        except KeyError as error:
            self._refuse_id(error.args[0])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for; an added token's are its name in UTF-8."""
        data = self._bytes.get(token_id)
        return self._refuse_id(token_id) if data is None else data

    def has_same_tokens(self, other: "Tokenizer") -> bool:
        """Whether every id stands for the same bytes in both, and is special in both or neither."""
        return (
            self.token_bytes_table() == other.token_bytes_table()
            and self.special_ids == other.special_ids
        )

    def token_bytes_table(self) -> list[bytes | None]:
        """The bytes of every id below `vocab_size`; None where an id has no token."""
        return [self._bytes.get(token_id) for token_id in range(self.vocab_size)]

    def sampleable_mask(self, vocab_rows: int) -> NDArray[np.bool_]:
        """bool [vocab_rows]: True for ids that may be sampled and may count in the loss.

        False for ids without a token and for `<|extratoken_N|>`: by name, because the numbers
        mean other things elsewhere (CodeGen writes runs of spaces with ids from 50257 up).
        UsageError if the model has too few rows for the tokenizer.
        """
        allowed = [i for n, i in self._ids_by_name.items() if not EXTRA_TOKEN.fullmatch(n)]
        if max(allowed, default=-1) >= vocab_rows:
            raise UsageError(
                f"the model has {vocab_rows} vocabulary rows and the tokenizer needs"
                f" {max(allowed) + 1}: use the tokenizer the model was made with"
            )
        mask = np.zeros(vocab_rows, np.bool_)
        mask[allowed] = True
        return mask

    @cached_property
    def missing_bytes(self) -> bytes:
        """The byte values no token stands for: text that has one of them cannot be encoded."""
        return bytes(b for b, char in enumerate(BYTE_CHARACTERS) if char not in self._ids_by_name)

    @cached_property
    def sha256(self) -> str:
        """Identity, in hexadecimal: equal when text gives the same ids and ids the same bytes.

        Roles, offsets and the layout of the files do not change it.
        """
        document = self.document()
        identity = {
            "model": {key: document["model"].get(key) for key in ("vocab", "merges")}
            | {"ignore_merges": document["model"].get("ignore_merges") or False},
            "added": sorted(document["added_tokens"], key=lambda token: int(token["id"])),
            "normalizer": document["normalizer"],
            "pre_tokenizer": _without_key(document["pre_tokenizer"], "trim_offsets"),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def document(self) -> dict[str, Any]:
        """The content of a `tokenizer.json`, as `tokenizers` writes it."""
        loaded: dict[str, Any] = json.loads(self._backend.to_str())
        return loaded

    def save(self, folder: Path) -> None:
        """Write the tokenizer files of a Hugging Face folder, made if it is not there.

        `transformers.AutoTokenizer` and `load_tokenizer` read them. DiskError if that fails.
        """
        write_tokenizer_files(folder, document=self.document(), roles=self.roles)

    @cached_property
    def _names(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self._ids_by_name.items()}

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        table = {token_id: token_to_bytes(name) for name, token_id in self._ids_by_name.items()}
        return table | {i: token.content.encode("utf-8") for i, token in self._added.items()}

    @cached_property
    def _backend_for_special(self) -> tokenizers.Tokenizer:
        # A second copy: switching the flag of the first would not be safe between threads.
        return tokenizers.Tokenizer.from_str(self._backend.to_str())

    def _check_roles(self) -> None:
        roles = self.roles
        single = (roles.bos, roles.eos, roles.pad, roles.unk, roles.document_start)
        for role_id in {*single, *roles.stops, *roles.prefix, *roles.suffix} - {None}:
            if role_id not in self._names:
                raise CheckpointError(
                    f"the special id {quoted(role_id)} has no token in a vocabulary of"
                    f" {self.vocab_size}: correct it in the tokenizer's files"
                )

    def _check_bytes(self, text: str) -> None:
        if not self.missing_bytes:
            return
        data = text.encode("utf-8")
        if len(data) == len(data.translate(None, self.missing_bytes)):
            return
        missing = frozenset(self.missing_bytes)
        index, char = next((i, c) for i, c in enumerate(text) if missing & set(c.encode()))
        raise DataError(
            f"the character U+{ord(char):04X} at position {index} cannot be written with this"
            " tokenizer, which has no token for its bytes: remove it from the text"
        )

    def _refuse_id(self, token_id: int) -> NoReturn:
        raise DataError(
            f"id {quoted(token_id)} has no token: this tokenizer's ids are 0 to"
            f" {self.vocab_size - 1}"
        )


def _text_error(text: object) -> DataError | UsageError | None:
    """Why `tokenizers` would not take it; None if it would."""
    if not isinstance(text, str):
        return UsageError(f"text to encode must be str, not {type(text).__name__}: decode it first")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return DataError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at position"
            f" {error.start}, which is no character: replace or remove it"
        )
    return None


def _without_key(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {k: _without_key(v, key) for k, v in value.items() if k != key}
    return [_without_key(v, key) for v in value] if isinstance(value, list) else value
