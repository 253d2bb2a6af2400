"""Typed reading of a published configuration: absent, null, wrong and unsupported values."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from bluejay.core.errors import CheckpointError

T = TypeVar("T")


class ConfigFields:
    """Values of a JSON object by key, each checked; `where` begins every message."""

    def __init__(self, published: Mapping[str, Any], *, where: str, prefix: str = "") -> None:
        self._published = published
        self._where = where
        self._prefix = prefix

    def size(self, key: str, default: int | None = None, *, smallest: int = 1) -> int:
        """A whole number of at least `smallest`; null counts as absent."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if value < smallest:
            raise self._wrong(key, value, f"a whole number of at least {smallest}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str) -> T:
        """The value that one of the published names stands for."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(key, value, f"one of {', '.join(choices)}")
        return choices[value]

    def require(self, key: str, value: object) -> None:
        """Refuse any other value than the one this decoder computes."""
        found = self._value(key, value)
        if found != value:
            raise self._wrong(key, found, f"{value!r}, the only value that is supported")

    def rope(self) -> "ConfigFields":
        """The rotary parameters of transformers 5; scaled frequencies are refused."""
        scaling = self._published.get("rope_scaling") or {}
        parameters = self._published.get("rope_parameters") or {}
        for block in (scaling, parameters):
            if not isinstance(block, Mapping):
                raise self._wrong("rope_parameters", block, "an object")
            kind = block.get("rope_type", block.get("type", "default"))
            if kind != "default":
                raise self._wrong("rope_type", kind, "'default': scaled rotary is not supported")
        return ConfigFields(parameters, where=self._where)

    def _value(self, key: str, default: object) -> object:
        value = self._published.get(self._prefix + key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._where}: the key {self._prefix + key!r} is missing.")
        return value

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: {self._prefix + key} is {value!r}, but must be {expected}."
        )
