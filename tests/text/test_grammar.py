import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from bluejay.core.errors import UsageError
from bluejay.text.grammar import (
    JSON_OBJECT,
    Grammar,
    GrammarConstraint,
    GrammarLimits,
    compile_grammar,
    json_schema_grammar,
    rules_grammar,
)
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from tokenizers_for_tests import codegen_tokenizer, small_document, smollm2_tokenizer

ROWS = 50_400  # GPT-J's: 143 more than its tokenizer has ids


def start(grammar: Grammar, tokenizer: Tokenizer | None = None) -> GrammarConstraint:
    return compile_grammar(grammar, tokenizer or gpt2_tokenizer(), vocab_rows=ROWS).start()


@cache
def single_bytes(tokenizer: Tokenizer) -> list[int]:
    table = tokenizer.token_bytes_table()
    return [i for i, data in enumerate(table) if data is not None and len(data) == 1]


def random_ids(
    constraint: GrammarConstraint, tokenizer: Tokenizer, seed: int, *, at_most: int
) -> Iterator[int]:
    """Ids as a model that knows nothing chooses them, up to a stop id."""
    choose = np.random.default_rng(seed)
    stops = tokenizer.stop_ids
    short = single_bytes(tokenizer)
    for _ in range(at_most):
        mask = constraint.allowed()
        allowed = np.flatnonzero(mask)
        ending = [stop for stop in stops if mask[stop]]
        if choose.random() < 0.4:  # A bracket as likely as any letter, so that texts end.
            allowed = [i for i in short if mask[i]] or allowed
        chosen = int(ending[0] if ending and choose.random() < 0.3 else choose.choice(allowed))
        constraint.accept(chosen)
        if chosen in stops:
            return
        yield chosen
        if constraint.is_complete:
            return


def random_text(grammar: Grammar, tokenizer: Tokenizer, seed: int, *, at_most: int = 400) -> str:
    """A whole text; fails if the grammar has not ended by then."""
    constraint = start(grammar, tokenizer)
    ids = list(random_ids(constraint, tokenizer, seed, at_most=at_most))
    assert constraint.may_end
    return tokenizer.decode(ids)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits the few keywords that the schemas below use."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    kind = schema["type"]
    if kind == "object":
        properties = schema.get("properties", {})
        known = properties.keys() if schema.get("additionalProperties") is False else value.keys()
        return (
            isinstance(value, dict)
            and set(schema.get("required", ())) <= value.keys() <= known | properties.keys()
            and all(fits(value[name], properties[name]) for name in value if name in properties)
        )
    if kind == "array":
        low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
        return low <= len(value) <= high and all(fits(item, schema["items"]) for item in value)
    if kind == "string":
        pattern = schema.get("pattern", "")
        low, high = schema.get("minLength", 0), schema.get("maxLength", 10**6)
        return (
            isinstance(value, str)
            and low <= len(value) <= high
            and re.search(pattern, value) is not None
        )
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -np.inf), schema.get("maximum", np.inf)
        is_kind = type(value) is int or (kind == "number" and type(value) is float)
        return is_kind and low <= value <= high
    return {"boolean": bool, "null": type(None)}[kind] is type(value)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["jay", "crow", None, 7]},
        "tall": {"type": "boolean"},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}]},
    {
        "type": "object",
        "properties": {
            "deep": {
                "type": "object",
                "properties": {"x": {"type": "number"}},
                "additionalProperties": False,
            }
        },
        "required": ["deep"],
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("tokenizer", [gpt2_tokenizer, smollm2_tokenizer, codegen_tokenizer])
def test_random_choices_are_json_of_the_schema(schema: dict[str, Any], tokenizer: Any) -> None:
    for seed in range(6):
        text = random_text(json_schema_grammar(schema), tokenizer(), seed)
        assert fits(json.loads(text), schema), text


def test_the_check_of_values_tells_them_apart() -> None:
    good = {"name": "Bo", "age": 3, "kind": None}
    assert fits(good, PERSON)
    for bad in ({**good, "age": -1}, {**good, "more": 1}, {"name": "Bo"}, {**good, "age": True}):
        assert not fits(bad, PERSON)
    assert not fits("abc-1234", SCHEMAS[3])


def test_json_object_is_an_object() -> None:
    for seed in range(8):
        constraint = start(JSON_OBJECT)
        text = gpt2_tokenizer().decode(random_ids(constraint, gpt2_tokenizer(), seed, at_most=60))
        assert text.startswith("{")
        if constraint.may_end:
            assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-c]{2,4}[0-9]",
        r"(yes|no|maybe)( indeed)?\.",
        r"[A-Z][a-z]{1,8}, (19|20)[0-9]{2}",
        r"#[0-9a-f]{6}",
        r"a{0,1000000}",
        r"((a{0,100}){0,100}){0,100}",
        r"ü+|(日本){1,3}",
        r"",
    ],
)
def test_random_choices_match_the_whole_pattern(pattern: str) -> None:
    for seed in range(6):
        text = random_text(Grammar(kind="regex", source=pattern), smollm2_tokenizer(), seed)
        assert re.fullmatch(pattern, text) is not None, text


@pytest.mark.parametrize(
    ("rules", "pattern"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ('root ::= root "a" | "b"', "ba*"),  # left recursion
        ('root ::= pair ("," pair)*\npair ::= [a-z]+ "=" [0-9]{1,3}', r"[a-z]+=\d+(,[a-z]+=\d+)*"),
        ('start: greeting NAME "!"\ngreeting: "Hello " | "Hi "\nNAME: /[A-Z][a-z]{1,6}/', "H.*!"),
        ('start: start "a" | "b"', "ba*"),
    ],
)
def test_rules_in_both_notations(rules: str, pattern: str) -> None:
    for seed in range(4):
        text = random_text(rules_grammar(rules), gpt2_tokenizer(), seed)
        assert re.fullmatch(pattern, text) is not None, text


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
MANY = {f"p{i}": {"type": "string"} for i in range(2000)}
# Each choice doubles what has to be told apart.
UNIONS = {
    "allOf": [
        {"anyOf": [{"properties": {f"{letter}{i}": {"type": "string"}}} for letter in "ab"]}
        for i in range(16)
    ]
}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "http://evil.example/x"}, "evil.example.*does not fetch"),
        (LOOP, "no text matches it"),
        ({"$ref": "#"}, "no text matches it"),
        (False, "schema false admits nothing"),
        ({"enum": []}, "empty"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\)"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "incompatible types"),
        ({"not": {"type": "string"}}, '"not"'),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "strong"}, "strong"),
        (UNIONS, "too large"),
        (nested(60), "nested 121 deep and may be 64"),
        (nested(200), "nested 401 deep and may be 64"),
        ({"type": "object", "properties": MANY}, "bytes and may have 16384"),
        ({"anyOf": [{"const": i} for i in range(2**16)]}, "may have 16384"),
    ],
)
def test_schemas_that_cannot_be_used_are_refused_with_the_reason(
    schema: dict[str, Any] | bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        start(json_schema_grammar(schema))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", "a)", "unopened group"),
        ("regex", "[a", "unclosed character class"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", "(" * 65 + "a" + ")" * 65, "nested 65 deep and may be 64"),
        ("regex", "a" * (16384 + 1), "16385 bytes and may have 16384"),
        ("lark", 'start: ( "a"', "Expected token"),
        ("lark", "start: x", "unknown name"),
        ("lark", 'begin: "a"', "start"),
        ("lark", "", "Empty grammar"),
        ("gbnf", "root ::= (", r"Expected '\)'"),
        ("gbnf", 'a ::= "b"', "root"),
        ("gbnf", "root ::= missing", "missing"),
        ("gbnf", "root ::= " + "(" * 2000 + '"a"' + ")" * 2000, "nested 2000 deep"),
        ("json_schema", "{bad", "cannot be used"),
        ("json_schema", "3", "object"),
    ],
)
def test_sources_that_cannot_be_used_are_refused_with_the_reason(
    kind: Any, source: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        start(Grammar(kind=kind, source=source))
    assert "\n" not in str(caught.value)


def test_a_schema_without_an_end_goes_on_and_does_not_spin() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    constraint = start(json_schema_grammar(endless))
    ids = list(random_ids(constraint, gpt2_tokenizer(), 0, at_most=50))
    assert len(ids) == 50
    assert not constraint.may_end


def test_the_mask_leaves_out_rows_without_a_token_and_ends_only_where_it_may() -> None:
    constraint = start(Grammar(kind="regex", source="(.|\n)*"))
    allowed = constraint.allowed()
    assert allowed.shape == (ROWS,)
    assert allowed.dtype == np.bool_
    assert not allowed[50_257:].any()
    assert allowed[50_256]
    digits = start(Grammar(kind="regex", source="[0-9]{3}"))
    assert not digits.allowed()[50_256]
    for char in "123":
        digits.accept(gpt2_tokenizer().encode(char)[0])
    assert list(np.flatnonzero(digits.allowed())) == [50_256]
    assert digits.is_complete


def gapped_tokenizer(*, end: bool) -> Tokenizer:
    """The 256 bytes, three words, and two ids that nothing has; with or without an end."""
    import tokenizers

    from bluejay.vocab.roles import SpecialRoles

    document = small_document()
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {name: i + 2 if i >= 257 else i for name, i in vocabulary.items()}
    document["added_tokens"] = []
    roles = SpecialRoles()
    if end:
        document["model"]["vocab"]["<|end|>"] = 265
        roles = SpecialRoles(eos=265, stops=frozenset({265}))
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(document)), roles=roles)


@pytest.mark.parametrize("end", [True, False])
def test_ids_without_a_token_are_never_allowed(end: bool) -> None:
    tokenizer = gapped_tokenizer(end=end)
    gaps = [i for i, data in enumerate(tokenizer.token_bytes_table()) if data is None]
    assert gaps
    compiled = compile_grammar(
        Grammar(kind="regex", source="( the)*!"), tokenizer, vocab_rows=tokenizer.vocab_size
    )
    constraint = compiled.start()
    assert not constraint.allowed()[gaps].any()
    ids = list(random_ids(constraint, tokenizer, 1, at_most=100))
    assert re.fullmatch("( the)*!", tokenizer.decode(ids)) is not None
    assert constraint.is_complete


def test_samples_of_one_grammar_do_not_share_their_place() -> None:
    compiled = compile_grammar(
        Grammar(kind="regex", source="[ac][bd]"), gpt2_tokenizer(), vocab_rows=ROWS
    )
    first, second = compiled.start(), compiled.start()
    first.accept(gpt2_tokenizer().encode("a")[0])
    assert second.allowed()[gpt2_tokenizer().encode("a")[0]]
    assert not first.allowed()[gpt2_tokenizer().encode("a")[0]]


def test_an_id_that_is_not_allowed_is_refused() -> None:
    constraint = start(Grammar(kind="regex", source="ab"))
    with pytest.raises(UsageError, match="regular expression"):
        constraint.accept(gpt2_tokenizer().encode("x")[0])


def test_limits_can_be_moved() -> None:
    deep = json_schema_grammar(nested(40))
    with pytest.raises(UsageError, match="nested 81 deep"):
        start(deep)
    limits = GrammarLimits(max_depth=100)
    compiled = compile_grammar(deep, gpt2_tokenizer(), vocab_rows=ROWS, limits=limits)
    assert compiled.start().allowed().any()
    with pytest.raises(UsageError, match="may take 1e-09 s"):
        compile_grammar(
            deep,
            gpt2_tokenizer(),
            vocab_rows=ROWS,
            limits=GrammarLimits(max_depth=100, max_seconds=1e-9),
        )
