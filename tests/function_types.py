"""The checker that the tests run over every function of the package."""

from collections.abc import Callable
from typing import Any, Self, TypeVar, get_args, runtime_checkable

from beartype import BeartypeConf, beartype

F = TypeVar("F", bound=Callable[..., Any])

# An int is a float to the type checker (PEP 484), so it is one here.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_function(function: F) -> F:
    """Check arguments, results and array shapes, of everything but constructors.

    JAX rebuilds a registered dataclass through its constructor with specs, booleans and tracers
    in its fields, so what a field holds is checked where a function takes it.
    """
    if function.__name__ == "__init__":
        return function
    for name, hint in function.__annotations__.items():
        _make_protocols_checkable(hint)
        if hint is Self:  # which only a checker of whole classes understands
            function.__annotations__[name] = Any
    return _check(function)


def _make_protocols_checkable(hint: object) -> None:
    if getattr(hint, "_is_protocol", False) and isinstance(hint, type):
        runtime_checkable(hint)
    for part in get_args(hint):
        _make_protocols_checkable(part)
