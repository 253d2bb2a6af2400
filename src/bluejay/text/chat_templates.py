"""How a conversation becomes a prompt: fixed templates, one per kind of model. Starts without JAX.

Templates are data of this package; those inside model files are programs and are not run. What a
person wrote stays plain text, whatever it looks like: only a template places special tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """What somebody said."""

    role: Role
    content: str


@dataclass(frozen=True)
class Special:
    """A special token of a template, by name."""

    name: str


Part = str | Special


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What stands around each message, by its role, and where the answer begins and ends.

    A conversation is [document start] [system message] turns… `answer`. Without a system message
    `default_system` takes its place, if there is one. `stops` and the special tokens `stop_tokens`
    end an answer, besides what ends every text of the model. With `trims_answer` the space that
    separates the answer from `answer` is no part of it.
    """

    name: str
    before: Mapping[Role, tuple[Part, ...]]
    after: Mapping[Role, tuple[Part, ...]]
    answer: tuple[Part, ...]
    default_system: str | None = None
    stops: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    starts_document: bool = False
    trims_answer: bool = False


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """Ids that a model reads, of which the first `num_kept` are the start and the system message,
    and what ends its answer."""

    ids: tuple[int, ...]
    num_kept: int = 0
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] = field(default_factory=frozenset)
