import numpy as np
import pytest

from bluejay.vocab.gpt2 import gpt2_tokenizer, gptj_tokenizer
from golden_files import load_gpt2_token_ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # transformers' documentation of GPT2Tokenizer.
        ("Hello world", [15496, 995]),
        (" Hello world", [18435, 995]),
        ("Hello, my dog is cute", [15496, 11, 616, 3290, 318, 13779]),
        ("The quick brown fox", [464, 2068, 7586, 21831]),
        (" SolidGoldMagikarp", [43453]),
        ("", []),
    ],
)
def test_published_ids(text: str, ids: list[int]) -> None:
    assert gpt2_tokenizer().encode(text) == ids
    assert gptj_tokenizer().encode(text) == ids
    assert gpt2_tokenizer().decode(ids) == text


def test_ids_of_transformers() -> None:
    cases = load_gpt2_token_ids()
    assert len(cases) > 50
    assert [gpt2_tokenizer().encode(text) for text, _ in cases] == [ids for _, ids in cases]
    assert gpt2_tokenizer().encode_batch([text for text, _ in cases]) == [ids for _, ids in cases]


def test_end_of_text_has_every_role() -> None:
    tokenizer = gpt2_tokenizer()
    assert tokenizer.vocab_size == 50257
    assert tokenizer.token_id("<|endoftext|>") == 50256
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.document_start_id) == (50256,) * 3
    assert tokenizer.pad_id is None
    assert tokenizer.stop_ids == tokenizer.special_ids == {50256}


def test_gptj_names_its_padding_and_never_samples_it() -> None:
    tokenizer = gptj_tokenizer()
    assert tokenizer.vocab_size == 50400
    assert tokenizer.token_name(50257) == "<|extratoken_1|>"
    assert tokenizer.token_name(50399) == "<|extratoken_143|>"
    expected = np.arange(50400) < 50257
    np.testing.assert_array_equal(tokenizer.sampleable_mask(50400), expected)
    # A model cut to GPT-2's rows works with it; GPT-2's own tokenizer with GPT-J's rows too.
    assert tokenizer.sampleable_mask(50257).all()
    np.testing.assert_array_equal(gpt2_tokenizer().sampleable_mask(50400), expected)


def test_padding_names_in_text_stay_text() -> None:
    ids = gptj_tokenizer().encode("<|extratoken_1|>")
    assert max(ids) < 50256
    assert ids == gpt2_tokenizer().encode("<|extratoken_1|>")
