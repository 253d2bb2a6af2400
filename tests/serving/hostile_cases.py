"""What a server must withstand, case by case: the bytes that are sent, and the status they get.

A case with status 200 is one that looks hostile and is legal. Names are those of the list of bad
inputs that the suite follows: JSON, fields, bombs for the tokenizer, grammars, HTTP, files.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bluejay.generation.sampling_params import MAX_SEED, MAX_TOP_K
from serving.live_server import Raw

SECRET = "xylophone"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A live server and the numbers of its model: rows of its embedding, ids, tokens it holds."""

    raw: Raw
    num_rows: int
    num_ids: int
    context: int


Make = Callable[[Target], bytes]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`part` is in the sentence of a refusal; `needs_model`: tables cannot answer it."""

    name: str
    make: Make
    status: int = 400
    part: str = ""
    needs_model: bool = field(default=False)


def _raw_body(body: bytes, **headers: str) -> Make:
    named = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return lambda to: to.raw.encode("POST", COMPLETIONS, headers=list(named.items()), body=body)


def _fields(path: str = COMPLETIONS, **fields: Any) -> Make:
    """A body whose other fields are right; a function is asked what its value is."""

    def make(to: Target) -> bytes:
        own = {"prompt": SECRET, "max_tokens": 1} if path == COMPLETIONS else {}
        given = {name: value(to) if callable(value) else value for name, value in fields.items()}
        headers = [("Content-Type", "application/json")]
        return to.raw.encode("POST", path, headers=headers, body=json.dumps(own | given).encode())

    return make


def _with(text: str) -> Make:
    """A body with `text` as its further fields."""
    return _raw_body(f'{{"prompt":"{SECRET}",{text}}}'.encode())


DEEP = 100_000
_DRIP = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"prompt":"a","max_tokens":1}')


def json_cases() -> Iterator[Case]:
    """What is no JSON, or is JSON that readers understand differently."""
    good = f'{{"prompt":"{SECRET}","max_tokens":1}}'
    for name, body, part in (
        ("empty", b"", "empty"),
        ("null", b"null", "'null'"),
        ("array", b"[]", "'array'"),
        ("100k-deep nesting", b'{"prompt":' + b"[" * DEEP + b"]" * DEEP + b"}", "too deeply"),
        ("100k-deep objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP, "too deeply"),
        ("not UTF-8", b'{"prompt":"xylophone\xff"}', "not UTF-8"),
        ("UTF-16", good.encode("utf-16"), "byte order mark"),
        ("UTF-16 without its mark", good.encode("utf-16-le"), "UTF-8"),
        ("BOM", b"\xef\xbb\xbf" + good.encode(), "byte order mark"),
        ("lone surrogate", rb'{"prompt":"xylophone\ud800"}', "surrogate"),
        ("NUL", b'{"prompt":"xylophone\0"}', "control character"),
        ("trailing garbage", good.encode() + b" {}", "extra data"),
        ("body cut off", good.encode()[:-4], ""),
    ):
        yield Case(name=name, make=_raw_body(body), part=part)
    for name, text, part in (
        ("duplicate keys", '"n":1,"n":2', "twice"),
        ("NaN", '"temperature":NaN', "NaN"),
        ("Infinity", '"temperature":Infinity', "Infinity"),
        ("-Infinity", '"temperature":-Infinity', "Infinity"),
        ("1e999", '"temperature":1e999', "out of range"),
        ("10^5-digit integer", '"n":' + "9" * 10**5, "out of range"),
        ("true for int", '"n":true', "expected 'int"),
        ('"5"', '"n":"5"', "expected 'int"),
        ("1.5", '"n":1.5', "expected 'int"),
    ):
        yield Case(name=name, make=_with(text), part=part)
    yield Case(name="NUL, escaped", make=_with(r'"stop":"\u0000","max_tokens":1'), status=200)
    yield Case(name="-0", make=_with('"temperature":-0,"max_tokens":1'), status=200)
    yield Case(name="-0.0", make=_with('"temperature":-0.0,"max_tokens":1'), status=200)
    yield Case(
        name="1 MiB+1", make=_raw_body(b" " * (1 << 20) + b"1"), status=413, part="--max-body-bytes"
    )
    yield Case(
        name="chunked with a 1-byte drip",
        make=lambda to: to.raw.encode(
            "POST",
            COMPLETIONS,
            headers=[("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")],
            body=_DRIP + b"0\r\n\r\n",
        ),
        status=200,
    )


def integer_cases() -> Iterator[Case]:
    """Every whole number at -2^63, -1, 0, its largest value, one more, and 2^63."""
    most = {
        "max_tokens": lambda to: to.context - 1,
        "n": lambda to: 8,
        "best_of": lambda to: 8,
        "logprobs": lambda to: 20,
        "top_k": lambda to: MAX_TOP_K,
        "seed": lambda to: MAX_SEED,
        "timeout_ms": lambda to: 300_000,
    }
    for name, largest in most.items():
        zero = 200 if name in ("logprobs", "top_k", "seed") else 400
        for value, status in ((-(2**63), 400), (-1, 400), (0, zero), (2**63, 400)):
            yield Case(name=f"{name} {value}", make=_fields(**{name: value}), status=status)
        # One id, so that with the largest max_tokens the context is full.
        one = {"prompt": [1], "logit_bias": {}} if name == "max_tokens" else {}
        yield Case(name=f"{name} max", make=_fields(**one, **{name: largest}), status=200)
        over = _more(largest)
        yield Case(name=f"{name} max+1", make=_fields(**one, **{name: over}))


def _more(value: Callable[[Target], int]) -> Callable[[Target], int]:
    return lambda to: value(to) + 1


def field_cases() -> Iterator[Case]:
    """Values of the fields of completions."""
    for name, fields, part in (
        ("temperature -1", {"temperature": -1}, "temperature is -1"),
        ("temperature 2.01", {"temperature": 2.01}, "temperature is 2.01"),
        ("temperature 1e-30", {"temperature": 1e-30}, "temperature is 1e-30"),
        ("top_p 0", {"top_p": 0}, "top_p is 0"),
        ("top_p 1.01", {"top_p": 1.01}, "top_p is 1.01"),
        ('stop ""', {"stop": ""}, "stop string is empty"),
        ("stop of 5 items", {"stop": list("abcde")}, "--max-stop-strings"),
        ("stop of 65 chars", {"stop": "a" * 65}, "--max-stop-characters"),
        ('logit_bias key "abc"', {"logit_bias": {"abc": 1}}, "'abc'"),
        ("logit_bias id -1", {"logit_bias": {"-1": 1}}, "'-1'"),
        ("logit_bias value 1e38", {"logit_bias": {"1": 1e38}}, "-100 to 100"),
        ("logit_bias value -1e38", {"logit_bias": {"1": -1e38}}, "-100 to 100"),
        ("n=9", {"n": 9}, "--max-samples"),
        ("best_of < n", {"best_of": 2, "n": 3}, "raise best_of"),
        ("echo with suffix", {"echo": True, "suffix": SECRET}, "echo and suffix"),
        ("logprobs with best_of", {"logprobs": 1, "best_of": 2}, "logprobs cannot be combined"),
        ("unknown field", {"max_token": 1}, "did you mean 'max_tokens'?"),
        ('prompt ""', {"prompt": ""}, "prompt is empty"),
        ("2^31 as an id", {"prompt": [2**31]}, "the id 2147483648"),
        ("a negative id", {"prompt": [-1]}, "the id -1"),
        ("a mixed list", {"prompt": [1, SECRET]}, "mixes"),
        ("65 prompts", {"prompt": [SECRET] * 65}, "--max-prompts"),
        ("500k stop strings", {"stop": ["a"] * 200_000}, "--max-stop-strings"),
    ):
        yield Case(name=name, make=_fields(**fields), part=part)
    for name, fields in (("temperature 0", {"temperature": 0}), ("top_p 1", {"top_p": 1})):
        yield Case(name=name, make=_fields(**fields), status=200)
    yield Case(
        name="logit_bias id of a row too many",
        make=_fields(logit_bias=lambda to: {str(to.num_rows): 1}),
        part="logit_bias names",
    )
    yield Case(
        name="a prompt of one token too many",
        make=_fields(prompt=lambda to: [1] * (to.context + 1)),
        part="tokens",
    )
    for name, token in (
        ("ids >= vocab", lambda to: to.num_rows),
        ("the first padding id", lambda to: to.num_ids),
        ("the last padding id", lambda to: to.num_rows - 1 if to.num_rows > to.num_ids else -2),
    ):
        yield Case(name=name, make=_fields(prompt=_alone(token)), part="stands for nothing")


def _alone(token: Callable[[Target], int]) -> Callable[[Target], list[int]]:
    return lambda to: [token(to)]


_TEXT_FIELDS = {
    COMPLETIONS: "prompt",
    "/tokenize": "content",
    "/v1/embeddings": "input",
    "/v1/suggest": "text",
    "/v1/responses": "input",
}


def bomb_cases() -> Iterator[Case]:
    """Texts that some tokenizers take for ever over, or end their process by."""
    for path, name in _TEXT_FIELDS.items():
        for character in "a ^":
            text = character * 10**6
            yield Case(
                name=f"{character!r}·10^6 to {path}",
                make=_fields(path, **{name: text}),
                part="--max-prompt-characters",
            )
    for name, character in (("combining marks", "\u0301"), ("zero-width joiners", "\u200d")):
        text = f'{{"prompt":"{character * 10**6}"}}'.encode()
        yield Case(name=f"10^6 {name}", make=_raw_body(text), status=413, part="--max-body-bytes")
    for name, text in (
        ("letters", "a" * 32_768),
        ("spaces", " " * 32_768),
        ("carets", "^" * 32_768),
        ("combining marks", "\u0301" * 32_768),
        ("zero-width joiners", "\u200d" * 32_768),
        ("emoji", "👩‍👩‍👧‍👦" * 4_681),
    ):
        yield Case(name=f"as many {name} as may be, to complete", make=_fields(prompt=text))
        yield Case(
            name=f"as many {name} as may be, as ids",
            make=_fields("/tokenize", content=text),
            status=200,
        )
    emoji = "😀".encode()
    for cut in (1, 2, 3):
        body = b'{"prompt":"xylophone' + emoji[:cut] + b'"}'
        yield Case(name=f"emoji cut at byte {cut}", make=_raw_body(body), part="not UTF-8")


def _nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}, "required": ["a"]}
    return found


def _schema(schema: Any) -> dict[str, Any]:
    wrapped = {"name": SECRET, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


def _regex(pattern: str) -> dict[str, Any]:
    return {"grammar": f"start: /{pattern}/"}


def grammar_cases() -> Iterator[Case]:
    """Rules, patterns and schemas that are wrong, too large, or cannot end."""
    properties = {f"p{number}": {"type": "integer"} for number in range(2_000)}
    wide = {"type": "object", "properties": properties}
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    unions: dict[str, Any] = {"u0": {"type": "integer"}}
    for depth in range(16):
        both = [{"$ref": f"#/$defs/u{depth}"}, {"$ref": f"#/$defs/u{depth}"}]
        unions[f"u{depth + 1}"] = {"anyOf": both}
    doubled = {"$ref": "#/$defs/u16", "$defs": unions}
    choices = {"anyOf": [{"const": number} for number in range(2**15)]}
    for name, fields, status, part in (
        ("unbalanced", {"grammar": "root ::= ("}, 400, "grammar"),
        ("left recursion", {"grammar": 'root ::= root "a" | "a"'}, 200, ""),
        # Repetitions and unions are counted, not written out: these are as good as any.
        ("a{0,1000000}", _regex("a{0,1000000}"), 200, ""),
        ("((a{0,100}){0,100}){0,100}", _regex("((a{0,100}){0,100}){0,100}"), 200, ""),
        ("lookahead", _regex("a(?=b)"), 400, ""),
        ("back-reference", _regex(r"(a)\1"), 400, ""),
        ("remote $ref", _schema({"$ref": "http://127.0.0.1:9/a.json"}), 400, ""),
        ("$ref loop", _schema(loop), 400, ""),
        ("2,000 properties", _schema(wide), 400, "--max-grammar-bytes"),
        ("depth 200", _schema(_nested(200)), 400, "--max-grammar-depth"),
        ("2^16 unions", _schema(doubled), 200, ""),
        ("2^15 choices", _schema(choices), 400, "--max-grammar-bytes"),
        ("a schema that admits nothing", _schema(False), 400, ""),
        ("a grammar that admits nothing", {"grammar": "root ::= root"}, 400, ""),
    ):
        yield Case(name=name, make=_fields(**fields), status=status, part=part, needs_model=True)


_GZIP = zlib.compress(b'{"prompt":"' + b"0" * 10_000_000 + b'"}', wbits=31)
_RANGES = "bytes=" + ",".join(["0-"] * 10_000)


def _get(path: str, *headers: tuple[str, str], method: str = "GET", host: str = "") -> Make:
    return lambda to: to.raw.encode(method, path, headers=headers, host=host or None)


def _bytes(text: str) -> Make:
    return lambda to: text.encode("latin-1")


def http_cases() -> Iterator[Case]:
    """What is no HTTP as it should be, or asks for what is not there."""
    foreign = ("Origin", "https://evil.example")
    for name, make, status in (
        ("a header of 40 KB", _get("/live", ("X-A", "h" * 40_000)), 431),
        ("5,000 headers", _get("/live", *[("X-A", "b")] * 5_000), 431),
        ("no Host", _bytes("GET /live HTTP/1.1\r\n\r\n"), 400),
        ("bad Host", _bytes("GET /live HTTP/1.1\r\nHost: a b/c\r\n\r\n"), 400),
        ("two Hosts", _bytes("GET /live HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n"), 400),
        ("a foreign Host", _get("/live", host="evil.example"), 403),
        ("text/plain", _raw_body(b'{"prompt":"xylophone"}', Content_Type="text/plain"), 415),
        ("Content-Encoding: gzip bomb", _raw_body(_GZIP, Content_Encoding="gzip"), 415),
        ("HTTP/1.0", _bytes("GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n"), 200),
        ("absolute-URI", _get("http://127.0.0.1/live"), 400),
        ("%00", _get("/live%00"), 404),
        ("..%2f", _get("/static/..%2f..%2fetc/passwd"), 404),
        ("../ plainly", _get("/static/../../etc/passwd"), 404),
        ("Range x10k", _get("/live", ("Range", _RANGES)), 200),
        ("OPTIONS with a foreign Origin", _get(COMPLETIONS, foreign, method="OPTIONS"), 403),
        ("POST with a foreign Origin", _raw_body(b"{}", Origin="https://evil.example"), 403),
        ("a header that is folded", _bytes("GET /x HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n"), 400),
    ):
        yield Case(name=name, make=make, status=status)
    yield Case(
        name="a length and chunks at once",
        make=lambda to: to.raw.encode(
            "POST",
            COMPLETIONS,
            headers=[
                ("Content-Type", "application/json"),
                ("Content-Length", "3"),
                ("Transfer-Encoding", "chunked"),
            ],
            body=b"0\r\n\r\n",
        ),
        part="not both",
    )


def file_cases() -> Iterator[Case]:
    """Names that would be paths where a name opened a file."""
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "a\\b",
        "model.safetensors/",
        "http://127.0.0.1:9/a",
        "/dev/zero",
    ):
        yield Case(name=f"model {name!r}", make=_fields(model=name), status=404, part="no model")
        yield Case(
            name=f"adapter {name!r}", make=_fields(adapter=name), status=404, part="no adapter"
        )
    yield Case(name="a path as a model's name", make=_get("/v1/models/..%2f..%2fetc"), status=404)


CASES = {
    f"{group}: {case.name}": case
    for group, cases in (
        ("JSON", json_cases),
        ("Fields", integer_cases),
        ("Fields", field_cases),
        ("Tokeniser bombs", bomb_cases),
        ("Grammar", grammar_cases),
        ("HTTP", http_cases),
        ("Files", file_cases),
    )
    for case in cases()
}
"""By group and name."""
