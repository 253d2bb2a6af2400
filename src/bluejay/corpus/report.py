"""What a preparation did: counts of everything read, kept and dropped, and why."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class SplitCounts:
    """One side of the split; `num_bytes` is UTF-8, tokens include one start id a document."""

    documents: int = 0
    characters: int = 0
    num_bytes: int = 0
    tokens: int = 0

    @property
    def bytes_per_token(self) -> float:
        """How much text a token stands for."""
        return self.num_bytes / self.tokens if self.tokens else 0.0


@dataclass(kw_only=True)
class PrepareReport:
    """Counts by reason: inputs that gave no document, documents and paragraphs dropped."""

    documents_read: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    documents_dropped: Counter[str] = field(default_factory=Counter)
    paragraphs_dropped: Counter[str] = field(default_factory=Counter)
    paragraph_bytes_dropped: int = 0
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    vocab_size: int = 0
    tokenizer_sha256: str = ""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For REPORT.json; the same sources give the same."""
        # Counters are sorted: the order in which reasons came up is of no interest.
        document = {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }
        document["splits"] = {
            name: asdict(counts) | {"bytes_per_token": round(counts.bytes_per_token, 4)}
            for name, counts in self.splits.items()
        }
        return document
