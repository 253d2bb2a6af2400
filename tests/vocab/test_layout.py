import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import DataError, UsageError
from bluejay.vocab.gpt2 import gptj_tokenizer
from bluejay.vocab.layout import IdKind, IdLayout

SIZES = st.integers(0, 40)


@st.composite
def layouts(draw: st.DrawFn) -> IdLayout:
    text, image, padding = draw(SIZES), draw(SIZES), draw(SIZES)
    specials = tuple(f"<|{i}|>" for i in range(draw(st.integers(0, 4))))
    rows = text + len(specials) + image + padding
    return IdLayout(text_size=text, specials=specials, image_codes=image, rows=rows)


@given(layouts())
def test_every_row_has_one_kind_in_order(layout: IdLayout) -> None:
    kinds = layout.kinds(np.arange(layout.rows))
    counts = np.bincount(kinds, minlength=4).tolist()
    padding = layout.rows - layout.num_ids
    assert counts == [layout.text_size, len(layout.specials), layout.image_codes, padding]
    assert (np.diff(kinds.astype(int)) >= 0).all()
    assert sum(layout.mask(kind).sum() for kind in IdKind) == layout.rows


@given(layouts())
def test_image_codes_and_ids_are_one_to_one(layout: IdLayout) -> None:
    codes = np.arange(layout.image_codes)
    ids = layout.image_ids(codes)
    np.testing.assert_array_equal(layout.image_codes_of(ids), codes)
    np.testing.assert_array_equal(np.flatnonzero(layout.mask(IdKind.IMAGE)), ids)


@given(layouts())
def test_specials_are_one_to_one(layout: IdLayout) -> None:
    ids = [layout.special_id(name) for name in layout.specials]
    assert ids == np.flatnonzero(layout.mask(IdKind.SPECIAL)).tolist()


def test_a_picture_vocabulary() -> None:
    layout = IdLayout(
        text_size=16384, specials=("<|image|>", "<|/image|>"), image_codes=1024, rows=17536
    )
    assert layout.special_id("<|/image|>") == 16385
    assert layout.image_ids(np.asarray([[0, 1023]], np.uint16)).tolist() == [[16386, 17409]]
    assert [layout.kind(i) for i in (0, 16384, 16386, 17410)] == list(IdKind)
    mask = layout.sampleable_mask(np.ones(16384, np.bool_))
    assert np.flatnonzero(~mask).tolist() == list(range(17410, 17536))


def test_gptj_has_padding_and_no_pictures() -> None:
    tokenizer = gptj_tokenizer()
    cut = IdLayout(text_size=50257, rows=50400)
    named = IdLayout(text_size=tokenizer.vocab_size, rows=50400)
    for layout in (cut, named):
        mask = layout.sampleable_mask(tokenizer.sampleable_mask(layout.text_size))
        np.testing.assert_array_equal(mask, np.arange(50400) < 50257)
    assert cut.kind(50256) is IdKind.TEXT
    assert cut.kind(50257) is IdKind.PADDING
    assert not cut.mask(IdKind.IMAGE).any()


def test_ids_outside_are_named() -> None:
    layout = IdLayout(text_size=10, image_codes=4, rows=16)
    for bad in (-1, 16, 2**40):
        with pytest.raises(DataError, match=f"id {bad} is outside 0 to 15"):
            layout.kind(bad)
    with pytest.raises(DataError, match="image code 4 is outside 0 to 3"):
        layout.image_ids(np.asarray([0, 4]))
    with pytest.raises(DataError, match="image id 9 is outside 10 to 13"):
        layout.image_codes_of(np.asarray([10, 9]))


def test_layouts_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="9 vocabulary rows cannot hold 10 text ids"):
        IdLayout(text_size=10, rows=9)
    with pytest.raises(UsageError, match="negative size"):
        IdLayout(text_size=-1, rows=9)
    with pytest.raises(UsageError, match="must differ"):
        IdLayout(text_size=1, specials=("<a>", "<a>"), rows=9)
    with pytest.raises(UsageError, match="'<b>' is no special"):
        IdLayout(text_size=1, specials=("<a>",), rows=9).special_id("<b>")
    with pytest.raises(UsageError, match=r"shape \(3,\)"):
        IdLayout(text_size=4, rows=9).sampleable_mask(np.ones(3, np.bool_))
