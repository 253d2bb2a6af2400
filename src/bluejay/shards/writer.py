"""Writes token shards: documents in, a folder that appears whole or not at all."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import DataError, UsageError
from bluejay.core.files import new_folder, write_text_durably
from bluejay.shards.format import (
    MANIFEST,
    WEIGHTS_DTYPE,
    Manifest,
    ShardFile,
    dtype_for,
    manifest_text,
    token_file_name,
)

TOKENS_PER_FILE = 2**24
"""32 MB of uint16: few files, and a damaged one costs little to fetch again."""


class ShardWriter:
    """Writes documents into a new folder of shards; use it in a `with` block.

    With a `row_length` every document is whole rows of that many tokens. Raises UsageError for a
    folder that has something in it, DataError for ids or weights that do not fit, DiskError.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer_sha256: str,
        vocab_size: int,
        row_length: int | None = None,
        has_weights: bool = False,
        tokens_per_file: int = TOKENS_PER_FILE,
    ) -> None:
        if row_length is not None and row_length < 1:
            raise UsageError(f"rows of {row_length} tokens cannot be stored: give 1 or more")
        unit = row_length or 1
        if tokens_per_file < unit:
            raise UsageError(
                f"files of {tokens_per_file} tokens are too small: give {unit} or more"
            )
        self._folder = folder
        self._tokenizer_sha256 = tokenizer_sha256
        self._vocab_size = vocab_size
        self._row_length = row_length
        self._has_weights = has_weights
        self._tokens_per_file = tokens_per_file // unit * unit
        self._dtype_name = dtype_for(vocab_size)
        self._dtype = np.dtype("<u2" if self._dtype_name == "uint16" else "<u4")
        self._stack = ExitStack()
        self._partial: Path | None = None
        self._open: _OpenFile | None = None
        self._files: list[ShardFile] = []
        self._num_documents = self._num_text_bytes = 0

    def __enter__(self) -> Self:
        self._partial = self._stack.enter_context(new_folder(self._folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            if self._partial is not None:
                self.finish({})
            return
        if self._open is not None:
            self._open.close()
        self._stack.__exit__(kind, error, trace)

    def append(
        self,
        ids: Sequence[int] | NDArray[Any],
        *,
        num_text_bytes: int,
        weights: Sequence[float] | NDArray[Any] | None = None,
    ) -> None:
        """Add one document: its ids, how long its text is in UTF-8, a weight for each id or none.

        In shards with weights, a document without any weighs 1 everywhere.
        """
        stored = self._checked_ids(ids)
        loss_weights = self._checked_weights(weights, stored.size)
        done = 0
        while done < stored.size:
            file = self._open or self._next_file()
            end = done + min(stored.size - done, self._tokens_per_file - file.num_tokens)
            file.write(stored[done:end], loss_weights[done:end])
            done = end
            if file.num_tokens == self._tokens_per_file:
                self._close_file()
        self._num_documents += 1
        self._num_text_bytes += num_text_bytes

    def finish(self, provenance: Mapping[str, Any]) -> Manifest:
        """Write the manifest, which says where the text came from; the folder appears."""
        folder = self._require_open()
        self._close_file()
        manifest = Manifest(
            dtype=self._dtype_name,
            tokenizer_sha256=self._tokenizer_sha256,
            vocab_size=self._vocab_size,
            row_length=self._row_length,
            has_weights=self._has_weights,
            num_tokens=sum(file.num_tokens for file in self._files),
            num_documents=self._num_documents,
            num_text_bytes=self._num_text_bytes,
            provenance=dict(provenance),
            files=tuple(self._files),
        )
        write_text_durably(folder / MANIFEST, manifest_text(manifest))
        self._partial = None
        self._stack.close()
        return manifest

    def _checked_ids(self, ids: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        array = np.asarray(ids)
        if array.size == 0:
            array = array.astype(np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(
                f"ids of shape {array.shape} and type {array.dtype} are not a list of token ids"
            )
        if array.size and not 0 <= (worst := _most_wrong(array)) < self._vocab_size:
            raise DataError(
                f"id {worst} has no place in a vocabulary of {self._vocab_size}: encode the text "
                "with the tokenizer that the shards name"
            )
        if self._row_length and array.size % self._row_length:
            raise DataError(
                f"{array.size} ids are not whole rows of {self._row_length}: pad or cut them"
            )
        return array.astype(self._dtype)

    def _checked_weights(
        self, weights: Sequence[float] | NDArray[Any] | None, size: int
    ) -> NDArray[Any]:
        if weights is None:
            return np.ones(size if self._has_weights else 0, WEIGHTS_DTYPE)
        if not self._has_weights:
            raise UsageError("these shards have no weights: open the writer with has_weights=True")
        array = np.asarray(weights, WEIGHTS_DTYPE)
        if array.shape != (size,) or not np.isfinite(array).all():
            raise DataError(
                f"weights of shape {array.shape} do not fit {size} ids: give each id a finite one"
            )
        return array

    def _require_open(self) -> Path:
        if self._partial is None:
            raise UsageError(f"{self._folder} is not being written: use `with ShardWriter(...)`")
        return self._partial

    def _next_file(self) -> "_OpenFile":
        name = token_file_name(len(self._files))
        self._open = _OpenFile(self._require_open(), name, has_weights=self._has_weights)
        return self._open

    def _close_file(self) -> None:
        if self._open is not None:
            self._files.append(self._open.finish())
            self._open = None


class _OpenFile:
    """A file of ids, perhaps with one of weights, being written and hashed."""

    def __init__(self, folder: Path, name: str, *, has_weights: bool) -> None:
        self._name = name
        self._tokens = _HashedFile(folder / name)
        weights_name = ShardFile(name=name, num_tokens=0, bytes=0, sha256="").weights_name
        self._weights = _HashedFile(folder / weights_name) if has_weights else None
        self.num_tokens = 0

    def write(self, ids: NDArray[Any], weights: NDArray[Any]) -> None:
        self._tokens.write(ids.tobytes())
        if self._weights is not None:
            self._weights.write(weights.tobytes())
        self.num_tokens += ids.size

    def finish(self) -> ShardFile:
        num_bytes, sha256 = self._tokens.finish()
        weights_sha256 = self._weights.finish()[1] if self._weights is not None else None
        return ShardFile(
            name=self._name,
            num_tokens=self.num_tokens,
            bytes=num_bytes,
            sha256=sha256,
            weights_sha256=weights_sha256,
        )

    def close(self) -> None:
        """Give up. Closing writes what a full disk did not take, and fails for the same reason."""
        for hashed in filter(None, (self._tokens, self._weights)):
            with suppress(OSError):
                hashed.file.close()


class _HashedFile:
    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self._digest.update(data)
        self._num_bytes += len(data)

    def finish(self) -> tuple[int, str]:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return self._num_bytes, self._digest.hexdigest()


def _most_wrong(ids: NDArray[Any]) -> int:
    """The smallest id if it is negative, else the largest."""
    smallest = int(ids.min())
    return smallest if smallest < 0 else int(ids.max())
