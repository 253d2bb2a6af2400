"""Reads token shards: mapped files, one range of tokens across all of them."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.core.files import sha256_of
from bluejay.shards.format import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    WEIGHTS_DTYPE,
    Manifest,
    ShardFile,
    parse_manifest,
    shards_error,
)


class TokenShards:
    """A folder of shards, mapped. Opening checks the manifest and every size, not the hashes.

    Raises DataError for what is missing, damaged or no folder of shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        for problem in self._size_problems():
            raise shards_error(folder, f"{problem}: fetch or make the shards again")
        ends = accumulate(file.num_tokens for file in self.manifest.files)
        self._borders = np.array([0, *ends], np.int64)
        self._maps: dict[str, NDArray[Any]] = {}

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    def read(self, start: int, stop: int) -> NDArray[np.int32]:
        """int32 [stop - start]: the ids from `start` to before `stop`."""
        dtype = self.manifest.numpy_dtype
        ids = self._range(start, stop, np.dtype(np.int32), lambda file: (file.name, dtype))
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.manifest.vocab_size:
            raise shards_error(
                self.folder,
                f"an id from {start} to {stop} is outside its vocabulary of "
                f"{self.manifest.vocab_size}: fetch or make the shards again",
            )
        return ids

    def read_weights(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [stop - start]: the weights of those tokens; ones where none are stored."""
        if not self.manifest.has_weights:
            self._check_range(start, stop)
            return np.ones(stop - start, np.float32)
        return self._range(
            start, stop, np.dtype(np.float32), lambda file: (file.weights_name, WEIGHTS_DTYPE)
        )

    def verify(self) -> list[str]:
        """Every difference between the folder and its manifest, hashes included."""
        problems = [*self._size_problems()]
        if not problems:
            problems = [
                f"{name} is damaged: its sha256 differs from the manifest's"
                for name, _, sha256 in self._expected()
                if sha256_of(self.folder / name) != sha256
            ]
        return problems

    def _range(
        self,
        start: int,
        stop: int,
        dtype: np.dtype[Any],
        stored: Callable[[ShardFile], tuple[str, np.dtype[Any]]],
    ) -> NDArray[Any]:
        self._check_range(start, stop)
        result = np.empty(stop - start, dtype)
        number = int(np.searchsorted(self._borders, start, side="right")) - 1
        done = start
        while done < stop:
            file, first = self.manifest.files[number], int(self._borders[number])
            end = min(stop, first + file.num_tokens)
            mapped = self._mapped(*stored(file))
            result[done - start : end - start] = mapped[done - first : end - first]
            done, number = end, number + 1
        return result

    def _mapped(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        if name not in self._maps:
            try:
                self._maps[name] = np.memmap(self.folder / name, dtype, mode="r")
            except (OSError, ValueError) as error:
                raise shards_error(self.folder, f"{name} cannot be mapped: {error}") from error
        return self._maps[name]

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_tokens:
            raise UsageError(
                f"tokens {start} to {stop} are not in shards of {self.num_tokens:,} tokens"
            )

    def _expected(self) -> Iterator[tuple[str, int, str]]:
        """Name, bytes and sha256 of every file."""
        for file in self.manifest.files:
            yield file.name, file.bytes, file.sha256
            if file.weights_sha256 is not None and self.manifest.has_weights:
                num_bytes = file.num_tokens * WEIGHTS_DTYPE.itemsize
                yield file.weights_name, num_bytes, file.weights_sha256

    def _size_problems(self) -> Iterator[str]:
        for name, num_bytes, _ in self._expected():
            path = self.folder / name
            if not path.is_file():
                yield f"{name} is missing"
            elif path.stat().st_size != num_bytes:
                yield (
                    f"{name} has {path.stat().st_size:,} bytes, but its manifest says {num_bytes:,}"
                )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise shards_error(folder, f"there is no {MANIFEST}: `bluejay prepare` makes shards")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise shards_error(folder, f"its {MANIFEST} is larger than any of token shards")
        return parse_manifest(path.read_bytes(), folder=folder)
    except OSError as error:
        raise shards_error(folder, f"{MANIFEST} cannot be read: {error.strerror}") from error
