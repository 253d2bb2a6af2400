"""Texts on the disk while a corpus is made: memory holds where they are, not what they say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A document whose text is in a spool, `num_bytes` of UTF-8 from `offset` on."""

    id: str
    metadata: Mapping[str, str]
    difficulty: float
    offset: int
    num_bytes: int


class Spool:
    """One file that texts are appended to and read back from; gone at the end of the block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("x+b")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing writes what a full disk did not take; the error that led here is the one to tell.
        try:
            self._file.close()
        except OSError:
            if error is None:
                raise
        finally:
            self._path.unlink(missing_ok=True)

    def add(
        self, text: str, *, document_id: str, metadata: Mapping[str, str], difficulty: float
    ) -> Entry:
        """Append a text."""
        data = text.encode()
        self._file.seek(self._size)
        self._file.write(data)
        offset, self._size = self._size, self._size + len(data)
        return Entry(
            id=document_id,
            metadata=metadata,
            difficulty=difficulty,
            offset=offset,
            num_bytes=len(data),
        )

    def read(self, entry: Entry) -> str:
        """Its text."""
        self._file.seek(entry.offset)
        return self._file.read(entry.num_bytes).decode()
