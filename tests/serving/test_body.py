"""Bodies that are not strict JSON of the asked type are refused with a sentence that says where."""

import json

import pytest

from bluejay.serving.body import decode_body
from bluejay.serving.errors import ApiError
from serving.example_routes import EchoBody

DEEP = 100_000
BODIES = {
    "empty": (b"", "empty"),
    "blank": (b" \n", "empty"),
    "null": (b"null", "expected 'object', got 'null'"),
    "array": (b"[]", "expected 'object', got 'array'"),
    "string": (b'"prompt"', "expected 'object'"),
    "deep arrays": (b'{"anything":' + b"[" * DEEP + b"]" * DEEP + b"}", "nested too deeply"),
    "deep and open": (b"[" * DEEP, "nested too deeply"),
    "deep objects": (b'{"anything":' * DEEP + b"1" + b"}" * DEEP, "nested too deeply"),
    "not UTF-8": (b'{"prompt":"\xff"}', "byte 11"),
    "not UTF-8 in any value": (b'{"anything":{"a":"\xc3"}}', "byte 18"),
    "half of a character": (b'{"prompt":"\xf0\x9f\x98"}', "not UTF-8"),
    "overlong": (b'{"prompt":"\xc0\xaf"}', "not UTF-8"),
    "surrogate in UTF-8": (b'{"prompt":"\xed\xa0\x80"}', "not UTF-8"),
    "UTF-16": ('{"prompt":"a"}'.encode("utf-16"), "byte order mark"),
    "UTF-16 without a mark": ('{"prompt":"a"}'.encode("utf-16-le"), "UTF-8"),
    "UTF-32": ('{"prompt":"a"}'.encode("utf-32-be"), "UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "lone surrogate": (rb'{"prompt":"\ud800"}', "surrogate"),
    "lone surrogate before text": (rb'{"prompt":"\udfffabcdefgh"}', "surrogate"),
    "lone surrogate in a key": (rb'{"\ud800":1}', "surrogate"),
    "lone surrogate anywhere": (rb'{"anything":{"a":["\udc00 "]}}', "surrogate"),
    "raw NUL": (b'{"prompt":"a\0"}', "control character"),
    "raw newline": (b'{"prompt":"a\n"}', "control character"),
    "duplicate": (b'{"max_tokens":1,"max_tokens":2}', "'max_tokens' twice"),
    "duplicate by escape": (rb'{"max_tokens":1,"max_token\u0073":2}', "'max_tokens' twice"),
    "duplicate further in": (b'{"options":{"weight":1,"weight":1}}', "'weight' twice"),
    "duplicate surrogates": (rb'{"\ud800":1,"\ud800":1}', "twice"),
    "NaN": (b'{"temperature":NaN}', "NaN"),
    "Infinity": (b'{"temperature":-Infinity}', "-Infinity"),
    "NaN anywhere": (b'{"anything":[NaN]}', "NaN"),
    "too large": (b'{"temperature":1e999}', "'temperature' is wrong: number out of range"),
    "very many digits": (b'{"max_tokens":' + b"9" * 100_000 + b"}", "99..., which is out of range"),
    "many digits": (b'{"max_tokens":' + b"9" * 1000 + b"}", "out of range"),
    "2 to the power of 63": (b'{"anything":[9223372036854775808]}', "out of range"),
    "one less than the least": (b'{"max_tokens":-9223372036854775809}', "out of range"),
    "fraction of many digits": (b'{"temperature":' + b"9" * 400 + b".5}", "out of range"),
    "true": (b'{"max_tokens":true}', "'max_tokens' is wrong: expected 'int', got 'bool'"),
    "text": (b'{"max_tokens":"5"}', "'max_tokens' is wrong: expected 'int', got 'str'"),
    "fraction": (b'{"max_tokens":1.5}', "'max_tokens' is wrong: expected 'int', got 'float'"),
    "in a list": (b'{"prompt":["a",[1,1.5]]}', "'prompt[1][1]' is wrong"),
    "in a map": (b'{"logit_bias":{"1":"2"}}', "'logit_bias[...]' is wrong"),
    "trailing garbage": (b'{} {"a":1}', "extra data at line 1, column 4"),
    "trailing comma": (b'{"max_tokens":1,}', "at line 1, column"),
    "comment": (b'{"max_tokens":1 // many\n}', "at line 1, column 17"),
    "single quotes": (b"{'max_tokens':1}", "line 1, column 2"),
    "cut off": (b'{"prompt":"a', "unterminated string"),
    "form": (b"prompt=a&max_tokens=1", "at line 1, column 1"),
    "unknown": (b'{"max_token":1}', "no field 'max_token'; did you mean 'max_tokens'?"),
    "unlike any": (b'{"zzz":1}', "no field 'zzz'."),
    "unknown further in": (b'{"options":{"color":1}}', "'options.color'; did you mean 'colour'?"),
    "unknown in a list": (b'{"many":[{},{"wait":1}]}', "did you mean 'weight'?"),
    "known elsewhere only": (b'{"options":{"max_tokens":1}}', "no field 'options.max_tokens'."),
    "of another's interface": (b'{"tools":[]}', "'tools' is not supported: runs no functions."),
    "a long name": (b'{"' + b"n" * 500_000 + b'":1}', "no field 'nnnn"),
    "a name with a line break": (rb'{"a\nb":1}', r"no field 'a\nb'."),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_wrong_with_a_body_is_said_in_one_sentence(name: str) -> None:
    body, part = BODIES[name]
    with pytest.raises(ApiError) as caught:
        decode_body(body, EchoBody, {"tools": "runs no functions."})
    assert caught.value.status == 400
    assert part in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    json.dumps(caught.value.envelope()).encode("ascii")


def test_the_field_that_is_wrong_is_named_for_programs_too() -> None:
    for body, param in [
        (b'{"max_tokens":"5"}', "max_tokens"),
        (b'{"prompt":["a",[1.5]]}', "prompt[1][0]"),
        (b'{"options":{"colour":1}}', "options.colour"),
        (b'{"options":{"color":1}}', "options.color"),
        (b'{"max_tokens":1,"max_tokens":1}', "max_tokens"),
        (b"[]", None),
    ]:
        with pytest.raises(ApiError) as caught:
            decode_body(body, EchoBody)
        assert caught.value.param == param


def test_what_is_valid_is_taken_as_it_is() -> None:
    text = "\0 é 😀 \u2028 ￿"
    escaped = json.dumps({"prompt": text}).encode()
    plain = json.dumps({"prompt": text}, ensure_ascii=False).encode()
    plain = plain.replace(b"\0", rb"\u0000")
    assert decode_body(escaped, EchoBody).prompt == text
    assert decode_body(plain, EchoBody).prompt == text
    assert decode_body(b'{"max_tokens":-0}', EchoBody).max_tokens == 0
    assert decode_body(b'{"temperature":1e-400}', EchoBody).temperature == 0.0
    most = b'{"max_tokens":9223372036854775807,"prompt":"99999999999999999999"}'
    assert decode_body(most, EchoBody).max_tokens == 2**63 - 1
    assert decode_body(b' {"prompt":[1,"a",[2]]}\r\n', EchoBody).prompt == [1, "a", [2]]
