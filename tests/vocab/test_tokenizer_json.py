import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluejay.core.errors import CheckpointError
from bluejay.vocab.tokenizer_json import MAX_TOKENS, build_backend
from tokenizers_for_tests import small_document

Damage = Callable[[dict[str, Any]], Any]


def refused(document: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        build_backend(document, where="model/tokenizer.json")
    message = str(caught.value)
    assert message.startswith("model/tokenizer.json: ")
    assert message.isprintable()
    assert len(message) < 500
    return message


def test_the_whole_document_is_accepted() -> None:
    backend = build_backend(small_document(), where="small")
    assert backend.encode(" the<|endoftext|>").ids == [258, 259]


def test_merges_may_be_strings() -> None:
    document = small_document()
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    assert build_backend(document, where="small").encode(" the").ids == [258]


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no model": (lambda d: d.pop("model"), 'no "model"'),
    "model of another type": (lambda d: d.update(model=[1]), 'no "model"'),
    "unigram": (lambda d: d["model"].update(type="Unigram"), "'Unigram', not BPE; Bluejay reads"),
    "word piece": (lambda d: d["model"].update(type="WordPiece"), "'WordPiece', not BPE"),
    "word level": (lambda d: d.update(model={"vocab": {}, "type": "WordLevel"}), "'WordLevel'"),
    "sentencepiece": (lambda d: d["model"].update(byte_fallback=True), "SentencePiece BPE"),
    "metaspace": (lambda d: d.update(pre_tokenizer={"type": "Metaspace"}), "'Metaspace', not by b"),
    "no splitting": (lambda d: d.update(pre_tokenizer=None), "by nothing, not by bytes"),
    "lower case": (lambda d: d.update(normalizer={"type": "Lowercase"}), "'Lowercase' changes"),
    "dropout": (lambda d: d["model"].update(dropout=0.1), "dropout to 0.1"),
    "suffix": (lambda d: d["model"].update(end_of_word_suffix="</w>"), "'</w>'"),
    "vocabulary list": (lambda d: d["model"].update(vocab=[1, 2]), "needs a vocab object"),
    "negative id": (lambda d: d["model"]["vocab"].update(x1=-1), "'x1' has the id -1"),
    "huge id": (lambda d: d["model"]["vocab"].update(x1=2**40), "has the id 1099511627776"),
    "id with 1000 digits": (lambda d: d["model"]["vocab"].update(x1=10**1000), "of type int"),
    "text as id": (lambda d: d["model"]["vocab"].update(x1="7"), "has the id '7'"),
    "true as id": (lambda d: d["model"]["vocab"].update(x1=True), "has the id True"),
    "id twice": (
        lambda d: d["model"]["vocab"].update(x1=5),
        "id 5 is given to",
    ),
    "empty name": (lambda d: d["model"]["vocab"].update({"": 300}), "empty name"),
    "missing byte": (lambda d: d["model"]["vocab"].pop("Ġ"), "union is no token|first is 0x20"),
    "no bytes": (
        lambda d: d["model"].update(vocab={"a": 0}, merges=[]),
        "bytes that ordinary",
    ),
    "merge of three": (lambda d: d["model"]["merges"].append("a b c"), "merge 3 is 'a b c'"),
    "merge of numbers": (
        lambda d: d["model"]["merges"].append([1, 2]),
        "merge 3 is a value",
    ),
    "merge of strangers": (lambda d: d["model"]["merges"].append("q zz"), "merge 3 joins 'q' and"),
    "merge without union": (lambda d: d["model"]["merges"].append("q q"), "union is no token"),
    "10 million merges": (
        lambda d: d["model"].update(merges=[None] * 10**7),
        "10,000,000 merges, more than the 1,048,576 allowed",
    ),
    "added tokens no list": (lambda d: d.update(added_tokens={"a": 1}), "not a list of objects"),
    "added without id": (lambda d: d["added_tokens"][0].pop("id"), "has the id None"),
    "added without name": (lambda d: d["added_tokens"][0].pop("content"), "name None"),
    "added surrogate": (lambda d: d["added_tokens"][0].update(content="\ud800"), "is no text"),
    "added twice": (lambda d: d["added_tokens"].append(d["added_tokens"][0]), "there twice"),
    "added over a byte": (lambda d: d["added_tokens"][0].update(id=5), "contradicts the vocab"),
    "added with a gap": (lambda d: d["added_tokens"][0].update(id=400), "without gaps"),
    "bad regular expression": (
        lambda d: d.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": "(("},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    d["pre_tokenizer"],
                ],
            }
        ),
        "`tokenizers` cannot read it",
    ),
    "surrogate in the vocabulary": (
        lambda d: d["model"]["vocab"].update({"\ud800": 259}) or d["added_tokens"].clear(),
        "cannot read it",
    ),
    "escape sequences": (lambda d: d["model"].update(type="\x1b[2J\n" * 99), "not BPE"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_in_one_sentence(name: str) -> None:
    damage, message = DAMAGES[name]
    document = small_document()
    damage(document)
    text = refused(document)
    assert any(part in text for part in message.split("|")), text


def test_too_many_tokens() -> None:
    document = small_document()
    document["model"]["vocab"] = {str(i): i for i in range(MAX_TOKENS + 1)}
    assert "1,048,577 tokens" in refused(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=60)
@given(
    st.sampled_from(["model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"]),
    st.sampled_from([None, "type", "vocab", "merges", "ignore_merges"]),
    JSON,
)
def test_nonsense_is_accepted_or_refused_but_never_crashes(
    part: str, key: str | None, value: Any
) -> None:
    document = small_document()
    if key is not None and isinstance(document[part], dict):
        document[part][key] = value
    else:
        document[part] = value
    with contextlib.suppress(CheckpointError):
        build_backend(json.loads(json.dumps(document)), where="fuzzed")
