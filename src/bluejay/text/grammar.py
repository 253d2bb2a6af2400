"""Text that keeps to a JSON schema, a regular expression or a grammar, by llguidance.

A grammar walks along with one sample: it tells which ids may come next and takes the one that came.

Axes: V vocabulary rows of the model
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.vocab.tokenizer import Tokenizer

GrammarKind = Literal["json_schema", "regex", "lark", "gbnf"]

# A small model may write white space for ever where it is allowed for ever.
_JSON_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,16}"
# What llguidance calls the ways in which it stops.
_STOPS: Final = {
    "InternalError": "no text matches it",
    "NoExtension": "no text matches it",
    "NoExtensionBias": "no text matches it",
    "LexerTooComplex": "its patterns need too much work for one token",
    "ParserTooComplex": "its rules need too much work for one token",
}
_NOUNS: Final = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "lark": "Lark grammar",
    "gbnf": "GBNF grammar",
}
# The brackets that nest, and what quotes them: a string, or a class of characters.
_NESTING: Final = {
    "json_schema": ("{[", "]}", {'"': '"'}),
    "regex": ("(", ")", {"[": "]"}),
    "lark": ("(", ")", {'"': '"'}),
    "gbnf": ("(", ")", {'"': '"', "[": "]"}),
}


@dataclass(frozen=True, kw_only=True)
class GrammarLimits:
    """What a grammar from outside may be; seconds are those of one thread's computing."""

    max_bytes: int = 16 * 1024
    max_depth: int = 64
    max_seconds: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What a text must match as a whole; `source` is JSON, a pattern, or rules.

    GBNF is the notation of llama.cpp's grammars (`root ::= ...`); Lark's rules begin at `start`.
    """

    kind: GrammarKind
    source: str

    @property
    def noun(self) -> str:
        """What it is called in messages."""
        return _NOUNS[self.kind]

    @property
    def num_bytes(self) -> int:
        """Of the source in UTF-8."""
        return len(self.source.encode("utf-8", errors="surrogatepass"))

    @property
    def depth(self) -> int:
        """The deepest nesting of brackets that are not quoted."""
        opening, closing, quotes = _NESTING[self.kind]
        depth = deepest = 0
        end_of_quote, escaped = "", False
        for char in self.source:
            if escaped or char == "\\":
                escaped = not escaped
            elif end_of_quote:
                end_of_quote = "" if char == end_of_quote else end_of_quote
            elif char in quotes:
                end_of_quote = quotes[char]
            else:
                depth += (char in opening) - (char in closing)
                deepest = max(deepest, depth)
        return deepest


JSON_OBJECT: Final = Grammar(kind="json_schema", source='{"type":"object"}')
"""Any JSON object."""


def json_schema_grammar(schema: Mapping[str, Any] | bool) -> Grammar:
    """A grammar of the JSON texts that fit a schema, their names in the schema's order."""
    if not isinstance(schema, Mapping | bool):
        raise UsageError(
            f"A JSON schema must be an object or a boolean, not {type(schema).__name__}."
        )
    if schema is False:
        raise UsageError("The JSON schema false admits nothing: give a schema that admits a text.")
    try:
        source = json.dumps(
            {} if schema is True else schema, ensure_ascii=False, separators=(",", ":")
        )
    except RecursionError:
        raise UsageError(
            "The JSON schema is nested deeper than any that can be used: make it flatter."
        ) from None
    return Grammar(kind="json_schema", source=source)


def rules_grammar(source: str) -> Grammar:
    """A grammar from rules in GBNF or Lark; only GBNF writes `::=`."""
    return Grammar(kind="gbnf" if "::=" in source else "lark", source=source)


class GrammarConstraint:
    """A grammar that walks along with one sample: the engine's `Constraint`."""

    def __init__(self, matcher: LLMatcher, sampleable: NDArray[np.bool_], noun: str) -> None:
        self._matcher, self._sampleable, self._noun = matcher, sampleable, noun
        self._allowed: NDArray[np.bool_] | None = None

    def allowed(self) -> NDArray[np.bool_]:
        """[V] bool: the ids that may come next, with those that end a text where it may end.

        UsageError if none may: the rest of the text cannot be written, or the state of the grammar
        has become too large.
        """
        if self._allowed is None:
            mask = np.zeros(self._sampleable.size, np.bool_)
            biases = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)[: mask.size]
            mask[: biases.size] = biases != 0
            self._raise_error()
            mask &= self._sampleable
            if not mask.any():
                raise UsageError(
                    f"The {self._noun} admits no token of this model here: allow more text."
                )
            mask.flags.writeable = False
            self._allowed = mask
        return self._allowed

    def accept(self, token: int) -> None:
        """The id that came. UsageError if the grammar does not allow it."""
        self._allowed = None
        if not self._matcher.consume_token(token):
            self._raise_error()
            raise UsageError(f"The {self._noun} does not allow the token {token} here.")

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow but an id that ends the text."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def may_end(self) -> bool:
        """Whether the text so far matches the whole grammar."""
        return self._matcher.is_accepting()

    def _raise_error(self) -> None:
        # A schema that refers only to itself stops without an error of its own.
        is_dead_end = self._matcher.is_stopped() and not self._matcher.is_accepting()
        if self._matcher.is_error() or is_dead_end:
            reason = _reason(self._matcher.get_error()) or "no text matches it"
            raise UsageError(f"The {self._noun} cannot be followed: {reason}.")


class CompiledGrammar:
    """A grammar for one tokenizer; every sample starts at its beginning."""

    def __init__(self, matcher: LLMatcher, sampleable: NDArray[np.bool_], noun: str) -> None:
        self._matcher, self._sampleable, self._noun = matcher, sampleable, noun

    def start(self) -> GrammarConstraint:
        """A constraint for one sample."""
        return GrammarConstraint(self._matcher.deep_copy(), self._sampleable, self._noun)


def compile_grammar(
    grammar: Grammar,
    tokenizer: Tokenizer,
    *,
    vocab_rows: int,
    limits: GrammarLimits | None = None,
) -> CompiledGrammar:
    """A grammar for a model with `vocab_rows` rows.

    Raises UsageError with the reason if it is malformed, uses what is not supported (look-around,
    back-references, remote references), is too large, or admits no text at all.
    """
    noun, bounds = grammar.noun, limits or GrammarLimits()
    _check_size(grammar, bounds)
    vocabulary, sampleable = _vocabulary(tokenizer, vocab_rows)
    # The time of this thread: a machine busy with other work does not make a grammar too large.
    began = time.thread_time()
    matcher = LLMatcher(
        vocabulary,
        _rules(grammar),
        log_level=0,
        limits=LLParserLimits(verbose_errors=False),
    )
    if matcher.is_error():
        reason = _reason(matcher.get_error())
        raise UsageError(f"The {noun} cannot be used: {reason}.")
    compiled = CompiledGrammar(matcher, sampleable, noun)
    compiled.start().allowed()
    spent = time.thread_time() - began
    if spent > bounds.max_seconds:
        raise UsageError(
            f"The {noun} took {spent:.2f} s to prepare and may take {bounds.max_seconds:g} s: "
            "make it simpler."
        )
    return compiled


def _check_size(grammar: Grammar, limits: GrammarLimits) -> None:
    size = grammar.num_bytes
    if size > limits.max_bytes:
        raise UsageError(
            f"The {grammar.noun} has {size} bytes and may have {limits.max_bytes}: shorten it."
        )
    depth = grammar.depth
    if depth > limits.max_depth:
        raise UsageError(
            f"The {grammar.noun} is nested {depth} deep and may be {limits.max_depth}: "
            "make it flatter."
        )


def _rules(grammar: Grammar) -> str:
    """What llguidance reads."""
    try:
        if grammar.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(
                grammar.source, defaults={"whitespace_pattern": _JSON_SPACE}
            )
        if grammar.kind == "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        rules = any_to_lark(grammar.source) if grammar.kind == "gbnf" else grammar.source
        return LLMatcher.grammar_from_lark(rules)
    except Exception as error:  # The converter raises `Exception` itself.
        raise UsageError(f"The {grammar.noun} cannot be used: {_reason(str(error))}.") from error


class _Vocabulary:
    """What `TokenizerWrapper` asks for; ids without a token are empty and never allowed."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_rows: int) -> None:
        table = tokenizer.token_bytes_table()
        # One id more, for a tokenizer that has none that ends a text.
        size = max(vocab_rows, len(table)) + 1
        self.tokens = [data or b"" for data in table] + [b""] * (size - len(table))
        self.stop_ids = sorted(tokenizer.stop_ids) or [size - 1]
        self.eos_token_id = self.stop_ids[0]
        self.special_token_ids = sorted(tokenizer.special_ids | set(self.stop_ids))
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        return self._tokenizer.encode(plain)


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, vocab_rows: int) -> tuple[LLTokenizer, NDArray[np.bool_]]:
    vocabulary = _Vocabulary(tokenizer, vocab_rows)
    built = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.stop_ids)
    return built, tokenizer.sampleable_mask(vocab_rows)


def _reason(message: str) -> str:
    """The telling line of an error of llguidance, which also draws where it is."""
    message = message.replace("<non-verbose/>", "")
    found = re.findall(r"^error: (.+)$", message, flags=re.MULTILINE)
    line = found[-1] if found else next(iter(message.strip().splitlines()), "")
    line = re.sub(r"^at \d+\(\d+\): ", "", line).strip().rstrip(".:")
    return _STOPS.get(line, line)
