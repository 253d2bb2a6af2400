"""The content of a `tokenizer.json` from strangers: checked whole, then handed to `tokenizers`.

`tokenizers` itself believes what it reads: it renumbers added tokens whose ids it does not like,
keeps the last of two equal names and drops text whose bytes have no token.
"""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders, models

from bluejay.core.errors import CheckpointError
from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS, NEEDED_BYTES
from bluejay.vocab.json_steps import steps
from bluejay.vocab.quoting import one_line, quoted
from bluejay.vocab.tokenizer import EXTRA_TOKEN

MAX_TOKENS = 1 << 20
"""Four times Gemma's 262,144, the largest vocabulary in use."""

_REMEDY = "Bluejay reads byte-level BPE tokenizers (GPT-2, GPT-J, CodeGen, NeoX, SmolLM2)"
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class _Refusals:
    """Says no in one sentence that begins with where the tokenizer came from."""

    where: str

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(one_line(f"{self.where}: {reason}"))

    def require(self, holds: bool, reason: str) -> None:
        if not holds:
            raise self.error(reason)


def build_backend(document: dict[str, Any], *, where: str) -> tokenizers.Tokenizer:
    """The tokenizer a document describes; `where` names its file in errors.

    Raises CheckpointError for other kinds than byte-level BPE, and for documents that contradict
    themselves: ids out of range or given twice, merges of tokens that do not exist, missing bytes.
    """
    refusals = _Refusals(where=where)
    vocab, merges = _check_model(document, refusals)
    _check_text_steps(document, refusals)
    _check_vocab(vocab, refusals)
    pairs = _checked_merges(merges, vocab, refusals)
    added = _checked_added_tokens(document.get("added_tokens") or [], vocab, refusals)
    try:
        backend = _construct(document, vocab=vocab, merges=pairs, added=added)
    except BaseException as error:  # panics of the Rust code are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error)[:160]
        raise refusals.error(f"`tokenizers` cannot read it ({reason}); export it again") from error
    taken = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    for token in added:
        if taken.get(token["id"]) != token["content"]:
            raise refusals.error(
                f"the added token {quoted(token['content'])} cannot have the id {token['id']},"
                " because ids before it are unused: number added tokens without gaps"
            )
    return backend


def _construct(
    document: dict[str, Any],
    *,
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    added: list[dict[str, Any]],
) -> tokenizers.Tokenizer:
    # The vocabulary does not go through JSON a second time: that would take 0.1 s.
    around = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": document.get("normalizer"),
        "pre_tokenizer": document["pre_tokenizer"],
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    backend = tokenizers.Tokenizer.from_str(json.dumps(around))
    ignore_merges = bool(document["model"].get("ignore_merges"))
    backend.model = models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    backend.decoder = decoders.ByteLevel()
    for token in added:
        flags = {flag: token[flag] for flag in _TOKEN_FLAGS}
        backend.add_tokens([tokenizers.AddedToken(token["content"], **flags)])
    return backend


def _check_model(
    document: dict[str, Any], refusals: _Refusals
) -> tuple[dict[str, Any], list[object]]:
    model = document.get("model")
    if not isinstance(model, dict):
        raise refusals.error('it has no "model", so it is no tokenizer.json')
    vocab, merges = model.get("vocab"), model.get("merges")
    kind = model.get("type", "BPE" if merges is not None else None)
    refusals.require(kind == "BPE", f"its model is {quoted(kind)}, not BPE; {_REMEDY}")
    if model.get("byte_fallback"):
        raise refusals.error(f"it is a SentencePiece BPE with byte fallback; {_REMEDY}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        refusals.require(
            not model.get(key), f"its model sets {key} to {quoted(model.get(key))}; {_REMEDY}"
        )
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise refusals.error("its model needs a vocab object and a list of merges")
    return vocab, merges


def _check_text_steps(document: dict[str, Any], refusals: _Refusals) -> None:
    for step in steps(document.get("normalizer")):
        refusals.require(
            step.get("type") == "NFC",
            f"its normalizer {quoted(step.get('type'))} changes the text; {_REMEDY}",
        )
    kinds = [step.get("type") for step in steps(document.get("pre_tokenizer"))]
    refusals.require(
        "ByteLevel" in kinds,
        f"it splits text by {', '.join(map(quoted, kinds)) or 'nothing'}, not by bytes; {_REMEDY}",
    )


def _check_vocab(vocab: dict[str, Any], refusals: _Refusals) -> None:
    refusals.require(
        len(vocab) <= MAX_TOKENS, f"{len(vocab):,} tokens, more than the {MAX_TOKENS:,} allowed"
    )
    seen: dict[int, str] = {}
    for name, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKENS or not name:
            raise _id_error(name, token_id, refusals)
        if token_id in seen:
            raise refusals.error(
                f"id {token_id} is given to {quoted(seen[token_id])} and to {quoted(name)}"
            )
        seen[token_id] = name
    missing = [byte for byte in sorted(NEEDED_BYTES) if BYTE_CHARACTERS[byte] not in vocab]
    if missing:
        raise refusals.error(
            f"{len(missing)} bytes that ordinary text needs have no token, the first is"
            f" 0x{missing[0]:02X}; {_REMEDY}"
        )


def _id_error(name: str, token_id: object, refusals: _Refusals) -> CheckpointError:
    if not name:
        return refusals.error(f"the token with id {quoted(token_id)} has an empty name")
    return refusals.error(
        f"the token {quoted(name)} has the id {quoted(token_id)}; ids are 0 to {MAX_TOKENS - 1}"
    )


def _checked_merges(
    merges: list[object], vocab: dict[str, int], refusals: _Refusals
) -> list[tuple[str, str]]:
    refusals.require(
        len(merges) <= MAX_TOKENS, f"{len(merges):,} merges, more than the {MAX_TOKENS:,} allowed"
    )
    pairs = []
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not (isinstance(pair[0], str) and isinstance(pair[1], str))
        ):
            raise refusals.error(f"merge {number} is {quoted(merge)}, not a pair of tokens")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise refusals.error(
                f"merge {number} joins {quoted(left)} and {quoted(right)}, but one of them or"
                " their union is no token"
            )
        pairs.append((left, right))
    return pairs


def _checked_added_tokens(
    added: object, vocab: dict[str, int], refusals: _Refusals
) -> list[dict[str, Any]]:
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise refusals.error("its added_tokens are not a list of objects")
    refusals.require(len(added) <= MAX_TOKENS, f"{len(added):,} added tokens are too many")
    names = {token_id: name for name, token_id in vocab.items()}
    ids: set[int] = set()
    contents: set[str] = set()
    kept = []
    for token in added:
        token_id, content = token.get("id"), token.get("content")
        if not isinstance(content, str) or not _is_unicode(content):
            raise refusals.error(f"an added token has the name {quoted(content)}, which is no text")
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKENS or not content:
            raise _id_error(content, token_id, refusals)
        if token_id in ids or content in contents:
            raise refusals.error(f"the added token {quoted(content)} ({token_id}) is there twice")
        if names.get(token_id, content) != content or vocab.get(content, token_id) != token_id:
            raise refusals.error(
                f"the added token {quoted(content)} with id {token_id} contradicts the vocabulary"
            )
        ids.add(token_id)
        contents.add(content)
        kept.append(_kept_token(token, token_id, content))
    return sorted(kept, key=lambda token: int(token["id"]))


def _kept_token(token: dict[str, Any], token_id: int, content: str) -> dict[str, Any]:
    flags = {flag: token.get(flag) is True for flag in _TOKEN_FLAGS}
    # Padding rows have names in GPT-J's files, and not as special tokens: text with such a name
    # would then reach rows that were never trained.
    flags["special"] |= EXTRA_TOKEN.fullmatch(content) is not None
    return {"id": token_id, "content": content, **flags}


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)
