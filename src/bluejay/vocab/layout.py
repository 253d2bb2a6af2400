"""The one place that says which ids are text, special and image codes.

0 ............ text_size | specials | image codes | padding ... rows
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import DataError, UsageError


class IdKind(IntEnum):
    """What an id stands for, in the order in which ids are laid out."""

    TEXT = 0
    SPECIAL = 1
    IMAGE = 2
    PADDING = 3


@dataclass(frozen=True, kw_only=True)
class IdLayout:
    """The joint vocabulary: the tokenizer's ids, then specials of ours, then image codes.

    `text_size` is the tokenizer's `vocab_size`, its own special tokens included. `rows` is the
    embedding's length; rows after the last id are padding and never sampled. GPT-J is
    `IdLayout(text_size=50257, rows=50400)`.
    """

    text_size: int
    specials: tuple[str, ...] = ()
    image_codes: int = 0
    rows: int

    def __post_init__(self) -> None:
        if self.text_size < 0 or self.image_codes < 0:
            raise UsageError(
                f"a layout of {self.text_size} text ids and {self.image_codes} image codes has a"
                " negative size: give both as 0 or more"
            )
        if len(set(self.specials)) < len(self.specials):
            raise UsageError(f"special names must differ: {list(self.specials)}")
        if self.rows < self.num_ids:
            raise UsageError(
                f"{self.rows} vocabulary rows cannot hold {self.text_size} text ids,"
                f" {len(self.specials)} specials and {self.image_codes} image codes: give"
                f" {self.num_ids} or more"
            )

    @property
    def first_special(self) -> int:
        return self.text_size

    @property
    def first_image(self) -> int:
        return self.text_size + len(self.specials)

    @property
    def num_ids(self) -> int:
        """How many ids mean something; also the first padding row."""
        return self.first_image + self.image_codes

    def special_id(self, name: str) -> int:
        """The id of one of `specials`. UsageError for other names."""
        if name not in self.specials:
            raise UsageError(
                f"{name!r} is no special of this layout, which has {list(self.specials)}"
            )
        return self.first_special + self.specials.index(name)

    def kind(self, token_id: int) -> IdKind:
        """What one id stands for. DataError outside the rows."""
        return IdKind(int(self.kinds(np.asarray([token_id], np.int64))[0]))

    def kinds(self, ids: NDArray[np.integer]) -> NDArray[np.uint8]:
        """`IdKind` of each id, same shape. DataError names an id outside the rows."""
        self._check_range(ids, 0, self.rows, "id")
        borders = np.asarray([self.first_special, self.first_image, self.num_ids])
        return np.searchsorted(borders, ids, side="right").astype(np.uint8)

    def image_ids(self, codes: NDArray[np.integer]) -> NDArray[np.int32]:
        """Joint ids of image codes 0 … `image_codes` - 1, same shape."""
        self._check_range(codes, 0, self.image_codes, "image code")
        return (codes.astype(np.int64) + self.first_image).astype(np.int32)

    def image_codes_of(self, ids: NDArray[np.integer]) -> NDArray[np.int32]:
        """The inverse of `image_ids`. DataError for ids that are no image codes."""
        self._check_range(ids, self.first_image, self.num_ids, "image id")
        return (ids.astype(np.int64) - self.first_image).astype(np.int32)

    def mask(self, *kinds: IdKind) -> NDArray[np.bool_]:
        """bool [rows]: True for ids of these kinds."""
        return np.isin(self.kinds(np.arange(self.rows)), np.asarray(kinds, np.uint8))

    def sampleable_mask(self, text: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool [rows]: True for ids that may be sampled and may count in the loss.

        `text`, bool [text_size], is `Tokenizer.sampleable_mask(text_size)`; specials and image
        codes may be sampled, padding never.
        """
        if text.shape != (self.text_size,):
            raise UsageError(
                f"the mask of text ids has shape {text.shape}, the layout {self.text_size} text"
                " ids: take both from the same tokenizer"
            )
        mask = self.mask(IdKind.SPECIAL, IdKind.IMAGE)
        mask[: self.text_size] = text
        return mask

    def _check_range(self, values: NDArray[np.integer], low: int, high: int, noun: str) -> None:
        outside = (values < low) | (values >= high)
        if outside.any():
            first = int(values[outside].flat[0])
            raise DataError(
                f"{noun} {first} is outside {low} to {high - 1}: the ids were made for another"
                " vocabulary"
            )
